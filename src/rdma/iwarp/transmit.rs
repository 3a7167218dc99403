//! The sending half of a stream: the send queue, the answers to the peer's reads, and how both
//! become FPDUs. Does no I/O: fills a [`Batch`] and is told how much of it was written.

use std::collections::VecDeque;
use std::ops::Range;

use super::batch::{Batch, Framing, Payload};
use super::ddp::{Address, Segment, TAGGED_LEN, UNTAGGED_LEN, next_msn};
use super::rdmap::{
    MAX_TERMINATE, Opcode, QN_READ_REQUEST, QN_SEND, QN_TERMINATE, ReadRequest, TermCode, Terminate,
};
use super::receive::{PeerRead, ReadSink, Receiver, Violation};
use super::tags::{Denied, Tags};
use crate::rdma::{
    CompletionStatus, IoBytes, MAX_PIECES, Operation, Pieces, RemoteAccess, SendRequest,
};

/// The sending half of one stream.
#[derive(Debug)]
pub(super) struct Transmitter {
    pub(super) framing: Framing,
    /// The largest ULPDU in bytes.
    pub(super) mulpdu: usize,
    /// RDMA reads that may be in flight.
    pub(super) ord: usize,
    /// RDMA reads of the peer that may wait.
    pub(super) ird: usize,

    /// Everything posted and not reported yet.
    queue: VecDeque<Entry>,
    /// The first one in `queue` that is not framed whole.
    next: usize,
    /// Payload bytes of it that are framed.
    progress: usize,
    reads_in_flight: usize,
    send_msn: u32,
    read_msn: u32,
    /// The peer's reads in order, with the bytes of the first that are framed.
    responses: VecDeque<PeerRead>,
    response_progress: usize,
    /// Whether the peer's reads had the last turn.
    responded_last: bool,
    framed: u64,
    written: u64,
}

#[derive(Debug)]
struct Entry {
    request: SendRequest,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    /// Framed up to this byte of the stream.
    Framed(u64),
    /// A read whose response is not complete.
    Reading,
    Done(CompletionStatus),
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self {
            framing: Framing::default(),
            mulpdu: 0,
            ord: 0,
            ird: 0,
            queue: VecDeque::new(),
            next: 0,
            progress: 0,
            reads_in_flight: 0,
            send_msn: 1,
            read_msn: 1,
            responses: VecDeque::new(),
            response_progress: 0,
            responded_last: false,
            framed: 0,
            written: 0,
        }
    }

    /// Requests posted and not reported.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Puts a request at the end of the queue.
    pub(super) fn post(&mut self, request: SendRequest) {
        self.queue.push_back(Entry {
            request,
            state: State::Waiting,
        });
    }

    /// Takes in a read of the peer.
    pub(super) fn respond(&mut self, read: PeerRead) -> Result<(), Violation> {
        // R06.
        if self.responses.len() >= self.ird {
            return Err(Violation {
                code: TermCode::RDMAP_STREAM,
                offender: Some(read.offender),
            });
        }
        self.responses.push_back(read);
        Ok(())
    }

    /// Whether nothing is left to do: all requests are over and all reads of the peer answered.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.responses.is_empty() && self.framed == self.written
    }

    /// Bytes of the stream that were written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// A read in flight is over: the oldest is number 0.
    pub(super) fn read_done(&mut self, number: usize, status: CompletionStatus) {
        let mut reading = self.queue.iter_mut().filter(|e| e.state == State::Reading);
        if let Some(entry) = reading.nth(number) {
            entry.state = State::Done(status);
            self.reads_in_flight -= 1;
        }
    }

    /// Takes `len` written bytes into account.
    pub(super) fn wrote(&mut self, len: usize) {
        self.written += len as u64;
    }

    /// Reports the requests at the front of the queue that are over.
    pub(super) fn reap(&mut self, mut report: impl FnMut(SendRequest, CompletionStatus)) {
        while let Some(entry) = self.queue.front() {
            let status = match entry.state {
                State::Framed(end) if self.written >= end => CompletionStatus::Success,
                State::Done(status) => status,
                _ => return,
            };
            if let Some(entry) = self.queue.pop_front() {
                self.next -= 1;
                report(entry.request, status);
            }
        }
    }

    /// Ends the queue: everything in it is reported.
    pub(super) fn flush(&mut self, mut report: impl FnMut(SendRequest, CompletionStatus)) {
        self.reap(&mut report);
        for entry in self.queue.drain(..) {
            let status = match entry.state {
                State::Done(status) => status,
                _ => CompletionStatus::Flushed,
            };
            report(entry.request, status);
        }
        self.next = 0;
        self.responses.clear();
    }

    /// Executes binds and invalidations that are next: they send nothing, so that neither a full
    /// socket nor an answer that is half sent holds them up. `unsent` holds what was framed and is
    /// not written yet.
    pub(super) fn execute_local(&mut self, tags: &mut Tags, mut unsent: Option<&mut Batch>) {
        while let Some(entry) = self.queue.get_mut(self.next) {
            let status = match &entry.request.operation {
                Operation::Bind { window } if tags.bind(*window) => CompletionStatus::Success,
                Operation::Bind { .. } => CompletionStatus::Bind,
                Operation::Invalidate { window } => {
                    // Bytes of it that are on their way are copied: its memory is the caller's
                    // again.
                    if let Some(batch) = &mut unsent {
                        batch.detach(Some(*window));
                    }
                    if tags.invalidate(*window) {
                        CompletionStatus::Success
                    } else {
                        CompletionStatus::LocalAccess
                    }
                }
                _ => return,
            };
            entry.state = State::Done(status);
            self.next += 1;
        }
    }

    /// Frames what is ready, until the batch is full.
    pub(super) fn fill(
        &mut self,
        batch: &mut Batch,
        receiver: &mut Receiver,
        tags: &mut Tags,
    ) -> Result<(), Violation> {
        while !batch.is_full() {
            self.execute_local(tags, Some(batch));
            // A message is sent whole before the next begins: not every receiver takes them
            // interleaved.
            let requests = self.next < self.queue.len() && !self.stalled();
            let responses = !self.responses.is_empty();
            let respond = if self.response_progress > 0 {
                true
            } else if self.progress > 0 {
                false
            } else {
                responses && (!requests || !self.responded_last)
            };
            let room = if respond {
                self.frame_response(batch, tags)?
            } else if requests {
                self.frame_request(batch, receiver, tags)
            } else {
                break;
            };
            self.responded_last = respond;
            if !room {
                break;
            }
        }
        Ok(())
    }

    /// R06: the next request is a read, and as many as the peer allows are in flight.
    fn stalled(&self) -> bool {
        self.ord > 0
            && self.reads_in_flight >= self.ord
            && matches!(
                self.queue.get(self.next).map(|e| &e.request.operation),
                Some(Operation::Read { .. })
            )
    }

    /// Frames an RDMA Write without content: legal at any time, and without effect. It is also the
    /// ready-to-receive message of our peer-to-peer set-up.
    pub(super) fn frame_nudge(&mut self, batch: &mut Batch) {
        let segment = empty_write();
        self.framed += batch.push(&mut self.framing, &segment, &Payload::Bytes(&[])) as u64;
    }

    /// Frames the stream's last message.
    pub(super) fn frame_terminate(&mut self, batch: &mut Batch, violation: &Violation) {
        let mut message = [0; MAX_TERMINATE];
        let len = Terminate {
            code: violation.code,
            offender: violation.offender,
        }
        .encode(&mut message);
        let segment = untagged(Opcode::Terminate, true, 0, QN_TERMINATE, 1, 0);
        let payload = Payload::Bytes(&message[..len]);
        self.framed += batch.push(&mut self.framing, &segment, &payload) as u64;
    }

    fn frame_request(
        &mut self,
        batch: &mut Batch,
        receiver: &mut Receiver,
        tags: &mut Tags,
    ) -> bool {
        let Some(entry) = self.queue.get_mut(self.next) else {
            return false;
        };
        let progress = self.progress;
        match &mut entry.request.operation {
            Operation::Send {
                message,
                invalidate,
                solicited,
            } => {
                let total = message.bytes();
                let end = total.min(progress + self.mulpdu - UNTAGGED_LEN);
                if batch.splits_crc(&self.framing, UNTAGGED_LEN + end - progress) {
                    return false;
                }
                let segment = untagged(
                    Opcode::send(invalidate.is_some(), *solicited),
                    end == total,
                    // R02: zero where there is nothing to invalidate.
                    invalidate.unwrap_or(0),
                    QN_SEND,
                    self.send_msn,
                    // D03: a message is shorter than 2^32.
                    progress as u32,
                );
                self.framed +=
                    push_pieces(batch, &mut self.framing, &segment, message, progress..end);
                self.progress = end;
                if end == total {
                    self.send_msn = next_msn(self.send_msn);
                    entry.state = State::Framed(self.framed);
                }
            }
            Operation::Write { from, to } => {
                let total = from.bytes();
                let end = total.min(progress + self.mulpdu - TAGGED_LEN);
                if batch.splits_crc(&self.framing, TAGGED_LEN + end - progress) {
                    return false;
                }
                let segment = Segment {
                    opcode: Opcode::Write,
                    last: end == total,
                    address: Address::Tagged {
                        tag: to.key,
                        offset: to.address.wrapping_add(progress as u64),
                    },
                };
                self.framed += push_pieces(batch, &mut self.framing, &segment, from, progress..end);
                self.progress = end;
                if end == total {
                    entry.state = State::Framed(self.framed);
                }
            }
            // The peer serves no reads: it would wait for ever.
            Operation::Read { .. } if self.ord == 0 => {
                entry.state = State::Done(CompletionStatus::RemoteOperation);
            }
            Operation::Read { into, from } => {
                let request = tags.fresh().map(|sink_tag| ReadRequest {
                    sink_tag,
                    sink_offset: 0,
                    len: into.len() as u32,
                    source_tag: from.key,
                    source_offset: from.address,
                });
                match request {
                    Some(request) => {
                        receiver.expect_read(ReadSink::new(
                            request.sink_tag,
                            into.slice(0..into.len()),
                        ));
                        let (segment, payload) = read_request(self.read_msn, &request);
                        self.read_msn = next_msn(self.read_msn);
                        let payload = Payload::Bytes(&payload);
                        self.framed += batch.push(&mut self.framing, &segment, &payload) as u64;
                        self.reads_in_flight += 1;
                        entry.state = State::Reading;
                    }
                    // All 2^32 tags of the connection are used up.
                    None => entry.state = State::Done(CompletionStatus::LocalAccess),
                }
            }
            // `execute_local` has executed those.
            Operation::Bind { .. } | Operation::Invalidate { .. } => return false,
        }
        if entry.state != State::Waiting {
            self.next += 1;
            self.progress = 0;
        }
        true
    }

    fn frame_response(&mut self, batch: &mut Batch, tags: &Tags) -> Result<bool, Violation> {
        let Some(read) = self.responses.front() else {
            return Ok(false);
        };
        let request = read.request;
        let total = request.len as usize;
        let start = self.response_progress;
        let end = total.min(start + self.mulpdu - TAGGED_LEN);
        if batch.splits_crc(&self.framing, TAGGED_LEN + end - start) {
            return Ok(false);
        }
        let segment = Segment {
            opcode: Opcode::ReadResponse,
            last: end == total,
            address: Address::Tagged {
                tag: request.sink_tag,
                offset: request.sink_offset.wrapping_add(start as u64),
            },
        };
        // R05: for a read of nothing neither tag nor offset are looked at.
        let framed = if total == 0 {
            batch.push(&mut self.framing, &segment, &Payload::Bytes(&[]))
        } else {
            let refuse = |code| Violation {
                code,
                offender: Some(read.offender),
            };
            let id = tags
                .find(
                    request.source_tag,
                    request.source_offset,
                    u64::from(request.len),
                    RemoteAccess::Read,
                )
                .map_err(|denied| {
                    refuse(match denied {
                        Denied::Tag => TermCode::RDMAP_INVALID_TAG,
                        Denied::Bounds => TermCode::RDMAP_BOUNDS,
                        Denied::Wrap => TermCode::RDMAP_WRAP,
                        Denied::Access => TermCode::RDMAP_ACCESS,
                    })
                })?;
            let memory = tags
                .memory(id)
                .ok_or_else(|| refuse(TermCode::RDMAP_INVALID_TAG))?;
            // Within the window's memory, so it fits.
            let base = request.source_offset as usize;
            let payload = Payload::Window(id, memory, base + start..base + end);
            batch.push(&mut self.framing, &segment, &payload)
        };
        self.framed += framed as u64;
        self.response_progress = end;
        if end == total {
            self.responses.pop_front();
            self.response_progress = 0;
        }
        Ok(true)
    }
}

fn empty_write() -> Segment {
    Segment {
        opcode: Opcode::Write,
        last: true,
        address: Address::Tagged { tag: 0, offset: 0 },
    }
}

fn read_request(msn: u32, request: &ReadRequest) -> (Segment, [u8; 28]) {
    let segment = untagged(Opcode::ReadRequest, true, 0, QN_READ_REQUEST, msn, 0);
    (segment, request.encode())
}

fn untagged(
    opcode: Opcode,
    last: bool,
    invalidate: u32,
    queue: u32,
    msn: u32,
    offset: u32,
) -> Segment {
    Segment {
        opcode,
        last,
        address: Address::Untagged {
            invalidate,
            queue,
            msn,
            offset,
        },
    }
}

/// Frames the bytes `range` of a gather list.
fn push_pieces(
    batch: &mut Batch,
    framing: &mut Framing,
    segment: &Segment,
    pieces: &Pieces,
    range: Range<usize>,
) -> u64 {
    const NONE: Option<(&IoBytes, Range<usize>)> = None;
    let mut parts = [NONE; MAX_PIECES];
    let mut count = 0;
    let mut at = 0;
    for piece in pieces.iter() {
        let start = range.start.max(at) - at;
        let end = range.end.min(at + piece.len()).saturating_sub(at);
        if start < end {
            parts[count] = Some((piece, start..end));
            count += 1;
        }
        at += piece.len();
    }
    batch.push(framing, segment, &Payload::Pieces(&parts[..count])) as u64
}
