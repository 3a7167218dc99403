//! Queues in both directions are bounded, and open again.

use std::io::Write;
use std::thread;
use std::time::Duration;

use super::{LONG, framed, pair, payload, received, with_bare_peer};
use crate::transport::tcp::TcpOptions;
use crate::transport::{Close, DisconnectReason, Transport, TransportExt, TrySendError};

#[test]
fn the_send_queue_is_bounded_and_opens_again() {
    let options = TcpOptions {
        send_queue: 100_000,
        receive_queue: 100_000,
        ..TcpOptions::default()
    };
    let (a, b) = pair(options);
    let mut accepted = 0u32;
    let full = loop {
        match a.start_send((&payload(accepted, 60_000)).into()) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < 10_000, "nothing bounds the queue");
    };
    assert_eq!(full, TrySendError::Full);
    let sender = thread::spawn(move || {
        for seed in accepted..accepted + 100 {
            a.send_blocking(&payload(seed, 60_000), LONG).unwrap();
        }
        a
    });
    for seed in 0..accepted + 100 {
        assert!(received(&b) == payload(seed, 60_000));
    }
    drop(sender.join().unwrap());
    assert!(b.recv_blocking(LONG).unwrap().is_none());
}

#[test]
fn the_reader_stops_when_nobody_takes_messages() {
    let options = TcpOptions {
        receive_queue: 10_000,
        ..TcpOptions::default()
    };
    let (a, mut peer) = with_bare_peer(options);
    peer.set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let message = framed(&[9; 5_000]);
    let mut sent = 0usize;
    // The socket's buffers fill up, then no more is taken.
    while let Ok(written) = peer.write(&message[sent % message.len()..]) {
        sent += written;
        assert!(sent < 1 << 30, "nothing bounds what is held");
    }
    assert!(a.stats().bytes_received <= 15_000);
    for _ in 0..sent / message.len() {
        assert_eq!(received(&a).len(), 5_000);
    }
}

/// A peer of many small messages fills no more memory than one of large ones.
#[test]
fn small_messages_are_counted_for_what_they_hold() {
    let options = TcpOptions {
        receive_queue: 10_000,
        ..TcpOptions::default()
    };
    let (a, mut peer) = with_bare_peer(options);
    peer.set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let messages = framed(&[9]).repeat(10_000);
    let _ = peer.write_all(&messages);
    // Nothing is left to be read, or nothing is read any more.
    let mut seen = None;
    while seen != Some(a.stats().receives) {
        seen = Some(a.stats().receives);
        thread::sleep(Duration::from_millis(100));
    }
    assert!(seen <= Some(100), "{seen:?} messages");
    assert_eq!(received(&a), [9]);
}

#[test]
fn all_who_wait_for_room_get_it() {
    let options = TcpOptions {
        send_queue: 1,
        receive_queue: 1,
        ..TcpOptions::default()
    };
    let (a, b) = pair(options);
    const SENDERS: usize = 4;
    const EACH: usize = 200;
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                for _ in 0..EACH {
                    a.send_blocking(&[1; 50_000], LONG).unwrap();
                }
            });
        }
        for _ in 0..SENDERS * EACH {
            assert_eq!(received(&b).len(), 50_000);
        }
        for _ in 0..2 {
            scope.spawn(|| assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Peer)));
        }
        b.close(Close::Graceful(Duration::from_secs(20)));
    });
}

#[test]
fn queues_of_nothing_hold_one_message() {
    let options = TcpOptions {
        send_queue: 0,
        receive_queue: 0,
        ..TcpOptions::default()
    };
    let (a, b) = pair(options);
    for n in 0..10 {
        a.send_blocking(&[n; 100], LONG).unwrap();
        assert_eq!(received(&b), [n; 100]);
    }
}
