//! A peer driven by hand through a provider, which sends exactly the bytes it is told to, and a
//! server to send them to.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use smbdirect::engine::{ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::rdma::{
    Armed, ConnId, ConnectParams, Event, LossReason, Operation, Pieces, Provider, ProviderKind,
    QpOptions, ResolveOptions, SendRequest, Slab, SlabOptions, open,
};
use smbdirect::transport::{
    DisconnectReason, Error, Listener, ListenerExt, Transport, TransportExt,
};

/// Nothing takes this long, even under load.
pub(crate) const LONG: Duration = Duration::from_secs(40);

/// Receives that are always posted; credits are the caller's to count.
const RECEIVES: usize = 320;
/// Messages that may be on their way.
const SENDS: u32 = 64;
/// Bytes of the largest message: a little more than anyone may send.
const LARGEST: usize = 8256;

/// A connected RDMA peer that knows nothing of SMB Direct.
pub(crate) struct Peer {
    provider: Box<dyn Provider>,
    conn: ConnId,
    slab: Slab,
    events: VecDeque<Event>,
    established: bool,
    inbox: VecDeque<Vec<u8>>,
    lost: Option<LossReason>,
}

impl Peer {
    /// Connects over the software iWARP, with receives posted.
    pub(crate) fn connect(to: SocketAddr) -> Self {
        Self::connect_with(open(ProviderKind::Iwarp).expect("the software RNIC"), to)
    }

    /// As [`Peer::connect`], through any provider.
    pub(crate) fn connect_with(mut provider: Box<dyn Provider>, to: SocketAddr) -> Self {
        let conn = provider
            .resolve(to, &ResolveOptions::default(), Instant::now())
            .expect("a way to the server");
        let mut events = VecDeque::new();
        let deadline = Instant::now() + LONG;
        while !matches!(events.pop_front(), Some(Event::Resolved { .. })) {
            provider.poll(Instant::now(), &mut events, 64);
            assert!(Instant::now() < deadline, "not resolved");
        }
        let domain = provider.domain(conn).expect("a domain");
        let count = RECEIVES as u32 + SENDS;
        let slab = Slab::new(&domain, LARGEST, count, SlabOptions::default()).expect("memory");
        let mut options = QpOptions::default();
        (options.send_depth, options.receive_depth) = (SENDS, RECEIVES as u32);
        provider.create_qp(conn, &options).expect("a queue pair");
        let mut receives: VecDeque<_> = (0..RECEIVES).map_while(|_| slab.take()).collect();
        provider.post_receive(conn, &mut receives).expect("posted");
        provider
            .connect(conn, &ConnectParams::default(), Instant::now())
            .expect("connecting begins");
        let mut peer = Self {
            provider,
            conn,
            slab,
            events,
            established: false,
            inbox: VecDeque::new(),
            lost: None,
        };
        peer.until(LONG, |peer| peer.established || peer.lost.is_some());
        assert!(peer.established, "not connected: {:?}", peer.lost);
        peer
    }

    /// Sends one message. What has become of the connection is for others to ask.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.post(bytes, |message| Operation::Send {
            message,
            invalidate: None,
            solicited: false,
        });
    }

    /// Posts what is made of these bytes, whether it is allowed or not.
    pub(crate) fn post(&mut self, bytes: &[u8], operation: impl FnOnce(Pieces) -> Operation) {
        // The receives have their own slots, so that a free one is a place in the send queue as
        // well.
        self.until(LONG, |peer| peer.slab.free() > 0 || peer.lost.is_some());
        let Some(mut buffer) = self.slab.take() else {
            return;
        };
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        let mut chain = VecDeque::from([SendRequest {
            cookie: 0,
            signalled: true,
            operation: operation(Pieces::one(buffer.freeze())),
        }]);
        // A connection that is gone takes nothing, and says so in its last event.
        let _ = self.provider.post_send(self.conn, &mut chain);
    }

    /// The next message; `None` when the time is over or the connection is.
    pub(crate) fn message(&mut self, within: Duration) -> Option<Vec<u8>> {
        self.until(within, |peer| !peer.inbox.is_empty() || peer.lost.is_some());
        self.inbox.pop_front()
    }

    /// Whether the connection ends within the time.
    pub(crate) fn ends(&mut self, within: Duration) -> bool {
        self.until(within, |peer| peer.lost.is_some());
        self.lost.is_some()
    }

    fn until(&mut self, within: Duration, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + within;
        while !done(self) {
            let more = self.provider.poll(Instant::now(), &mut self.events, 64);
            if self.events.is_empty() && !more {
                if Instant::now() >= deadline {
                    return;
                }
                self.sleep(deadline);
            }
            while let Some(event) = self.events.pop_front() {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Established { .. } => self.established = true,
            Event::Received { mut buffer, .. } => {
                self.inbox.push_back(buffer.to_vec());
                buffer.set_len(buffer.capacity());
                // Refused only where the connection is gone.
                let _ = self
                    .provider
                    .post_receive(self.conn, &mut [buffer].into_iter().collect());
            }
            Event::Disconnected { reason, .. } => self.lost = Some(reason),
            // Buffers go back to the slab by themselves.
            _ => {}
        }
    }

    fn sleep(&mut self, deadline: Instant) {
        if self.provider.pending() || self.provider.arm().expect("armed") == Armed::Ready {
            return;
        }
        let until = (self.provider.next_deadline()).map_or(deadline, |at| at.min(deadline));
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let fd = self.provider.fd().expect("a descriptor");
        // An interrupted wait is a short one.
        let _ = rustix::event::poll(
            &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
            Some(&time),
        );
    }
}

/// A server on loopback whose application answers every message.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) reactor: Reactor,
    pub(crate) listener: Arc<DirectListener>,
    /// What connections ended with.
    pub(crate) ends: Receiver<DisconnectReason>,
}

impl Server {
    /// Starts it: `answer` is the application.
    pub(crate) fn start(
        provider: Box<dyn Provider>,
        options: ChannelOptions,
        answer: impl Fn(&[u8]) -> Vec<u8> + Send + Clone + 'static,
    ) -> Self {
        let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
        reactor.spawn().expect("a thread");
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = Arc::new(reactor.listen(&[any_port], options).expect("a listener"));
        let address = listener.local_addresses()[0];
        let (report, ends) = channel();
        let accepting = listener.clone();
        // Ends with the listener.
        thread::spawn(move || {
            while let Ok(channel) = accepting.accept_blocking(None) {
                let (answer, report) = (answer.clone(), report.clone());
                thread::spawn(move || serve(&*channel, answer, &report));
            }
        });
        Self {
            address,
            reactor,
            listener,
            ends,
        }
    }

    /// What the next connection that was negotiated ended with.
    pub(crate) fn end(&self) -> DisconnectReason {
        self.ends.recv_timeout(LONG).expect("an end")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listener.close();
        self.reactor.shutdown(Duration::from_secs(1));
    }
}

fn serve(
    channel: &dyn Transport,
    answer: impl Fn(&[u8]) -> Vec<u8>,
    report: &Sender<DisconnectReason>,
) {
    let exchange = || -> Result<(), Error> {
        while let Some(message) = channel.recv_blocking(None)? {
            channel.send_blocking(&answer(&message), None)?;
        }
        Ok(())
    };
    // However it ends, the reason is the channel's.
    let _ = exchange();
    if let Some(reason) = channel.closed_blocking(None) {
        // The test may be over already.
        let _ = report.send(reason);
    }
}
