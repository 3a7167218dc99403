//! Why a connection ended.

use std::fmt;
use std::time::Duration;

use smbdirect::transport::{DisconnectReason, Error};

use crate::backend::Unreachable;
use crate::rewrite::Reason;

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The client closed in order.
    Client,
    /// The connection to the client failed.
    ClientFailed(Error),
    /// The server closed in order.
    Backend,
    /// The server closed in order, and had never said anything.
    TurnedAway,
    /// The connection to the server failed.
    BackendFailed(Error),
    /// There was none.
    Unreachable(Unreachable),
    /// The server owes an answer and said nothing at all for this time.
    BackendSilent(Duration),
    /// A message that cannot be forwarded.
    Rule(Reason),
    /// There is no memory for data.
    NoMemory(Error),
    /// The gateway was told to end, and nothing was under way any more.
    Drained,
    /// The gateway was told to end, and its time was over.
    CutOff,
}

impl Ending {
    /// What the failure of something with the client says.
    pub(crate) fn of_client(error: Error) -> Self {
        match error {
            Error::Closed(DisconnectReason::Peer) => Self::Client,
            error => Self::ClientFailed(error),
        }
    }

    /// What the failure of something with the server says.
    pub(crate) fn of_backend(error: Error) -> Self {
        match error {
            Error::Closed(DisconnectReason::Peer) => Self::Backend,
            error => Self::BackendFailed(error),
        }
    }

    /// Whether the client is still there to take what it has been answered.
    pub(crate) fn leaves_client(&self) -> bool {
        !matches!(self, Self::ClientFailed(_) | Self::CutOff)
    }

    /// Whether the server is still there to take what it has been asked.
    pub(crate) fn leaves_backend(&self) -> bool {
        !matches!(
            self,
            Self::BackendFailed(_) | Self::BackendSilent(_) | Self::CutOff
        )
    }
}

impl From<Reason> for Ending {
    fn from(reason: Reason) -> Self {
        Self::Rule(reason)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client => f.write_str("closed by the client"),
            Self::ClientFailed(error) => write!(f, "client: {error}"),
            Self::Backend => f.write_str("closed by the backend"),
            Self::TurnedAway => f.write_str(
                "closed by the backend without a word: does it let this host in (Samba: `hosts \
                 allow`)?",
            ),
            Self::BackendFailed(Error::Closed(DisconnectReason::BadFraming)) => f.write_str(
                "the backend does not speak SMB over TCP: --backend names another service, or it \
                 refuses this host (Samba: `hosts deny`)",
            ),
            Self::BackendFailed(error) => write!(f, "backend: {error}"),
            Self::Unreachable(error) => write!(f, "the backend cannot be reached: {error}"),
            Self::BackendSilent(time) => write!(
                f,
                "the backend owes an answer and said nothing for {} s (--backend-timeout): is it \
                 an SMB server, and alive?",
                time.as_secs()
            ),
            Self::Rule(reason) => reason.fmt(f),
            Self::NoMemory(error) => write!(
                f,
                "no memory for data: {error}; see --max-memory-per-client and `ulimit -l`"
            ),
            Self::Drained => f.write_str("the gateway ends"),
            Self::CutOff => f.write_str("the gateway ends, and the time for it (--drain) is over"),
        }
    }
}
