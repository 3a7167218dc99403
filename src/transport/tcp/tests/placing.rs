//! Payloads that go to buffers of the application's choice.

use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::{LONG, framed, pair, payload, received, with_bare_peer};
use crate::transport::tcp::{Heap, Received, TcpOptions};
use crate::transport::{Close, Error, Transport, TransportExt};

#[test]
fn a_payload_goes_to_the_chosen_buffer() {
    let (a, b) = pair(TcpOptions::default());
    let sizes = [81, 100, 4_176, 65_616, 500_000, 80, 1_048_656];
    let target = b.allocate(1 << 20).wait().unwrap();
    let address = target.address();
    let mut target = Some(target);
    let sender = thread::spawn(move || {
        for (seed, len) in sizes.into_iter().enumerate() {
            a.send_blocking(&payload(seed as u32, len), LONG).unwrap();
        }
        a
    });
    for (seed, len) in sizes.into_iter().enumerate() {
        let message = payload(seed as u32, len);
        let choose = |prefix: &[u8]| {
            assert_eq!(prefix, &message[..80]);
            target.take()
        };
        match b.recv_into_blocking(80, choose, LONG).unwrap().unwrap() {
            Received::Placed { prefix, payload } => {
                assert!(len > 80 && prefix == message[..80] && payload[..] == message[80..]);
                assert_eq!(payload.address(), address);
                target = Some(payload);
            }
            Received::Message(whole) => assert!(len == 80 && whole[..] == message),
        }
    }
    drop(sender.join().unwrap());
    let end = b.recv_into_blocking(80, |_| unreachable!(), LONG).unwrap();
    assert!(end.is_none());
}

#[test]
fn no_buffer_or_a_small_one_gives_the_whole_message() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    let message = payload(5, 300_000);
    let writer = thread::spawn({
        let message = message.clone();
        move || {
            for _ in 0..3 {
                peer.write_all(&framed(&message)).unwrap();
            }
            peer
        }
    });
    let heap = Heap::new();
    let choices = [None, Some(heap.take(100).unwrap())];
    for choice in choices {
        let mut choice = Some(choice);
        let got = a
            .recv_into_blocking(64, |_| choice.take().unwrap(), LONG)
            .unwrap();
        let Some(Received::Message(whole)) = got else {
            panic!("{got:?}")
        };
        assert!(whole[..] == message);
    }
    // A caller who does not ask gets the message in one piece, too.
    assert!(received(&a) == message);
    drop(writer.join().unwrap());
}

#[test]
fn a_placed_message_is_not_lost_with_its_caller() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    let message = payload(6, 200_000);
    let wire = framed(&message);
    // Asks before anything is there, so that the payload is not read ahead.
    assert!(
        a.recv_into_blocking(64, |_| None, Some(Duration::ZERO))
            .is_err()
    );
    peer.write_all(&wire[..1_000]).unwrap();
    let mut chosen = false;
    while !chosen {
        let choose = |_: &[u8]| {
            chosen = true;
            Heap::new().take(200_000).ok()
        };
        let early = a.recv_into_blocking(64, choose, Some(Duration::from_millis(1)));
        assert_eq!(early.unwrap_err(), Error::WouldBlock);
    }
    peer.write_all(&wire[1_000..]).unwrap();
    assert!(received(&a) == message);
}

#[test]
fn close_frees_a_reader_that_waits_for_a_decision() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    assert!(
        a.recv_into_blocking(64, |_| None, Some(Duration::ZERO))
            .is_err()
    );
    peer.write_all(&framed(&payload(1, 300_000))[..200_000])
        .unwrap();
    a.close(Close::Graceful(Duration::from_secs(20)));
    drop(peer);
    assert!(a.closed_blocking(LONG).is_some());
}

/// The reader waits no longer for a decision when this side closes, and has received the message and the end before the
/// choice is made.
#[test]
fn a_close_during_the_choice_does_not_put_the_end_before_the_last_message() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    let message = payload(1, 300_000);
    let wire = framed(&message);
    assert!(
        a.recv_into_blocking(64, |_| None, Some(Duration::ZERO))
            .is_err()
    );
    peer.write_all(&wire[..1_000]).unwrap();
    let choose = |prefix: &[u8]| {
        assert_eq!(prefix, &message[..64]);
        a.close(Close::Graceful(Duration::from_secs(20)));
        peer.write_all(&wire[1_000..]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        while a.shared.lock().read_end.is_none() {
            thread::yield_now();
        }
        Heap::new().take(300_000).ok()
    };
    let last = a.recv_into_blocking(64, choose, LONG).unwrap();
    let Some(Received::Message(whole)) = last else {
        panic!("{last:?}")
    };
    assert!(whole[..] == message);
    assert!(a.recv_blocking(LONG).unwrap().is_none());
}
