//! Messages, fragments, credits, tokens and the end, between two endpoints or against made-up
//! bytes.

use std::time::Duration;

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

/// An acceptor that has 10 credits, and the time.
fn acceptor(config: &Config) -> (End, std::time::Instant) {
    let now = std::time::Instant::now();
    let mut end = End::new(Role::Acceptor, config, now);
    end.connection.handle_established(now);
    end.feed(
        now,
        &NegotiateRequest {
            credits_requested: 255,
            ..request()
        }
        .encode(),
    );
    end.pump(now);
    end.feed(now, &control(10, 0));
    end.pump(now);
    (end, now)
}

/// A data transfer message without payload, and with more announced.
fn opener(remaining: u32) -> Vec<u8> {
    let mut bytes = control(1, 0);
    bytes[8..12].copy_from_slice(&remaining.to_le_bytes());
    bytes
}

#[test]
fn messages_of_every_awkward_size_go_both_ways() {
    for credits in [1, 2, 3, 10, 255] {
        let mut pair = Pair::connected(&config(credits), &config(credits));
        let payload = 1000;
        let sizes = [
            1,
            7,
            80,
            payload - 1,
            payload,
            payload + 1,
            2 * payload,
            65_536,
            131_072,
        ];
        for (index, &size) in sizes.iter().enumerate() {
            for from in 0..2 {
                pair.ends[from].send(&pattern((2 * index + from) as u64, size));
            }
        }
        pair.settle();
        for from in 0..2 {
            let received = &pair.ends[1 - from].received;
            assert_eq!(received.len(), sizes.len(), "credits {credits}");
            for (index, (data, token)) in received.iter().enumerate() {
                assert_eq!(*data, pattern((2 * index + from) as u64, sizes[index]));
                assert_eq!(*token, None);
            }
            assert_eq!(pair.ends[from].connection.queued_messages(), 0);
            assert_eq!(pair.ends[from].connection.queued_bytes(), 0);
        }
    }
}

#[test]
fn the_fragments_of_the_specification() {
    // Vector V5: 64 KiB at 1000 bytes each.
    let (mut end, now) = acceptor(&config(255));
    end.feed(now, &control(200, 0));
    end.slots = 100;
    end.send(&pattern(5, 65536));
    let packets = end.pump(now);
    assert_eq!(packets.len(), 66);
    let mut remaining = 65536;
    for packet in &packets {
        let header = DataTransfer::parse(&packet.bytes).unwrap();
        remaining -= header.data_length;
        assert_eq!(header.remaining_data_length, remaining);
        assert_eq!((header.data_offset, header.flags), (24, 0));
        assert_eq!(packet.bytes[20..24], [0; 4]);
    }
    assert_eq!(
        DataTransfer::parse(&packets[65].bytes).unwrap().data_length,
        536
    );
}

/// The largest message that the protocol can carry is one byte less than 4 GiB.
#[test]
fn four_gibibytes_are_counted_without_overflow() {
    const GIB: u64 = 1 << 30;
    let config = Config {
        max_send_size: GIB as u32,
        max_fragmented_size: u32::MAX,
        credit_profile: CreditProfile::Full,
        ..Config::default()
    };
    let now = std::time::Instant::now();
    let mut end = End::new(Role::Acceptor, &config, now);
    end.connection.handle_established(now);
    let request = NegotiateRequest {
        max_receive_size: u32::MAX,
        max_fragmented_size: u32::MAX,
        ..request()
    };
    end.feed(now, &request.encode());
    end.pump(now);
    let connection = &mut end.connection;
    let (len, max) = (1 << 32, u32::MAX);
    assert_eq!(
        connection.send(len, None),
        Err(SendError::TooLarge { len, max })
    );
    assert!(matches!(
        connection.send(u64::MAX, None),
        Err(SendError::TooLarge { .. })
    ));

    // Sent in fragments of almost 1 GiB, whose bytes nobody looks at here.
    connection.send(len - 1, Some(7)).unwrap();
    assert_eq!(connection.queued_bytes(), len - 1);
    connection.handle_receive(now, &control(10, 0), None);
    let mut sent = 0;
    while let Some(transmit) = connection.poll_transmit(now, 1) {
        let Some((_, range)) = transmit.payload.clone() else {
            continue;
        };
        let header = DataTransfer::parse(transmit.header()).unwrap();
        assert_eq!(range.start, sent);
        sent = range.end;
        assert_eq!(u64::from(header.remaining_data_length), len - 1 - sent);
        assert_eq!(u64::from(header.data_length), range.end - range.start);
        assert_eq!(transmit.invalidate.is_some(), sent == len - 1);
        assert!(transmit.len() as u64 <= GIB);
    }
    assert_eq!((sent, connection.queued_bytes()), (len - 1, 0));

    // And received: all of it may be announced, but not a byte more.
    let first = data_message(1, u32::MAX - 10, &[1; 10]);
    assert_eq!(
        connection.handle_receive(now, &first, None),
        Delivery::First {
            data: 24..34,
            total: u64::from(u32::MAX)
        }
    );
    assert_eq!(connection.reassembly_remaining(), u64::from(u32::MAX) - 10);
    let more = data_message(1, u32::MAX - 9, &[1; 10]);
    connection.handle_receive(now, &more, None);
    let total = u64::from(u32::MAX) + 1;
    assert_eq!(
        connection.disconnect_reason(),
        Some(&PeerMisbehaved::FragmentedSizeExceeded { total, max }.into())
    );
}

#[test]
fn the_limit_of_the_peer_is_kept() {
    let mut pair = Pair::connected(&config(10), &config(10));
    let connection = &mut pair.ends[0].connection;
    assert_eq!(connection.send(0, None), Err(SendError::Empty));
    for len in [131_073, u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(
            connection.send(len, None),
            Err(SendError::TooLarge { len, max: 131_072 })
        );
    }
    assert_eq!(connection.queued_messages(), 0);
}

#[test]
fn an_empty_opener_and_empty_fragments_are_legal() {
    // Vector V16 and its kind.
    let (mut end, now) = acceptor(&Config::default());
    assert_eq!(
        end.feed(now, &opener(100)),
        Delivery::First {
            data: 0..0,
            total: 100
        }
    );
    assert_eq!(end.connection.reassembly_remaining(), 100);
    assert_eq!(
        end.feed(now, &opener(100)),
        Delivery::Continue { data: 0..0 }
    );
    let data = pattern(1, 100);
    assert_eq!(
        end.feed(now, &data_message(0, 40, &data[..60])),
        Delivery::Continue { data: 24..84 }
    );
    assert_eq!(
        end.feed(now, &opener(40)),
        Delivery::Continue { data: 0..0 }
    );
    // A control message within a fragmented message disturbs nothing.
    assert_eq!(end.feed(now, &control(3, 0)), Delivery::Nothing);
    assert_eq!(
        end.feed(now, &data_message(0, 0, &data[60..])),
        Delivery::Last {
            data: 24..64,
            invalidated: None
        }
    );
    assert_eq!(end.received, [(data, None)]);
}

#[test]
fn a_stream_that_does_not_add_up_ends_the_connection() {
    for (first, data_length, remaining) in [
        (100, 60, 0),   // ends early
        (100, 60, 41),  // one too many
        (100, 60, 39),  // one too few
        (100, 101, 0),  // more than was to come
        (100, 100, 1),  // and still more
        (100, 50, 100), // grows
    ] {
        let (mut end, now) = acceptor(&Config::default());
        end.feed(now, &data_message(0, first, &[1; 10]));
        end.feed(now, &data_message(0, remaining, &vec![2; data_length]));
        end.events();
        let reason = PeerMisbehaved::RemainingLengthMismatch {
            expected: u64::from(first),
            data_length: data_length as u32,
            remaining,
        };
        assert_eq!(end.reason(), Some(&reason.into()));
        assert!(end.received.is_empty());
    }
}

#[test]
fn empty_messages_are_never_delivered() {
    let (mut end, now) = acceptor(&Config::default());
    for bytes in [control(1, 0), data_message(0, 0, &[])] {
        assert_eq!(end.feed(now, &bytes), Delivery::Nothing);
    }
    assert!(end.received.is_empty() && end.ended.is_empty());
}

#[test]
fn unknown_flags_and_reserved_bytes_are_ignored() {
    let (mut end, now) = acceptor(&Config::default());
    let mut bytes = data_message(0, 0, &[7; 10]);
    bytes[4] = 0xFE;
    bytes[5] = 0xFF;
    bytes[6..8].fill(0xFF);
    bytes[20..24].fill(0xFF);
    assert_eq!(
        end.feed(now, &bytes),
        Delivery::Whole {
            data: 24..34,
            invalidated: None
        }
    );
    assert!(end.pump(now).is_empty(), "no answer was asked for");
}

#[test]
fn a_message_without_a_credit_ends_the_connection() {
    let (mut end, now) = acceptor(&config(3));
    let granted = end.connection.credits().granted;
    for _ in 0..granted {
        end.feed(now, &control(0, 0));
    }
    assert!(!end.connection.is_closed());
    end.feed(now, &control(0, 0));
    end.events();
    assert_eq!(
        end.reason(),
        Some(&PeerMisbehaved::SentWithoutCredit.into())
    );
}

#[test]
fn credits_granted_without_bound_saturate() {
    let (mut end, now) = acceptor(&Config::default());
    for _ in 0..70_000 {
        end.feed(now, &control(u16::MAX, 0));
        end.pump(now);
    }
    assert!(end.connection.credits().send > u32::MAX - 10 * u32::from(u16::MAX));
    assert!(end.connection.is_established());
}

#[test]
fn a_peer_may_change_its_target() {
    let (mut end, now) = acceptor(&config(100));
    let target = |end: &mut End, value: u16| {
        let mut bytes = control(1, 0);
        bytes[..2].copy_from_slice(&value.to_le_bytes());
        end.feed(now, &bytes);
        end.pump(now);
    };
    assert_eq!(end.connection.credits().granted, 99);
    target(&mut end, 5);
    assert_eq!(end.connection.credits().target, 5);
    for _ in 0..96 {
        target(&mut end, 5);
    }
    // Not topped up before it has sunk below the new target.
    assert!(end.connection.credits().granted <= 5);
    assert!(end.connection.credits().posted <= 6);
    target(&mut end, u16::MAX);
    assert_eq!(
        end.connection.credits().target,
        100,
        "never above our own maximum"
    );
    end.send(&[1]);
    end.pump(now);
    assert_eq!(end.connection.credits().granted, 100);
    assert_eq!(end.posted, 101, "one more is kept for a last credit");
}

#[test]
fn grants_come_in_batches() {
    let (mut end, now) = acceptor(&Config {
        credit_profile: CreditProfile::Full,
        ..Config::default()
    });
    let before = end.sent.len();
    let granted = end.connection.credits().granted;
    for _ in 0..granted - 64 {
        end.feed(now, &control(1, 0));
        assert!(end.pump(now).is_empty());
    }
    end.feed(now, &control(1, 0));
    let packets = end.pump(now);
    assert_eq!((packets.len(), end.sent.len()), (1, before + 1));
    assert_eq!(
        DataTransfer::parse(&packets[0].bytes)
            .unwrap()
            .credits_granted,
        192
    );
}

#[test]
fn an_adaptive_connection_starts_small_and_grows_with_use() {
    let adaptive = Config {
        credit_profile: CreditProfile::Adaptive,
        ..Config::default()
    };
    let mut pair = Pair::connected(&adaptive, &adaptive);
    assert_eq!(pair.ends[1].connection.credits().target, 32);
    assert_eq!(pair.ends[1].posted, 33);
    pair.ends[0].send(&pattern(1, 1 << 20));
    pair.settle();
    assert_eq!(pair.ends[1].connection.credits().target, 255);
    assert_eq!(
        pair.ends[0].connection.credits().target,
        32,
        "nothing went this way"
    );

    // A slow peer needs no more.
    let mut pair = Pair::connected(&adaptive, &adaptive);
    for index in 0..500 {
        pair.ends[0].send(&pattern(index, 100));
        pair.settle();
        pair.now += Duration::from_millis(100);
    }
    assert_eq!(pair.ends[1].connection.credits().target, 32);

    let small = Config {
        credit_profile: CreditProfile::Small,
        ..Config::default()
    };
    let mut pair = Pair::connected(&small, &small);
    pair.ends[0].send(&pattern(1, 1 << 20));
    pair.settle();
    assert_eq!(pair.ends[1].received.len(), 1);
    assert_eq!(pair.ends[1].connection.credits().target, 8);
}

/// A driver takes in some messages at a time and then sends; what it grants rides on its own data, so
/// that the peer never seems to run dry here, while it waits for credits all the time.
#[test]
fn an_adaptive_connection_grows_while_data_goes_both_ways() {
    for pass in [1, 8, 32] {
        let (mut end, now) = acceptor(&Config::default());
        let mut held = end.connection.credits().granted;
        let mut on_the_way = 0;
        for _ in 0..4000 / pass {
            end.send(&[1; 100]);
            on_the_way += std::mem::take(&mut held);
            for _ in 0..pass.min(on_the_way) {
                on_the_way -= 1;
                end.feed(now, &data_message(1, 0, &[2; 100]));
            }
            for packet in end.pump(now) {
                let header = DataTransfer::parse(&packet.bytes).unwrap();
                held += u32::from(header.credits_granted);
            }
        }
        assert_eq!(end.connection.credits().target, 255, "{pass} at a time");
    }
}

#[test]
fn the_token_goes_with_the_last_fragment() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[0].send_with(&pattern(1, 500), Some(0xAB));
    pair.ends[0].send_with(&pattern(2, 5000), Some(0xCD));
    pair.ends[0].send(&pattern(3, 500));
    pair.settle();
    let tokens: Vec<_> = pair.ends[1]
        .received
        .iter()
        .map(|(_, token)| *token)
        .collect();
    assert_eq!(tokens, [Some(0xAB), Some(0xCD), None]);
    let sent = pair.ends[0]
        .sent
        .iter()
        .filter(|packet| packet.invalidated.is_some());
    assert_eq!(sent.count(), 2);
}

#[test]
fn an_invalidated_token_is_latched_until_a_message_is_complete() {
    let (mut end, now) = acceptor(&Config::default());
    let mut receive =
        |bytes: Vec<u8>, invalidated| end.receive(now, &Packet { bytes, invalidated });
    receive(control(1, 0), Some(1));
    receive(data_message(0, 10, &[1; 10]), Some(2));
    assert_eq!(
        receive(data_message(0, 0, &[1; 10]), None),
        Delivery::Last {
            data: 24..34,
            invalidated: Some(2)
        },
        "the last one counts"
    );
    assert_eq!(
        receive(data_message(0, 0, &[1; 10]), None),
        Delivery::Whole {
            data: 24..34,
            invalidated: None
        },
        "and only once"
    );
}

#[test]
fn sends_wait_for_slots_without_losing_their_place() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[0].slots = 1;
    pair.ends[1].slots = 3;
    for index in 0..5 {
        pair.ends[0].send(&pattern(index, 3500));
        pair.ends[1].send(&pattern(index, 3500));
    }
    for _ in 0..200 {
        pair.settle();
    }
    for end in &pair.ends {
        assert_eq!(end.received.len(), 5);
    }
}

#[test]
fn closing_sends_what_is_queued_first() {
    let mut pair = Pair::connected(&config(2), &config(2));
    pair.ends[0].send(&pattern(1, 50_000));
    pair.ends[1].send(&pattern(2, 50_000));
    pair.ends[0].connection.close();
    assert_eq!(
        pair.ends[0].connection.send(1, None),
        Err(SendError::Closed)
    );
    assert!(pair.ends[0].ended.is_empty());
    pair.settle();
    assert_eq!(pair.ends[1].received, [(pattern(1, 50_000), None)]);
    assert_eq!(pair.ends[0].ended, [(DisconnectReason::LocalClose, true)]);
    pair.ends[1]
        .connection
        .handle_lost(pair.now, Loss::PeerDisconnected);
    pair.ends[1].events();
    assert_eq!(pair.ends[1].ended, [(Loss::PeerDisconnected.into(), false)]);

    let mut pair = Pair::connected(&config(2), &config(2));
    pair.ends[0].connection.close();
    pair.ends[0].events();
    assert_eq!(pair.ends[0].ended, [(DisconnectReason::LocalClose, true)]);
    pair.ends[1].send(&pattern(1, 50_000));
    pair.ends[1].connection.abort();
    pair.ends[1].connection.close();
    pair.ends[1].events();
    assert_eq!(pair.ends[1].ended, [(DisconnectReason::LocalClose, false)]);
}

#[test]
fn a_lost_link_ends_both_sides_once() {
    let mut pair = Pair::connected(&config(3), &config(3));
    pair.ends[0].send(&pattern(1, 50_000));
    pair.pump();
    pair.cut();
    pair.cut();
    for end in &mut pair.ends {
        assert_eq!(end.ended, [(Loss::Failed.into(), false)]);
        assert_eq!(end.connection.send(1, None), Err(SendError::Closed));
        assert_eq!(end.connection.poll_timeout(), None);
        assert_eq!(end.connection.queued_messages(), 0);
        assert_eq!(end.feed(pair.now, &[0; 3]), Delivery::Nothing);
        assert!(end.pump(pair.now).is_empty());
    }
}

#[test]
fn counters_count() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[0].send(&pattern(1, 2500));
    pair.ends[0].send(&pattern(2, 10));
    pair.settle();
    let [sender, receiver] = pair.ends.each_ref().map(|end| *end.connection.stats());
    assert_eq!(
        (
            sender.messages_sent,
            sender.fragments_sent,
            sender.bytes_sent
        ),
        (2, 4, 2510)
    );
    assert_eq!(
        (
            receiver.messages_received,
            receiver.fragments_received,
            receiver.bytes_received
        ),
        (2, 4, 2510)
    );
    assert_eq!(sender.control_sent, receiver.control_received);
    assert_eq!(sender.credits_granted, receiver.credits_received);
    assert_eq!(receiver.credits_granted, sender.credits_received);
    assert_eq!(sender.credit_stalls, 0);
    pair.ends[0].send(&pattern(3, 50_000));
    pair.settle();
    assert!(pair.ends[0].connection.stats().credit_stalls > 0);
}

#[test]
fn a_driver_that_cannot_post_all_it_should_is_slow_but_works() {
    for most in [2, 3, 4, 9, 33] {
        for credits in [2, 3, 10, 255] {
            let mut pair = Pair::new(&config(credits), &config(credits));
            for end in &mut pair.ends {
                end.most_posted = most;
            }
            pair.settle();
            for from in 0..2 {
                pair.ends[from].send(&pattern(from as u64, 100_000));
            }
            pair.settle();
            for end in &pair.ends {
                assert_eq!(end.received.len(), 1, "{most} of {credits}");
            }
        }
    }
}
