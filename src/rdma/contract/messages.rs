//! Promises about messages and queues.

use std::collections::VecDeque;

use super::Bed;
use super::ends::{CLIENT, Ends, Link, SERVER, SLOT, Setup, filled, pattern, say, send, slab};
use crate::rdma::{
    CompletionStatus, Event, MAX_PIECES, Operation, Pieces, PostError, QpOptions, RdmaError,
    RemoteAccess,
};

/// Messages of no bytes, of one, and of as many as a receive holds arrive as they were sent.
pub(super) fn every_size_arrives(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let sizes = [
        0, 1, 3, 4, 20, 63, 64, 65, 255, 1364, 1460, 4095, 4096, 4097, 8136, SLOT,
    ];
    for (n, size) in sizes.into_iter().enumerate() {
        let bytes = pattern(n as u64, size);
        let (from, to) = if n % 2 == 0 {
            (&link.client, &link.server)
        } else {
            (&link.server, &link.client)
        };
        ends.post(from, [say(&from.slab, &bytes)]);
        assert_eq!(ends.message(to).0, bytes, "{size} bytes");
        ends.completions(from, 1);
        ends.receives(to, 1);
    }
    // No pieces at all is a message too.
    ends.post(&link.client, [send(Pieces::default())]);
    assert_eq!(ends.message(&link.server).0, b"");
    ends.end(link);
}

/// The pieces of a gather list arrive in order as one message, empty ones included.
pub(super) fn gather_lists_arrive_as_one_message(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let sizes: [&[usize]; 5] = [
        &[1, 1],
        &[24, 0, 100],
        &[1000, 7, 3000, 29],
        &[0, 0, 5],
        &[8, 4088],
    ];
    let most = ends.capabilities(&link.client).max_gather;
    assert!((2..=MAX_PIECES).contains(&most));
    for sizes in sizes.into_iter().filter(|s| s.len() <= most) {
        let mut whole = Vec::new();
        let mut pieces = Pieces::default();
        for (n, size) in sizes.iter().enumerate() {
            let bytes = pattern(n as u64, *size);
            let piece = filled(&link.client.slab, &bytes).freeze();
            pieces.push(piece).unwrap();
            whole.extend(bytes);
        }
        ends.post(&link.client, [send(pieces)]);
        assert_eq!(ends.message(&link.server).0, whole, "{sizes:?}");
        ends.receives(&link.server, 1);
        // The pieces come back with the request, as they were.
        let (request, status) = ends.completion(&link.client);
        assert_eq!(status, CompletionStatus::Success);
        let Operation::Send { message, .. } = request.operation else {
            panic!("another request");
        };
        let back: Vec<u8> = message.iter().flat_map(|p| p.to_vec()).collect();
        assert_eq!(back, whole);
    }
    ends.end(link);
}

/// Chains in both directions at once: every message arrives once and in order.
pub(super) fn both_directions_keep_their_order(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    for round in 0..25u64 {
        for tip in [&link.client, &link.server] {
            let chain: Vec<Operation> = (0..8u64)
                .map(|n| {
                    let seed = round * 8 + n;
                    let len = 1 + (seed * 131) as usize % 2000;
                    say(&tip.slab, &pattern(seed, len))
                })
                .collect();
            ends.post(tip, chain);
        }
        for tip in [&link.server, &link.client] {
            for n in 0..8u64 {
                let seed = round * 8 + n;
                let len = 1 + (seed * 131) as usize % 2000;
                assert_eq!(ends.message(tip).0, pattern(seed, len));
            }
        }
        for tip in [&link.client, &link.server] {
            ends.completions(tip, 8);
            ends.receives(tip, 8);
        }
    }
    ends.end(link);
}

/// A message that comes right behind the connection is received, before or after `Established`.
pub(super) fn what_arrives_with_the_connection_is_received(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    for n in 0..8 {
        let (listener, address) = ends.listen();
        let (client, incoming) = ends.request(listener, address, &setup);
        let conn = ends.adopt(SERVER, incoming);
        let server = ends.prepare(SERVER, conn, &setup);
        ends.accept(&server, &setup.server);
        ends.established(&client);
        ends.post(&client, [say(&client.slab, &[n; 100])]);
        assert_eq!(ends.message(&server).0, [n; 100]);
        ends.established(&server);
        ends.end(Link { client, server });
        ends.provider(SERVER).unlisten(listener);
    }
}

/// Unsignalled requests come back, in order, with the next that is signalled at the latest.
pub(super) fn unsignalled_requests_come_back(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let chain = (0..8u8).map(|n| (n == 7, say(&link.client.slab, &[n])));
    let (posted, _) = ends.try_post(&link.client, chain.collect::<Vec<_>>());
    assert_eq!(posted, Ok(()));
    for n in 0..8u8 {
        assert_eq!(ends.message(&link.server).0, [n]);
    }
    // In order: the ledger looks.
    ends.completions(&link.client, 8);
    // Those that nobody follows come back with the end.
    ends.receives(&link.server, 8);
    let chain = (0..3u8).map(|n| (false, say(&link.client.slab, &[n])));
    let (posted, _) = ends.try_post(&link.client, chain.collect::<Vec<_>>());
    assert_eq!(posted, Ok(()));
    for n in 0..3u8 {
        assert_eq!(ends.message(&link.server).0, [n]);
    }
    ends.end(link);
}

/// A chain that does not fit is taken in part, from the front, and the rest can be posted later.
pub(super) fn a_full_queue_takes_what_fits(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup {
        qp: QpOptions {
            send_depth: 4,
            receive_depth: 16,
            ..QpOptions::default()
        },
        ..Setup::default()
    };
    let link = ends.link(&setup);
    let domain = ends.provider(SERVER).domain(link.server.conn).unwrap();
    let pages = slab(&domain, 4096, 1);
    let memory = pages.take().unwrap().pin();
    let guard = memory.slice(0..4096);
    let window = ends.expose(&link.server, memory, RemoteAccess::Write);
    let mut left: VecDeque<Operation> = (0..40u8)
        .map(|n| Operation::Write {
            from: Pieces::one(filled(&link.client.slab, &[n + 1; 50])),
            to: super::ends::at(&window, u64::from(n) * 64),
        })
        .collect();
    let mut first = true;
    while !left.is_empty() {
        let chain: Vec<_> = left.drain(..).map(|operation| (true, operation)).collect();
        let count = chain.len();
        let (posted, rest) = ends.try_post(&link.client, chain);
        let taken = count - rest.len();
        assert_eq!(posted.is_ok(), rest.is_empty());
        if let Err(error) = posted {
            assert_eq!(error, PostError::Full);
        }
        assert!(!first || taken >= 4, "{taken} of a queue of 4");
        first = false;
        left.extend(rest.into_iter().map(|request| request.operation));
        ends.completions(&link.client, taken);
    }
    ends.post(&link.client, [say(&link.client.slab, b"done")]);
    ends.message(&link.server);
    let mut bytes = vec![0; 4096];
    guard.copy_out(0, &mut bytes);
    for n in 0..40usize {
        assert_eq!(bytes[n * 64..n * 64 + 50], [n as u8 + 1; 50], "write {n}");
    }
    ends.end(link);
}

/// Memory of another domain is refused and stays the caller's.
pub(super) fn memory_of_another_domain_is_refused(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let other = ends.link(&Setup::default());
    let (a, b) = (&link.client, &other.client);
    let domains = [a, b].map(|tip| ends.provider(CLIENT).domain(tip.conn).unwrap());
    let [ours, theirs] = &domains;
    if !std::ptr::addr_eq(std::sync::Arc::as_ptr(ours), std::sync::Arc::as_ptr(theirs)) {
        let mut buffers = VecDeque::from([b.slab.take().unwrap()]);
        let posted = ends.provider(CLIENT).post_receive(a.conn, &mut buffers);
        assert_eq!((posted, buffers.len()), (Err(PostError::Invalid), 1));
        let (posted, rest) = ends.try_post(a, [(true, say(&b.slab, b"foreign"))]);
        assert_eq!((posted, rest.len()), (Err(PostError::Invalid), 1));
        let memory = b.slab.take().unwrap().pin();
        let opened = ends.open_window(a, memory, RemoteAccess::Read);
        assert_eq!(opened, Err(RdmaError::WrongDomain));
    }
    // The connection lives on.
    ends.post(a, [say(&a.slab, b"own")]);
    assert_eq!(ends.message(&link.server).0, b"own");
    let flushed = ends.count(&link.client, |e| matches!(e, Event::Flushed { .. }));
    assert_eq!(flushed, 0);
    ends.end(link);
    ends.end(other);
}
