//! What an application sends arrives, whichever way it was said.

use std::io::IoSlice;
use std::thread;

use bytes::Bytes;

use super::{LONG, pair, payload, received};
use crate::transport::tcp::TcpOptions;
use crate::transport::{ApiMisuse, Gather, OutMessage, Transport, TransportExt};

const SIZES: [usize; 12] = [
    1,
    2,
    64,
    4095,
    4096,
    4097,
    16_384,
    65_531,
    65_536,
    100_000,
    1 << 20,
    (1 << 20) + 1,
];

#[test]
fn messages_of_all_sizes_arrive_both_ways_at_once() {
    let (a, b) = pair(TcpOptions::default());
    thread::scope(|scope| {
        for (seed, from, to) in [(1000, &a, &b), (2000, &b, &a)] {
            scope.spawn(move || {
                for round in 0..6 {
                    for len in SIZES {
                        let message = payload(seed + round, len);
                        from.send_blocking(&message, LONG).unwrap();
                    }
                }
            });
            scope.spawn(move || {
                for round in 0..6 {
                    for len in SIZES {
                        assert!(
                            received(to) == payload(seed + round, len),
                            "{len} bytes differ"
                        );
                    }
                }
            });
        }
    });
    let sent = a.stats();
    assert_eq!(sent.messages_sent, 6 * SIZES.len() as u64);
    assert_eq!(sent.bytes_sent, 6 * SIZES.iter().sum::<usize>() as u64);
    assert_eq!(b.stats().bytes_received, sent.bytes_sent);
    assert_eq!(b.stats().messages_received, sent.messages_sent);
}

#[test]
fn every_way_to_say_a_message_sends_it_whole() {
    let (a, b) = pair(TcpOptions::default());
    let whole = payload(7, 10_000);
    let mut buf = a.allocate(4_000).wait().unwrap();
    assert_eq!(buf.len(), 4_000);
    buf.copy_from_slice(&whole[6_000..]);
    let mut head = a.allocate(6_000).wait().unwrap();
    head.copy_from_slice(&whole[..6_000]);
    let mut gather = Gather::new();
    gather.push(head);
    gather.push(buf);
    let slices = [
        IoSlice::new(&whole[..1]),
        IoSlice::new(&[]),
        IoSlice::new(&whole[1..]),
    ];
    a.start_send(OutMessage::Slice(&whole)).unwrap();
    a.start_send(OutMessage::Slices(&slices)).unwrap();
    a.start_send(OutMessage::Bytes(Bytes::from(whole.clone())))
        .unwrap();
    a.start_send(OutMessage::Gather(gather)).unwrap();
    for _ in 0..4 {
        assert!(received(&b) == whole);
    }
    assert_eq!(
        (a.stats().copied_bytes, a.stats().zero_copy_bytes),
        (20_000, 20_000)
    );
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let options = TcpOptions {
        max_send: 100,
        ..TcpOptions::default()
    };
    let (a, b) = pair(options);
    assert_eq!(
        a.start_send((&[]).into()),
        Err(ApiMisuse::EmptyMessage.into())
    );
    assert_eq!(
        a.start_send((&[0; 101]).into()),
        Err(ApiMisuse::MessageTooLarge { len: 101, max: 100 }.into())
    );
    assert_eq!(a.limits().max_send, 100);
    a.start_send((&[7; 100]).into()).unwrap();
    assert_eq!(received(&b), [7; 100]);
}
