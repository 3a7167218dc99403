//! What waits: for data, for memory, and for the rest of its compound.

use super::*;

#[test]
fn a_cancel_waits_for_its_write() {
    let mut rewriter = rewriter();
    let request = write(6, 100, V1, &memory(6, 100, 100));
    let transfer = fetch(&client(&mut rewriter, request)[0]);
    let cancel = header(CANCEL, 6);
    assert_eq!(client(&mut rewriter, cancel.clone()), []);
    assert_eq!(client(&mut rewriter, cancel.clone()), []);
    // Others overtake.
    let overtaking = plain(CREATE, 7);
    assert_eq!(
        client(&mut rewriter, overtaking.clone()),
        [forward(&overtaking)]
    );
    // What comes in one message with it does not.
    let with_others = compound(&[plain(CREATE, 9), cancel.clone()]);
    assert_eq!(client(&mut rewriter, with_others.clone()), []);
    rewriter.read_finished(transfer);
    let mut outputs = outputs(&mut rewriter);
    assert_eq!(outputs.pop(), Some(forward(&with_others)));
    assert_eq!(outputs.pop(), Some(forward(&cancel)));
    forwarded(&outputs);
    // From now on nothing holds it, and a CANCEL of what the server has answered asynchronously is
    // never held.
    assert_eq!(client(&mut rewriter, cancel.clone()), [forward(&cancel)]);
    let request = write(8, 100, V1, &memory(8, 100, 100));
    client(&mut rewriter, request);
    let mut cancel = header(CANCEL, 8);
    put32(&mut cancel, 16, ASYNC);
    assert_eq!(client(&mut rewriter, cancel.clone()), [forward(&cancel)]);
}

#[test]
fn a_compound_is_sent_as_a_whole_and_answered_in_parts() {
    let mut rewriter = rewriter();
    let mut close = plain(CLOSE, 14);
    put32(&mut close, 16, RELATED);
    let request = compound(&[
        plain(CREATE, 10),
        write(11, 1001, INVALIDATE, &memory(11, 1001, 1001)),
        read(12, 77, INVALIDATE, &memory(12, 77, 10)),
        read(13, 0, INVALIDATE, &memory(13, 5, 5)),
        close.clone(),
    ]);
    let transfer = fetch(&client(&mut rewriter, request)[0]);
    rewriter.read_finished(transfer);
    let sent = forwarded(&outputs(&mut rewriter));
    let members = split(&sent);
    let commands: Vec<u16> = members.iter().map(|member| command(member)).collect();
    assert_eq!(commands, [CREATE, WRITE, READ, ECHO, CLOSE]);
    assert_eq!(members[1].len(), (112_usize + 1001).next_multiple_of(8));
    assert_eq!(members[2].len(), 120);
    assert_eq!(members[4], close);

    let response = compound(&[
        answer(members[0], SUCCESS, &[89; 89]),
        write_answer(members[1], 1001),
        read_answer(members[2], SUCCESS, &[6; 77]),
        answer(members[3], SUCCESS, &[4, 0, 0, 0]),
        answer(members[4], SUCCESS, &[60; 60]),
    ]);
    // Its data is not all that follows.
    assert_eq!(rewriter.room_for(&response[..PREFIX]), None);
    let outputs = backend(&mut rewriter, &response);
    let [
        Output::Answer {
            message: first,
            invalidate: Some(a),
        },
        Output::Place {
            data,
            response: second,
            invalidate: Some(b),
            ..
        },
        Output::Answer {
            message: third,
            invalidate: Some(c),
        },
        Output::Answer {
            message: fourth,
            invalidate: None,
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!([*a, *b, *c], [11, 12, 13].map(token));
    assert_eq!(*data, Data::Message(vec![6; 77].into()));
    let commands = |message| split(message).into_iter().map(command).collect::<Vec<_>>();
    assert_eq!(commands(first), [CREATE, WRITE]);
    assert_eq!(commands(second), [READ]);
    assert_eq!(commands(third), [READ]);
    assert_eq!(commands(fourth), [CLOSE]);
    assert_eq!(status(third), INVALID_PARAMETER);
}

#[test]
fn a_compound_too_large_for_the_server_is_refused_as_a_whole() {
    let mut limits = limits();
    limits.max_backend = 100_000;
    for reads in [true, false] {
        let mut rewriter = started(0x0311, limits);
        let part = |id| {
            let memory = memory(id, 60_000, 60_000);
            if reads {
                read(id, 60_000, INVALIDATE, &memory)
            } else {
                write(id, 60_000, V1, &memory)
            }
        };
        let sent = forwarded(&client(&mut rewriter, compound(&[part(5), part(6)])));
        let members = split(&sent);
        assert_eq!([command(members[0]), command(members[1])], [ECHO, ECHO]);
        let outputs = backend(&mut rewriter, &answer(members[0], SUCCESS, &[4, 0, 0, 0]));
        let [Output::Answer { message, .. }] = &outputs[..] else {
            panic!("{outputs:?}");
        };
        assert_eq!(status(message), INSUFFICIENT_RESOURCES);
    }
}

#[test]
fn requests_wait_for_memory_in_order() {
    let mut rewriter = rewriter();
    // 4 MiB in all: two of these fit.
    let large = |id| write(id, 2 * MIB, V1, &memory(id, 2 * MIB, 2 * MIB));
    let first = fetch(&client(&mut rewriter, large(1))[0]);
    fetch(&client(&mut rewriter, large(2))[0]);
    assert_eq!(client(&mut rewriter, large(3)), []);
    // A small one does not overtake; what needs no memory does.
    assert_eq!(
        client(&mut rewriter, read(4, 10, V1, &memory(4, 10, 10))),
        []
    );
    assert_eq!(client(&mut rewriter, plain(CREATE, 5)).len(), 1);
    assert_eq!(
        forwarded(&client(&mut rewriter, read(6, 0, V1, &[]))).len(),
        68
    );
    rewriter.read_finished(first);
    let sent = forwarded(&outputs(&mut rewriter));
    let outputs = backend(&mut rewriter, &write_answer(&sent, 2 * MIB));
    assert_eq!(outputs.len(), 2, "{outputs:?}");
    fetch(&outputs[0]);
    // What takes long gives its memory to others.
    let mut rewriter = rewriter_with_memory(1 << 20);
    let sent = forwarded(&client(
        &mut rewriter,
        read(1, 2 * MIB, V1, &memory(1, 2 * MIB, 2 * MIB)),
    ));
    assert_eq!(client(&mut rewriter, large(2)), []);
    assert_eq!(backend(&mut rewriter, &interim(&sent)).len(), 2);
    assert!(rewriter.takes_responses());
    let outputs = backend(&mut rewriter, &read_answer(&sent, SUCCESS, &[1; 100_000]));
    let [Output::Place { transfer, .. }] = outputs[..] else {
        panic!("{outputs:?}");
    };
    rewriter.placed(transfer);
}

fn rewriter_with_memory(max_memory: u64) -> Rewriter {
    started(
        0x0311,
        Limits {
            max_memory,
            ..limits()
        },
    )
}

#[test]
fn not_too_many_requests_wait() {
    let mut rewriter = rewriter_with_memory(4096);
    let mut id = 0;
    while rewriter.takes_requests() {
        id += 1;
        client(&mut rewriter, write(id, 4096, V1, &memory(id, 4096, 4096)));
        assert!(id < 1000);
    }
    assert_eq!(id, 128);
}

/// What waits for memory takes some itself: a compound may have data in messages, and a CANCEL may
/// come with others.
#[test]
fn what_waits_is_bounded_in_bytes() {
    for in_batch in [true, false] {
        let mut rewriter = rewriter_with_memory(4096);
        let large = |id| write(id, 4096, V1, &memory(id, 4096, 4096));
        client(&mut rewriter, large(1));
        client(&mut rewriter, large(2));
        let (mut id, mut bytes) = (2, 0);
        while rewriter.takes_requests() {
            id += 2;
            let inline = inline_write(id, &vec![1; 900_000]);
            let other = match in_batch {
                true => large(id + 1),
                false => header(CANCEL, 2),
            };
            let message = compound(&[inline, other]);
            bytes += message.len();
            assert_eq!(client(&mut rewriter, message), []);
            assert!(bytes < 6 << 20, "{bytes} bytes");
        }
    }
}

/// Descriptors of one request may take more memory than its data.
#[test]
fn descriptors_take_memory_as_data_does() {
    let mut rewriter = rewriter_with_memory(256 << 10);
    // 4,000 of them are 64,000 bytes, and 4,096 bytes of data.
    let request = |id| read(id, 4000, V1, &memory(id, 4000, 1));
    for id in 1..=3 {
        assert_eq!(client(&mut rewriter, request(id)).len(), 1);
    }
    assert_eq!(client(&mut rewriter, request(4)), []);
    let sent = plain(READ, 1);
    let outputs = backend(&mut rewriter, &error_answer(&sent, END_OF_FILE));
    assert!(matches!(
        outputs[..],
        [Output::ForwardPieces(_), Output::Answer { .. }]
    ));
}
