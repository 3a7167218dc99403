//! The receive path as a passive listener, for captured connections.

use std::collections::VecDeque;

use super::ddp::Segment;
use super::fpdu::{LENGTH_LEN, frame_len};
use super::mpa::{Frame, Kind, Rtr};
use super::rdmap::Opcode;
use super::receive::{Action, ReadSink, Receiver};
use super::tags::Tags;
use crate::rdma::{PlainDomain, Slab, SlabOptions};

/// One direction.
struct Direction {
    kind: Kind,
    handshake: Option<Frame>,
    receiver: Receiver,
    tags: Tags,
    /// Not yet parsed.
    bytes: Vec<u8>,
    /// Where the reads that this direction answers place their data.
    sink_offsets: VecDeque<u64>,
}

/// Both directions of a connection, the initiator's first. Panics on whatever breaks a rule.
pub(crate) struct Replay {
    directions: [Direction; 2],
    receives: Slab,
    reads: Slab,
    /// Segments of RDMA read responses that were placed.
    pub(crate) read_segments: usize,
}

const READ_LEN: usize = 1 << 20;

impl Replay {
    pub(crate) fn new() -> Self {
        let direction = |kind| Direction {
            kind,
            handshake: None,
            receiver: Receiver::new(),
            tags: Tags::new().expect("random numbers"),
            bytes: Vec::new(),
            sink_offsets: VecDeque::new(),
        };
        let slab = |size, count| {
            Slab::new(&PlainDomain::shared(), size, count, SlabOptions::default())
                .expect("some memory")
        };
        Self {
            directions: [direction(Kind::Request), direction(Kind::Reply)],
            receives: slab(8192, 8),
            reads: slab(READ_LEN, 2),
            read_segments: 0,
        }
    }

    /// Takes the next bytes of a direction and returns the messages they complete.
    pub(crate) fn feed(&mut self, from: usize, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.directions[from].bytes.extend_from_slice(bytes);
        self.shake_hands(from);
        let mut messages = Vec::new();
        while let Some(frame) = self.next_frame(from) {
            // Not at once: in pieces that respect no boundary.
            for piece in frame.chunks(13) {
                messages.extend(self.consume(from, piece));
            }
        }
        messages
    }

    /// What the initiator and the responder said of CRC.
    pub(crate) fn crc(&self) -> bool {
        let said = |direction: &Direction| direction.handshake.as_ref().is_some_and(|f| f.crc);
        self.directions.iter().any(said)
    }

    fn shake_hands(&mut self, from: usize) {
        let direction = &mut self.directions[from];
        if direction.handshake.is_none()
            && let Some((frame, len)) =
                Frame::parse(direction.kind, &direction.bytes).expect("an MPA frame")
        {
            assert!(!frame.reject && !frame.markers);
            direction.bytes.drain(..len);
            direction.handshake = Some(frame);
            if self.directions.iter().all(|d| d.handshake.is_some()) {
                let crc = self.crc();
                for direction in &mut self.directions {
                    direction.receiver.begin_stream(crc, false, Rtr::None);
                }
            }
        }
    }

    /// The next whole FPDU, changed in one point: the kernel's read sinks begin at an address, ours
    /// at 0. That would spoil a CRC.
    fn next_frame(&mut self, from: usize) -> Option<Vec<u8>> {
        let crc = self.crc();
        let direction = &mut self.directions[from];
        let ulpdu = direction.bytes.first_chunk::<LENGTH_LEN>()?;
        let len = frame_len(usize::from(u16::from_be_bytes(*ulpdu)));
        if direction.handshake.is_none() || direction.bytes.len() < len {
            return None;
        }
        let mut frame: Vec<u8> = direction.bytes.drain(..len).collect();
        let header = Segment::decode(&frame[LENGTH_LEN..]).expect("a DDP header");
        if header.opcode == Opcode::ReadResponse {
            assert!(!crc);
            const OFFSET: std::ops::Range<usize> = LENGTH_LEN + 6..LENGTH_LEN + 14;
            let base = direction.sink_offsets.front().expect("a request");
            let offset = u64::from_be_bytes(frame[OFFSET].try_into().expect("eight bytes"));
            frame[OFFSET].copy_from_slice(&(offset - base).to_be_bytes());
            self.read_segments += 1;
        }
        Some(frame)
    }

    fn consume(&mut self, from: usize, mut bytes: &[u8]) -> Option<Vec<u8>> {
        let direction = &mut self.directions[from];
        while direction.receiver.posted() < 2 {
            direction
                .receiver
                .post(self.receives.take().expect("a receive"));
        }
        let action = direction
            .receiver
            .consume(&mut bytes, &mut direction.tags)
            .expect("no violation")?;
        assert!(bytes.is_empty(), "no more than one FPDU is given");
        match action {
            Action::Received {
                buffer,
                invalidated: None,
            } => Some(buffer.to_vec()),
            Action::ReadRequested(read) => {
                let sink = self.reads.take().expect("memory for reads");
                assert!(read.request.len as usize <= READ_LEN);
                let memory = sink.pin().slice(0..read.request.len as usize);
                let other = &mut self.directions[1 - from];
                other.sink_offsets.push_back(read.request.sink_offset);
                other
                    .receiver
                    .expect_read(ReadSink::new(read.request.sink_tag, memory));
                None
            }
            Action::ReadDone => {
                direction.sink_offsets.pop_front();
                None
            }
            other => panic!("{other:?}"),
        }
    }
}
