//! One connection: moves messages between a client and the server, and never waits for one thing
//! alone.
//!
//! A message is taken from one side only when the other side has room for it, so that a slow side
//! slows the other one down and no queue grows. What changes in messages is decided by
//! [`Rewriter`]; here is the I/O around it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smbdirect::engine::Channel;
use smbdirect::rdma::{IoBuf, IoBytes};
use smbdirect::transport::tcp::{MAX_MESSAGE, Received, Tcp};
use smbdirect::transport::{
    Close, DirectPlacement, Error, Gather, OutMessage, SteeringTag, Transport, TransportExt,
};

use crate::connections::{Entry, Stop};
use crate::ending::Ending;
use crate::ops::Ops;
use crate::parting;
use crate::rewrite::{
    Data, Limits, Output, PREFIX, Piece, Rewriter, TransferId, Warning, owes_answer,
};
use crate::wake::Sleeper;
use crate::watch::Watch;

/// How long messages that were accepted are still sent after the other side's end.
const FLUSH: Duration = Duration::from_secs(5);
/// How long the client's silence is waited for.
const PARTING: Duration = Duration::from_secs(2);
/// How soon a connection ends whose transfer has failed.
const REASON: Duration = Duration::from_secs(1);
/// While draining: what is under way in messages that cannot be read is over when for this time
/// neither the server has been asked anything nor said anything.
const QUIET: Duration = Duration::from_millis(200);

/// A client and the server, connected.
pub(crate) struct Connection<'a> {
    entry: &'a Entry,
    client: Arc<Channel>,
    backend: Tcp,
    stop: &'a Stop,
    sleeper: &'a Sleeper,
    options: Options<'a>,
    rewriter: Rewriter,
    /// Messages for the server that wait for room.
    to_backend: VecDeque<OutMessage<'static>>,
    /// Messages for the client that wait for room, with the token that each invalidates.
    to_client: VecDeque<(Bytes, Option<SteeringTag>)>,
    /// Data on its way from the client.
    fetches: Ops<IoBuf>,
    /// Data from the client that the server has not been sent.
    fetched: HashMap<TransferId, IoBytes>,
    /// Data on its way to the client.
    places: Ops<Gather>,
    /// Since when the server owes an answer without having said anything.
    owing: Option<Instant>,
    /// When the server was asked something last, or said something.
    spoken: Instant,
    /// Whether it ever did.
    answered: bool,
}

/// What the administrator has chosen.
#[derive(Clone, Copy)]
pub(crate) struct Options<'a> {
    /// Bytes of memory for data.
    pub(crate) max_memory: u64,
    /// How long the server may be silent.
    pub(crate) backend_timeout: Duration,
    /// Told of the server's end.
    pub(crate) watch: &'a Watch,
    /// Told what the administrator should know.
    pub(crate) warn: &'a dyn Fn(Warning),
}

impl<'a> Connection<'a> {
    /// `sleeper` is this thread's.
    pub(crate) fn new(
        entry: &'a Entry,
        backend: Tcp,
        stop: &'a Stop,
        sleeper: &'a Sleeper,
        options: Options<'a>,
    ) -> Self {
        let client = entry.client.clone();
        let limits = Limits {
            max_transfer: client.limits().max_transfer,
            max_to_client: client.limits().max_send,
            max_backend: MAX_MESSAGE,
            max_memory: options.max_memory,
        };
        Self {
            entry,
            client,
            backend,
            stop,
            sleeper,
            options,
            rewriter: Rewriter::new(limits),
            to_backend: VecDeque::new(),
            to_client: VecDeque::new(),
            fetches: Ops::new(sleeper.waker()),
            fetched: HashMap::new(),
            places: Ops::new(sleeper.waker()),
            owing: None,
            spoken: Instant::now(),
            answered: false,
        }
    }

    /// Forwards until one side ends or the gateway does, then ends both sides: what was accepted is
    /// still sent to whoever is there.
    pub(crate) fn run(mut self) -> Ending {
        let ending = loop {
            match self.step() {
                Ok(true) => {}
                Ok(false) => match self.wait() {
                    Ok(limit) => self.sleeper.sleep(limit),
                    Err(ending) => break ending,
                },
                Err(ending) => break ending,
            }
        };
        let ending = self.explained(ending);
        if let Ending::Backend | Ending::BackendFailed(_) = ending {
            self.options.watch.doubt();
        }
        if ending.leaves_client() {
            parting::wait_for_silence(&self.client, parting::QUIET, PARTING, self.stop);
        }
        self.client.close(how(ending.leaves_client()));
        self.backend.close(how(ending.leaves_backend()));
        ending
    }

    /// A transfer that fails says little: the connection that ends with it knows why.
    fn explained(&self, ending: Ending) -> Ending {
        match ending {
            Ending::ClientFailed(Error::Rdma(error)) => {
                let reason = self.client.closed_blocking(Some(REASON));
                Ending::of_client(reason.map_or(Error::Rdma(error), Error::Closed))
            }
            ending => ending,
        }
    }

    /// Does what can be done now; whether there was something.
    fn step(&mut self) -> Result<bool, Ending> {
        let transfers = self.transfers()?;
        let requests = self.send_to_backend()? | self.request()?;
        let responses = self.send_to_client()? | self.response()?;
        Ok(transfers | requests | responses)
    }

    /// How long to sleep at most.
    fn wait(&self) -> Result<Option<Duration>, Ending> {
        let now = Instant::now();
        if self.stop.at_once() {
            return Err(Ending::CutOff);
        }
        if let Some(deadline) = self.stop.deadline() {
            let quiet = self.spoken + QUIET;
            if now >= deadline {
                return Err(Ending::CutOff);
            }
            let sent = self.to_client.is_empty() && self.to_backend.is_empty();
            let answered = self.owing.is_none() && !self.rewriter.awaits_answers();
            if !sent || !answered || !self.rewriter.is_idle() {
                return Ok(Some(deadline - now));
            }
            if now >= quiet {
                return Err(Ending::Drained);
            }
            return Ok(Some(quiet.min(deadline) - now));
        }
        let Some(since) = self.owing else {
            return Ok(None);
        };
        let timeout = self.options.backend_timeout;
        match timeout.checked_sub(now - since) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(Ending::BackendSilent(timeout)),
        }
    }

    /// Data that has been moved.
    fn transfers(&mut self) -> Result<bool, Ending> {
        let mut moved = false;
        while let Some((transfer, result)) = self.fetches.finished() {
            let data = result.map_err(Ending::of_client)?;
            self.fetched.insert(transfer, data.freeze());
            self.rewriter.read_finished(transfer);
            self.carry_out(None)?;
            moved = true;
        }
        while let Some((transfer, result)) = self.places.finished() {
            result.map_err(Ending::of_client)?;
            self.rewriter.placed(transfer);
            self.carry_out(None)?;
            moved = true;
        }
        Ok(moved)
    }

    /// One message of the client.
    fn request(&mut self) -> Result<bool, Ending> {
        let mut cx = self.sleeper.context();
        let room = self.to_backend.is_empty() && self.rewriter.takes_requests();
        // That the server is gone is told by what is received from it.
        let take = room
            && self.stop.deadline().is_none()
            && matches!(self.backend.poll_ready(&mut cx), Poll::Ready(Ok(())));
        if !take {
            // Who went away is gone also while nothing is taken from it.
            return match self.client.poll_closed(&mut cx) {
                Poll::Ready(reason) => Err(Ending::of_client(Error::Closed(reason))),
                Poll::Pending => Ok(false),
            };
        }
        let message = match self.client.poll_recv(&mut cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(Some(message))) => message,
            Poll::Ready(Ok(None)) => return Err(Ending::Client),
            Poll::Ready(Err(error)) => return Err(Ending::of_client(error)),
        };
        self.rewriter.handle_request(message.into_bytes())?;
        self.carry_out(None)?;
        Ok(true)
    }

    /// One message of the server. The data of a READ is received into memory that RDMA sends from.
    fn response(&mut self) -> Result<bool, Ending> {
        let mut cx = self.sleeper.context();
        let room = match self.client.poll_ready(&mut cx) {
            Poll::Ready(Ok(())) => self.to_client.is_empty() && self.rewriter.takes_responses(),
            Poll::Ready(Err(error)) => return Err(Ending::of_client(error)),
            Poll::Pending => false,
        };
        if !room {
            // The server is not silent: nobody listens to it.
            self.owing = self.owing.map(|_| Instant::now());
            return Ok(false);
        }
        let (client, rewriter) = (&self.client, &self.rewriter);
        let mut failed = None;
        let mut choose = |prefix: &[u8]| {
            let len = rewriter.room_for(prefix)?;
            allocate(client, len).map_err(|e| failed = Some(e)).ok()
        };
        let received = self.backend.poll_recv_into(&mut cx, PREFIX, &mut choose);
        if let Some(ending) = failed {
            return Err(ending);
        }
        let received = match received {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(Some(received))) => received,
            Poll::Ready(Ok(None)) => return Err(self.backend_gone(Ending::Backend)),
            Poll::Ready(Err(error)) => return Err(self.backend_gone(Ending::of_backend(error))),
        };
        self.spoken = Instant::now();
        self.answered = true;
        self.owing = None;
        match received {
            Received::Message(message) => {
                self.rewriter.handle_response(message.into_bytes(), 0)?;
                self.carry_out(None)?;
            }
            Received::Placed { prefix, payload } => {
                self.rewriter.handle_response(prefix, payload.len())?;
                self.carry_out(Some(payload.freeze()))?;
            }
        }
        Ok(true)
    }

    /// A server that ends a connection which it has never used lets nobody in.
    fn backend_gone(&self, ending: Ending) -> Ending {
        match ending {
            Ending::Backend if !self.answered => Ending::TurnedAway,
            ending => ending,
        }
    }

    /// Carries out what the rewriter wants. `payload` is the second part of the message that it was
    /// just given.
    fn carry_out(&mut self, payload: Option<IoBytes>) -> Result<(), Ending> {
        while let Some(output) = self.rewriter.poll_output() {
            match output {
                Output::Forward(message) => self.to_backend.push_back(OutMessage::Bytes(message)),
                Output::ForwardPieces(pieces) => {
                    let message = self.gather(pieces)?;
                    self.to_backend.push_back(message);
                }
                Output::Fetch {
                    transfer,
                    len,
                    from,
                } => {
                    let len = len as usize;
                    let into = allocate(&self.client, len)?;
                    self.fetches
                        .insert(transfer, self.client.read(into, 0..len, from));
                }
                Output::Answer {
                    message,
                    invalidate,
                } => self
                    .to_client
                    .push_back((message, invalidate.map(SteeringTag))),
                Output::Place {
                    transfer,
                    data,
                    to,
                    response,
                    invalidate,
                } => {
                    let data = self.placed_data(data, payload.as_ref())?;
                    let op = self.client.write_then_send(
                        data,
                        to,
                        OutMessage::Bytes(response),
                        invalidate.map(SteeringTag),
                    );
                    self.places.insert(transfer, op);
                }
                Output::Warn(warning) => (self.options.warn)(warning),
            }
        }
        let counts = self.rewriter.counts();
        self.entry.reads.store(counts.reads, Ordering::Relaxed);
        self.entry.writes.store(counts.writes, Ordering::Relaxed);
        self.entry.refused.store(counts.refused, Ordering::Relaxed);
        Ok(())
    }

    /// A message for the server: data goes from where RDMA has put it.
    fn gather(&mut self, mut pieces: Vec<Piece>) -> Result<OutMessage<'static>, Ending> {
        if let [Piece::Bytes(bytes)] = &mut pieces[..] {
            return Ok(OutMessage::Bytes(std::mem::take(bytes)));
        }
        let mut message = Gather::new();
        for piece in pieces {
            match piece {
                Piece::Bytes(bytes) => {
                    let op = self.backend.allocate(bytes.len());
                    let mut buf = op.wait().map_err(Ending::NoMemory)?;
                    buf.copy_from_slice(&bytes);
                    message.push(buf);
                }
                Piece::Fetched(transfer) => {
                    if let Some(data) = self.fetched.remove(&transfer) {
                        message.push(data);
                    }
                }
            }
        }
        Ok(OutMessage::Gather(message))
    }

    /// The data of a READ, in memory that RDMA can send from.
    fn placed_data(&self, data: Data, payload: Option<&IoBytes>) -> Result<Gather, Ending> {
        match (data, payload) {
            (Data::Payload(range), Some(payload)) => Ok(payload.slice(range).into()),
            // There is always one where the rewriter says so.
            (Data::Payload(_), None) => Ok(Gather::new()),
            (Data::Message(bytes), _) => {
                let mut buf = allocate(&self.client, bytes.len())?;
                buf.copy_from_slice(&bytes);
                Ok(buf.into())
            }
        }
    }

    fn send_to_backend(&mut self) -> Result<bool, Ending> {
        let mut cx = self.sleeper.context();
        let mut sent = false;
        while !self.to_backend.is_empty()
            && matches!(self.backend.poll_ready(&mut cx), Poll::Ready(Ok(())))
            && let Some(message) = self.to_backend.pop_front()
        {
            if owes(&message) {
                self.owing.get_or_insert_with(Instant::now);
            }
            self.backend
                .start_send(message)
                .map_err(|error| Ending::of_backend(error.into()))?;
            self.spoken = Instant::now();
            sent = true;
        }
        Ok(sent)
    }

    fn send_to_client(&mut self) -> Result<bool, Ending> {
        let mut cx = self.sleeper.context();
        let mut sent = false;
        while !self.to_client.is_empty() {
            match self.client.poll_ready(&mut cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(Ending::of_client(error)),
                Poll::Pending => break,
            }
            let Some((message, token)) = self.to_client.pop_front() else {
                break;
            };
            let message = OutMessage::Bytes(message);
            let accepted = match token {
                Some(token) => self.client.send_invalidate(message, token),
                None => self.client.start_send(message),
            };
            accepted.map_err(|error| Ending::of_client(error.into()))?;
            sent = true;
        }
        Ok(sent)
    }
}

fn how(in_order: bool) -> Close {
    match in_order {
        true => Close::Graceful(FLUSH),
        false => Close::Abort,
    }
}

/// Whether the server owes an answer for this message.
fn owes(message: &OutMessage<'_>) -> bool {
    match message {
        OutMessage::Bytes(bytes) => owes_answer(bytes),
        // READ and WRITE.
        _ => true,
    }
}

/// Memory that RDMA can use.
fn allocate(client: &Channel, len: usize) -> Result<IoBuf, Ending> {
    client.allocate(len).wait().map_err(Ending::NoMemory)
}
