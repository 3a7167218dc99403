//! What other threads leave to whoever holds the reactor's core, and the promise that nothing of it is forgotten.
//!
//! Nobody waits for the core: who finds it taken goes away, because its holder looks at the list again after it has
//! let go. Loom checks that in every interleaving. Nor does anybody work for others without end: who has done so for a
//! while leaves the rest to the driver.

#[cfg(loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

/// A list of calls, worked off in their order.
pub(crate) struct Calls<T> {
    list: Mutex<VecDeque<T>>,
    /// How many there are: saves the list's lock.
    count: AtomicUsize,
}

impl<T> Calls<T> {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(VecDeque::with_capacity(64)),
            count: AtomicUsize::new(0),
        }
    }

    /// Leaves a call. [`Calls::work_off`] must follow.
    pub(crate) fn leave(&self, call: T) {
        self.list().push_back(call);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Works off, for the core's holder, the calls that there are now. What comes meanwhile waits for the next time, so
    /// that those who leave more and more keep nobody here.
    pub(crate) fn attend(&self, mut work: impl FnMut(T)) {
        for _ in 0..self.count.load(Ordering::SeqCst) {
            let Some(call) = self.next() else { return };
            work(call);
        }
    }

    fn next(&self) -> Option<T> {
        let call = self.list().pop_front();
        if call.is_some() {
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
        call
    }

    /// Sees to it that all calls are worked off. `hold` takes the core, attends to them and lets it go, or says that the
    /// core is taken: then its holder does it, who calls this after letting go. `false`: there were always more, for so
    /// many rounds, and it is for the driver to go on.
    pub(crate) fn work_off(&self, rounds: u32, mut hold: impl FnMut() -> bool) -> bool {
        for _ in 0..rounds {
            if self.is_empty() || !hold() {
                return true;
            }
        }
        self.is_empty()
    }

    fn list(&self) -> MutexGuard<'_, VecDeque<T>> {
        // The list is valid at every moment, so a panic elsewhere does not spoil it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn who_came_first_is_first_and_what_comes_meanwhile_waits() {
        let calls = Calls::new();
        let attend = || {
            let mut seen = Vec::new();
            calls.attend(|call| {
                seen.push(call);
                calls.leave(call + 10);
            });
            seen
        };
        calls.leave(1);
        calls.leave(2);
        assert_eq!(attend(), [1, 2]);
        assert_eq!(attend(), [11, 12]);
    }

    #[test]
    fn nobody_works_for_others_without_end() {
        let calls = Calls::new();
        let mut held = 0;
        let mut hold = |more: bool| {
            calls.attend(|()| {});
            held += 1;
            if more {
                calls.leave(());
            }
            true
        };
        calls.leave(());
        assert!(!calls.work_off(5, || hold(true)));
        assert!(calls.work_off(5, || hold(false)));
        assert_eq!(held, 6);
        // Its holder goes on.
        calls.leave(());
        assert!(calls.work_off(5, || false));
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
        fn kick(&self) {
            let done = self.calls.work_off(4, || match self.core.try_lock() {
                Ok(mut core) => {
                    self.calls.attend(|call| *core += call);
                    true
                }
                Err(_) => false,
            });
            assert!(done);
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
