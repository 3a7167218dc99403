//! Promises about the end of connections.

use std::time::Duration;

use super::Bed;
use super::ends::{CLIENT, Ends, SERVER, SIBLING, SLOT, Setup, at, filled, pattern, say, slab};
use crate::rdma::{
    Close, CompletionStatus, Event, LossReason, Operation, Pieces, PostError, RemoteAccess,
    RemoteAddress,
};

/// Whoever aborts, and whoever is left, gets every receive and every request back.
pub(super) fn an_abort_gives_everything_back(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    for requests in [0, 1, 8] {
        let link = ends.link(&Setup::default());
        for tip in [&link.client, &link.server] {
            let chain: Vec<_> = (0..requests)
                .map(|n| say(&tip.slab, &pattern(n, SLOT)))
                .collect();
            ends.post(tip, chain);
        }
        ends.close(&link.server, Close::Abort);
        assert_eq!(ends.loss(&link.server), LossReason::Local);
        let reason = ends.loss(&link.client);
        assert_ne!(reason, LossReason::Local);
        ends.no_leak(&link);
    }
}

/// Closing with a drain delivers what was posted before: messages and writes, however slow the peer looks.
pub(super) fn a_drain_delivers_everything(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup {
        receives: 16,
        ..Setup::default()
    };
    let link = ends.link(&setup);
    let (client, server) = (&link.client, &link.server);
    let domain = ends.provider(CLIENT).domain(client.conn).unwrap();
    let len = 200_000;
    let big = slab(&domain, len, 1);
    let whole = big.take().unwrap().pin();
    let window = ends.expose(client, whole.slice(0..len), RemoteAccess::Write);
    let domain = ends.provider(SERVER).domain(server.conn).unwrap();
    let source = slab(&domain, len, 1);
    let bytes = pattern(5, len);
    let mut chain = vec![Operation::Write {
        from: Pieces::one(filled(&source, &bytes)),
        to: at(&window, 0),
    }];
    chain.extend((0..16).map(|n| say(&server.slab, &pattern(n, SLOT))));
    ends.post(server, chain);
    let deadline = ends.bed.now() + ends.bed.patience();
    ends.close(server, Close::Drain(deadline));
    let (posted, rest) = ends.try_post(server, [(true, say(&server.slab, b"late"))]);
    assert_eq!((posted, rest.len()), (Err(PostError::Closed), 1));
    drop(rest);
    for n in 0..16 {
        assert_eq!(ends.message(client).0, pattern(n, SLOT));
    }
    ends.completions(server, 17);
    assert_eq!(ends.loss(client), LossReason::Peer);
    assert_eq!(ends.loss(server), LossReason::Local);
    let mut written = vec![0; len];
    whole.copy_out(0, &mut written);
    assert!(written == bytes);
    ends.no_leak(&link);
    whole.unpin().expect("its window is gone");
}

/// A drain ends at its deadline, whatever the peer does.
pub(super) fn a_drain_ends_at_its_deadline(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    ends.only(&[CLIENT]);
    let deadline = ends.bed.now() + Duration::from_millis(300);
    ends.close(&link.client, Close::Drain(deadline));
    assert_eq!(ends.loss(&link.client), LossReason::Local);
    ends.only(&[CLIENT, SERVER, SIBLING]);
    assert_ne!(ends.loss(&link.server), LossReason::Local);
    ends.no_leak(&link);
}

/// Both sides may drain at the same time.
pub(super) fn both_may_drain_at_once(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    for tip in [&link.client, &link.server] {
        ends.post(tip, [say(&tip.slab, b"last words")]);
    }
    // Each has heard the other's last words; then both go.
    for tip in [&link.client, &link.server] {
        ends.message(tip);
        ends.completions(tip, 1);
    }
    let deadline = ends.bed.now() + ends.bed.patience();
    ends.close(&link.client, Close::Drain(deadline));
    ends.close(&link.server, Close::Drain(deadline));
    assert_eq!(ends.loss(&link.client), LossReason::Local);
    assert_eq!(ends.loss(&link.server), LossReason::Local);
    ends.no_leak(&link);
}

/// A second close changes nothing, but an abort cuts a drain short.
pub(super) fn closing_twice_is_closing_once(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let deadline = ends.bed.now() + ends.bed.patience();
    let drain = Close::Drain(deadline);
    for (first, second) in [
        (Close::Abort, Close::Abort),
        (drain, drain),
        (drain, Close::Abort),
        (Close::Abort, drain),
    ] {
        let link = ends.link(&setup);
        ends.close(&link.client, first);
        ends.close(&link.client, second);
        assert_eq!(ends.loss(&link.client), LossReason::Local);
        assert_ne!(ends.loss(&link.server), LossReason::Local);
        ends.close(&link.client, Close::Abort);
        ends.close(&link.server, Close::Abort);
        ends.linger();
        ends.no_leak(&link);
    }
}

/// Who has closed a connection hears of no other reason, whatever happened before it was told, or happens meanwhile.
pub(super) fn who_closes_is_the_reason(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let (listener, address) = ends.listen();
    let all = [CLIENT, SERVER, SIBLING];
    for how in [
        Close::Abort,
        Close::Drain(ends.bed.now() + ends.bed.patience()),
    ] {
        // The peer has gone.
        let link = ends.link_to(listener, address, &setup);
        ends.only(&[SERVER, SIBLING]);
        ends.close(&link.server, Close::Abort);
        ends.loss(&link.server);
        ends.linger();
        ends.close(&link.client, how);
        ends.only(&all);
        assert_eq!(ends.loss(&link.client), LossReason::Local);
        ends.no_leak(&link);
        // The peer has not gone in order, and goes while we wait for it.
        let link = ends.link_to(listener, address, &setup);
        ends.close(&link.client, how);
        ends.close(&link.server, Close::Abort);
        assert_eq!(ends.loss(&link.client), LossReason::Local);
        assert_eq!(ends.loss(&link.server), LossReason::Local);
        ends.no_leak(&link);
        // A request has failed.
        let link = ends.link_to(listener, address, &setup);
        ends.only(&[SERVER, SIBLING]);
        let from = Pieces::one(filled(&link.client.slab, b"intruder"));
        let to = RemoteAddress {
            address: 4096,
            key: 0x1357_9b00,
        };
        ends.post(&link.client, [Operation::Write { from, to }]);
        ends.linger();
        ends.close(&link.client, how);
        ends.only(&all);
        assert_eq!(ends.loss(&link.client), LossReason::Local);
        ends.close(&link.server, Close::Abort);
        ends.loss(&link.server);
        ends.no_leak(&link);
        // The peer has given up connecting.
        let (client, incoming) = ends.request(listener, address, &setup);
        ends.only(&[CLIENT]);
        ends.close(&client, Close::Abort);
        assert_eq!(ends.loss(&client), LossReason::Local);
        ends.linger();
        let now = ends.bed.now();
        if let Ok(conn) = ends.provider(SERVER).adopt(incoming, now) {
            // It may be found now that the peer has gone, or later.
            let server = ends.try_prepare(SERVER, conn, &setup);
            let _ = ends.provider(SERVER).accept(conn, &setup.server, now);
            ends.provider(SERVER).close(conn, how, now);
            ends.only(&all);
            match server {
                Ok(server) => {
                    assert_eq!(ends.loss(&server), LossReason::Local);
                    assert_eq!(server.slab.free(), server.slab.count());
                }
                Err(_) => assert_eq!(ends.loss_of(SERVER, conn), LossReason::Local),
            }
        }
        ends.only(&all);
        assert_eq!(client.slab.free(), client.slab.count());
    }
}

/// The end of one connection, even by its fault, leaves others alone.
pub(super) fn one_end_does_not_touch_another(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let (listener, address) = ends.listen();
    let [one, two, three] = [(); 3].map(|()| ends.link_to(listener, address, &setup));
    let memory = two.client.slab.take().unwrap().pin();
    let window = ends.expose(&two.client, memory, RemoteAccess::Write);
    // An access that the peer never allowed.
    let mut to = at(&window, 0);
    to.key ^= 0x1357_9b00;
    let from = Pieces::one(filled(&one.server.slab, b"intruder"));
    ends.post(&one.server, [Operation::Write { from, to }]);
    assert_ne!(ends.loss(&one.server), LossReason::Local);
    assert_ne!(ends.loss(&one.client), LossReason::Local);
    ends.close(&three.client, Close::Abort);
    ends.loss(&three.client);
    ends.loss(&three.server);
    let from = Pieces::one(filled(&two.server.slab, b"friend"));
    let to = at(&window, 0);
    let answer = say(&two.server.slab, b"done");
    ends.post(&two.server, [Operation::Write { from, to }, answer]);
    assert_eq!(ends.message(&two.client).0, b"done");
    ends.completions(&two.server, 2);
    ends.end(two);
}

/// A provider that is dropped takes its connections along: its memory is free, and the peer hears of it.
pub(super) fn a_dropped_provider_is_noticed(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let link = ends.link(&Setup::default());
    ends.post(&link.client, [say(&link.client.slab, b"bye")]);
    ends.message(&link.server);
    let (_, status) = ends.completion(&link.client);
    assert_eq!(status, CompletionStatus::Success);
    ends.bed.drop_provider(CLIENT);
    ends.only(&[SERVER, SIBLING]);
    assert_eq!(link.client.slab.free(), link.client.slab.count());
    assert_ne!(ends.loss(&link.server), LossReason::Local);
    let gone = |e: &Event| matches!(e, Event::Flushed { .. });
    assert_eq!(ends.count(&link.server, gone), 0, "taken with the end");
    assert_eq!(link.server.slab.free(), link.server.slab.count());
}
