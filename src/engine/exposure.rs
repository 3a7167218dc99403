//! Memory that the peer may use for a while: the client's side of an SMB READ or WRITE.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use super::reactor::Shared;
use super::shared::ConnShared;
use crate::proto::wire::BufferDescriptorV1;
use crate::rdma::{
    ConnId, IoBuf, IoPin, Operation, Provider, RdmaError, SendRequest, Window, WindowId,
};
use crate::transport::{Completer, Error, Op};

/// The mark of requests that bind or invalidate a window in their cookies.
pub(crate) const COOKIE: u64 = 2 << 32;

/// Memory exposed to the peer. Dropping it takes the peer's right back in the background; [`Exposed::reclaim`] says
/// when that is done and gives the memory back.
pub struct Exposed {
    reactor: Arc<Shared>,
    conn: Arc<ConnShared>,
    window: Window,
    descriptors: [BufferDescriptorV1; 1],
    memory: Option<IoPin>,
}

impl Exposed {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        conn: Arc<ConnShared>,
        window: Window,
        memory: IoPin,
    ) -> Self {
        let descriptor = BufferDescriptorV1 {
            offset: window.address,
            token: window.key,
            length: window.len,
        };
        Self {
            reactor,
            conn,
            window,
            descriptors: [descriptor],
            memory: Some(memory),
        }
    }

    /// The descriptors for a request, in order; together they are the memory.
    pub fn descriptors(&self) -> &[BufferDescriptorV1] {
        &self.descriptors
    }

    /// Says that the request asks the peer to invalidate the (first) descriptor with its response. From then on, and
    /// until the memory is reclaimed, nothing is invalidated by this side: some devices do not survive it when
    /// both sides do. To be called before the request is sent, and only where
    /// [`remote_invalidation`](crate::transport::DirectPlacement::remote_invalidation) allows it.
    pub fn offer_invalidation(&mut self) {
        self.reactor
            .with_conn(self.conn.conn, |conn, _| conn.windows.offer(self.window.id));
    }

    /// Takes the memory back, after the response to the request has arrived (or when none was ever sent). The
    /// operation ends when the peer's right is verifiably over: it invalidated the memory itself, or this side has,
    /// or the connection is gone. Dropped early, the memory goes back to its pool at that time.
    pub fn reclaim(mut self) -> Op<IoBuf> {
        let (op, completer) = Op::pending();
        if let Some(memory) = self.memory.take() {
            self.reactor
                .reclaim(self.conn.conn, self.window.id, memory, Some(completer));
        }
        op
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.reactor
                .reclaim(self.conn.conn, self.window.id, memory, None);
        }
    }
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposed")
            .field("descriptors", &self.descriptors)
            .finish_non_exhaustive()
    }
}

/// The windows of a connection.
#[derive(Default)]
pub(crate) struct Windows {
    states: HashMap<WindowId, State>,
    by_key: HashMap<u32, WindowId>,
}

/// One window.
struct State {
    key: u32,
    needs_bind: bool,
    /// The peer was asked to invalidate it.
    offered: bool,
    /// The peer did.
    invalidated: bool,
    /// An invalidation of ours is on its way.
    revoking: bool,
    /// The owner wants the memory back.
    reclaim: Option<Reclaim>,
}

struct Reclaim {
    memory: IoPin,
    completer: Option<Completer<IoBuf>>,
}

impl Windows {
    /// A new window. Returns the request that binds it, to be posted ahead of everything else.
    pub(crate) fn add(&mut self, window: &Window) -> Option<SendRequest> {
        let state = State {
            key: window.key,
            needs_bind: window.needs_bind,
            offered: false,
            invalidated: false,
            revoking: false,
            reclaim: None,
        };
        self.states.insert(window.id, state);
        self.by_key.insert(window.key, window.id);
        window.needs_bind.then(|| SendRequest {
            cookie: COOKIE,
            signalled: false,
            operation: Operation::Bind { window: window.id },
        })
    }

    /// The peer is asked to invalidate it.
    pub(crate) fn offer(&mut self, id: WindowId) {
        if let Some(state) = self.states.get_mut(&id) {
            state.offered = true;
        }
    }

    /// The peer invalidated a key. False if it is none of ours: then it broke the rules.
    pub(crate) fn invalidated(&mut self, key: u32) -> bool {
        let state = self.by_key.get(&key).and_then(|id| self.states.get_mut(id));
        state.map(|state| state.invalidated = true).is_some()
    }

    /// Windows whose owners wait and that the peer has invalidated meanwhile are over.
    pub(crate) fn settle(
        &mut self,
        key: u32,
        conn: ConnId,
        provider: &mut dyn Provider,
        wakers: &mut Vec<Waker>,
    ) {
        let Some(id) = self.by_key.get(&key).copied() else {
            return;
        };
        if self
            .states
            .get(&id)
            .is_some_and(|state| state.reclaim.is_some() && !state.revoking)
        {
            self.close(id, conn, provider, wakers);
        }
    }

    /// The owner wants the memory back, with a completer after the response has come, without one at any time.
    /// Returns the request that invalidates it, if one is needed.
    pub(crate) fn reclaim(
        &mut self,
        id: WindowId,
        memory: IoPin,
        completer: Option<Completer<IoBuf>>,
        conn: ConnId,
        provider: &mut dyn Provider,
        wakers: &mut Vec<Waker>,
    ) -> Option<SendRequest> {
        let Some(state) = self.states.get_mut(&id) else {
            give_back(Reclaim { memory, completer }, wakers);
            return None;
        };
        let response_has_come = completer.is_some();
        state.reclaim = Some(Reclaim { memory, completer });
        if !state.needs_bind || state.invalidated {
            self.close(id, conn, provider, wakers);
            return None;
        }
        // A response that invalidates it may still come: it stays until then, or until the queue pair is gone.
        if state.offered && !response_has_come {
            return None;
        }
        state.revoking = true;
        Some(SendRequest {
            cookie: COOKIE,
            signalled: true,
            operation: Operation::Invalidate { window: id },
        })
    }

    /// An invalidation of ours has been executed.
    pub(crate) fn revoked(
        &mut self,
        id: WindowId,
        conn: ConnId,
        provider: &mut dyn Provider,
        wakers: &mut Vec<Waker>,
    ) {
        self.close(id, conn, provider, wakers);
    }

    /// The queue pair is gone, and every right with it.
    pub(crate) fn end(&mut self, wakers: &mut Vec<Waker>) {
        self.by_key.clear();
        for (_, state) in self.states.drain() {
            if let Some(reclaim) = state.reclaim {
                give_back(reclaim, wakers);
            }
        }
    }

    fn close(
        &mut self,
        id: WindowId,
        conn: ConnId,
        provider: &mut dyn Provider,
        wakers: &mut Vec<Waker>,
    ) {
        let Some(state) = self.states.remove(&id) else {
            return;
        };
        self.by_key.remove(&state.key);
        // The provider's pin goes first, so that ours is the last.
        drop(provider.close_window(conn, id));
        if let Some(reclaim) = state.reclaim {
            give_back(reclaim, wakers);
        }
    }
}

fn give_back(reclaim: Reclaim, wakers: &mut Vec<Waker>) {
    if let Some(completer) = reclaim.completer {
        let result = reclaim
            .memory
            .unpin()
            .map_err(|_| Error::Rdma(RdmaError::Closed));
        wakers.extend(completer.complete(result));
    }
}
