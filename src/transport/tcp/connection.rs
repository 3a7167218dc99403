//! A connection as the application sees it.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::choice::Decision;
use super::guests::Guest;
use super::state::{Frame, Incoming, ReadEnd, Shared, State};
use super::writer::LOOK;
use super::{MAX_MESSAGE, MAX_PREFIX, TcpOptions, keepalive, reader, writer};
use crate::rdma::{IoBuf, IoBytes, ReadOnlyMemory, UserMemory};
use crate::transport::ext::block_on;
use crate::transport::{
    ApiMisuse, Close, DisconnectReason, Error, Info, Limits, Message, Op, OutMessage, Stats,
    Transport, TransportKind, TrySendError,
};

/// A connection that carries SMB messages over TCP. When it is dropped, messages that were accepted
/// are still sent, within [`TcpOptions::drop_timeout`].
///
/// A peer may end its own side and wait for answers: after [`Transport::poll_recv`] gave `None`,
/// sending goes on to work until this side closes.
pub struct Tcp {
    pub(super) shared: Arc<Shared>,
}

/// What [`Tcp::recv_into`] received.
#[derive(Debug)]
pub enum Received {
    /// The whole message in one piece.
    Message(Message),
    /// A message whose payload is in the chosen buffer.
    Placed {
        /// The bytes that the choice was made by.
        prefix: Bytes,
        /// The rest of the message: the chosen buffer, cut to the length of the payload.
        payload: IoBuf,
    },
}

impl Tcp {
    /// Connects; a thread of its own waits for it, at most [`TcpOptions::connect_timeout`].
    ///
    /// # Errors
    /// The operation ends with [`Error::Os`] if the peer cannot be reached or refuses.
    pub fn connect(to: SocketAddr, options: TcpOptions) -> Op<Self> {
        Self::connect_as(to, options, |connection| connection)
    }

    /// Connects, and gives the connection the form that is waited for.
    pub(super) fn connect_as<T: Send + 'static>(
        to: SocketAddr,
        options: TcpOptions,
        form: fn(Self) -> T,
    ) -> Op<T> {
        let (op, completer) = Op::pending();
        let connect = move || {
            let result = TcpStream::connect_timeout(&to, options.connect_timeout)
                .map_err(|error| os_error(&error))
                .and_then(|stream| Self::from_stream(stream, options))
                .map(form);
            if let Some(waker) = completer.complete(result) {
                waker.wake();
            }
        };
        match thread::Builder::new()
            .name("smb-tcp-connect".into())
            .spawn(connect)
        {
            Ok(_) => op,
            Err(error) => Op::ready(Err(os_error(&error))),
        }
    }

    /// Over a connection that exists already, for example an accepted one. The stream is made
    /// blocking, and no other handle to it may be used any more.
    ///
    /// # Errors
    /// [`Error::Os`] if the stream is not connected or a thread cannot be started.
    pub fn from_stream(stream: TcpStream, options: TcpOptions) -> Result<Self, Error> {
        Self::of_guest(stream, options, None)
    }

    /// A connection that has a place among those of a listener.
    pub(super) fn of_guest(
        stream: TcpStream,
        options: TcpOptions,
        guest: Option<Guest>,
    ) -> Result<Self, Error> {
        Self::at_rest(stream, options, guest)?.begin(spawn)
    }

    /// Starts the threads.
    pub(super) fn begin(
        self,
        spawn: impl Fn(&str, Arc<Shared>, fn(&Arc<Shared>)) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let started = spawn("smb-tcp-read", self.shared.clone(), reader::run)
            .and_then(|()| spawn("smb-tcp-write", self.shared.clone(), writer::run));
        if started.is_err() {
            // Closing in order is the writer's work: without it the reader would wait for the peer, for
            // as long as that likes.
            self.close(Close::Abort);
        }
        started.map(|()| self)
    }

    /// A connection that nobody reads or writes yet.
    pub(super) fn at_rest(
        stream: TcpStream,
        mut options: TcpOptions,
        guest: Option<Guest>,
    ) -> Result<Self, Error> {
        options.max_send = options.max_send.min(MAX_MESSAGE);
        options.max_receive = options.max_receive.min(MAX_MESSAGE);
        // Without room for a byte nothing would ever move.
        options.send_queue = options.send_queue.max(1);
        options.receive_queue = options.receive_queue.max(1);
        let info = prepare(&stream, &options).map_err(|error| os_error(&error))?;
        let shared = Arc::new(Shared::new(stream, info, options, guest));
        Ok(Self { shared })
    }

    /// As [`Transport::poll_recv`], with a say in where the payload goes: as soon as the first
    /// `prefix_len` bytes of a longer message have arrived, `choose` is called with them, and if it
    /// returns a buffer the rest of the message is read into that, straight from the socket. A
    /// buffer too small for it is dropped, and the message comes in one piece, as when `choose`
    /// returns none, or returns after this side was closed. A message of at most `prefix_len` bytes
    /// comes in one piece unasked.
    ///
    /// Payloads that had been read already, because earlier calls did not ask or because they are
    /// small, are copied into the buffer.
    ///
    /// # Errors
    /// As for `poll_recv`.
    ///
    /// # Panics
    /// If `prefix_len` is 0 or above [`MAX_PREFIX`].
    pub fn poll_recv_into(
        &self,
        cx: &mut Context<'_>,
        prefix_len: usize,
        choose: &mut dyn FnMut(&[u8]) -> Option<IoBuf>,
    ) -> Poll<Result<Option<Received>, Error>> {
        assert!(
            (1..=MAX_PREFIX).contains(&prefix_len),
            "a prefix of {prefix_len} bytes"
        );
        loop {
            let mut state = self.shared.lock();
            state.prefix_len = Some(prefix_len);
            if let Some(message) = self.pop(&mut state) {
                drop(state);
                return Poll::Ready(Ok(Some(match message {
                    Incoming::Placed { prefix, payload } => Received::Placed { prefix, payload },
                    Incoming::Whole(bytes) => place(bytes, prefix_len, choose),
                    Incoming::Refused(bytes) => Received::Message(Message::new(bytes, None)),
                })));
            }
            state.recv_waker = Some(cx.waker().clone());
            let Some(prefix) = state.choice.ask() else {
                return Self::receive_ended(&state).map_ok(|()| None);
            };
            // The application's code runs without the lock.
            drop(state);
            let decision = choose(&prefix).map_or(Decision::Heap, Decision::Into);
            let too_late = self.shared.lock().choice.make(decision);
            drop(too_late);
            self.shared.reader.ring();
            // This side may have been closed meanwhile, and the reader have gone on by itself: what it has
            // received comes before the end.
        }
    }

    /// As [`Tcp::poll_recv_into`], waiting. Cancel safe: after `choose` gave a buffer, the message
    /// is received by the next call, whichever it is.
    ///
    /// # Errors
    /// As for `poll_recv`.
    ///
    /// # Panics
    /// If `prefix_len` is 0 or above [`MAX_PREFIX`].
    pub fn recv_into(
        &self,
        prefix_len: usize,
        mut choose: impl FnMut(&[u8]) -> Option<IoBuf> + Send,
    ) -> impl Future<Output = Result<Option<Received>, Error>> + Send {
        poll_fn(move |cx| self.poll_recv_into(cx, prefix_len, &mut choose))
    }

    /// As [`Tcp::recv_into`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `poll_recv`; [`Error::WouldBlock`] when the time is over.
    ///
    /// # Panics
    /// If `prefix_len` is 0 or above [`MAX_PREFIX`].
    pub fn recv_into_blocking(
        &self,
        prefix_len: usize,
        mut choose: impl FnMut(&[u8]) -> Option<IoBuf>,
        timeout: Option<Duration>,
    ) -> Result<Option<Received>, Error> {
        block_on(Duration::ZERO, timeout, |cx| {
            self.poll_recv_into(cx, prefix_len, &mut choose)
        })
        .unwrap_or(Err(Error::WouldBlock))
    }

    fn pop(&self, state: &mut State) -> Option<Incoming> {
        let message = state.incoming.pop_front()?;
        let full = state.incoming_bytes >= self.shared.options.receive_queue;
        state.incoming_bytes -= message.cost();
        if full && state.incoming_bytes < self.shared.options.receive_queue {
            self.shared.reader.ring();
        }
        Some(message)
    }

    /// Ready when no message can come any more.
    fn receive_ended(state: &State) -> Poll<Result<(), Error>> {
        match state.read_end {
            None => Poll::Pending,
            Some(ReadEnd::InOrder) => Poll::Ready(Ok(())),
            Some(ReadEnd::Failed) => Poll::Ready(Err(Error::Closed(state.reason()))),
        }
    }
}

impl Transport for Tcp {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    fn limits(&self) -> Limits {
        Limits {
            max_send: self.shared.options.max_send as u64,
            max_receive: self.shared.options.max_receive as u64,
            max_transfer: 0,
        }
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.shared.lock();
        if state.send_closed {
            return Poll::Ready(Err(Error::Closed(state.reason())));
        }
        if state.outgoing_bytes < self.shared.options.send_queue {
            return Poll::Ready(Ok(()));
        }
        let others = state.ready.add(cx.waker());
        drop(state);
        others.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    fn start_send(&self, message: OutMessage<'_>) -> Result<(), TrySendError> {
        let len = message.len();
        let max = self.shared.options.max_send;
        if len == 0 {
            return Err(ApiMisuse::EmptyMessage.into());
        }
        if len > max {
            let (len, max) = (len as u64, max as u64);
            return Err(ApiMisuse::MessageTooLarge { len, max }.into());
        }
        // Looked at before the bytes are copied, and again below, where it counts.
        self.shared.accepts(&self.shared.lock())?;
        let copied = matches!(message, OutMessage::Slice(_) | OutMessage::Slices(_));
        let frame = match message {
            OutMessage::Slice(slice) => Frame::Bytes(Bytes::copy_from_slice(slice)),
            OutMessage::Slices(slices) => {
                let mut bytes = BytesMut::with_capacity(len);
                slices
                    .iter()
                    .for_each(|slice| bytes.extend_from_slice(slice));
                Frame::Bytes(bytes.freeze())
            }
            OutMessage::Bytes(bytes) => Frame::Bytes(bytes),
            OutMessage::Gather(gather) => Frame::Gather(gather),
        };
        let mut state = self.shared.lock();
        self.shared.accepts(&state)?;
        state.outgoing_bytes += len;
        state.outgoing.push_back(frame);
        state.stats.messages_sent += 1;
        state.stats.sends += 1;
        state.stats.bytes_sent += len as u64;
        match copied {
            true => state.stats.copied_bytes += len as u64,
            false => state.stats.zero_copy_bytes += len as u64,
        }
        drop(state);
        self.shared.writer.ring();
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        let mut state = self.shared.lock();
        if let Some(message) = self.pop(&mut state) {
            drop(state);
            return Poll::Ready(Ok(Some(Message::new(message.into_bytes(), None))));
        }
        state.recv_waker = Some(cx.waker().clone());
        if state.choice.forgo() {
            self.shared.reader.ring();
        }
        Self::receive_ended(&state).map_ok(|()| None)
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        let mut state = self.shared.lock();
        match &state.reason {
            Some(reason) => Poll::Ready(reason.clone()),
            None => {
                let others = state.closed.add(cx.waker());
                drop(state);
                others.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
        }
    }

    fn close(&self, how: Close) {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let wake = match how {
            // Nothing is left to be sent: what remains is the socket.
            Close::Graceful(_) if state.send_closed && state.closing.is_none() => {
                state.aborted = true;
                None
            }
            Close::Graceful(time) if !time.is_zero() => {
                let deadline = now
                    .checked_add(time)
                    .unwrap_or(now + Duration::from_secs(3600));
                state.send_closed = true;
                state.closing = Some(state.closing.map_or(deadline, |d| d.min(deadline)));
                // Those who wait for room learn that there will be none.
                Some(state.wake_sender())
            }
            Close::Graceful(_) | Close::Abort => {
                state.aborted = true;
                Some(state.end(DisconnectReason::Local))
            }
        };
        let aborted = state.aborted;
        drop(state);
        if aborted {
            self.shared.shut_down();
        }
        self.shared.writer.ring();
        self.shared.reader.ring();
        if let Some(wake) = wake {
            wake.wake();
        }
    }

    fn allocate(&self, len: usize) -> Op<IoBuf> {
        Op::ready(self.shared.options.heap.take(len).map_err(Error::Rdma))
    }

    fn register(&self, memory: UserMemory) -> Op<IoBuf> {
        let domain = self.shared.options.heap.domain();
        Op::ready(if memory.is_empty() {
            Err(ApiMisuse::EmptyRegistration.into())
        } else {
            memory.register(domain, None).map_err(Error::Rdma)
        })
    }

    fn register_read_only(&self, memory: ReadOnlyMemory) -> Op<IoBytes> {
        let domain = self.shared.options.heap.domain();
        Op::ready(if memory.is_empty() {
            Err(ApiMisuse::EmptyRegistration.into())
        } else {
            memory.register(domain, None).map_err(Error::Rdma)
        })
    }

    fn stats(&self) -> Stats {
        self.shared.lock().stats.clone()
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.close(Close::Graceful(self.shared.options.drop_timeout));
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Info { local, peer, .. } = self.shared.info;
        write!(f, "Tcp({local} to {peer})")
    }
}

impl Shared {
    fn accepts(&self, state: &State) -> Result<(), TrySendError> {
        if state.send_closed {
            return Err(TrySendError::Closed(state.reason()));
        }
        if state.outgoing_bytes >= self.options.send_queue {
            return Err(TrySendError::Full);
        }
        Ok(())
    }
}

impl Incoming {
    fn into_bytes(self) -> Bytes {
        match self {
            Self::Whole(bytes) | Self::Refused(bytes) => bytes,
            // The payload was placed for a caller of `recv_into` who went away.
            Self::Placed { prefix, payload } => {
                let mut bytes = BytesMut::with_capacity(prefix.len() + payload.len());
                bytes.extend_from_slice(&prefix);
                bytes.extend_from_slice(&payload);
                bytes.freeze()
            }
        }
    }
}

/// Places the payload of a message that was read already.
fn place(
    bytes: Bytes,
    prefix_len: usize,
    choose: &mut dyn FnMut(&[u8]) -> Option<IoBuf>,
) -> Received {
    if let Some((prefix, rest)) = bytes.split_at_checked(prefix_len)
        && !rest.is_empty()
        && let Some(mut payload) = choose(prefix)
        && payload.capacity() >= rest.len()
    {
        payload.set_len(rest.len());
        payload.copy_from_slice(rest);
        return Received::Placed {
            prefix: bytes.slice(..prefix_len),
            payload,
        };
    }
    Received::Message(Message::new(bytes, None))
}

fn prepare(stream: &TcpStream, options: &TcpOptions) -> io::Result<Info> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    keepalive::set(stream, options)?;
    stream.set_read_timeout(None)?;
    // A write that blocks must notice that the time for closing is over.
    stream.set_write_timeout(Some(LOOK))?;
    Ok(Info {
        kind: TransportKind::Tcp,
        provider: None,
        device: None,
        local: stream.local_addr()?,
        peer: stream.peer_addr()?,
        parameters: None,
    })
}

pub(super) fn spawn(name: &str, shared: Arc<Shared>, run: fn(&Arc<Shared>)) -> Result<(), Error> {
    let thread = thread::Builder::new().name(name.into());
    thread
        .spawn(move || run(&shared))
        .map(drop)
        .map_err(|error| os_error(&error))
}

/// With the system's number also where the standard library made the error itself.
pub(super) fn os_error(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::TimedOut => Error::Os {
            errno: libc::ETIMEDOUT,
        },
        _ => Error::os(error),
    }
}
