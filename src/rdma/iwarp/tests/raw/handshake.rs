//! The handshake with peers of all kinds, and with none.

use super::*;

#[test]
fn a_siw_initiator_finds_what_it_wants() {
    for config in [IwarpConfig::default(), no_crc()] {
        let crc = config.crc;
        let (mut side, conn, mut raw) = initiator(config, &SIW);
        assert_eq!(raw.crc, crc);
        side.post(conn, vec![send(b"held")]);
        // Nothing may come before its first FPDU: siw takes that for a failure.
        for _ in 0..50 {
            side.poll();
            raw.pump();
        }
        assert!(raw.bytes.is_empty());
        raw.send(1, b"first");
        let (segment, payload) = raw.fpdu(&mut side);
        assert_eq!((segment.opcode, &payload[..]), (Opcode::Send, &b"held"[..]));
        let (buffer, _) = side.wait("message", |side| side.received(conn));
        assert_eq!(&buffer[..], b"first");
    }
}

#[test]
fn a_siw_responder_that_overlooked_the_first_fpdu_is_woken() {
    let (mut side, conn, mut raw) = responder(IwarpConfig::default(), &SIW);
    let start = Instant::now();
    side.post(conn, vec![send(b"hello")]);
    let (segment, payload) = raw.fpdu(&mut side);
    assert_eq!(
        (segment.opcode, &payload[..]),
        (Opcode::Send, &b"hello"[..])
    );
    let (segment, payload) = raw.fpdu(&mut side);
    assert_eq!((segment.opcode, payload.len()), (Opcode::Write, 0));
    assert!(start.elapsed() >= Duration::from_millis(50));
    raw.send(1, b"awake");
    side.wait("message", |side| side.received(conn));
    let quiet = Instant::now() + Duration::from_millis(400);
    while Instant::now() < quiet {
        side.poll();
        std::thread::sleep(Duration::from_millis(5));
    }
    raw.pump();
    assert!(raw.bytes.is_empty(), "no more wake-up calls");
}

#[test]
fn no_wake_up_call_where_none_is_wanted_or_the_peer_answers() {
    for nudge in [None, Some(Duration::MAX)] {
        let config = IwarpConfig {
            nudge,
            ..IwarpConfig::default()
        };
        let (mut side, conn, mut raw) = responder(config, &SIW);
        side.post(conn, vec![send(b"hello")]);
        raw.fpdu(&mut side);
        assert_eq!(
            side.provider.next_deadline().map(|at| at > Instant::now()),
            Some(true)
        );
        let quiet = Instant::now() + Duration::from_millis(200);
        while Instant::now() < quiet {
            side.poll();
            std::thread::sleep(Duration::from_millis(5));
        }
        raw.pump();
        assert!(raw.bytes.is_empty());
    }
}

/// E04, the responder's side: an initiator that offers one form of ready-to-receive message gets it
/// agreed, and the connection is up with it and not before.
#[test]
fn e04_every_ready_to_receive_message_opens_the_connection() {
    for rtr in [Rtr::Fpdu, Rtr::Write, Rtr::Read] {
        let (mut side, address) = server(&ListenOptions::default(), IwarpConfig::default());
        let mut raw = Raw::connect(address);
        let word = Enhanced {
            peer_to_peer: true,
            rtr_send: rtr == Rtr::Fpdu,
            rtr_write: rtr == Rtr::Write,
            rtr_read: rtr == Rtr::Read,
            // It wants no reads but the one that may be its message.
            ird: 1,
            ord: 0,
        };
        let request = Frame {
            enhanced: Some(word),
            ..mpa::request(&SIW, Vec::new())
        };
        raw.write(&encoded(&request));
        let incoming = side.wait("incoming", Side::incoming);
        let conn = side.accept(incoming, 4, &ConnectParams::default());
        let reply = raw.take(&mut side, 24);
        let (reply, _) = Frame::parse(Kind::Reply, &reply).unwrap().unwrap();
        let agreed = reply.enhanced.unwrap();
        assert!(agreed.peer_to_peer);
        assert_eq!(
            (agreed.rtr_send, agreed.rtr_write, agreed.rtr_read),
            (word.rtr_send, word.rtr_write, word.rtr_read)
        );
        side.post(conn, vec![send(b"first")]);
        for _ in 0..50 {
            side.poll();
            raw.pump();
        }
        assert!(raw.bytes.is_empty() && side.established(conn).is_none());
        match rtr {
            Rtr::None => unreachable!(),
            Rtr::Fpdu => raw.write(&[&[0; 4][..], &Crc::of(&[0; 4])].concat()),
            Rtr::Write => {
                let address = Address::Tagged { tag: 1, offset: 0 };
                raw.write(&framed(&segment(Opcode::Write, address), &[], true));
            }
            Rtr::Read => {
                let nothing = ReadRequest {
                    sink_tag: 1,
                    sink_offset: 0,
                    len: 0,
                    source_tag: 1,
                    source_offset: 0,
                };
                let address = Address::Untagged {
                    invalidate: 0,
                    queue: 1,
                    msn: 1,
                    offset: 0,
                };
                let read = segment(Opcode::ReadRequest, address);
                raw.write(&framed(&read, &nothing.encode(), true));
            }
        }
        side.wait("established", |side| side.established(conn));
        let mut answers = vec![raw.fpdu(&mut side)];
        if rtr == Rtr::Read {
            answers.push(raw.fpdu(&mut side));
        }
        let is = |opcode| move |(segment, _): &&(Segment, Vec<u8>)| segment.opcode == opcode;
        let first = answers.iter().find(is(Opcode::Send)).unwrap();
        assert_eq!(first.1, b"first");
        let response = answers.iter().find(is(Opcode::ReadResponse));
        assert_eq!(response.is_some(), rtr == Rtr::Read);
        assert!(response.is_none_or(|(_, payload)| payload.is_empty()));
    }
}

#[test]
fn e02_a_responder_that_asks_for_too_many_reads_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut side = Side::new(IwarpConfig::default());
    let conn = side.connect(listener.local_addr().unwrap(), 0, &ConnectParams::default());
    let mut raw = Raw::over(listener.accept().unwrap().0);
    raw.take(&mut side, 24);
    raw.write(b"MPA ID Rep Frame\x50\x02\0\x04\0\x10\x02\0");
    assert_eq!(raw.terminate(&mut side), TermCode::MPA_INSUFFICIENT_IRD);
    drop(raw);
    let reason = side.wait("end", |side| side.disconnected(conn));
    let expected = RdmaError::FabricViolation {
        layer: 2,
        error_type: 0,
        code: 6,
    };
    assert_eq!(reason, LossReason::Failed(expected));
}

#[test]
fn m02_m04_wrong_requests_are_closed_at_once() {
    let config = IwarpConfig {
        request_timeout: Duration::from_secs(600),
        ..IwarpConfig::default()
    };
    let (mut side, address) = server(&ListenOptions::default(), config);
    let mut extra = encoded(&mpa::request(&SIW, vec![]));
    extra.push(0);
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\xFESMB",
        b"MPA ID Rep Frame\x40\x01\0\0",
        b"MPA ID Req Frame\x40\x07\0\0",
        b"MPA ID Req Frame\x40\x01\xFF\xFF",
        &extra,
    ] {
        let mut raw = Raw::connect(address);
        raw.write(bytes);
        assert!(raw.end(&mut side).is_empty(), "{bytes:?}");
    }
    assert!(side.incoming().is_none());
}

#[test]
fn m11_silent_peers_time_out() {
    let config = IwarpConfig {
        request_timeout: Duration::from_millis(80),
        ..IwarpConfig::default()
    };
    let (mut side, address) = server(&ListenOptions::default(), config);
    let mut raw = Raw::connect(address);
    raw.write(b"MPA ID");
    assert!(raw.end(&mut side).is_empty());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let params = ConnectParams {
        timeout: Duration::from_millis(80),
        ..ConnectParams::default()
    };
    let conn = side.connect(listener.local_addr().unwrap(), 2, &params);
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert_eq!(
        reason,
        LossReason::Failed(RdmaError::Timeout(crate::rdma::RdmaOperation::Connect))
    );
    let flushed = side
        .events
        .iter()
        .filter(|e| matches!(e, Event::Flushed { .. }));
    assert_eq!(flushed.count(), 2);
}

#[test]
fn unfinished_handshakes_are_capped_per_peer() {
    let options = ListenOptions {
        max_half_open_per_peer: 2,
        ..ListenOptions::default()
    };
    let (mut side, address) = server(&options, IwarpConfig::default());
    let mut first = Raw::connect(address);
    let _second = Raw::connect(address);
    side.poll();
    let mut third = Raw::connect(address);
    assert!(third.end(&mut side).is_empty());
    // One that finishes makes room.
    first.write(&encoded(&mpa::request(&SIW, vec![])));
    let _incoming = side.wait("incoming", Side::incoming);
    let mut fourth = Raw::connect(address);
    fourth.write(&encoded(&mpa::request(&SIW, vec![])));
    side.wait("incoming", Side::incoming);
}

#[test]
fn unfinished_handshakes_are_capped_in_total() {
    let options = ListenOptions {
        max_half_open: 1,
        ..ListenOptions::default()
    };
    let config = IwarpConfig {
        request_timeout: Duration::from_millis(100),
        ..IwarpConfig::default()
    };
    let (mut side, address) = server(&options, config);
    let _silent = Raw::connect(address);
    side.poll();
    let mut second = Raw::connect(address);
    second.write(&encoded(&mpa::request(&SIW, vec![])));
    // It waits in the system's queue until the silent one has timed out.
    side.wait("incoming", Side::incoming);
}

#[test]
fn m06_rejections() {
    for explicit in [true, false] {
        let (mut client, (mut side, address)) = (
            Side::new(IwarpConfig::default()),
            server(&ListenOptions::default(), IwarpConfig::default()),
        );
        let conn = client.connect(address, 0, &ConnectParams::default());
        let incoming = loop {
            client.poll();
            side.poll();
            if let Some(incoming) = side.incoming() {
                break incoming;
            }
        };
        if explicit {
            side.provider.reject(incoming);
        } else {
            drop(incoming);
        }
        let reason = client.wait("end", |side| side.disconnected(conn));
        let expected = RdmaError::Rejected {
            private_data: vec![],
        };
        assert_eq!(reason, LossReason::Failed(expected));
    }
}

#[test]
fn nobody_listens_or_somebody_else_does() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut side = Side::new(IwarpConfig::default());
    let error = side
        .provider
        .listen(address, &ListenOptions::default())
        .unwrap_err();
    assert_eq!(error, RdmaError::AddressInUse(address));
    // Another protocol: it closes, whatever it is asked.
    let conn = side.connect(address, 0, &ConnectParams::default());
    listener.set_nonblocking(true).unwrap();
    for len in [24, 20] {
        let (stream, _) = side.wait("connection", |_| listener.accept().ok());
        Raw::over(stream).take(&mut side, len);
    }
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert!(
        matches!(
            reason,
            LossReason::Failed(RdmaError::Refused | RdmaError::ConnectionLost)
        ),
        "{reason:?}"
    );
    drop(listener);
    let conn = side.connect(address, 0, &ConnectParams::default());
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert_eq!(reason, LossReason::Failed(RdmaError::Refused));
    let foreign = "192.0.2.1:5445".parse().unwrap();
    let error = side
        .provider
        .listen(foreign, &ListenOptions::default())
        .unwrap_err();
    assert_eq!(error, RdmaError::NotLocal(foreign));
}
