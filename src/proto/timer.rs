//! The two timers of a connection: negotiation, then idle ([MS-SMBD] 3.1.2).

use std::time::{Duration, Instant};

/// One deadline; which timer it is follows from the connection's state. A deadline too far away to
/// be an [`Instant`] never comes.
#[derive(Debug, Clone)]
pub(crate) struct Timer {
    deadline: Option<Instant>,
}

impl Timer {
    pub(crate) fn start(now: Instant, after: Duration) -> Self {
        Self {
            deadline: now.checked_add(after),
        }
    }

    pub(crate) fn restart(&mut self, now: Instant, after: Duration) {
        *self = Self::start(now, after);
    }

    pub(crate) fn stop(&mut self) {
        self.deadline = None;
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// `Connection.KeepaliveRequested` ([MS-SMBD] 3.1.1.1), without the use that the specification also
/// makes of it for answers: an answer must not carry the flag, else two peers would probe each
/// other for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// The peer was heard of within the keepalive interval.
    None,
    /// The next message must ask for an answer.
    Pending,
    /// An answer was asked for and has not come.
    Sent,
}
