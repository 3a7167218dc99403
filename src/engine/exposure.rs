//! Memory that the peer may use for a while, as the client's side of an SMB READ or WRITE holds it.

use std::fmt;
use std::sync::Arc;

use super::exposures::{ExposureId, Reclaim};
use super::reactor::Shared;
use super::shared::ConnShared;
use crate::proto::wire::BufferDescriptorV1;
use crate::rdma::{IoBuf, IoPin, Window};
use crate::transport::{List, Op};

/// Memory exposed to the peer. To be kept until the response to the request has arrived: dropping it takes the peer's
/// right back in the background; [`Exposed::reclaim`] says when that is done and gives the memory back.
pub struct Exposed {
    right: Right,
    memory: Option<IoPin>,
}

/// Several buffers exposed to the peer as one piece of memory; otherwise as [`Exposed`].
pub struct ExposedList {
    right: Right,
    memory: Option<Vec<IoPin>>,
}

/// What the peer was given.
pub(crate) struct Right {
    reactor: Arc<Shared>,
    conn: Arc<ConnShared>,
    id: ExposureId,
    descriptors: List<BufferDescriptorV1>,
}

impl Exposed {
    pub(crate) fn new(right: Right, memory: IoPin) -> Self {
        Self {
            right,
            memory: Some(memory),
        }
    }

    /// The descriptors for a request, in order; together they are the memory. One, unless the device limits what one
    /// describes.
    pub fn descriptors(&self) -> &[BufferDescriptorV1] {
        &self.right.descriptors
    }

    /// Says that the request asks the peer to invalidate the (first) descriptor with its response. From then on, and
    /// until the memory is reclaimed, it is not invalidated by this side: some devices do not survive it when
    /// both sides do. To be called before the request is sent, and only where
    /// [`remote_invalidation`](crate::transport::DirectPlacement::remote_invalidation) allows it.
    pub fn offer_invalidation(&mut self) {
        self.right.offer();
    }

    /// Takes the memory back, after the response to the request has arrived (or when none was ever sent). The
    /// operation ends when the peer's right is verifiably over: it invalidated the memory itself, or this side has,
    /// or the connection is gone. Dropped early, the memory goes back to its pool at that time.
    ///
    /// Before the response it is for a request that has been given up only: a peer that still acts on it is refused,
    /// and with that the connection ends.
    pub fn reclaim(mut self) -> Op<IoBuf> {
        let (op, completer) = self.right.conn.ops().buffers.pending();
        if let Some(memory) = self.memory.take() {
            let completer = Some(completer);
            self.right.reclaim(Reclaim::One { memory, completer });
        }
        op.spinning(self.right.reactor.spin())
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let completer = None;
            self.right.reclaim(Reclaim::One { memory, completer });
        }
    }
}

impl ExposedList {
    pub(crate) fn new(right: Right, memory: Vec<IoPin>) -> Self {
        Self {
            right,
            memory: Some(memory),
        }
    }

    /// The descriptors for a request, in order; together they are the buffers in theirs.
    pub fn descriptors(&self) -> &[BufferDescriptorV1] {
        &self.right.descriptors
    }

    /// As [`Exposed::offer_invalidation`]. The peer invalidates the first descriptor and no other; the rest are
    /// taken back by this side when the memory is reclaimed.
    pub fn offer_invalidation(&mut self) {
        self.right.offer();
    }

    /// As [`Exposed::reclaim`]: ends when the peer's right to all of the buffers is over, and gives them back in their
    /// order.
    pub fn reclaim(mut self) -> Op<Vec<IoBuf>> {
        let (op, completer) = self.right.conn.ops().lists.pending();
        if let Some(memory) = self.memory.take() {
            let completer = Some(completer);
            self.right.reclaim(Reclaim::Many { memory, completer });
        }
        op.spinning(self.right.reactor.spin())
    }
}

impl Drop for ExposedList {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let completer = None;
            self.right.reclaim(Reclaim::Many { memory, completer });
        }
    }
}

impl Right {
    pub(crate) fn new(
        reactor: Arc<Shared>,
        conn: Arc<ConnShared>,
        id: ExposureId,
        windows: &[Window],
    ) -> Self {
        let descriptor = |window: &Window| BufferDescriptorV1 {
            offset: window.address,
            token: window.key,
            length: window.len,
        };
        Self {
            reactor,
            conn,
            id,
            descriptors: windows.iter().map(descriptor).collect(),
        }
    }

    fn offer(&self) {
        self.reactor
            .with_conn(self.conn.conn, |conn, _| conn.exposures.offer(self.id));
    }

    fn reclaim(&self, reclaim: Reclaim) {
        self.reactor.reclaim(self.conn.conn, self.id, reclaim);
    }
}

impl fmt::Debug for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exposed")
            .field("descriptors", &self.descriptors())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ExposedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExposedList")
            .field("descriptors", &self.descriptors())
            .finish_non_exhaustive()
    }
}
