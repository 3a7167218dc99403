//! What a thread of a connection sleeps on. May import std only.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// A condition variable that costs no system call while nobody sleeps: std's makes one each time.
///
/// All who sleep on it and all who ring it change what it stands for under the same mutex.
#[derive(Debug, Default)]
pub(super) struct Bell {
    condition: Condvar,
    /// Counted under the mutex, after a look at what the bell stands for: who changes that later sees it.
    sleeping: AtomicUsize,
}

impl Bell {
    /// Wakes all. To be called after the change, with the mutex or without.
    pub(super) fn ring(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            self.condition.notify_all();
        }
    }

    /// Sleeps until it rings, or for no reason.
    pub(super) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.asleep(|condition| {
            condition
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// The same, for at most so long.
    pub(super) fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        most: Duration,
    ) -> MutexGuard<'a, T> {
        self.asleep(|condition| {
            let waited = condition.wait_timeout(guard, most);
            waited.unwrap_or_else(PoisonError::into_inner).0
        })
    }

    fn asleep<R>(&self, sleep: impl FnOnce(&Condvar) -> R) -> R {
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let guard = sleep(&self.condition);
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        guard
    }
}
