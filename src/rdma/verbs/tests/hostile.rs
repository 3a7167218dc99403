//! Peers that invalidate what nobody asked them to.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::end::{End, check};
use super::world::{PATIENCE, World, soft_roce};
use crate::rdma::{Close, CompletionStatus, Event, Provider, RemoteAccess, SendRequest};

/// Its own keys, again and again and at the moment at which the memory is taken back; those of other connections; and keys
/// of nothing. It loses its connection at most: the kernel lives, and so do the other connections and what they expose.
#[test]
fn invalidations_that_nobody_asked_for_hurt_nobody() {
    match World::new() {
        Some(world) if soft_roce() => invalidate_unasked(world, 24),
        // soft-iWARP invalidates whatever is registered for the connection, and may leave it half-way.
        _ => eprintln!("not run: this is no soft-RoCE"),
    }
}

/// The same with windows: why soft-RoCE's are not used by default. To be run by hand, to see whether a kernel has the fault.
#[test]
#[ignore = "crashes the kernel, if it is like Linux 6.12"]
fn invalidations_that_nobody_asked_for_crash_soft_roce_with_windows() {
    if soft_roce() {
        World::with_and_without_windows()
            .skip(1)
            .for_each(|world| invalidate_unasked(world, 24));
    }
}

fn invalidate_unasked(mut world: World, rounds: u8) {
    let (other, other_server) = world.connect();
    let exposed = other.expose(&mut world, RemoteAccess::Write, 1);
    for round in 0..rounds {
        let (client, server) = world.connect();
        let window = client.expose(&mut world, RemoteAccess::Write, round);
        let key = match round % 4 {
            0 => exposed.key,
            1 => window.key ^ 0x5500,
            _ => window.key,
        };
        let mut chain: VecDeque<SendRequest> = (0..4)
            .map(|cookie| SendRequest {
                cookie,
                signalled: true,
                operation: server.send_invalidate(key),
            })
            .collect();
        let posted = world.server.verbs.post_send(server.conn, &mut chain);
        drop(chain);
        if posted.is_err() {
            // The connection has ended on the way.
            world.close(&server, Close::Abort);
        }
        // Before, while and after they arrive.
        let pause = Instant::now() + Duration::from_micros(u64::from(round) * 40);
        while Instant::now() < pause {
            std::hint::spin_loop();
        }
        // A bound window stays as it is until its connection's end.
        if let Some(pin) = client.close_window(&mut world, window.id) {
            let mut buf = pin.unpin().expect("the only pin");
            check(&buf[..2000], round);
            buf.fill(0);
        }
        if !ends(&mut world, &client, round) {
            world.close(&client, Close::Abort);
            world.disconnected(&client);
        }
        world.disconnected(&server);
        world.client.events.clear();
        world.server.events.clear();
        world.balanced(&client);
        world.balanced(&server);
    }
    let chain = vec![
        other_server.write(1000, 7, &exposed, 0),
        other_server.send(10, 8),
    ];
    assert_eq!(
        world.execute(&other_server, chain),
        CompletionStatus::Success
    );
    check(&world.received(&other).0, 8);
    world.end((other, other_server));
}

/// Whether the connection ends; else all four messages arrive.
fn ends(world: &mut World, end: &End, round: u8) -> bool {
    let limit = Instant::now() + PATIENCE;
    let mut messages = 0;
    loop {
        world.client.poll();
        world.server.poll();
        let next = world.client.take(&mut |event| match event {
            Event::Received { conn, .. } if *conn == end.conn => Some(false),
            Event::Disconnected { conn, .. } if *conn == end.conn => Some(true),
            _ => None,
        });
        match next {
            Some((true, _)) => return true,
            Some((false, _)) => messages += 1,
            None => assert!(
                Instant::now() < limit,
                "round {round}: {messages} messages, and no end"
            ),
        }
        if messages == 4 {
            return false;
        }
    }
}
