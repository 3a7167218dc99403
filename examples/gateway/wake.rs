//! How a connection's thread waits for many things at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

/// The thread that made it, as something that polls and sleeps. What wakes it between a poll and
/// the sleep is not lost, also if the thread has waited for something else meanwhile: it ends the
/// sleep at once.
pub(crate) struct Sleeper {
    unpark: Arc<Unpark>,
    waker: Waker,
}

impl Sleeper {
    /// For this thread.
    pub(crate) fn new() -> Self {
        let unpark = Arc::new(Unpark {
            thread: thread::current(),
            woken: AtomicBool::new(false),
        });
        Self {
            waker: Waker::from(unpark.clone()),
            unpark,
        }
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context::from_waker(&self.waker)
    }

    /// Sleeps until something that was polled is ready, at most for `limit`; may return early.
    pub(crate) fn sleep(&self, limit: Option<Duration>) {
        if !self.unpark.is_woken() {
            match limit {
                None => thread::park(),
                Some(limit) => thread::park_timeout(limit),
            }
            // What woke it has done its work; what follows is polled for.
            self.unpark.is_woken();
        }
    }
}

struct Unpark {
    thread: Thread,
    /// A wait of another kind may take the thread's own mark of it away.
    woken: AtomicBool,
}

impl Unpark {
    /// Whether it was woken since this was asked last.
    fn is_woken(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_wait_in_between_takes_no_wake_up() {
        let (done, told) = mpsc::channel();
        thread::spawn(move || {
            let sleeper = Sleeper::new();
            sleeper.waker().wake_by_ref();
            // As a wait for memory does.
            thread::park();
            sleeper.sleep(None);
            done.send(())
        });
        let told = told.recv_timeout(Duration::from_secs(40));
        told.expect("it sleeps though it was woken");
    }
}
