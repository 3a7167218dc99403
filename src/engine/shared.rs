//! What a channel's handle and the reactor's core share: the queues between them, each under a short lock of its
//! own that is never held while anything waits.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::transfer::Transfer;
use crate::rdma::{ConnId, IoBuf};
use crate::transport::{DisconnectReason, Error, Gather, Message, OpPool, Stats, Waiting};

/// What a message that waits to be taken is counted for besides its bytes: its place in the queue, and what allocating
/// them costs.
pub(crate) const MESSAGE_COST: usize = size_of::<(Message, usize)>() + 64;

/// The state that both sides see.
pub(crate) struct ConnShared {
    pub(crate) conn: ConnId,
    /// The connection is on the reactor's list of those that want attention.
    queued: AtomicBool,
    outbox: Mutex<Outbox>,
    inbox: Mutex<Inbox>,
    ops: Mutex<Ops>,
}

/// Operations of the handle, by what they give back.
#[derive(Default)]
pub(crate) struct Ops {
    pub(crate) gathers: OpPool<Gather>,
    pub(crate) buffers: OpPool<IoBuf>,
    pub(crate) lists: OpPool<Vec<IoBuf>>,
}

/// Messages on their way out, and what was asked for.
pub(crate) struct Outbox {
    pub(crate) messages: VecDeque<Outgoing>,
    pub(crate) transfers: VecDeque<Transfer>,
    /// Memory of messages accepted and not yet sent, here and in the core ([`Outgoing::cost`]).
    pub(crate) bytes: usize,
    pub(crate) limit: usize,
    /// Who waits for room, or for the end.
    pub(crate) ready: Waiting,
    pub(crate) close: Option<Closing>,
    pub(crate) reason: Option<DisconnectReason>,
    /// Where messages that do not fit one slot are copied to.
    pub(crate) arena: BytesMut,
    pub(crate) stats: Stats,
}

/// How the handle asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    Abort,
    Graceful(Duration),
}

/// A message that was accepted for sending.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) body: Body,
    pub(crate) len: usize,
    /// The peer's key to invalidate with it.
    pub(crate) invalidate: Option<u32>,
}

impl Outgoing {
    /// Bytes of memory that it holds while it waits: the queue is bounded by these, so that small messages cannot
    /// pin more than large ones.
    pub(crate) fn cost(&self) -> usize {
        match &self.body {
            Body::Slot(slot) => slot.capacity(),
            Body::Bytes(_) | Body::Gather(_) => self.len + size_of::<Self>(),
        }
    }
}

/// Where an accepted message's bytes are.
#[derive(Debug)]
pub(crate) enum Body {
    /// In a send slot, with room for the header in front: the whole message is one fragment.
    Slot(IoBuf),
    /// On the heap: copied into slots fragment by fragment.
    Bytes(Bytes),
    /// In registered memory: sent from there.
    Gather(Gather),
}

/// Messages that have arrived.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    /// With what each is counted for.
    pub(crate) messages: VecDeque<(Message, usize)>,
    /// Memory that they hold: [`Inbox::push`].
    pub(crate) bytes: usize,
    /// The core stopped receiving because of what lies here.
    pub(crate) full: bool,
    pub(crate) waker: Option<Waker>,
    /// Who waits for the end.
    pub(crate) closed: Waiting,
    pub(crate) reason: Option<DisconnectReason>,
}

impl ConnShared {
    pub(crate) fn new(conn: ConnId, limit: usize) -> Self {
        Self {
            conn,
            queued: AtomicBool::new(false),
            outbox: Mutex::new(Outbox {
                messages: VecDeque::new(),
                transfers: VecDeque::new(),
                bytes: 0,
                limit,
                ready: Waiting::default(),
                close: None,
                reason: None,
                arena: BytesMut::new(),
                stats: Stats::default(),
            }),
            inbox: Mutex::new(Inbox::default()),
            ops: Mutex::new(Ops::default()),
        }
    }

    pub(crate) fn outbox(&self) -> MutexGuard<'_, Outbox> {
        // Every section under this lock leaves the queue valid, so a panic elsewhere does not spoil it.
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // As for the outbox.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ops(&self) -> MutexGuard<'_, Ops> {
        // As for the outbox.
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the connection as wanting attention; false if it was marked already.
    pub(crate) fn mark(&self) -> bool {
        !self.queued.swap(true, Ordering::SeqCst)
    }

    /// Takes the mark off. Look at the queues after it.
    pub(crate) fn unmark(&self) {
        self.queued.store(false, Ordering::SeqCst);
    }

    /// Publishes the end of the connection, once; later ones change nothing. What waits in the queues ends with it, and
    /// nothing joins it any more. The wakers are to be woken after locks are released.
    pub(crate) fn finish(&self, reason: &DisconnectReason, wakers: &mut Vec<Waker>) {
        let mut outbox = self.outbox();
        if outbox.reason.is_none() {
            outbox.reason = Some(reason.clone());
        }
        let messages = std::mem::take(&mut outbox.messages);
        let transfers = std::mem::take(&mut outbox.transfers);
        wakers.extend(outbox.ready.drain());
        drop(outbox);
        drop(messages);
        for transfer in transfers {
            wakers.extend(transfer.abandon(Error::Closed(reason.clone())));
        }
        let mut inbox = self.inbox();
        if inbox.reason.is_none() {
            inbox.reason = Some(reason.clone());
        }
        wakers.extend(inbox.waker.take());
        wakers.extend(inbox.closed.drain());
    }
}

impl Inbox {
    /// Puts in a message whose bytes are in `memory` bytes of memory: the queue is bounded by what it holds, so that a
    /// peer with many small messages cannot fill more than one with large ones.
    pub(crate) fn push(&mut self, message: Message, memory: usize) {
        let cost = memory + MESSAGE_COST;
        self.bytes += cost;
        self.messages.push_back((message, cost));
    }
}

impl Outbox {
    /// Whether a message of any legal size is accepted now.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes == 0 || self.bytes < self.limit
    }
}
