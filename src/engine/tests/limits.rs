//! What a reactor and its listeners refuse.

use super::*;
use crate::rdma::AcceptFilter;

#[test]
fn who_may_not_connect_is_refused_and_counted() {
    let mut options = ChannelOptions::default();
    let filter = AcceptFilter::new(|peer| peer != CLIENT);
    options.listen.filter = filter.clone();
    let world = World::new(1, DeviceOptions::rxe(), options);
    let to = SocketAddr::new(SERVER, PORT);
    let op = world.client.connect(to, ChannelOptions::default());
    assert!(matches!(world.finish(op), Err(Error::Rdma(_))));
    assert_eq!(filter.refused(), 1);
    assert_eq!(world.server.connections(), 0);
    // Others may.
    let other = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 3));
    let provider = world.network.provider_with(other, DeviceOptions::rxe());
    let reactor = Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap();
    let mut op = reactor.connect(to, ChannelOptions::default());
    let mut connected = None;
    while connected.is_none() && world.network.elapsed() < Duration::from_secs(20) {
        world.network.advance(Duration::from_micros(10));
        world.server.poll();
        reactor.poll();
        connected = op.try_take();
    }
    assert!(connected.expect("an answer").is_ok());
    assert_eq!(filter.refused(), 1);
}

/// Many that negotiate at a time are done before the application accepts any of them.
#[test]
fn no_more_connections_wait_to_be_accepted_than_may() {
    let options = ChannelOptions {
        accept_backlog: 2,
        ..ChannelOptions::default()
    };
    let world = World::new(1, DeviceOptions::rxe(), options);
    let to = SocketAddr::new(SERVER, PORT);
    let connects: Vec<_> = (0..5)
        .map(|_| world.client.connect(to, ChannelOptions::default()))
        .collect();
    let clients: Vec<_> = (connects.into_iter()).map(|op| world.finish(op)).collect();
    world.until(Duration::from_secs(1), || None::<()>);
    let mut accepted = Vec::new();
    while let Poll::Ready(channel) = world.listener.poll_accept_channel(&mut cx()) {
        accepted.push(channel.unwrap());
    }
    assert_eq!(accepted.len(), 2);
    let refused = Error::Closed(DisconnectReason::NotAccepted { limit: 2 });
    let (_, last) = world.listener.last_failed_handshake().unwrap();
    assert_eq!((world.listener.failed_handshakes(), last), (3, refused));
    assert_eq!(
        (world.server.connections(), world.listener.negotiating()),
        (2, 0)
    );
    // The others were ended before or after they had been told that they are negotiated.
    let lives = |client: &&Channel| client.poll_closed(&mut cx()).is_pending();
    assert_eq!(clients.iter().flatten().filter(lives).count(), 2);
    // There is room again.
    let (client, server) = world.connect(ChannelOptions::default());
    client.start_send(b"welcome".into()).unwrap();
    assert_eq!(world.recv(&server).unwrap().unwrap(), b"welcome");
}

#[test]
fn unfinished_messages_keep_to_the_budget_of_all() {
    const BUDGET: usize = 512 << 10;
    let reactors = ReactorOptions {
        reassembly_budget: BUDGET,
        ..ReactorOptions::default()
    };
    let options = ChannelOptions::default();
    let world = World::with_reactors(1, DeviceOptions::rxe(), options, &reactors);
    let (greedy, greedy_server) = world.connect(ChannelOptions::default());
    let (modest, modest_server) = world.connect(ChannelOptions::default());
    for len in [BUDGET, BUDGET + 1] {
        greedy.start_send((&vec![1; len]).into()).unwrap();
    }
    assert_eq!(world.recv(&greedy_server).unwrap().unwrap().len(), BUDGET);
    let reason = DisconnectReason::ReassemblyBudget { limit: BUDGET };
    assert_eq!(world.closed(&greedy_server), reason);
    // What it had taken is there again for the others.
    for _ in 0..3 {
        modest.start_send((&vec![2; BUDGET]).into()).unwrap();
        assert_eq!(world.recv(&modest_server).unwrap().unwrap().len(), BUDGET);
    }
}

#[test]
fn registered_memory_is_counted_and_limited() {
    const LIMIT: u64 = 8 << 20;
    let reactors = ReactorOptions {
        max_registered_memory: LIMIT,
        ..ReactorOptions::default()
    };
    let options = ChannelOptions::default();
    let world = World::with_reactors(1, DeviceOptions::siw(), options.clone(), &reactors);
    let (client, server) = world.connect(options);
    let slots = world.client.registered_memory();
    assert!(slots > 0 && slots < LIMIT, "{slots}");
    let data = client.allocate(2 << 20).wait().unwrap();
    let used = world.client.registered_memory();
    assert_eq!(used, slots + (2 << 20));
    let error = client.allocate(7 << 20).wait().unwrap_err();
    // In slots of powers of two.
    let needed = 8 << 20;
    let refused = RdmaError::MemoryBudget {
        limit: LIMIT,
        used,
        needed,
    };
    assert_eq!(error, refused.into());
    assert!(!error.ends_connection());
    // The connection goes on, and what was given back serves again without more.
    drop(data);
    drop(client.allocate(2 << 20).wait().unwrap());
    assert_eq!(world.client.registered_memory(), used);
    client.start_send((&vec![1; 1 << 20]).into()).unwrap();
    assert_eq!(world.recv(&server).unwrap().unwrap().len(), 1 << 20);
    drop((client, server));
    world.until(Duration::from_secs(10), || None::<()>);
    assert_eq!(world.client.registered_memory(), 0);
}

/// Where no more slots are to be had, neither messages that wait in them nor receives take all: a grant that cannot leave
/// would stop both sides.
#[test]
fn connections_go_on_when_memory_is_used_up() {
    const COUNT: u32 = 1000;
    let options = ChannelOptions {
        receive_queue_bytes: 20_000,
        ..ChannelOptions::default()
    };
    let device = DeviceOptions::siw;
    let used = {
        let world = World::new(1, device(), options.clone());
        let _pair = world.connect(options.clone());
        world.client.registered_memory()
    };
    let reactors = ReactorOptions {
        max_registered_memory: used,
        ..ReactorOptions::default()
    };
    let world = World::with_reactors(1, device(), options.clone(), &reactors);
    let (client, server) = world.connect(options);
    // Nobody receives: credits run out, and what is in flight comes back.
    for n in 0..COUNT {
        client.start_send((&n.to_le_bytes()).into()).unwrap();
        world.until(Duration::from_micros(50), || None::<()>);
    }
    assert_eq!(world.client.registered_memory(), used);
    for n in 0..COUNT {
        let message = world.recv(&server).unwrap().unwrap();
        assert_eq!(message, n.to_le_bytes());
    }
}

/// Each attempt maps memory, on most devices in a thread of its own.
#[test]
fn memory_that_is_refused_is_asked_for_ever_more_rarely() {
    let options = ChannelOptions::default();
    let used = {
        let world = World::new(1, DeviceOptions::siw(), options.clone());
        let _pair = world.connect(options.clone());
        world.client.registered_memory()
    };
    let reactors = ReactorOptions {
        max_registered_memory: used,
        ..ReactorOptions::default()
    };
    let world = World::with_reactors(1, DeviceOptions::siw(), options.clone(), &reactors);
    let (client, server) = world.connect(options);
    for n in 0..1200u32 {
        client.start_send((&n.to_le_bytes()).into()).unwrap();
        if n % 40 == 39 {
            for _ in 0..40 {
                world.recv(&server).unwrap().unwrap();
            }
        }
    }
    world.until(Duration::from_secs(10), || None::<()>);
    let asked = || server.stats().registrations;
    let before = asked();
    world.until(Duration::from_secs(10), || None::<()>);
    let attempts = asked() - before;
    assert!((1..=40).contains(&attempts), "{attempts} attempts in 10 s");
}
