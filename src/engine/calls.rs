//! What other threads leave to whoever holds the reactor's core, and the promise that nothing of it is forgotten.
//!
//! Nobody waits for the core: who finds it taken goes away, because its holder looks at the list again after it has
//! let go. Loom checks that in every interleaving.

#[cfg(loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// A list of calls.
pub(crate) struct Calls<T> {
    list: Mutex<Vec<T>>,
    /// How many there are: saves the list's lock.
    count: AtomicUsize,
}

impl<T> Calls<T> {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(Vec::with_capacity(64)),
            count: AtomicUsize::new(0),
        }
    }

    /// Leaves a call. [`Calls::work_off`] must follow.
    pub(crate) fn leave(&self, call: T) {
        self.list().push(call);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// The next call, for the core's holder.
    pub(crate) fn next(&self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let call = self.list().pop();
        if call.is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        call
    }

    /// Sees to it that all calls are worked off. `hold` takes the core, works them off and lets it go, or says that the core
    /// is taken: then its holder does it, who calls this after letting go.
    pub(crate) fn work_off(&self, mut hold: impl FnMut() -> bool) {
        while !self.is_empty() && hold() {}
    }

    fn list(&self) -> MutexGuard<'_, Vec<T>> {
        // The list is valid at every moment, so a panic elsewhere does not spoil it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    struct Shared {
        calls: Calls<u32>,
        core: Mutex<u32>,
    }

    impl Shared {
        fn attend(&self, core: &mut u32) {
            while let Some(call) = self.calls.next() {
                *core += call;
            }
        }

        fn kick(&self) {
            self.calls.work_off(|| match self.core.try_lock() {
                Ok(mut core) => {
                    self.attend(&mut core);
                    true
                }
                Err(_) => false,
            });
        }
    }

    #[test]
    fn no_call_is_forgotten() {
        loom::model(|| {
            let shared = Arc::new(Shared {
                calls: Calls::new(),
                core: Mutex::new(0),
            });
            let caller = {
                let shared = shared.clone();
                thread::spawn(move || {
                    shared.calls.leave(1);
                    shared.kick();
                })
            };
            // Another caller, who holds the core for a reason of its own first.
            drop(shared.core.lock().unwrap());
            shared.kick();
            shared.calls.leave(2);
            shared.kick();
            caller.join().unwrap();
            assert_eq!(*shared.core.lock().unwrap(), 3);
        });
    }
}
