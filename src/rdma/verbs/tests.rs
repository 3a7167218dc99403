//! Two providers in one process against each other on a real device: in the guest (`SMBDIRECT_GUEST=1`), whose two
//! soft devices are joined by a cable. Elsewhere each test says that it did not run.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::rdma::{
    Armed, Capabilities, Close, CompletionStatus, ConnId, ConnectParams, Domain, Event, Exposure,
    Fabric, FabricFilter, Incoming, IoBuf, IoBytes, IoPin, ListenOptions, ListenerId, LossReason,
    Operation, Pieces, PostError, Provider, QpOptions, RdmaError, RdmaOperation, RemoteAccess,
    RemoteAddress, ResolveOptions, SendRequest, Slab, SlabOptions, Window, WindowId,
};

/// No step takes longer, however slow the guest.
const PATIENCE: Duration = Duration::from_secs(30);

/// The two addresses, or `None` outside of the guest.
fn addresses() -> Option<(IpAddr, IpAddr)> {
    if std::env::var_os("SMBDIRECT_GUEST").is_none() {
        eprintln!("not run: this is no guest with RDMA devices");
        return None;
    }
    let address = |name: &str, default: &str| {
        let value = std::env::var(name).unwrap_or(default.into());
        value.parse().unwrap()
    };
    Some((address("LOCAL", "10.0.1.1"), address("REMOTE", "10.0.1.2")))
}

struct Side {
    verbs: Verbs,
    events: VecDeque<Event>,
}

impl Side {
    fn new() -> Self {
        Self {
            verbs: Verbs::open().unwrap(),
            events: VecDeque::new(),
        }
    }

    fn poll(&mut self) {
        self.verbs.poll(Instant::now(), &mut self.events, 16);
    }

    fn take<T>(&mut self, wanted: &mut impl FnMut(&Event) -> Option<T>) -> Option<(T, Event)> {
        let place = self
            .events
            .iter()
            .position(|event| wanted(event).is_some())?;
        let event = self.events.remove(place)?;
        Some((wanted(&event)?, event))
    }
}

/// Client and server, polled in turn.
struct World {
    client: Side,
    server: Side,
    local: IpAddr,
    remote: IpAddr,
    listener: ListenerId,
    port: u16,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Who {
    Client,
    Server,
}

impl World {
    fn new() -> Option<Self> {
        addresses().map(Self::between)
    }

    fn between((local, remote): (IpAddr, IpAddr)) -> Self {
        let (client, mut server) = (Side::new(), Side::new());
        let address = SocketAddr::new(remote, 0);
        let listener = server
            .verbs
            .listen(address, &ListenOptions::default())
            .unwrap();
        let port = server.verbs.listener_address(listener).unwrap().port();
        assert_ne!(port, 0);
        Self {
            client,
            server,
            local,
            remote,
            listener,
            port,
        }
    }

    fn side(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Client => &mut self.client,
            Who::Server => &mut self.server,
        }
    }

    /// The first event of one side that is wanted; others are kept.
    fn wait<T>(&mut self, who: Who, mut wanted: impl FnMut(&Event) -> Option<T>) -> (T, Event) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.side(who).take(&mut wanted) {
                return found;
            }
            self.client.poll();
            self.server.poll();
            assert!(
                Instant::now() < end,
                "nothing came; client {:?}, server {:?}",
                self.client.events,
                self.server.events
            );
        }
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(self.remote, self.port)
    }

    fn resolve(&mut self) -> ConnId {
        let options = ResolveOptions {
            local: Some(SocketAddr::new(self.local, 0)),
            ..ResolveOptions::default()
        };
        let target = self.target();
        let conn = self
            .client
            .verbs
            .resolve(target, &options, Instant::now())
            .unwrap();
        self.wait(Who::Client, |event| match event {
            Event::Resolved { conn } => Some(*conn),
            Event::Disconnected { reason, .. } => panic!("{reason:?}"),
            _ => None,
        });
        conn
    }

    fn incoming(&mut self) -> Incoming {
        let found = self.wait(Who::Server, |event| {
            matches!(event, Event::Incoming { .. }).then_some(())
        });
        match found.1 {
            Event::Incoming { incoming, listener } => {
                assert_eq!(listener, self.listener);
                incoming
            }
            other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self) -> (End, End) {
        self.connect_with(&ConnectParams::default(), &ConnectParams::default())
            .0
    }

    /// Connects, and returns what each side was told: private data and depths.
    fn connect_with(&mut self, c: &ConnectParams, s: &ConnectParams) -> ((End, End), [Told; 2]) {
        let conn = self.resolve();
        let client = End::new(Who::Client, self, conn);
        self.client.verbs.connect(conn, c, Instant::now()).unwrap();
        let incoming = self.incoming();
        assert_eq!(incoming.peer().remote.ip(), self.local);
        let conn = self.server.verbs.adopt(incoming, Instant::now()).unwrap();
        let server = End::new(Who::Server, self, conn);
        self.server.verbs.accept(conn, s, Instant::now()).unwrap();
        let told = [Who::Client, Who::Server].map(|who| {
            let found = self.wait(who, |event| match event {
                Event::Established { .. } => Some(()),
                Event::Disconnected { reason, .. } => panic!("{reason:?}"),
                _ => None,
            });
            match found.1 {
                Event::Established {
                    private_data,
                    initiator_depth,
                    responder_resources,
                    ..
                } => (private_data, initiator_depth, responder_resources),
                other => panic!("{other:?}"),
            }
        });
        ((client, server), told)
    }

    /// Posts requests and waits for the status of the last.
    fn execute(&mut self, end: &End, chain: Vec<Operation>) -> CompletionStatus {
        let count = chain.len();
        let mut chain: VecDeque<SendRequest> = chain
            .into_iter()
            .enumerate()
            .map(|(i, operation)| SendRequest {
                cookie: i as u64,
                signalled: i + 1 == count,
                operation,
            })
            .collect();
        self.side(end.who)
            .verbs
            .post_send(end.conn, &mut chain)
            .unwrap();
        assert!(chain.is_empty());
        let conn = end.conn;
        let mut last = CompletionStatus::Success;
        for i in 0..count {
            let found = self.wait(end.who, |event| match event {
                Event::Completed {
                    conn: c, status, ..
                } if *c == conn => Some(*status),
                Event::Disconnected { conn: c, reason } if *c == conn => panic!("{reason:?}"),
                _ => None,
            });
            match found {
                (status, Event::Completed { request, .. }) => {
                    assert_eq!(request.cookie, i as u64);
                    last = status;
                }
                other => panic!("{other:?}"),
            }
        }
        last
    }

    fn received(&mut self, end: &End) -> (IoBuf, Option<u32>) {
        let conn = end.conn;
        let found = self.wait(end.who, |event| match event {
            Event::Received { conn: c, .. } if *c == conn => Some(()),
            Event::Disconnected { conn: c, reason } if *c == conn => panic!("{reason:?}"),
            _ => None,
        });
        match found.1 {
            Event::Received {
                buffer,
                invalidated,
                ..
            } => (buffer, invalidated),
            other => panic!("{other:?}"),
        }
    }

    fn disconnected(&mut self, end: &End) -> LossReason {
        let conn = end.conn;
        let (reason, _) = self.wait(end.who, |event| match event {
            Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
            _ => None,
        });
        // Nothing comes after it.
        let side = self.side(end.who);
        assert!(side.verbs.peer(conn).is_none());
        side.poll();
        reason
    }

    fn close(&mut self, end: &End, how: Close) {
        self.side(end.who)
            .verbs
            .close(end.conn, how, Instant::now());
    }

    fn end(&mut self, ends: (End, End)) {
        self.close(&ends.0, Close::Abort);
        assert_eq!(self.disconnected(&ends.0), LossReason::Local);
        self.disconnected(&ends.1);
        self.balanced(&ends.0);
        self.balanced(&ends.1);
    }

    /// Every buffer has come back, once.
    fn balanced(&mut self, end: &End) {
        let conn = end.conn;
        let side = self.side(end.who);
        while side
            .take(&mut |event| match event {
                Event::Flushed { conn: c, .. } | Event::Received { conn: c, .. } if *c == conn => {
                    Some(())
                }
                _ => None,
            })
            .is_some()
        {}
        assert_eq!(end.messages.free(), end.messages.count(), "{:?}", end.who);
    }
}

/// Private data, initiator depth, responder resources.
type Told = (Vec<u8>, u16, u16);

/// One end of a connection with its memory.
struct End {
    who: Who,
    conn: ConnId,
    capabilities: Capabilities,
    domain: Arc<dyn Domain>,
    messages: Slab,
    bulk: Slab,
}

impl End {
    fn new(who: Who, world: &mut World, conn: ConnId) -> Self {
        let verbs = &mut world.side(who).verbs;
        let capabilities = verbs.capabilities(conn).unwrap().clone();
        let domain = verbs.domain(conn).unwrap();
        let options = QpOptions {
            send_depth: 64,
            receive_depth: 64,
            ..QpOptions::default()
        };
        verbs.create_qp(conn, &options).unwrap();
        let messages = Slab::new(&domain, 2048, 32, SlabOptions::default()).unwrap();
        let bulk = Slab::new(&domain, 64 << 10, 4, SlabOptions::default()).unwrap();
        let mut buffers: VecDeque<IoBuf> = (0..16).map(|_| messages.take().unwrap()).collect();
        verbs.post_receive(conn, &mut buffers).unwrap();
        assert!(buffers.is_empty());
        Self {
            who,
            conn,
            capabilities,
            domain,
            messages,
            bulk,
        }
    }

    fn bytes(&self, len: usize, seed: u8) -> IoBytes {
        let slab = if len <= 2048 {
            &self.messages
        } else {
            &self.bulk
        };
        let mut buf = slab.take().unwrap();
        buf.set_len(len);
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = pattern(i, seed);
        }
        buf.freeze()
    }

    fn send(&self, len: usize, seed: u8) -> Operation {
        Operation::Send {
            message: Pieces::one(self.bytes(len, seed)),
            invalidate: None,
            solicited: false,
        }
    }

    fn send_invalidate(&self, key: u32) -> Operation {
        Operation::Send {
            message: Pieces::one(self.bytes(16, 0)),
            invalidate: Some(key),
            solicited: false,
        }
    }

    fn write(&self, len: usize, seed: u8, window: &Window, offset: u64) -> Operation {
        Operation::Write {
            from: Pieces::one(self.bytes(len, seed)),
            to: RemoteAddress {
                address: window.address.wrapping_add(offset),
                key: window.key,
            },
        }
    }

    fn read(&self, len: usize, window: &Window) -> Operation {
        let mut buf = self.bulk.take().unwrap();
        buf.fill(0);
        buf.set_len(len);
        Operation::Read {
            into: buf.pin(),
            from: RemoteAddress {
                address: window.address,
                key: window.key,
            },
        }
    }

    /// Exposes `range` of a fresh buffer to the peer; bound already where need be.
    fn expose(&self, world: &mut World, access: RemoteAccess, seed: u8) -> Window {
        let mut buf = self.bulk.take().unwrap();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = pattern(i, seed);
        }
        // Not from the first byte, and not to the last.
        let pin = buf.pin().slice(100..100 + EXPOSED);
        let registration = match self.capabilities.exposure {
            Exposure::Registration => Some(pin.register(access).unwrap()),
            _ => None,
        };
        let verbs = &mut world.side(self.who).verbs;
        let window = verbs
            .open_window(self.conn, pin, access, registration)
            .unwrap();
        assert_eq!(window.len as usize, EXPOSED);
        if window.needs_bind {
            let bind = Operation::Bind { window: window.id };
            assert_eq!(world.execute(self, vec![bind]), CompletionStatus::Success);
        }
        window
    }

    fn close_window(&self, world: &mut World, id: WindowId) -> Option<IoPin> {
        world.side(self.who).verbs.close_window(self.conn, id)
    }
}

/// Bytes of an exposure.
const EXPOSED: usize = 40_000;

fn pattern(i: usize, seed: u8) -> u8 {
    (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed
}

fn check(bytes: &[u8], seed: u8) {
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(i, b)| *b == pattern(i, seed))
    );
}

#[test]
fn messages_go_both_ways() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    for (round, len) in [1usize, 20, 64, 65, 500, 1364, 2048]
        .into_iter()
        .enumerate()
    {
        for (from, to) in [(&client, &server), (&server, &client)] {
            let seed = round as u8;
            let status = world.execute(from, vec![from.send(len, seed)]);
            assert_eq!(status, CompletionStatus::Success);
            let (buffer, invalidated) = world.received(to);
            assert_eq!((buffer.len(), invalidated), (len, None));
            check(&buffer, seed);
        }
    }
    world.end((client, server));
}

#[test]
fn ipv6_is_spoken_as_well() {
    let address = |name: &str| std::env::var(name).ok()?.parse::<IpAddr>().ok();
    let (Some(_), Some(local), Some(remote)) = (addresses(), address("LOCAL6"), address("REMOTE6"))
    else {
        return eprintln!("not run: no IPv6 addresses are given");
    };
    let mut world = World::between((local, remote));
    let (client, server) = world.connect();
    let peer = world.client.verbs.peer(client.conn).unwrap();
    assert_eq!((peer.local.ip(), peer.remote.ip()), (local, remote));
    let status = world.execute(&client, vec![client.send(77, 7)]);
    assert_eq!(status, CompletionStatus::Success);
    check(&world.received(&server).0, 7);
    world.end((client, server));
}

#[test]
fn a_chain_arrives_whole_and_in_order() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let chain = (0..16).map(|i| client.send(100 + i, i as u8)).collect();
    assert_eq!(world.execute(&client, chain), CompletionStatus::Success);
    for i in 0..16 {
        let (buffer, _) = world.received(&server);
        assert_eq!(buffer.len(), 100 + i);
        check(&buffer, i as u8);
    }
    // Gathered from pieces, inline and not.
    let server_buffers = (0..2).map(|_| server.messages.take().unwrap());
    let mut server_buffers: VecDeque<IoBuf> = server_buffers.collect();
    world
        .server
        .verbs
        .post_receive(server.conn, &mut server_buffers)
        .unwrap();
    for len in [4usize, 400] {
        let whole = client.bytes(len * 4, 9);
        let mut message = Pieces::default();
        for i in 0..4 {
            message.push(whole.slice(i * len..(i + 1) * len)).unwrap();
        }
        let send = Operation::Send {
            message,
            invalidate: None,
            solicited: true,
        };
        assert_eq!(
            world.execute(&client, vec![send]),
            CompletionStatus::Success
        );
        let (buffer, _) = world.received(&server);
        assert_eq!(buffer.len(), len * 4);
        check(&buffer, 9);
    }
    world.end((client, server));
}

#[test]
fn queues_are_bounded() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    // 16 are posted; 48 more fit.
    let slab = Slab::new(&server.domain, 64, 64, SlabOptions::default()).unwrap();
    let mut buffers: VecDeque<IoBuf> = (0..64).map(|_| slab.take().unwrap()).collect();
    let posted = world.server.verbs.post_receive(server.conn, &mut buffers);
    assert_eq!((posted, buffers.len()), (Err(PostError::Full), 16));
    // Memory of another domain is refused, and nothing of it is posted.
    let other = Slab::new(
        &crate::rdma::PlainDomain::shared(),
        64,
        1,
        SlabOptions::default(),
    );
    let mut chain = VecDeque::from([SendRequest {
        cookie: 0,
        signalled: true,
        operation: Operation::Send {
            message: Pieces::one(other.unwrap().take().unwrap()),
            invalidate: None,
            solicited: false,
        },
    }]);
    let posted = world.client.verbs.post_send(client.conn, &mut chain);
    assert_eq!((posted, chain.len()), (Err(PostError::Invalid), 1));
    drop(buffers);
    world.end((client, server));
    assert_eq!(slab.free(), 64);
}

#[test]
fn rdma_writes_and_reads() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let window = client.expose(&mut world, RemoteAccess::Write, 1);
    // Writes and the message that tells of them in one chain.
    let chain = vec![
        server.write(20_000, 2, &window, 0),
        server.write(20_000, 3, &window, 20_000),
        server.send(10, 4),
    ];
    assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
    world.received(&client);
    revoke(&mut world, &client, &window);
    let pin = client.close_window(&mut world, window.id).unwrap();
    let buf = pin.unpin().unwrap();
    check(&buf[..100], 1);
    check(&buf[100..20_100], 2);
    check(&buf[20_100..40_100], 3);
    drop(buf);

    let window = client.expose(&mut world, RemoteAccess::Read, 5);
    let read = server.read(EXPOSED, &window);
    let mut chain = VecDeque::from([SendRequest {
        cookie: 7,
        signalled: true,
        operation: read,
    }]);
    world
        .server
        .verbs
        .post_send(server.conn, &mut chain)
        .unwrap();
    let (status, event) = world.wait(Who::Server, |event| match event {
        Event::Completed { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, CompletionStatus::Success);
    let Event::Completed { request, .. } = event else {
        unreachable!()
    };
    let Operation::Read { into, .. } = request.operation else {
        unreachable!()
    };
    let buf = into.unpin().unwrap();
    assert!(
        buf.iter()
            .enumerate()
            .all(|(i, b)| *b == pattern(i + 100, 5))
    );
    drop(buf);
    revoke(&mut world, &client, &window);
    assert!(client.close_window(&mut world, window.id).is_some());
    assert_eq!((client.bulk.free(), server.bulk.free()), (4, 4));
    world.end((client, server));
}

/// Ends the peer's access by our own doing.
fn revoke(world: &mut World, end: &End, window: &Window) {
    if window.needs_bind {
        assert!(end.close_window(world, window.id).is_none(), "it is bound");
        let invalidate = Operation::Invalidate { window: window.id };
        assert_eq!(
            world.execute(end, vec![invalidate]),
            CompletionStatus::Success
        );
    }
}

#[test]
fn the_peer_invalidates_a_window() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    if client.capabilities.exposure != Exposure::Window {
        eprintln!("not run: the device has no windows");
        return world.end((client, server));
    }
    assert!(client.capabilities.remote_invalidation());
    // Again and again on the same windows, whose keys change.
    let mut keys = Vec::new();
    for round in 0..4u8 {
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        assert!(!keys.contains(&window.key));
        keys.push(window.key);
        let chain = vec![
            server.write(1000, round, &window, 0),
            server.send_invalidate(window.key),
        ];
        assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
        let (_, invalidated) = world.received(&client);
        assert_eq!(invalidated, Some(window.key));
        // Asked for again: a request in its place in the queue, which must not reach the device as such.
        let again = Operation::Invalidate { window: window.id };
        assert_eq!(
            world.execute(&client, vec![again]),
            CompletionStatus::Success
        );
        let buf = client
            .close_window(&mut world, window.id)
            .unwrap()
            .unpin()
            .unwrap();
        check(&buf[100..1100], round);
        assert!(client.close_window(&mut world, window.id).is_none());
    }
    // The old key opens nothing any more, and its use ends the connection.
    let gone = Window {
        id: WindowId {
            index: 0,
            generation: 0,
        },
        key: keys[3],
        address: 0,
        len: 0,
        needs_bind: true,
    };
    let status = world.execute(&server, vec![server.write(64, 0, &gone, 0)]);
    assert_eq!(status, CompletionStatus::RemoteAccess);
    let ended = world.disconnected(&server);
    assert_eq!(
        ended,
        LossReason::Failed(RdmaError::Completion {
            operation: RdmaOperation::Write,
            status: CompletionStatus::RemoteAccess
        })
    );
    world.disconnected(&client);
    world.balanced(&client);
    world.balanced(&server);
}

#[test]
fn access_outside_of_an_exposure_ends_the_connection() {
    let Some(mut world) = World::new() else {
        return;
    };
    for case in ["beyond", "before", "direction", "key"] {
        let (client, server) = world.connect();
        if case == "direction" && client.capabilities.fabric == Fabric::Iwarp {
            // soft-iWARP asks for no right at all when it answers a read.
            world.end((client, server));
            continue;
        }
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        let operation = match case {
            "beyond" => server.write(64, 9, &window, EXPOSED as u64 - 63),
            "before" => server.write(64, 9, &window, u64::MAX),
            "direction" => server.read(64, &window),
            _ => {
                let mut other = window;
                other.key ^= 0xff00;
                server.write(64, 9, &other, 0)
            }
        };
        let operation_kind = match operation {
            Operation::Read { .. } => RdmaOperation::Read,
            _ => RdmaOperation::Write,
        };
        let mut chain = VecDeque::from([SendRequest {
            cookie: 0,
            signalled: true,
            operation,
        }]);
        world
            .server
            .verbs
            .post_send(server.conn, &mut chain)
            .unwrap();
        let reason = world.disconnected(&server);
        // iWARP has sent the Write before it can be refused, and soft-iWARP tells nothing more.
        if server.capabilities.fabric != Fabric::Iwarp {
            assert_eq!(
                reason,
                LossReason::Failed(RdmaError::Completion {
                    operation: operation_kind,
                    status: CompletionStatus::RemoteAccess
                }),
                "{case}"
            );
        }
        world.disconnected(&client);
        world.balanced(&client);
        world.server.events.clear();
        // What was not to be touched was not, and the memory is back.
        let buf = client.bulk.take().unwrap();
        drop(buf);
        assert_eq!((client.bulk.free(), server.bulk.free()), (4, 4), "{case}");
    }
}

#[test]
fn handshakes_carry_private_data_and_depths() {
    let Some(mut world) = World::new() else {
        return;
    };
    let params = |text: &[u8], initiator_depth, responder_resources| ConnectParams {
        private_data: text.to_vec(),
        initiator_depth,
        responder_resources,
        ..ConnectParams::default()
    };
    let c = params(b"from the client", 3, 9);
    let s = params(b"from the server", 7, 5);
    let (ends, [client, server]) = world.connect_with(&c, &s);
    // InfiniBand and RoCE pad with zeroes.
    assert!(client.0.starts_with(b"from the server"));
    assert!(server.0.starts_with(b"from the client"));
    assert_eq!((client.1, client.2), (3, 7), "client");
    assert_eq!((server.1, server.2), (7, 3), "server");
    world.end(ends);

    // The client of SMB Direct never reads.
    let (c, s) = (params(b"", 0, 16), params(b"", 8, 0));
    let (ends, [client, server]) = world.connect_with(&c, &s);
    assert_eq!((client.1, server.1, server.2), (0, 8, 0));
    world.end(ends);
}

#[test]
fn a_rejected_client_is_told_so() {
    let Some(mut world) = World::new() else {
        return;
    };
    for drop_it in [false, true] {
        let conn = world.resolve();
        let client = End::new(Who::Client, &mut world, conn);
        let params = ConnectParams::default();
        world
            .client
            .verbs
            .connect(conn, &params, Instant::now())
            .unwrap();
        let incoming = world.incoming();
        if drop_it {
            drop(incoming);
        } else {
            world.server.verbs.reject(incoming);
        }
        let reason = world.disconnected(&client);
        assert!(
            matches!(reason, LossReason::Failed(RdmaError::Rejected { .. })),
            "{reason:?}"
        );
        world.balanced(&client);
    }
}

#[test]
fn nobody_there_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    let listener = world.listener;
    world.server.verbs.unlisten(listener);
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    let params = ConnectParams::default();
    world
        .client
        .verbs
        .connect(conn, &params, Instant::now())
        .unwrap();
    let reason = world.disconnected(&client);
    assert_eq!(reason, LossReason::Failed(RdmaError::Refused));
    world.balanced(&client);
}

#[test]
fn addresses_without_a_device_are_named() {
    let Some(mut world) = World::new() else {
        return;
    };
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listened = world
        .server
        .verbs
        .listen(loopback, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::NoDevice(loopback)));
    let taken = world.target();
    let listened = world.server.verbs.listen(taken, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::AddressInUse(taken)));
    // No such neighbour: an error at once, or the end soon.
    let nobody: SocketAddr = "10.0.1.77:5445".parse().unwrap();
    let options = ResolveOptions {
        timeout: Duration::from_secs(1),
        ..ResolveOptions::default()
    };
    if let Ok(conn) = world.client.verbs.resolve(nobody, &options, Instant::now()) {
        let (reason, _) = world.wait(Who::Client, |event| match event {
            Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
            _ => None,
        });
        assert!(matches!(reason, LossReason::Failed(_)), "{reason:?}");
    }
    // A fabric that was not asked for.
    let fabric = devices().unwrap()[0].capabilities.fabric;
    let wanted = match fabric {
        Fabric::Iwarp => FabricFilter::InfinibandOrRoce,
        _ => FabricFilter::Iwarp,
    };
    let options = ResolveOptions {
        only: Some(wanted),
        ..ResolveOptions::default()
    };
    let conn = world
        .client
        .verbs
        .resolve(taken, &options, Instant::now())
        .unwrap();
    let (reason, _) = world.wait(Who::Client, |event| match event {
        Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
        _ => None,
    });
    let address = taken;
    assert_eq!(
        reason,
        LossReason::Failed(RdmaError::WrongFabric { address, wanted })
    );
}

#[test]
fn the_inventory_knows_which_device_serves_which_address() {
    let Some((local, remote)) = addresses() else {
        return;
    };
    let found = devices().unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|device| device.active));
    for address in [local, remote] {
        let (name, port) = device_for(address).unwrap();
        let device = found.iter().find(|device| device.name == name).unwrap();
        assert_eq!(
            (device.port, device.addresses.contains(&address)),
            (port, true)
        );
        eprintln!("{device:?}");
    }
    assert_ne!(device_for(local), device_for(remote));
}

#[test]
fn a_drained_connection_loses_nothing() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let chain: Vec<_> = (0..8).map(|i| client.send(1000, i)).collect();
    let mut chain: VecDeque<SendRequest> = chain
        .into_iter()
        .map(|operation| SendRequest {
            cookie: 0,
            signalled: true,
            operation,
        })
        .collect();
    world
        .client
        .verbs
        .post_send(client.conn, &mut chain)
        .unwrap();
    world.close(&client, Close::Drain(Instant::now() + PATIENCE));
    let mut late = VecDeque::from([SendRequest {
        cookie: 0,
        signalled: true,
        operation: client.send(10, 0),
    }]);
    let posted = world.client.verbs.post_send(client.conn, &mut late);
    assert_eq!((posted, late.len()), (Err(PostError::Closed), 1));
    drop(late);
    for i in 0..8 {
        let (buffer, _) = world.received(&server);
        check(&buffer, i);
    }
    assert_eq!(world.disconnected(&server), LossReason::Peer);
    assert_eq!(world.disconnected(&client), LossReason::Local);
    let all_done = world.client.events.iter().all(|event| match event {
        Event::Completed { status, .. } => *status == CompletionStatus::Success,
        _ => true,
    });
    assert!(all_done);
    world.client.events.clear();
    world.balanced(&client);
    world.balanced(&server);
}

#[test]
fn a_peer_that_aborts_is_noticed() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    world.close(&server, Close::Abort);
    assert_eq!(world.disconnected(&server), LossReason::Local);
    let reason = world.disconnected(&client);
    assert!(
        matches!(
            reason,
            LossReason::Peer | LossReason::Failed(RdmaError::ConnectionLost)
        ),
        "{reason:?}"
    );
    world.balanced(&client);
    world.balanced(&server);
    // Ids of the past mean nothing, and do nothing.
    world.close(&client, Close::Abort);
    let posted = world
        .client
        .verbs
        .post_receive(client.conn, &mut VecDeque::new());
    assert_eq!(posted, Err(PostError::Closed));
}

#[test]
fn closing_in_any_state_gives_everything_back() {
    let Some(mut world) = World::new() else {
        return;
    };
    let now = Instant::now;
    // Resolving.
    let options = ResolveOptions::default();
    let target = world.target();
    let conn = world.client.verbs.resolve(target, &options, now()).unwrap();
    world.client.verbs.close(conn, Close::Abort, now());
    let gone = |wanted: ConnId| {
        move |event: &Event| match event {
            Event::Disconnected { conn, reason } if *conn == wanted => Some(reason.clone()),
            _ => None,
        }
    };
    assert_eq!(world.wait(Who::Client, gone(conn)).0, LossReason::Local);
    // With receives posted, before connect.
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    world.client.verbs.close(conn, Close::Drain(now()), now());
    assert_eq!(world.disconnected(&client), LossReason::Local);
    world.balanced(&client);
    // While connecting.
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    world
        .client
        .verbs
        .connect(conn, &ConnectParams::default(), now())
        .unwrap();
    world.client.verbs.close(conn, Close::Abort, now());
    assert_eq!(world.disconnected(&client), LossReason::Local);
    world.balanced(&client);
    // The server may or may not have heard of it; what it has heard, it can drop.
    world.server.events.clear();
    // While accepting.
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    world
        .client
        .verbs
        .connect(conn, &ConnectParams::default(), now())
        .unwrap();
    let incoming = loop {
        let incoming = world.incoming();
        if incoming.peer().remote == world.client.verbs.peer(conn).unwrap().local {
            break incoming;
        }
    };
    let conn = world.server.verbs.adopt(incoming, now()).unwrap();
    let server = End::new(Who::Server, &mut world, conn);
    world
        .server
        .verbs
        .accept(conn, &ConnectParams::default(), now())
        .unwrap();
    world.close(&server, Close::Abort);
    assert_eq!(world.disconnected(&server), LossReason::Local);
    world.balanced(&server);
    world.disconnected(&client);
    world.balanced(&client);
}

#[test]
fn a_request_moves_to_another_provider() {
    let Some(mut world) = World::new() else {
        return;
    };
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    world
        .client
        .verbs
        .connect(conn, &ConnectParams::default(), Instant::now())
        .unwrap();
    let incoming = world.incoming();
    // The listener's provider keeps the listener only; the connection lives on another.
    let other = Side::new();
    let listening = std::mem::replace(&mut world.server, other);
    let conn = world.server.verbs.adopt(incoming, Instant::now()).unwrap();
    let server = End::new(Who::Server, &mut world, conn);
    world
        .server
        .verbs
        .accept(conn, &ConnectParams::default(), Instant::now())
        .unwrap();
    for who in [Who::Client, Who::Server] {
        world.wait(who, |event| {
            matches!(event, Event::Established { .. }).then_some(())
        });
    }
    assert_eq!(
        world.execute(&client, vec![client.send(99, 1)]),
        CompletionStatus::Success
    );
    assert_eq!(world.received(&server).0.len(), 99);
    drop(listening);
    assert_eq!(
        world.execute(&server, vec![server.send(98, 1)]),
        CompletionStatus::Success
    );
    assert_eq!(world.received(&client).0.len(), 98);
    world.end((client, server));
}

#[test]
fn a_sleeper_is_woken() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    for round in 0..50u8 {
        // Nothing is left over.
        let end = Instant::now() + PATIENCE;
        while world.server.verbs.arm().unwrap() == Armed::Ready {
            world.server.poll();
            assert!(Instant::now() < end);
        }
        let mut chain = VecDeque::from([SendRequest {
            cookie: 0,
            signalled: true,
            operation: client.send(33, round),
        }]);
        world
            .client
            .verbs
            .post_send(client.conn, &mut chain)
            .unwrap();
        let fd = world.server.verbs.fd().unwrap();
        let mut wait = [rustix::event::PollFd::new(
            &fd,
            rustix::event::PollFlags::IN,
        )];
        let patience = rustix::event::Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        assert_eq!(rustix::event::poll(&mut wait, Some(&patience)).unwrap(), 1);
        let (mut buffer, _) = world.received(&server);
        check(&buffer, round);
        world.wait(Who::Client, |event| {
            matches!(event, Event::Completed { .. }).then_some(())
        });
        buffer.set_len(buffer.capacity());
        let mut buffers = VecDeque::from([buffer]);
        world
            .server
            .verbs
            .post_receive(server.conn, &mut buffers)
            .unwrap();
    }
    world.end((client, server));
}

/// What all devices have of a kind (`qp`, `mr`, `cm_id`), as the kernel counts.
fn resources(kind: &str) -> u32 {
    let output = std::process::Command::new("rdma")
        .args(["resource", "show"])
        .output()
        .expect("the guest has iproute2");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    let mut count = 0;
    while let Some(word) = words.next() {
        if word == kind {
            count += words.next().unwrap().parse::<u32>().unwrap();
        }
    }
    count
}

#[test]
fn a_hundred_connections_leave_nothing_behind() {
    let Some(mut world) = World::new() else {
        return;
    };
    // What stays with the provider is there after the first.
    let first = world.connect();
    world.end(first);
    let kinds = ["qp", "mr", "cm_id", "cq"];
    let before = kinds.map(resources);
    let mut ends = Vec::new();
    for i in 0..100 {
        let (client, server) = world.connect();
        let window = client.expose(&mut world, RemoteAccess::Write, i);
        let chain = vec![server.write(64, i, &window, 0), server.send(50, i)];
        assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
        check(&world.received(&client).0, i);
        ends.push((client, server));
    }
    let during = kinds.map(resources);
    assert!(during[0] >= before[0] + 200 && during[1] >= before[1] + 400);
    for ends in ends {
        world.end(ends);
    }
    let (client, server) = world.connect();
    world.end((client, server));
    let after = kinds.map(resources);
    // Completion queues are kept; everything else is as it was.
    assert_eq!(after[..3], before[..3], "{kinds:?}");
    assert!(after[3] <= before[3] + 4);
}

#[test]
fn dropping_a_provider_ends_its_connections() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let window = server.expose(&mut world, RemoteAccess::Write, 0);
    world.server = Side::new();
    assert_eq!((server.messages.free(), server.bulk.free()), (32, 4));
    world.disconnected(&client);
    world.balanced(&client);
    // Memory outlives the provider.
    let mut buf = server.bulk.take().unwrap();
    buf.fill(1);
    assert_eq!(window.len as usize, EXPOSED);
}

#[test]
fn an_unfinished_connect_outlives_its_provider() {
    let Some(mut world) = World::new() else {
        return;
    };
    for _ in 0..5 {
        let conn = world.resolve();
        let client = End::new(Who::Client, &mut world, conn);
        let params = ConnectParams::default();
        world
            .client
            .verbs
            .connect(conn, &params, Instant::now())
            .unwrap();
        world.client = Side::new();
        // The memory comes back, at the latest when the call has returned.
        let end = Instant::now() + PATIENCE;
        while client.messages.free() < client.messages.count() {
            world.server.poll();
            world.server.events.clear();
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a user without privileges is told; `SMBDIRECT_LIMITS` says which limit the caller has set.
#[test]
fn limits_are_explained() {
    match std::env::var("SMBDIRECT_LIMITS").as_deref() {
        Ok("memory") => {
            let Some(mut world) = World::new() else {
                return;
            };
            let conn = world.resolve();
            let domain = world.client.verbs.domain(conn).unwrap();
            let slab = Slab::new(&domain, 1 << 20, 4, SlabOptions::default());
            let error = slab.expect_err("4 MiB are more than the limit");
            let limit = errors::locked_memory_limit().unwrap();
            let needed = 4 << 20;
            assert_eq!(error, RdmaError::LockedMemory { limit, needed });
        }
        Ok("nodes") => {
            let node = errors::CM_NODE.to_owned();
            assert_eq!(Verbs::open().err(), Some(RdmaError::Permission(node)));
            let error = devices().unwrap_err();
            assert!(matches!(error, RdmaError::Permission(_)), "{error:?}");
        }
        _ => eprintln!("not run: no limits are set"),
    }
}
