//! Promises about setting up connections.

use std::collections::VecDeque;
use std::time::Duration;

use super::Bed;
use super::ends::{CLIENT, Ends, SERVER, SIBLING, SLOT, Setup, filled, pattern, say};
use crate::rdma::{
    Close, ConnectParams, Event, LossReason, PostError, QpOptions, RdmaError, RemoteAccess,
    WindowId,
};

/// Private data reach the other side (InfiniBand and RoCE may append zeros), and both know each other's address.
pub(super) fn private_data_and_addresses_reach_both_sides(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let mut setup = Setup::default();
    setup.client.private_data = pattern(1, 8);
    setup.server.private_data = pattern(2, 8);
    let (listener, address) = ends.listen();
    let (client, incoming) = ends.request(listener, address, &setup);
    assert!((incoming.private_data()).starts_with(&setup.client.private_data));
    assert_eq!(incoming.peer().local, address);
    let conn = ends.adopt(SERVER, incoming);
    let server = ends.prepare(SERVER, conn, &setup);
    ends.accept(&server, &setup.server);
    let (private_data, ..) = ends.established(&client);
    assert!(private_data.starts_with(&setup.server.private_data));
    ends.established(&server);
    let ours = ends.provider(CLIENT).peer(client.conn).unwrap();
    let theirs = ends.provider(SERVER).peer(server.conn).unwrap();
    assert_eq!((ours.remote, theirs.local), (address, address));
    assert_eq!(ours.local.ip(), theirs.remote.ip());
    assert!(!ours.device.is_empty() && !theirs.device.is_empty());
    ends.end(super::ends::Link { client, server });
}

/// What one side may have in flight is at most what the other serves, and there is some where both asked for some.
pub(super) fn depths_are_those_both_sides_allow(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let depths = |own, served| ConnectParams {
        initiator_depth: own,
        responder_resources: served,
        ..Setup::default().client
    };
    let setup = Setup {
        client: depths(4, 2),
        server: depths(8, 1),
        ..Setup::default()
    };
    let (listener, address) = ends.listen();
    let (client, incoming) = ends.request(listener, address, &setup);
    let conn = ends.adopt(SERVER, incoming);
    let server = ends.prepare(SERVER, conn, &setup);
    ends.accept(&server, &setup.server);
    let (_, ours, served) = ends.established(&client);
    assert_eq!(ours, 1, "the server serves one");
    assert!((1..=2).contains(&served), "{served}");
    let (_, theirs, served) = ends.established(&server);
    assert!((1..=2).contains(&theirs), "{theirs}");
    assert_eq!(served, 1);
    ends.end(super::ends::Link { client, server });
}

/// Rejecting ends the peer's attempt.
pub(super) fn a_rejected_peer_hears_of_it(bed: &mut dyn Bed) {
    refused(bed, |ends, incoming| ends.provider(SERVER).reject(incoming));
}

/// Dropping the request rejects it.
pub(super) fn a_dropped_request_is_rejected(bed: &mut dyn Bed) {
    refused(bed, |_, incoming| drop(incoming));
}

fn refused(bed: &mut dyn Bed, refuse: impl Fn(&mut Ends<'_>, crate::rdma::Incoming)) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let (listener, address) = ends.listen();
    let (client, incoming) = ends.request(listener, address, &setup);
    refuse(ends, incoming);
    let reason = ends.loss(&client);
    let rejected = matches!(
        reason,
        LossReason::Failed(RdmaError::Rejected { .. } | RdmaError::Refused)
    );
    assert!(rejected, "{reason:?}");
    assert_eq!(client.slab.free(), client.slab.count());
    // The listener lives on.
    let link = ends.link_to(listener, address, &setup);
    ends.end(link);
}

/// Where nobody listens, connecting fails.
pub(super) fn nobody_listening_is_a_failure(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let (listener, address) = ends.listen();
    ends.provider(SERVER).unlisten(listener);
    assert_eq!(ends.provider(SERVER).listener_address(listener), None);
    connect_in_vain(ends, address);
}

/// A listener whose provider was dropped takes no connections.
pub(super) fn an_unheard_listener_is_a_failure(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let (_, address) = ends.listen();
    ends.bed.drop_provider(SERVER);
    ends.only(&[CLIENT, SIBLING]);
    connect_in_vain(ends, address);
}

fn connect_in_vain(ends: &mut Ends<'_>, address: std::net::SocketAddr) {
    let conn = ends.resolving(address);
    let resolved = ends.wait(CLIENT, "Resolved or Disconnected", |e| {
        matches!(e, Event::Resolved { .. } | Event::Disconnected { .. })
    });
    let reason = match resolved {
        Event::Disconnected { reason, .. } => reason,
        _ => {
            let setup = Setup::default();
            let client = ends.prepare(CLIENT, conn, &setup);
            ends.connect(&client, &setup.client);
            let reason = ends.loss(&client);
            assert_eq!(client.slab.free(), client.slab.count());
            reason
        }
    };
    assert!(matches!(reason, LossReason::Failed(_)), "{reason:?}");
}

/// A connection that arrived at one provider may be taken by another of the same host.
pub(super) fn a_sibling_may_adopt(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup {
        adopter: SIBLING,
        ..Setup::default()
    };
    let link = ends.link(&setup);
    for (from, to) in [(&link.client, &link.server), (&link.server, &link.client)] {
        ends.post(from, [say(&from.slab, b"to the sibling")]);
        assert_eq!(ends.message(to).0, b"to the sibling");
        ends.completions(from, 1);
    }
    ends.end(link);
}

/// A server that never answers does not keep a client for ever.
pub(super) fn an_unanswered_connect_times_out(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let mut setup = Setup::default();
    setup.client.timeout = Duration::from_millis(500);
    let (listener, address) = ends.listen();
    let (client, incoming) = ends.request(listener, address, &setup);
    let reason = ends.loss(&client);
    assert!(matches!(reason, LossReason::Failed(_)), "{reason:?}");
    // Too late: it cannot be adopted any more, or ends.
    let now = ends.bed.now();
    if let Ok(late) = ends.provider(SERVER).adopt(incoming, now) {
        ends.provider(SERVER).close(late, Close::Abort, now);
        ends.loss_of(SERVER, late);
    }
    assert_eq!(client.slab.free(), client.slab.count());
}

/// A connection can be closed at every step of its making, and ends.
pub(super) fn every_step_can_be_closed(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let (listener, address) = ends.listen();
    for how in [
        Close::Abort,
        Close::Drain(ends.bed.now() + ends.bed.patience()),
    ] {
        let now = ends.bed.now();
        let conn = ends.resolving(address);
        ends.provider(CLIENT).close(conn, how, now);
        assert_eq!(ends.loss_of(CLIENT, conn), LossReason::Local);

        let conn = ends.resolve(address);
        ends.provider(CLIENT).close(conn, how, now);
        assert_eq!(ends.loss_of(CLIENT, conn), LossReason::Local);

        let conn = ends.resolve(address);
        let client = ends.prepare(CLIENT, conn, &setup);
        ends.close(&client, how);
        assert_eq!(ends.loss(&client), LossReason::Local);
        assert_eq!(client.slab.free(), client.slab.count());

        let (client, incoming) = ends.request(listener, address, &setup);
        ends.close(&client, how);
        assert_eq!(ends.loss(&client), LossReason::Local);
        drop(incoming);

        let (client, incoming) = ends.request(listener, address, &setup);
        let conn = ends.adopt(SERVER, incoming);
        let server = ends.prepare(SERVER, conn, &setup);
        ends.close(&server, how);
        assert_eq!(ends.loss(&server), LossReason::Local);
        let reason = ends.loss(&client);
        assert!(!matches!(reason, LossReason::Local), "{reason:?}");
        assert_eq!(server.slab.free(), server.slab.count());
        assert_eq!(client.slab.free(), client.slab.count());
    }
}

/// A queue pair whose connection ends while it is made goes back to the device, and a new one can be made.
pub(super) fn a_queue_pair_made_too_late_is_given_back(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let (listener, address) = ends.listen();
    let conn = ends.resolve(address);
    let begun = ends.provider(CLIENT).begin_qp(conn, &setup.qp).unwrap();
    let now = ends.bed.now();
    ends.provider(CLIENT).close(conn, Close::Abort, now);
    assert_eq!(ends.loss_of(CLIENT, conn), LossReason::Local);
    // Where nothing blocks there is no such moment.
    if let Some(work) = begun {
        let made = work.run().unwrap();
        let late = ends.provider(CLIENT).finish_qp(conn, made);
        assert_eq!(late, Err(RdmaError::Closed));
    }
    let (client, incoming) = ends.request(listener, address, &setup);
    drop(incoming);
    ends.loss(&client);
    assert_eq!(client.slab.free(), client.slab.count());
}

/// An id whose connection is gone means nothing, also when its place is used again.
pub(super) fn ids_that_are_gone_do_nothing(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup::default();
    let old = ends.link(&setup);
    ends.end(old.clone());
    let link = ends.link(&setup);
    for (old, new) in [(&old.client, &link.client), (&old.server, &link.server)] {
        assert_ne!(old.conn, new.conn);
        let now = ends.bed.now();
        let params = setup.client.clone();
        let memory = old.slab.take().unwrap().pin();
        let provider = ends.provider(old.side);
        assert_eq!(provider.peer(old.conn), None);
        assert_eq!(provider.capabilities(old.conn), None);
        assert!(provider.domain(old.conn).is_err());
        let qp = QpOptions::default();
        assert!(provider.create_qp(old.conn, &qp).is_err());
        assert!(provider.connect(old.conn, &params, now).is_err());
        assert!(provider.accept(old.conn, &params, now).is_err());
        let mut buffers = VecDeque::from([old.slab.take().unwrap()]);
        let posted = provider.post_receive(old.conn, &mut buffers);
        assert_eq!((posted, buffers.len()), (Err(PostError::Closed), 1));
        let access = RemoteAccess::Read;
        assert!(
            provider
                .open_window(old.conn, memory, access, &mut None)
                .is_err()
        );
        let window = WindowId {
            index: 0,
            generation: 0,
        };
        assert!(provider.close_window(old.conn, window).is_none());
        let (posted, rest) = ends.try_post(old, [(true, say(&old.slab, b"nobody"))]);
        assert_eq!((posted, rest.len()), (Err(PostError::Closed), 1));
        ends.close(old, Close::Abort);
    }
    ends.post(&link.client, [say(&link.client.slab, b"alive")]);
    assert_eq!(ends.message(&link.server).0, b"alive");
    ends.end(link);
}

/// Many connections are made at once and do not mix.
pub(super) fn fifty_connections_live_side_by_side(bed: &mut dyn Bed) {
    let ends = &mut Ends::new(bed);
    let setup = Setup {
        receives: 2,
        slots: 4,
        qp: QpOptions {
            send_depth: 8,
            receive_depth: 8,
            ..QpOptions::default()
        },
        ..Setup::default()
    };
    let (listener, address) = ends.listen();
    let ids: Vec<_> = (0..50).map(|_| ends.resolving(address)).collect();
    let connect = |ends: &mut Ends<'_>, n: usize, id| {
        let client = ends.prepare(CLIENT, id, &setup);
        let mut params = setup.client.clone();
        params.private_data = vec![n as u8 + 1; 4];
        ends.connect(&client, &params);
        client
    };
    let mut clients = Vec::new();
    for (n, id) in ids.into_iter().enumerate() {
        ends.wait(
            CLIENT,
            "Resolved",
            |e| matches!(e, Event::Resolved { conn } if *conn == id),
        );
        clients.push(connect(ends, n, id));
    }
    let mut servers = vec![None; 50];
    while servers.iter().any(Option::is_none) {
        let incoming = match ends.arrival(listener) {
            Ok(incoming) => incoming,
            Err(taken) => {
                let n = clients.iter().position(|client| client.conn == taken);
                let n = n.expect("one of ours");
                let id = ends.resolve(address);
                clients[n] = connect(ends, n, id);
                continue;
            }
        };
        let n = usize::from(incoming.private_data()[0]) - 1;
        let conn = ends.adopt(SERVER, incoming);
        let server = ends.prepare(SERVER, conn, &setup);
        ends.accept(&server, &setup.server);
        assert!(servers[n].replace(server).is_none());
    }
    let servers: Vec<_> = servers.into_iter().flatten().collect();
    for (client, server) in clients.iter().zip(&servers) {
        ends.established(client);
        ends.established(server);
    }
    for (n, client) in clients.iter().enumerate() {
        let buf = filled(&client.slab, &pattern(n as u64, SLOT));
        ends.post(client, [super::ends::send(crate::rdma::Pieces::one(buf))]);
    }
    for (n, server) in servers.iter().enumerate().rev() {
        assert_eq!(ends.message(server).0, pattern(n as u64, SLOT));
    }
    for (client, server) in clients.into_iter().zip(servers) {
        ends.end(super::ends::Link { client, server });
    }
}
