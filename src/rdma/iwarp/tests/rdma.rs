//! RDMA Writes and Reads, windows, invalidation.

use super::world::*;
use crate::rdma::iwarp::IwarpConfig;
use crate::rdma::{
    CompletionStatus, IoBuf, IoPin, LossReason, Operation, Pieces, Provider, RdmaError,
    RdmaOperation, RemoteAccess, RemoteAddress, Window,
};

/// Bytes around an exposed range that must stay as they are.
const GUARD: usize = 64;

/// A buffer of guards around `len` bytes, of which only those are exposed.
fn guarded(len: usize) -> (IoPin, IoPin) {
    let mut whole = buffer(len + 2 * GUARD);
    whole.fill(0xEE);
    let whole = whole.pin();
    let inner = whole.slice(GUARD..GUARD + len);
    (whole, inner)
}

/// Takes the buffer back and checks its guards.
fn unguard(whole: IoPin, inner: IoPin) -> Vec<u8> {
    drop(inner);
    let whole: IoBuf = whole.unpin().unwrap();
    let len = whole.len() - 2 * GUARD;
    assert!(whole[..GUARD].iter().all(|b| *b == 0xEE), "front guard");
    assert!(
        whole[GUARD + len..].iter().all(|b| *b == 0xEE),
        "back guard"
    );
    whole[GUARD..GUARD + len].to_vec()
}

fn at(window: &Window, offset: u64) -> RemoteAddress {
    RemoteAddress {
        address: window.address + offset,
        key: window.key,
    }
}

fn write(bytes: &[u8], to: RemoteAddress) -> Operation {
    Operation::Write {
        from: Pieces::one(filled(bytes)),
        to,
    }
}

fn invalidating(bytes: &[u8], window: &Window) -> Operation {
    Operation::Send {
        message: Pieces::one(filled(bytes)),
        invalidate: Some(window.key),
        solicited: false,
    }
}

/// A world in which the server may send, and a window of the client's.
fn exposed(config: IwarpConfig, len: usize, access: RemoteAccess) -> (World, IoPin, Window) {
    let mut world = World::with(config.clone(), config);
    let (whole, inner) = guarded(len);
    let c = world.c;
    let window = world.client.expose(c, inner, access);
    let (_, status) = world.client_completed();
    assert_eq!(status, CompletionStatus::Success);
    world.client.post(c, vec![send(b"request")]);
    world.server_received();
    world.client_completed();
    (world, whole, window)
}

#[test]
fn write_then_send_with_invalidate() {
    let len = 300_000;
    for crc in [true, false] {
        let config = IwarpConfig {
            crc,
            ..IwarpConfig::default()
        };
        let (mut world, whole, window) = exposed(config, len, RemoteAccess::Write);
        let (c, s) = (world.c, world.s);
        assert!(world.client.provider.close_window(c, window.id).is_none());
        let data = pattern(5, len);
        world.server.post(
            s,
            vec![
                write(&data[..100_000], at(&window, 0)),
                write(&data[100_000..], at(&window, 100_000)),
                invalidating(b"done", &window),
            ],
        );
        let (message, invalidated) = world.client_received();
        assert_eq!(
            (&message[..], invalidated),
            (&b"done"[..], Some(window.key))
        );
        let inner = world.client.provider.close_window(c, window.id).unwrap();
        assert_eq!(unguard(whole, inner), data);
        for _ in 0..3 {
            assert_eq!(world.server_completed().1, CompletionStatus::Success);
        }
    }
}

#[test]
fn reads_fetch_exactly_what_was_asked_for() {
    let len = 1 << 20;
    let (mut world, whole, window) = exposed(IwarpConfig::default(), 0, RemoteAccess::Read);
    drop((whole, window));
    let (c, s) = (world.c, world.s);
    let data = pattern(9, len);
    let mut source = buffer(len);
    source.copy_from_slice(&data);
    let window = world.client.expose(c, source.pin(), RemoteAccess::Read);
    world.client_completed();
    let mut sinks = Vec::new();
    let mut operations = Vec::new();
    // More than may be in flight, of all sizes, and one of nothing.
    for i in 0..40u64 {
        let size = if i == 7 {
            0
        } else {
            1 + (i as usize * 26_111) % 260_000
        };
        let (whole, inner) = guarded(size);
        operations.push(Operation::Read {
            into: inner,
            from: at(&window, i * 1000),
        });
        sinks.push((whole, i as usize * 1000, size));
    }
    operations.push(send(b"after the reads"));
    world.server.post(s, operations);
    for (whole, start, size) in sinks {
        let (request, status) = world.server_completed();
        assert_eq!(status, CompletionStatus::Success);
        let Operation::Read { into, .. } = request.operation else {
            panic!("{request:?}");
        };
        assert_eq!(unguard(whole, into), &data[start..start + size]);
    }
    assert_eq!(&world.client_received().0[..], b"after the reads");
    world
        .client
        .post(c, vec![Operation::Invalidate { window: window.id }]);
    assert_eq!(world.client_completed().1, CompletionStatus::Success);
    assert!(world.client.provider.close_window(c, window.id).is_some());
}

/// What a request of the server's to the client's window of 1000 bytes leads to.
fn violation(access: RemoteAccess, make: impl Fn(&Window) -> Operation) -> (u8, u8, u8) {
    let (mut world, whole, window) = exposed(IwarpConfig::default(), 1000, access);
    let (c, s) = (world.c, world.s);
    world.server.post(s, vec![make(&window)]);
    let reason = world.wait("the client's end", |w| w.client.disconnected(c));
    let LossReason::Failed(RdmaError::FabricViolation {
        layer,
        error_type,
        code,
    }) = reason
    else {
        panic!("{reason:?}");
    };
    let reason = world.wait("the server's end", |w| w.server.disconnected(s));
    let LossReason::Failed(RdmaError::Terminated {
        layer: l,
        error_type: t,
        code: n,
        operation,
    }) = reason
    else {
        panic!("{reason:?}");
    };
    assert_eq!((l, t, n), (layer, error_type, code), "the peer was told");
    let (request, status) = world.server.completed(s).unwrap();
    match request.operation {
        Operation::Write { .. } => assert_eq!(operation, Some(RdmaOperation::Write)),
        Operation::Read { .. } => {
            assert_eq!(operation, Some(RdmaOperation::Read));
            assert_eq!(status, CompletionStatus::RemoteAccess);
        }
        _ => {}
    }
    let whole = whole.unpin().unwrap();
    assert!(whole.iter().all(|b| *b == 0xEE), "nothing was touched");
    (layer, error_type, code)
}

#[test]
fn d05_writes_outside_of_the_window() {
    use RemoteAccess::{Read, Write};
    assert_eq!(violation(Write, |w| write(&[1; 1001], at(w, 0))), (1, 1, 1));
    assert_eq!(violation(Write, |w| write(&[1; 2], at(w, 999))), (1, 1, 1));
    assert_eq!(violation(Write, |w| write(&[1], at(w, 1000))), (1, 1, 1));
    assert_eq!(
        violation(Write, |w| write(&[1; 2], at(w, u64::MAX))),
        (1, 1, 3)
    );
    assert_eq!(violation(Read, |w| write(&[1], at(w, 0))), (1, 1, 0));
    let other_tag = |w: &Window| RemoteAddress {
        address: 0,
        key: w.key ^ 0x100,
    };
    assert_eq!(violation(Write, |w| write(&[1], other_tag(w))), (1, 1, 0));
}

#[test]
fn r05_reads_outside_of_the_window() {
    use RemoteAccess::{Read, Write};
    let read = |len: usize, from: RemoteAddress| Operation::Read {
        into: buffer(len).pin(),
        from,
    };
    assert_eq!(violation(Read, |w| read(1001, at(w, 0))), (0, 1, 1));
    assert_eq!(violation(Read, |w| read(2, at(w, 999))), (0, 1, 1));
    assert_eq!(violation(Read, |w| read(2, at(w, u64::MAX))), (0, 1, 4));
    assert_eq!(violation(Write, |w| read(1, at(w, 0))), (0, 1, 2));
    let other_tag = |w: &Window| RemoteAddress {
        address: 0,
        key: w.key ^ 0x100,
    };
    assert_eq!(violation(Read, |w| read(1, other_tag(w))), (0, 1, 0));
}

#[test]
fn r08_only_valid_tags_can_be_invalidated() {
    assert_eq!(
        violation(RemoteAccess::Write, |w| Operation::Send {
            message: Pieces::one(filled(b"x")),
            invalidate: Some(w.key ^ 1),
            solicited: true,
        }),
        (0, 1, 9)
    );
}

#[test]
fn a_window_that_is_not_bound_or_not_any_more_is_closed() {
    for invalidate in [false, true] {
        let (mut world, whole, _) = exposed(IwarpConfig::default(), 0, RemoteAccess::Write);
        drop(whole);
        let (c, s) = (world.c, world.s);
        let (whole, inner) = guarded(100);
        let window = world
            .client
            .provider
            .open_window(c, inner, RemoteAccess::Write, &mut None)
            .unwrap();
        if invalidate {
            world.client.post(
                c,
                vec![
                    Operation::Bind { window: window.id },
                    Operation::Invalidate { window: window.id },
                ],
            );
            assert_eq!(world.client_completed().1, CompletionStatus::Success);
            assert_eq!(world.client_completed().1, CompletionStatus::Success);
        }
        world.server.post(s, vec![write(&[1; 4], at(&window, 0))]);
        let reason = world.wait("the client's end", |w| w.client.disconnected(c));
        let expected = RdmaError::FabricViolation {
            layer: 1,
            error_type: 1,
            code: 0,
        };
        assert_eq!(reason, LossReason::Failed(expected));
        let whole = whole.unpin().unwrap();
        assert!(whole.iter().all(|b| *b == 0xEE));
    }
}

#[test]
fn a_tag_is_worth_nothing_on_another_connection() {
    let (mut world, whole, window) = exposed(IwarpConfig::default(), 100, RemoteAccess::Write);
    let (mut other, other_whole, _) = exposed(IwarpConfig::default(), 100, RemoteAccess::Write);
    let (c, s) = (other.c, other.s);
    other.server.post(s, vec![write(&[1; 4], at(&window, 0))]);
    let reason = other.wait("the end", |w| w.client.disconnected(c));
    assert!(matches!(
        reason,
        LossReason::Failed(RdmaError::FabricViolation {
            layer: 1,
            error_type: 1,
            code: 0
        })
    ));
    drop(other_whole);
    let s = world.s;
    world.server.post(s, vec![invalidating(b"ok", &window)]);
    assert_eq!(world.client_received().1, Some(window.key));
    drop(whole);
}

#[test]
fn a_bind_that_fails_says_so() {
    let mut world = World::new();
    let c = world.c;
    let window = world
        .client
        .provider
        .open_window(c, buffer(10).pin(), RemoteAccess::Read, &mut None)
        .unwrap();
    world.client.post(
        c,
        vec![
            Operation::Bind { window: window.id },
            Operation::Bind { window: window.id },
        ],
    );
    assert_eq!(world.client_completed().1, CompletionStatus::Success);
    assert_eq!(world.client_completed().1, CompletionStatus::Bind);
}
