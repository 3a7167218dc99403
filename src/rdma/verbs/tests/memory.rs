//! Memory that the peer may use: what it can do with it, and that it can do nothing else.

use std::collections::VecDeque;

use super::end::{EXPOSED, End, check, pattern};
use super::world::{Who, World};
use crate::rdma::{
    CompletionStatus, Event, Exposure, Fabric, IoBytes, LossReason, Operation, Provider, RdmaError,
    RdmaOperation, RemoteAccess, SendRequest, Window, WindowId,
};

/// Ends the peer's access by our own doing.
fn revoke(world: &mut World, end: &End, window: &Window) {
    if window.needs_bind {
        assert!(end.close_window(world, window.id).is_none(), "it is bound");
        let invalidate = Operation::Invalidate { window: window.id };
        assert_eq!(
            world.execute(end, vec![invalidate]),
            CompletionStatus::Success
        );
    }
}

#[test]
fn rdma_writes_and_reads() {
    World::with_and_without_windows().for_each(write_and_read);
}

fn write_and_read(mut world: World) {
    let (client, server) = world.connect();
    let window = client.expose(&mut world, RemoteAccess::Write, 1);
    // Writes and the message that tells of them in one chain.
    let chain = vec![
        server.write(20_000, 2, &window, 0),
        server.write(20_000, 3, &window, 20_000),
        server.send(10, 4),
    ];
    assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
    world.received(&client);
    revoke(&mut world, &client, &window);
    let pin = client.close_window(&mut world, window.id).unwrap();
    let buf = pin.unpin().unwrap();
    check(&buf[..100], 1);
    check(&buf[100..20_100], 2);
    check(&buf[20_100..40_100], 3);
    drop(buf);

    let window = client.expose(&mut world, RemoteAccess::Read, 5);
    let read = server.read(EXPOSED, &window);
    let mut chain = VecDeque::from([SendRequest {
        cookie: 7,
        signalled: true,
        operation: read,
    }]);
    world
        .server
        .verbs
        .post_send(server.conn, &mut chain)
        .unwrap();
    let (status, event) = world.wait(Who::Server, |event| match event {
        Event::Completed { status, .. } => Some(*status),
        _ => None,
    });
    assert_eq!(status, CompletionStatus::Success);
    let Event::Completed { request, .. } = event else {
        unreachable!()
    };
    let Operation::Read { into, .. } = request.operation else {
        unreachable!()
    };
    let buf = into.unpin().unwrap();
    assert!(
        buf.iter()
            .enumerate()
            .all(|(i, b)| *b == pattern(i + 100, 5))
    );
    drop(buf);
    revoke(&mut world, &client, &window);
    assert!(client.close_window(&mut world, window.id).is_some());
    assert_eq!((client.bulk.free(), server.bulk.free()), (4, 4));
    world.end((client, server));
}

/// Done means that the buffers are reusable: what is put into them then does not reach the peer. Telling where the wire
/// takes its time, as in the guest's `netem.sh`.
#[test]
fn memory_of_a_finished_write_is_used_again_at_once() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    for _ in 0..10 {
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        // Only the last is signalled.
        let chain = vec![
            server.write(20_000, 2, &window, 0),
            server.write(20_000, 3, &window, 20_000),
        ];
        assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
        let again: Vec<IoBytes> = (0..4).map(|_| server.bytes(20_000, 9)).collect();
        let message = vec![server.send(10, 4)];
        assert_eq!(world.execute(&server, message), CompletionStatus::Success);
        world.received(&client);
        drop(again);
        revoke(&mut world, &client, &window);
        let pin = client.close_window(&mut world, window.id).unwrap();
        let buf = pin.unpin().unwrap();
        check(&buf[100..20_100], 2);
        check(&buf[20_100..40_100], 3);
    }
    world.end((client, server));
}

#[test]
fn the_peer_invalidates_a_window() {
    for mut world in World::with_and_without_windows() {
        let (client, server) = world.connect();
        if client.capabilities.exposure == Exposure::Window {
            invalidate(world, client, server);
        } else {
            assert!(!client.capabilities.remote_invalidation());
            world.end((client, server));
        }
    }
}

fn invalidate(mut world: World, client: End, server: End) {
    assert!(client.capabilities.remote_invalidation());
    // Again and again on the same windows, whose keys change.
    let mut keys = Vec::new();
    for round in 0..4u8 {
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        assert!(!keys.contains(&window.key));
        keys.push(window.key);
        let chain = vec![
            server.write(1000, round, &window, 0),
            server.send_invalidate(window.key),
        ];
        assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
        let (_, invalidated) = world.received(&client);
        assert_eq!(invalidated, Some(window.key));
        // Asked for again: a request in its place in the queue, which must not reach the device as such.
        let again = Operation::Invalidate { window: window.id };
        assert_eq!(
            world.execute(&client, vec![again]),
            CompletionStatus::Success
        );
        let buf = client
            .close_window(&mut world, window.id)
            .unwrap()
            .unpin()
            .unwrap();
        check(&buf[100..1100], round);
        assert!(client.close_window(&mut world, window.id).is_none());
    }
    // The old key opens nothing any more, and its use ends the connection.
    let gone = Window {
        id: WindowId {
            index: 0,
            generation: 0,
        },
        key: keys[3],
        address: 0,
        len: 0,
        needs_bind: true,
    };
    let status = world.execute(&server, vec![server.write(64, 0, &gone, 0)]);
    assert_eq!(status, CompletionStatus::RemoteAccess);
    let ended = world.disconnected(&server);
    assert_eq!(
        ended,
        LossReason::Failed(RdmaError::Completion {
            operation: RdmaOperation::Write,
            status: CompletionStatus::RemoteAccess
        })
    );
    world.disconnected(&client);
    world.balanced(&client);
    world.balanced(&server);
}

#[test]
fn access_outside_of_an_exposure_ends_the_connection() {
    World::with_and_without_windows().for_each(go_outside);
}

fn go_outside(mut world: World) {
    for case in ["beyond", "before", "direction", "key"] {
        let (client, server) = world.connect();
        if case == "direction" && client.capabilities.fabric == Fabric::Iwarp {
            // soft-iWARP asks for no right at all when it answers a read.
            world.end((client, server));
            continue;
        }
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        let operation = match case {
            "beyond" => server.write(64, 9, &window, EXPOSED as u64 - 63),
            "before" => server.write(64, 9, &window, u64::MAX),
            "direction" => server.read(64, &window),
            _ => {
                let mut other = window;
                other.key ^= 0xff00;
                server.write(64, 9, &other, 0)
            }
        };
        let operation_kind = match operation {
            Operation::Read { .. } => RdmaOperation::Read,
            _ => RdmaOperation::Write,
        };
        let mut chain = VecDeque::from([SendRequest {
            cookie: 0,
            signalled: true,
            operation,
        }]);
        world
            .server
            .verbs
            .post_send(server.conn, &mut chain)
            .unwrap();
        let reason = world.disconnected(&server);
        // iWARP has sent the Write before it can be refused, and soft-iWARP tells nothing more.
        if server.capabilities.fabric != Fabric::Iwarp {
            assert_eq!(
                reason,
                LossReason::Failed(RdmaError::Completion {
                    operation: operation_kind,
                    status: CompletionStatus::RemoteAccess
                }),
                "{case}"
            );
        }
        world.disconnected(&client);
        world.balanced(&client);
        world.server.events.clear();
        // What was not to be touched was not, and the memory is back.
        let buf = client.bulk.take().unwrap();
        drop(buf);
        assert_eq!((client.bulk.free(), server.bulk.free()), (4, 4), "{case}");
    }
}
