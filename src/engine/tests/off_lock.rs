//! Devices on which making queue pairs and registering memory takes its time: that is done off the reactor's lock, and
//! whatever happens meanwhile loses nothing.

use super::*;
use crate::engine::helper::Helper;
use crate::rdma::RdmaError;

fn slow(mut device: DeviceOptions) -> DeviceOptions {
    device.quirks.creation_blocks = true;
    device
}

fn world(device: DeviceOptions) -> World {
    World::new(1, slow(device), ChannelOptions::default())
}

fn helper(reactor: &Reactor) -> &Helper {
    reactor.shared().helper()
}

impl World {
    fn waits(&self, reactor: &Reactor) {
        let waits = || (helper(reactor).waiting() > 0).then_some(());
        self.until(Duration::from_secs(1), waits)
            .expect("a job waits");
    }

    fn begin_connect(&self) -> Op<Channel> {
        let to = SocketAddr::new(SERVER, PORT);
        self.client.connect(to, ChannelOptions::default())
    }

    fn nothing_is_left(&self) {
        self.until(Duration::from_secs(10), || None::<()>);
        assert_eq!(self.client.connections() + self.server.connections(), 0);
        assert_eq!(self.network.connection_ends(), 0);
    }
}

fn exchange(world: &World, from: &Channel, to: &Channel, len: usize) {
    from.start_send((&vec![3; len]).into()).unwrap();
    assert_eq!(world.recv(to).unwrap().unwrap().len(), len);
}

#[test]
fn connections_are_made_and_carry_everything() {
    for device in devices() {
        let world = world(device);
        let (client, server) = world.connect(ChannelOptions::default());
        for len in [1, 1340, 100_000, 1 << 20] {
            exchange(&world, &client, &server, len);
            exchange(&world, &server, &client, len);
        }
        let mut memory = client.allocate(300_000);
        assert!(memory.try_take().is_none(), "not in the caller's time");
        let memory = world.finish(memory).unwrap();
        let exposed = client.expose(memory, RemoteAccess::Write).unwrap();
        let mut data = world.finish(server.allocate(300_000)).unwrap();
        data.fill(7);
        let target = Target::new(exposed.descriptors());
        let op = server.write_then_send(data.into(), target, b"done".into(), None);
        assert_eq!(world.recv(&client).unwrap().unwrap(), b"done");
        let memory = world.finish(exposed.reclaim()).unwrap();
        assert!(memory.iter().all(|byte| *byte == 7));
        drop((memory, world.finish(op).unwrap()));
        // There are free ones now.
        assert!(client.allocate(300_000).try_take().is_some());
        drop((client, server));
        world.nothing_is_left();
    }
}

/// Where registering blocks, the domain says so if it is asked to under the lock, and so does a registration that ends.
#[test]
fn exposures_begin_and_end_off_the_lock() {
    for mut device in devices() {
        device.quirks.max_windows = 3;
        let world = world(device);
        let (client, server) = world.connect(ChannelOptions::default());
        let buffers = |count| -> Vec<IoBuf> {
            let ops = (0..count).map(|_| client.allocate(1000));
            ops.map(|op| world.finish(op).unwrap()).collect()
        };
        let expose = |count| client.expose_list(buffers(count), RemoteAccess::Write);
        // Taken back, dropped, and refused half-way.
        let reclaimed = world.finish(expose(3).unwrap().reclaim()).unwrap();
        assert_eq!(reclaimed.len(), 3);
        drop((reclaimed, expose(2).unwrap()));
        world.until(Duration::from_secs(1), || None::<()>);
        assert!(expose(4).is_err());
        // Invalidated by the peer; left to the connection's end; taken back after it.
        let mut offered = expose(1).unwrap();
        if client.remote_invalidation() {
            offered.offer_invalidation();
            let token = SteeringTag(offered.descriptors()[0].token);
            server.send_invalidate(b"done".into(), token).unwrap();
            assert_eq!(world.recv(&client).unwrap().unwrap(), b"done");
        }
        let (early, late) = (expose(1).unwrap(), expose(1).unwrap());
        let offered = offered.reclaim();
        world.network.cut(CLIENT, SERVER);
        let early = early.reclaim();
        world.closed(&client);
        for op in [offered, early, late.reclaim()] {
            assert_eq!(world.finish(op).unwrap().len(), 1);
        }
        drop((client, server));
        world.nothing_is_left();
        assert_eq!(world.network.violations(), []);
    }
}

#[test]
fn a_slow_set_up_does_not_delay_other_connections() {
    let world = world(DeviceOptions::rxe());
    let (client, server) = world.connect(ChannelOptions::default());
    helper(&world.server).hold(true);
    let mut op = world.begin_connect();
    // The queue pair with slots for the negotiation, and then slots for data.
    for _ in 0..2 {
        world.waits(&world.server);
        for _ in 0..20 {
            exchange(&world, &client, &server, 5000);
            exchange(&world, &server, &client, 5000);
        }
        let accepted = world.listener.poll_accept_channel(&mut cx());
        assert!(accepted.is_pending());
        helper(&world.server).step();
    }
    helper(&world.server).hold(false);
    let second = world.until(Duration::from_secs(1), || op.try_take());
    let second = second.expect("the end").unwrap();
    exchange(&world, &second, &world.accept(), 5000);
}

/// A connection whose peer sends much gets more slots; another one does not wait for that.
#[test]
fn a_slow_registration_does_not_delay_other_connections() {
    for refusals in [0, 3] {
        // A domain for each connection.
        let world = world(DeviceOptions::siw());
        let (client, server) = world.connect(ChannelOptions::default());
        let (other, other_server) = world.connect(ChannelOptions::default());
        helper(&world.client).hold(true);
        const MESSAGES: usize = 20;
        for _ in 0..MESSAGES {
            server.start_send((&vec![5; 100_000]).into()).unwrap();
        }
        world.waits(&world.client);
        for _ in 0..20 {
            exchange(&world, &other, &other_server, 5000);
            exchange(&world, &other_server, &other, 5000);
        }
        assert_eq!(helper(&world.client).waiting(), 1);
        assert!(client.stats().stalls_registration > 0);
        // A system that has no memory for a while is asked again.
        world.network.refuse_memory(CLIENT, refusals);
        helper(&world.client).hold(false);
        for _ in 0..MESSAGES {
            assert_eq!(world.recv(&client).unwrap().unwrap().len(), 100_000);
        }
    }
}

#[test]
fn a_connection_that_is_gone_meanwhile_takes_everything_with_it() {
    // The queue pair; slots for data.
    for steps in 0..2 {
        for device in devices() {
            let world = world(device);
            for reactor in [&world.client, &world.server] {
                helper(reactor).hold(true);
                let mut op = world.begin_connect();
                if std::ptr::eq(reactor, &world.server) {
                    helper(&world.client).hold(false);
                }
                world.waits(reactor);
                for _ in 0..steps {
                    helper(reactor).step();
                    world.waits(reactor);
                }
                world.network.cut(CLIENT, SERVER);
                world.until(Duration::from_secs(60), || None::<()>);
                // What nobody waits for any more is made, and goes.
                helper(reactor).hold(false);
                let result = world.until(Duration::from_secs(300), || op.try_take());
                assert!(matches!(result, Some(Err(_))), "{result:?}");
                world.nothing_is_left();
                world.network.set_link(CLIENT, SERVER, true);
            }
        }
    }
}

#[test]
fn a_reactor_that_is_shut_down_meanwhile_leaves_nothing() {
    for steps in 0..2 {
        let world = world(DeviceOptions::rxe());
        helper(&world.client).hold(true);
        let mut op = world.begin_connect();
        world.waits(&world.client);
        for _ in 0..steps {
            helper(&world.client).step();
            world.waits(&world.client);
        }
        world.client.shutdown(Duration::ZERO);
        let gone = Error::Closed(DisconnectReason::ReactorGone);
        assert_eq!(op.try_take().expect("the end").err(), Some(gone));
        helper(&world.client).step();
        world.nothing_is_left();
        // The whole reactor may be gone.
        let late = World::new(1, slow(DeviceOptions::rxe()), ChannelOptions::default());
        let off = helper(&late.client).clone();
        off.hold(true);
        let op = late.begin_connect();
        late.waits(&late.client);
        drop((late, op));
        off.step();
    }
}

#[test]
fn memory_that_is_refused_ends_its_connection_only() {
    // A domain for each connection, so that each registers.
    let world = world(DeviceOptions::siw());
    let (client, server) = world.connect(ChannelOptions::default());
    for (host, steps) in [(SERVER, 0), (SERVER, 1), (CLIENT, 0), (CLIENT, 1)] {
        let reactor = match host {
            SERVER => &world.server,
            _ => &world.client,
        };
        helper(reactor).hold(true);
        let op = world.begin_connect();
        world.waits(reactor);
        for _ in 0..steps {
            helper(reactor).step();
            world.waits(reactor);
        }
        let failed = world.listener.failed_handshakes();
        world.network.refuse_memory(host, 1);
        helper(reactor).hold(false);
        let error = world.finish(op).expect_err("no connection");
        world.until(Duration::from_secs(1), || None::<()>);
        let no_receives = proto::DisconnectReason::NoReceives;
        match (host, steps) {
            (SERVER, _) => {
                assert_eq!(world.listener.failed_handshakes(), failed + 1);
                let last = world.listener.last_failed_handshake().expect("a failure").1;
                match last {
                    Error::Rdma(RdmaError::LockedMemory { .. }) => assert_eq!(steps, 0),
                    last => assert_eq!(last, Error::Closed(no_receives.into())),
                }
            }
            (_, 0) => assert!(
                matches!(error, Error::Rdma(RdmaError::LockedMemory { .. })),
                "{error}"
            ),
            // [MS-SMBD] 3.1.5.7: receives are posted before the connection counts as negotiated.
            _ => assert_eq!(error, Error::Closed(no_receives.into())),
        }
        exchange(&world, &client, &server, 5000);
    }
    drop((client, server, world.connect(ChannelOptions::default())));
    world.nothing_is_left();
}
