//! Listening for SMB Direct connections.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Channel;
use super::group::Members;
use super::options::ChannelOptions;
use super::reactor::Shared;
use crate::transport::{Close, Error, Listener, Transport};

/// Listens on one or more addresses of one reactor, and yields negotiated channels. That of a
/// [`ReactorGroup`](super::ReactorGroup) yields the channels of all its reactors.
///
/// When a device is removed, the listener goes on with the addresses that it has on others, and tries once a second to
/// take the lost ones up again. Without any address left it is over: accepting fails, with
/// [`RdmaError::DeviceRemoved`](crate::rdma::RdmaError::DeviceRemoved). A listener on an unspecified address is on no
/// device, and on all that come.
pub struct DirectListener {
    reactor: Arc<Shared>,
    /// Where its connections may go; the reactor knows them only as long as this does.
    _members: Option<Arc<Members>>,
    shared: Arc<ListenShared>,
    local: Vec<SocketAddr>,
}

/// What the handle and the core share.
pub(crate) struct ListenShared {
    state: Mutex<State>,
    backlog: usize,
}

/// A place among those that negotiate, given back when it is dropped.
pub(crate) struct Admitted {
    listen: Arc<ListenShared>,
    peer: IpAddr,
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
    last_failure: Option<(SocketAddr, Error)>,
}

impl DirectListener {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        members: Option<Arc<Members>>,
        shared: Arc<ListenShared>,
        local: Vec<SocketAddr>,
    ) -> Self {
        Self {
            reactor,
            _members: members,
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

    /// Connections that have been let in and are not negotiated yet.
    #[cfg(test)]
    pub(crate) fn negotiating(&self) -> usize {
        self.shared.lock().negotiating
    }

    /// Connections that ended before they were negotiated, or were when too many others waited to be accepted.
    pub fn failed_handshakes(&self) -> u64 {
        self.shared.lock().failed
    }

    /// Whose connection was the last of those that [`DirectListener::failed_handshakes`] counts, and why it ended: a limit
    /// on locked memory that is too low shows itself here, and nowhere else but in the log.
    pub fn last_failed_handshake(&self) -> Option<(SocketAddr, Error)> {
        self.shared.lock().last_failure.clone()
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

impl Drop for Admitted {
    fn drop(&mut self) {
        self.listen.left(self.peer);
    }
}

impl ListenShared {
    pub(crate) fn new(backlog: usize) -> Self {
        Self {
            state: Mutex::new(State::default()),
            backlog: backlog.max(1),
        }
    }

    /// Counts a connection that begins to negotiate; `None` if it must be refused.
    pub(crate) fn admit(
        self: &Arc<Self>,
        peer: IpAddr,
        options: &ChannelOptions,
    ) -> Option<Admitted> {
        if !options.listen.filter.admits(peer) {
            return None;
        }
        // An IPv4 peer is the same one at an address of IPv6.
        let peer = peer.to_canonical();
        let mut state = self.lock();
        let here = state.per_peer.get(&peer).copied().unwrap_or(0);
        if state.closed
            || state.ready.len() >= self.backlog
            || state.negotiating >= options.max_negotiating
            || here >= options.max_negotiating_per_peer
        {
            return None;
        }
        state.negotiating += 1;
        *state.per_peer.entry(peer).or_default() += 1;
        drop(state);
        Some(Admitted {
            listen: self.clone(),
            peer,
        })
    }

    /// A connection is not negotiating any more.
    fn left(&self, peer: IpAddr) {
        let mut state = self.lock();
        state.negotiating = state.negotiating.saturating_sub(1);
        if let Some(count) = state.per_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                state.per_peer.remove(&peer);
            }
        }
    }

    pub(crate) fn count_failure(&self, peer: SocketAddr, error: Error) {
        let mut state = self.lock();
        state.failed += 1;
        state.last_failure = Some((peer, error));
    }

    /// A negotiated channel. Returns who is to be woken.
    ///
    /// # Errors
    /// As many as may wait to be accepted already: what is the limit. Those that negotiate do not count for it, as a peer
    /// that never finishes would then keep out others.
    pub(crate) fn offer(&self, channel: Channel) -> Result<Option<Waker>, usize> {
        let mut state = self.lock();
        let refused = match (state.closed, state.ready.len()) {
            (true, _) => Ok(None),
            (false, waiting) if waiting >= self.backlog => Err(self.backlog),
            _ => {
                state.ready.push_back(channel);
                return Ok(state.waker.take());
            }
        };
        drop(state);
        // Its drop closes the connection; the core, which holds its lock now, is told through the list.
        drop(channel);
        refused
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_peer_whatever_the_form_of_its_address() {
        let listen = Arc::new(ListenShared::new(8));
        let options = ChannelOptions {
            max_negotiating: 2,
            max_negotiating_per_peer: 1,
            ..ChannelOptions::default()
        };
        let admit = |peer: &str| listen.admit(peer.parse().unwrap(), &options);
        let first = admit("192.0.2.1").unwrap();
        assert!(admit("::ffff:192.0.2.1").is_none(), "the same peer");
        let _second = admit("2001:db8::1").unwrap();
        assert!(admit("192.0.2.2").is_none(), "two in all");
        drop(first);
        let _third = admit("::ffff:192.0.2.1").unwrap();
        assert!(admit("192.0.2.1").is_none(), "the same peer");
    }
}
