use std::io::{IoSlice, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::rdma::AcceptFilter;
use crate::transport::{
    ApiMisuse, Close, DisconnectReason, Error, Gather, Listener, ListenerExt, OutMessage,
    Transport, TransportExt, TransportKind, TrySendError,
};

/// Longer than anything here takes; only a hang reaches it.
const LONG: Option<Duration> = Some(Duration::from_secs(30));

/// Two ends of one connection.
fn pair(options: TcpOptions) -> (Tcp, Tcp) {
    let (ours, theirs) = streams();
    (
        Tcp::from_stream(ours, options.clone()).unwrap(),
        Tcp::from_stream(theirs, options).unwrap(),
    )
}

/// One end, and the peer's bare socket.
fn with_bare_peer(options: TcpOptions) -> (Tcp, TcpStream) {
    let (ours, theirs) = streams();
    theirs.set_read_timeout(LONG).unwrap();
    (Tcp::from_stream(ours, options).unwrap(), theirs)
}

fn streams() -> (TcpStream, TcpStream) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// Bytes that depend on the seed and differ from place to place.
fn payload(seed: u32, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&frame::encode(message.len())[..], message].concat()
}

fn received(tcp: &Tcp) -> Vec<u8> {
    tcp.recv_blocking(LONG)
        .unwrap()
        .expect("a message")
        .to_vec()
}

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
fn the_wire_is_a_zero_byte_and_a_length_of_24_bits() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    a.send_blocking(&[0xab; 0x10203], LONG).unwrap();
    let mut wire = vec![0; 4 + 0x10203];
    peer.read_exact(&mut wire).unwrap();
    assert_eq!(wire[..4], [0, 1, 2, 3]);
    assert!(wire[4..].iter().all(|byte| *byte == 0xab));
}

#[test]
fn frames_may_be_cut_at_every_byte() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    peer.set_nodelay(true).unwrap();
    let messages: Vec<Vec<u8>> = (1..40).map(|len| payload(len as u32, len)).collect();
    let wire: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let writer = thread::spawn(move || {
        for byte in wire {
            peer.write_all(&[byte]).unwrap();
        }
        peer
    });
    for message in &messages {
        assert_eq!(received(&a), *message);
    }
    drop(writer.join().unwrap());
    assert!(a.recv_blocking(LONG).unwrap().is_none());
}

#[test]
fn many_frames_may_come_in_one_piece() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    let messages: Vec<Vec<u8>> = (0..400)
        .map(|i| payload(i, 1 + 37 * i as usize % 9000))
        .collect();
    let wire: Vec<u8> = messages
        .iter()
        .flat_map(|message| framed(message))
        .collect();
    let writer = thread::spawn(move || peer.write_all(&wire).unwrap());
    for message in &messages {
        assert!(received(&a) == *message);
    }
    writer.join().unwrap();
}

#[test]
fn bad_frames_end_the_connection_after_what_was_good() {
    let too_large = DisconnectReason::MessageTooLarge {
        len: 1001,
        max: 1000,
    };
    let cases: [(&[u8], DisconnectReason); 5] = [
        (&[0x85, 0, 0, 0], DisconnectReason::BadFraming),
        (b"GET / HTTP/1.1\r\n\r\n", DisconnectReason::BadFraming),
        (&[0, 0, 0, 0], DisconnectReason::BadFraming),
        (&[0, 0, 3, 233, 1, 2], too_large),
        // The end within a header.
        (&[0, 0], DisconnectReason::CutOff),
    ];
    for (bad, reason) in cases {
        let options = TcpOptions {
            max_receive: 1000,
            ..TcpOptions::default()
        };
        let (a, mut peer) = with_bare_peer(options);
        peer.write_all(&framed(b"good")).unwrap();
        peer.write_all(bad).unwrap();
        let _ = peer.shutdown(Shutdown::Write);
        assert_eq!(received(&a), b"good");
        assert_eq!(
            a.recv_blocking(LONG).unwrap_err(),
            Error::Closed(reason.clone())
        );
        assert_eq!(a.closed_blocking(LONG), Some(reason.clone()));
        assert_eq!(a.start_send(b"x".into()), Err(TrySendError::Closed(reason)));
        let mut rest = Vec::new();
        // The end or a reset, but no waiting.
        let _ = peer.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}

#[test]
fn a_message_cut_off_is_never_handed_up() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    peer.write_all(&framed(&[1; 50_000])[..40_000]).unwrap();
    drop(peer);
    assert_eq!(
        a.recv_blocking(LONG).unwrap_err(),
        Error::Closed(DisconnectReason::CutOff)
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

/// Half of a connection would keep a thread, a socket and a place among the listener's connections for as long as the peer
/// likes.
#[test]
fn a_connection_whose_second_thread_the_system_refuses_is_closed() {
    for refused in ["smb-tcp-read", "smb-tcp-write"] {
        let (ours, mut theirs) = streams();
        theirs.set_read_timeout(LONG).unwrap();
        let connection = Tcp::at_rest(ours, TcpOptions::default(), None).unwrap();
        let no_threads = Error::Os {
            errno: libc::EAGAIN,
        };
        let result = connection.begin(|name, shared, run| {
            if name == refused {
                return Err(no_threads.clone());
            }
            connection::spawn(name, shared, run)
        });
        assert_eq!(result.err(), Some(no_threads));
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
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
fn close_in_order_sends_everything_first() {
    let (a, b) = pair(TcpOptions::default());
    for seed in 0..20 {
        a.send_blocking(&payload(seed, 200_000), LONG).unwrap();
    }
    a.close(Close::Graceful(Duration::from_secs(20)));
    assert!(matches!(
        a.start_send(b"x".into()),
        Err(TrySendError::Closed(_))
    ));
    for seed in 0..20 {
        assert!(received(&b) == payload(seed, 200_000));
    }
    assert!(b.recv_blocking(LONG).unwrap().is_none());
    assert_eq!(b.closed_blocking(LONG), Some(DisconnectReason::Peer));
    drop(b);
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert!(a.recv_blocking(LONG).unwrap().is_none());
}

#[test]
fn close_in_order_ends_at_its_deadline_when_the_peer_takes_nothing() {
    let options = TcpOptions {
        send_queue: 64 << 20,
        ..TcpOptions::default()
    };
    let (a, _peer) = with_bare_peer(options);
    for _ in 0..8 {
        a.start_send((&vec![1; 4 << 20]).into()).unwrap();
    }
    let start = Instant::now();
    a.close(Close::Graceful(Duration::from_millis(300)));
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn abort_ends_both_ends_at_once() {
    let (a, b) = pair(TcpOptions::default());
    a.close(Close::Graceful(Duration::from_secs(600)));
    a.close(Close::Abort);
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert_eq!(
        a.recv_blocking(LONG).unwrap_err(),
        Error::Closed(DisconnectReason::Local)
    );
    assert!(b.closed_blocking(LONG).is_some());
    a.close(Close::Abort);
    a.close(Close::Graceful(Duration::from_secs(1)));
}

#[test]
fn a_peer_that_ended_its_side_still_gets_answers() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    peer.write_all(&framed(b"question")).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(received(&a), b"question");
    assert!(a.recv_blocking(LONG).unwrap().is_none());
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Peer));
    a.send_blocking(b"answer", LONG).unwrap();
    drop(a);
    let mut wire = Vec::new();
    peer.read_to_end(&mut wire).unwrap();
    assert_eq!(wire, framed(b"answer"));
}

#[test]
fn a_reset_is_told_as_what_it_is() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    a.send_blocking(b"never read", LONG).unwrap();
    // Closing with unread bytes resets the connection.
    peer.peek(&mut [0]).unwrap();
    peer.write_all(&framed(b"last words")).unwrap();
    drop(peer);
    let first = a.recv_blocking(LONG);
    let error = match first {
        Ok(Some(message)) => {
            assert_eq!(&message[..], b"last words");
            a.recv_blocking(LONG).unwrap_err()
        }
        other => other.unwrap_err(),
    };
    let reset = DisconnectReason::Os {
        errno: libc::ECONNRESET,
    };
    assert_eq!(error, Error::Closed(reset.clone()));
    assert_eq!(a.closed_blocking(LONG), Some(reset));
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

/// A second each for keepalive interval and timeout, the least there is.
fn short_keepalive() -> TcpOptions {
    TcpOptions {
        keepalive_interval: Duration::from_secs(1),
        keepalive_timeout: Duration::from_secs(1),
        send_queue: 64 << 20,
        ..TcpOptions::default()
    }
}

#[test]
fn a_peer_that_takes_nothing_is_gone_in_interval_and_timeout() {
    let (a, _peer) = with_bare_peer(short_keepalive());
    let start = Instant::now();
    for _ in 0..8 {
        a.start_send((&vec![1; 4 << 20]).into()).unwrap();
    }
    let why = DisconnectReason::NoAnswer;
    // Whichever of the two threads the system tells it.
    assert_eq!(a.closed_blocking(LONG), Some(why.clone()));
    assert!(start.elapsed() >= Duration::from_millis(1500));
    assert_eq!(a.recv_blocking(LONG).unwrap_err(), Error::Closed(why));
}

#[test]
fn a_silent_peer_that_lives_is_kept() {
    let (a, mut peer) = with_bare_peer(short_keepalive());
    assert_eq!(a.closed_blocking(Some(Duration::from_secs(4))), None);
    peer.write_all(&framed(b"here I am")).unwrap();
    assert_eq!(received(&a), b"here I am");
}

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

#[test]
fn listeners_hand_out_connections_and_stop() {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let listener = TcpListener::bind(&[any, any], TcpOptions::default()).unwrap();
    let addresses = listener.local_addresses();
    assert_eq!(addresses.len(), 2);
    for address in &addresses {
        let client = Tcp::connect(*address, TcpOptions::default())
            .wait()
            .unwrap();
        let server: Arc<dyn Transport> = listener.accept_blocking(LONG).unwrap();
        assert_eq!(server.info().kind, TransportKind::Tcp);
        assert_eq!(server.info().peer, client.info().local);
        client.send_blocking(b"hello", LONG).unwrap();
        let hello = server.recv_blocking(LONG).unwrap().unwrap();
        server.start_send(hello.into_bytes().into()).unwrap();
        assert_eq!(received(&client), b"hello");
    }
    let in_use = TcpListener::bind(&addresses[..1], TcpOptions::default()).unwrap_err();
    let address = addresses[0];
    let errno = libc::EADDRINUSE;
    assert_eq!(in_use, Error::Listen { address, errno });
    let text = in_use.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("choose another port"), "{text}");
    listener.close();
    let closed = listener.accept_blocking(LONG).err();
    assert_eq!(closed, Some(Error::Closed(DisconnectReason::Local)));
    // The threads let go of the ports soon, while the listener is still there.
    let start = Instant::now();
    let refused = loop {
        match Tcp::connect(addresses[0], TcpOptions::default()).wait() {
            // Accepted by the system just before the end, and reset.
            Err(Error::Os {
                errno: libc::ENOTCONN | libc::ECONNRESET,
            })
            | Ok(_) => assert!(start.elapsed() < Duration::from_secs(20)),
            Err(error) => break error,
        }
    };
    assert_eq!(
        refused,
        Error::Os {
            errno: libc::ECONNREFUSED
        }
    );
    let again = || TcpListener::bind(&addresses, TcpOptions::default());
    while let Err(error) = again() {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        thread::yield_now();
    }
}

/// Whether the other side ends a connection at once.
fn is_turned_away(to: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(LONG).unwrap();
    // A reset is as good as an end.
    stream.read(&mut [0]).is_ok_and(|read| read == 0) || stream.peer_addr().is_err()
}

#[test]
fn listeners_turn_away_whom_they_must() {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let options = TcpOptions {
        max_connections_per_peer: 2,
        ..TcpOptions::default()
    };
    let listener = TcpListener::bind(&[any], options).unwrap();
    let to = listener.local_addresses()[0];
    let connect = || {
        let client = Tcp::connect(to, TcpOptions::default()).wait().unwrap();
        (client, listener.accept_blocking(LONG).unwrap())
    };
    let (first, second) = (connect(), connect());
    assert!(is_turned_away(to));
    second.0.send_blocking(b"still here", LONG).unwrap();
    assert!(second.1.recv_blocking(LONG).unwrap().is_some());
    // A place is free when the connection is gone, threads and all.
    drop(first);
    let start = Instant::now();
    let third = loop {
        let client = Tcp::connect(to, TcpOptions::default()).wait();
        let accepted = listener.accept_blocking(Some(Duration::from_millis(200)));
        match (client, accepted) {
            (Ok(client), Ok(server)) => break (client, server),
            _ => assert!(start.elapsed() < Duration::from_secs(20)),
        }
    };
    third.1.send_blocking(b"welcome", LONG).unwrap();
    assert_eq!(received(&third.0), b"welcome");

    let options = TcpOptions {
        filter: AcceptFilter::new(|peer| peer.is_ipv6()),
        ..TcpOptions::default()
    };
    let filter = options.filter.clone();
    let picky = TcpListener::bind(&[any], options).unwrap();
    assert!(is_turned_away(picky.local_addresses()[0]));
    assert_eq!(filter.refused(), 1);
    picky.close();
    assert!(picky.accept_blocking(LONG).is_err());
}
