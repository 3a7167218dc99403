//! Messages, chains of requests, and the room that queues have for them.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::end::check;
use super::world::{PATIENCE, Who, World, addresses};
use crate::rdma::{
    Armed, CompletionStatus, Event, Fabric, IoBuf, IoBytes, Operation, Pieces, PostError, Provider,
    RemoteAccess, RemoteAddress, SendRequest, Slab, SlabOptions,
};

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

/// The first of a chain that the device refuses keeps those behind it from being posted, and nothing else.
#[test]
fn a_chain_is_taken_up_to_the_first_that_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let chain: Vec<_> = [100, 200, 2048, 300, 400]
        .map(|len| client.send(len, 3))
        .into();
    let mut chain: VecDeque<SendRequest> = (chain.into_iter().zip(0..))
        .map(|(operation, cookie)| SendRequest {
            cookie,
            signalled: true,
            operation,
        })
        .collect();
    // More is sent inline than the queue pair was made for.
    let set_inline = |world: &mut World, limit: usize| {
        let conn = world.client.verbs.conn_mut(client.conn).unwrap();
        std::mem::replace(&mut conn.queue_pair.as_mut().unwrap().inline, limit)
    };
    let real = set_inline(&mut world, 1 << 20);
    let posted = world.client.verbs.post_send(client.conn, &mut chain);
    set_inline(&mut world, real);
    assert!(matches!(posted, Err(PostError::Failed(_))), "{posted:?}");
    let left: Vec<u64> = chain.iter().map(|request| request.cookie).collect();
    let refused = left[0];
    // What fits inline on this device is taken; the rest is still ours, in order.
    assert_eq!(left, (refused..5).collect::<Vec<_>>());
    assert!(refused <= 2);
    world
        .client
        .verbs
        .post_send(client.conn, &mut chain)
        .unwrap();
    for (cookie, len) in [100, 200, 2048, 300, 400].into_iter().enumerate() {
        let (buffer, _) = world.received(&server);
        assert_eq!(buffer.len(), len);
        check(&buffer, 3);
        let (done, _) = world.wait(Who::Client, |event| match event {
            Event::Completed {
                request, status, ..
            } => Some((request.cookie, *status)),
            _ => None,
        });
        assert_eq!(done, (cookie as u64, CompletionStatus::Success));
    }
    world.end((client, server));
}

/// Room in the queue comes back with a signalled request only: one that was to be signalled and is refused leaves that to
/// the next.
#[test]
fn a_refused_request_leaves_no_queue_without_completions() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let window = server.expose(&mut world, RemoteAccess::Write, 1);
    let (small, large) = (client.bytes(32, 2), client.bytes(2048, 3));
    let to = RemoteAddress {
        address: window.address,
        key: window.key,
    };
    let writes = |bytes: &IoBytes, count: usize| -> VecDeque<SendRequest> {
        let write = |_| SendRequest {
            cookie: 0,
            signalled: false,
            operation: Operation::Write {
                from: Pieces::one(bytes.clone()),
                to,
            },
        };
        (0..count).map(write).collect()
    };
    let post = |world: &mut World, mut chain: VecDeque<SendRequest>| {
        let posted = world.client.verbs.post_send(client.conn, &mut chain);
        posted.map(|()| assert!(chain.is_empty()))
    };
    // Half of the queue, but for one, and again; in between one that the device refuses: it is more than goes inline.
    for _ in 0..2 {
        post(&mut world, writes(&small, 31)).unwrap();
        let conn = world.client.verbs.conn_mut(client.conn).unwrap();
        let queue_pair = conn.queue_pair.as_mut().unwrap();
        let inline = std::mem::replace(&mut queue_pair.inline, 1 << 20);
        let refused = post(&mut world, writes(&large, 1));
        assert!(matches!(refused, Err(PostError::Failed(_))), "{refused:?}");
        let conn = world.client.verbs.conn_mut(client.conn).unwrap();
        conn.queue_pair.as_mut().unwrap().inline = inline;
    }
    post(&mut world, writes(&small, 2)).unwrap();
    drop((small, large));
    for _ in 0..64 {
        let (status, _) = world.wait(Who::Client, |event| match event {
            Event::Completed { status, .. } => Some(*status),
            _ => None,
        });
        assert_eq!(status, CompletionStatus::Success);
    }
    world.end((client, server));
}

/// On iWARP, an acceptor that is silent gets Writes without content: they change nothing, and take no place of ours.
#[test]
fn a_silent_acceptor_is_nudged_and_none_the_worse() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let nudging = |world: &mut World| {
        let conn = world.client.verbs.conn(client.conn).unwrap();
        conn.nudge.is_some()
    };
    let iwarp = client.capabilities.fabric == Fabric::Iwarp;
    assert_eq!(nudging(&mut world), iwarp);
    let end = Instant::now() + PATIENCE;
    while nudging(&mut world) {
        world.client.poll();
        world.server.poll();
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    let window = server.expose(&mut world, RemoteAccess::Write, 1);
    let bytes = client.bytes(32, 2);
    let to = RemoteAddress {
        address: window.address,
        key: window.key,
    };
    let mut chain: Vec<_> = (0..60)
        .map(|_| Operation::Write {
            from: Pieces::one(bytes.clone()),
            to,
        })
        .collect();
    chain.extend((0..4).map(|_| client.send(10, 3)));
    drop(bytes);
    assert_eq!(world.execute(&client, chain), CompletionStatus::Success);
    for _ in 0..4 {
        check(&world.received(&server).0, 3);
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
