//! One connection inside the reactor's core: moves work between the protocol's state machine, the provider and the
//! handle's queues.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::exposure::Windows;
use super::options::ChannelOptions;
use super::outgoing::OutgoingQueue;
use super::pool::Pools;
use super::shared::{Closing, ConnShared};
use super::transfer::{self, Budget, Finished, Transfers};
use crate::proto::{self, Delivery};
use crate::rdma::{
    Close, CompletionStatus, ConnId, IoBuf, IoPin, LossReason, Operation, PostError, Provider,
    RdmaError, RdmaOperation, SendRequest, Window, WindowId,
};
use crate::transport::{Completer, DisconnectReason, Error, Message, Stats, SteeringTag};

/// Bytes in front of a fragment's payload in a send slot.
pub(crate) const HEADER: usize = 24;
/// A slot that any message without payload fits into.
const CONTROL: usize = 64;
/// Receives that a pool keeps free before received messages are copied out of their slots.
const ZERO_COPY_RESERVE: usize = 16;
/// How long the answer to a refused negotiation may take to leave.
const FLUSH: Duration = Duration::from_secs(5);
/// How long to wait before memory that the system refused is asked for again.
const RETRY: Duration = Duration::from_millis(20);
/// Bytes that reassembly allocates at once before a peer has sent them.
const REASSEMBLY_STEP: usize = 64 << 10;

/// What a connection needs from the core while it works.
pub(crate) struct Context<'a> {
    pub(crate) provider: &'a mut dyn Provider,
    pub(crate) now: Instant,
    pub(crate) wakers: &'a mut Vec<Waker>,
}

/// A connection.
pub(crate) struct Conn {
    pub(crate) shared: Arc<ConnShared>,
    pub(crate) options: Arc<ChannelOptions>,
    pub(crate) id: ConnId,
    pub(crate) proto: proto::Connection,
    pub(crate) pools: Option<Arc<Mutex<Pools>>>,
    /// The queue pair exists.
    pub(crate) ready: bool,
    /// The negotiation is done.
    pub(crate) negotiated: bool,
    /// When the timer queue has this connection next.
    pub(crate) scheduled: Option<Instant>,
    reserved: Vec<(usize, usize)>,
    outgoing: OutgoingQueue,
    /// Pieces of a gather list that the queue pair takes.
    max_pieces: usize,
    /// Requests that go ahead of everything else: binds and invalidations.
    urgent: VecDeque<SendRequest>,
    pub(crate) windows: Windows,
    pub(crate) transfers: Transfers,
    /// RDMA reads that the peer serves at a time.
    read_depth: u32,
    chain: VecDeque<SendRequest>,
    receives: VecDeque<IoBuf>,
    assembly: BytesMut,
    /// Depth of the send queue, and what of it is in use.
    send_depth: u32,
    in_flight: u32,
    unsignalled: u32,
    posted_receives: u32,
    /// A graceful close is under way, until then.
    closing: Option<Instant>,
    /// The system refused memory for slots: the next attempt.
    retry: Option<Instant>,
    /// The provider was told to close.
    closed: bool,
    reason: Option<DisconnectReason>,
    application_ready: bool,
    /// A response has joined the queue.
    respond: bool,
    /// Since when a message waits for a send credit.
    credit_wait: Option<Instant>,
    stats: Stats,
}

impl Conn {
    pub(crate) fn new(id: ConnId, proto: proto::Connection, options: Arc<ChannelOptions>) -> Self {
        Self {
            shared: Arc::new(ConnShared::new(id, options.send_queue_bytes)),
            send_depth: options.send_depth,
            options,
            id,
            proto,
            pools: None,
            ready: false,
            negotiated: false,
            scheduled: None,
            reserved: Vec::new(),
            outgoing: OutgoingQueue::default(),
            max_pieces: 1,
            urgent: VecDeque::new(),
            windows: Windows::default(),
            transfers: Transfers::default(),
            read_depth: 0,
            chain: VecDeque::new(),
            receives: VecDeque::new(),
            assembly: BytesMut::new(),
            in_flight: 0,
            unsignalled: 0,
            posted_receives: 0,
            closing: None,
            retry: None,
            closed: false,
            reason: None,
            application_ready: true,
            respond: false,
            credit_wait: None,
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

    /// The queue pair exists: makes slots for the negotiation and posts the receives that must precede the
    /// connection.
    pub(crate) fn set_up(
        &mut self,
        pools: Arc<Mutex<Pools>>,
        send_depth: u32,
        max_pieces: usize,
        cx: &mut Context<'_>,
    ) -> Result<(), RdmaError> {
        self.pools = Some(pools);
        self.send_depth = send_depth;
        self.max_pieces = max_pieces.max(1);
        self.reserve(self.proto.receive_size() as usize, 2)?;
        self.reserve(CONTROL, 2)?;
        self.ready = true;
        // [MS-SMBD] 3.1.4.1, 3.1.7.2: a receive is posted before the connection is made.
        self.post_receives(cx);
        if self.posted_receives == 0 {
            return Err(RdmaError::State(RdmaOperation::Receive));
        }
        Ok(())
    }

    /// The negotiation is done: makes slots for data.
    pub(crate) fn set_up_data(&mut self) -> Result<(), RdmaError> {
        self.negotiated = true;
        let fragment = self.fragment_size();
        self.reserve(fragment, self.send_depth as usize)
    }

    /// The largest message on the wire that we send.
    pub(crate) fn fragment_size(&self) -> usize {
        self.proto
            .parameters()
            .map_or(CONTROL, |p| p.max_send_size as usize)
    }

    /// Moves everything that can be moved now.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        if !self.ready || self.closed {
            return;
        }
        loop {
            self.respond = false;
            self.take_requests(cx);
            self.post_receives(cx);
            self.transmit(cx);
            // A response whose last write was posted leaves at once.
            if !self.respond || self.closed {
                break;
            }
        }
    }

    /// A message arrived from the network.
    pub(crate) fn received(
        &mut self,
        buffer: IoBuf,
        invalidated: Option<u32>,
        cx: &mut Context<'_>,
    ) {
        self.posted_receives = self.posted_receives.saturating_sub(1);
        self.stats.receives += 1;
        if self.closed {
            return;
        }
        if self.negotiated {
            self.stats.receive_low_water = self.stats.receive_low_water.min(self.posted_receives);
        }
        if let Some(key) = invalidated {
            if !self.windows.invalidated(key) {
                self.fail(DisconnectReason::UnknownInvalidation(SteeringTag(key)), cx);
                return;
            }
            self.stats.remote_invalidations += 1;
            self.windows.settle(key, self.id, cx.provider, cx.wakers);
        }
        match self.proto.handle_receive(cx.now, &buffer, invalidated) {
            Delivery::Nothing => self.recycle(buffer),
            Delivery::Whole { data, invalidated } => {
                self.stats.bytes_received += data.len() as u64;
                let bytes = if self.may_lend() {
                    self.stats.zero_copy_bytes += data.len() as u64;
                    buffer.freeze().slice(data).into_bytes()
                } else {
                    self.stats.copied_bytes += data.len() as u64;
                    let bytes = Bytes::copy_from_slice(&buffer[data]);
                    self.recycle(buffer);
                    bytes
                };
                self.deliver(bytes, invalidated, cx);
            }
            Delivery::First { data, total } => {
                self.stats.fragments_received += 1;
                // What the peer announces is reserved step by step as it arrives.
                let total = usize::try_from(total).unwrap_or(usize::MAX);
                self.assembly.reserve(total.min(REASSEMBLY_STEP));
                self.append(&buffer[data]);
                self.recycle(buffer);
            }
            Delivery::Continue { data } => {
                self.stats.fragments_received += 1;
                self.append(&buffer[data]);
                self.recycle(buffer);
            }
            Delivery::Last { data, invalidated } => {
                self.stats.fragments_received += 1;
                self.append(&buffer[data]);
                self.recycle(buffer);
                let bytes = self.assembly.split().freeze();
                self.deliver(bytes, invalidated, cx);
            }
        }
    }

    /// A posted receive came back unused.
    pub(crate) fn flushed(&mut self, buffer: IoBuf) {
        self.posted_receives = self.posted_receives.saturating_sub(1);
        drop(buffer);
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
            self.windows
                .revoked(window, self.id, cx.provider, cx.wakers);
        }
    }

    /// A window was opened for the upper layer: it is bound ahead of the message that tells of it.
    pub(crate) fn exposed(&mut self, window: &Window, cx: &mut Context<'_>) {
        self.stats.registrations += 1;
        self.urgent.extend(self.windows.add(window));
        self.pump(cx);
    }

    /// The owner of an exposure wants its memory back.
    pub(crate) fn reclaim(
        &mut self,
        window: WindowId,
        memory: IoPin,
        completer: Option<Completer<IoBuf>>,
        cx: &mut Context<'_>,
    ) {
        let request =
            self.windows
                .reclaim(window, memory, completer, self.id, cx.provider, cx.wakers);
        self.urgent.extend(request);
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

    /// When [`Conn::timeout`] wants to be called at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        [self.proto.poll_timeout(), self.closing, self.retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// A deadline may have passed.
    pub(crate) fn timeout(&mut self, cx: &mut Context<'_>) {
        if self.closed {
            return;
        }
        // The pump that follows is the attempt.
        self.retry = None;
        if self.closing.is_some_and(|deadline| deadline <= cx.now) {
            self.reason.get_or_insert(DisconnectReason::Local);
            self.end(Close::Abort, cx);
            return;
        }
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
        self.chain.clear();
        self.urgent.clear();
        self.outgoing.clear();
        let error = Error::Closed(reason.clone());
        self.transfers.fail(&error, cx.wakers);
        self.windows.end(cx.wakers);
        for transfer in std::mem::take(&mut self.shared.outbox().transfers) {
            cx.wakers.extend(transfer.abandon(error.clone()));
        }
        self.receives.clear();
        if let Some(pools) = self.pools.take() {
            let mut pools = lock(&pools);
            for (len, count) in self.reserved.drain(..) {
                pools.release(len, count);
            }
        }
        let stats = self.stats();
        self.shared.outbox().stats = stats;
        self.shared.finish(&reason, cx.wakers);
        reason
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
            Some(Closing::Abort) => {
                self.reason.get_or_insert(DisconnectReason::Local);
                self.end(Close::Abort, cx);
            }
            Some(Closing::Graceful(limit)) => {
                self.closing.get_or_insert(cx.now + limit);
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

    fn post_receives(&mut self, cx: &mut Context<'_>) {
        let wanted = self.proto.receives_wanted();
        if wanted == 0 || self.closed {
            return;
        }
        let size = self.proto.receive_size() as usize;
        while self.receives.len() < wanted {
            match self.take_slot(size, wanted - self.receives.len(), cx.now) {
                Some(buffer) => self.receives.push_back(buffer),
                None => break,
            }
        }
        self.receives.truncate(wanted);
        let had = self.receives.len();
        let result = cx.provider.post_receive(self.id, &mut self.receives);
        let posted = had - self.receives.len();
        self.posted_receives += posted as u32;
        if self.posted_receives == 0 && posted == 0 {
            self.proto.handle_receives_unavailable();
        }
        if self.stats.receive_low_water == 0 && self.negotiated {
            self.stats.receive_low_water = self.posted_receives;
        }
        self.proto.handle_receives_posted(posted);
        self.check_post(result, cx);
    }

    fn transmit(&mut self, cx: &mut Context<'_>) {
        while self.in_flight + (self.chain.len() as u32) < self.send_depth
            && let Some(request) = self.urgent.pop_front()
        {
            self.chain.push_back(request);
        }
        loop {
            let free = self
                .send_depth
                .saturating_sub(self.in_flight + self.chain.len() as u32);
            let size = self.fragment_size();
            let Some(slot) = self.take_slot(size, 1, cx.now) else {
                self.stats.stalls_send_queue += 1;
                break;
            };
            let Some(transmit) = self.proto.poll_transmit(cx.now, free as usize) else {
                if free > 0 && self.proto.queued_messages() > 0 {
                    self.credit_wait.get_or_insert(cx.now);
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
            self.chain.push_back(request);
        }
        self.transmit_transfers(cx);
        if !self.chain.is_empty() {
            self.signal();
            let had = self.chain.len();
            let result = cx.provider.post_send(self.id, &mut self.chain);
            let posted = had - self.chain.len();
            self.in_flight += posted as u32;
            self.stats.sends += posted as u64;
            self.check_post(result, cx);
        }
        let freed = self.outgoing.take_freed();
        if freed > 0 {
            let mut outbox = self.shared.outbox();
            outbox.bytes = outbox.bytes.saturating_sub(freed);
            if outbox.has_room() {
                cx.wakers.extend(outbox.waker.take());
            }
        }
    }

    /// Adds requests of the upper layer's transfers. A part of the send queue stays free for messages, and a message
    /// that may follow its last write joins the queue here.
    fn transmit_transfers(&mut self, cx: &mut Context<'_>) {
        let most = self.send_depth - (self.send_depth / 4).max(1);
        let budget = Budget {
            chunk: self.options.max_rdma_chunk.max(1),
            bytes: self.options.max_rdma_in_flight.max(1),
            reads: self.read_depth.max(1),
            pieces: self.max_pieces,
        };
        while self.transfers.has_turns() && self.in_flight + (self.chain.len() as u32) < most {
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

    fn deliver(&mut self, bytes: Bytes, invalidated: Option<u32>, cx: &mut Context<'_>) {
        self.stats.messages_received += 1;
        let mut inbox = self.shared.inbox();
        inbox.bytes += bytes.len();
        inbox
            .messages
            .push_back(Message::new(bytes, invalidated.map(SteeringTag)));
        inbox.full |= inbox.bytes > self.options.receive_queue_bytes;
        cx.wakers.extend(inbox.waker.take());
        let full = inbox.full;
        drop(inbox);
        if full && self.application_ready {
            self.application_ready = false;
            self.proto.set_application_ready(false);
        }
    }

    /// Adds a fragment to the message that is being put together.
    fn append(&mut self, data: &[u8]) {
        self.stats.bytes_received += data.len() as u64;
        self.stats.copied_bytes += data.len() as u64;
        self.assembly.extend_from_slice(data);
    }

    /// Keeps a receive for posting it again.
    fn recycle(&mut self, mut buffer: IoBuf) {
        let size = self.proto.receive_size() as usize;
        if buffer.capacity() >= size && buffer.capacity() < 2 * size.max(CONTROL) {
            buffer.set_len(size);
            self.receives.push_back(buffer);
        }
    }

    /// Whether a receive may be lent to the application.
    fn may_lend(&self) -> bool {
        let size = self.proto.receive_size() as usize;
        self.pools
            .as_ref()
            .is_some_and(|pools| lock(pools).free(size) > ZERO_COPY_RESERVE)
    }

    /// A slot of `len` bytes, from a larger reservation if there is none.
    fn take_slot(&mut self, len: usize, wanted: usize, now: Instant) -> Option<IoBuf> {
        let pools = self.pools.clone()?;
        if let Some(slot) = lock(&pools).take(len) {
            return Some(slot);
        }
        self.stats.registrations += 1;
        // What others were lent, or have queued, may exceed what is reserved. Nobody tells this
        // connection when they give it back, so that it must not wait for that.
        let slot = self
            .reserve(len, wanted.max(8))
            .and_then(|()| lock(&pools).allocate(len));
        if slot.is_err() {
            self.retry.get_or_insert(now + RETRY);
        }
        slot.ok()
    }

    fn reserve(&mut self, len: usize, count: usize) -> Result<(), RdmaError> {
        let Some(pools) = &self.pools else {
            return Err(RdmaError::Closed);
        };
        lock(pools).reserve(len, count)?;
        self.reserved.push((len, count));
        Ok(())
    }

    fn end(&mut self, how: Close, cx: &mut Context<'_>) {
        if !self.closed {
            self.closed = true;
            cx.provider.close(self.id, how, cx.now);
        }
    }
}

pub(crate) fn lock(pools: &Mutex<Pools>) -> MutexGuard<'_, Pools> {
    // Every section under this lock leaves the pools valid, so a panic elsewhere does not spoil them.
    pools.lock().unwrap_or_else(PoisonError::into_inner)
}
