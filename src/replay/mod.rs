//! Real sessions, captured between the Linux kernel's client (cifs) and server (ksmbd), replayed
//! through our parsers and state machines. Tests only; may import everything.
//!
//! `tests/data` has the captures, and beside each the SMB2 messages that tshark finds in it (its
//! README says how).

mod capture;
mod observer;

use capture::{Packet, Send, Side};
use observer::Message;

#[cfg(feature = "iwarp")]
use crate::rdma::iwarp::replay::Replay;

/// What tshark says, see `tests/data/smb2-messages.sh`: each line an address and an SMB2 message.
fn golden(text: &str, packets: &[Packet]) -> Vec<Message> {
    let client = capture::client_address(packets);
    text.lines()
        .map(|line| {
            let (address, message) = line.split_once(' ').expect("two words");
            let from = match unhex(address) == client {
                true => Side::Client,
                false => Side::Server,
            };
            (from, unhex(message))
        })
        .collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).expect("a hexadecimal digit") as u8)
        .collect();
    let (pairs, []) = digits.as_chunks::<2>() else {
        panic!("an odd number of digits");
    };
    pairs.iter().map(|[high, low]| high << 4 | low).collect()
}

/// Takes compounded messages apart, by the header's `NextCommand`.
fn smb2_messages(messages: Vec<Message>) -> Vec<Message> {
    let mut parts = Vec::new();
    for (from, message) in messages {
        let mut rest = &message[..];
        loop {
            assert_eq!(rest[..4], *b"\xFESMB");
            let next = u32::from_le_bytes([rest[20], rest[21], rest[22], rest[23]]) as usize;
            if next == 0 {
                break;
            }
            let (part, behind) = rest.split_at(next);
            parts.push((from, part.to_vec()));
            rest = behind;
        }
        parts.push((from, rest.to_vec()));
    }
    parts
}

/// Checks a session's Sends, and their content against tshark's.
fn check(sends: &[Send], golden: &[Message]) {
    let summary = observer::observe(sends);
    assert!(summary.fragmented > 0 && summary.control > 0 && summary.credits_granted >= 254);
    assert_eq!(observer::deliver(sends), summary.messages);
    let messages = smb2_messages(summary.messages);
    let (client, server) = (Side::Client, Side::Server);
    for from in [client, server] {
        assert!(messages.iter().any(|(side, _)| *side == from));
    }
    assert_eq!(messages.len(), golden.len());
    for (number, (ours, theirs)) in messages.iter().zip(golden).enumerate() {
        assert_eq!(ours, theirs, "message {number}");
    }
}

#[test]
fn kernel_session_over_roce() {
    let packets = capture::packets(include_bytes!(
        "../../tests/data/kernel-rxe-ksmbd-cifs.pcap.gz"
    ));
    let golden = golden(
        include_str!("../../tests/data/kernel-rxe-ksmbd-cifs.smb2"),
        &packets,
    );
    let sends = capture::roce(&packets);
    assert!(sends.iter().any(|send| send.invalidated.is_some()));
    check(&sends, &golden);
}

#[cfg(feature = "iwarp")]
#[test]
fn kernel_session_over_iwarp() {
    let packets = capture::packets(include_bytes!(
        "../../tests/data/kernel-siw-ksmbd-cifs.pcap.gz"
    ));
    let golden = golden(
        include_str!("../../tests/data/kernel-siw-ksmbd-cifs.smb2"),
        &packets,
    );
    let mut stream = Replay::new();
    let mut sends = Vec::new();
    for chunk in capture::tcp(&packets) {
        let messages = stream.feed(chunk.from as usize, &chunk.bytes);
        sends.extend(messages.into_iter().map(|message| Send {
            from: chunk.from,
            message,
            invalidated: None,
        }));
    }
    assert!(!stream.crc());
    // The server's read of the client's memory, as far as the capture goes.
    assert_eq!(stream.read_segments, 106);
    check(&sends, &golden);
}

#[test]
#[should_panic(expected = "sent without a credit")]
fn the_observer_notices_a_missing_credit() {
    let packets = capture::packets(include_bytes!(
        "../../tests/data/kernel-rxe-ksmbd-cifs.pcap.gz"
    ));
    let mut sends = capture::roce(&packets);
    // The negotiate response grants one credit instead of many, and nobody grants another.
    sends[1].message[10..12].copy_from_slice(&1u16.to_le_bytes());
    for send in &mut sends[2..] {
        send.message[2..4].fill(0);
    }
    observer::observe(&sends);
}
