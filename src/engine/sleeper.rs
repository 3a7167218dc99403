//! What others must know of a thread that waits for a future, and may drive a reactor meanwhile: whether it has heard
//! that the future wants to be polled, and how it sleeps. Who wakes it makes a system call only if it does.
//!
//! The thread says that it sleeps and then looks whether it was woken; others wake it and then look whether it sleeps. Loom
//! checks that in every interleaving. May import std only.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// One thread that waits.
#[derive(Debug)]
pub(crate) struct Sleeper {
    /// The future wants to be polled.
    woken: AtomicBool,
    /// The thread may be asleep as the reactor's driver, or looks at `woken` no more before it is.
    drives: AtomicBool,
    /// The same, while somebody else drives.
    parked: AtomicBool,
}

impl Sleeper {
    /// It has not polled its future yet.
    pub(crate) fn new() -> Self {
        Self {
            woken: AtomicBool::new(true),
            drives: AtomicBool::new(false),
            parked: AtomicBool::new(false),
        }
    }

    /// Has the future polled: ends the thread's sleep, in the way that it sleeps.
    pub(crate) fn wake(&self, wake_driver: impl FnOnce(), unpark: impl FnOnce()) {
        self.woken.swap(true, Ordering::SeqCst);
        // Nearly always the waiting thread itself is at work here, and costs no system call.
        if self.drives.load(Ordering::SeqCst) {
            wake_driver();
        }
        if self.parked.load(Ordering::SeqCst) {
            unpark();
        }
    }

    /// Whether the future is to be polled; that is done then.
    pub(crate) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    /// Whether the future is to be polled.
    pub(crate) fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    /// Sleeps as the reactor's driver, unless the future is to be polled.
    pub(crate) fn sleep(&self, sleep: impl FnOnce()) {
        self.asleep(&self.drives, sleep);
    }

    /// Sleeps while somebody else drives, unless the future is to be polled.
    pub(crate) fn park(&self, park: impl FnOnce()) {
        self.asleep(&self.parked, park);
    }

    fn asleep(&self, how: &AtomicBool, sleep: impl FnOnce()) {
        how.store(true, Ordering::SeqCst);
        // This and what wakes change the same value: either this finds it changed, or who wakes finds what was stored
        // before. For a mere look only the total order of all accesses would say so, which loom does not know.
        if !self.woken.fetch_or(false, Ordering::SeqCst) {
            sleep();
        }
        how.store(false, Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::engine::seat::Seat;
    use loom::sync::{Arc, Condvar, Mutex};
    use loom::thread::{self, Thread};

    /// What a driver sleeps on. It ends the sleep until it was taken back.
    #[derive(Default)]
    struct Descriptor {
        state: Mutex<Readable>,
        changed: Condvar,
    }

    #[derive(Default)]
    struct Readable {
        woken: bool,
        /// The device has something to tell.
        event: bool,
    }

    impl Descriptor {
        fn set(&self, change: impl FnOnce(&mut Readable)) {
            change(&mut self.state.lock().unwrap());
            self.changed.notify_all();
        }

        fn wake(&self) {
            self.set(|state| state.woken = true);
        }

        fn sleep(&self) {
            let mut state = self.state.lock().unwrap();
            while !state.woken && !state.event {
                state = self.changed.wait(state).unwrap();
            }
            state.woken = false;
        }

        fn take_event(&self) -> bool {
            std::mem::take(&mut self.state.lock().unwrap().event)
        }
    }

    #[derive(Default)]
    struct Reactor {
        descriptor: Descriptor,
        seat: Seat,
    }

    /// A thread that waits until it is woken, as `block_on` does.
    struct Waiter {
        sleeper: Sleeper,
        thread: Mutex<Option<Thread>>,
    }

    impl Waiter {
        fn new() -> Arc<Self> {
            let sleeper = Sleeper::new();
            assert!(sleeper.take());
            Arc::new(Self {
                sleeper,
                thread: Mutex::new(None),
            })
        }

        fn wake(&self, reactor: &Reactor) {
            let unpark = || {
                if let Some(thread) = &*self.thread.lock().unwrap() {
                    thread.unpark();
                }
            };
            self.sleeper.wake(|| reactor.descriptor.wake(), unpark);
        }

        /// What the device has to tell is for `other`.
        fn wait(&self, reactor: &Reactor, other: Option<&Waiter>) {
            *self.thread.lock().unwrap() = Some(thread::current());
            let standby = reactor.seat.standby();
            while !self.sleeper.take() {
                if let Some(sitting) = standby.try_sit() {
                    loop {
                        if reactor.descriptor.take_event() {
                            other.unwrap_or(self).wake(reactor);
                        }
                        self.sleeper.sleep(|| reactor.descriptor.sleep());
                        if self.sleeper.is_woken() || sitting.is_wanted() {
                            break;
                        }
                    }
                } else {
                    self.sleeper.park(thread::park);
                }
            }
        }
    }

    fn check(test: impl Fn(Arc<Reactor>) + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        // All interleavings take too long.
        model.preemption_bound = Some(3);
        model.check(move || test(Arc::default()));
    }

    /// One is woken by another thread, and one by what whoever drives finds on the device.
    #[test]
    fn no_wake_up_is_lost_between_two_who_wait() {
        check(|reactor| {
            let (one, other) = (Waiter::new(), Waiter::new());
            let threads =
                [(one.clone(), Some(other.clone())), (other, None)].map(|(waiter, other)| {
                    let reactor = reactor.clone();
                    thread::spawn(move || waiter.wait(&reactor, other.as_deref()))
                });
            one.wake(&reactor);
            reactor.descriptor.set(|state| state.event = true);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    /// Who comes to drive instead gets the seat, and who waits hears of what it waits for all the same.
    #[test]
    fn no_wake_up_is_lost_to_who_takes_over() {
        check(|reactor| {
            let waiter = Waiter::new();
            let waits = {
                let (waiter, reactor) = (waiter.clone(), reactor.clone());
                thread::spawn(move || waiter.wait(&reactor, None))
            };
            let takes_over = {
                let reactor = reactor.clone();
                thread::spawn(move || {
                    let reservation = reactor.seat.reserve();
                    reactor.descriptor.wake();
                    drop(reservation.sit());
                })
            };
            takes_over.join().unwrap();
            waiter.wake(&reactor);
            waits.join().unwrap();
        });
    }
}
