//! MPA revision 2 (RFC 6581) meets revision 1 (RFC 5044), in both roles.

use super::*;
use crate::rdma::RdmaOperation;

/// A Reply of revision 1 that wants CRC and brings no private data.
const PLAIN_REPLY: &[u8] = b"MPA ID Rep Frame\x40\x01\0\0";
const PLAIN_REJECT: &[u8] = b"MPA ID Rep Frame\x60\x01\0\0";

/// Ours begins to connect to a scripted peer.
fn begin(config: IwarpConfig, params: &ConnectParams) -> (Side, ConnId, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut side = Side::new(config);
    let conn = side.connect(listener.local_addr().unwrap(), 4, params);
    (side, conn, listener)
}

/// The next TCP connection.
fn accepted(side: &mut Side, listener: &TcpListener) -> Raw {
    listener.set_nonblocking(true).unwrap();
    Raw::over(side.wait("connection", |_| listener.accept().ok()).0)
}

/// The next TCP connection and the request on it.
fn request(side: &mut Side, listener: &TcpListener, revision: u8, private: &[u8]) -> Raw {
    let mut raw = accepted(side, listener);
    let header = if revision == 2 { 24 } else { 20 };
    let bytes = raw.take(side, header + private.len());
    let (frame, _) = Frame::parse(Kind::Request, &bytes).unwrap().unwrap();
    assert_eq!(frame.revision, revision);
    assert_eq!(frame.enhanced.is_some(), revision == 2);
    assert_eq!(frame.private_data, private);
    raw
}

fn reason(side: &mut Side, conn: ConnId) -> LossReason {
    side.wait("end", |side| side.disconnected(conn))
}

/// Nobody connects any more.
fn assert_quiet(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn m03_peers_of_revision_1() {
    let plain = Local {
        revision: 1,
        crc: true,
        ..SIW
    };
    let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &plain);
    raw.send(1, b"old");
    side.wait("message", |side| side.received(conn));
    // Ours, when told so.
    let config = IwarpConfig {
        revision: 1,
        ..IwarpConfig::default()
    };
    let (mut side, conn, mut raw) = responder(config.clone(), &SIW);
    side.post(conn, vec![send(b"old")]);
    assert_eq!(raw.fpdu(&mut side).1, b"old");
    // A host that knows revision 1 only closes on a request of revision 2.
    let (mut side, address) = server(&ListenOptions::default(), config);
    let mut raw = Raw::connect(address);
    raw.write(&encoded(&mpa::request(&SIW, vec![])));
    assert!(raw.end(&mut side).is_empty());
}

/// What a host of revision 1 does with a request of revision 2: closes as RFC 5044 wants it, resets
/// since it has not read it, answers as if it were one of its own, or has its application refuse
/// the four bytes of private data that it does not know.
#[test]
fn e01_a_responder_of_revision_1_is_asked_once_more() {
    type Act = fn(&mut Side, &TcpListener, &[u8]);
    let acts: [(&str, Act); 4] = [
        ("closes", |side, listener, data| {
            drop(request(side, listener, 2, data));
        }),
        ("resets", |side, listener, _| {
            // The request is in the socket, or comes to a closed one.
            drop(accepted(side, listener));
        }),
        ("answers", |side, listener, data| {
            let mut raw = request(side, listener, 2, data);
            raw.write(PLAIN_REPLY);
            assert!(raw.end(side).is_empty(), "nothing but the end");
        }),
        ("refuses", |side, listener, data| {
            let mut raw = request(side, listener, 2, data);
            raw.write(PLAIN_REJECT);
            assert!(raw.end(side).is_empty());
        }),
    ];
    for (name, act) in acts {
        let params = ConnectParams {
            private_data: b"who".to_vec(),
            ..ConnectParams::default()
        };
        let (mut side, conn, listener) = begin(IwarpConfig::default(), &params);
        act(&mut side, &listener, b"who");
        let mut raw = request(&mut side, &listener, 1, b"who");
        raw.write(b"MPA ID Rep Frame\x40\x01\0\x03yes");
        let private = side.wait(name, |side| {
            side.take(
                |event| matches!(event, Event::Established { .. }),
                |event| match event {
                    Event::Established { private_data, .. } => private_data,
                    _ => unreachable!(),
                },
            )
        });
        assert_eq!(private, b"yes");
        // The first attempt's end is not the connection's.
        side.post(conn, vec![send(b"old")]);
        assert_eq!(raw.fpdu(&mut side).1, b"old");
        raw.send(1, b"fashioned");
        let (message, _) = side.wait("message", |side| side.received(conn));
        assert_eq!(&message[..], b"fashioned");
        assert!(side.disconnected(conn).is_none());
        assert_quiet(&listener);
    }
}

#[test]
fn e01_the_second_attempt_is_the_last_and_gives_the_reason() {
    type Act = fn(&mut Side, Raw);
    let rejected = RdmaError::Rejected {
        private_data: b"no".to_vec(),
    };
    let cases: [(Act, RdmaError); 4] = [
        (|_, raw| drop(raw), RdmaError::Refused),
        (
            |_, mut raw| raw.write(b"MPA ID Rep Frame\x60\x01\0\x02no"),
            rejected,
        ),
        (
            |_, mut raw| raw.write(b"HTTP/1.1 400 Bad Request"),
            RdmaError::BadHandshake,
        ),
        // An enhanced reply to a plain request.
        (
            |_, mut raw| raw.write(b"MPA ID Rep Frame\x50\x02\0\x04\0\x01\0\x01"),
            RdmaError::BadHandshake,
        ),
    ];
    for (act, expected) in cases {
        let (mut side, conn, listener) = begin(IwarpConfig::default(), &ConnectParams::default());
        drop(request(&mut side, &listener, 2, b""));
        let raw = request(&mut side, &listener, 1, b"");
        act(&mut side, raw);
        assert_eq!(reason(&mut side, conn), LossReason::Failed(expected));
        assert_quiet(&listener);
        let flushed = |event: &&Event| matches!(event, Event::Flushed { .. });
        assert_eq!(side.events.iter().filter(flushed).count(), 4);
    }
}

#[test]
fn e01_both_attempts_share_one_deadline() {
    let params = ConnectParams {
        timeout: PATIENCE,
        ..ConnectParams::default()
    };
    let (mut side, conn, listener) = begin(IwarpConfig::default(), &params);
    let deadline = side.provider.next_deadline().unwrap();
    drop(request(&mut side, &listener, 2, b""));
    let _silent = request(&mut side, &listener, 1, b"");
    assert_eq!(side.provider.next_deadline(), Some(deadline));
    side.provider.poll(deadline, &mut side.events, 64);
    let expected = RdmaError::Timeout(RdmaOperation::Connect);
    assert_eq!(reason(&mut side, conn), LossReason::Failed(expected));
}

/// A process that was suspended beyond the deadline finds the answer that came in time.
#[test]
fn an_answer_counts_for_more_than_the_clock() {
    let (mut side, conn, listener) = begin(IwarpConfig::default(), &ConnectParams::default());
    let mut raw = request(&mut side, &listener, 2, b"");
    let deadline = side.provider.next_deadline().unwrap();
    raw.write(b"MPA ID Rep Frame\x50\x02\0\x04\0\x01\0\x01");
    // Loopback: what was written is there to be read.
    side.provider.poll(deadline, &mut side.events, 64);
    assert!(side.established(conn).is_some());
}

#[test]
fn e01_where_nobody_listens_any_more_the_second_attempt_is_refused() {
    let (mut side, conn, listener) = begin(IwarpConfig::default(), &ConnectParams::default());
    let raw = request(&mut side, &listener, 2, b"");
    drop(listener);
    drop(raw);
    let expected = LossReason::Failed(RdmaError::Refused);
    assert_eq!(reason(&mut side, conn), expected);
}

#[test]
fn a_plain_reply_where_plain_will_not_do_is_a_failure() {
    let config = IwarpConfig {
        peer_to_peer: true,
        ..IwarpConfig::default()
    };
    let (mut side, conn, listener) = begin(config, &ConnectParams::default());
    request(&mut side, &listener, 2, b"").write(PLAIN_REPLY);
    let expected = LossReason::Failed(RdmaError::BadHandshake);
    assert_eq!(reason(&mut side, conn), expected);
    assert_quiet(&listener);
}

/// What a reply of revision 2 says is not asked again.
#[test]
fn a_refusal_by_a_peer_of_revision_2_is_final() {
    let (mut side, conn, listener) = begin(IwarpConfig::default(), &ConnectParams::default());
    request(&mut side, &listener, 2, b"").write(b"MPA ID Rep Frame\x70\x02\0\x04\0\x01\0\x01");
    let expected = RdmaError::Rejected {
        private_data: Vec::new(),
    };
    assert_eq!(reason(&mut side, conn), LossReason::Failed(expected));
    assert_quiet(&listener);
}

/// Ours against ours, which was told to know revision 1 only.
#[test]
fn ours_of_revision_2_finds_ours_of_revision_1() {
    let old = IwarpConfig {
        revision: 1,
        ..IwarpConfig::default()
    };
    let (mut old, address): (Side, SocketAddr) = server(&ListenOptions::default(), old);
    let mut new = Side::new(IwarpConfig::default());
    let conn = new.connect(address, 4, &ConnectParams::default());
    let end = Instant::now() + PATIENCE;
    let incoming = loop {
        new.poll();
        old.poll();
        if let Some(incoming) = old.incoming() {
            break incoming;
        }
        assert!(Instant::now() < end);
    };
    let peer = old.accept(incoming, 4, &ConnectParams::default());
    new.wait("established", |side| side.established(conn));
    new.post(conn, vec![send(b"hello")]);
    let (message, _) = loop {
        new.poll();
        old.poll();
        if let Some(message) = old.received(peer) {
            break message;
        }
        assert!(Instant::now() < end);
    };
    assert_eq!(&message[..], b"hello");
}
