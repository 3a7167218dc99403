//! A stream of data transfer messages against a model of [MS-SMBD] 3.1.5.8: a legal stream is put together byte by
//! byte, an illegal one ends the connection at its first illegal message.
#![no_main]

use std::time::Instant;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use smbdirect::proto::wire::{DATA_OFFSET, DataTransfer, NegotiateRequest};
use smbdirect::proto::{Config, Connection, Delivery, Role};

const MAX_RECEIVE: usize = 512;

/// One message; `remaining` is what a conforming sender would say, where `honest`.
#[derive(Arbitrary, Debug)]
struct Part {
    len: u16,
    honest: bool,
    last: bool,
    remaining: u32,
}

fuzz_target!(|parts: Vec<Part>| {
    let now = Instant::now();
    let config = Config {
        max_receive_size: MAX_RECEIVE as u32,
        max_fragmented_size: 131_072,
        ..Config::default()
    };
    let mut connection = Connection::new(Role::Acceptor, &config, now).expect("a valid config");
    connect(&mut connection, now);

    let (mut sent, mut received) = (Vec::new(), Vec::new());
    let mut expected: u64 = 0;
    for (index, part) in parts.iter().enumerate() {
        let len = usize::from(part.len) % (MAX_RECEIVE + 8);
        let remaining = match (part.honest, part.last, expected) {
            (false, _, _) => part.remaining,
            (true, true, _) => 0,
            (true, false, 0) => part.remaining % 131_072,
            (true, false, _) => expected.saturating_sub(len as u64) as u32,
        };
        // The last one of an honest message has what is left.
        let len = match (part.honest, expected) {
            (true, 1..) if part.last => (expected as usize).min(MAX_RECEIVE - 24),
            (true, 1..) => len.min(expected as usize),
            _ => len,
        };
        let data = vec![index as u8; len];
        let total = len as u64 + u64::from(remaining);
        let legal = 24 + len <= MAX_RECEIVE
            && total <= 131_072
            && (total == 0 || expected == 0 || total == expected);

        let delivery = connection.handle_receive(now, &message(remaining, &data), None);
        assert_eq!(connection.is_closed(), !legal, "{part:?}");
        if !legal {
            assert_eq!(delivery, Delivery::Nothing);
            assert!(connection.disconnect_reason().is_some());
            return;
        }
        let range = match &delivery {
            Delivery::Nothing => {
                assert_eq!(total, 0);
                continue;
            }
            Delivery::Whole { data, .. } => {
                assert_eq!((expected, remaining), (0, 0));
                data
            }
            Delivery::First { data, total: said } => {
                assert_eq!((expected, *said), (0, total));
                data
            }
            Delivery::Continue { data } => {
                assert!(expected > 0 && remaining > 0);
                data
            }
            Delivery::Last { data, .. } => {
                assert!(expected > 0 && remaining == 0);
                data
            }
        };
        received.extend_from_slice(&message(remaining, &data)[range.clone()]);
        sent.extend_from_slice(&data);
        expected = u64::from(remaining);
        assert_eq!(connection.reassembly_remaining(), expected);
        if expected == 0 {
            assert_eq!(sent, received);
            sent.clear();
            received.clear();
        }
        refill(&mut connection, now);
    }
});

fn message(remaining: u32, data: &[u8]) -> Vec<u8> {
    let header = DataTransfer {
        credits_requested: 255,
        credits_granted: 2,
        remaining_data_length: remaining,
        data_offset: if data.is_empty() { 0 } else { DATA_OFFSET },
        data_length: data.len() as u32,
        ..DataTransfer::default()
    };
    let mut bytes = header.encode().to_vec();
    if !data.is_empty() {
        bytes.extend([0; 4]);
        bytes.extend_from_slice(data);
    }
    bytes
}

fn connect(connection: &mut Connection, now: Instant) {
    connection.handle_established(now);
    connection.handle_receives_posted(connection.receives_wanted());
    let request = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 255,
        preferred_send_size: MAX_RECEIVE as u32,
        max_receive_size: MAX_RECEIVE as u32,
        max_fragmented_size: 131_072,
    };
    connection.handle_receive(now, &request.encode(), None);
    refill(connection, now);
    while connection.poll_event().is_some() {}
    assert!(connection.is_established());
}

/// Posts receives and grants them, as a driver does.
fn refill(connection: &mut Connection, now: Instant) {
    connection.handle_receives_posted(connection.receives_wanted());
    while connection.poll_transmit(now, 1).is_some() {}
}
