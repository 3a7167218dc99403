//! What else goes on while much is moved.

use super::*;
use crate::rdma::Fabric;

/// Everything is a thirty-second of 8 MiB at a gigabyte per second, since virtual time costs nothing and bytes do.
const SCALE: usize = 32;
/// Bytes per second of the network.
const BANDWIDTH: u64 = 1_000_000_000 / SCALE as u64;
const LEN: usize = (8 << 20) / SCALE;
const TRANSFERS: usize = 64;
/// What may be in flight takes 8.4 ms; this is the time that a probe's answer has.
const PATIENCE: Duration = Duration::from_millis(20);

fn options() -> ChannelOptions {
    let mut options = ChannelOptions::default();
    options.max_rdma_chunk /= SCALE;
    options.max_rdma_in_flight /= SCALE;
    options
}

fn world(device: DeviceOptions, options: &ChannelOptions) -> World {
    let network = NetworkOptions {
        bandwidth: Some(BANDWIDTH),
        ..NetworkOptions::default()
    };
    World::over(
        Network::new(31, network),
        device,
        options.clone(),
        &ReactorOptions::default(),
    )
}

/// Both sides probe every 10 ms and die of an answer that takes longer than 20 ms, while 64 transfers keep the
/// network busy for half a second: the connection lives, and messages take no longer than the answers.
#[test]
fn probes_are_answered_in_time_while_much_is_moved() {
    let mut options = options();
    options.protocol.keepalive_interval = Duration::from_millis(10);
    options.protocol.keepalive_timeout = PATIENCE;
    for (device, access) in [
        (DeviceOptions::roce(), RemoteAccess::Write),
        (DeviceOptions::siw(), RemoteAccess::Read),
    ] {
        let world = world(device, &options);
        let (client, server) = world.connect(options.clone());
        let exposed = client.expose(filled(&client, LEN, 1), access).unwrap();
        let target = || Target::new(exposed.descriptors());
        let data = filled(&server, LEN, 2).freeze();
        let start = world.network.now();
        // All into, or out of, the same memory: what is asked for is time.
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for _ in 0..TRANSFERS {
            match access {
                RemoteAccess::Write => writes.push(server.write(data.clone().into(), target())),
                RemoteAccess::Read => {
                    let into = server.allocate(LEN).try_take().unwrap().unwrap();
                    reads.push(server.read(into, 0..LEN, target()));
                }
            }
        }
        let mut pings = 0;
        while writes.last_mut().is_none_or(|op| op.try_take().is_none())
            && reads.last_mut().is_none_or(|op| op.try_take().is_none())
        {
            let sent = world.network.now();
            client.start_send(b"ping".into()).unwrap();
            assert_eq!(world.recv(&server).unwrap().unwrap(), b"ping");
            server.start_send(b"pong".into()).unwrap();
            assert_eq!(world.recv(&client).unwrap().unwrap(), b"pong");
            let time = world.network.now() - sent;
            assert!(time <= PATIENCE, "a message and its answer took {time:?}");
            pings += 1;
            // Silence, so that there are probes.
            world.until(Duration::from_millis(50), || None::<()>);
        }
        let time = world.network.now() - start;
        let least = Duration::from_nanos((LEN * TRANSFERS) as u64 * 1_000_000_000 / BANDWIDTH);
        assert!(time >= least, "{time:?}");
        let (client, server) = (client.stats(), server.stats());
        assert!(pings >= 8 && client.keepalives_sent >= 8 && server.keepalives_sent >= 8);
        assert!(server.keepalives_answered + client.keepalives_answered >= 16);
    }
}

/// A transfer over 4,000 one-byte descriptors does not hold up what is asked for after it.
#[test]
fn tiny_descriptors_starve_nobody() {
    const COUNT: u64 = 4000;
    for device in devices() {
        let fabric = device.capabilities.fabric;
        let world = world(device, &options());
        let (client, server) = world.connect(options());
        let expose = |len: usize| {
            client
                .expose(filled(&client, len, 1), RemoteAccess::Write)
                .unwrap()
        };
        let (tiny, large) = (expose(COUNT as usize), expose(LEN));
        let whole = tiny.descriptors()[0];
        let each = |n| BufferDescriptorV1 {
            offset: whole.offset + n,
            length: 1,
            ..whole
        };
        let data = filled(&server, COUNT as usize, 2);
        let target: Target = Target::new((0..COUNT).map(each).collect::<Vec<_>>());
        let mut first = server.write(data.into(), target);
        let data = filled(&server, LEN, 2);
        let second = server.write(data.into(), Target::new(large.descriptors()));
        world.finish(second).unwrap();
        // 32 requests among 4,000; a bound on how far the first may have come in the meantime.
        assert!(
            first.try_take().is_none(),
            "{fabric:?}: the first went before"
        );
        let stats = server.stats();
        assert!(
            fabric == Fabric::Iwarp || stats.doorbells < 100,
            "{stats:?}"
        );
        world.finish(first).unwrap();
    }
}
