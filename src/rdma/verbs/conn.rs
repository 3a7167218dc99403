//! One connection: what belongs to it, and the order in which it is taken apart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cm::CmId;
use super::device::Device;
use super::domain::ProtectionDomain;
use super::nudge::Nudge;
use super::resources::QueuePair;
use super::windows::Windows;
use crate::rdma::inflight::Ring;
use crate::rdma::{
    CompletionStatus, Domain, FabricFilter, IoBuf, LossReason, PeerInfo, RdmaError, RdmaOperation,
    SendRequest,
};

/// How long flushed requests may take to come back before the queue pair is destroyed under them.
pub(super) const FLUSH_TIME: Duration = Duration::from_secs(2);

/// How long to wait for the connection manager to say how the peer left, once the queue has been flushed by it.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// The ACK timeout's exponent: 1.07 s. With 6 retries a link may be gone for 7 s, such as for a switch's failover. Linux
/// has 0.5 s, 2.1 s before 6.3.
pub(super) const ACK_TIMEOUT: u8 = 18;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Address or route are being looked for.
    Resolving,
    /// Resolved or adopted.
    Ready,
    /// `connect` was called.
    Connecting,
    /// `accept` was called.
    Accepting,
    /// Up.
    Established,
    /// To be closed when the send queue is empty.
    Draining,
    /// The peer was told, and is awaited.
    Leaving,
    /// What is posted comes back.
    Flushing,
}

impl State {
    /// Whether receives may be posted.
    pub(super) fn takes_receives(self) -> bool {
        matches!(
            self,
            Self::Ready | Self::Connecting | Self::Accepting | Self::Established
        )
    }

    /// Whether requests may be posted. An acceptor's queue pair is ready before the peer's last handshake message.
    pub(super) fn takes_sends(self) -> bool {
        matches!(self, Self::Accepting | Self::Established)
    }

    /// Whether it is on its way out.
    pub(super) fn closing(self) -> bool {
        matches!(self, Self::Draining | Self::Leaving | Self::Flushing)
    }
}

/// A connection of the provider's table.
pub(super) struct Conn {
    pub(super) state: State,
    pub(super) queue_pair: Option<QueuePair>,
    pub(super) sends: Ring<Posted>,
    pub(super) receives: Ring<IoBuf>,
    pub(super) windows: Windows,
    pub(super) cm: Arc<CmId>,
    /// `connect` is running on a helper thread.
    pub(super) calling: bool,
    /// iWARP: `connect` or `accept` was called, and the connection manager has not said what came of it. Until then its
    /// calls on the id sleep, destroying it among them.
    pub(super) unanswered: bool,
    /// There is a peer to tell when it ends.
    pub(super) joined: bool,
    pub(super) domain: Option<Arc<ProtectionDomain>>,
    /// The device's place in the provider's table.
    pub(super) device: Option<usize>,
    /// The completion queue's place in the device's table, and the places reserved in it.
    pub(super) reserved: Option<(usize, u32)>,
    pub(super) peer: Option<PeerInfo>,
    pub(super) route: Option<Route>,
    /// Since the last signalled request.
    pub(super) unsignalled: usize,
    /// Bytes of payload from which the device must signal a request.
    pub(super) signalled_from: usize,
    pub(super) deadline: Option<Instant>,
    pub(super) reason: Option<LossReason>,
    /// When an iWARP peer that says nothing is nudged.
    pub(super) nudge: Option<Nudge>,
    /// The kernel has destroyed the queue pair, with the device: nothing posted comes back by itself.
    pub(super) gone: bool,
    /// The completion queue was emptied since the queue pair was flushed.
    pub(super) swept: bool,
    /// The connection manager has said that the peer left.
    pub(super) peer_left: bool,
    pub(super) depths: Depths,
    /// What came with the peer's connect.
    pub(super) private_data: Vec<u8>,
}

/// A request in the send queue.
pub(super) struct Posted {
    pub(super) request: SendRequest,
    /// It has a completion of its own: another's says nothing of it.
    pub(super) own: bool,
    /// How it ended; kept while elders are under way, so that all come back in order.
    pub(super) done: Option<CompletionStatus>,
}

/// What is needed to resolve.
pub(super) struct Route {
    pub(super) to: std::net::SocketAddr,
    pub(super) timeout: Duration,
    pub(super) only: Option<FabricFilter>,
}

/// RDMA reads in flight, from our side. What a peer says as 0 is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Depths {
    /// Reads of ours.
    pub(super) initiator: u8,
    /// Reads of the peer's.
    pub(super) responder: u8,
}

impl Depths {
    /// What the connecting peer allows, from its request: seen from our side on every fabric.
    pub(super) fn from_request(initiator: u8, responder: u8) -> Self {
        Self {
            initiator,
            responder,
        }
    }

    /// What the accepting peer allows, from its answer: iWARP has the depths for the peer's side there.
    pub(super) fn from_answer(initiator: u8, responder: u8, iwarp: bool) -> Self {
        if iwarp {
            Self::from_request(responder, initiator)
        } else {
            Self::from_request(initiator, responder)
        }
    }

    /// Cut to what the other side allows.
    pub(super) fn within(self, other: Self) -> Self {
        let cut = |ours: u8, theirs: u8| if theirs == 0 { ours } else { ours.min(theirs) };
        Self {
            initiator: cut(self.initiator, other.initiator),
            responder: cut(self.responder, other.responder),
        }
    }
}

impl Conn {
    pub(super) fn new(cm: CmId, state: State) -> Self {
        Self {
            state,
            queue_pair: None,
            sends: Ring::with_capacity(0),
            receives: Ring::with_capacity(0),
            windows: Windows::default(),
            cm: Arc::new(cm),
            calling: false,
            unanswered: false,
            joined: false,
            domain: None,
            device: None,
            reserved: None,
            peer: None,
            route: None,
            unsignalled: 0,
            signalled_from: usize::MAX,
            deadline: None,
            reason: None,
            nudge: None,
            gone: false,
            swept: false,
            peer_left: false,
            depths: Depths::default(),
            private_data: Vec::new(),
        }
    }

    /// Whether a buffer's domain is this connection's.
    pub(super) fn owns(&self, domain: &Arc<dyn Domain>) -> bool {
        let theirs = Arc::as_ptr(domain).cast::<()>();
        self.domain
            .as_ref()
            .is_some_and(|ours| Arc::as_ptr(ours).cast::<()>() == theirs)
    }

    /// Calls on the id would sleep.
    pub(super) fn held(&self) -> bool {
        self.calling || self.unanswered
    }

    /// When something is due at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        let nudge = self.nudge.as_ref().map(Nudge::at);
        self.deadline.into_iter().chain(nudge).min()
    }

    /// Nothing posted is left.
    pub(super) fn idle(&self) -> bool {
        self.sends.is_empty() && self.receives.is_empty()
    }

    /// Tells the peer that we leave. What is under way comes back, if not by that, then by [`QueuePair::flush`].
    pub(super) fn disconnect(&self, device: Option<&Device>) {
        if !self.sends.is_empty()
            && device.is_some_and(|device| device.quirks.closing_keeps_reads)
            && let Some(queue_pair) = &self.queue_pair
        {
            queue_pair.flush();
        }
        self.cm.disconnect();
    }

    /// Destroys the queue pair. From then on everything posted may be given back.
    pub(super) fn destroy_queue_pair(&mut self) {
        let Some(queue_pair) = self.queue_pair.take() else {
            return;
        };
        queue_pair.flush();
        self.windows.free_all();
        if let Err(error) = queue_pair.destroy() {
            // The device may still write there: what it knows of must never be used for anything else.
            tracing::error!(%error, "a queue pair could not be destroyed; its memory is given up");
            std::mem::forget(std::mem::replace(&mut self.sends, Ring::with_capacity(0)));
            std::mem::forget(std::mem::replace(
                &mut self.receives,
                Ring::with_capacity(0),
            ));
            std::mem::forget(std::mem::take(&mut self.windows));
        }
    }

    /// Why it ends, unless that is known already.
    pub(super) fn blame(&mut self, reason: Option<LossReason>) {
        if self.reason.is_none() {
            self.reason = reason;
        }
    }

    /// The final reason.
    pub(super) fn take_reason(&mut self) -> LossReason {
        let peer_left = self.peer_left;
        self.reason.take().unwrap_or(if peer_left {
            LossReason::Peer
        } else {
            LossReason::Failed(RdmaError::ConnectionLost)
        })
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // Before the rings, the windows and the id, whatever order the fields are in.
        self.destroy_queue_pair();
    }
}

/// What `connect` or `accept` says for the depths: the caller's wish within the device's limits.
pub(super) fn wished(initiator: u16, responder: u16, device: (u16, u16)) -> Depths {
    let byte = |wish: u16, limit: u16| wish.min(limit).min(254) as u8;
    Depths {
        initiator: byte(initiator, device.0),
        responder: byte(responder, device.1),
    }
}

/// Checks the private data's length: the fabric's connection messages have little room.
pub(super) fn check_private_data(
    data: &[u8],
    operation: RdmaOperation,
    iwarp: bool,
) -> Result<(), RdmaError> {
    // IB CM: REQ has 92 bytes of which the RDMA connection manager takes 36, REP has 196. iWARP: MPA allows 512
    // of which Linux hands 255 on, less the enhanced set-up's 4.
    let limit = match (iwarp, operation) {
        (true, _) => 251,
        (false, RdmaOperation::Connect) => 56,
        (false, _) => 196,
    };
    if data.len() > limit {
        return Err(RdmaError::Limit {
            operation,
            asked: data.len() as u64,
            limit: limit as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_seen_from_our_side_on_every_fabric() {
        let ours = Depths {
            initiator: 8,
            responder: 16,
        };
        assert_eq!(Depths::from_request(8, 16), ours);
        assert_eq!(Depths::from_answer(8, 16, false), ours);
        assert_eq!(Depths::from_answer(16, 8, true), ours);
    }

    #[test]
    fn depths_are_cut_to_the_device_and_to_the_peer() {
        let wish = wished(300, 16, (128, 200));
        assert_eq!(
            wish,
            Depths {
                initiator: 128,
                responder: 16
            }
        );
        let peer = Depths {
            initiator: 4,
            responder: 0,
        };
        assert_eq!(
            wish.within(peer),
            Depths {
                initiator: 4,
                responder: 16
            }
        );
        // 255 would mean "as many as possible".
        assert_eq!(
            wished(u16::MAX, 0, (u16::MAX, 9)),
            Depths {
                initiator: 254,
                responder: 0
            }
        );
    }

    #[test]
    fn private_data_has_the_room_of_its_message() {
        let check =
            |len: usize, operation, iwarp| check_private_data(&vec![0; len], operation, iwarp);
        assert!(check(56, RdmaOperation::Connect, false).is_ok());
        assert!(check(57, RdmaOperation::Connect, false).is_err());
        assert!(check(196, RdmaOperation::Accept, false).is_ok());
        assert!(check(251, RdmaOperation::Connect, true).is_ok());
        assert!(check(252, RdmaOperation::Accept, true).is_err());
    }
}
