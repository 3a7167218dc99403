//! The engine on the simulated network: virtual time, nothing sleeps.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

mod bulk;
mod closing;
mod counters;
mod driving;
mod ends;
mod exposures;
mod group;
mod idle;
mod kill;
mod limits;
mod off_lock;
mod old_peer;
mod restless;
mod timers;

use super::*;
use crate::proto::wire::BufferDescriptorV1;
use crate::proto::{self, Timeout};
use crate::rdma::sim::{DeviceOptions, Network, NetworkOptions, Posted};
use crate::rdma::{IoBuf, PostError, RdmaError, RdmaOperation, RemoteAccess};
use crate::transport::{
    BadDescriptors, Close, DirectPlacement, DisconnectReason, Error, Gather, Listener, Op,
    OutMessage, SteeringTag, Target, Transport,
};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
const PORT: u16 = 445;

struct World {
    network: Network,
    server: Reactor,
    client: Reactor,
    listener: DirectListener,
}

impl World {
    fn new(seed: u64, device: DeviceOptions, options: ChannelOptions) -> Self {
        Self::with_reactors(seed, device, options, &ReactorOptions::default())
    }

    fn with_reactors(
        seed: u64,
        device: DeviceOptions,
        options: ChannelOptions,
        reactors: &ReactorOptions,
    ) -> Self {
        let network = Network::new(seed, NetworkOptions::default());
        Self::over(network, device, options, reactors)
    }

    fn over(
        network: Network,
        device: DeviceOptions,
        options: ChannelOptions,
        reactors: &ReactorOptions,
    ) -> Self {
        let reactor = |host| {
            let provider = network.provider_with(host, device.clone());
            Reactor::new(Box::new(provider), reactors.clone()).unwrap()
        };
        let (server, client) = (reactor(SERVER), reactor(CLIENT));
        let listener = server
            .listen(&[SocketAddr::new(SERVER, PORT)], options)
            .unwrap();
        Self {
            network,
            server,
            client,
            listener,
        }
    }

    fn roce() -> Self {
        Self::new(1, DeviceOptions::rxe(), ChannelOptions::default())
    }

    /// Drives both sides until it is so; at most for so much virtual time.
    fn until<T>(&self, limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let end = self.network.now() + limit;
        loop {
            let next = [self.server.poll(), self.client.poll()]
                .into_iter()
                .flatten()
                .min();
            if let Some(result) = done() {
                return Some(result);
            }
            match next {
                Some(at) if at <= end => {
                    let now = self.network.now();
                    self.network.advance(at.saturating_duration_since(now));
                }
                _ => {
                    if self.network.now() >= end {
                        return None;
                    }
                    self.network.advance_to(end);
                }
            }
        }
    }

    fn finish<T>(&self, mut op: Op<T>) -> Result<T, Error> {
        self.until(Duration::from_secs(300), || op.try_take())
            .expect("the operation ends")
    }

    fn connect(&self, options: ChannelOptions) -> (Channel, Channel) {
        let op = self.client.connect(SocketAddr::new(SERVER, PORT), options);
        let client = self.finish(op).unwrap();
        (client, self.accept())
    }

    fn accept(&self) -> Channel {
        self.until(Duration::from_secs(10), || {
            match self.listener.poll_accept_channel(&mut cx()) {
                Poll::Ready(result) => Some(result.unwrap()),
                Poll::Pending => None,
            }
        })
        .expect("an accepted channel")
    }

    fn recv(&self, channel: &Channel) -> Result<Option<Vec<u8>>, Error> {
        self.until(Duration::from_secs(300), || {
            match channel.poll_recv(&mut cx()) {
                Poll::Ready(result) => Some(result.map(|message| message.map(|m| m.to_vec()))),
                Poll::Pending => None,
            }
        })
        .expect("a message or the end")
    }

    fn closed(&self, channel: &Channel) -> DisconnectReason {
        self.until(Duration::from_secs(300), || {
            match channel.poll_closed(&mut cx()) {
                Poll::Ready(reason) => Some(reason),
                Poll::Pending => None,
            }
        })
        .expect("the end")
    }
}

fn cx() -> TaskContext<'static> {
    TaskContext::from_waker(Waker::noop())
}

fn filled(channel: &Channel, len: usize, seed: u8) -> IoBuf {
    let mut buf = channel.allocate(len).try_take().unwrap().unwrap();
    for (i, byte) in buf.iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add(seed);
    }
    buf
}

#[test]
fn messages_of_all_sizes_go_both_ways_in_order() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    let sizes = [1, 1340, 1341, 5000, 173_910, 1 << 20, 7];
    for (i, size) in sizes.iter().enumerate() {
        client
            .start_send(OutMessage::Bytes(vec![i as u8; *size].into()))
            .unwrap();
    }
    for (i, size) in sizes.iter().enumerate() {
        let message = world.recv(&server).unwrap().unwrap();
        assert!(message == vec![i as u8; *size]);
        server.start_send((&message).into()).unwrap();
        assert!(world.recv(&client).unwrap().unwrap() == message);
    }
    assert_eq!(client.stats().bytes_sent, client.stats().bytes_received);
}

#[test]
fn a_graceful_close_delivers_everything_and_an_orderly_end() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    for n in 0..10u8 {
        client.start_send((&vec![n; 40_000]).into()).unwrap();
    }
    client.close(Close::Graceful(Duration::from_secs(60)));
    for n in 0..10u8 {
        assert!(world.recv(&server).unwrap().unwrap() == vec![n; 40_000]);
    }
    assert_eq!(world.recv(&server), Ok(None));
    assert_eq!(world.closed(&client), DisconnectReason::Local);
    assert_eq!(world.client.connections() + world.server.connections(), 0);
}

#[test]
fn a_silent_peer_is_gone_in_interval_and_timeout() {
    let world = World::new(3, DeviceOptions::siw(), ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    let start = world.network.now();
    world.network.silence(CLIENT);
    let reason = world.closed(&server);
    assert_eq!(
        reason,
        DisconnectReason::Protocol(Timeout::Keepalive.into())
    );
    let time = world.network.now() - start;
    assert!(
        time >= Duration::from_secs(120) && time <= Duration::from_secs(126),
        "{time:?}"
    );
    drop(client);
}

#[test]
fn idle_connections_live_and_exchange_probes_only() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    world.until(Duration::from_secs(1), || None::<()>);
    let before = (client.stats().sends, server.stats().sends);
    world.until(Duration::from_secs(1000), || None::<()>);
    let stats = client.stats();
    let probes = stats.keepalives_sent + stats.keepalives_answered;
    assert!((7..=17).contains(&probes), "{stats:?}");
    assert!(stats.sends - before.0 <= probes + 1, "{stats:?}");
    assert!(server.stats().sends - before.1 <= probes + 1);
    client.start_send(b"alive".into()).unwrap();
    assert_eq!(world.recv(&server).unwrap().unwrap(), b"alive");
}

#[test]
fn an_application_that_takes_nothing_is_not_taken_for_a_dead_peer() {
    let options = ChannelOptions {
        receive_queue_bytes: 10_000,
        ..ChannelOptions::default()
    };
    let world = World::new(4, DeviceOptions::rxe(), options);
    let (client, server) = world.connect(ChannelOptions::default());
    for n in 0..100u8 {
        client.start_send((&vec![n; 5000]).into()).unwrap();
    }
    world.until(Duration::from_secs(400), || None::<()>);
    for n in 0..100u8 {
        assert!(world.recv(&server).unwrap().unwrap() == vec![n; 5000]);
    }
    drop(client);
}

#[test]
fn a_refused_negotiation_tells_why() {
    let mut options = ChannelOptions::default();
    options.protocol.max_fragmented_size = 1 << 20;
    let world = World::new(5, DeviceOptions::rxe(), options);
    let nobody = SocketAddr::new(SERVER, 9);
    let op = world.client.connect(nobody, ChannelOptions::default());
    assert!(matches!(world.finish(op), Err(Error::Rdma(_))));
    let mut bad = ChannelOptions::default();
    bad.protocol.max_receive_size = 1;
    let op = world.client.connect(SocketAddr::new(SERVER, PORT), bad);
    assert!(matches!(world.finish(op), Err(Error::Config(_))));
}

#[test]
fn a_connect_that_meets_a_taken_port_begins_anew_within_bounds() {
    let world = World::new(5, DeviceOptions::siw(), ChannelOptions::default());
    world.network.take_ports(CLIENT, 3);
    world.connect(ChannelOptions::default());
    world.network.take_ports(CLIENT, 4);
    let to = SocketAddr::new(SERVER, PORT);
    let op = world.client.connect(to, ChannelOptions::default());
    let taken = RdmaError::Os {
        operation: RdmaOperation::Connect,
        errno: libc::EADDRINUSE,
    };
    assert_eq!(world.finish(op).err(), Some(Error::Rdma(taken)));
}

#[test]
fn failed_posts_and_dropped_links_end_only_their_connection() {
    let world = World::roce();
    let (first, first_server) = world.connect(ChannelOptions::default());
    let (second, second_server) = world.connect(ChannelOptions::default());
    world
        .network
        .fail_post(CLIENT, Posted::Send, 2, PostError::Full);
    for _ in 0..5 {
        first.start_send((&vec![1; 10_000]).into()).unwrap();
    }
    for _ in 0..5 {
        assert!(world.recv(&first_server).unwrap().is_some());
    }
    world.network.cut_connection(first.info().local);
    assert!(matches!(world.closed(&first), DisconnectReason::Rdma(_)));
    assert!(matches!(
        world.closed(&first_server),
        DisconnectReason::Rdma(_)
    ));
    second.start_send(b"still here".into()).unwrap();
    assert_eq!(world.recv(&second_server).unwrap().unwrap(), b"still here");
}

#[test]
fn unfinished_connections_are_capped_and_time_out() {
    let options = ChannelOptions {
        max_negotiating_per_peer: 3,
        ..ChannelOptions::default()
    };
    let world = World::new(6, DeviceOptions::rxe(), options);
    // A client whose link dies after the connection was made never negotiates.
    let ops: Vec<_> = (0..6)
        .map(|_| {
            world
                .client
                .connect(SocketAddr::new(SERVER, PORT), ChannelOptions::default())
        })
        .collect();
    let mut done = 0;
    for op in ops {
        done += usize::from(world.finish(op).is_ok());
    }
    assert!(done >= 3, "{done}");
    assert!(world.listener.local_addresses().len() == 1);
}

/// Every kind of device.
fn devices() -> [DeviceOptions; 4] {
    [
        DeviceOptions::roce(),
        DeviceOptions::rxe(),
        DeviceOptions::siw(),
        DeviceOptions::iwarp(),
    ]
}

#[test]
fn a_server_writes_and_reads_exposed_memory() {
    for device in devices() {
        let world = World::new(7, device, ChannelOptions::default());
        let (client, server) = world.connect(ChannelOptions::default());
        for len in [1usize, 4096, 300_001, 1 << 20] {
            // An SMB READ: the server writes into the client's memory.
            let memory = client.allocate(len).try_take().unwrap().unwrap();
            let exposed = client.expose(memory, RemoteAccess::Write).unwrap();
            client.start_send(b"READ".into()).unwrap();
            assert_eq!(world.recv(&server).unwrap().unwrap(), b"READ");
            let data = filled(&server, len, 5);
            let expected = data.to_vec();
            let target = Target::new(exposed.descriptors());
            let op = server.write_then_send(data.into(), target, b"done".into(), None);
            assert_eq!(world.recv(&client).unwrap().unwrap(), b"done");
            let memory = world.finish(exposed.reclaim()).unwrap();
            assert!(memory[..len] == expected[..], "{len} bytes");
            assert_eq!(world.finish(op).unwrap().len(), len);
            // An SMB WRITE: the server reads it.
            let exposed = client.expose(memory, RemoteAccess::Read).unwrap();
            client.start_send(b"WRITE".into()).unwrap();
            assert_eq!(world.recv(&server).unwrap().unwrap(), b"WRITE");
            let into = server.allocate(len + 10).try_take().unwrap().unwrap();
            let target = Target::new(exposed.descriptors());
            let into = world.finish(server.read(into, 5..5 + len, target)).unwrap();
            assert!(into[5..5 + len] == expected[..], "{len} bytes");
            world.finish(exposed.reclaim()).unwrap();
        }
        let stats = server.stats();
        assert_eq!((stats.rdma_writes.count, stats.rdma_reads.count), (4, 4));
    }
}

#[test]
fn a_response_invalidates_what_it_was_asked_to() {
    for device in devices() {
        let world = World::new(8, device, ChannelOptions::default());
        let (client, server) = world.connect(ChannelOptions::default());
        if !client.remote_invalidation() {
            continue;
        }
        for _ in 0..3 {
            let memory = client.allocate(5000).try_take().unwrap().unwrap();
            let mut exposed = client.expose(memory, RemoteAccess::Write).unwrap();
            exposed.offer_invalidation();
            client.start_send(b"READ".into()).unwrap();
            world.recv(&server).unwrap().unwrap();
            let descriptors = exposed.descriptors().to_vec();
            let token = SteeringTag(descriptors[0].token);
            let data = filled(&server, 5000, 9);
            let op = server.write_then_send(
                data.into(),
                Target::new(descriptors),
                b"done".into(),
                Some(token),
            );
            assert_eq!(world.recv(&client).unwrap().unwrap(), b"done");
            let memory = world.finish(exposed.reclaim()).unwrap();
            assert_eq!(memory[1], 31 + 9);
            world.finish(op).unwrap();
        }
        assert_eq!(client.stats().remote_invalidations, 3);
    }
}

#[test]
fn a_revoked_descriptor_ends_only_its_connection() {
    for device in devices() {
        let world = World::new(9, device, ChannelOptions::default());
        let (client, server) = world.connect(ChannelOptions::default());
        let (other, other_server) = world.connect(ChannelOptions::default());
        let exposed = client
            .expose(filled(&client, 4096, 1), RemoteAccess::Write)
            .unwrap();
        let old = exposed.descriptors().to_vec();
        let memory = world.finish(exposed.reclaim()).unwrap();
        let data = filled(&server, 4096, 77);
        let result = world.finish(server.write(data.into(), Target::new(old)));
        let _ = world.closed(&server);
        drop(result);
        let untouched =
            |(i, byte): (usize, &u8)| *byte == (i as u8).wrapping_mul(31).wrapping_add(1);
        assert!(memory.iter().enumerate().all(untouched));
        other.start_send(b"fine".into()).unwrap();
        assert_eq!(world.recv(&other_server).unwrap().unwrap(), b"fine");
    }
}

#[test]
fn bad_descriptors_post_nothing() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    let exposed = client
        .expose(filled(&client, 100, 1), RemoteAccess::Write)
        .unwrap();
    let descriptor = exposed.descriptors()[0];
    let long = BufferDescriptorV1 {
        length: 0,
        ..descriptor
    };
    let result = world.finish(server.write(
        filled(&server, 10, 0).into(),
        Target::new(vec![descriptor, long]),
    ));
    assert_eq!(
        result.unwrap_err(),
        Error::BadDescriptors(BadDescriptors::ZeroLength)
    );
    let result = world.finish(server.write(
        filled(&server, 101, 0).into(),
        Target::new(vec![descriptor]),
    ));
    assert!(matches!(
        result,
        Err(Error::BadDescriptors(BadDescriptors::BeyondEnd { .. }))
    ));
    client.start_send(b"alive".into()).unwrap();
    assert_eq!(world.recv(&server).unwrap().unwrap(), b"alive");
}

#[test]
fn many_transfers_and_messages_share_a_connection() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    let exposures: Vec<_> = (0..32)
        .map(|_| {
            let memory = client.allocate(1 << 20).try_take().unwrap().unwrap();
            client.expose(memory, RemoteAccess::Write).unwrap()
        })
        .collect();
    let ops: Vec<_> = exposures
        .iter()
        .enumerate()
        .map(|(i, exposed)| {
            let mut gather = Gather::new();
            for part in 0..4 {
                gather.push(filled(&server, 1 << 18, (i * 4 + part) as u8));
            }
            server.write(gather, Target::new(exposed.descriptors()))
        })
        .collect();
    client.start_send(b"in between".into()).unwrap();
    assert_eq!(world.recv(&server).unwrap().unwrap(), b"in between");
    for op in ops {
        world.finish(op).unwrap();
    }
    server.start_send(b"all written".into()).unwrap();
    world.recv(&client).unwrap().unwrap();
    for (i, exposed) in exposures.into_iter().enumerate() {
        let memory = world.finish(exposed.reclaim()).unwrap();
        assert_eq!(memory[0], (i * 4) as u8);
        assert_eq!(memory[1 << 18], (i * 4 + 1) as u8);
    }
}

/// What arrived since the last pass is answered as a whole: one doorbell and one grant for many messages. Where every
/// message makes the connection move, two peers that both wait for credits hand single credits to and fro for ever.
#[test]
fn a_pass_takes_in_all_events_before_the_connection_moves() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    const MESSAGES: usize = 32;
    const LEN: usize = 64 << 10;
    for channel in [&client, &server] {
        for _ in 0..MESSAGES {
            let message = OutMessage::Bytes(vec![7; LEN].into());
            channel.start_send(message).unwrap();
        }
    }
    let mut received = 0;
    for _ in 0..4000 {
        world.network.advance(Duration::from_micros(1));
        world.server.poll();
        world.client.poll();
        for channel in [&client, &server] {
            while let Poll::Ready(message) = channel.poll_recv(&mut cx()) {
                assert_eq!(message.unwrap().unwrap().len(), LEN);
                received += 1;
            }
        }
    }
    assert_eq!(received, 2 * MESSAGES);
    let stats = client.stats();
    assert!(stats.doorbells * 40 < stats.sends, "{stats:?}");
}

#[test]
fn memory_comes_back_when_the_connection_dies() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    let exposed = client
        .expose(filled(&client, 4096, 1), RemoteAccess::Write)
        .unwrap();
    let op = server.write(
        filled(&server, 4096, 1).into(),
        Target::new(exposed.descriptors()),
    );
    world.network.cut(CLIENT, SERVER);
    world.closed(&client);
    world.closed(&server);
    let _ = world.finish(op);
    assert_eq!(world.finish(exposed.reclaim()).unwrap().len(), 4096);
}

#[test]
fn protocol_violations_have_a_reason() {
    let reason = DisconnectReason::Protocol(proto::DisconnectReason::ApplicationStalled);
    assert!(reason.to_string().contains("recv"));
}
