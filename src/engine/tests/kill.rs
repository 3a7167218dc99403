//! Connections that die at any moment in the middle of transfers: nothing is lost to the process.

use super::*;

const RUNS: u64 = 200;
const TRANSFERS: usize = 32;
const LEN: usize = 20_000;
/// Small, so that there are many moments to die at.
const CHUNK: usize = 2048;

/// How the connection ends.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// The network between the hosts.
    Cut,
    /// The peer says nothing any more; its keepalive timer finds out.
    Silence,
    /// One side aborts.
    Abort,
}

/// Runs of 32 transfers, reads and writes, with exposures of both kinds; at a random step the connection dies. Every
/// operation ends, all memory comes back, and the reactors have no connection left.
#[test]
fn connections_killed_amid_transfers_leave_nothing_behind() {
    for device in [DeviceOptions::rxe(), DeviceOptions::siw()] {
        for run in 0..RUNS / 2 {
            let death = [Death::Cut, Death::Silence, Death::Abort][run as usize % 3];
            kill(run, device.clone(), death);
        }
    }
}

fn kill(seed: u64, device: DeviceOptions, death: Death) {
    let options = ChannelOptions {
        max_rdma_chunk: CHUNK,
        ..ChannelOptions::default()
    };
    let world = World::new(seed, device, options.clone());
    let (client, server) = world.connect(options);
    let mut exposed = Vec::new();
    let mut writes = Vec::new();
    let mut reads = Vec::new();
    for i in 0..TRANSFERS {
        let memory = filled(&client, LEN, i as u8);
        let to_client = i.is_multiple_of(2);
        let access = if to_client {
            RemoteAccess::Write
        } else {
            RemoteAccess::Read
        };
        let exposure = client.expose(memory, access).unwrap();
        let target = Target::new(exposure.descriptors());
        exposed.push(exposure);
        if to_client {
            let token = SteeringTag(target.descriptors[0].token);
            let token = server.remote_invalidation().then_some(token);
            let data = filled(&server, LEN, i as u8).into();
            writes.push(server.write_then_send(data, target, (&[i as u8; 1]).into(), token));
        } else {
            reads.push(server.read(filled(&server, LEN, 0), 0..LEN, target));
        }
    }
    // Somewhere between the first request and the end of the last.
    let steps = seed * 7919 % 400;
    for _ in 0..steps {
        world.server.poll();
        world.client.poll();
        world.network.step();
    }
    match death {
        Death::Cut => world.network.cut(CLIENT, SERVER),
        Death::Silence => world.network.silence(CLIENT),
        Death::Abort if seed.is_multiple_of(2) => client.close(Close::Abort),
        Death::Abort => server.close(Close::Abort),
    }
    world.closed(&server);
    if !matches!(death, Death::Silence) {
        world.closed(&client);
    } else {
        // A silent host hears nothing either: its own timers end the connection.
        client.close(Close::Abort);
        world.closed(&client);
    }
    for op in writes {
        // Whether it was done in time depends on the moment; that it ends does not.
        let _ = world.finish(op);
    }
    for op in reads {
        let _ = world.finish(op);
    }
    for exposure in exposed {
        assert_eq!(world.finish(exposure.reclaim()).unwrap().len(), LEN);
    }
    drop((client, server));
    world.until(Duration::from_secs(1), || None::<()>);
    assert_eq!(world.client.connections() + world.server.connections(), 0);
    assert_eq!(world.network.connection_ends(), 0, "{death:?}, seed {seed}");
}
