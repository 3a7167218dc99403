//! The end of connections and of providers, in any state.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use super::end::{EXPOSED, End, check};
use super::world::{PATIENCE, Side, Who, World, soft_roce};
use crate::rdma::{
    Close, CompletionStatus, ConnId, ConnectParams, Event, LossReason, PostError, Provider,
    RdmaError, RemoteAccess, ResolveOptions, SendRequest,
};

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

/// What the peer sends before it hears of our end is acknowledged: Linux' SMB client (seen with 6.12) waits for ever for a
/// Send that was not. On iWARP the stream ends with the connection.
#[test]
fn what_the_peer_has_under_way_at_an_end_in_order_is_received() {
    let Some(mut world) = World::new().filter(|_| soft_roce()) else {
        return;
    };
    let (client, server) = world.connect();
    world.close(&server, Close::Drain(Instant::now() + PATIENCE));
    world.server.poll();
    let mut chain = VecDeque::from([SendRequest {
        cookie: 0,
        signalled: true,
        operation: client.send(1000, 7),
    }]);
    let posted = world.client.verbs.post_send(client.conn, &mut chain);
    assert_eq!(posted, Ok(()));
    // The device works by itself; the client has not heard of the end yet.
    thread::sleep(Duration::from_millis(100));
    let conn = client.conn;
    let (status, _) = world.wait(Who::Client, |event| match event {
        Event::Completed {
            conn: c, status, ..
        } if *c == conn => Some(*status),
        _ => None,
    });
    assert_eq!(status, CompletionStatus::Success);
    assert_eq!(world.disconnected(&client), LossReason::Peer);
    assert_eq!(world.disconnected(&server), LossReason::Local);
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

/// By themselves, and not because the queue pair is destroyed under them when its time is over: no time goes by here.
#[test]
fn reads_under_way_come_back_when_their_connection_is_closed() {
    let Some(mut world) = World::new() else {
        return;
    };
    for late in [false, true, false, true] {
        let (client, server) = world.connect();
        let window = server.expose(&mut world, RemoteAccess::Read, 1);
        let read = || SendRequest {
            cookie: 0,
            signalled: true,
            operation: client.read(EXPOSED, &window),
        };
        let mut chain: VecDeque<SendRequest> = (0..4).map(|_| read()).collect();
        let verbs = &mut world.client.verbs;
        verbs.post_send(client.conn, &mut chain).unwrap();
        let now = Instant::now();
        // At once, or when there is no time left for what is posted.
        let how = if late {
            Close::Drain(now)
        } else {
            Close::Abort
        };
        verbs.close(client.conn, how, now);
        world.client.disconnected_without_time();
        assert_eq!(world.disconnected(&client), LossReason::Local);
        world.disconnected(&server);
        world.client.events.clear();
        world.balanced(&client);
        world.balanced(&server);
        assert_eq!(client.bulk.free(), client.bulk.count());
    }
}

/// The device may know that the connection is over while nobody has asked it. What is posted then comes back without any
/// time going by, though the device may never give it back.
#[test]
fn what_is_posted_after_the_peer_has_left_comes_back() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    world.close(&server, Close::Abort);
    let (mut reason, limit) = (None, Instant::now() + PATIENCE);
    while reason.is_none() {
        world.server.poll();
        reason = world.server.take(&mut |event| match event {
            Event::Disconnected { reason, .. } => Some(reason.clone()),
            _ => None,
        });
        assert!(Instant::now() < limit);
    }
    // The way of its leaving to the client's device.
    thread::sleep(Duration::from_millis(200));
    let verbs = &mut world.client.verbs;
    let mut receives = (0..8).map(|_| client.messages.take().unwrap()).collect();
    let _ = verbs.post_receive(client.conn, &mut receives);
    let mut sends = (0..4)
        .map(|cookie| SendRequest {
            cookie,
            signalled: true,
            operation: client.send(100, 1),
        })
        .collect();
    let _ = verbs.post_send(client.conn, &mut sends);
    drop((receives, sends));
    world.client.disconnected_without_time();
    world.client.events.clear();
    world.server.events.clear();
    world.balanced(&client);
    world.balanced(&server);
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

/// On iWARP, the connection manager's calls on an id whose connect is not answered sleep, for 10 s on soft-iWARP: none
/// of them may be made, whichever way the connection goes.
#[test]
fn giving_up_an_unanswered_connect_sleeps_nowhere() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (params, now) = (ConnectParams::default(), Instant::now);
    let started = now();
    for drop_provider in [false, true] {
        let conn = world.resolve();
        let client = End::new(Who::Client, &mut world, conn);
        world.client.verbs.connect(conn, &params, now()).unwrap();
        let unanswered = world.incoming();
        if drop_provider {
            world.client = Side::new();
        } else {
            world.close(&client, Close::Abort);
            assert_eq!(world.disconnected(&client), LossReason::Local);
            world.balanced(&client);
        }
        // Others go on while nobody answers.
        let others = world.connect();
        world.end(others);
        assert!(started.elapsed() < Duration::from_secs(8));
        drop(unanswered);
    }
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
            thread::sleep(Duration::from_millis(5));
        }
    }
}
