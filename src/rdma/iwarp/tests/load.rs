//! Much at once: big transfers both ways, many connections, the slow paths, the rarer options.

use std::collections::VecDeque;
use std::time::Instant;

use super::world::*;
use crate::rdma::iwarp::IwarpConfig;
use crate::rdma::{
    Armed, Close, CompletionStatus, ConnectParams, Event, IoPin, ListenOptions, LossReason,
    Operation, Pieces, PostError, Provider, QpOptions, RdmaError, RdmaOperation, RemoteAccess,
    RemoteAddress, ResolveOptions, Window,
};

fn remote(window: &Window, offset: u64) -> RemoteAddress {
    RemoteAddress {
        address: window.address + offset,
        key: window.key,
    }
}

/// Writes, reads and messages in both directions at once, far more than sockets hold, all checked.
fn exchange(client: IwarpConfig, server: IwarpConfig, len: usize) {
    const CHUNK: usize = 256 * 1024;
    let mut world = World::with(client, server);
    let (c, s) = (world.c, world.s);
    world.client.post(c, vec![send(b"go")]);
    world.server_received();
    world.client_completed();
    // What each side exposes: memory to write into and memory to read from.
    let data = [pattern(1, len), pattern(2, len)];
    let expose = |side: &mut Side, conn, data: &[u8]| -> (Window, Window) {
        let mut source = buffer(len);
        source.copy_from_slice(data);
        (
            side.expose(conn, buffer(len).pin(), RemoteAccess::Write),
            side.expose(conn, source.pin(), RemoteAccess::Read),
        )
    };
    let client_windows = expose(&mut world.client, c, &data[0]);
    let server_windows = expose(&mut world.server, s, &data[1]);
    let requests_for = |(target, source): &(Window, Window), data: &[u8]| {
        let mut chain = VecDeque::new();
        let bytes = filled(data);
        for start in (0..len).step_by(CHUNK) {
            let end = len.min(start + CHUNK);
            chain.push_back(Operation::Write {
                from: Pieces::one(bytes.slice(start..end)),
                to: remote(target, start as u64),
            });
            chain.push_back(Operation::Read {
                into: buffer(end - start).pin(),
                from: remote(source, start as u64),
            });
            chain.push_back(send(&(start as u64).to_be_bytes()));
        }
        chain
    };
    // The client writes its data to the server and reads the server's; and the other way round.
    let mut work = [
        (
            requests_for(&server_windows, &data[0]),
            0usize,
            Vec::new(),
            0u64,
        ),
        (requests_for(&client_windows, &data[1]), 0, Vec::new(), 0),
    ];
    let total = work[0].0.len();
    world.wait("the exchange", |w| {
        for (i, (chain, done, read, messages)) in work.iter_mut().enumerate() {
            let (side, conn) = if i == 0 {
                (&mut w.client, c)
            } else {
                (&mut w.server, s)
            };
            if !chain.is_empty() {
                let mut ready: VecDeque<_> = requests(chain.drain(..).collect());
                match side.provider.post_send(conn, &mut ready) {
                    Ok(()) | Err(PostError::Full) => {}
                    Err(error) => panic!("{error}"),
                }
                chain.extend(ready.into_iter().map(|request| request.operation));
            }
            while let Some((request, status)) = side.completed(conn) {
                assert_eq!(status, CompletionStatus::Success);
                match request.operation {
                    Operation::Bind { .. } => continue,
                    Operation::Read { into, .. } => {
                        read.extend_from_slice(&into.unpin().unwrap());
                    }
                    _ => {}
                }
                *done += 1;
            }
            while let Some((message, _)) = side.received(conn) {
                assert_eq!(message[..], (*messages * CHUNK as u64).to_be_bytes());
                *messages += 1;
                let mut again = VecDeque::from([message]);
                side.provider.post_receive(conn, &mut again).unwrap();
            }
        }
        let over = work
            .iter()
            .all(|(_, done, _, messages)| *done == total && *messages as usize * 3 == total);
        over.then_some(())
    });
    assert!(work[0].2 == data[1], "what the client read");
    assert!(work[1].2 == data[0], "what the server read");
    let take = |side: &mut Side, conn, window: &Window| -> IoPin {
        side.post(conn, vec![Operation::Invalidate { window: window.id }]);
        side.provider.close_window(conn, window.id).unwrap()
    };
    let placed = take(&mut world.client, c, &client_windows.0);
    assert!(
        placed.unpin().unwrap()[..] == data[1],
        "what the server wrote"
    );
    let placed = take(&mut world.server, s, &server_windows.0);
    assert!(
        placed.unpin().unwrap()[..] == data[0],
        "what the client wrote"
    );
}

fn config(crc: bool) -> IwarpConfig {
    IwarpConfig {
        crc,
        ..IwarpConfig::default()
    }
}

#[test]
fn both_ways_at_once() {
    exchange(config(true), config(true), 12 << 20);
    exchange(config(false), config(false), 12 << 20);
}

#[test]
fn both_ways_at_once_in_small_segments() {
    let small = IwarpConfig {
        ulpdu: Some(1442),
        ..config(true)
    };
    exchange(
        small.clone(),
        IwarpConfig {
            ulpdu: Some(128),
            ..small
        },
        2 << 20,
    );
}

#[test]
fn m08_markers_in_one_or_both_directions() {
    let markers = IwarpConfig {
        markers: true,
        ..config(true)
    };
    exchange(markers.clone(), config(true), 1 << 20);
    exchange(
        config(false),
        IwarpConfig {
            crc: false,
            ..markers.clone()
        },
        1 << 20,
    );
    exchange(markers.clone(), markers, 1 << 20);
}

#[test]
fn m03_revision_1_against_revision_2() {
    let old = IwarpConfig {
        revision: 1,
        ..config(true)
    };
    exchange(old, config(true), 1 << 20);
}

#[test]
fn e04_in_the_peer_to_peer_model_the_responder_may_send_first() {
    let config = IwarpConfig {
        peer_to_peer: true,
        ..config(true)
    };
    let mut world = World::with(config.clone(), config);
    let s = world.s;
    world.wait("established", |w| w.server.established(s));
    world.server.post(s, vec![send(b"first")]);
    assert_eq!(&world.client_received().0[..], b"first");
}

#[test]
fn two_hundred_connections() {
    const COUNT: usize = 200;
    let (mut client, mut server) = (Side::new(config(true)), Side::new(config(true)));
    let options = ListenOptions {
        max_half_open_per_peer: COUNT,
        ..ListenOptions::default()
    };
    let (_, address) = server.listen(&options);
    let params = ConnectParams {
        timeout: PATIENCE,
        ..ConnectParams::default()
    };
    let conns: Vec<_> = (0..COUNT)
        .map(|_| client.connect(address, 2, &params))
        .collect();
    let mut accepted = Vec::new();
    let end = Instant::now() + PATIENCE;
    let mut up = 0;
    while up < COUNT {
        client.poll();
        server.poll();
        while let Some(incoming) = server.incoming() {
            accepted.push(server.accept(incoming, 2, &params));
        }
        up += conns
            .iter()
            .filter(|conn| client.established(**conn).is_some())
            .count();
        assert!(Instant::now() < end, "{up} are up");
    }
    for round in 0..3u64 {
        for (i, conn) in conns.iter().enumerate() {
            client.post(*conn, vec![send(&pattern(round * 1000 + i as u64, 100))]);
        }
        let mut answers = 0;
        while answers < COUNT {
            client.poll();
            server.poll();
            for conn in &accepted {
                if let Some((message, _)) = server.received(*conn) {
                    server.post(*conn, vec![send(&message)]);
                    let mut again = VecDeque::from([message]);
                    server.provider.post_receive(*conn, &mut again).unwrap();
                }
            }
            for (i, conn) in conns.iter().enumerate() {
                if let Some((message, _)) = client.received(*conn) {
                    assert_eq!(message[..], pattern(round * 1000 + i as u64, 100));
                    answers += 1;
                    let mut again = VecDeque::from([message]);
                    client.provider.post_receive(*conn, &mut again).unwrap();
                }
            }
            assert!(Instant::now() < end, "{answers} answers");
        }
    }
    drop(client);
    for conn in accepted {
        let reason = server.wait("end", |side| side.disconnected(conn));
        assert_eq!(reason, LossReason::Peer);
    }
}

#[test]
fn a_sibling_adopts_what_a_listener_accepted() {
    let (mut client, mut listening) = (Side::new(config(true)), Side::new(config(true)));
    let mut sibling = Side::new(config(true));
    let (_, address) = listening.listen(&ListenOptions::default());
    let c = client.connect(address, 1, &ConnectParams::default());
    let incoming = loop {
        client.poll();
        listening.poll();
        if let Some(incoming) = listening.incoming() {
            break incoming;
        }
    };
    let s = std::thread::spawn(move || {
        let s = sibling.accept(incoming, 1, &ConnectParams::default());
        (sibling, s)
    });
    let (mut sibling, s) = s.join().unwrap();
    drop(listening);
    client.wait("established", |side| side.established(c));
    client.post(c, vec![send(b"moved")]);
    let (message, _) = sibling.wait("message", |side| side.received(s));
    assert_eq!(&message[..], b"moved");
}

#[test]
fn ipv6_type_of_service_and_a_chosen_source() {
    let mut server = Side::new(config(true));
    let options = ListenOptions {
        type_of_service: Some(0x68),
        ..ListenOptions::default()
    };
    let address = "[::1]:0".parse().unwrap();
    // A host without IPv6 has nothing to test here.
    let Ok(listener) = server.provider.listen(address, &options) else {
        return;
    };
    let address = server.provider.listener_address(listener).unwrap();
    let mut client = Side::new(config(true));
    let now = Instant::now();
    let options = ResolveOptions {
        local: Some("[::1]:0".parse().unwrap()),
        type_of_service: Some(0x68),
        ..ResolveOptions::default()
    };
    let c = client.provider.resolve(address, &options, now).unwrap();
    client.provider.create_qp(c, &QpOptions::default()).unwrap();
    let params = ConnectParams::default();
    client.provider.connect(c, &params, now).unwrap();
    let incoming = loop {
        client.poll();
        server.poll();
        if let Some(incoming) = server.incoming() {
            break incoming;
        }
    };
    let peer = incoming.peer().clone();
    server.accept(incoming, 0, &params);
    client.wait("established", |side| side.established(c));
    assert_eq!(client.provider.peer(c).unwrap().local, peer.remote);
}

#[test]
fn a_window_is_the_owners_again_while_its_bytes_are_still_on_their_way() {
    let len = 16 << 20;
    let mut world = World::new();
    let (c, s) = (world.c, world.s);
    world.client.post(c, vec![send(b"go")]);
    world.server_received();
    let mut source = buffer(len);
    source.copy_from_slice(&pattern(1, len));
    let window = world.client.expose(c, source.pin(), RemoteAccess::Read);
    let (into, from) = (buffer(len).pin(), remote(&window, 0));
    world.server.post(s, vec![Operation::Read { into, from }]);
    // The server reads nothing, so that the client is stuck in the middle of the response.
    for _ in 0..200 {
        world.client.poll();
    }
    while world.client.completed(c).is_some() {}
    world
        .client
        .post(c, vec![Operation::Invalidate { window: window.id }]);
    let (_, status) = world.client.wait("invalidation", |side| side.completed(c));
    assert_eq!(status, CompletionStatus::Success);
    let pin = world.client.provider.close_window(c, window.id).unwrap();
    let mut source = pin.unpin().unwrap();
    source.fill(0);
    // The rest of the answer cannot be given.
    let reason = world.wait("the server's end", |w| w.server.disconnected(s));
    let expected = RdmaError::Terminated {
        layer: 0,
        error_type: 1,
        code: 0,
        operation: Some(RdmaOperation::Read),
    };
    assert_eq!(reason, LossReason::Failed(expected));
    let (request, status) = world.server.completed(s).unwrap();
    assert_eq!(status, CompletionStatus::RemoteAccess);
    let Operation::Read { into, .. } = request.operation else {
        panic!("{request:?}");
    };
    // What had been on its way is what was there before.
    let placed = into.unpin().unwrap();
    let end = placed.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(placed[..end] == pattern(1, end));
}

#[test]
fn posted_requests_are_bounded_and_handed_back() {
    let mut world = World::new();
    let s = world.s;
    // The responder is held until the first FPDU: its queue fills.
    let mut chain = requests((0..300).map(|_| send(b"x")).collect());
    let error = world.server.provider.post_send(s, &mut chain).unwrap_err();
    assert_eq!((error, chain.len()), (PostError::Full, 300 - 256));
    let mut receives: VecDeque<_> = buffers(64, 300).into();
    let error = world
        .server
        .provider
        .post_receive(s, &mut receives)
        .unwrap_err();
    assert_eq!((error, receives.len()), (PostError::Full, 300 - 256 + 32));
    world.server.provider.close(s, Close::Abort, Instant::now());
    world.server.poll();
    while world.server.provider.arm().unwrap() == Armed::Ready {
        world.server.poll();
    }
    let mut completions = 0;
    let mut flushed = 0;
    for event in &world.server.events {
        match event {
            Event::Completed {
                request, status, ..
            } => {
                assert_eq!(
                    (request.cookie, *status),
                    (completions, CompletionStatus::Flushed)
                );
                completions += 1;
            }
            Event::Flushed { .. } => flushed += 1,
            _ => {}
        }
    }
    assert_eq!((completions, flushed), (256, 256));
    assert!(matches!(
        world.server.events.back(),
        Some(Event::Disconnected { .. })
    ));
    let mut chain = requests(vec![send(b"late")]);
    let error = world.server.provider.post_send(s, &mut chain).unwrap_err();
    assert_eq!((error, chain.len()), (PostError::Closed, 1));
}
