//! Two providers in one thread, and what tests need around them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::rdma::iwarp::batch::{Batch, Framing, Payload};
use crate::rdma::iwarp::ddp::Segment;
use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};
use crate::rdma::{
    CompletionStatus, ConnId, ConnectParams, Event, Incoming, IoBuf, IoBytes, IoPin, ListenOptions,
    ListenerId, LossReason, Operation, Pieces, PlainDomain, Provider, QpOptions, RemoteAccess,
    ResolveOptions, SendRequest, Slab, SlabOptions, Window,
};

/// No test waits longer for anything.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A provider with the events that nobody has asked for yet.
pub(super) struct Side {
    pub(super) provider: IwarpProvider,
    pub(super) events: VecDeque<Event>,
}

impl Side {
    pub(super) fn new(config: IwarpConfig) -> Self {
        Self {
            provider: IwarpProvider::new(config).unwrap(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn poll(&mut self) {
        self.provider.poll(Instant::now(), &mut self.events, 64);
    }

    /// Takes the first event that `wanted` maps.
    pub(super) fn take<T>(
        &mut self,
        wanted: impl Fn(&Event) -> bool,
        map: impl Fn(Event) -> T,
    ) -> Option<T> {
        let at = self.events.iter().position(wanted)?;
        self.events.remove(at).map(map)
    }

    pub(super) fn listen(&mut self, options: &ListenOptions) -> (ListenerId, SocketAddr) {
        let listener = self
            .provider
            .listen("127.0.0.1:0".parse().unwrap(), options)
            .unwrap();
        (listener, self.provider.listener_address(listener).unwrap())
    }

    /// Resolves, makes the queue pair, posts receives and connects.
    pub(super) fn connect(
        &mut self,
        to: SocketAddr,
        receives: usize,
        params: &ConnectParams,
    ) -> ConnId {
        let now = Instant::now();
        let conn = self
            .provider
            .resolve(to, &ResolveOptions::default(), now)
            .unwrap();
        self.provider
            .create_qp(conn, &QpOptions::default())
            .unwrap();
        self.post_receives(conn, receives);
        self.provider.connect(conn, params, now).unwrap();
        conn
    }

    pub(super) fn accept(
        &mut self,
        incoming: Incoming,
        receives: usize,
        params: &ConnectParams,
    ) -> ConnId {
        let now = Instant::now();
        let conn = self.provider.adopt(incoming, now).unwrap();
        self.provider
            .create_qp(conn, &QpOptions::default())
            .unwrap();
        self.post_receives(conn, receives);
        self.provider.accept(conn, params, now).unwrap();
        conn
    }

    pub(super) fn post_receives(&mut self, conn: ConnId, count: usize) {
        let mut buffers: VecDeque<IoBuf> = buffers(RECEIVE, count).into();
        self.provider.post_receive(conn, &mut buffers).unwrap();
        assert!(buffers.is_empty());
    }

    pub(super) fn post(&mut self, conn: ConnId, operations: Vec<Operation>) {
        let mut chain = requests(operations);
        self.provider.post_send(conn, &mut chain).unwrap();
        assert!(chain.is_empty());
    }

    /// Exposes memory and binds it.
    pub(super) fn expose(&mut self, conn: ConnId, memory: IoPin, access: RemoteAccess) -> Window {
        let window = self
            .provider
            .open_window(conn, memory, access, &mut None)
            .unwrap();
        assert!(window.needs_bind);
        self.post(conn, vec![Operation::Bind { window: window.id }]);
        window
    }

    pub(super) fn disconnected(&mut self, conn: ConnId) -> Option<LossReason> {
        self.take(
            |event| matches!(event, Event::Disconnected { conn: c, .. } if *c == conn),
            |event| match event {
                Event::Disconnected { reason, .. } => reason,
                _ => unreachable!(),
            },
        )
    }

    pub(super) fn received(&mut self, conn: ConnId) -> Option<(IoBuf, Option<u32>)> {
        self.take(
            |event| matches!(event, Event::Received { conn: c, .. } if *c == conn),
            |event| match event {
                Event::Received {
                    buffer,
                    invalidated,
                    ..
                } => (buffer, invalidated),
                _ => unreachable!(),
            },
        )
    }

    pub(super) fn completed(&mut self, conn: ConnId) -> Option<(SendRequest, CompletionStatus)> {
        self.take(
            |event| matches!(event, Event::Completed { conn: c, .. } if *c == conn),
            |event| match event {
                Event::Completed {
                    request, status, ..
                } => (request, status),
                _ => unreachable!(),
            },
        )
    }

    pub(super) fn incoming(&mut self) -> Option<Incoming> {
        self.take(
            |event| matches!(event, Event::Incoming { .. }),
            |event| match event {
                Event::Incoming { incoming, .. } => incoming,
                _ => unreachable!(),
            },
        )
    }

    pub(super) fn established(&mut self, conn: ConnId) -> Option<(Vec<u8>, u16, u16)> {
        self.take(
            |event| matches!(event, Event::Established { conn: c, .. } if *c == conn),
            |event| match event {
                Event::Established {
                    private_data,
                    initiator_depth,
                    responder_resources,
                    ..
                } => (private_data, initiator_depth, responder_resources),
                _ => unreachable!(),
            },
        )
    }

    /// Polls until there is an answer.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < end, "{what}: only {:?}", self.events);
            std::thread::yield_now();
        }
    }
}

/// Size of every posted receive.
pub(super) const RECEIVE: usize = 8192;

/// A connection between two providers.
pub(super) struct World {
    pub(super) client: Side,
    pub(super) server: Side,
    /// The connection at the client and at the server.
    pub(super) c: ConnId,
    pub(super) s: ConnId,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(IwarpConfig::default(), IwarpConfig::default())
    }

    pub(super) fn with(client: IwarpConfig, server: IwarpConfig) -> Self {
        Self::with_receives(client, server, 32)
    }

    pub(super) fn with_receives(client: IwarpConfig, server: IwarpConfig, receives: usize) -> Self {
        let (mut client, mut server) = (Side::new(client), Side::new(server));
        let (_, address) = server.listen(&ListenOptions::default());
        let c = client.connect(address, receives, &ConnectParams::default());
        let mut world = Self {
            client,
            server,
            c,
            s: c,
        };
        let incoming = world.wait("incoming", |w| w.server.incoming());
        world.s = world
            .server
            .accept(incoming, receives, &ConnectParams::default());
        world.wait("established", |w| w.client.established(w.c));
        world
    }

    /// Polls both until there is an answer.
    pub(super) fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.client.poll();
            self.server.poll();
            if let Some(found) = look(self) {
                return found;
            }
            assert!(
                Instant::now() < end,
                "{what}: client has {:?}, server has {:?}",
                self.client.events,
                self.server.events
            );
            std::thread::yield_now();
        }
    }

    /// The client's next completed request.
    pub(super) fn client_completed(&mut self) -> (SendRequest, CompletionStatus) {
        self.wait("completion at the client", |w| w.client.completed(w.c))
    }

    pub(super) fn server_completed(&mut self) -> (SendRequest, CompletionStatus) {
        self.wait("completion at the server", |w| w.server.completed(w.s))
    }

    pub(super) fn server_received(&mut self) -> (IoBuf, Option<u32>) {
        self.wait("message at the server", |w| w.server.received(w.s))
    }

    pub(super) fn client_received(&mut self) -> (IoBuf, Option<u32>) {
        self.wait("message at the client", |w| w.client.received(w.c))
    }
}

/// Buffers of a slab of their own.
pub(super) fn buffers(size: usize, count: usize) -> Vec<IoBuf> {
    let slab = Slab::new(
        &PlainDomain::shared(),
        size,
        count as u32,
        SlabOptions::default(),
    )
    .unwrap();
    (0..count)
        .map(|_| {
            let mut buffer = slab.take().unwrap();
            buffer.set_len(size);
            buffer
        })
        .collect()
}

pub(super) fn buffer(size: usize) -> IoBuf {
    buffers(size, 1).remove(0)
}

/// Bytes that are a function of the seed and their place.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| {
            (i.wrapping_mul(31)
                .wrapping_add(i >> 8)
                .wrapping_add(seed.wrapping_mul(97))) as u8
        })
        .collect()
}

pub(super) fn filled(bytes: &[u8]) -> IoBytes {
    let mut buffer = buffer(bytes.len().max(1));
    buffer.set_len(bytes.len());
    buffer.copy_from_slice(bytes);
    buffer.freeze()
}

pub(super) fn send(bytes: &[u8]) -> Operation {
    Operation::Send {
        message: Pieces::one(filled(bytes)),
        invalidate: None,
        solicited: false,
    }
}

pub(super) fn requests(operations: Vec<Operation>) -> VecDeque<SendRequest> {
    operations
        .into_iter()
        .enumerate()
        .map(|(cookie, operation)| SendRequest {
            cookie: cookie as u64,
            signalled: true,
            operation,
        })
        .collect()
}

/// The FPDU of one segment.
pub(super) fn framed(segment: &Segment, payload: &[u8], crc: bool) -> Vec<u8> {
    let mut batch = Batch::default();
    let mut framing = Framing {
        crc,
        ..Framing::default()
    };
    let len = batch.push(&mut framing, segment, &Payload::Bytes(payload));
    let mut slices = [IoSlice::new(&[]); 4];
    let count = batch.slices(&mut slices);
    let bytes: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
    assert_eq!(bytes.len(), len);
    bytes
}
