//! A negotiated SMB Direct connection: the handle that SMB servers and clients use.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::conn::{HEADER, lock};
use super::exposure::Exposed;
use super::options::ChannelOptions;
use super::pool::Pools;
use super::reactor::Shared;
use super::shared::{Body, Closing, ConnShared, Outbox, Outgoing};
use super::transfer::{Payload, Transfer};
use crate::rdma::{Domain, Exposure, IoBuf, RdmaError, RemoteAccess};
use crate::transport::{
    ApiMisuse, Close, DirectPlacement, DisconnectReason, Error, Gather, Info, Limits, Message, Op,
    OutMessage, Stats, SteeringTag, Target, Transport, TrySendError,
};

/// A negotiated SMB Direct connection.
///
/// Dropping it closes the connection in the background; what was accepted for sending is still sent, for at most
/// [`ChannelOptions::linger`].
pub struct Channel {
    reactor: Arc<Shared>,
    shared: Arc<ConnShared>,
    pools: Arc<Mutex<Pools>>,
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
}

impl Channel {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        shared: Arc<ConnShared>,
        pools: Arc<Mutex<Pools>>,
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
        let domain = lock(&pools).domain().clone();
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

    fn write_with(&self, data: Gather, to: Target, response: Option<Outgoing>) -> Op<Gather> {
        if let Err(error) = self.check_domain(&data) {
            return Op::ready(Err(error.into()));
        }
        if let Err(rule) = to.check(data.len(), self.limits.max_transfer) {
            return Op::ready(Err(rule.into()));
        }
        let (op, completer) = Op::pending();
        let len = data.len();
        self.transfer(Payload::Write { data, completer }, to, len, response);
        op
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
            lock(&self.pools).take(HEADER + self.max_payload)
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
        if let Some(reason) = &outbox.reason {
            return Poll::Ready(Err(Error::Closed(reason.clone())));
        }
        if outbox.has_room() {
            return Poll::Ready(Ok(()));
        }
        outbox.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn start_send(&self, message: OutMessage<'_>) -> Result<(), TrySendError> {
        // Looked at twice, so that a full queue costs no copy.
        Self::check(&self.shared.outbox())?;
        let outgoing = self.outgoing(message, None)?;
        let mut outbox = self.shared.outbox();
        Self::check(&outbox)?;
        outbox.bytes += outgoing.cost();
        outbox.messages.push_back(outgoing);
        drop(outbox);
        self.reactor.request(&self.shared);
        Ok(())
    }

    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>> {
        let mut inbox = self.shared.inbox();
        if let Some(message) = inbox.messages.pop_front() {
            inbox.bytes = inbox.bytes.saturating_sub(message.len());
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
                inbox.closed_waker = Some(cx.waker().clone());
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
        drop(outbox);
        self.reactor.request(&self.shared);
    }

    fn allocate(&self, len: usize) -> Op<IoBuf> {
        Op::ready(lock(&self.pools).allocate(len).map_err(Error::from))
    }

    fn direct(&self) -> Option<&dyn DirectPlacement> {
        Some(self)
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
        if memory.is_empty() {
            return Err(ApiMisuse::EmptyExposure.into());
        }
        let len = memory.len() as u64;
        if len > u64::from(self.limits.max_transfer) {
            let max = self.limits.max_transfer;
            return Err(ApiMisuse::TransferTooLarge { len, max }.into());
        }
        if !Arc::ptr_eq(memory.domain(), &self.domain) {
            return Err(RdmaError::WrongDomain.into());
        }
        let memory = memory.pin();
        let whole = memory.slice(0..memory.len());
        // Registering may block: not under the reactor's lock.
        let registration = match self.features.exposure {
            Exposure::Registration => Some(memory.register(access)?),
            Exposure::Window | Exposure::SoftwareWindow => None,
        };
        let window = self
            .reactor
            .expose(self.shared.conn, whole, access, registration)?;
        Ok(Exposed::new(
            self.reactor.clone(),
            self.shared.clone(),
            window,
            memory,
        ))
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
        let (op, completer) = Op::pending();
        let payload = Payload::Read {
            into: into.pin(),
            start,
            completer,
        };
        self.transfer(payload, from, range.len(), None);
        op
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

    fn send_invalidate(&self, message: OutMessage<'_>, token: SteeringTag) -> Op<()> {
        let result = self.outgoing(message, Some(token)).and_then(|outgoing| {
            let mut outbox = self.shared.outbox();
            Self::check(&outbox)?;
            outbox.bytes += outgoing.cost();
            outbox.messages.push_back(outgoing);
            drop(outbox);
            self.reactor.request(&self.shared);
            Ok(())
        });
        Op::ready(result.map_err(Error::from))
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
