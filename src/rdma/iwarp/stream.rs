//! An established connection: one socket with its receiving and its sending half.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::fpdu::{MAX_MULPDU, MIN_MULPDU, MarkerWriter, mulpdu};
use super::mpa::{Rtr, Settings};
use super::rdmap::{Opcode, ReadRequest, Terminate};
use super::receive::{Action, Receiver, Violation};
use super::sys::Socket;
use super::tags::Tags;
use super::transmit::Transmitter;
use crate::rdma::{
    CompletionStatus, ConnId, Event, LossReason, QpOptions, RdmaError, RdmaOperation, after,
};

/// Payload from this many bytes on is read into its place instead of through the scratch buffer.
const DIRECT: usize = 2048;
/// Around FPDUs from this size on, only a little is read beyond: the next payload can go into its
/// place too.
const BULK: usize = 16 * 1024;
const LOOKAHEAD: usize = 4096;
/// Reads of one connection before the others have their turn.
const READS_PER_TURN: usize = 16;
/// Bytes written for one connection before the others have their turn.
const WRITTEN_PER_TURN: u64 = 2 << 20;
/// How long the peer may take to end its side after we ended the stream for its fault.
const LINGER: Duration = Duration::from_secs(1);
const NUDGES: u8 = 5;
/// Emptied batches that are kept for the next writes.
const SPARE_BATCHES: usize = 4;

/// Queues and windows of a connection.
#[derive(Debug)]
pub(super) struct QueuePair {
    pub(super) receiver: Receiver,
    pub(super) transmitter: Transmitter,
    pub(super) tags: Tags,
    pub(super) send_depth: usize,
    pub(super) receive_depth: usize,
}

impl QueuePair {
    pub(super) fn new(options: &QpOptions) -> io::Result<Self> {
        Ok(Self {
            receiver: Receiver::new(),
            transmitter: Transmitter::new(),
            tags: Tags::new()?,
            send_depth: options.send_depth as usize,
            receive_depth: options.receive_depth as usize,
        })
    }

    /// Reports everything that is posted and ends the windows.
    pub(super) fn flush(&mut self, conn: ConnId, events: &mut VecDeque<Event>) {
        // The sinks of reads are freed before their requests go back.
        self.receiver.forget_reads();
        self.transmitter.flush(|request, status| {
            events.push_back(Event::Completed {
                conn,
                request,
                status,
            });
        });
        for buffer in self.receiver.take_receives() {
            events.push_back(Event::Flushed { conn, buffer });
        }
        self.tags.clear();
    }

    fn reap(&mut self, conn: ConnId, events: &mut VecDeque<Event>) {
        self.transmitter.reap(|request, status| {
            events.push_back(Event::Completed {
                conn,
                request,
                status,
            });
        });
    }
}

/// What the connections of a provider share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where bytes are read to that do not go into their place.
    pub(super) scratch: Vec<u8>,
    pub(super) spare: Vec<Batch>,
    pub(super) events: VecDeque<Event>,
}

impl Shared {
    fn batch(&mut self) -> Batch {
        self.spare.pop().unwrap_or_default()
    }

    fn give_back(&mut self, batch: Batch) {
        if self.spare.len() < SPARE_BATCHES {
            self.spare.push(batch);
        }
    }
}

/// The socket's side of an established connection.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its direction: read until the end is seen.
    pub(super) hangup: bool,
    /// Writing failed; what the peer still sent is read.
    broken: bool,
    /// The turn was over before the socket was full.
    unfinished: bool,
    /// M09: a responder sends nothing before it has received an FPDU.
    hold: bool,
    /// A batch of which the socket has taken a part.
    pending: Option<Batch>,
    /// Sent when the pending batch is out.
    violation: Option<Violation>,
    /// Sent to the engine with the first FPDU.
    established: Option<Event>,
    nudge: Option<Nudge>,
    phase: Phase,
}

#[derive(Debug)]
struct Nudge {
    at: Option<Instant>,
    wait: Duration,
    left: u8,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// Closed by this side: the queue is worked off, until then.
    Draining(Instant),
    /// The Terminate is on its way.
    Terminating(Instant, LossReason),
    /// Our direction is ended; the peer's is read to its end and not looked at.
    Lingering(Instant, LossReason),
}

/// What ends a turn early.
enum Stop {
    Violation(Violation),
    Gone(LossReason),
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl Stream {
    /// Begins the stream after the handshake.
    pub(super) fn new(
        socket: Socket,
        qp: &mut QueuePair,
        settings: &Settings,
        ulpdu: Option<u16>,
    ) -> Self {
        // A socket that was connected a moment ago; where it is gone already, reading will tell.
        let segment_size = socket.segment_size().unwrap_or(0);
        let transmitter = &mut qp.transmitter;
        transmitter.mulpdu = match ulpdu {
            Some(ulpdu) => usize::from(ulpdu).clamp(MIN_MULPDU, MAX_MULPDU),
            None => mulpdu(segment_size, settings.send_markers),
        };
        transmitter.ord = usize::from(settings.ord);
        transmitter.ird = usize::from(settings.ird);
        transmitter.framing.crc = settings.crc;
        transmitter.framing.markers = settings.send_markers.then(MarkerWriter::default);
        transmitter.framing.segment_size = segment_size;
        qp.receiver
            .begin_stream(settings.crc, settings.receive_markers, settings.rtr);
        Self {
            socket,
            readable: true,
            writable: true,
            hangup: false,
            broken: false,
            unfinished: false,
            hold: false,
            pending: None,
            violation: None,
            established: None,
            nudge: None,
            phase: Phase::Open,
        }
    }

    /// The initiator's side: sends the ready-to-receive message where there is one, and watches for
    /// a sign of life.
    pub(super) fn initiate(
        &mut self,
        qp: &mut QueuePair,
        shared: &mut Shared,
        rtr: Rtr,
        nudge: Option<Duration>,
    ) {
        self.nudge = nudge.map(|wait| Nudge {
            at: None,
            wait,
            left: NUDGES,
        });
        if rtr != Rtr::None {
            let mut batch = shared.batch();
            qp.transmitter.frame_nudge(&mut batch);
            self.pending = Some(batch);
        }
    }

    /// The responder's side: holds what is posted until the first FPDU has come, and with it, if
    /// given, the event.
    pub(super) fn respond(&mut self, established: Option<Event>) {
        self.hold = true;
        self.established = established;
    }

    /// Ends the stream with a Terminate.
    pub(super) fn terminate(&mut self, now: Instant, violation: Violation, reason: LossReason) {
        if matches!(self.phase, Phase::Open | Phase::Draining(_)) {
            self.violation = Some(violation);
            self.phase = Phase::Terminating(now + LINGER, reason);
        }
    }

    /// Ends the stream when its queue is empty, at the latest at `deadline`.
    pub(super) fn drain(&mut self, deadline: Instant) {
        match &mut self.phase {
            Phase::Open => self.phase = Phase::Draining(deadline),
            Phase::Draining(at) => *at = deadline.min(*at),
            Phase::Terminating(..) | Phase::Lingering(..) => {}
        }
    }

    /// Whether requests are taken.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// When [`Stream::turn`] wants to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Open => self.nudge.as_ref()?.at,
            Phase::Draining(at) | Phase::Terminating(at, _) | Phase::Lingering(at, _) => Some(*at),
        }
    }

    /// Whether there is something to do without waiting for the socket.
    pub(super) fn wants_turn(&self) -> bool {
        self.readable || self.unfinished
    }

    /// Moves what can be moved. Returns why the connection is gone, when it is.
    pub(super) fn turn(
        &mut self,
        conn: ConnId,
        qp: &mut QueuePair,
        shared: &mut Shared,
        now: Instant,
    ) -> Option<LossReason> {
        let mut stop = self.receive(conn, qp, shared);
        if stop.is_ok() {
            self.nudge_peer(qp, shared, now);
            stop = self.transmit(qp, shared).map_err(Stop::Violation);
        }
        qp.reap(conn, &mut shared.events);
        match stop {
            Ok(()) => {}
            Err(Stop::Gone(reason)) => return Some(reason),
            Err(Stop::Violation(violation)) => {
                tracing::debug!(?conn, ?violation, "the peer broke a rule of the fabric");
                let code = violation.code;
                let reason = RdmaError::FabricViolation {
                    layer: code.layer,
                    error_type: code.error_type,
                    code: code.code,
                };
                self.terminate(now, violation, reason.into());
                // A Terminate is one message: this cannot be a violation again.
                let _ = self.transmit(qp, shared);
            }
        }
        self.progress(qp, now)
    }

    /// Sends what is posted as far as the socket takes it. Returns whether a turn has to follow.
    pub(super) fn send(&mut self, conn: ConnId, qp: &mut QueuePair, shared: &mut Shared) -> bool {
        let result = self.transmit(qp, shared);
        qp.reap(conn, &mut shared.events);
        // A violation is found again, and handled, in the turn that follows.
        let nudge_waits = self.nudge.as_ref().is_some_and(|nudge| nudge.at.is_none());
        result.is_err() || self.broken || nudge_waits || self.unfinished
    }

    fn progress(&mut self, qp: &QueuePair, now: Instant) -> Option<LossReason> {
        let written = self.pending.is_none() && self.violation.is_none();
        match &mut self.phase {
            Phase::Open => None,
            Phase::Draining(at) => {
                let at = *at;
                if now >= at {
                    return Some(LossReason::Local);
                }
                if qp.transmitter.is_idle() && written {
                    // The peer reads our last bytes before it sees the end; we read what it still
                    // sends, so that closing makes no reset that would destroy them.
                    self.socket.finish();
                    self.phase = Phase::Lingering(at, LossReason::Local);
                }
                None
            }
            Phase::Terminating(at, reason) => {
                if now >= *at || self.broken {
                    return Some(reason.clone());
                }
                if written {
                    self.socket.finish();
                    self.phase = Phase::Lingering(*at, reason.clone());
                }
                None
            }
            Phase::Lingering(at, reason) => (now >= *at || self.broken).then(|| reason.clone()),
        }
    }

    fn receive(
        &mut self,
        conn: ConnId,
        qp: &mut QueuePair,
        shared: &mut Shared,
    ) -> Result<(), Stop> {
        for _ in 0..READS_PER_TURN {
            if !self.readable {
                return Ok(());
            }
            let discard = matches!(self.phase, Phase::Terminating(..) | Phase::Lingering(..));
            let QueuePair { receiver, tags, .. } = qp;
            let ahead = if receiver.latest_ulpdu() >= BULK && !discard {
                LOOKAHEAD
            } else {
                shared.scratch.len()
            };
            let scratch = &mut shared.scratch[..ahead];
            let place = receiver
                .direct(tags)
                .filter(|memory| memory.len() >= DIRECT && !discard);
            let (place_len, asked, read) = match place {
                Some(memory) => {
                    let len = memory.len();
                    let mut buffers = [IoSliceMut::new(memory), IoSliceMut::new(scratch)];
                    (len, len + ahead, self.socket.read(&mut buffers))
                }
                None => {
                    let mut buffers = [IoSliceMut::new(scratch)];
                    (0, ahead, self.socket.read(&mut buffers))
                }
            };
            let read = match read {
                Ok(0) => return Err(Stop::Gone(self.end_of_stream(&qp.receiver))),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    if self.broken {
                        return Err(Stop::Gone(self.lost()));
                    }
                    return Ok(());
                }
                Err(_) => return Err(Stop::Gone(self.lost())),
            };
            // Edge triggered: a short read has emptied the socket. The end of the stream comes with
            // a hangup.
            if read < asked && !self.hangup && !self.broken {
                self.readable = false;
            }
            if discard {
                continue;
            }
            let placed = read.min(place_len);
            if placed > 0 {
                qp.receiver.placed(&mut qp.tags, placed);
            }
            self.act(conn, qp, shared, read - placed)?;
        }
        Ok(())
    }

    /// Acts on the bytes in the scratch buffer.
    fn act(
        &mut self,
        conn: ConnId,
        qp: &mut QueuePair,
        shared: &mut Shared,
        len: usize,
    ) -> Result<(), Stop> {
        let mut bytes = &shared.scratch[..len];
        loop {
            let action = qp.receiver.consume(&mut bytes, &mut qp.tags)?;
            if self.hold && qp.receiver.frames() > 0 {
                self.hold = false;
                shared.events.extend(self.established.take());
            }
            match action {
                None => return Ok(()),
                Some(Action::Received {
                    buffer,
                    invalidated,
                }) => {
                    if let (Some((window, _)), Some(pending)) = (invalidated, &mut self.pending) {
                        pending.detach(Some(window));
                    }
                    shared.events.push_back(Event::Received {
                        conn,
                        buffer,
                        invalidated: invalidated.map(|(_, tag)| tag),
                    });
                }
                Some(Action::ReadRequested(read)) => qp.transmitter.respond(read)?,
                Some(Action::ReadDone) => {
                    qp.transmitter.read_done(0, CompletionStatus::Success);
                    qp.reap(conn, &mut shared.events);
                }
                Some(Action::Terminated(terminate)) => {
                    return Err(Stop::Gone(self.terminated(qp, terminate.as_ref())));
                }
            }
        }
    }

    fn terminated(&self, qp: &mut QueuePair, terminate: Option<&Terminate>) -> LossReason {
        let Some(terminate) = terminate else {
            return self.lost();
        };
        let code = terminate.code;
        let operation = terminate
            .offender
            .and_then(|offender| offender.opcode())
            .and_then(|opcode| match opcode {
                Opcode::Write => Some(RdmaOperation::Write),
                Opcode::ReadRequest => Some(RdmaOperation::Read),
                opcode if opcode.is_send() => Some(RdmaOperation::Send),
                _ => None,
            });
        if operation == Some(RdmaOperation::Read) {
            // The one that the message has a copy of, where it has one.
            let number = terminate
                .offender
                .and_then(|offender| offender.read_request)
                .and_then(|request| {
                    qp.receiver
                        .read_with(ReadRequest::decode(&request).sink_tag)
                });
            qp.receiver.forget_reads();
            let status = if (code.layer, code.error_type) == (0, 1) {
                CompletionStatus::RemoteAccess
            } else {
                CompletionStatus::RemoteOperation
            };
            qp.transmitter.read_done(number.unwrap_or(0), status);
        }
        RdmaError::Terminated {
            layer: code.layer,
            error_type: code.error_type,
            code: code.code,
            operation,
        }
        .into()
    }

    fn end_of_stream(&self, receiver: &Receiver) -> LossReason {
        match &self.phase {
            Phase::Draining(_) => LossReason::Local,
            Phase::Open if receiver.between_frames() => LossReason::Peer,
            _ => self.lost(),
        }
    }

    /// The reason that is known already, or that the network failed.
    fn lost(&self) -> LossReason {
        match &self.phase {
            Phase::Terminating(_, reason) | Phase::Lingering(_, reason) => reason.clone(),
            Phase::Open | Phase::Draining(_) => RdmaError::ConnectionLost.into(),
        }
    }

    fn transmit(&mut self, qp: &mut QueuePair, shared: &mut Shared) -> Result<(), Violation> {
        qp.transmitter
            .execute_local(&mut qp.tags, self.pending.as_mut());
        let end = qp.transmitter.written() + WRITTEN_PER_TURN;
        self.unfinished = false;
        while self.writable && !self.broken {
            if qp.transmitter.written() >= end {
                self.unfinished = true;
                break;
            }
            if self.pending.is_none() {
                let mut batch = shared.batch();
                let filled = self.fill(qp, &mut batch);
                if batch.is_empty() {
                    shared.give_back(batch);
                    return filled;
                }
                self.pending = Some(batch);
                if filled.is_err() {
                    self.write(qp, shared);
                    return filled;
                }
            }
            self.write(qp, shared);
        }
        Ok(())
    }

    fn fill(&mut self, qp: &mut QueuePair, batch: &mut Batch) -> Result<(), Violation> {
        match self.phase {
            Phase::Open | Phase::Draining(_) if !self.hold => {
                qp.transmitter.fill(batch, &mut qp.receiver, &mut qp.tags)
            }
            Phase::Terminating(..) => {
                if let Some(violation) = self.violation.take() {
                    qp.transmitter.frame_terminate(batch, &violation);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes from the pending batch once.
    fn write(&mut self, qp: &mut QueuePair, shared: &mut Shared) {
        let Some(batch) = &mut self.pending else {
            return;
        };
        // With a CRC the batch is laid out for TCP segments that begin where it begins.
        let record = qp.transmitter.framing.crc;
        let result = if batch.parts() <= 16 {
            write_gathered::<16>(&self.socket, batch, record)
        } else {
            write_gathered::<{ super::sys::MAX_VECTORS }>(&self.socket, batch, record)
        };
        match result {
            Ok(written) => {
                batch.advance(written);
                qp.transmitter.wrote(written);
                if batch.is_empty() {
                    if let Some(batch) = self.pending.take() {
                        shared.give_back(batch);
                    }
                } else {
                    self.writable = false;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
            Err(_) => {
                // The peer may have said why: its last bytes are read first.
                self.broken = true;
                self.readable = true;
            }
        }
    }

    /// See [`IwarpConfig::nudge`](super::IwarpConfig::nudge).
    fn nudge_peer(&mut self, qp: &mut QueuePair, shared: &mut Shared, now: Instant) {
        if qp.receiver.frames() > 0 || !self.is_open() {
            self.nudge = None;
        }
        let Some(nudge) = &mut self.nudge else {
            return;
        };
        let Some(at) = nudge.at else {
            if qp.transmitter.written() > 0 {
                nudge.at = Some(after(now, nudge.wait));
            }
            return;
        };
        if now < at || self.pending.is_some() {
            return;
        }
        let mut batch = shared.batch();
        qp.transmitter.frame_nudge(&mut batch);
        self.pending = Some(batch);
        nudge.wait = nudge.wait.saturating_mul(2);
        nudge.at = Some(after(now, nudge.wait));
        nudge.left -= 1;
        if nudge.left == 0 {
            self.nudge = None;
        }
    }
}

fn write_gathered<const N: usize>(
    socket: &Socket,
    batch: &Batch,
    record: bool,
) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); N];
    let count = batch.slices(&mut slices);
    socket.write(&slices[..count], record)
}
