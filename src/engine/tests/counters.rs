//! What is counted, of one connection and of all.

use super::*;
use crate::transport::Stats;

#[test]
fn a_reactor_counts_its_connections_and_those_that_have_ended() {
    let world = World::roce();
    let mut ended = [Stats::default(), Stats::default()];
    for n in 1..=3u8 {
        let (client, server) = world.connect(ChannelOptions::default());
        for _ in 0..n {
            client.start_send((&[n; 3000]).into()).unwrap();
            world.recv(&server).unwrap().unwrap();
        }
        let data = filled(&server, 5000, n);
        let memory = filled(&client, 5000, 0);
        let exposed = client.expose(memory, RemoteAccess::Write).unwrap();
        let target = Target::new(exposed.descriptors());
        world.finish(server.write(data.into(), target)).unwrap();
        world.finish(exposed.reclaim()).unwrap();
        client.close(Close::Graceful(Duration::from_secs(5)));
        world.closed(&client);
        world.closed(&server);
        ended[0] += &client.stats();
        ended[1] += &server.stats();
    }
    assert_eq!([world.client.stats(), world.server.stats()], ended);
    let (client, server) = (world.client.stats(), world.server.stats());
    assert_eq!((client.messages_sent, server.messages_received), (6, 6));
    assert_eq!((client.bytes_sent, server.bytes_received), (18_000, 18_000));
    assert!(client.registrations >= 3 && client.remote_invalidations == 0);
    assert_eq!(
        (server.rdma_writes.count, server.bytes_rdma_written),
        (3, 15_000)
    );
    assert!(server.rdma_writes.nanoseconds > 0);
    assert!(server.receive_low_water > 0);
    // One that is there counts, too.
    let (client, _server) = world.connect(ChannelOptions::default());
    client.start_send(b"more".into()).unwrap();
    let more = world.client.stats();
    assert_eq!(more.messages_sent, 7);
}

/// Data, and the response that tells of it.
#[test]
fn a_placed_answer_takes_one_doorbell() {
    let world = World::roce();
    let (client, server) = world.connect(ChannelOptions::default());
    for len in [1, 5000, 1 << 20] {
        let memory = filled(&client, len, 0);
        let exposed = client.expose(memory, RemoteAccess::Write).unwrap();
        client.start_send(b"READ".into()).unwrap();
        world.recv(&server).unwrap().unwrap();
        let data = filled(&server, len, 1);
        let target = Target::new(exposed.descriptors());
        let before = server.stats().doorbells;
        let op = server.write_then_send(data.into(), target, b"done".into(), None);
        assert_eq!(server.stats().doorbells, before + 1, "{len} bytes");
        world.recv(&client).unwrap().unwrap();
        world.finish(op).unwrap();
        world.finish(exposed.reclaim()).unwrap();
    }
}

#[test]
fn what_waits_for_the_send_queue_or_for_credits_is_a_stall() {
    let options = ChannelOptions {
        send_depth: 4,
        ..ChannelOptions::default()
    };
    let world = World::roce();
    let (client, server) = world.connect(options.clone());
    client.start_send((&[1; 20_000]).into()).unwrap();
    world.recv(&server).unwrap().unwrap();
    let stats = client.stats();
    assert!(stats.stalls_send_queue > 0, "{stats:?}");
    assert_eq!(stats.stalls_send_credit.count, 0, "{stats:?}");
    // A server that grants two at a time.
    let mut few = ChannelOptions::default();
    few.protocol.receive_credit_max = 2;
    let world = World::new(1, DeviceOptions::rxe(), few);
    let (client, server) = world.connect(ChannelOptions::default());
    client.start_send((&[1; 20_000]).into()).unwrap();
    world.recv(&server).unwrap().unwrap();
    let stats = client.stats();
    assert_eq!(stats.stalls_send_queue, 0, "{stats:?}");
    assert!(stats.stalls_send_credit.count > 0, "{stats:?}");
    assert!(stats.stalls_send_credit.nanoseconds > 0, "{stats:?}");
}
