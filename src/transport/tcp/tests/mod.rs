//! Tests of SMB over TCP on loopback sockets, by what they are about; here is what they share.

mod ends;
mod framing;
mod listening;
mod messages;
mod placing;
mod queues;

use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::{Tcp, TcpOptions, frame};
use crate::transport::TransportExt;

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
