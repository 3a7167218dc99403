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
use crate::transport::{DisconnectReason, Gather, Message, Stats};

/// The state that both sides see.
pub(crate) struct ConnShared {
    pub(crate) conn: ConnId,
    /// The connection is on the reactor's list of those that want attention.
    queued: AtomicBool,
    outbox: Mutex<Outbox>,
    inbox: Mutex<Inbox>,
}

/// Messages on their way out, and what was asked for.
pub(crate) struct Outbox {
    pub(crate) messages: VecDeque<Outgoing>,
    pub(crate) transfers: VecDeque<Transfer>,
    /// Memory of messages accepted and not yet sent, here and in the core ([`Outgoing::cost`]).
    pub(crate) bytes: usize,
    pub(crate) limit: usize,
    pub(crate) waker: Option<Waker>,
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
    pub(crate) messages: VecDeque<Message>,
    pub(crate) bytes: usize,
    /// The core stopped receiving because of what lies here.
    pub(crate) full: bool,
    pub(crate) waker: Option<Waker>,
    pub(crate) closed_waker: Option<Waker>,
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
                waker: None,
                close: None,
                reason: None,
                arena: BytesMut::new(),
                stats: Stats::default(),
            }),
            inbox: Mutex::new(Inbox::default()),
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

    /// Marks the connection as wanting attention; false if it was marked already.
    pub(crate) fn mark(&self) -> bool {
        !self.queued.swap(true, Ordering::SeqCst)
    }

    /// Takes the mark off. Look at the queues after it.
    pub(crate) fn unmark(&self) {
        self.queued.store(false, Ordering::SeqCst);
    }

    /// Publishes the end of the connection, once; later ones change nothing. The wakers are to be woken after locks
    /// are released.
    pub(crate) fn finish(&self, reason: &DisconnectReason, wakers: &mut Vec<Waker>) {
        let mut outbox = self.outbox();
        if outbox.reason.is_none() {
            outbox.reason = Some(reason.clone());
        }
        outbox.messages.clear();
        wakers.extend(outbox.waker.take());
        drop(outbox);
        let mut inbox = self.inbox();
        if inbox.reason.is_none() {
            inbox.reason = Some(reason.clone());
        }
        wakers.extend(inbox.waker.take());
        wakers.extend(inbox.closed_waker.take());
    }
}

impl Outbox {
    /// Whether a message of any legal size is accepted now.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes == 0 || self.bytes < self.limit
    }
}
