//! Promises about memory that the peer reads and writes.

use super::Bed;
use super::ends::{CLIENT, Ends, Link, Setup, Tip, at, filled, pattern, say, slab};
use crate::rdma::{
    CompletionStatus, IoBuf, IoPin, LossReason, Operation, Pieces, RemoteAccess, RemoteAddress,
    Window,
};

const PAGE: usize = 4096;
/// Bytes around an exposed range that nobody may touch.
const GUARD: usize = 100;
/// What they are.
const GUARD_BYTE: u8 = 0xa5;

/// A connection whose client exposes memory and whose server uses it, as SMB does.
struct Exposed {
    link: Link,
    /// The whole slot, kept to look at the memory.
    whole: IoPin,
    window: Window,
    slab: crate::rdma::Slab,
}

impl Exposed {
    /// Exposes `len` bytes in the middle of guards; a readable window holds `pattern(7, len)`.
    fn new(ends: &mut Ends<'_>, len: usize, access: RemoteAccess) -> Self {
        let link = ends.link(&Setup::default());
        let domain = ends.provider(CLIENT).domain(link.client.conn).unwrap();
        let slab = slab(&domain, len + 2 * GUARD, 1);
        let mut buf = slab.take().unwrap();
        buf.fill(GUARD_BYTE);
        if access == RemoteAccess::Read {
            buf[GUARD..GUARD + len].copy_from_slice(&pattern(7, len));
        }
        let whole = buf.pin();
        let range = whole.slice(GUARD..GUARD + len);
        let window = ends.expose(&link.client, range, access);
        assert_eq!(window.len as usize, len);
        Self {
            link,
            whole,
            window,
            slab,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Operation {
        write(&self.link.server, at(&self.window, offset), bytes)
    }

    /// The exposed bytes; the guards are as they were.
    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.whole.len()];
        self.whole.copy_out(0, &mut bytes);
        let end = GUARD + self.window.len as usize;
        assert!(
            bytes[..GUARD].iter().all(|b| *b == GUARD_BYTE),
            "before the range"
        );
        assert!(
            bytes[end..].iter().all(|b| *b == GUARD_BYTE),
            "behind the range"
        );
        bytes[GUARD..end].to_vec()
    }

    /// Lets the server say a word and waits for it: all before it has arrived then.
    fn settle(&self, ends: &mut Ends<'_>) {
        ends.post(&self.link.server, [say(&self.link.server.slab, b"settled")]);
        assert_eq!(ends.message(&self.link.client).0, b"settled");
        ends.receives(&self.link.client, 1);
        ends.completions(&self.link.server, 1);
    }

    /// The end of the connection frees the memory.
    fn end(self, ends: &mut Ends<'_>) {
        ends.end(self.link);
        let buf = self.whole.unpin().expect("its windows are gone");
        drop(buf);
        assert_eq!(self.slab.free(), 1);
    }

    /// The server does something that it may not: the connection ends on both sides, and the range is untouched.
    fn denied(self, ends: &mut Ends<'_>, forbidden: Operation) {
        let before = self.contents();
        // What is behind it must not be executed either.
        let behind = say(&self.link.server.slab, b"behind");
        ends.post(&self.link.server, [forbidden, behind]);
        let (request, status) = ends.completion(&self.link.server);
        // iWARP does not acknowledge writes, and may not say which request failed.
        let read = matches!(request.operation, Operation::Read { .. });
        assert!(!read || status != CompletionStatus::Success, "{status:?}");
        let known = matches!(
            status,
            CompletionStatus::RemoteAccess | CompletionStatus::Flushed | CompletionStatus::Success
        ) || matches!(status, CompletionStatus::RemoteOperation);
        assert!(known, "{status:?}");
        match request.operation {
            Operation::Read { into, .. } => {
                let sink = into.unpin().expect("the only pin");
                assert!(sink.iter().all(|b| *b == GUARD_BYTE), "nothing was read");
            }
            other => drop(other),
        }
        let reason = ends.loss(&self.link.server);
        assert_ne!(reason, LossReason::Local);
        let reason = ends.loss(&self.link.client);
        assert_ne!(reason, LossReason::Local);
        assert_eq!(self.contents(), before);
        ends.no_leak(&self.link);
        self.whole.unpin().expect("its windows are gone");
    }
}

fn write(tip: &Tip, to: RemoteAddress, bytes: &[u8]) -> Operation {
    Operation::Write {
        from: Pieces::one(filled(&tip.slab, bytes)),
        to,
    }
}

/// A read of so many bytes into a buffer full of guard bytes.
fn read(tip: &Tip, from: RemoteAddress, len: usize) -> Operation {
    let mut into = tip.slab.take().expect("slots enough");
    into.fill(GUARD_BYTE);
    into.set_len(len);
    Operation::Read {
        into: into.pin(),
        from,
    }
}

/// The sink of a successful read.
fn sink(ends: &mut Ends<'_>, tip: &Tip) -> IoBuf {
    let (request, status) = ends.completion(tip);
    assert_eq!(status, CompletionStatus::Success);
    match request.operation {
        Operation::Read { into, .. } => into.unpin().expect("the only pin"),
        other => panic!("{other:?}"),
    }
}

/// Writes place their bytes where they should and nowhere else, gathered ones too, up to both ends of the range.
pub(super) fn writes_land_exactly(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Write);
    let server = it.link.server.clone();
    let mut want = vec![GUARD_BYTE; PAGE];
    let mut put = |offset: usize, bytes: &[u8]| {
        want[offset..offset + bytes.len()].copy_from_slice(bytes);
        want.clone()
    };
    for (offset, len) in [(0, 1), (PAGE - 1, 1), (17, 1000), (2001, 63)] {
        let bytes = pattern(offset as u64, len);
        ends.post(&server, [it.write(offset as u64, &bytes)]);
        ends.completions(&server, 1);
        it.settle(ends);
        assert_eq!(it.contents(), put(offset, &bytes));
    }
    let mut from = Pieces::default();
    let parts = [pattern(1, 10), pattern(2, 333)];
    for part in &parts {
        from.push(filled(&server.slab, part).freeze()).unwrap();
    }
    let to = at(&it.window, 3000);
    ends.post(&server, [Operation::Write { from, to }]);
    ends.completions(&server, 1);
    it.settle(ends);
    assert_eq!(it.contents(), put(3000, &parts.concat()));
    // Nothing, too.
    ends.post(&server, [it.write(5, b"")]);
    ends.completions(&server, 1);
    it.settle(ends);
    it.end(ends);
}

/// Reads bring exactly the bytes asked for, into exactly the buffer given.
pub(super) fn reads_bring_exactly(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Read);
    let server = it.link.server.clone();
    let source = pattern(7, PAGE);
    for (offset, len) in [(0, 1), (PAGE - 1, 1), (17, 1000), (0, PAGE), (2001, 63)] {
        ends.post(&server, [read(&server, at(&it.window, offset as u64), len)]);
        let mut buf = sink(ends, &server);
        assert_eq!(buf[..], source[offset..offset + len]);
        buf.set_len(buf.capacity());
        assert!(
            buf[len..].iter().all(|b| *b == GUARD_BYTE),
            "behind the sink"
        );
    }
    assert_eq!(it.contents(), source);
    it.end(ends);
}

/// Large transfers of odd size, in both directions.
pub(super) fn bulk_moves_both_ways(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let len = 300_001;
    for access in [RemoteAccess::Write, RemoteAccess::Read] {
        let it = Exposed::new(ends, len, access);
        let server = it.link.server.clone();
        let domain = ends.provider(server.side).domain(server.conn).unwrap();
        let bulk = Tip {
            slab: slab(&domain, len, 2),
            ..server.clone()
        };
        let bytes = pattern(7, len);
        match access {
            RemoteAccess::Write => {
                ends.post(&server, [write(&bulk, at(&it.window, 0), &bytes)]);
                ends.completions(&server, 1);
                it.settle(ends);
                assert!(it.contents() == bytes);
            }
            RemoteAccess::Read => {
                ends.post(&server, [read(&bulk, at(&it.window, 0), len)]);
                assert!(sink(ends, &server)[..] == bytes);
            }
        }
        it.end(ends);
    }
}

/// When a message arrives, the writes posted before it are in place.
pub(super) fn a_message_follows_its_writes(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Write);
    for round in 0..8 {
        let bytes = pattern(round, PAGE);
        let mut chain: Vec<_> = (0..8)
            .map(|n| it.write(n * 512, &bytes[n as usize * 512..][..512]))
            .collect();
        chain.push(say(&it.link.server.slab, b"look"));
        ends.post(&it.link.server, chain);
        assert_eq!(ends.message(&it.link.client).0, b"look");
        assert_eq!(it.contents(), bytes, "round {round}");
        ends.receives(&it.link.client, 1);
        ends.completions(&it.link.server, 9);
    }
    it.end(ends);
}

/// Memory may be exposed in the same chain as the message that tells of it.
pub(super) fn a_bind_precedes_its_message(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    for n in 0..8u8 {
        let memory = filled(&link.client.slab, &[n; 64]).pin();
        let client = &link.client;
        let window = ends
            .open_window(client, memory, RemoteAccess::Read)
            .unwrap();
        let bind = Operation::Bind { window: window.id };
        let mut chain = Vec::from_iter(window.needs_bind.then_some(bind));
        chain.push(say(&link.client.slab, b"read it"));
        let count = chain.len();
        ends.post(&link.client, chain);
        assert_eq!(ends.message(&link.server).0, b"read it");
        ends.post(&link.server, [read(&link.server, at(&window, 0), 64)]);
        assert_eq!(sink(ends, &link.server)[..], [n; 64]);
        ends.receives(&link.server, 1);
        ends.completions(&link.client, count);
    }
    ends.end(link);
}

/// More reads than the connection's depth are all executed.
pub(super) fn reads_beyond_the_depth_wait(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let mut setup = Setup::default();
    setup.server.initiator_depth = 2;
    setup.client.responder_resources = 2;
    let link = ends.link(&setup);
    let source = pattern(3, PAGE);
    let memory = filled(&link.client.slab, &source).pin();
    let window = ends.expose(&link.client, memory, RemoteAccess::Read);
    let reads: Vec<_> = (0..32)
        .map(|n| read(&link.server, at(&window, n * 128), 128))
        .collect();
    ends.post(&link.server, reads);
    for n in 0..32 {
        assert_eq!(
            sink(ends, &link.server)[..],
            source[n * 128..][..128],
            "read {n}"
        );
    }
    ends.end(link);
}

/// A read comes back when its bytes are there, although what is posted behind it is done sooner.
pub(super) fn a_read_is_over_when_its_bytes_are_there(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let len = 100_000;
    let it = Exposed::new(ends, len, RemoteAccess::Read);
    let server = it.link.server.clone();
    let domain = ends.provider(server.side).domain(server.conn).unwrap();
    let bulk = Tip {
        slab: slab(&domain, len, 2),
        ..server.clone()
    };
    let source = pattern(7, len);
    for signalled in [true, false] {
        for _ in 0..4 {
            let chain = [
                (signalled, read(&bulk, at(&it.window, 0), len)),
                (true, say(&server.slab, b"behind")),
            ];
            let (posted, _) = ends.try_post(&server, chain);
            assert_eq!(posted, Ok(()));
            // The ledger looks that the read comes first.
            assert!(sink(ends, &server)[..] == source);
            ends.completions(&server, 1);
            assert_eq!(ends.message(&it.link.client).0, b"behind");
            ends.receives(&it.link.client, 1);
        }
    }
    it.end(ends);
}

/// After its invalidation a window gives its memory back at once.
pub(super) fn an_invalidated_window_is_given_back(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let client = &link.client;
    let mut keys = Vec::new();
    for n in 0..16u8 {
        let memory = filled(&client.slab, &[n; 64]).pin();
        let window = ends.expose(client, memory, RemoteAccess::Write);
        keys.push(window.key);
        ends.post(&link.server, [write(&link.server, at(&window, 1), &[99])]);
        ends.completions(&link.server, 1);
        ends.post(&link.server, [say(&link.server.slab, b"done")]);
        ends.message(client);
        ends.receives(client, 1);
        ends.completions(&link.server, 1);
        if window.needs_bind {
            ends.post(client, [Operation::Invalidate { window: window.id }]);
            ends.completions(client, 1);
        }
        let pin = ends
            .provider(client.side)
            .close_window(client.conn, window.id);
        let buf = pin.expect("free").unpin().expect("the only pin");
        assert_eq!((buf[0], buf[1], buf[2]), (n, 99, n));
        let again = ends
            .provider(client.side)
            .close_window(client.conn, window.id);
        assert!(again.is_none(), "closed already");
    }
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 16, "keys are not used again at once");
    ends.end(link);
}

/// The peer's Send invalidates a window, the receive says which, and the memory is free.
pub(super) fn the_peer_may_invalidate(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    let (ours, theirs) = (
        ends.capabilities(&link.client),
        ends.capabilities(&link.server),
    );
    if !ours.remote_invalidation() || !theirs.send_with_invalidate {
        return ends.end(link);
    }
    for n in 0..8u8 {
        let memory = filled(&link.client.slab, &[0; 64]).pin();
        let window = ends.expose(&link.client, memory, RemoteAccess::Write);
        let answer = Operation::Send {
            message: Pieces::one(filled(&link.server.slab, b"written")),
            invalidate: Some(window.key),
            solicited: true,
        };
        let place = write(&link.server, at(&window, 0), &[n; 64]);
        ends.post(&link.server, [place, answer]);
        let (message, invalidated) = ends.message(&link.client);
        assert_eq!(
            (&message[..], invalidated),
            (&b"written"[..], Some(window.key))
        );
        ends.completions(&link.server, 2);
        ends.receives(&link.client, 1);
        let client = &link.client;
        let pin = ends
            .provider(client.side)
            .close_window(client.conn, window.id);
        let buf = pin.expect("invalidated").unpin().expect("the only pin");
        assert_eq!(buf[..], [n; 64]);
    }
    // A plain message reports none.
    ends.post(&link.server, [say(&link.server.slab, b"plain")]);
    assert_eq!(ends.message(&link.client), (b"plain".to_vec(), None));
    ends.end(link);
}

/// A bound window cannot be closed, so that its memory stays as long as the peer can reach it.
pub(super) fn a_bound_window_stays(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Write);
    let client = it.link.client.clone();
    if it.window.needs_bind {
        let id = it.window.id;
        assert!(
            ends.provider(client.side)
                .close_window(client.conn, id)
                .is_none()
        );
        let server = it.link.server.clone();
        ends.post(&server, [it.write(0, b"still there")]);
        ends.completions(&server, 1);
        it.settle(ends);
        assert_eq!(it.contents()[..11], *b"still there");
    }
    // One that was never bound can.
    let memory = client.slab.take().unwrap().pin();
    let window = ends
        .open_window(&client, memory, RemoteAccess::Read)
        .unwrap();
    assert!(
        ends.provider(client.side)
            .close_window(client.conn, window.id)
            .is_some()
    );
    it.end(ends);
}

/// A key that was never given out opens nothing.
pub(super) fn foreign_keys_are_refused(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    for access in [RemoteAccess::Write, RemoteAccess::Read] {
        let it = Exposed::new(ends, PAGE, access);
        let to = RemoteAddress {
            address: it.window.address,
            key: it.window.key ^ 0x5a5a_5a00,
        };
        let server = it.link.server.clone();
        let forbidden = match access {
            RemoteAccess::Write => write(&server, to, b"intruder"),
            RemoteAccess::Read => read(&server, to, 8),
        };
        it.denied(ends, forbidden);
    }
}

/// One byte before or behind the range, or far away, is refused as a whole.
pub(super) fn bounds_are_kept(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    for access in [RemoteAccess::Write, RemoteAccess::Read] {
        for (offset, len) in [
            (-1, 8),
            (PAGE as i64 - 7, 8),
            (PAGE as i64, 1),
            (1 << 40, 1),
        ] {
            let it = Exposed::new(ends, PAGE, access);
            let to = RemoteAddress {
                address: it.window.address.wrapping_add_signed(offset),
                key: it.window.key,
            };
            let server = it.link.server.clone();
            let forbidden = match access {
                RemoteAccess::Write => write(&server, to, &pattern(9, len)),
                RemoteAccess::Read => read(&server, to, len),
            };
            it.denied(ends, forbidden);
        }
    }
}

/// Memory exposed for reading cannot be written, nor the reverse.
pub(super) fn rights_are_kept(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Read);
    let forbidden = it.write(0, b"intruder");
    it.denied(ends, forbidden);
    let it = Exposed::new(ends, PAGE, RemoteAccess::Write);
    let forbidden = read(&it.link.server, at(&it.window, 0), 8);
    it.denied(ends, forbidden);
}

/// After invalidation, by whichever side, or closing, the key opens nothing.
pub(super) fn a_revoked_key_is_refused(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    for by_peer in [false, true] {
        let it = Exposed::new(ends, PAGE, RemoteAccess::Write);
        let (client, server) = (it.link.client.clone(), it.link.server.clone());
        let ours = ends.capabilities(&client);
        let able = ours.remote_invalidation() && ends.capabilities(&server).send_with_invalidate;
        if by_peer && able {
            let bye = Operation::Send {
                message: Pieces::one(filled(&server.slab, b"bye")),
                invalidate: Some(it.window.key),
                solicited: false,
            };
            ends.post(&server, [bye]);
            assert_eq!(ends.message(&client).1, Some(it.window.key));
            ends.completions(&server, 1);
        } else if it.window.needs_bind {
            let window = it.window.id;
            ends.post(&client, [Operation::Invalidate { window }]);
            ends.completions(&client, 1);
        }
        let closed = ends
            .provider(CLIENT)
            .close_window(client.conn, it.window.id);
        assert!(closed.is_some());
        drop(closed);
        let forbidden = it.write(0, b"too late");
        it.denied(ends, forbidden);
    }
}
