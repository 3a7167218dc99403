use super::*;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn local(revision: u8) -> Local {
    Local {
        revision,
        crc: true,
        markers: false,
        peer_to_peer: false,
        ird: 16,
        ord: 1,
        max_ird: 128,
    }
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

fn parse(kind: Kind, bytes: &[u8]) -> Frame {
    let (frame, len) = Frame::parse(kind, bytes).unwrap().unwrap();
    assert_eq!(len, bytes.len());
    frame
}

#[test]
fn golden_request_and_replies() {
    let req = request(&local(2), Vec::new());
    assert_eq!(
        bytes(&req),
        hex("4d504120494420526571204672616d655002000400100001")
    );
    let server = Local {
        ird: 1,
        ord: 16,
        ..local(2)
    };
    let (reply, _) = accept(&server, &req, Vec::new());
    assert_eq!(
        bytes(&reply),
        hex("4d504120494420526570204672616d655002000400010010")
    );
    let req = request(&local(1), Vec::new());
    assert_eq!(bytes(&req), hex("4d504120494420526571204672616d6540010000"));
    let (reply, _) = accept(&server, &req, Vec::new());
    assert_eq!(
        bytes(&reply),
        hex("4d504120494420526570204672616d6540010000")
    );
}

#[test]
fn m02_wrong_key_fails_at_the_first_wrong_byte() {
    assert_eq!(Frame::parse(Kind::Request, b"G"), Err(MpaError::Key));
    assert_eq!(Frame::parse(Kind::Request, b"MPA ID R"), Ok(None));
    assert_eq!(
        Frame::parse(Kind::Reply, b"MPA ID Req Frame"),
        Err(MpaError::Key),
        "initiator against initiator"
    );
}

#[test]
fn m03_revisions() {
    let mut frame = bytes(&request(&local(2), Vec::new()));
    for revision in [0, 3, 255] {
        frame[17] = revision;
        assert_eq!(
            Frame::parse(Kind::Request, &frame),
            Err(MpaError::Revision(revision))
        );
    }
    let enhanced = request(&local(2), Vec::new());
    assert_eq!(acceptable(1, &enhanced), Err(MpaError::Revision(2)));
    assert_eq!(acceptable(2, &request(&local(1), Vec::new())), Ok(()));
}

#[test]
fn m04_private_data_lengths_and_split_frames() {
    let private: Vec<u8> = (0..MAX_ULP_PRIVATE_DATA).map(|i| i as u8).collect();
    let mut frame = bytes(&request(&local(2), private.clone()));
    assert_eq!(frame.len(), MAX_FRAME);
    assert_eq!(parse(Kind::Request, &frame).private_data, private);
    for cut in 0..frame.len() {
        assert_eq!(Frame::parse(Kind::Request, &frame[..cut]), Ok(None));
    }
    frame[18..20].copy_from_slice(&513u16.to_be_bytes());
    assert_eq!(
        Frame::parse(Kind::Request, &frame),
        Err(MpaError::PrivateData(513))
    );
    frame[18..20].copy_from_slice(&3u16.to_be_bytes());
    assert_eq!(
        Frame::parse(Kind::Request, &frame),
        Err(MpaError::PrivateData(3)),
        "no room for the enhanced word"
    );
}

#[test]
fn m05_reserved_bits_are_not_looked_at() {
    let mut frame = bytes(&request(&local(2), Vec::new()));
    assert_eq!(frame[16] & 0x2F, 0);
    frame[16] |= 0x2F;
    let parsed = parse(Kind::Request, &frame);
    assert_eq!(parsed, request(&local(2), Vec::new()));
}

#[test]
fn m06_a_rejection_brings_its_private_data() {
    let req = request(&local(2), Vec::new());
    let reply = parse(Kind::Reply, &bytes(&reject(&req, b"no".to_vec())));
    assert!(reply.reject);
    assert_eq!(reply.private_data, b"no");
    // E05.
    let word = reply.enhanced.unwrap();
    assert_eq!((word.ird, word.ord), (1, 16));
}

#[test]
fn m07_crc_is_on_if_either_wants_it() {
    for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
        let initiator = Local { crc: a, ..local(2) };
        let responder = Local { crc: b, ..local(2) };
        let (reply, theirs) = accept(&responder, &request(&initiator, vec![]), vec![]);
        let ours = conclude(&initiator, &reply).unwrap();
        assert_eq!((ours.crc, theirs.crc), (a || b, a || b));
    }
}

#[test]
fn m08_markers_per_direction() {
    for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
        let initiator = Local {
            markers: a,
            ..local(2)
        };
        let responder = Local {
            markers: b,
            ..local(2)
        };
        let (reply, theirs) = accept(&responder, &request(&initiator, vec![]), vec![]);
        let ours = conclude(&initiator, &reply).unwrap();
        assert_eq!((ours.receive_markers, ours.send_markers), (a, b));
        assert_eq!((theirs.receive_markers, theirs.send_markers), (b, a));
    }
}

#[test]
fn e01_enhanced_is_answered_enhanced() {
    let plain = request(&local(1), vec![]);
    let (reply, settings) = accept(&local(2), &plain, vec![]);
    assert_eq!((reply.revision, reply.enhanced), (1, None));
    assert_eq!((settings.ird, settings.ord), (16, 1));
    assert!(conclude(&local(1), &reply).is_ok());
    assert_eq!(conclude(&local(2), &reply), Err(MpaError::NotEnhanced));
    let (enhanced, _) = accept(&local(2), &request(&local(2), vec![]), vec![]);
    assert_eq!(
        conclude(&local(1), &enhanced),
        Err(MpaError::Revision(2)),
        "a reply of a later revision than the request"
    );
}

#[test]
fn e02_depths_fit_both_ends() {
    let initiator = Local {
        ird: 4,
        ord: 100,
        max_ird: 8,
        ..local(2)
    };
    let responder = Local {
        ird: 32,
        ord: 64,
        ..local(2)
    };
    let (reply, theirs) = accept(&responder, &request(&initiator, vec![]), vec![]);
    let ours = conclude(&initiator, &reply).unwrap();
    assert_eq!((ours.ird, ours.ord), (4, 32));
    assert_eq!((theirs.ird, theirs.ord), (32, 4));
    // A responder that wants more: raised as far as it goes, then refused.
    let mut greedy = reply.clone();
    greedy.enhanced.as_mut().unwrap().ord = 8;
    assert_eq!(conclude(&initiator, &greedy).unwrap().ird, 8);
    greedy.enhanced.as_mut().unwrap().ord = 9;
    let error = conclude(&initiator, &greedy).unwrap_err();
    assert_eq!(error, MpaError::InsufficientIrd);
    assert_eq!(error.terminate(), Some(TermCode::MPA_INSUFFICIENT_IRD));
}

#[test]
fn e03_depths_that_are_not_negotiated() {
    let mut req = request(&local(2), vec![]);
    *req.enhanced.as_mut().unwrap() = Enhanced {
        ird: 0x3FFF,
        ord: 0x3FFF,
        ..Enhanced::default()
    };
    let responder = Local {
        ird: 32,
        ord: 64,
        ..local(2)
    };
    let (reply, settings) = accept(&responder, &req, vec![]);
    let word = reply.enhanced.unwrap();
    assert_eq!((word.ird, word.ord), (0x3FFF, 0x3FFF));
    assert_eq!((settings.ird, settings.ord), (32, 64));
    let settings = conclude(&local(2), &reply).unwrap();
    assert_eq!((settings.ird, settings.ord), (16, 1));
}

#[test]
fn e04_peer_to_peer_needs_a_common_message() {
    let initiator = Local {
        peer_to_peer: true,
        ..local(2)
    };
    let req = parse(Kind::Request, &bytes(&request(&initiator, vec![])));
    let (reply, theirs) = accept(&local(2), &req, vec![]);
    let reply = parse(Kind::Reply, &bytes(&reply));
    assert_eq!(theirs.rtr, Rtr::Write);
    assert_eq!(conclude(&initiator, &reply).unwrap().rtr, Rtr::Write);
    for (word, rtr) in [
        (
            Enhanced {
                rtr_read: true,
                ..Enhanced::default()
            },
            Rtr::Read,
        ),
        (
            Enhanced {
                rtr_send: true,
                ..Enhanced::default()
            },
            Rtr::Fpdu,
        ),
    ] {
        let mut req = req.clone();
        req.enhanced = Some(Enhanced {
            peer_to_peer: true,
            ..word
        });
        assert_eq!(accept(&local(2), &req, vec![]).1.rtr, rtr);
    }
    let mut none = reply.clone();
    none.enhanced.as_mut().unwrap().rtr_write = false;
    let error = conclude(&initiator, &none).unwrap_err();
    assert_eq!(error.terminate(), Some(TermCode::MPA_NO_MATCHING_RTR));
    // Client-server: the three bits are zero on the wire and ignored.
    let plain = parse(Kind::Request, &bytes(&request(&local(2), vec![])));
    assert_eq!(accept(&local(2), &plain, vec![]).1.rtr, Rtr::None);
}

proptest::proptest! {
    #[test]
    fn any_bytes_never_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600),
        valid_key: bool,
    ) {
        let mut bytes = bytes;
        for (kind, key) in [(Kind::Request, REQUEST_KEY), (Kind::Reply, REPLY_KEY)] {
            if valid_key && bytes.len() >= 16 {
                bytes[..16].copy_from_slice(key);
            }
            if let Ok(Some((frame, used))) = Frame::parse(kind, &bytes) {
                proptest::prop_assert!(used <= bytes.len());
                let _ = conclude(&local(2), &frame);
                let _ = accept(&local(2), &frame, vec![]);
            }
        }
    }
}
