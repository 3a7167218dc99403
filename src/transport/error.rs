//! Errors by fault, and why a connection ended.

use std::io;

use super::{BadDescriptors, SteeringTag};
use crate::proto;
use crate::rdma::RdmaError;

/// What went wrong, by whose fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection has ended.
    #[error("the connection has ended: {0}")]
    Closed(DisconnectReason),
    /// An RDMA operation failed.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
    /// Connecting to the right port failed, and so did the other one.
    #[error("port {first_port}: {first}; port {second_port}: {second}")]
    BothPorts {
        /// The port that was tried first.
        first_port: u16,
        /// How that ended.
        first: Box<Error>,
        /// The port that was tried next.
        second_port: u16,
        /// How that ended.
        second: Box<Error>,
    },
    /// The peer's descriptors are not valid; nothing was posted and the connection lives.
    #[error(transparent)]
    BadDescriptors(#[from] BadDescriptors),
    /// The caller asked for something that cannot be.
    #[error(transparent)]
    ApiMisuse(#[from] ApiMisuse),
    /// The configuration is not valid.
    #[error(transparent)]
    Config(#[from] proto::ConfigError),
    /// The time given for waiting is over; nothing else happened.
    #[error("nothing happened within the time given")]
    WouldBlock,
    /// The system refused.
    #[error("{}", io::Error::from_raw_os_error(*errno))]
    Os {
        /// The error number.
        errno: i32,
    },
}

impl Error {
    /// Whether the connection is over with it.
    pub fn ends_connection(&self) -> bool {
        match self {
            Self::Closed(_) | Self::BothPorts { .. } => true,
            Self::Rdma(RdmaError::WrongDomain) => false,
            Self::Rdma(_) => true,
            Self::BadDescriptors(_)
            | Self::ApiMisuse(_)
            | Self::Config(_)
            | Self::WouldBlock
            | Self::Os { .. } => false,
        }
    }

    pub(crate) fn os(error: &io::Error) -> Self {
        Self::Os {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// The caller's mistakes; nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiMisuse {
    /// An empty message.
    #[error("an empty message cannot be sent")]
    EmptyMessage,
    /// A message above the peer's limit.
    #[error("a message of {len} bytes cannot be sent: the peer takes {max}")]
    MessageTooLarge {
        /// Its bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A range that is not within the buffer.
    #[error("the range {start}..{end} is not within a buffer of {len} bytes")]
    RangeOutside {
        /// Where it starts.
        start: usize,
        /// Where it ends.
        end: usize,
        /// Bytes of the buffer.
        len: usize,
    },
    /// A transfer above the negotiated limit.
    #[error("a transfer of {len} bytes is above the negotiated {max}")]
    TransferTooLarge {
        /// Its bytes.
        len: u64,
        /// The limit in bytes.
        max: u32,
    },
    /// An exposure of no bytes.
    #[error("an empty buffer cannot be exposed")]
    EmptyExposure,
}

/// Why a message was not accepted. Nothing of it was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrySendError {
    /// The queue has no room now: wait with [`Transport::poll_ready`](super::Transport::poll_ready).
    #[error("the send queue is full")]
    Full,
    /// The caller's mistake.
    #[error(transparent)]
    ApiMisuse(#[from] ApiMisuse),
    /// The connection has ended, or is being closed.
    #[error("the connection has ended: {0}")]
    Closed(DisconnectReason),
    /// The buffer is registered elsewhere.
    #[error(transparent)]
    Rdma(RdmaError),
}

impl From<TrySendError> for Error {
    fn from(error: TrySendError) -> Self {
        match error {
            TrySendError::Full => Self::WouldBlock,
            TrySendError::ApiMisuse(misuse) => Self::ApiMisuse(misuse),
            TrySendError::Closed(reason) => Self::Closed(reason),
            TrySendError::Rdma(error) => Self::Rdma(error),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as Kind;
        let kind = match &error {
            Error::Closed(reason) => match reason {
                DisconnectReason::Local => Kind::NotConnected,
                DisconnectReason::Peer => Kind::ConnectionReset,
                DisconnectReason::Protocol(proto::DisconnectReason::Timeout(_)) => Kind::TimedOut,
                DisconnectReason::Protocol(_)
                | DisconnectReason::BadFraming
                | DisconnectReason::MessageTooLarge { .. } => Kind::InvalidData,
                DisconnectReason::CutOff => Kind::UnexpectedEof,
                DisconnectReason::Os { errno } => Self::from_raw_os_error(*errno).kind(),
                _ => Kind::ConnectionAborted,
            },
            Error::Rdma(RdmaError::Refused | RdmaError::Rejected { .. }) => Kind::ConnectionRefused,
            Error::Rdma(RdmaError::Timeout(_)) => Kind::TimedOut,
            Error::Rdma(RdmaError::AddressInUse(_)) => Kind::AddrInUse,
            Error::Rdma(RdmaError::Permission(_)) => Kind::PermissionDenied,
            Error::ApiMisuse(_) | Error::Config(_) | Error::BadDescriptors(_) => Kind::InvalidInput,
            Error::WouldBlock => Kind::WouldBlock,
            Error::Os { errno } => return Self::from_raw_os_error(*errno),
            _ => Kind::Other,
        };
        Self::new(kind, error)
    }
}

/// Why a connection ended; it never changes once it is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it in order.
    #[error("closed by the peer")]
    Peer,
    /// A rule of the protocol, a timer, or the negotiation ended it.
    #[error(transparent)]
    Protocol(#[from] proto::DisconnectReason),
    /// The RDMA connection failed.
    #[error(transparent)]
    Rdma(#[from] RdmaError),
    /// The peer invalidated memory that this side has not exposed to it.
    #[error("the peer invalidated {0:?}, which is no exposed memory of this connection")]
    UnknownInvalidation(SteeringTag),
    /// The reactor that drove it was shut down.
    #[error("its reactor was shut down")]
    ReactorGone,
    /// The peer's TCP framing is not valid.
    #[error("the peer's TCP framing is not valid")]
    BadFraming,
    /// The TCP connection ended within a message.
    #[error("the connection ended in the middle of a message")]
    CutOff,
    /// The peer announced a message above the limit.
    #[error("the peer announced a message of {len} bytes; this side takes {max}")]
    MessageTooLarge {
        /// Bytes announced.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The TCP connection failed.
    #[error("{}", io::Error::from_raw_os_error(*errno))]
    Os {
        /// The error number.
        errno: i32,
    },
}
