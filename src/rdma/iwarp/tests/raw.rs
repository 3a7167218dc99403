//! A provider against a hand-written peer on a plain socket: the handshake's rules, the habits of
//! Linux siw, and hostile peers.

mod handshake;
mod revisions;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::world::*;
use crate::rdma::iwarp::IwarpConfig;
use crate::rdma::iwarp::crc::Crc;
use crate::rdma::iwarp::ddp::{Address, Segment};
use crate::rdma::iwarp::mpa::{self, Enhanced, Frame, Kind, Local, Rtr};
use crate::rdma::iwarp::rdmap::{
    MAX_TERMINATE, Offender, Opcode, ReadRequest, TermCode, Terminate,
};
use crate::rdma::{
    Close, CompletionStatus, ConnId, ConnectParams, Event, ListenOptions, LossReason, Pieces,
    Provider, RdmaError, RemoteAccess, RemoteAddress,
};

/// A plain socket and the bytes that came from it.
struct Raw {
    stream: TcpStream,
    bytes: Vec<u8>,
    closed: bool,
    crc: bool,
}

impl Raw {
    fn over(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            bytes: Vec::new(),
            closed: false,
            crc: true,
        }
    }

    fn connect(to: SocketAddr) -> Self {
        Self::over(TcpStream::connect(to).unwrap())
    }

    /// Fails only where the other side has closed already.
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn pump(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(read) => {
                    self.bytes.extend_from_slice(&chunk[..read]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
            return;
        }
    }

    /// Waits for `len` bytes while `side` works.
    fn take(&mut self, side: &mut Side, len: usize) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        while self.bytes.len() < len {
            side.poll();
            self.pump();
            assert!(
                !self.closed || self.bytes.len() >= len,
                "closed: {:?}",
                self.bytes
            );
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        self.bytes.drain(..len).collect()
    }

    fn fpdu(&mut self, side: &mut Side) -> (Segment, Vec<u8>) {
        let head = self.take(side, 2);
        let len = usize::from(u16::from_be_bytes([head[0], head[1]]));
        let mut rest = self.take(side, crate::rdma::iwarp::fpdu::frame_len(len) - 2);
        let segment = Segment::decode(&rest).unwrap();
        rest.truncate(len);
        let payload = rest.split_off(segment.len());
        (segment, payload)
    }

    /// Waits for the end of the stream and returns what came before.
    fn end(&mut self, side: &mut Side) -> Vec<u8> {
        let start = Instant::now();
        while !self.closed {
            side.poll();
            self.pump();
            assert!(start.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        std::mem::take(&mut self.bytes)
    }

    fn terminate(&mut self, side: &mut Side) -> TermCode {
        loop {
            let (segment, payload) = self.fpdu(side);
            if segment.opcode == Opcode::Terminate {
                return Terminate::decode(&payload).unwrap().code;
            }
        }
    }

    fn send(&mut self, msn: u32, payload: &[u8]) {
        let address = Address::Untagged {
            invalidate: 0,
            queue: 0,
            msn,
            offset: 0,
        };
        self.write(&framed(&segment(Opcode::Send, address), payload, self.crc));
    }
}

fn segment(opcode: Opcode, address: Address) -> Segment {
    Segment {
        opcode,
        last: true,
        address,
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// What Linux siw asks for: revision 2, no CRC, no markers, client-server.
const SIW: Local = Local {
    revision: 2,
    crc: false,
    markers: false,
    peer_to_peer: false,
    ird: 32,
    ord: 32,
    max_ird: 128,
};

fn server(options: &ListenOptions, config: IwarpConfig) -> (Side, SocketAddr) {
    let mut side = Side::new(config);
    let (_, address) = side.listen(options);
    (side, address)
}

/// A raw initiator that was accepted.
fn initiator(config: IwarpConfig, local: &Local) -> (Side, ConnId, Raw) {
    let (mut side, address) = server(&ListenOptions::default(), config);
    let mut raw = Raw::connect(address);
    raw.write(&encoded(&mpa::request(local, b"private".to_vec())));
    let incoming = side.wait("incoming", Side::incoming);
    assert_eq!(incoming.private_data(), b"private");
    let conn = side.accept(incoming, 4, &ConnectParams::default());
    let reply_len = if local.revision == 2 { 24 } else { 20 };
    let reply = raw.take(&mut side, reply_len);
    let (reply, _) = Frame::parse(Kind::Reply, &reply).unwrap().unwrap();
    assert_eq!(reply.revision, local.revision);
    raw.crc = mpa::conclude(local, &reply).unwrap().crc;
    (side, conn, raw)
}

/// A raw responder that has accepted; the connection has just been established.
fn responder(config: IwarpConfig, local: &Local) -> (Side, ConnId, Raw) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut side = Side::new(config.clone());
    let conn = side.connect(listener.local_addr().unwrap(), 4, &ConnectParams::default());
    let mut raw = Raw::over(listener.accept().unwrap().0);
    let len = if config.revision == 2 { 24 } else { 20 };
    let request = raw.take(&mut side, len);
    let (request, _) = Frame::parse(Kind::Request, &request).unwrap().unwrap();
    let (reply, settings) = mpa::accept(local, &request, Vec::new());
    raw.crc = settings.crc;
    raw.write(&encoded(&reply));
    side.wait("established", |side| side.established(conn));
    (side, conn, raw)
}

fn no_crc() -> IwarpConfig {
    IwarpConfig {
        crc: false,
        ..IwarpConfig::default()
    }
}

#[test]
fn m10_any_segmentation_of_the_stream() {
    for crc in [true, false] {
        let local = Local { crc, ..SIW };
        let config = IwarpConfig {
            crc,
            ..IwarpConfig::default()
        };
        let (mut side, address) = server(&ListenOptions::default(), config);
        let mut raw = Raw::connect(address);
        raw.crc = crc;
        let one_by_one = |side: &mut Side, raw: &mut Raw, bytes: &[u8]| {
            for byte in bytes {
                raw.write(&[*byte]);
                side.poll();
            }
        };
        one_by_one(
            &mut side,
            &mut raw,
            &encoded(&mpa::request(&local, vec![1, 2, 3])),
        );
        let incoming = side.wait("incoming", Side::incoming);
        assert_eq!(incoming.private_data(), [1, 2, 3]);
        let conn = side.accept(incoming, 4, &ConnectParams::default());
        raw.take(&mut side, 24);
        let window = side.expose(conn, buffer(3000).pin(), RemoteAccess::Write);
        let data = pattern(3, 3000);
        let segment = |opcode, last, address| Segment {
            opcode,
            last,
            address,
        };
        let untagged = |offset| Address::Untagged {
            invalidate: 0,
            queue: 0,
            msn: 1,
            offset,
        };
        let mut stream = framed(
            &segment(Opcode::Send, false, untagged(0)),
            &data[..1000],
            crc,
        );
        // The bind is executed with the first FPDU of the peer.
        one_by_one(&mut side, &mut raw, &stream);
        side.wait("bind", |side| side.completed(conn));
        let tagged = Address::Tagged {
            tag: window.key,
            offset: 0,
        };
        stream = framed(&segment(Opcode::Write, true, tagged), &data, crc);
        stream.extend(framed(
            &segment(Opcode::Send, true, untagged(1000)),
            &data[1000..],
            crc,
        ));
        one_by_one(&mut side, &mut raw, &stream);
        let (message, _) = side.wait("message", |side| side.received(conn));
        assert_eq!(&message[..], data);
        side.post(
            conn,
            vec![crate::rdma::Operation::Invalidate { window: window.id }],
        );
        side.wait("invalidate", |side| side.completed(conn));
        let pin = side.provider.close_window(conn, window.id).unwrap();
        assert_eq!(pin.unpin().unwrap()[..], data);
    }
}

#[test]
fn violations_are_answered_by_a_terminate_and_the_end() {
    let fabric = |code: TermCode| {
        LossReason::Failed(RdmaError::FabricViolation {
            layer: code.layer,
            error_type: code.error_type,
            code: code.code,
        })
    };
    type Act = fn(&mut Raw);
    let cases: [(TermCode, Act); 5] = [
        (TermCode::MPA_CRC, |raw| {
            let segment = Segment {
                opcode: Opcode::Send,
                last: true,
                address: Address::Untagged {
                    invalidate: 0,
                    queue: 0,
                    msn: 1,
                    offset: 0,
                },
            };
            let mut bytes = framed(&segment, b"damaged", true);
            bytes[22] ^= 1;
            raw.write(&bytes);
        }),
        (TermCode::DDP_MSN, |raw| raw.send(2, b"x")),
        (TermCode::DDP_TOO_LONG, |raw| raw.send(1, &[0; RECEIVE + 1])),
        (TermCode::DDP_NO_BUFFER, |raw| {
            for msn in 1..=5 {
                raw.send(msn, b"x");
            }
        }),
        (TermCode::MPA_MARKER, |raw| raw.write(&[0; 64])),
    ];
    for (code, act) in cases {
        let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
        act(&mut raw);
        assert_eq!(raw.terminate(&mut side), code);
        // Our direction ends, theirs is read to its end: no reset destroys the Terminate.
        assert!(raw.end(&mut side).is_empty());
        raw.write(&[0x55; 5000]);
        drop(raw);
        let reason = side.wait("end", |side| side.disconnected(conn));
        assert_eq!(reason, fabric(code));
    }
}

#[test]
fn a_peer_that_stays_after_its_fault_is_left() {
    let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
    raw.send(9, b"x");
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert!(matches!(
        reason,
        LossReason::Failed(RdmaError::FabricViolation { .. })
    ));
}

#[test]
fn siws_swapped_terminate_is_understood() {
    let (mut side, conn, mut raw) = initiator(no_crc(), &SIW);
    let segment = Segment {
        opcode: Opcode::Terminate,
        last: true,
        address: Address::Untagged {
            invalidate: 0,
            queue: 2,
            msn: 1,
            offset: 0,
        },
    };
    raw.write(&framed(&segment, &[0x21, 0x02, 0, 0], false));
    let reason = side.wait("end", |side| side.disconnected(conn));
    let expected = RdmaError::Terminated {
        layer: 1,
        error_type: 2,
        code: 2,
        operation: None,
    };
    assert_eq!(reason, LossReason::Failed(expected));
}

#[test]
fn a_terminate_says_which_read_it_is_about() {
    for named in [0, 1] {
        let (mut side, conn, mut raw) = responder(IwarpConfig::default(), &SIW);
        let from = RemoteAddress { address: 0, key: 1 };
        let read = || crate::rdma::Operation::Read {
            into: buffer(100).pin(),
            from,
        };
        side.post(conn, vec![read(), read()]);
        let requests = [raw.fpdu(&mut side), raw.fpdu(&mut side)];
        let (head, request) = &requests[named];
        let mut header = Vec::new();
        head.encode(&mut header);
        let terminate = Terminate {
            code: TermCode::RDMAP_ACCESS,
            offender: Some(Offender {
                ulpdu_len: (header.len() + request.len()) as u16,
                header: header.try_into().unwrap(),
                tagged: false,
                read_request: Some(request[..].try_into().unwrap()),
            }),
        };
        let mut message = [0; MAX_TERMINATE];
        let len = terminate.encode(&mut message);
        let address = Address::Untagged {
            invalidate: 0,
            queue: 2,
            msn: 1,
            offset: 0,
        };
        let terminate = segment(Opcode::Terminate, address);
        raw.write(&framed(&terminate, &message[..len], raw.crc));
        side.wait("end", |side| side.disconnected(conn));
        let statuses = [(); 2].map(|()| side.completed(conn).unwrap().1);
        let mut expected = [CompletionStatus::Flushed; 2];
        expected[named] = CompletionStatus::RemoteAccess;
        assert_eq!(statuses, expected);
    }
}

#[test]
fn the_end_of_the_stream_inside_an_fpdu_is_a_loss() {
    let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
    raw.send(1, b"whole");
    drop(raw);
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert_eq!(reason, LossReason::Peer);
    assert_eq!(&side.received(conn).unwrap().0[..], b"whole");
    let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
    raw.write(&[0, 38, 0x41]);
    drop(raw);
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert_eq!(reason, LossReason::Failed(RdmaError::ConnectionLost));
}

#[test]
fn garbage_after_the_handshake_ends_the_connection_only() {
    for seed in 0..40 {
        let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
        let mut garbage = pattern(seed, 3000);
        // Plausible starts, too.
        if seed % 2 == 0 {
            garbage[..4].copy_from_slice(&[0, 40 + seed as u8, 0x41, 0x40 | (seed as u8 % 8)]);
        }
        raw.write(&garbage);
        drop(raw);
        side.wait("end", |side| side.disconnected(conn));
    }
}

#[test]
fn a_peer_that_ends_a_drained_close_late_is_waited_for_until_the_deadline() {
    let (mut side, conn, mut raw) = initiator(IwarpConfig::default(), &SIW);
    raw.send(1, b"x");
    side.wait("message", |side| side.received(conn));
    let message = crate::rdma::Operation::Send {
        message: Pieces::one(filled(b"last words")),
        invalidate: None,
        solicited: false,
    };
    side.post(conn, vec![message]);
    let now = Instant::now();
    let deadline = now + Duration::from_millis(150);
    side.provider.close(conn, Close::Drain(deadline), now);
    let bytes = raw.end(&mut side);
    assert!(bytes.windows(10).any(|part| part == b"last words"));
    raw.write(&[1; 100]);
    let reason = side.wait("end", |side| side.disconnected(conn));
    assert_eq!(reason, LossReason::Local);
    assert!(Instant::now() >= deadline);
}

/// An empty Write is legal at any time, needs no key and makes no event.
#[test]
fn a_peer_that_sends_faster_than_it_is_read_does_not_hold_the_others_up() {
    const TOTAL: usize = 32 << 20;
    let (mut side, _conn, raw) = initiator(IwarpConfig::default(), &SIW);
    let empty = segment(Opcode::Write, Address::Tagged { tag: 0, offset: 0 });
    let flood = framed(&empty, &[], raw.crc).repeat(500);
    let written = Arc::new(AtomicUsize::new(0));
    let counter = written.clone();
    let mut stream = raw.stream;
    stream.set_nonblocking(false).unwrap();
    let writer = std::thread::spawn(move || {
        while counter.load(Ordering::Relaxed) < TOTAL && stream.write_all(&flood).is_ok() {
            counter.fetch_add(flood.len(), Ordering::Relaxed);
        }
    });
    let mut most = 0;
    while !writer.is_finished() {
        let before = written.load(Ordering::Relaxed);
        side.poll();
        most = most.max(written.load(Ordering::Relaxed) - before);
    }
    assert!(most < TOTAL / 2, "{most} in one poll");
    drop(side);
    writer.join().unwrap();
}

#[test]
fn a_peer_that_reads_as_fast_as_it_is_sent_to_does_not_hold_the_others_up() {
    const WRITES: usize = 64;
    const LEN: usize = 1 << 20;
    let (mut side, conn, raw) = responder(IwarpConfig::default(), &SIW);
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    let mut stream = raw.stream;
    stream.set_nonblocking(false).unwrap();
    let reader = std::thread::spawn(move || {
        let mut chunk = vec![0; LEN];
        while let Ok(len @ 1..) = stream.read(&mut chunk) {
            counter.fetch_add(len, Ordering::Relaxed);
        }
    });
    let bytes = filled(&pattern(1, LEN));
    let to = RemoteAddress { address: 0, key: 1 };
    let write = || crate::rdma::Operation::Write {
        from: Pieces::one(bytes.clone()),
        to,
    };
    side.post(conn, (0..WRITES).map(|_| write()).collect());
    let by_then = read.load(Ordering::Relaxed);
    assert!(by_then < WRITES * LEN / 2, "{by_then} in one call");
    // The rest follows.
    for _ in 0..WRITES {
        side.wait("completion", |side| side.completed(conn));
    }
    drop(side);
    reader.join().unwrap();
    assert!(read.load(Ordering::Relaxed) > WRITES * LEN);
}
