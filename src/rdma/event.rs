//! What a provider reports.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use super::{CompletionStatus, ConnId, IoBuf, ListenerId, RdmaError, SendRequest};

/// Something happened. Events of one connection are in order, except that a receive may come before
/// [`Event::Established`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// Device and route are known: the queue pair can be made.
    Resolved {
        /// The connection.
        conn: ConnId,
    },
    /// A peer wants to connect.
    Incoming {
        /// Where it arrived.
        listener: ListenerId,
        /// To be adopted or rejected; dropping it rejects.
        incoming: Incoming,
    },
    /// The connection is up.
    Established {
        /// The connection.
        conn: ConnId,
        /// What the peer sent along with its connect or accept.
        private_data: Vec<u8>,
        /// RDMA reads that we may have in flight.
        initiator_depth: u16,
        /// RDMA reads of the peer that we serve at a time.
        responder_resources: u16,
    },
    /// A message arrived.
    Received {
        /// The connection.
        conn: ConnId,
        /// A posted receive; its length is the message's.
        buffer: IoBuf,
        /// The key of ours that the message invalidated.
        invalidated: Option<u32>,
    },
    /// A posted receive comes back unused.
    Flushed {
        /// The connection.
        conn: ConnId,
        /// The receive.
        buffer: IoBuf,
    },
    /// A send request is over, and its memory is the caller's again.
    Completed {
        /// The connection.
        conn: ConnId,
        /// The request as it was posted.
        request: SendRequest,
        /// How it ended.
        status: CompletionStatus,
    },
    /// The connection is gone; its last event.
    Disconnected {
        /// The connection.
        conn: ConnId,
        /// Why.
        reason: LossReason,
    },
    /// A listener cannot go on.
    ListenerFailed {
        /// Which.
        listener: ListenerId,
        /// Why.
        error: RdmaError,
    },
}

/// Why a connection is gone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// We closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it in order.
    #[error("the peer closed the connection")]
    Peer,
    /// It failed, or was never made.
    #[error(transparent)]
    Failed(#[from] RdmaError),
}

#[cfg(any(test, feature = "testing", feature = "iwarp"))]
impl LossReason {
    /// [`Provider::close`](super::Provider::close) of a connection whose end waits to be reported: the caller, who has
    /// not heard of it, has closed it.
    pub(crate) fn claim<'e>(events: impl IntoIterator<Item = &'e mut Event>, closed: ConnId) {
        for event in events {
            if let Event::Disconnected { conn, reason } = event
                && *conn == closed
            {
                *reason = Self::Local;
            }
        }
    }
}

/// How to end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// At once; requests that were not executed yet come back flushed.
    Abort,
    /// After the posted requests, and the peer's side of it, or at the deadline.
    Drain(Instant),
}

/// Addresses and device of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// The device's name.
    pub device: String,
}

impl PeerInfo {
    /// From its parts.
    pub fn new(local: SocketAddr, remote: SocketAddr, device: impl Into<String>) -> Self {
        Self {
            local,
            remote,
            device: device.into(),
        }
    }
}

/// A peer's wish to connect, which may be taken to another provider of the same kind. Dropping it rejects.
pub struct Incoming {
    peer: PeerInfo,
    private_data: Vec<u8>,
    request: Box<dyn Any + Send>,
}

impl Incoming {
    /// From the provider's own record, which rejects when it is dropped.
    pub fn new(peer: PeerInfo, private_data: Vec<u8>, request: Box<dyn Any + Send>) -> Self {
        Self {
            peer,
            private_data,
            request,
        }
    }

    /// Who, where, on what.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    /// What the peer sent along.
    pub fn private_data(&self) -> &[u8] {
        &self.private_data
    }

    /// The provider's own record.
    pub fn into_request(self) -> Box<dyn Any + Send> {
        self.request
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming(from {})", self.peer.remote)
    }
}
