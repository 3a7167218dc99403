//! A negotiated SMB Direct connection: the handle that SMB servers and clients use.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::conn::HEADER;
use super::exposure::{Exposed, ExposedList, Right};
use super::options::ChannelOptions;
use super::pool::Pools;
use super::reactor::Shared;
use super::shared::{Body, Closing, ConnShared, Outbox, Outgoing};
use super::transfer::{Payload, Transfer};
use crate::rdma::{
    Domain, Exposure, IoBuf, IoBytes, IoPin, RdmaError, ReadOnlyMemory, RemoteAccess, UserMemory,
};
use crate::transport::{
    ApiMisuse, Close, DirectPlacement, DisconnectReason, Error, Gather, Info, Limits, List,
    MAX_DESCRIPTORS, Message, Op, OutMessage, Stats, SteeringTag, Target, Transport, TrySendError,
};

/// Message slots that waiting messages leave free. Grants and keepalives need slots, and so does every message while it is
/// sent: where no more memory is to be had, none would ever come back otherwise.
pub(crate) const LEFT_TO_OTHERS: usize = 16;

/// A negotiated SMB Direct connection.
///
/// Dropping it closes the connection in the background; what was accepted for sending is still sent, for at most
/// [`ChannelOptions::linger`].
pub struct Channel {
    reactor: Arc<Shared>,
    shared: Arc<ConnShared>,
    pools: Arc<Pools>,
    domain: Arc<dyn Domain>,
    info: Info,
    limits: Limits,
    /// Payload bytes that one fragment takes.
    max_payload: usize,
    features: Features,
    options: Arc<ChannelOptions>,
}

/// What the connection's device can do for direct placement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Features {
    pub(crate) exposure: Exposure,
    pub(crate) remote_invalidation: bool,
    pub(crate) send_with_invalidate: bool,
    /// Bytes that one descriptor describes, at most; not 0.
    pub(crate) max_exposure: usize,
}

impl Channel {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        shared: Arc<ConnShared>,
        pools: Arc<Pools>,
        info: Info,
        features: Features,
        options: Arc<ChannelOptions>,
    ) -> Self {
        let (mut max_payload, mut limits) = (
            0,
            Limits {
                max_send: 0,
                max_receive: 0,
                max_transfer: 0,
            },
        );
        if let Some(parameters) = &info.parameters {
            max_payload = (parameters.max_send_size as usize).saturating_sub(HEADER);
            limits = Limits {
                max_send: parameters.max_fragmented_send_size.into(),
                max_receive: parameters.max_fragmented_receive_size.into(),
                max_transfer: parameters.max_read_write_size,
            };
        }
        let domain = pools.domain().clone();
        Self {
            reactor,
            shared,
            pools,
            domain,
            info,
            limits,
            max_payload,
            features,
            options,
        }
    }

    #[cfg(test)]
    pub(crate) fn reactor(&self) -> &Shared {
        &self.reactor
    }

    fn write_with(&self, data: Gather, to: Target, response: Option<Outgoing>) -> Op<Gather> {
        if let Err(error) = self.check_domain(&data) {
            return Op::ready(Err(error.into()));
        }
        if let Err(rule) = to.check(data.len(), self.limits.max_transfer) {
            return Op::ready(Err(rule.into()));
        }
        let (op, completer) = self.shared.ops().gathers.pending();
        let len = data.len();
        self.transfer(Payload::Write { data, completer }, to, len, response);
        op.spinning(self.spin())
    }

    /// Registers memory: not in the caller's time where that may block.
    fn registering<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pools) -> Result<T, RdmaError> + Send + 'static,
    ) -> Op<T> {
        if !self.domain.may_block() {
            return Op::ready(work(&self.pools).map_err(Error::from));
        }
        let (op, completer) = Op::pending();
        let pools = self.pools.clone();
        let job = Box::new(move || {
            if let Some(waker) = completer.complete(work(&pools).map_err(Error::from)) {
                waker.wake();
            }
        });
        match self.reactor.helper().submit(job) {
            Ok(()) => op,
            Err(error) => Op::ready(Err(error.into())),
        }
    }

    /// Hands a transfer to the reactor. Once the connection has ended it fails at once.
    fn transfer(&self, payload: Payload, target: Target, len: usize, response: Option<Outgoing>) {
        let bytes = response.as_ref().map_or(0, Outgoing::cost);
        let transfer = Transfer::new(payload, target, len, response);
        let mut outbox = self.shared.outbox();
        if let Some(reason) = outbox.reason.clone() {
            drop(outbox);
            if let Some(waker) = transfer.abandon(Error::Closed(reason)) {
                waker.wake();
            }
            return;
        }
        outbox.bytes += bytes;
        outbox.transfers.push_back(transfer);
        drop(outbox);
        self.reactor.request(&self.shared);
    }

    /// Queues a message, or nothing of it.
    fn send(
        &self,
        message: OutMessage<'_>,
        invalidate: Option<SteeringTag>,
    ) -> Result<(), TrySendError> {
        // Looked at twice, so that a full queue costs no copy.
        Self::check(&self.shared.outbox())?;
        let outgoing = self.outgoing(message, invalidate)?;
        let mut outbox = self.shared.outbox();
        Self::check(&outbox)?;
        outbox.bytes += outgoing.cost();
        outbox.messages.push_back(outgoing);
        drop(outbox);
        self.reactor.request(&self.shared);
        Ok(())
    }

    /// A message that was checked and put where it is sent from.
    fn outgoing(
        &self,
        message: OutMessage<'_>,
        invalidate: Option<SteeringTag>,
    ) -> Result<Outgoing, TrySendError> {
        let len = message.len();
        if len == 0 {
            return Err(ApiMisuse::EmptyMessage.into());
        }
        let max = self.limits.max_send;
        if len as u64 > max {
            return Err(ApiMisuse::MessageTooLarge {
                len: len as u64,
                max,
            }
            .into());
        }
        let invalidate = invalidate.filter(|_| self.features.send_with_invalidate);
        Ok(Outgoing {
            body: self.body(message)?,
            len,
            invalidate: invalidate.map(|tag| tag.0),
        })
    }

    /// Whether the connection takes a message now.
    fn check(outbox: &Outbox) -> Result<(), TrySendError> {
        if let Some(reason) = &outbox.reason {
            return Err(TrySendError::Closed(reason.clone()));
        }
        if outbox.close.is_some() {
            return Err(TrySendError::Closed(DisconnectReason::Local));
        }
        if outbox.has_room() {
            Ok(())
        } else {
            Err(TrySendError::Full)
        }
    }

    /// Puts the message where it is sent from.
    fn body(&self, message: OutMessage<'_>) -> Result<Body, TrySendError> {
        let len = message.len();
        match message {
            OutMessage::Slice(slice) => Ok(self.copy(len, |mut out| {
                out.extend(slice);
            })),
            OutMessage::Slices(slices) => Ok(self.copy(len, |mut out| {
                for slice in slices {
                    out.extend(slice);
                }
            })),
            OutMessage::Bytes(bytes) => Ok(Body::Bytes(bytes)),
            OutMessage::Gather(gather) => {
                self.check_domain(&gather)?;
                Ok(Body::Gather(gather))
            }
        }
    }

    /// Copies borrowed bytes: into a send slot if they fit one fragment, else to the heap.
    fn copy(&self, len: usize, fill: impl FnOnce(Sink<'_>)) -> Body {
        let slot = if len <= self.max_payload {
            let len = HEADER + self.max_payload;
            self.pools.take(len, LEFT_TO_OTHERS)
        } else {
            None
        };
        if let Some(mut slot) = slot {
            slot.set_len(HEADER + len);
            fill(Sink::Slot(&mut slot[HEADER..]));
            return Body::Slot(slot);
        }
        let mut outbox = self.shared.outbox();
        outbox.arena.reserve(len);
        fill(Sink::Arena(&mut outbox.arena));
        Body::Bytes(outbox.arena.split().freeze())
    }

    /// Whether the buffers can be exposed together.
    fn check_exposure(&self, memory: &[IoBuf]) -> Result<(), Error> {
        if memory.is_empty() || memory.iter().any(|buffer| buffer.is_empty()) {
            return Err(ApiMisuse::EmptyExposure.into());
        }
        let len = memory.iter().map(|buffer| buffer.len() as u64).sum();
        let max = self.limits.max_transfer;
        if len > u64::from(max) {
            return Err(ApiMisuse::TransferTooLarge { len, max }.into());
        }
        let count = memory
            .iter()
            .map(|buffer| self.pieces_of(buffer.len()))
            .sum();
        if count > MAX_DESCRIPTORS {
            return Err(ApiMisuse::TooManyDescriptors { count }.into());
        }
        let ours = |buffer: &IoBuf| Arc::ptr_eq(buffer.domain(), &self.domain);
        if !memory.iter().all(ours) {
            return Err(RdmaError::WrongDomain.into());
        }
        Ok(())
    }

    /// Gives the peer the right to these pins.
    fn give_right(&self, memory: &[IoPin], access: RemoteAccess) -> Result<Right, Error> {
        let most = self.features.max_exposure;
        let pieces = memory.iter().flat_map(|pin| {
            (0..pin.len())
                .step_by(most)
                .map(move |at| pin.slice(at..pin.len().min(at + most)))
        });
        let conn = self.shared.conn;
        let exposure = self.features.exposure;
        // Registering, and making windows, may block: not under the reactor's lock.
        let prepared = pieces
            .map(|piece| Ok((piece.prepare(exposure, access)?, piece)))
            .collect::<Result<List<_>, RdmaError>>()?;
        let pieces = prepared.into_iter().map(|(made, piece)| (piece, made));
        let (id, windows) = self.reactor.expose(conn, pieces, access)?;
        Ok(Right::new(
            self.reactor.clone(),
            self.shared.clone(),
            id,
            &windows,
        ))
    }

    /// Descriptors that a buffer needs.
    fn pieces_of(&self, len: usize) -> usize {
        len.div_ceil(self.features.max_exposure)
    }

    fn check_domain(&self, gather: &Gather) -> Result<(), TrySendError> {
        if gather
            .pieces()
            .iter()
            .all(|piece| Arc::ptr_eq(piece.domain(), &self.domain))
        {
            Ok(())
        } else {
            Err(TrySendError::Rdma(RdmaError::WrongDomain))
        }
    }
}

/// Where borrowed bytes are copied to.
enum Sink<'a> {
    Slot(&'a mut [u8]),
    Arena(&'a mut bytes::BytesMut),
}

impl Sink<'_> {
    fn extend(&mut self, bytes: &[u8]) {
        match self {
            Self::Slot(rest) => {
                let (head, tail) = std::mem::take(rest).split_at_mut(bytes.len());
                head.copy_from_slice(bytes);
                *rest = tail;
            }
            Self::Arena(arena) => arena.extend_from_slice(bytes),
        }
    }
}

impl Transport for Channel {
    fn info(&self) -> &Info {
        &self.info
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut outbox = self.shared.outbox();
        match Self::check(&outbox) {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(TrySendError::Full) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        let others = outbox.ready.add(cx.waker());
        drop(outbox);
        others.into_iter().for_each(Waker::wake);
        Poll::Pending
    }

    fn start_send(&self, message: OutMessage<'_>) -> Result<(), TrySendError> {
        self.send(message, None)
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        let mut inbox = self.shared.inbox();
        if let Some((message, cost)) = inbox.messages.pop_front() {
            inbox.bytes = inbox.bytes.saturating_sub(cost);
            let resume = inbox.full && inbox.bytes <= self.options.receive_queue_bytes / 2;
            if resume {
                inbox.full = false;
            }
            drop(inbox);
            if resume {
                self.reactor.request(&self.shared);
            }
            return Poll::Ready(Ok(Some(message)));
        }
        match &inbox.reason {
            Some(DisconnectReason::Peer) => Poll::Ready(Ok(None)),
            Some(reason) => Poll::Ready(Err(Error::Closed(reason.clone()))),
            None => {
                inbox.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<DisconnectReason> {
        let mut inbox = self.shared.inbox();
        match &inbox.reason {
            Some(reason) => Poll::Ready(reason.clone()),
            None => {
                let others = inbox.closed.add(cx.waker());
                drop(inbox);
                others.into_iter().for_each(Waker::wake);
                Poll::Pending
            }
        }
    }

    fn close(&self, how: Close) {
        let closing = match how {
            Close::Abort => Closing::Abort,
            Close::Graceful(limit) => Closing::Graceful(limit),
        };
        let mut outbox = self.shared.outbox();
        if outbox.reason.is_some() {
            return;
        }
        if outbox.close.is_none() || closing == Closing::Abort {
            outbox.close = Some(closing);
        }
        // Those who wait for room learn that there will be none.
        let waiting: Vec<Waker> = outbox.ready.drain().collect();
        drop(outbox);
        self.reactor.request(&self.shared);
        waiting.into_iter().for_each(Waker::wake);
    }

    fn allocate(&self, len: usize) -> Op<IoBuf> {
        match self.pools.take_data(len) {
            Some(buffer) => Op::ready(Ok(buffer)),
            None => self.registering(move |pools| pools.allocate(len)),
        }
    }

    fn register(&self, memory: UserMemory) -> Op<IoBuf> {
        if memory.is_empty() {
            return Op::ready(Err(ApiMisuse::EmptyRegistration.into()));
        }
        self.registering(move |pools| memory.register(pools.domain(), pools.budget()))
    }

    fn register_read_only(&self, memory: ReadOnlyMemory) -> Op<IoBytes> {
        if memory.is_empty() {
            return Op::ready(Err(ApiMisuse::EmptyRegistration.into()));
        }
        self.registering(move |pools| memory.register(pools.domain(), pools.budget()))
    }

    fn direct(&self) -> Option<&dyn DirectPlacement> {
        Some(self)
    }

    fn spin(&self) -> Duration {
        self.reactor.spin()
    }

    fn stats(&self) -> Stats {
        self.reactor
            .stats(self.shared.conn)
            .unwrap_or_else(|| self.shared.outbox().stats.clone())
    }
}

impl DirectPlacement for Channel {
    fn remote_invalidation(&self) -> bool {
        self.features.remote_invalidation
    }

    fn expose(&self, memory: IoBuf, access: RemoteAccess) -> Result<Exposed, Error> {
        self.check_exposure(std::slice::from_ref(&memory))?;
        let memory = memory.pin();
        let right = self.give_right(std::slice::from_ref(&memory), access)?;
        Ok(Exposed::new(right, memory))
    }

    fn expose_list(&self, memory: Vec<IoBuf>, access: RemoteAccess) -> Result<ExposedList, Error> {
        self.check_exposure(&memory)?;
        let memory: Vec<IoPin> = memory.into_iter().map(IoBuf::pin).collect();
        let right = self.give_right(&memory, access)?;
        Ok(ExposedList::new(right, memory))
    }

    fn write(&self, data: Gather, to: Target) -> Op<Gather> {
        self.write_with(data, to, None)
    }

    fn read(&self, into: IoBuf, range: Range<usize>, from: Target) -> Op<IoBuf> {
        let (start, end, len) = (range.start, range.end, into.len());
        if start > end || end > len {
            return Op::ready(Err(ApiMisuse::RangeOutside { start, end, len }.into()));
        }
        if !Arc::ptr_eq(into.domain(), &self.domain) {
            return Op::ready(Err(RdmaError::WrongDomain.into()));
        }
        if let Err(rule) = from.check(range.len(), self.limits.max_transfer) {
            return Op::ready(Err(rule.into()));
        }
        let (op, completer) = self.shared.ops().buffers.pending();
        let payload = Payload::Read {
            into: into.pin(),
            start,
            completer,
        };
        self.transfer(payload, from, range.len(), None);
        op.spinning(self.spin())
    }

    fn write_then_send(
        &self,
        data: Gather,
        to: Target,
        response: OutMessage<'_>,
        invalidate: Option<SteeringTag>,
    ) -> Op<Gather> {
        match self.outgoing(response, invalidate) {
            Ok(response) => self.write_with(data, to, Some(response)),
            Err(error) => Op::ready(Err(error.into())),
        }
    }

    fn send_invalidate(
        &self,
        message: OutMessage<'_>,
        token: SteeringTag,
    ) -> Result<(), TrySendError> {
        self.send(message, Some(token))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close(Close::Graceful(self.options.linger));
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("local", &self.info.local)
            .field("peer", &self.info.peer)
            .finish_non_exhaustive()
    }
}
