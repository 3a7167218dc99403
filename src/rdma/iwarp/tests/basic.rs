//! Connecting, sending, closing.

use std::time::{Duration, Instant};

use super::world::*;
use crate::rdma::iwarp::IwarpConfig;
use crate::rdma::{
    Close, CompletionStatus, ConnectParams, Event, ListenOptions, LossReason, Pieces, Provider,
    RdmaError,
};

#[test]
fn private_data_and_depths_reach_both_ends() {
    let (mut client, mut server) = (
        Side::new(IwarpConfig::default()),
        Side::new(IwarpConfig::default()),
    );
    let (listener, address) = server.listen(&ListenOptions::default());
    let params = ConnectParams {
        private_data: b"hello".to_vec(),
        initiator_depth: 8,
        responder_resources: 4,
        ..ConnectParams::default()
    };
    let c = client.connect(address, 1, &params);
    let incoming = loop {
        client.poll();
        server.poll();
        if let Some(incoming) = server.incoming() {
            break incoming;
        }
    };
    assert_eq!(incoming.private_data(), b"hello");
    assert_eq!(incoming.peer().local, address);
    let params = ConnectParams {
        private_data: b"welcome".to_vec(),
        initiator_depth: 16,
        responder_resources: 6,
        ..ConnectParams::default()
    };
    let s = server.accept(incoming, 1, &params);
    let (data, ord, ird) = server.wait("established", |side| side.established(s));
    assert_eq!((&data[..], ord, ird), (&b"hello"[..], 4, 6));
    let (data, ord, ird) = client.wait("established", |side| side.established(c));
    assert_eq!((&data[..], ord, ird), (&b"welcome"[..], 6, 4));
    assert_eq!(client.provider.peer(c).unwrap().remote, address);
    server.provider.unlisten(listener);
    assert!(server.provider.listener_address(listener).is_none());
}

#[test]
fn messages_of_every_size_arrive_in_order() {
    for crc in [true, false] {
        let config = IwarpConfig {
            crc,
            ..IwarpConfig::default()
        };
        let mut world = World::with(config.clone(), config);
        let sizes = [
            0, 1, 2, 3, 4, 5, 20, 255, 256, 257, 1364, 2047, 2048, 4096, RECEIVE,
        ];
        let c = world.c;
        for size in sizes {
            world
                .client
                .post(c, vec![send(&pattern(size as u64, size))]);
        }
        for size in sizes {
            let (buffer, invalidated) = world.server_received();
            assert_eq!(&buffer[..], pattern(size as u64, size));
            assert_eq!(invalidated, None);
            let (_, status) = world.client_completed();
            assert_eq!(status, CompletionStatus::Success);
        }
        let s = world.s;
        world.server.post(s, vec![send(b"answer"), send(b"more")]);
        assert_eq!(&world.client_received().0[..], b"answer");
        assert_eq!(&world.client_received().0[..], b"more");
    }
}

#[test]
fn m09_a_responder_waits_for_the_first_fpdu() {
    let mut world = World::new();
    let s = world.s;
    world.server.post(s, vec![send(b"early")]);
    for _ in 0..100 {
        world.server.poll();
        world.client.poll();
    }
    assert!(world.server.completed(s).is_none());
    let c = world.c;
    assert!(world.client.received(c).is_none());
    world.client.post(c, vec![send(b"first")]);
    assert_eq!(&world.server_received().0[..], b"first");
    assert_eq!(&world.client_received().0[..], b"early");
}

#[test]
fn gathered_pieces_make_one_message() {
    let mut world = World::new();
    let parts = [
        pattern(1, 24),
        pattern(2, 3000),
        pattern(3, 1),
        pattern(4, 300),
    ];
    let mut message = Pieces::default();
    for part in &parts {
        message.push(filled(part)).unwrap();
    }
    let c = world.c;
    world.client.post(
        c,
        vec![crate::rdma::Operation::Send {
            message,
            invalidate: None,
            solicited: true,
        }],
    );
    assert_eq!(&world.server_received().0[..], parts.concat());
}

#[test]
fn a_drained_close_delivers_everything_and_ends_in_order() {
    let mut world = World::new();
    let (c, s) = (world.c, world.s);
    let operations = (0..20).map(|i| send(&pattern(i, 5000))).collect();
    world.client.post(c, operations);
    let now = Instant::now();
    world
        .client
        .provider
        .close(c, Close::Drain(now + Duration::from_secs(10)), now);
    let reason = world.wait("end at the server", |w| w.server.disconnected(s));
    assert_eq!(reason, LossReason::Peer);
    for i in 0..20 {
        assert_eq!(&world.server.received(s).unwrap().0[..], pattern(i, 5000));
    }
    let reason = world.wait("end at the client", |w| w.client.disconnected(c));
    assert_eq!(reason, LossReason::Local);
    // Everything posted came back, before the end.
    let flushed = |side: &Side| {
        let events = side.events.iter();
        events
            .filter(|event| matches!(event, Event::Flushed { .. }))
            .count()
    };
    assert_eq!(flushed(&world.client), 32);
    assert_eq!(flushed(&world.server), 12);
    assert!(now.elapsed() < Duration::from_secs(8), "no deadline needed");
}

#[test]
fn an_abort_flushes_and_the_peer_notices() {
    let mut world = World::new();
    let (c, s) = (world.c, world.s);
    world.server.post(s, vec![send(b"held back")]);
    world.server.provider.close(s, Close::Abort, Instant::now());
    let (_, status) = world.server_completed();
    assert_eq!(status, CompletionStatus::Flushed);
    assert_eq!(world.server.disconnected(s), Some(LossReason::Local));
    let reason = world.wait("end at the client", |w| w.client.disconnected(c));
    assert!(
        matches!(
            reason,
            LossReason::Peer | LossReason::Failed(RdmaError::ConnectionLost)
        ),
        "{reason:?}"
    );
}
