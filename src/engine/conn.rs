//! One connection inside the reactor's core: moves work between the protocol's state machine, the provider and the
//! handle's queues.

mod receive;
mod slots;

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::assembly::{Assembly, ReassemblyBudget};
use super::core::timers::Scheduled;
use super::exposures::{self, ExposureId, Exposures, Reclaim};
use super::options::ChannelOptions;
use super::outgoing::OutgoingQueue;
use super::pool::{Pools, Reserved};
use super::retired::Retired;
use super::shared::{Closing, ConnShared};
use super::transfer::{self, Budget, Finished, Transfers};
use crate::proto::{self, CreditProfile};
use crate::rdma::{
    Close, CompletionStatus, ConnId, IoBuf, LossReason, Operation, PostError, Provider, RdmaError,
    RdmaOperation, SendRequest, Window, after,
};
use crate::transport::{DisconnectReason, Error, Stats};
pub(crate) use slots::Missing;
use slots::{Growth, Leave};

/// Bytes in front of a fragment's payload in a send slot.
pub(crate) const HEADER: usize = 24;
/// A slot that any message without payload fits into.
const CONTROL: usize = 64;
/// Slots for sending that a connection has at first, by its profile: of most that there are little is ever sent at a time.
const FIRST_SLOTS: usize = 64;
const SMALL_SLOTS: usize = 8;
/// How long the answer to a refused negotiation may take to leave.
const FLUSH: Duration = Duration::from_secs(5);
/// What a connection needs from the core while it works.
pub(crate) struct Context<'a> {
    pub(crate) provider: &'a mut dyn Provider,
    pub(crate) now: Instant,
    pub(crate) wakers: &'a mut Vec<Waker>,
    pub(crate) retired: &'a mut Vec<Retired>,
}

/// A connection.
pub(crate) struct Conn {
    pub(crate) shared: Arc<ConnShared>,
    pub(crate) options: Arc<ChannelOptions>,
    pub(crate) id: ConnId,
    pub(crate) proto: proto::Connection,
    /// What it has reserved, once the queue pair exists.
    slots: Option<Reserved>,
    /// The queue pair exists.
    pub(crate) ready: bool,
    /// The negotiation is done.
    pub(crate) negotiated: bool,
    /// When the timer queue has this connection.
    pub(crate) scheduled: Scheduled,
    growth: Growth,
    outgoing: OutgoingQueue,
    /// Pieces of a gather list that the queue pair takes.
    max_pieces: usize,
    /// Requests that go ahead of everything else: binds and invalidations.
    urgent: VecDeque<SendRequest>,
    pub(crate) exposures: Exposures,
    pub(crate) transfers: Transfers,
    /// RDMA reads that the peer serves at a time.
    read_depth: u32,
    chain: VecDeque<SendRequest>,
    receives: VecDeque<IoBuf>,
    assembly: Assembly,
    /// Depth of the send queue, and what of it is in use.
    send_depth: u32,
    in_flight: u32,
    unsignalled: u32,
    posted_receives: u32,
    /// The most that were posted, or about to be, at a time.
    most_receives: usize,
    /// A graceful close is under way, until then.
    closing: Option<Instant>,
    /// The provider was told to close.
    closed: bool,
    /// In order, and not to hurry since.
    draining: bool,
    reason: Option<DisconnectReason>,
    application_ready: bool,
    /// A response has joined the queue.
    respond: bool,
    /// Since when a message waits for a send credit.
    credit_wait: Option<Instant>,
    /// Something waits for a place in the send queue.
    queue_wait: bool,
    stats: Stats,
}

impl Conn {
    pub(crate) fn new(
        id: ConnId,
        proto: proto::Connection,
        options: Arc<ChannelOptions>,
        budget: Arc<ReassemblyBudget>,
    ) -> Self {
        Self {
            shared: Arc::new(ConnShared::new(id, options.send_queue_bytes)),
            send_depth: options.send_depth,
            options,
            id,
            proto,
            slots: None,
            ready: false,
            negotiated: false,
            scheduled: Scheduled::default(),
            growth: Growth::default(),
            outgoing: OutgoingQueue::default(),
            max_pieces: 1,
            urgent: VecDeque::new(),
            exposures: Exposures::default(),
            transfers: Transfers::default(),
            read_depth: 0,
            chain: VecDeque::new(),
            receives: VecDeque::new(),
            assembly: Assembly::new(budget),
            in_flight: 0,
            unsignalled: 0,
            posted_receives: 0,
            most_receives: 0,
            closing: None,
            closed: false,
            draining: false,
            reason: None,
            application_ready: true,
            respond: false,
            credit_wait: None,
            queue_wait: false,
            stats: Stats::default(),
        }
    }

    /// Counters at this moment.
    pub(crate) fn stats(&self) -> Stats {
        let mut stats = self.stats.clone();
        let counters = self.proto.stats();
        stats.keepalives_sent = counters.probes_sent;
        stats.keepalives_answered = counters.probes_answered;
        stats
    }

    /// Slots for the negotiation: length and count.
    pub(crate) fn first_slots(&self) -> [(usize, usize); 2] {
        [(self.proto.receive_size() as usize, 2), (CONTROL, 2)]
    }

    /// The queue pair exists, and slots for the negotiation: posts the receives that must precede the connection.
    pub(crate) fn set_up(
        &mut self,
        slots: Reserved,
        cx: &mut Context<'_>,
    ) -> Result<(), RdmaError> {
        self.slots = Some(slots);
        self.ready = true;
        // [MS-SMBD] 3.1.4.1, 3.1.7.2: a receive is posted before the connection is made.
        self.post_receives(cx);
        if self.posted_receives == 0 {
            return Err(RdmaError::State(RdmaOperation::Receive));
        }
        Ok(())
    }

    /// What the queue pair takes.
    pub(crate) fn set_depth(&mut self, send_depth: u32, max_pieces: usize) {
        self.send_depth = send_depth;
        self.max_pieces = max_pieces.max(1);
    }

    /// Slots for data after the negotiation: length and count. A connection that has more under way gets more then.
    pub(crate) fn data_slots(&self) -> (usize, usize) {
        let first = match self.options.protocol.credit_profile {
            CreditProfile::Small => SMALL_SLOTS,
            CreditProfile::Adaptive => FIRST_SLOTS,
            CreditProfile::Full => usize::MAX,
        };
        (self.fragment_size(), first.min(self.send_depth as usize))
    }

    /// The negotiation is done, and slots for data are there.
    pub(crate) fn set_up_data(&mut self, slots: Reserved) {
        self.negotiated = true;
        self.keep(slots);
    }

    /// Where its memory comes from.
    pub(crate) fn pools(&self) -> Option<&Arc<Pools>> {
        self.slots.as_ref().map(Reserved::pools)
    }

    /// Whether it is over, but for what still comes back.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The largest message on the wire that we send.
    pub(crate) fn fragment_size(&self) -> usize {
        self.proto
            .parameters()
            .map_or(CONTROL, |p| p.max_send_size as usize)
    }

    /// Moves everything that can be moved now.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        if self.closed {
            return self.cut_short(cx);
        }
        if !self.ready {
            return;
        }
        loop {
            self.respond = false;
            self.take_requests(cx);
            self.post_receives(cx);
            self.gather(cx);
            // A response leaves right behind its last write, with the same doorbell.
            if !self.respond || self.closed {
                break;
            }
        }
        self.transmit(cx);
    }

    /// A send request is over.
    pub(crate) fn completed(
        &mut self,
        request: SendRequest,
        status: CompletionStatus,
        cx: &mut Context<'_>,
    ) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let operation = match request.operation {
            Operation::Send { .. } => RdmaOperation::Send,
            Operation::Write { .. } => RdmaOperation::Write,
            Operation::Read { .. } => RdmaOperation::Read,
            Operation::Bind { .. } => RdmaOperation::Bind,
            Operation::Invalidate { .. } => RdmaOperation::Invalidate,
        };
        let failure = match status {
            CompletionStatus::Success => None,
            status => Some(RdmaError::Completion { operation, status }),
        };
        if let Some(failure) = &failure
            && status != CompletionStatus::Flushed
        {
            self.fail(failure.clone().into(), cx);
        }
        if request.cookie & transfer::COOKIE != 0 {
            let error = failure.map(Error::Rdma);
            if let Some(finished) = self.transfers.completed(request, error) {
                self.count_transfer(finished, cx);
            }
        } else if let Operation::Invalidate { window } = request.operation
            && status == CompletionStatus::Success
        {
            self.exposures.revoked(window, &mut closing(self.id, cx));
        }
    }

    /// Windows were opened for the upper layer: they are bound ahead of the message that tells of them.
    pub(crate) fn exposed(&mut self, windows: &[Window], cx: &mut Context<'_>) -> ExposureId {
        self.stats.registrations += windows.len() as u64;
        let id = self.exposures.add(windows, &mut self.urgent);
        self.pump(cx);
        id
    }

    /// The owner of an exposure wants its memory back.
    pub(crate) fn reclaim(&mut self, id: ExposureId, reclaim: Reclaim, cx: &mut Context<'_>) {
        let closing = &mut closing(self.id, cx);
        self.exposures
            .reclaim(id, reclaim, &mut self.urgent, closing);
    }

    /// The connection is up: what the peer serves is known.
    pub(crate) fn set_read_depth(&mut self, depth: u16) {
        self.read_depth = depth.into();
    }

    fn count_transfer(&mut self, finished: Finished, cx: &mut Context<'_>) {
        cx.wakers.extend(finished.waker);
        if finished.ok {
            let started = finished.started.unwrap_or(cx.now);
            let time = cx.now.saturating_duration_since(started);
            if finished.read {
                self.stats.rdma_reads.add(time);
                self.stats.bytes_rdma_read += finished.bytes as u64;
            } else {
                self.stats.rdma_writes.add(time);
                self.stats.bytes_rdma_written += finished.bytes as u64;
            }
        }
    }

    /// Ends the connection at once. The first reason stays.
    pub(crate) fn fail(&mut self, reason: DisconnectReason, cx: &mut Context<'_>) {
        self.reason.get_or_insert(reason);
        self.end(Close::Abort, cx);
    }

    /// The reactor ends, and with it this: at the latest when that says, however long its own close may take.
    pub(crate) fn shut_down(&mut self, how: Close, cx: &mut Context<'_>) {
        let mut outbox = self.shared.outbox();
        match how {
            Close::Abort => outbox.close = Some(Closing::Abort),
            Close::Drain(deadline) => {
                let limit = deadline.saturating_duration_since(cx.now);
                outbox.close.get_or_insert(Closing::Graceful(limit));
                self.closing = Some(self.closing.map_or(deadline, |at| at.min(deadline)));
            }
        }
        cx.wakers.extend(outbox.ready.drain());
        drop(outbox);
        if !self.negotiated {
            self.fail(DisconnectReason::ReactorGone, cx);
        }
        self.pump(cx);
    }

    /// When [`Conn::timeout`] wants to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.closed {
            // Else the provider sees to it.
            return self.closing.filter(|_| self.draining);
        }
        [
            self.proto.poll_timeout(),
            self.closing,
            self.growth.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A deadline may have passed.
    pub(crate) fn timeout(&mut self, cx: &mut Context<'_>) {
        if self.closing.is_some_and(|deadline| deadline <= cx.now) {
            self.abort(cx);
        }
        if self.closed {
            return;
        }
        // The pump that follows is the attempt.
        self.growth.try_again();
        self.proto.handle_timeout(cx.now);
    }

    /// The protocol decided that the connection ends. `flush`: what was sent last should still arrive.
    pub(crate) fn disconnect(
        &mut self,
        reason: proto::DisconnectReason,
        flush: bool,
        cx: &mut Context<'_>,
    ) {
        self.reason.get_or_insert(match reason {
            proto::DisconnectReason::LocalClose => DisconnectReason::Local,
            reason => DisconnectReason::Protocol(reason),
        });
        let deadline = self.closing.unwrap_or(cx.now + FLUSH);
        self.end(
            if flush {
                Close::Drain(deadline)
            } else {
                Close::Abort
            },
            cx,
        );
    }

    /// The provider's last word. Returns why the connection ended.
    pub(crate) fn lost(&mut self, reason: LossReason, cx: &mut Context<'_>) -> DisconnectReason {
        self.closed = true;
        let loss = match reason {
            LossReason::Peer => proto::Loss::PeerDisconnected,
            LossReason::Local | LossReason::Failed(_) => proto::Loss::Failed,
        };
        self.proto.handle_lost(cx.now, loss);
        let reason = self.reason.clone().unwrap_or_else(|| match reason {
            LossReason::Local => DisconnectReason::Local,
            // In the middle of a message the peer's end is no orderly one.
            LossReason::Peer if !self.assembly.is_empty() => RdmaError::ConnectionLost.into(),
            LossReason::Peer => DisconnectReason::Peer,
            LossReason::Failed(error) => error.into(),
        });
        self.reason = Some(reason.clone());
        self.release(&reason, cx.wakers, cx.retired);
        reason
    }

    /// Ends everything that is left, and tells the handle why.
    pub(crate) fn release(
        &mut self,
        reason: &DisconnectReason,
        wakers: &mut Vec<Waker>,
        retired: &mut Vec<Retired>,
    ) {
        self.chain.clear();
        self.urgent.clear();
        self.outgoing.clear();
        self.transfers.fail(&Error::Closed(reason.clone()), wakers);
        self.exposures.end(retired);
        self.receives.clear();
        self.shared.outbox().stats = self.stats();
        self.shared.finish(reason, wakers);
    }

    /// Takes what the handle asked for.
    fn take_requests(&mut self, cx: &mut Context<'_>) {
        self.shared.unmark();
        let mut outbox = self.shared.outbox();
        if self.negotiated {
            while let Some(message) = outbox.messages.pop_front() {
                match self.proto.send(message.len as u64, message.invalidate) {
                    Ok(id) => {
                        self.stats.messages_sent += 1;
                        self.stats.bytes_sent += message.len as u64;
                        self.outgoing.push(id, message);
                    }
                    // The connection is ending: what it did not take is lost with it.
                    Err(_) => outbox.bytes = outbox.bytes.saturating_sub(message.cost()),
                }
            }
        }
        while let Some(transfer) = outbox.transfers.pop_front() {
            self.transfers.add(transfer, cx.now);
        }
        let close = outbox.close;
        drop(outbox);
        match close {
            Some(Closing::Abort) => self.abort(cx),
            Some(Closing::Graceful(limit)) => {
                self.closing.get_or_insert(after(cx.now, limit));
                // Responses follow their transfers into the queue.
                if !self.transfers.has_turns() {
                    self.proto.close();
                }
            }
            _ => {}
        }
        let full = self.shared.inbox().full;
        if full == self.application_ready {
            self.application_ready = !full;
            self.proto.set_application_ready(!full);
        }
    }

    /// Gathers what is to be posted.
    fn gather(&mut self, cx: &mut Context<'_>) {
        let waited = std::mem::take(&mut self.queue_wait);
        while self.in_flight + (self.chain.len() as u32) < self.send_depth
            && let Some(request) = self.urgent.pop_front()
        {
            self.chain.push_back(request);
        }
        // Most often there is nothing to send, and no slot needed.
        while self.proto.wants_to_transmit() {
            let free = self
                .send_depth
                .saturating_sub(self.in_flight + self.chain.len() as u32);
            // Before slots for data are there, nothing has a payload.
            let size = match self.negotiated {
                true => self.fragment_size(),
                false => CONTROL,
            };
            let Some(slot) = self.take_slot(size, 1, Leave::default(), cx.now) else {
                break;
            };
            let Some(transmit) = self.proto.poll_transmit(cx.now, free as usize) else {
                if self.proto.queued_messages() > 0 {
                    match free {
                        0 => self.queue_wait = true,
                        _ => _ = self.credit_wait.get_or_insert(cx.now),
                    }
                }
                break;
            };
            if let Some(since) = self.credit_wait.take() {
                self.stats
                    .stalls_send_credit
                    .add(cx.now.saturating_duration_since(since));
            }
            let Some(request) =
                self.outgoing
                    .build(transmit, slot, self.max_pieces, &mut self.stats)
            else {
                break;
            };
            self.stats.sends += 1;
            self.chain.push_back(request);
        }
        self.gather_transfers(cx);
        if self.queue_wait && !waited {
            self.stats.stalls_send_queue += 1;
        }
    }

    /// Posts what was gathered.
    fn transmit(&mut self, cx: &mut Context<'_>) {
        if !self.chain.is_empty() && !self.closed {
            self.signal();
            let had = self.chain.len();
            let result = cx.provider.post_send(self.id, &mut self.chain);
            let posted = had - self.chain.len();
            self.in_flight += posted as u32;
            self.stats.doorbells += u64::from(posted > 0);
            self.check_post(result, cx);
        }
        let freed = self.outgoing.take_freed();
        if freed > 0 {
            let mut outbox = self.shared.outbox();
            outbox.bytes = outbox.bytes.saturating_sub(freed);
            if outbox.has_room() {
                cx.wakers.extend(outbox.ready.drain());
            }
        }
    }

    /// Adds requests of the upper layer's transfers. A part of the send queue stays free for messages, and a message
    /// that may follow its last write joins the queue here.
    fn gather_transfers(&mut self, cx: &mut Context<'_>) {
        let most = self.send_depth - (self.send_depth / 4).max(1);
        let budget = Budget {
            chunk: self.options.max_rdma_chunk.max(1),
            bytes: self.options.max_rdma_in_flight.max(1),
            reads: self.read_depth.max(1),
            pieces: self.max_pieces,
        };
        while self.transfers.has_turns() {
            if self.in_flight + (self.chain.len() as u32) >= most {
                self.queue_wait = true;
                break;
            }
            let Some(next) = self.transfers.next(budget) else {
                break;
            };
            self.chain.extend(next.request);
            if let Some(finished) = next.finished {
                self.count_transfer(finished, cx);
            }
            if let Some(response) = next.response {
                self.shared.outbox().messages.push_back(response);
                self.respond = true;
            }
        }
    }

    /// Has the completions reported that somebody needs: at half of the queue, and the last before idle.
    fn signal(&mut self) {
        let half = (self.send_depth / 2).max(1);
        let last = self.chain.len() - 1;
        for (at, request) in self.chain.iter_mut().enumerate() {
            self.unsignalled += 1;
            if at == last || self.unsignalled >= half {
                request.signalled = true;
                self.unsignalled = 0;
            }
        }
    }

    fn check_post(&mut self, result: Result<(), PostError>, cx: &mut Context<'_>) {
        match result {
            Ok(()) => {}
            // Completions make room, and then it is tried again.
            Err(PostError::Full) => self.stats.stalls_send_queue += 1,
            // The provider reports the end of the connection with its reason.
            Err(PostError::Closed) => {}
            Err(PostError::Failed(error)) => self.fail(error.into(), cx),
            Err(PostError::Invalid) => self.fail(RdmaError::WrongDomain.into(), cx),
        }
    }

    fn end(&mut self, how: Close, cx: &mut Context<'_>) {
        if !self.closed {
            self.closed = true;
            self.draining = how != Close::Abort;
            cx.provider.close(self.id, how, cx.now);
        }
    }

    /// This side wants no more of it, also of what an end in order still waits for.
    fn abort(&mut self, cx: &mut Context<'_>) {
        self.reason.get_or_insert(DisconnectReason::Local);
        if !self.closed || self.draining {
            self.closed = true;
            self.draining = false;
            cx.provider.close(self.id, Close::Abort, cx.now);
        }
    }

    /// The end is on its way, and the handle may want it at once.
    fn cut_short(&mut self, cx: &mut Context<'_>) {
        self.shared.unmark();
        if self.draining && self.shared.outbox().close == Some(Closing::Abort) {
            self.abort(cx);
        }
    }
}

fn closing<'a>(conn: ConnId, cx: &'a mut Context<'_>) -> exposures::Closing<'a> {
    exposures::Closing {
        conn,
        provider: &mut *cx.provider,
        retired: &mut *cx.retired,
    }
}
