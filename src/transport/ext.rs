//! `async` and blocking forms of the traits' poll methods.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::{
    DisconnectReason, Error, Listener, Message, OutMessage, SteeringTag, Transport, TrySendError,
};

/// `async` and blocking forms of [`Transport`]. The blocking ones sleep on this thread: the connection's reactor
/// must be driven by another one.
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
        block_on(timeout, |cx| poll_send(self, message, None, cx)).unwrap_or(Err(Error::WouldBlock))
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
        block_on(timeout, |cx| poll_send(self, response, invalidate, cx))
            .unwrap_or(Err(Error::WouldBlock))
    }

    /// As [`TransportExt::recv`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `recv`; [`Error::WouldBlock`] when the time is over.
    fn recv_blocking(&self, timeout: Option<Duration>) -> Result<Option<Message>, Error> {
        block_on(timeout, |cx| self.poll_recv(cx)).unwrap_or(Err(Error::WouldBlock))
    }

    /// As [`TransportExt::ready`], blocking, for at most `timeout`.
    ///
    /// # Errors
    /// As for `ready`; [`Error::WouldBlock`] when the time is over.
    fn ready_blocking(&self, timeout: Option<Duration>) -> Result<(), Error> {
        block_on(timeout, |cx| self.poll_ready(cx)).unwrap_or(Err(Error::WouldBlock))
    }

    /// Waits for the end of the connection for at most `timeout`.
    fn closed_blocking(&self, timeout: Option<Duration>) -> Option<DisconnectReason> {
        block_on(timeout, |cx| self.poll_closed(cx))
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
        block_on(timeout, |cx| self.poll_accept(cx)).unwrap_or(Err(Error::WouldBlock))
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

/// Polls until ready or until the time is over, sleeping in between.
pub(crate) fn block_on<T>(
    timeout: Option<Duration>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    // One waker per thread, so that waiting allocates nothing.
    let waker = UNPARK.with(Waker::clone);
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = poll(&mut cx) {
            return Some(result);
        }
        match deadline {
            None => thread::park(),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return None;
                }
                thread::park_timeout(left);
            }
        }
    }
}

thread_local! {
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(thread::current())));
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
