//! Putting fragments together, within a budget that all connections of a reactor share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};

/// Bytes that are allocated at once before a peer has sent them.
const STEP: usize = 64 << 10;

/// Bytes that unfinished messages may take, of all connections together.
#[derive(Debug)]
pub(crate) struct ReassemblyBudget {
    limit: usize,
    used: AtomicUsize,
}

/// The budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverBudget {
    /// The limit in bytes.
    pub(crate) limit: usize,
}

/// The message of one connection that is being put together. What it took of the budget goes back when it is
/// complete, and when the connection ends.
#[derive(Debug)]
pub(crate) struct Assembly {
    bytes: BytesMut,
    budget: Arc<ReassemblyBudget>,
}

impl ReassemblyBudget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    fn take(&self, len: usize) -> Result<(), OverBudget> {
        let add = |used: usize| used.checked_add(len).filter(|sum| *sum <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map(|_| ())
            .map_err(|_| OverBudget { limit: self.limit })
    }

    fn give_back(&self, len: usize) {
        self.used.fetch_sub(len, Ordering::Relaxed);
    }
}

impl Assembly {
    pub(crate) fn new(budget: Arc<ReassemblyBudget>) -> Self {
        Self {
            bytes: BytesMut::new(),
            budget,
        }
    }

    /// Whether no message has begun.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A message of `total` bytes begins. What the peer announces is reserved step by step as it arrives.
    pub(crate) fn begin(&mut self, total: usize) {
        self.bytes.reserve(total.min(STEP));
    }

    /// Adds a fragment.
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<(), OverBudget> {
        self.budget.take(data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Takes the complete message.
    pub(crate) fn finish(&mut self) -> Bytes {
        let bytes = self.bytes.split().freeze();
        self.budget.give_back(bytes.len());
        bytes
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes.len());
    }
}
