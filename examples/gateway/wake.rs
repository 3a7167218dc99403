//! How a connection's thread waits for many things at a time.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

/// The thread that made it, as something that polls and sleeps. What wakes it between a poll and
/// the sleep is not lost: it ends the sleep at once.
pub(crate) struct Sleeper {
    waker: Waker,
}

impl Sleeper {
    /// For this thread.
    pub(crate) fn new() -> Self {
        Self {
            waker: Waker::from(Arc::new(Unpark(thread::current()))),
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
        match limit {
            None => thread::park(),
            Some(limit) => thread::park_timeout(limit),
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
