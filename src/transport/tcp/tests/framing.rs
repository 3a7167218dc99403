//! The bytes on the wire.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use super::{LONG, framed, payload, received, with_bare_peer};
use crate::transport::tcp::TcpOptions;
use crate::transport::{DisconnectReason, Error, Transport, TransportExt, TrySendError};

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
