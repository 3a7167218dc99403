//! Properties over arbitrary bytes and operations.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

#[derive(Debug, Clone)]
enum Operation {
    Established,
    Posted(usize),
    PostWanted,
    Unavailable,
    Receive(Vec<u8>, Option<u32>),
    Lost(bool),
    Timeout(u64),
    Send(u64, Option<u32>),
    Ready(bool),
    Close,
    Abort,
    Transmit(usize),
    Event,
}

/// Bytes that are sometimes meaningful.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let edge = || {
        prop_oneof![
            Just(0u32),
            Just(8),
            Just(24),
            Just(100),
            Just(u32::MAX),
            any::<u32>()
        ]
    };
    let data = (
        0u16..4,
        0u16..4,
        0u16..2,
        edge(),
        edge(),
        edge(),
        0usize..2000,
    )
        .prop_map(
            |(credits_requested, credits_granted, flags, remaining, offset, length, size)| {
                let header = DataTransfer {
                    credits_requested,
                    credits_granted,
                    flags,
                    remaining_data_length: remaining,
                    data_offset: offset,
                    data_length: length,
                };
                let mut bytes = header.encode().to_vec();
                bytes.resize(size.max(20), 0);
                bytes
            },
        );
    let good_data = (0u16..4, 0u16..2, 0u32..3000, 0usize..1000).prop_map(
        |(granted, flags, remaining, size)| {
            let mut bytes = data_message(granted, remaining, &vec![1; size]);
            bytes[4] = flags as u8;
            bytes
        },
    );
    let response = (0u16..20, 0u16..20, 0u32..9000, 0u32..9000).prop_map(
        |(credits_requested, credits_granted, preferred_send_size, max_receive_size)| {
            NegotiateResponse {
                negotiated_version: VERSION,
                credits_requested,
                credits_granted,
                preferred_send_size,
                max_receive_size,
                max_fragmented_size: 200_000,
                ..NegotiateResponse::failure(0)
            }
            .encode()
            .to_vec()
        },
    );
    prop_oneof![
        2 => vec(any::<u8>(), 0..64),
        4 => data,
        8 => good_data,
        2 => Just(request().encode().to_vec()),
        2 => response,
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        2 => Just(Operation::Established),
        1 => (0usize..300).prop_map(Operation::Posted),
        8 => Just(Operation::PostWanted),
        1 => Just(Operation::Unavailable),
        12 => (message(), any::<Option<u32>>())
            .prop_map(|(bytes, token)| Operation::Receive(bytes, token)),
        1 => any::<bool>().prop_map(Operation::Lost),
        3 => (0u64..130).prop_map(Operation::Timeout),
        4 => (prop_oneof![0u64..5000, any::<u64>()], any::<Option<u32>>())
            .prop_map(|(len, token)| Operation::Send(len, token)),
        2 => any::<bool>().prop_map(Operation::Ready),
        1 => Just(Operation::Close),
        1 => Just(Operation::Abort),
        8 => (0usize..8).prop_map(Operation::Transmit),
        4 => Just(Operation::Event),
    ]
}

/// I1, I2, I3, I5 and I9, whatever is done in whatever order.
fn check(role: Role, config: &Config, operations: Vec<Operation>) {
    let mut now = Instant::now();
    let mut connection = Connection::new(role, config, now).unwrap();
    let (mut negotiated, mut ended) = (0, 0);
    let mut unfinished = None;
    let mut incoming = 0;
    for operation in operations {
        match operation {
            Operation::Established => connection.handle_established(now),
            Operation::Posted(count) => connection.handle_receives_posted(count),
            Operation::PostWanted => {
                connection.handle_receives_posted(connection.receives_wanted());
            }
            Operation::Unavailable => connection.handle_receives_unavailable(),
            Operation::Receive(bytes, token) => {
                let delivery = connection.handle_receive(now, &bytes, token);
                let (data, limit) = match delivery {
                    Delivery::Nothing => continue,
                    Delivery::Whole { data, .. } => {
                        assert_eq!(incoming, 0);
                        assert!(!data.is_empty());
                        (data, 1500)
                    }
                    Delivery::First { data, total } => {
                        assert_eq!(incoming, 0);
                        assert!(total > 0 && total <= u64::from(config.max_fragmented_size));
                        incoming = total - data.len() as u64;
                        (data, total)
                    }
                    Delivery::Continue { data } => {
                        assert!((data.len() as u64) < incoming);
                        incoming -= data.len() as u64;
                        (data, 1500)
                    }
                    Delivery::Last { data, .. } => {
                        assert_eq!(data.len() as u64, incoming);
                        incoming = 0;
                        (data, 1500)
                    }
                };
                assert!(data.len() as u64 <= limit.max(1500));
                assert!(bytes.get(data).is_some());
            }
            Operation::Lost(peer) => connection.handle_lost(
                now,
                if peer {
                    Loss::PeerDisconnected
                } else {
                    Loss::Failed
                },
            ),
            Operation::Timeout(seconds) => {
                now += Duration::from_secs(seconds);
                connection.handle_timeout(now);
            }
            Operation::Send(len, token) => {
                let taken = connection.send(len, token).is_ok();
                assert!(!taken || (len > 0 && len <= u64::from(u32::MAX)));
            }
            Operation::Ready(ready) => connection.set_application_ready(ready),
            Operation::Close => connection.close(),
            Operation::Abort => connection.abort(),
            Operation::Transmit(slots) => {
                let before = connection.credits();
                let data_phase = connection.is_established();
                let Some(transmit) = connection.poll_transmit(now, slots) else {
                    continue;
                };
                assert!(slots > 0);
                if !data_phase {
                    assert_eq!(transmit.payload, None);
                    continue;
                }
                let header = DataTransfer::parse(transmit.header()).unwrap();
                assert!(before.send > 1 || header.credits_granted > 0);
                assert!(header.credits_requested > 0);
                let max = connection.parameters().unwrap().max_send_size;
                assert!(transmit.len() <= max as usize);
                match transmit.payload {
                    Some((id, _)) => {
                        assert!(unfinished.is_none_or(|unfinished| unfinished == id));
                        unfinished = (!transmit.last_fragment).then_some(id);
                    }
                    None => assert_eq!(unfinished, None),
                }
            }
            Operation::Event => match connection.poll_event() {
                Some(Event::Negotiated(_)) => negotiated += 1,
                Some(Event::Disconnect { .. }) => ended += 1,
                None => {}
            },
        }
        let credits = connection.credits();
        assert!(credits.granted <= credits.posted);
        assert!(negotiated <= 1 && ended <= 1);
        assert_eq!(
            connection.is_closed(),
            connection.disconnect_reason().is_some() && connection.poll_timeout().is_none()
        );
    }
    while let Some(event) = connection.poll_event() {
        match event {
            Event::Negotiated(_) => negotiated += 1,
            Event::Disconnect { .. } => ended += 1,
        }
    }
    assert!(negotiated <= 1);
    assert_eq!(ended, u32::from(connection.is_closed()));
}

/// A conforming start, so that arbitrary operations reach the data phase.
fn prelude(role: Role) -> Vec<Operation> {
    let mut operations = vec![
        Operation::PostWanted,
        Operation::Established,
        Operation::Transmit(1),
    ];
    let message = match role {
        Role::Acceptor => request().encode().to_vec(),
        Role::Initiator => NegotiateResponse {
            negotiated_version: VERSION,
            credits_requested: 3,
            credits_granted: 3,
            preferred_send_size: 1024,
            max_receive_size: 1024,
            max_fragmented_size: 131_072,
            ..NegotiateResponse::failure(0)
        }
        .encode()
        .to_vec(),
    };
    operations.push(Operation::Receive(message, None));
    operations.extend([Operation::PostWanted, Operation::Transmit(1)]);
    operations
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_operations_break_no_invariant(
        acceptor in any::<bool>(),
        negotiate_first in any::<bool>(),
        credits in 1u16..6,
        operations in vec(operation(), 0..200),
    ) {
        let role = if acceptor { Role::Acceptor } else { Role::Initiator };
        let mut all = if negotiate_first { prelude(role) } else { Vec::new() };
        all.extend(operations);
        check(role, &Config { max_receive_size: 1500, ..config(credits) }, all);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = NegotiateRequest::parse(&bytes);
        let _ = NegotiateResponse::parse(&bytes);
        let _ = BufferDescriptorV1::parse_array(&bytes);
        if let Ok(header) = DataTransfer::parse(&bytes)
            && let Ok(range) = header.payload(bytes.len())
        {
            prop_assert!(bytes.get(range).is_some());
        }
    }

    #[test]
    fn what_is_fragmented_is_reassembled(
        sizes in vec(1usize..20_000, 1..6),
        send_size in 128u32..2000,
        receive_size in 128u32..2000,
        credits in [1u16..40, 1u16..40],
        slots in 1usize..9,
        seed in any::<u64>(),
    ) {
        let configs = [0, 1].map(|index| Config {
            max_send_size: send_size,
            max_receive_size: receive_size,
            ..config(credits[index])
        });
        let mut pair = Pair::connected(&configs[0], &configs[1]);
        for end in &mut pair.ends {
            end.slots = slots;
        }
        for (index, &size) in sizes.iter().enumerate() {
            pair.ends[index % 2].send(&pattern(seed ^ index as u64, size));
        }
        // A look at the outputs sends no more than there are slots.
        for _ in 0..sizes.iter().sum::<usize>() / 100 + 1 {
            pair.settle();
        }
        for from in 0..2 {
            let expected: Vec<_> = sizes
                .iter()
                .enumerate()
                .filter(|(index, _)| index % 2 == from)
                .map(|(index, &size)| (pattern(seed ^ index as u64, size), None))
                .collect();
            prop_assert_eq!(&pair.ends[1 - from].received, &expected);
        }
    }

    #[test]
    fn every_legal_fragmentation_is_reassembled(
        cuts in vec(0usize..1000, 1..40),
        padding in 0usize..8,
        seed in any::<u64>(),
    ) {
        let now = Instant::now();
        let mut end = End::new(Role::Acceptor, &config(255), now);
        end.connection.handle_established(now);
        end.feed(now, &NegotiateRequest { credits_requested: 255, ..request() }.encode());
        end.pump(now);
        let mut data = pattern(seed, cuts.iter().sum());
        data.push(7);
        let mut rest = &data[..];
        for size in cuts {
            let (head, tail) = rest.split_at(size);
            let mut bytes = data_message(1, tail.len() as u32, head);
            bytes.extend(vec![0xEE; padding.min(1000 - size)]);
            end.feed(now, &bytes);
            end.pump(now);
            rest = tail;
        }
        end.feed(now, &data_message(1, 0, rest));
        prop_assert_eq!(&end.received, &[(data, None)]);
    }
}
