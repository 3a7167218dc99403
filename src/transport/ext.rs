//! `async` and blocking forms of the traits' poll methods.

use std::future::{Future, poll_fn};
use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{
    DisconnectReason, Error, Listener, Message, OutMessage, SteeringTag, Transport, TrySendError,
};

/// `async` and blocking forms of [`Transport`]. The blocking ones wait on this thread, first spinning for
/// [`Transport::spin`] and then asleep: the connection's reactor must be driven by another one.
pub trait TransportExt: Transport {
    /// Sends a message, waiting for room in the queue. Cancel safe: dropped before it is done, nothing was sent.
    ///
    /// # Errors
    /// The message is empty or too large, or the connection has ended.
    fn send(&self, message: &[u8]) -> impl Future<Output = Result<(), Error>> + Send {
        poll_fn(move |cx| poll_send(self, message, None, cx))
    }

    /// Server: as [`TransportExt::send`], for the final response of a request. `invalidate`: the token of its first
    /// descriptor, if the client asked for its invalidation; without direct placement there is none. Cancel safe.
    ///
    /// # Errors
    /// As for `send`.
    fn respond(
        &self,
        response: &[u8],
        invalidate: Option<SteeringTag>,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        poll_fn(move |cx| poll_send(self, response, invalidate, cx))
    }

    /// The next message; `None` when the peer closed in order. Cancel safe.
    ///
    /// # Errors
    /// The connection failed.
    fn recv(&self) -> impl Future<Output = Result<Option<Message>, Error>> + Send {
        poll_fn(|cx| self.poll_recv(cx))
    }

    /// Waits for the end of the connection. Cancel safe.
    fn closed(&self) -> impl Future<Output = DisconnectReason> + Send {
        poll_fn(|cx| self.poll_closed(cx))
    }

    /// Waits until [`Transport::start_send`] would accept a message. Cancel safe.
    ///
    /// # Errors
    /// The connection has ended.
    fn ready(&self) -> impl Future<Output = Result<(), Error>> + Send {
        poll_fn(|cx| self.poll_ready(cx))
    }

    /// As [`TransportExt::send`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `send`; [`Error::WouldBlock`] when the time is over, and nothing was sent.
    fn send_blocking(&self, message: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        block_on(self.spin(), timeout, |cx| {
            poll_send(self, message, None, cx)
        })
        .unwrap_or(Err(Error::WouldBlock))
    }

    /// As [`TransportExt::respond`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `respond`; [`Error::WouldBlock`] when the time is over, and nothing was sent.
    fn respond_blocking(
        &self,
        response: &[u8],
        invalidate: Option<SteeringTag>,
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        block_on(self.spin(), timeout, |cx| {
            poll_send(self, response, invalidate, cx)
        })
        .unwrap_or(Err(Error::WouldBlock))
    }

    /// As [`TransportExt::recv`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `recv`; [`Error::WouldBlock`] when the time is over.
    fn recv_blocking(&self, timeout: Option<Duration>) -> Result<Option<Message>, Error> {
        block_on(self.spin(), timeout, |cx| self.poll_recv(cx)).unwrap_or(Err(Error::WouldBlock))
    }

    /// As [`TransportExt::ready`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `ready`; [`Error::WouldBlock`] when the time is over.
    fn ready_blocking(&self, timeout: Option<Duration>) -> Result<(), Error> {
        block_on(self.spin(), timeout, |cx| self.poll_ready(cx)).unwrap_or(Err(Error::WouldBlock))
    }

    /// Waits for the end of the connection for at most `timeout`.
    fn closed_blocking(&self, timeout: Option<Duration>) -> Option<DisconnectReason> {
        block_on(Duration::ZERO, timeout, |cx| self.poll_closed(cx))
    }
}

impl<T: Transport + ?Sized> TransportExt for T {}

/// `async` and blocking forms of [`Listener`].
pub trait ListenerExt: Listener {
    /// The next connection. Cancel safe.
    ///
    /// # Errors
    /// The listener cannot go on.
    fn accept(&self) -> impl Future<Output = Result<Arc<dyn Transport>, Error>> + Send {
        poll_fn(|cx| self.poll_accept(cx))
    }

    /// The next connection, blocking, for at most `timeout`.
    ///
    /// # Errors
    /// The listener cannot go on; [`Error::WouldBlock`] when the time is over.
    fn accept_blocking(&self, timeout: Option<Duration>) -> Result<Arc<dyn Transport>, Error> {
        block_on(Duration::ZERO, timeout, |cx| self.poll_accept(cx))
            .unwrap_or(Err(Error::WouldBlock))
    }
}

impl<T: Listener + ?Sized> ListenerExt for T {}

fn poll_send<T: Transport + ?Sized>(
    transport: &T,
    message: &[u8],
    invalidate: Option<SteeringTag>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Error>> {
    loop {
        let message = OutMessage::Slice(message);
        let sent = match (invalidate, transport.direct()) {
            (Some(token), Some(direct)) => direct.send_invalidate(message, token),
            _ => transport.start_send(message),
        };
        match sent {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(TrySendError::Full) => match transport.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            },
            Err(error) => return Poll::Ready(Err(error.into())),
        }
    }
}

/// Polls until ready or until the time is over. In between it spins for a while, and then sleeps.
pub(crate) fn block_on<T>(
    spin: Duration,
    timeout: Option<Duration>,
    poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    // One per thread, so that waiting allocates nothing.
    let this = THIS_THREAD.with(Arc::clone);
    wait_on(&this, spin, timeout, poll)
}

fn wait_on<T>(
    this: &Arc<Waiter>,
    spin: Duration,
    timeout: Option<Duration>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let waker = Waker::from(this.clone());
    let mut cx = Context::from_waker(&waker);
    let result = loop {
        this.woken.store(false, Ordering::SeqCst);
        if let Poll::Ready(result) = poll(&mut cx) {
            break Some(result);
        }
        if !this.spin(spin, deadline) && !this.sleep(deadline) {
            break None;
        }
    };
    // This may have been a wait within a poll of another one, which the wake-up was for.
    this.woken.store(true, Ordering::SeqCst);
    result
}

thread_local! {
    static THIS_THREAD: Arc<Waiter> = Arc::new(Waiter::of_this_thread());
}

/// A thread that waits, as others wake it: who does so while it spins makes no system call.
struct Waiter {
    thread: Thread,
    woken: AtomicBool,
    /// It may be asleep, or looks at `woken` no more before it is.
    asleep: AtomicBool,
}

impl Waiter {
    fn of_this_thread() -> Self {
        Self {
            thread: thread::current(),
            woken: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        }
    }

    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }

    /// Waits without sleeping, for at most so long; whether it was woken.
    fn spin(&self, spin: Duration, deadline: Option<Instant>) -> bool {
        if spin.is_zero() {
            return false;
        }
        let now = Instant::now();
        let end = [now.checked_add(spin), deadline]
            .into_iter()
            .flatten()
            .min();
        while !self.is_woken() {
            if end.is_some_and(|end| Instant::now() >= end) {
                return false;
            }
            hint::spin_loop();
        }
        true
    }

    /// Sleeps until it is woken; `false`: the time was over before.
    fn sleep(&self, deadline: Option<Instant>) -> bool {
        self.asleep.store(true, Ordering::SeqCst);
        while !self.is_woken() {
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    thread::park_timeout(left);
                }
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
        self.is_woken()
    }
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    const LONG: Duration = Duration::from_secs(60);

    /// Waits until another thread says so a moment later; whether this one was asleep then.
    fn was_asleep(spin: Duration) -> bool {
        let this = Arc::new(Waiter::of_this_thread());
        let (sender, wakers) = channel::<Waker>();
        let waiter = this.clone();
        let other = thread::spawn(move || {
            let waker = wakers.recv().expect("a waker");
            thread::sleep(Duration::from_millis(50));
            let asleep = waiter.asleep.load(Ordering::SeqCst);
            waker.wake();
            asleep
        });
        let mut polls = 0;
        let result = wait_on(&this, spin, Some(LONG), |cx| {
            polls += 1;
            match polls {
                1 => {
                    sender.send(cx.waker().clone()).expect("somebody waits");
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        });
        assert_eq!((result, polls), (Some(()), 2));
        other.join().expect("no panic")
    }

    #[test]
    fn who_may_spin_does_not_sleep_meanwhile() {
        assert!(!was_asleep(LONG));
        // Other threads may have kept it from its sleep.
        let mut asleep = (0..100).map(|_| was_asleep(Duration::ZERO));
        assert!(asleep.any(|asleep| asleep));
    }

    #[test]
    fn a_wait_within_a_poll_takes_no_wake_up_from_the_outer_one() {
        let mut polls = 0;
        let result = block_on(Duration::ZERO, Some(LONG), |cx| {
            polls += 1;
            if polls > 1 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            let moment = Some(Duration::from_millis(1));
            block_on(Duration::ZERO, moment, |_| Poll::<()>::Pending);
            Poll::Pending
        });
        assert_eq!(result, Some(()));
    }

    #[test]
    fn the_time_ends_a_wait_whether_it_spins_or_sleeps() {
        for spin in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
            let mut polls = 0;
            let result = block_on(spin, Some(Duration::from_millis(20)), |_| {
                polls += 1;
                Poll::<()>::Pending
            });
            assert_eq!((result, polls), (None, 1));
        }
    }
}
