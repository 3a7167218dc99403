//! Driving a reactor from within a wait: whoever waits for a future does the reactor's work meanwhile.
//!
//! May import the reactor and what it is made of.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::reactor::{Reactor, Shared};

/// One wait.
struct Waiting {
    reactor: Arc<Shared>,
    /// The future wants to be polled.
    woken: AtomicBool,
    /// The thread may be asleep, or looks at `woken` no more before it is.
    asleep: AtomicBool,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // Nearly always the waiting thread itself is at work here, and costs no system call.
        if self.asleep.load(Ordering::SeqCst) {
            self.reactor.wake();
        }
    }
}

impl Reactor {
    /// Drives the reactor on this thread until the future is ready: the lowest latency where nobody else drives it.
    /// Any future will do: an [`Op`](crate::transport::Op), a message that is awaited, or a whole client's work.
    ///
    /// One thread at a time may be in it. Between two calls nobody drives the reactor, also not its keepalive, so that
    /// a peer may take a long pause for the end.
    ///
    /// ```no_run
    /// use smbdirect::engine::{ChannelOptions, Reactor};
    /// use smbdirect::transport::{Error, TransportExt};
    ///
    /// # fn echo(reactor: &Reactor) -> Result<(), Error> {
    /// let channel = reactor.block_on(reactor.connect("192.0.2.7:0".parse().unwrap(), ChannelOptions::default()))?;
    /// reactor.block_on(async {
    ///     channel.send(b"\xfeSMB...").await?;
    ///     let answer = channel.recv().await?;
    ///     // ...
    /// #   drop(answer);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let waiting = Arc::new(Waiting {
            reactor: self.shared().clone(),
            woken: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
        });
        let waker = Waker::from(waiting.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            if waiting.woken.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            let deadline = self.shared().settle(Duration::ZERO);
            waiting.asleep.store(true, Ordering::SeqCst);
            // Who wakes from here on ends the sleep.
            if !waiting.woken.load(Ordering::SeqCst) {
                self.shared().sleep(deadline);
            }
            waiting.asleep.store(false, Ordering::SeqCst);
        }
    }
}
