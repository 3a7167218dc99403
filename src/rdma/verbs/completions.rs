//! Completions, and the end of connections.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::conn::{Conn, FLUSH_TIME, GRACE, Posted, State};
use super::device::{LazyQueue, ReservedQueue};
use super::errors;
use super::provider::Verbs;
use super::sys;
use crate::rdma::blocking::excused;
use crate::rdma::inflight::{Queue, WorkId};
use crate::rdma::{
    CompletionStatus, ConnId, Event, LossReason, Operation, RdmaError, RdmaOperation, SendRequest,
};

impl Verbs {
    /// Polls the completion queues, each in turn, until `budget` completions are handled or none is left. Returns
    /// whether there may be more.
    pub(super) fn complete(
        &mut self,
        now: Instant,
        out: &mut VecDeque<Event>,
        budget: usize,
    ) -> bool {
        let mut left = budget.max(1);
        while let Some(completion) = self.completions.pop_front() {
            self.completion(&completion, now, out);
            left -= 1;
            if left == 0 {
                return true;
            }
        }
        let queues: usize = self.devices.iter().map(|device| device.queues.len()).sum();
        for step in 0..queues {
            let place = (self.cursor + step) % queues;
            loop {
                let got = self.poll_queue(place);
                // All that was taken from the queue is handled, whatever the budget: its order must be kept.
                while let Some(completion) = self.completions.pop_front() {
                    self.completion(&completion, now, out);
                }
                left = left.saturating_sub(got);
                if left == 0 {
                    self.cursor = place + 1;
                    return true;
                }
                if got < self.scratch.capacity() {
                    break;
                }
            }
        }
        false
    }

    /// Takes a batch from one queue, counted over all devices; the number taken.
    fn poll_queue(&mut self, place: usize) -> usize {
        let mut queues = self.devices.iter().flat_map(|device| device.queues.iter());
        let Some(queue) = queues.nth(place).and_then(|queue| queue.get()) else {
            return 0;
        };
        match queue.poll(&mut self.scratch) {
            Ok(got) => {
                self.completions.extend(self.scratch.drain(..));
                got
            }
            Err(error) => {
                tracing::error!(%error, "a completion queue cannot be polled");
                0
            }
        }
    }

    fn completion(&mut self, raw: &sys::ibv_wc, now: Instant, out: &mut VecDeque<Event>) {
        let work = WorkId::unpack(raw.wr_id);
        let current = self
            .conn_id(work.index)
            .filter(|id| WorkId::short(id.generation) == work.generation);
        // Of a queue pair that is gone: everything was given back with it.
        let Some(id) = current else {
            return;
        };
        match work.queue {
            Queue::Receive => self.receive_completion(id, work.sequence, raw, now, out),
            Queue::Send => self.send_completion(id, work.sequence, raw, now, out),
        }
    }

    fn receive_completion(
        &mut self,
        id: ConnId,
        sequence: u32,
        raw: &sys::ibv_wc,
        now: Instant,
        out: &mut VecDeque<Event>,
    ) {
        let Some(conn) = self.conns[id.index as usize].content.as_mut() else {
            return;
        };
        let Some(mut buffer) = conn.receives.take(sequence) else {
            return;
        };
        let status = errors::status(raw.status);
        if status != CompletionStatus::Success {
            out.push_back(Event::Flushed { conn: id, buffer });
            return self.failed(id.index, RdmaOperation::Receive, status, now);
        }
        conn.nudge = None;
        buffer.set_len((raw.byte_len as usize).min(buffer.capacity()));
        // SAFETY: both arms of the union are 32 bits, of which any pattern is valid.
        let key = unsafe { raw.imm_data_invalidated_rkey_union.invalidated_rkey };
        let device = conn.device.map(|device| &self.devices[device]);
        let invalidated = device.and_then(|device| device.quirks.invalidated(raw.wc_flags, key));
        if let Some(key) = invalidated {
            conn.windows.invalidated_by_peer(key);
        }
        out.push_back(Event::Received {
            conn: id,
            buffer,
            invalidated,
        });
    }

    fn send_completion(
        &mut self,
        id: ConnId,
        sequence: u32,
        raw: &sys::ibv_wc,
        now: Instant,
        out: &mut VecDeque<Event>,
    ) {
        let Some(conn) = self.conns[id.index as usize].content.as_mut() else {
            return;
        };
        let Some(posted) = conn.sends.get_mut(sequence) else {
            return;
        };
        let status = errors::status(raw.status);
        let operation = kind(&posted.request);
        posted.done = Some(status);
        // What was posted before without a completion of its own is over too: the queue works in order. Where this
        // one was executed they were successful; where it was flushed nobody knows.
        let elder = match status {
            CompletionStatus::Flushed => CompletionStatus::Flushed,
            _ => CompletionStatus::Success,
        };
        for posted in conn.sends.before(sequence).filter(|posted| !posted.own) {
            posted.done.get_or_insert(elder);
        }
        while let Some(status) = conn.sends.front().and_then(|posted| posted.done) {
            let Some(Posted { request, .. }) = conn.sends.pop_front() else {
                break;
            };
            if status == CompletionStatus::Success
                && let Operation::Invalidate { window } = &request.operation
            {
                conn.windows.invalidated(*window);
            }
            out.push_back(Event::Completed {
                conn: id,
                request,
                status,
            });
        }
        if conn.state == State::Draining && conn.sends.is_empty() {
            self.recheck = true;
        }
        if status != CompletionStatus::Success {
            self.failed(id.index, operation, status, now);
        }
    }

    /// A request has failed, and with it the queue pair.
    fn failed(
        &mut self,
        index: u32,
        operation: RdmaOperation,
        status: CompletionStatus,
        now: Instant,
    ) {
        let conn = self.conns[index as usize].content.as_ref();
        let handshaking =
            conn.is_some_and(|conn| matches!(conn.state, State::Connecting | State::Accepting));
        let reason = match status {
            // What came of the handshake is still to be said, or the deadline ends it: a reject flushes receives, and
            // that may be seen first.
            CompletionStatus::Flushed if handshaking => return,
            // Flushed by an end that someone else will explain: the connection manager, or a request's own error.
            CompletionStatus::Flushed => None,
            status => Some(LossReason::Failed(RdmaError::Completion {
                operation,
                status,
            })),
        };
        self.lose(index, reason, now);
    }

    /// Ends a connection at once, in whatever state: tells the peer, and lets everything posted come back.
    pub(super) fn lose(&mut self, index: u32, reason: Option<LossReason>, now: Instant) {
        let slot = self.conns.get_mut(index as usize);
        let Some(conn) = slot.and_then(|slot| slot.content.as_mut()) else {
            return;
        };
        conn.blame(reason);
        self.recheck = true;
        if conn.state == State::Flushing {
            return;
        }
        if conn.joined && !conn.held() && conn.state != State::Leaving {
            let device = conn.device.map(|device| &self.devices[device]);
            conn.disconnect(device);
        }
        conn.state = State::Flushing;
        conn.gone = (conn.queue_pair.as_ref()).is_some_and(|queue_pair| !queue_pair.flush());
        let patience = if conn.gone {
            Duration::ZERO
        } else {
            FLUSH_TIME
        };
        self.set_deadline(index, now + patience);
        self.start_closing(index);
    }

    /// Puts a connection on the list of those that are on their way out.
    pub(super) fn start_closing(&mut self, index: u32) {
        self.recheck = true;
        if !self.closing.contains(&index) {
            self.closing.push(index);
        }
    }

    /// Moves closing connections on, and buries those of which nothing is left.
    pub(super) fn bury(&mut self, now: Instant, out: &mut VecDeque<Event>) {
        self.recheck = false;
        let mut i = 0;
        while i < self.closing.len() {
            let index = self.closing[i];
            if self.move_on(index, now) {
                self.closing.swap_remove(i);
                self.finish(index, out);
            } else {
                i += 1;
            }
        }
    }

    /// The next step of a closing connection; whether it can be buried.
    fn move_on(&mut self, index: u32, now: Instant) -> bool {
        let conn = self.conns[index as usize].content.as_ref();
        let iwarp = conn.is_some_and(|conn| self.is_iwarp(conn));
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return false;
        };
        let late = conn.deadline.is_some_and(|deadline| now >= deadline);
        if conn.state == State::Draining && (conn.sends.is_empty() || late) {
            match iwarp {
                true => conn.disconnect(conn.device.map(|device| &self.devices[device])),
                false => conn.cm.leave(),
            }
            conn.state = State::Leaving;
        }
        if conn.state == State::Leaving && (conn.peer_left || late) {
            if let Some(queue_pair) = &conn.queue_pair {
                queue_pair.flush();
            }
            conn.state = State::Flushing;
            self.set_deadline(index, now + FLUSH_TIME);
        }
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return false;
        };
        if conn.state != State::Flushing {
            return false;
        }
        let Some(deadline) = conn.deadline else {
            return true;
        };
        if conn.held() {
            // The queue pair cannot be destroyed yet: it is put aside when nothing posted is left.
            return conn.idle() || (conn.gone && !conn.calling);
        }
        if conn.queue_pair.is_none() || now >= deadline {
            return true;
        }
        // A queue that was flushed from outside waits a little for the reason.
        let explained = conn.reason.is_some() || conn.peer_left;
        let graced = now + FLUSH_TIME >= deadline + GRACE;
        let over = self.all_has_come(index);
        if over && !explained && !graced {
            let soon = deadline - FLUSH_TIME + GRACE;
            self.wake_by(Some(soon));
        }
        over && (explained || graced)
    }

    /// Whether nothing that was posted to a flushed queue pair will come back by itself any more.
    fn all_has_come(&mut self, index: u32) -> bool {
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return true;
        };
        if conn.idle() {
            return true;
        }
        let (Some(device), Some((queue, _))) = (conn.device, conn.reserved) else {
            return false;
        };
        if !self.devices[device].quirks.flushes_at_once {
            return false;
        }
        // What the flush has brought is handled by the next poll.
        if !std::mem::replace(&mut conn.swept, true) {
            self.sweep(device, queue);
            self.recheck = true;
            return false;
        }
        let handled = self.completions.is_empty();
        self.recheck |= !handled;
        handled
    }

    /// Takes a connection apart, in order, and reports its end.
    fn finish(&mut self, index: u32, out: &mut VecDeque<Event>) {
        let Some(id) = self.conn_id(index) else {
            return;
        };
        let slot = &mut self.conns[index as usize];
        let Some(mut conn) = slot.content.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.ids.remove(&conn.cm.key());
        let reason = conn.take_reason();
        if conn.held() && conn.idle() {
            self.parked.push((id, conn));
            out.push_back(Event::Disconnected { conn: id, reason });
            return;
        }
        let all_back = conn.idle();
        if !all_back {
            // What did not come back can be given back only when the queue pair is gone. Whoever waits, waits for that.
            excused(|| conn.destroy_queue_pair());
        }
        while let Some(Posted { request, done, .. }) = conn.sends.pop_front() {
            out.push_back(Event::Completed {
                conn: id,
                request,
                status: done.unwrap_or(CompletionStatus::Flushed),
            });
        }
        while let Some(buffer) = conn.receives.pop_front() {
            out.push_back(Event::Flushed { conn: id, buffer });
        }
        if !all_back && let (Some(device), Some((queue, _))) = (conn.device, conn.reserved) {
            self.sweep(device, queue);
        }
        if conn.held() {
            if let (Some(device), Some((queue, places))) = (conn.device, conn.reserved.take()) {
                self.devices[device].release(queue, places);
            }
            self.parked.push((id, conn));
        } else {
            self.take_apart(conn);
        }
        out.push_back(Event::Disconnected { conn: id, reason });
    }

    /// Takes a connection apart that was put aside, if it can be done without sleeping now.
    pub(super) fn unpark(&mut self, place: usize) {
        if self.parked[place].1.held() {
            return;
        }
        let (_, conn) = self.parked.swap_remove(place);
        self.take_apart(conn);
    }

    /// The end of a connection of which nothing that was posted is left.
    fn take_apart(&mut self, conn: Conn) {
        // Its completions have come, so that its places in the queue may be others'; the queue itself must stay.
        let mut queue = None;
        if let (Some(device), Some((place, places))) = (conn.device, conn.reserved) {
            queue = self.devices[device]
                .queues
                .get(place)
                .map(ReservedQueue::shared);
            self.devices[device].release(place, places);
        }
        self.leave(Remains {
            _conn: conn,
            _queue: queue,
        });
    }

    /// Takes everything out of a completion queue, so that what a destroyed queue pair left there takes no place.
    fn sweep(&mut self, device: usize, queue: usize) {
        let queue = self.devices[device].queues.get(queue);
        let Some(queue) = queue.and_then(ReservedQueue::get) else {
            return;
        };
        while let Ok(got) = queue.poll(&mut self.scratch) {
            self.completions.extend(self.scratch.drain(..));
            if got < self.scratch.capacity() {
                break;
            }
        }
    }

    /// Ends handshakes that take too long, nudges silent peers, and finds the next deadline.
    pub(super) fn run_timers(&mut self, now: Instant) {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return;
        }
        self.earliest = None;
        for index in 0..self.conns.len() as u32 {
            let id = self.conn_id(index);
            let (Some(conn), Some(id)) = (self.conns[index as usize].content.as_mut(), id) else {
                continue;
            };
            conn.nudge(id, now);
            let late = conn.deadline.is_some_and(|deadline| now >= deadline);
            if late && !conn.state.closing() {
                let operation = match conn.state {
                    State::Resolving => RdmaOperation::Resolve,
                    State::Accepting => RdmaOperation::Accept,
                    _ => RdmaOperation::Connect,
                };
                let late = RdmaError::Timeout(operation);
                self.lose(index, Some(LossReason::Failed(late)), now);
            } else {
                let due = conn.due().filter(|due| *due > now);
                self.wake_by(due);
            }
        }
    }
}

/// Dropped in this order: a queue pair goes before the completion queue that it is on.
struct Remains {
    _conn: Conn,
    _queue: Option<LazyQueue>,
}

fn kind(request: &SendRequest) -> RdmaOperation {
    match request.operation {
        Operation::Send { .. } => RdmaOperation::Send,
        Operation::Write { .. } => RdmaOperation::Write,
        Operation::Read { .. } => RdmaOperation::Read,
        Operation::Bind { .. } => RdmaOperation::Bind,
        Operation::Invalidate { .. } => RdmaOperation::Invalidate,
    }
}
