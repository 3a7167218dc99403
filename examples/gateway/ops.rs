//! Many operations under way, of which only those are looked at that have something to say.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use smbdirect::transport::{Error, Op};

use crate::rewrite::TransferId;

/// Operations under way, by what they move.
pub(crate) struct Ops<T> {
    under_way: HashMap<TransferId, Op<T>>,
    ready: Arc<Ready>,
    /// Of `ready`, kept for its memory.
    looked_at: Vec<TransferId>,
}

impl<T> Ops<T> {
    /// `waker` wakes who calls [`finished`](Self::finished).
    pub(crate) fn new(waker: &Waker) -> Self {
        Self {
            under_way: HashMap::new(),
            ready: Arc::new(Ready {
                waker: waker.clone(),
                transfers: Mutex::default(),
            }),
            looked_at: Vec::new(),
        }
    }

    pub(crate) fn insert(&mut self, transfer: TransferId, op: Op<T>) {
        self.under_way.insert(transfer, op);
        self.ready.lock().push(transfer);
    }

    /// Takes the next one that is over.
    pub(crate) fn finished(&mut self) -> Option<(TransferId, Result<T, Error>)> {
        loop {
            if self.looked_at.is_empty() {
                std::mem::swap(&mut self.looked_at, &mut *self.ready.lock());
                // Taken from the end, in the order of their ends.
                self.looked_at.reverse();
            }
            let transfer = self.looked_at.pop()?;
            let Some(op) = self.under_way.get_mut(&transfer) else {
                continue;
            };
            let waker = Waker::from(Arc::new(One {
                transfer,
                ready: self.ready.clone(),
            }));
            if let Poll::Ready(result) = Pin::new(op).poll(&mut Context::from_waker(&waker)) {
                self.under_way.remove(&transfer);
                return Some((transfer, result));
            }
        }
    }
}

/// Operations that are to be looked at.
struct Ready {
    waker: Waker,
    transfers: Mutex<Vec<TransferId>>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<TransferId>> {
        // The list is valid at every moment, so a panic elsewhere does not spoil it.
        self.transfers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes for one operation.
struct One {
    transfer: TransferId,
    ready: Arc<Ready>,
}

impl Wake for One {
    fn wake(self: Arc<Self>) {
        self.ready.lock().push(self.transfer);
        self.ready.waker.wake_by_ref();
    }
}
