//! Listening for SMB Direct connections.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Channel;
use super::options::ChannelOptions;
use super::reactor::Shared;
use crate::transport::{Close, Error, Listener, Transport};

/// Listens on one or more addresses of one reactor, and yields negotiated channels.
pub struct DirectListener {
    reactor: Arc<Shared>,
    shared: Arc<ListenShared>,
    local: Vec<SocketAddr>,
}

/// What the handle and the core share.
pub(crate) struct ListenShared {
    state: Mutex<State>,
    backlog: usize,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Channel>,
    waker: Option<Waker>,
    error: Option<Error>,
    closed: bool,
    negotiating: usize,
    per_peer: HashMap<IpAddr, usize>,
    failed: u64,
}

impl DirectListener {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        shared: Arc<ListenShared>,
        local: Vec<SocketAddr>,
    ) -> Self {
        Self {
            reactor,
            shared,
            local,
        }
    }

    /// The next channel; see [`Listener::poll_accept`].
    ///
    /// # Errors
    /// The listener cannot go on.
    pub fn poll_accept_channel(&self, cx: &mut Context<'_>) -> Poll<Result<Channel, Error>> {
        let mut state = self.shared.lock();
        if let Some(channel) = state.ready.pop_front() {
            return Poll::Ready(Ok(channel));
        }
        if let Some(error) = &state.error {
            return Poll::Ready(Err(error.clone()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Connections that ended before they were negotiated.
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.lock().failed
    }
}

impl Listener for DirectListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Arc<dyn Transport>, Error>> {
        self.poll_accept_channel(cx)
            .map_ok(|channel| Arc::new(channel) as Arc<dyn Transport>)
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        self.local.clone()
    }

    fn close(&self) {
        let waker = self
            .shared
            .fail(Error::Closed(crate::transport::DisconnectReason::Local));
        self.shared.lock().closed = true;
        self.reactor.unlisten(&self.shared);
        if let Some(waker) = waker {
            waker.wake();
        }
        // Nobody will accept these any more.
        let left = std::mem::take(&mut self.shared.lock().ready);
        for channel in left {
            channel.close(Close::Abort);
        }
    }
}

impl Drop for DirectListener {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for DirectListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectListener")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl ListenShared {
    pub(crate) fn new(backlog: usize) -> Self {
        Self {
            state: Mutex::new(State::default()),
            backlog: backlog.max(1),
        }
    }

    /// Counts a connection that begins to negotiate; false if it must be refused.
    pub(crate) fn admit(&self, peer: IpAddr, options: &ChannelOptions) -> bool {
        let mut state = self.lock();
        let here = state.per_peer.get(&peer).copied().unwrap_or(0);
        if state.closed
            || state.ready.len() >= self.backlog
            || state.negotiating >= options.max_negotiating
            || here >= options.max_negotiating_per_peer
        {
            return false;
        }
        state.negotiating += 1;
        *state.per_peer.entry(peer).or_default() += 1;
        true
    }

    /// A connection is not negotiating any more.
    pub(crate) fn left(&self, peer: IpAddr) {
        let mut state = self.lock();
        state.negotiating = state.negotiating.saturating_sub(1);
        if let Some(count) = state.per_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                state.per_peer.remove(&peer);
            }
        }
    }

    pub(crate) fn count_failure(&self) {
        self.lock().failed += 1;
    }

    /// A negotiated channel. Returns who is to be woken.
    pub(crate) fn offer(&self, channel: Channel) -> Option<Waker> {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            // Its drop closes the connection; the core, which holds its lock now, is told through the list.
            drop(channel);
            return None;
        }
        state.ready.push_back(channel);
        state.waker.take()
    }

    /// The listener is over. Returns who is to be woken.
    pub(crate) fn fail(&self, error: Error) -> Option<Waker> {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        state.waker.take()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
