//! Driving a reactor from within a wait: whoever waits for a future does the reactor's work meanwhile, unless somebody else
//! does.
//!
//! May import the reactor and what it is made of.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::reactor::{Reactor, Shared};
use super::sleeper::Sleeper;

/// One wait.
struct Waiting {
    reactor: Arc<Shared>,
    sleeper: Sleeper,
    thread: Thread,
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.sleeper
            .wake(|| self.reactor.wake(), || self.thread.unpark());
    }
}

/// Gives the reactor back to a loop of the caller's when the wait has ended.
struct Loan<'a> {
    reactor: &'a Shared,
    /// The loop knows less of the reactor than it did.
    taken: bool,
}

impl Loan<'_> {
    /// The timer of the descriptor is the loop's: expired it would end every sleep of the wait.
    fn stop_timer(&mut self) {
        self.taken |= self.reactor.stop_timer();
    }

    /// The wait drives.
    fn take(&mut self) {
        self.taken = true;
        self.reactor.stop_timer();
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if self.taken {
            self.reactor.return_to_loop();
        }
    }
}

impl Reactor {
    /// Drives the reactor on this thread until the future is ready: the lowest latency where nobody else drives it.
    /// Any future will do: an [`Op`](crate::transport::Op), a message that is awaited, or a whole client's work.
    ///
    /// Several threads may be in it: one of them drives. Where the reactor has a thread of its own
    /// ([`Reactor::spawn`]) that drives, and this one sleeps meanwhile. Otherwise nobody drives the reactor between two
    /// calls, also not its keepalive, so that a peer may take a long pause for the end.
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
            sleeper: Sleeper::new(),
            thread: thread::current(),
        });
        let sleeper = &waiting.sleeper;
        let waker = Waker::from(waiting.clone());
        let mut cx = Context::from_waker(&waker);
        let standby = self.shared().seat().standby();
        let mut loan = Loan {
            reactor: self.shared(),
            taken: false,
        };
        loan.stop_timer();
        loop {
            if sleeper.take()
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            if let Some(sitting) = standby.try_sit() {
                loan.take();
                // It stays until it has something else to do: leaving wakes all who wait to drive. Not before it has
                // worked for the reactor, as there are futures that are never at rest.
                let has_other_work = || sleeper.is_woken() || sitting.is_wanted();
                loop {
                    let spin = self.shared().spin();
                    let deadline = self.shared().settle_unless(spin, has_other_work);
                    sleeper.sleep(|| self.shared().sleep(deadline));
                    if has_other_work() {
                        break;
                    }
                }
            } else {
                sleeper.park(thread::park);
            }
        }
    }
}
