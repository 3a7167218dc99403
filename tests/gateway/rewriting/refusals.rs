//! What is refused, and what ends the connection.

use super::*;

/// What the gateway refuses, by what is wrong with the request, and the token to invalidate.
#[test]
fn what_is_refused_goes_as_an_echo() {
    let ok = memory(5, 4096, 4096);
    let mut twisted = Vec::new();
    let mut add = |name, message: Vec<u8>, invalidate| twisted.push((name, message, invalidate));
    add("channel 9", read(5, 4096, 9, &ok), false);
    add("channel 3", write(5, 4096, 3, &ok), false);
    add("length 0", read(5, 0, INVALIDATE, &ok), true);
    add(
        "above MaxReadSize",
        read(5, 2 * MIB + 1, INVALIDATE, &memory(5, 4 * MIB, 4 * MIB)),
        true,
    );
    add(
        "above MaxWriteSize",
        write(5, 2 * MIB + 1, V1, &memory(5, 4 * MIB, 4 * MIB)),
        false,
    );
    add("no information", read(5, 4096, V1, &[]), false);
    add("too little memory", write(5, 4097, INVALIDATE, &ok), true);
    let mut inline = write(5, 4096, INVALIDATE, &ok);
    put32(&mut inline, 68, 4096);
    add("a WRITE with Length", inline, true);
    let mut inline = write(5, 4096, INVALIDATE, &ok);
    put16(&mut inline, 66, 112);
    add("a WRITE with DataOffset", inline, true);
    for (name, at, value) in [
        ("information behind the message", 108, 113),
        ("information at the very end", 108, 0xffff),
        ("information inside of the body", 108, 111),
        ("information longer than the message", 110, 0xfff0),
        ("half a descriptor", 110, 8),
    ] {
        let mut message = read(5, 4096, INVALIDATE, &ok);
        put16(&mut message, at, value);
        add(name, message, false);
    }
    let mut empty = ok.clone();
    empty[0].length = 0;
    empty.extend(&ok);
    add(
        "an empty descriptor",
        read(5, 4096, INVALIDATE, &empty),
        true,
    );
    let mut wraps = ok.clone();
    wraps[0].offset = u64::MAX - 10;
    add(
        "an address that wraps",
        write(5, 4096, INVALIDATE, &wraps),
        true,
    );

    for (name, request, invalidate) in twisted {
        let mut rewriter = rewriter();
        let sent = forwarded(&client(&mut rewriter, request.clone()));
        assert_eq!(sent.len(), 68, "{name}");
        assert_eq!(
            (command(&sent), &sent[64..]),
            (ECHO, &[4, 0, 0, 0][..]),
            "{name}"
        );
        // All else of the header is as it was: id, credits, session.
        assert_eq!(
            (&sent[..12], &sent[14..64]),
            (&request[..12], &request[14..64]),
            "{name}"
        );

        let echo = answer(&sent, SUCCESS, &[4, 0, 0, 0]);
        let outputs = backend(&mut rewriter, &echo);
        let [
            Output::Answer {
                message,
                invalidate: token_,
            },
        ] = &outputs[..]
        else {
            panic!("{name}: {outputs:?}");
        };
        assert_eq!(command(message), command(&request), "{name}");
        assert_eq!(status(message), INVALID_PARAMETER, "{name}");
        assert_eq!(message[14..64], echo[14..64], "{name}");
        assert_eq!(message[64..], [9, 0, 0, 0, 0, 0, 0, 0, 0], "{name}");
        assert_eq!(*token_, invalidate.then_some(token(5)), "{name}");
        assert!(rewriter.is_idle(), "{name}");
        assert_eq!(rewriter.counts().refused, 1, "{name}");
    }
}

#[test]
fn remote_invalidation_is_refused_on_dialect_3_0() {
    let mut rewriter = started(0x0300, limits());
    let sent = forwarded(&client(
        &mut rewriter,
        read(5, 4096, INVALIDATE, &memory(5, 4096, 4096)),
    ));
    let outputs = backend(&mut rewriter, &answer(&sent, SUCCESS, &[4, 0, 0, 0]));
    let [
        Output::Answer {
            message,
            invalidate: None,
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(status(message), INVALID_PARAMETER);
    // V1 is not.
    let sent = forwarded(&client(
        &mut rewriter,
        read(6, 4096, V1, &memory(6, 4096, 4096)),
    ));
    assert_eq!(command(&sent), READ);
}

#[test]
fn an_echo_that_fails_has_its_own_reason_and_may_take_its_time() {
    let mut rewriter = rewriter();
    let sent = forwarded(&client(&mut rewriter, read(5, 0, V1, &memory(5, 1, 1))));
    let outputs = backend(&mut rewriter, &interim(&sent));
    let [
        Output::Answer {
            message,
            invalidate: None,
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!((command(message), status(message)), (READ, PENDING));
    let outputs = backend(&mut rewriter, &error_answer(&sent, DISK_FULL));
    let [Output::Answer { message, .. }] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!((command(message), status(message)), (READ, DISK_FULL));
}

#[test]
fn messages_that_cannot_be_understood_end_the_connection() {
    let request = |message: Vec<u8>| rewriter().handle_request(message.into());
    assert_eq!(
        request(b"GET / HTTP/1.1".to_vec()),
        Err(Reason::ClientNotSmb)
    );
    assert_eq!(request(vec![0xFE]), Err(Reason::ClientNotSmb));
    let bad = |bad| Err(Reason::ClientHeader(bad));
    let mut message = plain(CREATE, 5);
    message.truncate(63);
    assert_eq!(
        request(message),
        bad(BadHeader::TooShort { at: 0, len: 63 })
    );
    let mut message = plain(CREATE, 5);
    put16(&mut message, 4, 63);
    assert_eq!(
        request(message),
        bad(BadHeader::StructureSize { at: 0, found: 63 })
    );
    // Chains that stand still, overlap, or leave the message.
    for next in [8, 56, 63, 68, 74, 80, u32::MAX, !7] {
        let mut message = plain(CREATE, 5);
        put32(&mut message, 20, next);
        assert_eq!(
            request(message),
            bad(BadHeader::Next { at: 0, next }),
            "{next}"
        );
    }
    let mut message = compound(&[plain(CREATE, 5), plain(CLOSE, 6)]);
    let at = message.len() - 74;
    message[at + 1] = b'X';
    assert_eq!(request(message.clone()), bad(BadHeader::ProtocolId { at }));
    message.truncate(at + 10);
    assert_eq!(request(message), bad(BadHeader::TooShort { at, len: 10 }));

    let response = |message: Vec<u8>| rewriter().handle_response(message.into(), 0);
    assert_eq!(response(b"220 mail".to_vec()), Err(Reason::BackendNotSmb));
    let mut message = plain(CREATE, 5);
    put32(&mut message, 20, 8);
    assert_eq!(
        response(message),
        Err(Reason::BackendHeader(BadHeader::Next { at: 0, next: 8 }))
    );
    assert_eq!(
        response(read_answer(&plain(READ, 5), SUCCESS, &[0; 2 << 20])),
        Err(Reason::TooLargeForClient {
            len: 80 + (2 << 20),
            max: 1 << 20
        })
    );
}

#[test]
fn message_ids_are_used_once() {
    let twice = |second: Vec<u8>| {
        let mut rewriter = rewriter();
        client(&mut rewriter, write(5, 100, V1, &memory(5, 100, 100)));
        rewriter.handle_request(second.into())
    };
    assert_eq!(twice(plain(CREATE, 5)), Err(Reason::MessageIdInUse(5)));
    assert_eq!(twice(read(5, 1, V1, &[])), Err(Reason::MessageIdInUse(5)));
    let placed = |id| read(id, 100, V1, &memory(1, 100, 100));
    let both = compound(&[placed(6), placed(6)]);
    assert_eq!(twice(both), Err(Reason::MessageIdInUse(6)));
    assert_eq!(twice(placed(u64::MAX)), Err(Reason::MessageIdReserved));
}

#[test]
fn a_wrong_server_ends_the_connection() {
    let sent = read(5, 4096, V1, &memory(5, 4096, 4096));
    let answered = |answer: Vec<u8>| {
        let mut rewriter = rewriter();
        forwarded(&client(&mut rewriter, sent.clone()));
        rewriter.handle_response(answer.into(), 0)
    };
    let good = read_answer(&sent, SUCCESS, &[0; 100]);
    assert_eq!(answered(good.clone()), Ok(()));
    let with = |at: usize, value: u32| {
        let mut answer = good.clone();
        put32(&mut answer, at, value);
        answered(answer)
    };
    assert_eq!(
        with(68, 101),
        Err(Reason::DataOutside {
            offset: 80,
            length: 101,
            len: 180
        })
    );
    assert_eq!(
        with(68, 4097),
        Err(Reason::MoreThanRequested {
            data: 4097,
            requested: 4096
        })
    );
    let mut inside = good.clone();
    inside[66] = 79;
    assert_eq!(
        answered(inside),
        Err(Reason::DataOutside {
            offset: 79,
            length: 100,
            len: 180
        })
    );
    assert!(matches!(
        answered(good[..79].to_vec()),
        Err(Reason::DataOutside { .. })
    ));
    assert_eq!(with(16, RESPONSE | SIGNED), Err(Reason::AnswerSigned));
    for answer in [write_answer(&plain(WRITE, 5), 0), sent.clone()] {
        let found = command(&answer);
        let wrong = Err(Reason::AnswerToOther {
            message_id: 5,
            found,
        });
        assert_eq!(answered(answer), wrong);
    }
    let mut rewriter = rewriter();
    client(&mut rewriter, write(6, 100, V1, &memory(6, 100, 100)));
    let early = write_answer(&plain(WRITE, 6), 100);
    assert_eq!(
        rewriter.handle_response(early.into(), 0),
        Err(Reason::AnswerTooEarly(6))
    );
}

#[test]
fn data_that_does_not_fit_the_descriptors_is_an_error() {
    let mut rewriter = rewriter();
    let request = read(5, 4096, INVALIDATE, &memory(5, 1000, 500));
    let sent = forwarded(&client(&mut rewriter, request));
    let outputs = backend(&mut rewriter, &read_answer(&sent, SUCCESS, &[0; 1001]));
    let [
        Output::Answer {
            message,
            invalidate,
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!((status(message), message.len()), (INVALID_PARAMETER, 73));
    assert_eq!(*invalidate, Some(token(5)));
    assert!(rewriter.is_idle());
}
