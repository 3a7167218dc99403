//! The framing of SMB over TCP, through a connection over the loopback: whole messages come out in
//! order, however the stream is cut, and what follows them ends the connection for the right reason.
#![no_main]

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use smbdirect::rdma::{IoBuf, PlainDomain, Slab, SlabOptions};
use smbdirect::transport::tcp::{Received, Tcp, TcpOptions, fuzzing};
use smbdirect::transport::{DisconnectReason, Error};

/// The largest message; inputs are not much longer.
const MAX: usize = 2000;
/// Bytes that decide where a payload goes.
const PREFIX: usize = 16;
const LONG: Option<Duration> = Some(Duration::from_secs(20));

thread_local! {
    static LISTENER: TcpListener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
}

/// The messages in a stream, and how it ends; `None`: in order.
fn model(mut stream: &[u8]) -> (Vec<&[u8]>, Option<DisconnectReason>) {
    let mut messages = Vec::new();
    loop {
        let Some((header, rest)) = stream.split_first_chunk::<4>() else {
            let cut = (!stream.is_empty()).then_some(DisconnectReason::CutOff);
            return (messages, cut);
        };
        let len = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
        if header[0] != 0 || len == 0 {
            return (messages, Some(DisconnectReason::BadFraming));
        }
        if len > MAX {
            let (len, max) = (len as u64, MAX as u64);
            return (
                messages,
                Some(DisconnectReason::MessageTooLarge { len, max }),
            );
        }
        let Some((message, rest)) = rest.split_at_checked(len) else {
            return (messages, Some(DisconnectReason::CutOff));
        };
        messages.push(message);
        stream = rest;
    }
}

fn whole(received: Received) -> Vec<u8> {
    match received {
        Received::Message(message) => message.to_vec(),
        Received::Placed { prefix, payload } => [&prefix[..], &payload[..]].concat(),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&[step, choice], stream)) = bytes.split_first_chunk() else {
        return;
    };
    let (ours, mut theirs) = LISTENER.with(|listener| {
        let to = listener.local_addr().expect("an address");
        let ours = TcpStream::connect(to).expect("a connection");
        (ours, listener.accept().expect("the same").0)
    });
    theirs.set_nodelay(true).expect("an option");
    let mut options = TcpOptions::default();
    options.max_receive = MAX;
    options.receive_queue = 64 * usize::from(choice);
    let slab = Slab::new(&PlainDomain::shared(), MAX, 1, SlabOptions::default()).expect("memory");
    let mut place = |prefix: &[u8]| -> Option<IoBuf> {
        (prefix[0] & 1 == choice & 1).then(|| slab.take()).flatten()
    };
    let writer = |theirs: &mut TcpStream| {
        // Fails where the other side has seen enough.
        for piece in stream.chunks(usize::from(step) + 1) {
            if theirs.write_all(piece).is_err() {
                break;
            }
        }
        let _ = theirs.shutdown(Shutdown::Write);
    };
    let reader = |tcp: &Tcp| {
        let (messages, end) = model(stream);
        for message in messages {
            let received = tcp.recv_into_blocking(PREFIX, &mut place, LONG);
            let received = received.expect("no end yet").expect("a message");
            assert!(whole(received) == message);
        }
        let last = tcp.recv_into_blocking(PREFIX, &mut place, LONG);
        match end {
            None => assert!(matches!(last, Ok(None)), "{last:?}"),
            Some(reason) => {
                assert_eq!(last.expect_err("an end"), Error::Closed(reason));
            }
        }
    };
    thread::scope(|scope| {
        let writing = scope.spawn(|| writer(&mut theirs));
        fuzzing::receive(ours, options, reader).expect("a connection");
        writing.join().expect("no panic");
    });
});
