//! How much memory may be registered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::rdma::RdmaError;

/// Bytes of registered memory, counted and limited. Clones count together.
#[derive(Clone)]
pub struct MemoryBudget(Arc<Inner>);

struct Inner {
    limit: u64,
    used: AtomicU64,
}

/// A part of a budget that is in use until this is dropped.
pub(crate) struct Charge {
    budget: Arc<Inner>,
    bytes: u64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            limit,
            used: AtomicU64::new(0),
        }))
    }

    /// Bytes that are registered now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most that may be.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Takes `bytes` of it.
    pub(crate) fn charge(&self, bytes: usize) -> Result<Charge, RdmaError> {
        let (bytes, limit) = (bytes as u64, self.0.limit);
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        match self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
        {
            Ok(_) => Ok(Charge {
                budget: self.0.clone(),
                bytes,
            }),
            Err(used) => Err(RdmaError::MemoryBudget {
                limit,
                used,
                needed: bytes,
            }),
        }
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBudget({} of {})", self.used(), self.limit())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_no_more_is_given() {
        let budget = MemoryBudget::new(100);
        let first = budget.charge(60).unwrap();
        let refused = budget.clone().charge(41).err();
        assert_eq!(
            refused,
            Some(RdmaError::MemoryBudget {
                limit: 100,
                used: 60,
                needed: 41
            })
        );
        let second = budget.charge(40).unwrap();
        assert!(budget.charge(usize::MAX).is_err());
        assert_eq!(budget.used(), 100);
        drop((first, second));
        assert_eq!(budget.used(), 0);
    }
}
