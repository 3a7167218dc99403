//! The receiving half of a stream: frames, checks and places what the peer sends. Does no I/O:
//! bytes come in by [`Receiver::consume`], in any segmentation, or are read into
//! [`Receiver::direct`] by the caller.
//!
//! Checks are made when a segment's header is complete and reported when its FPDU is, so that a
//! damaged FPDU is reported as damaged. Payload is placed before the CRC is known, as hardware
//! does: a tagged segment reaches only memory that its tag exposes anyway, and a message is
//! delivered only after its CRC.

use std::collections::VecDeque;

use super::crc::Crc;
use super::ddp::{Address, Segment, UNTAGGED_LEN, next_msn};
use super::fpdu::{CRC_LEN, LENGTH_LEN, MarkerReader, padding};
use super::mpa::Rtr;
use super::pinned;
use super::rdmap::{
    MAX_TERMINATE, Offender, Opcode, QN_READ_REQUEST, QN_SEND, READ_REQUEST_LEN, ReadRequest,
    TermCode, Terminate,
};
use super::tags::{Denied, Tags};
use crate::rdma::{IoBuf, IoPin, RemoteAccess, WindowId};

/// The peer broke a rule; the stream ends with this Terminate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) code: TermCode,
    pub(super) offender: Option<Offender>,
}

impl From<TermCode> for Violation {
    fn from(code: TermCode) -> Self {
        Self {
            code,
            offender: None,
        }
    }
}

/// What a segment leads to.
#[derive(Debug)]
pub(super) enum Action {
    /// A message is complete.
    Received {
        buffer: IoBuf,
        invalidated: Option<(WindowId, u32)>,
    },
    /// The peer wants to read.
    ReadRequested(PeerRead),
    /// The oldest read of ours is complete.
    ReadDone,
    /// The peer ended the stream.
    Terminated(Option<Terminate>),
}

/// A Read Request of the peer, with its header for the Terminate that may answer it.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerRead {
    pub(super) request: ReadRequest,
    pub(super) offender: Offender,
}

/// A read of ours that is under way.
#[derive(Debug)]
pub(super) struct ReadSink {
    pub(super) tag: u32,
    pub(super) memory: IoPin,
    received: usize,
}

impl ReadSink {
    pub(super) fn new(tag: u32, memory: IoPin) -> Self {
        Self {
            tag,
            memory,
            received: 0,
        }
    }
}

/// The receiving half of one stream.
#[derive(Debug)]
pub(super) struct Receiver {
    crc: bool,
    markers: Option<MarkerReader>,
    /// FPDU that the initiator of a peer-to-peer set-up sends first.
    rtr: Rtr,
    /// FPDUs received whole and valid.
    frames: u64,

    phase: Phase,
    head: [u8; LENGTH_LEN + UNTAGGED_LEN],
    head_len: usize,
    sum: Crc,
    segment: Option<Segment>,
    sink: Sink,
    payload_left: usize,
    /// Payload of Read Requests and Terminates.
    control: [u8; MAX_TERMINATE],
    control_len: usize,
    /// Padding and CRC.
    tail: [u8; 3 + CRC_LEN],
    tail_len: usize,

    /// Posted receives, the last posted first: idle connections touch little memory.
    receives: Vec<IoBuf>,
    message: Option<Message>,
    send_msn: u32,
    read_msn: u32,
    reads: VecDeque<ReadSink>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Header,
    Payload,
    Tail,
}

/// Where the current segment's payload goes.
#[derive(Debug)]
enum Sink {
    Nowhere,
    Message,
    Window { id: WindowId, at: usize },
    Read,
    Control,
    Refused(TermCode),
}

/// A message of which segments have come.
#[derive(Debug)]
struct Message {
    buffer: IoBuf,
    received: usize,
    opcode: Opcode,
}

impl Receiver {
    /// A stream that has not begun.
    pub(super) fn new() -> Self {
        Self {
            crc: true,
            markers: None,
            rtr: Rtr::None,
            frames: 0,
            phase: Phase::Header,
            head: [0; LENGTH_LEN + UNTAGGED_LEN],
            head_len: 0,
            sum: Crc::default(),
            segment: None,
            sink: Sink::Nowhere,
            payload_left: 0,
            control: [0; MAX_TERMINATE],
            control_len: 0,
            tail: [0; 3 + CRC_LEN],
            tail_len: 0,
            receives: Vec::new(),
            message: None,
            send_msn: 1,
            read_msn: 1,
            reads: VecDeque::new(),
        }
    }

    /// Applies what the handshake agreed on, before the first byte.
    pub(super) fn begin_stream(&mut self, crc: bool, markers: bool, rtr: Rtr) {
        self.crc = crc;
        self.markers = markers.then(MarkerReader::default);
        self.rtr = rtr;
    }

    /// Posts a receive.
    pub(super) fn post(&mut self, buffer: IoBuf) {
        self.receives.push(buffer);
    }

    /// How many receives are posted.
    pub(super) fn posted(&self) -> usize {
        self.receives.len() + usize::from(self.message.is_some())
    }

    /// Takes the posted receives back, with the one that a message has begun to fill.
    pub(super) fn take_receives(&mut self) -> impl Iterator<Item = IoBuf> + use<> {
        let message = self.message.take().map(|message| message.buffer);
        std::mem::take(&mut self.receives)
            .into_iter()
            .chain(message)
    }

    /// Expects the response to a read of ours.
    pub(super) fn expect_read(&mut self, sink: ReadSink) {
        self.reads.push_back(sink);
    }

    /// Which of the reads of ours has this tag for its sink, the oldest being 0.
    pub(super) fn read_with(&self, sink_tag: u32) -> Option<usize> {
        self.reads.iter().position(|read| read.tag == sink_tag)
    }

    /// Forgets the reads of ours.
    pub(super) fn forget_reads(&mut self) {
        self.reads.clear();
    }

    /// FPDUs received whole and valid.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes of the current ULPDU, or of the last one where no other has begun.
    pub(super) fn latest_ulpdu(&self) -> usize {
        self.ulpdu_len()
    }

    /// Whether the stream stands between two FPDUs.
    pub(super) fn between_frames(&self) -> bool {
        self.phase == Phase::Header && self.head_len == 0
    }

    /// The memory for the payload that comes next, if that is all known: the caller may read the
    /// stream's next bytes into it and then calls [`Receiver::placed`].
    pub(super) fn direct<'a>(&'a mut self, tags: &'a mut Tags) -> Option<&'a mut [u8]> {
        if self.phase != Phase::Payload || self.markers.is_some() {
            return None;
        }
        let left = self.payload_left;
        match &self.sink {
            Sink::Message => {
                let message = self.message.as_mut()?;
                message.buffer.get_mut(message.received..)?.get_mut(..left)
            }
            Sink::Window { id, at } => {
                let memory = tags.memory_mut(*id)?;
                (at + left <= memory.len()).then(|| pinned::bytes_mut(memory, *at..at + left))
            }
            Sink::Read => {
                let read = self.reads.front_mut()?;
                let range = read.received..read.received + left;
                (range.end <= read.memory.len()).then(|| pinned::bytes_mut(&mut read.memory, range))
            }
            _ => None,
        }
    }

    /// Takes note of `len` bytes that were read into [`Receiver::direct`].
    pub(super) fn placed(&mut self, tags: &mut Tags, len: usize) {
        if self.crc {
            let mut sum = self.sum;
            if let Some(memory) = self.direct(tags) {
                sum.update(&memory[..len]);
            }
            self.sum = sum;
        }
        self.advance(len);
    }

    /// Takes bytes from the front of `bytes` until there is something to act on (`Some`) or none
    /// are left.
    pub(super) fn consume(
        &mut self,
        bytes: &mut &[u8],
        tags: &mut Tags,
    ) -> Result<Option<Action>, Violation> {
        let Some(mut markers) = self.markers.take() else {
            return self.consume_plain(bytes, tags);
        };
        let result = loop {
            match markers.next(bytes, self.crc) {
                Ok(None) => break Ok(None),
                Err(code) => break Err(code.into()),
                Ok(Some(frame)) => {
                    // The marker reader has checked the CRC, which covers the markers.
                    let crc = std::mem::replace(&mut self.crc, false);
                    let result = self.consume_plain(&mut &frame[..], tags);
                    self.crc = crc;
                    match result {
                        Ok(None) => {}
                        other => break other,
                    }
                }
            }
        };
        self.markers = Some(markers);
        result
    }

    fn consume_plain(
        &mut self,
        bytes: &mut &[u8],
        tags: &mut Tags,
    ) -> Result<Option<Action>, Violation> {
        while !bytes.is_empty() {
            match self.phase {
                Phase::Header => {
                    let need = self.head_need();
                    let part = take(bytes, need - self.head_len);
                    self.head[self.head_len..][..part.len()].copy_from_slice(part);
                    self.head_len += part.len();
                    if self.head_len == self.head_need() {
                        self.begin_segment(tags)?;
                    }
                }
                Phase::Payload => {
                    let part = take(bytes, self.payload_left);
                    if self.crc {
                        self.sum.update(part);
                    }
                    self.place(part, tags);
                }
                Phase::Tail => {
                    let need = self.tail_need();
                    let part = take(bytes, need - self.tail_len);
                    self.tail[self.tail_len..][..part.len()].copy_from_slice(part);
                    self.tail_len += part.len();
                    if self.tail_len == need
                        && let Some(action) = self.end_segment(tags)?
                    {
                        return Ok(Some(action));
                    }
                }
            }
        }
        Ok(None)
    }

    fn ulpdu_len(&self) -> usize {
        usize::from(u16::from_be_bytes([self.head[0], self.head[1]]))
    }

    /// Bytes of length field and DDP header, as far as they can be known and there is room for them.
    fn head_need(&self) -> usize {
        match self.head_len {
            0 | 1 => LENGTH_LEN,
            2 if self.ulpdu_len() == 0 => LENGTH_LEN,
            2 => LENGTH_LEN + 1,
            _ => LENGTH_LEN + Segment::header_len(self.head[LENGTH_LEN]).min(self.ulpdu_len()),
        }
    }

    fn tail_need(&self) -> usize {
        padding(self.ulpdu_len()) + CRC_LEN
    }

    fn begin_segment(&mut self, tags: &Tags) -> Result<(), Violation> {
        let len = self.ulpdu_len();
        let head_len = match len {
            0 => 0,
            _ => Segment::header_len(self.head[LENGTH_LEN]),
        };
        self.sum = Crc::default();
        if self.crc {
            self.sum.update(&self.head[..self.head_len]);
        }
        self.segment = None;
        self.tail_len = 0;
        self.control_len = 0;
        // RFC 6581: a zero-length FPDU is legal as the ready-to-receive message only.
        if len < head_len || (len == 0 && !(self.rtr == Rtr::Fpdu && self.frames == 0)) {
            return Err(TermCode::MPA_MARKER.into());
        }
        self.payload_left = len - head_len;
        self.phase = if self.payload_left == 0 {
            Phase::Tail
        } else {
            Phase::Payload
        };
        self.sink = Sink::Nowhere;
        if len == 0 {
            return Ok(());
        }
        self.sink = match Segment::decode(&self.head[LENGTH_LEN..self.head_len]) {
            Ok(segment) => {
                self.segment = Some(segment);
                self.check(&segment, tags).unwrap_or_else(Sink::Refused)
            }
            Err(code) => Sink::Refused(code),
        };
        Ok(())
    }

    fn check(&mut self, segment: &Segment, tags: &Tags) -> Result<Sink, TermCode> {
        match segment.address {
            Address::Tagged { tag, offset } => self.check_tagged(segment, tag, offset, tags),
            Address::Untagged {
                queue, msn, offset, ..
            } => {
                // D04, RFC 5041 section 7.1.
                if queue != segment.opcode.queue() {
                    return Err(TermCode::DDP_QUEUE);
                }
                match queue {
                    QN_SEND => self.check_send(segment, msn, offset),
                    QN_READ_REQUEST => {
                        if msn != self.read_msn {
                            Err(TermCode::DDP_MSN)
                        } else if offset != 0 {
                            Err(TermCode::DDP_OFFSET)
                        } else if self.payload_left != READ_REQUEST_LEN || !segment.last {
                            Err(TermCode::DDP_TOO_LONG)
                        } else {
                            Ok(Sink::Control)
                        }
                    }
                    // R09: a Terminate ends the stream whatever else it says.
                    _ => Ok(Sink::Control),
                }
            }
        }
    }

    fn check_tagged(
        &self,
        segment: &Segment,
        tag: u32,
        offset: u64,
        tags: &Tags,
    ) -> Result<Sink, TermCode> {
        let len = self.payload_left;
        if segment.opcode == Opcode::Write {
            // D06: neither tag nor offset of an empty segment are looked at.
            if len == 0 {
                return Ok(Sink::Nowhere);
            }
            // D05. RFC 5040 table 5 knows no access error for a Write; siw says "invalid tag".
            let id = tags
                .find(tag, offset, len as u64, RemoteAccess::Write)
                .map_err(|denied| match denied {
                    Denied::Tag | Denied::Access => TermCode::DDP_INVALID_TAG,
                    Denied::Bounds => TermCode::DDP_BOUNDS,
                    Denied::Wrap => TermCode::DDP_WRAP,
                })?;
            // In bounds of memory, so it fits.
            let at = offset as usize;
            return Ok(Sink::Window { id, at });
        }
        // R04: responses come in the order of the requests.
        let read = self.reads.front().ok_or(TermCode::DDP_INVALID_TAG)?;
        let end = read.received + len;
        if len > 0 && tag != read.tag {
            return Err(TermCode::DDP_INVALID_TAG);
        }
        if (len > 0 && offset != read.received as u64)
            || end > read.memory.len()
            || segment.last != (end == read.memory.len())
        {
            return Err(TermCode::DDP_BOUNDS);
        }
        Ok(if len == 0 { Sink::Nowhere } else { Sink::Read })
    }

    fn check_send(&mut self, segment: &Segment, msn: u32, offset: u32) -> Result<Sink, TermCode> {
        if msn != self.send_msn {
            return Err(TermCode::DDP_MSN);
        }
        let received = self.message.as_ref().map_or(0, |message| message.received);
        if u64::from(offset) != received as u64 {
            return Err(TermCode::DDP_OFFSET);
        }
        let message = match &mut self.message {
            Some(message) if message.opcode == segment.opcode => message,
            // RFC 5040 section 4.1: all segments of a message carry the same opcode.
            Some(_) => return Err(TermCode::RDMAP_OPCODE),
            None => {
                // There is no waiting for a receive on iWARP.
                let mut buffer = self.receives.pop().ok_or(TermCode::DDP_NO_BUFFER)?;
                buffer.set_len(buffer.capacity());
                self.message.insert(Message {
                    buffer,
                    received: 0,
                    opcode: segment.opcode,
                })
            }
        };
        // R07.
        if message.received + self.payload_left > message.buffer.len() {
            return Err(TermCode::DDP_TOO_LONG);
        }
        Ok(Sink::Message)
    }

    fn place(&mut self, part: &[u8], tags: &mut Tags) {
        match &self.sink {
            Sink::Control => {
                let room = &mut self.control[self.control_len..];
                let len = part.len().min(room.len());
                room[..len].copy_from_slice(&part[..len]);
                self.control_len += len;
            }
            Sink::Nowhere | Sink::Refused(_) => {}
            Sink::Message | Sink::Window { .. } | Sink::Read => match self.direct_any(tags) {
                Some(memory) => memory[..part.len()].copy_from_slice(part),
                // The window was closed while the segment came in: nothing more reaches its memory.
                None => self.sink = Sink::Refused(TermCode::DDP_INVALID_TAG),
            },
        }
        self.advance(part.len());
    }

    /// As [`Receiver::direct`]; the markers are out already where this is used.
    fn direct_any<'a>(&'a mut self, tags: &'a mut Tags) -> Option<&'a mut [u8]> {
        debug_assert!(self.markers.is_none(), "taken out while consuming");
        self.direct(tags)
    }

    fn advance(&mut self, len: usize) {
        match &mut self.sink {
            Sink::Message => {
                if let Some(message) = &mut self.message {
                    message.received += len;
                }
            }
            Sink::Window { at, .. } => *at += len,
            Sink::Read => {
                if let Some(read) = self.reads.front_mut() {
                    read.received += len;
                }
            }
            _ => {}
        }
        self.payload_left -= len;
        if self.payload_left == 0 {
            self.phase = Phase::Tail;
        }
    }

    fn end_segment(&mut self, tags: &mut Tags) -> Result<Option<Action>, Violation> {
        self.phase = Phase::Header;
        self.head_len = 0;
        if self.crc {
            let crc = self.tail_len - CRC_LEN;
            self.sum.update(&self.tail[..crc]);
            // M12: nothing of this FPDU is delivered.
            if self.sum.field() != self.tail[crc..self.tail_len] {
                return Err(TermCode::MPA_CRC.into());
            }
        }
        if let Sink::Refused(code) = self.sink {
            return Err(self.violation(code));
        }
        self.frames += 1;
        let Some(segment) = self.segment else {
            return Ok(None);
        };
        match segment.opcode {
            Opcode::Write => Ok(None),
            Opcode::ReadResponse if segment.last => {
                self.reads.pop_front();
                Ok(Some(Action::ReadDone))
            }
            Opcode::ReadResponse => Ok(None),
            Opcode::ReadRequest => {
                self.read_msn = next_msn(self.read_msn);
                let mut request = [0; READ_REQUEST_LEN];
                request.copy_from_slice(&self.control[..READ_REQUEST_LEN]);
                Ok(Some(Action::ReadRequested(PeerRead {
                    request: ReadRequest::decode(&request),
                    offender: Offender {
                        read_request: Some(request),
                        ..self.offender()
                    },
                })))
            }
            Opcode::Terminate => Ok(Some(Action::Terminated(Terminate::decode(
                &self.control[..self.control_len],
            )))),
            _ if segment.last => self.deliver(&segment, tags).map(Some),
            _ => Ok(None),
        }
    }

    fn deliver(&mut self, segment: &Segment, tags: &mut Tags) -> Result<Action, Violation> {
        let mut invalidated = None;
        if segment.opcode.invalidates()
            && let Address::Untagged { invalidate, .. } = segment.address
        {
            // R08: the tag is ours to give and valid on this stream; it is invalid before the
            // message is seen.
            let Some(id) = tags.invalidate_tag(invalidate) else {
                return Err(self.violation(TermCode::RDMAP_CANNOT_INVALIDATE));
            };
            invalidated = Some((id, invalidate));
        }
        self.send_msn = next_msn(self.send_msn);
        let Some(Message {
            mut buffer,
            received,
            ..
        }) = self.message.take()
        else {
            // The segment's check has put a message there.
            return Err(TermCode::DDP_NO_BUFFER.into());
        };
        buffer.set_len(received);
        Ok(Action::Received {
            buffer,
            invalidated,
        })
    }

    fn violation(&self, code: TermCode) -> Violation {
        Violation {
            code,
            offender: Some(self.offender()),
        }
    }

    fn offender(&self) -> Offender {
        let mut header = [0; UNTAGGED_LEN];
        header.copy_from_slice(&self.head[LENGTH_LEN..]);
        Offender {
            ulpdu_len: self.ulpdu_len() as u16,
            header,
            tagged: header[0] & 0x80 != 0,
            read_request: None,
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (part, rest) = bytes.split_at(len.min(bytes.len()));
    *bytes = rest;
    part
}
