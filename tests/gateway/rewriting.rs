//! The rewriting, rule by rule, without I/O.

mod order;
mod refusals;

use bytes::Bytes;

use crate::rewrite::{
    BadHeader, Data, Limits, Output, PREFIX, Piece, Reason, Rewriter, TransferId, Warning,
    owes_answer,
};
use crate::smb2::*;

const MIB: u32 = 1 << 20;

fn limits() -> Limits {
    Limits {
        max_transfer: 8 * MIB,
        max_to_client: 1 << 20,
        max_backend: (1 << 24) - 1,
        max_memory: 4 << 20,
    }
}

fn started(dialect: u16, limits: Limits) -> Rewriter {
    let mut rewriter = Rewriter::new(limits);
    client(&mut rewriter, plain(NEGOTIATE, 0));
    let negotiated = negotiate_answer(dialect, 2 * MIB, 2 * MIB);
    assert_eq!(
        backend(&mut rewriter, &negotiated),
        [answer_of(&negotiated, None)]
    );
    let setup = plain(SESSION_SETUP, 1);
    client(&mut rewriter, setup.clone());
    backend(&mut rewriter, &logged_in(&setup));
    rewriter
}

fn rewriter() -> Rewriter {
    started(0x0311, limits())
}

fn outputs(rewriter: &mut Rewriter) -> Vec<Output> {
    std::iter::from_fn(|| rewriter.poll_output()).collect()
}

/// Gives it a message of the client.
fn client(rewriter: &mut Rewriter, message: Vec<u8>) -> Vec<Output> {
    rewriter
        .handle_request(message.into())
        .expect("a message that is understood");
    outputs(rewriter)
}

/// Gives it a whole message of the server.
fn backend(rewriter: &mut Rewriter, message: &[u8]) -> Vec<Output> {
    let message = Bytes::copy_from_slice(message);
    rewriter
        .handle_response(message, 0)
        .expect("a message that is understood");
    outputs(rewriter)
}

fn answer_of(message: &[u8], invalidate: Option<u32>) -> Output {
    Output::Answer {
        message: Bytes::copy_from_slice(message),
        invalidate,
    }
}

fn forward(message: &[u8]) -> Output {
    Output::Forward(Bytes::copy_from_slice(message))
}

/// The one message that goes to the server, with zeros for data.
fn forwarded(outputs: &[Output]) -> Vec<u8> {
    let [Output::ForwardPieces(pieces)] = outputs else {
        panic!("one message to the server: {outputs:?}");
    };
    let mut message = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => message.extend_from_slice(bytes),
            Piece::Fetched(_) => message.extend(vec![0; fetched_len(&message)]),
        }
    }
    message
}

/// The length of the data that the last WRITE in `message` is without.
fn fetched_len(message: &[u8]) -> usize {
    let mut at = 0;
    while at + 112 < message.len() {
        at += get32(message, at + 20) as usize;
    }
    get32(message, at + 68) as usize
}

fn fetch(output: &Output) -> TransferId {
    match output {
        Output::Fetch { transfer, .. } => *transfer,
        other => panic!("a read from the client: {other:?}"),
    }
}

#[test]
fn a_read_becomes_an_ordinary_one_and_its_data_is_placed() {
    let mut rewriter = rewriter();
    let request = read(5, 10_000, INVALIDATE, &memory(5, 10_000, 4096));
    let sent = forwarded(&client(&mut rewriter, request.clone()));
    // [MS-SMB2] 2.2.19: header, body and a byte of buffer; all but the channel as it was.
    assert_eq!(sent.len(), 113);
    assert_eq!(sent[..100], request[..100]);
    assert_eq!(sent[100..], [0; 13]);

    // As it comes over TCP: the data straight into memory for RDMA.
    let data: Vec<u8> = (0..9_000).map(|i| i as u8).collect();
    let response = read_answer(&sent, SUCCESS, &data);
    assert_eq!(rewriter.room_for(&response[..PREFIX]), Some(9_000));
    let prefix = Bytes::copy_from_slice(&response[..PREFIX]);
    rewriter.handle_response(prefix, 9_000).unwrap();
    let outputs = outputs(&mut rewriter);
    let [
        Output::Place {
            transfer,
            data: Data::Payload(range),
            to,
            response: placed,
            invalidate,
        },
    ] = &outputs[..]
    else {
        panic!("data to be placed: {outputs:?}");
    };
    assert_eq!((range.clone(), to.len()), (0..9_000, 10_000));
    assert_eq!(*invalidate, Some(token(5)));
    // [MS-SMB2] 3.3.5.12: DataLength 0, DataRemaining is what was placed; credits are the server's.
    assert_eq!(placed[..64], response[..64]);
    assert_eq!((placed.len(), get16(placed, 64), placed[66]), (80, 17, 80));
    assert_eq!(
        (get32(placed, 68), get32(placed, 72), get32(placed, 76)),
        (0, 9_000, 0)
    );
    assert!(!rewriter.is_idle());
    rewriter.placed(*transfer);
    assert!(rewriter.is_idle());
    assert_eq!(rewriter.counts().reads, 1);
}

#[test]
fn a_write_is_sent_when_its_data_is_here() {
    let mut rewriter = rewriter();
    let request = write(6, 5_000, INVALIDATE, &memory(6, 5_000, 5_000));
    let outputs_ = client(&mut rewriter, request.clone());
    let [
        Output::Fetch {
            transfer,
            len,
            from,
        },
    ] = &outputs_[..]
    else {
        panic!("nothing but a read: {outputs_:?}");
    };
    assert_eq!((*len, from.len()), (5_000, 5_000));
    rewriter.read_finished(*transfer);
    let sent = forwarded(&outputs(&mut rewriter));
    assert_eq!(sent.len(), 112 + 5_000);
    assert_eq!(sent[..66], request[..66]);
    assert_eq!((get16(&sent, 66), get32(&sent, 68)), (112, 5_000));
    assert_eq!(sent[72..96], request[72..96]);
    assert_eq!(sent[96..108], [0; 12]);
    assert_eq!(sent[108..112], request[108..112]);

    let response = write_answer(&sent, 5_000);
    assert_eq!(
        backend(&mut rewriter, &response),
        [answer_of(&response, Some(token(6)))]
    );
    assert!(rewriter.is_idle());
}

#[test]
fn errors_carry_the_token_and_interim_responses_do_not() {
    let mut rewriter = rewriter();
    for (id, channel) in [(5, INVALIDATE), (6, V1)] {
        let request = read(id, 4096, channel, &memory(id, 4096, 4096));
        let sent = forwarded(&client(&mut rewriter, request));
        let pending = interim(&sent);
        assert_eq!(rewriter.room_for(&pending), None);
        assert_eq!(
            backend(&mut rewriter, &pending),
            [answer_of(&pending, None)]
        );
        let end = error_answer(&sent, END_OF_FILE);
        let invalidate = (channel == INVALIDATE).then_some(token(id));
        assert_eq!(backend(&mut rewriter, &end), [answer_of(&end, invalidate)]);
        assert!(rewriter.is_idle());
        // It is over: another answer to this id is none of ours.
        assert_eq!(backend(&mut rewriter, &end), [answer_of(&end, None)]);
    }
}

#[test]
fn data_may_begin_behind_the_body() {
    let mut rewriter = rewriter();
    let sent = forwarded(&client(
        &mut rewriter,
        read(5, 4096, V1, &memory(5, 4096, 4096)),
    ));
    let mut response = read_answer(&sent, SUCCESS, &[7; 100]);
    response[66] = 88;
    response.extend([7; 8]);
    assert_eq!(rewriter.room_for(&response[..PREFIX]), Some(108));
    let prefix = Bytes::copy_from_slice(&response[..PREFIX]);
    rewriter.handle_response(prefix, 108).unwrap();
    let outputs = outputs(&mut rewriter);
    assert!(
        matches!(&outputs[..], [Output::Place { data, .. }] if *data == Data::Payload(8..108)),
        "{outputs:?}"
    );
}

#[test]
fn a_warning_has_data_too_and_no_data_needs_no_transfer() {
    let mut rewriter = rewriter();
    let request = read(5, 4096, INVALIDATE, &memory(5, 4096, 4096));
    let sent = forwarded(&client(&mut rewriter, request.clone()));
    let overflow = read_answer(&sent, BUFFER_OVERFLOW, &[7; 100]);
    let outputs = backend(&mut rewriter, &overflow);
    let [Output::Place { response, data, .. }] = &outputs[..] else {
        panic!("data to be placed: {outputs:?}");
    };
    assert_eq!(
        (status(response), get32(response, 72)),
        (BUFFER_OVERFLOW, 100)
    );
    assert_eq!(*data, Data::Message(vec![7; 100].into()));

    let mut put = request;
    put[24] = 9;
    let sent = forwarded(&client(&mut rewriter, put));
    let outputs = backend(&mut rewriter, &read_answer(&sent, SUCCESS, &[]));
    let [
        Output::Answer {
            message,
            invalidate,
        },
    ] = &outputs[..]
    else {
        panic!("an answer: {outputs:?}");
    };
    assert_eq!((message.len(), get32(message, 72)), (80, 0));
    assert_eq!(*invalidate, Some(token(5)));
}

#[test]
fn all_else_passes_untouched() {
    let mut rewriter = rewriter();
    let mut signed = read(5, 4096, V1, &memory(5, 4096, 4096));
    put32(&mut signed, 16, SIGNED);
    let mut short = read(5, 4096, V1, &[]);
    short.truncate(100);
    let mut other = read(5, 4096, V1, &memory(5, 4096, 4096));
    put16(&mut other, 64, 48);
    for message in [
        plain(CREATE, 5),
        read(5, 4096, NONE, &[]),
        inline_write(5, b"data"),
        signed,
        // Not valid in a way that is the server's to judge.
        short,
        other,
        b"\xFDSMB whatever is encrypted".to_vec(),
        b"\xFCSMB compressed".to_vec(),
        b"\xFFSMBr by which old clients begin".to_vec(),
        compound(&[plain(CREATE, 5), read(6, 10, NONE, &[]), plain(CLOSE, 7)]),
    ] {
        assert_eq!(client(&mut rewriter, message.clone()), [forward(&message)]);
        assert!(rewriter.is_idle());
    }
    let mut broken = answer(&plain(OPLOCK_BREAK, u64::MAX), SUCCESS, &[24; 24]);
    put16(&mut broken, 14, 0);
    for message in [
        broken,
        b"\xFDSMB whatever is encrypted".to_vec(),
        b"\xFCSMB compressed".to_vec(),
        read_answer(&read(99, 10, NONE, &[]), SUCCESS, &[1; 1000]),
    ] {
        assert_eq!(rewriter.room_for(&message), None);
        assert_eq!(
            backend(&mut rewriter, &message),
            [answer_of(&message, None)]
        );
    }
}

#[test]
fn nothing_is_rewritten_before_a_dialect_with_rdma_and_a_login() {
    // Before it the fields are reserved ([MS-SMB2] 2.2.19).
    for dialect in [None, Some(0x02FF), Some(0x0210)] {
        let mut rewriter = Rewriter::new(limits());
        if let Some(dialect) = dialect {
            backend(&mut rewriter, &negotiate_answer(dialect, MIB, MIB));
        }
        let request = read(5, 4096, V1, &memory(5, 4096, 4096));
        assert_eq!(client(&mut rewriter, request.clone()), [forward(&request)]);
        // After the answer to SMB1's NEGOTIATE comes the one that counts.
        backend(&mut rewriter, &negotiate_answer(0x0302, MIB, MIB));
        // Nor before the client has logged in.
        let more = answer(
            &plain(SESSION_SETUP, 1),
            0xC000_0016,
            &[9, 0, 0, 0, 72, 0, 0, 0],
        );
        backend(&mut rewriter, &more);
        assert_eq!(client(&mut rewriter, request.clone()), [forward(&request)]);
        backend(&mut rewriter, &logged_in(&plain(SESSION_SETUP, 2)));
        assert_eq!(forwarded(&client(&mut rewriter, request)).len(), 113);
    }
}

#[test]
fn bulk_data_in_messages_is_warned_of_once() {
    let mut rewriter = rewriter();
    let mut message = inline_write(5, &[0; 20_000]);
    put32(&mut message, 16, SIGNED);
    assert_eq!(
        client(&mut rewriter, message.clone()),
        [Output::Warn(Warning::SignedBulk), forward(&message)]
    );
    assert_eq!(client(&mut rewriter, message.clone()), [forward(&message)]);
    let mut rewriter = started(0x0302, limits());
    let mut message = b"\xFDSMB".to_vec();
    message.resize(20_000, 0);
    assert_eq!(
        client(&mut rewriter, message.clone()),
        [Output::Warn(Warning::EncryptedBulk), forward(&message)]
    );
}

#[test]
fn answers_are_awaited_until_the_server_begins_them() {
    let mut rewriter = rewriter();
    assert!(!rewriter.awaits_answers());
    client(&mut rewriter, header(CANCEL, 4));
    assert!(!rewriter.awaits_answers());
    let requests = [plain(CREATE, 5), plain(CREATE, 6), read(7, 1, NONE, &[])];
    client(&mut rewriter, compound(&requests[..2]));
    client(&mut rewriter, requests[2].clone());
    let slow = interim(&requests[0]);
    let mut end = slow.clone();
    put32(&mut end, 8, SUCCESS);
    let unasked = answer(&plain(OPLOCK_BREAK, u64::MAX), SUCCESS, &[24; 24]);
    for (message, awaits) in [
        (answer(&requests[1], SUCCESS, &[1; 8]), true),
        (slow, true),
        (unasked, true),
        // Its answer had begun.
        (end, true),
        (read_answer(&requests[2], SUCCESS, &[1]), false),
    ] {
        backend(&mut rewriter, &message);
        assert_eq!(rewriter.awaits_answers(), awaits);
    }
}

#[test]
fn who_owes_an_answer() {
    assert!(owes_answer(&plain(CREATE, 5)));
    assert!(owes_answer(b"\xFFSMBr"));
    assert!(!owes_answer(&header(CANCEL, 5)));
    assert!(!owes_answer(b"\xFDSMB could be a CANCEL"));
}
