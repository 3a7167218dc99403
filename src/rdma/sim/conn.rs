//! One end of a connection with its queue pair.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::window::Windows;
use crate::rdma::{
    CompletionStatus, ConnId, Domain, IoBuf, LossReason, PeerInfo, QpOptions, RdmaOperation,
    SendRequest,
};

/// Names an end in the whole network; never used again.
pub(super) type End = u64;

#[derive(Debug)]
pub(super) struct Conn {
    /// The provider it belongs to.
    pub(super) node: usize,
    pub(super) id: ConnId,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) phase: Phase,
    pub(super) peer: Option<End>,
    /// The connecting side's request while nobody has adopted it.
    pub(super) request: Option<u64>,
    pub(super) qp: Option<QueuePair>,
    pub(super) windows: Windows,
    pub(super) domain: Option<Arc<dyn Domain>>,
    /// (initiator depth, responder resources) asked for: by ourselves when connecting, by the peer when accepting.
    pub(super) asked: (u16, u16),
    /// The same as agreed.
    pub(super) depths: (u16, u16),
    /// What the accepting side is to report in `Established`.
    pub(super) private_data: Vec<u8>,
    /// Nothing that we send arrives before this: order of the connection.
    pub(super) last_arrival: Instant,
    /// No event is reported before this: order of the events.
    pub(super) last_report: Instant,
    /// We close when the send queue is empty.
    pub(super) draining: bool,
    /// Our orderly end is on its way.
    pub(super) closed: bool,
    /// The peer's orderly end has arrived.
    pub(super) peer_closed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Resolving,
    Resolved,
    Connecting,
    Adopted,
    Accepting,
    Up,
    /// Ended; what was posted comes back after a delay.
    Flushing(LossReason),
}

#[derive(Debug)]
pub(super) struct QueuePair {
    pub(super) options: QpOptions,
    pub(super) receives: VecDeque<IoBuf>,
    pub(super) sends: VecDeque<Outstanding>,
    /// The first of `sends` that was not begun.
    pub(super) unissued: usize,
    pub(super) reads_in_flight: u16,
    /// Executed, unsignalled, and not reported; they still occupy the send queue.
    pub(super) quiet: VecDeque<SendRequest>,
}

#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) token: u64,
    pub(super) request: SendRequest,
    pub(super) status: Option<CompletionStatus>,
}

impl Conn {
    pub(super) fn new(
        node: usize,
        id: ConnId,
        local: SocketAddr,
        remote: SocketAddr,
        phase: Phase,
        now: Instant,
    ) -> Self {
        Self {
            node,
            id,
            local,
            remote,
            phase,
            peer: None,
            request: None,
            qp: None,
            windows: Windows::default(),
            domain: None,
            asked: (0, 0),
            depths: (0, 0),
            private_data: Vec::new(),
            last_arrival: now,
            last_report: now,
            draining: false,
            closed: false,
            peer_closed: false,
        }
    }

    pub(super) fn info(&self, device: &str) -> PeerInfo {
        PeerInfo::new(self.local, self.remote, device)
    }

    /// Whether messages of the peer are taken.
    pub(super) fn receives(&self) -> bool {
        matches!(self.phase, Phase::Accepting | Phase::Up)
    }
}

impl QueuePair {
    pub(super) fn new(options: QpOptions) -> Self {
        Self {
            options,
            receives: VecDeque::new(),
            sends: VecDeque::new(),
            unissued: 0,
            reads_in_flight: 0,
            quiet: VecDeque::new(),
        }
    }

    /// Places of the send queue that are taken.
    pub(super) fn occupied(&self) -> usize {
        self.sends.len() + self.quiet.len()
    }
}

/// What a request does, for errors.
pub(super) fn operation(request: &SendRequest) -> RdmaOperation {
    use crate::rdma::Operation::*;
    match request.operation {
        Send { .. } => RdmaOperation::Send,
        Write { .. } => RdmaOperation::Write,
        Read { .. } => RdmaOperation::Read,
        Bind { .. } => RdmaOperation::Bind,
        Invalidate { .. } => RdmaOperation::Invalidate,
    }
}
