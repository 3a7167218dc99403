//! Errors by fault, and why a connection ended.

use std::io;
use std::net::SocketAddr;

use super::{BadDescriptors, SteeringTag};
use crate::proto;
use crate::rdma::{Cause, ProviderKind, RdmaError};

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
    #[error("{}", Cause(*errno))]
    Os {
        /// The error number.
        errno: i32,
    },
    /// The system does not let this process listen there by TCP.
    #[error("{}", listen_text(*address, *errno))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The error number.
        errno: i32,
    },
}

/// As the RDMA providers say it.
fn listen_text(address: SocketAddr, errno: i32) -> String {
    match errno {
        libc::EADDRINUSE => RdmaError::AddressInUse(address).to_string(),
        libc::EACCES => RdmaError::PrivilegedPort(address).to_string(),
        libc::EADDRNOTAVAIL => RdmaError::NotLocal(address).to_string(),
        errno => format!("cannot listen on {address}: {}", Cause(errno)),
    }
}

impl Error {
    /// Whether the connection is over with it.
    pub fn ends_connection(&self) -> bool {
        match self {
            Self::Closed(_) | Self::BothPorts { .. } => true,
            Self::Rdma(error) => error.ends_connection(),
            Self::BadDescriptors(_)
            | Self::ApiMisuse(_)
            | Self::Config(_)
            | Self::WouldBlock
            | Self::Os { .. }
            | Self::Listen { .. } => false,
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
    /// A registration of no bytes.
    #[error("empty memory cannot be registered")]
    EmptyRegistration,
    /// An exposure that no array of descriptors describes.
    #[error(
        "{count} descriptors would be needed, {} can be sent: use fewer and larger buffers",
        super::MAX_DESCRIPTORS
    )]
    TooManyDescriptors {
        /// How many there would be.
        count: usize,
    },
    /// A NUMA node that this machine does not have.
    #[error("there is no NUMA node {node}; `lscpu` shows those of this machine")]
    NoNumaNode {
        /// Its number.
        node: u32,
    },
    /// A group of no reactors.
    #[error("a group needs at least one reactor")]
    EmptyGroup,
    /// Reactors of different providers in one group.
    #[error("reactors of {first} and of {second} cannot be in one group")]
    MixedGroup {
        /// The provider of the first one.
        first: ProviderKind,
        /// Another one's.
        second: ProviderKind,
    },
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
                DisconnectReason::NoAnswer => Kind::TimedOut,
                DisconnectReason::Os { errno } => Self::from_raw_os_error(*errno).kind(),
                _ => Kind::ConnectionAborted,
            },
            Error::Rdma(RdmaError::Refused | RdmaError::Rejected { .. }) => Kind::ConnectionRefused,
            Error::Rdma(RdmaError::Timeout(_)) => Kind::TimedOut,
            Error::Rdma(RdmaError::AddressInUse(_)) => Kind::AddrInUse,
            Error::Rdma(RdmaError::Permission(_) | RdmaError::PrivilegedPort(_)) => {
                Kind::PermissionDenied
            }
            Error::Rdma(RdmaError::NotLocal(_)) => Kind::AddrNotAvailable,
            Error::Rdma(RdmaError::LockedMemory { .. } | RdmaError::MemoryBudget { .. }) => {
                Kind::OutOfMemory
            }
            Error::Rdma(RdmaError::Unreachable) => Kind::HostUnreachable,
            Error::Rdma(
                RdmaError::NoDevice(_)
                | RdmaError::NoDevices
                | RdmaError::WrongDevice { .. }
                | RdmaError::WrongFabric { .. }
                | RdmaError::LibraryMissing,
            ) => Kind::NotFound,
            Error::Rdma(
                RdmaError::VerbsNotBuilt | RdmaError::IwarpNotBuilt | RdmaError::Unsupported(_),
            ) => Kind::Unsupported,
            Error::Rdma(RdmaError::NoDescriptors) => Self::from_raw_os_error(libc::EMFILE).kind(),
            Error::Rdma(RdmaError::Busy(_)) => Kind::ResourceBusy,
            Error::Rdma(RdmaError::Closed) => Kind::NotConnected,
            Error::Rdma(RdmaError::ConnectionLost | RdmaError::Terminated { .. }) => {
                Kind::ConnectionReset
            }
            Error::Rdma(RdmaError::FabricViolation { .. } | RdmaError::BadHandshake) => {
                Kind::InvalidData
            }
            Error::Rdma(RdmaError::Os { errno, .. }) | Error::Listen { errno, .. } => {
                Self::from_raw_os_error(*errno).kind()
            }
            Error::ApiMisuse(_) | Error::Config(_) | Error::BadDescriptors(_) => Kind::InvalidInput,
            Error::WouldBlock => Kind::WouldBlock,
            Error::BothPorts { first, .. } => Self::from((**first).clone()).kind(),
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
    /// Unfinished messages of all connections took more memory than the reactor may use for them.
    #[error(
        "unfinished messages of all connections took more than {limit} bytes; the limit is \
         ReactorOptions::reassembly_budget"
    )]
    ReassemblyBudget {
        /// The limit in bytes.
        limit: usize,
    },
    /// It was negotiated, and as many others waited to be accepted as may.
    #[error(
        "{limit} negotiated connections wait to be accepted already: the application accepts too slowly, or \
         ChannelOptions::accept_backlog is too low"
    )]
    NotAccepted {
        /// The limit on those that wait.
        limit: usize,
    },
    /// The reactor that drove it was shut down.
    #[error("its reactor was shut down")]
    ReactorGone,
    /// The peer's TCP framing is not valid.
    #[error("the peer's TCP framing is not valid: is it SMB2 without NetBIOS, as port 445 has it?")]
    BadFraming,
    /// The TCP connection ended within a message.
    #[error("the connection ended in the middle of a message: the peer may know why")]
    CutOff,
    /// TCP heard nothing of the peer, or the peer took nothing, for longer than the keepalive
    /// allows.
    #[error(
        "the peer has not answered, or has taken nothing, within keepalive interval and timeout: \
         it hangs, or it or the network is down"
    )]
    NoAnswer,
    /// The peer announced a message above the limit.
    #[error(
        "the peer announced a message of {len} bytes; this side takes {max} \
         (TcpOptions::max_receive)"
    )]
    MessageTooLarge {
        /// Bytes announced.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// The TCP connection failed.
    #[error("the TCP connection failed: {}", Cause(*errno))]
    Os {
        /// The error number.
        errno: i32,
    },
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::rdma::RdmaOperation;

    /// What was refused is over, and the connection is not.
    #[test]
    fn refusals_leave_the_connection() {
        let os = |operation| RdmaError::Os {
            operation,
            errno: libc::ENOMEM,
        };
        let locked = RdmaError::LockedMemory {
            limit: 1,
            needed: 2,
        };
        let many = RdmaError::Limit {
            operation: RdmaOperation::Bind,
            asked: 2,
            limit: 1,
        };
        for refused in [
            os(RdmaOperation::AllocateMemory),
            os(RdmaOperation::Register),
            RdmaError::Unsupported(RdmaOperation::Register),
            RdmaError::WrongDomain,
            locked,
            many,
        ] {
            assert!(!Error::from(refused.clone()).ends_connection(), "{refused}");
        }
        for fatal in [
            os(RdmaOperation::Send),
            RdmaError::ConnectionLost,
            RdmaError::DeviceRemoved,
            RdmaError::Closed,
        ] {
            assert!(Error::from(fatal.clone()).ends_connection(), "{fatal}");
        }
    }

    #[test]
    fn io_errors_have_the_kind_that_programs_look_at() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 445));
        let too_many = io::Error::from_raw_os_error(libc::EMFILE).kind();
        for (error, kind) in [
            (RdmaError::NoDevices, io::ErrorKind::NotFound),
            (RdmaError::NoDevice(address), io::ErrorKind::NotFound),
            (RdmaError::LibraryMissing, io::ErrorKind::NotFound),
            (RdmaError::VerbsNotBuilt, io::ErrorKind::Unsupported),
            (
                RdmaError::Unsupported(RdmaOperation::Bind),
                io::ErrorKind::Unsupported,
            ),
            (RdmaError::NoDescriptors, too_many),
            (RdmaError::Refused, io::ErrorKind::ConnectionRefused),
            (RdmaError::Closed, io::ErrorKind::NotConnected),
        ] {
            let text = error.to_string();
            let as_io = io::Error::from(Error::from(error));
            assert_eq!((as_io.kind(), as_io.to_string()), (kind, text));
        }
    }

    #[test]
    fn what_the_machine_refuses_says_what_to_do() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 445));
        for (errno, words, kind) in [
            (
                libc::EADDRINUSE,
                "choose another port",
                io::ErrorKind::AddrInUse,
            ),
            (
                libc::EACCES,
                "CAP_NET_BIND_SERVICE",
                io::ErrorKind::PermissionDenied,
            ),
            (
                libc::EADDRNOTAVAIL,
                "ip address",
                io::ErrorKind::AddrNotAvailable,
            ),
            (
                libc::EMFILE,
                "ulimit -n",
                io::Error::from_raw_os_error(libc::EMFILE).kind(),
            ),
        ] {
            let error = Error::Listen { address, errno };
            let text = error.to_string();
            assert!(
                text.contains("127.0.0.1:445") && text.contains(words),
                "{text}"
            );
            assert_eq!(io::Error::from(error).kind(), kind);
        }
        for (errno, words) in [
            (libc::EMFILE, "LimitNOFILE="),
            (libc::ENOMEM, "MemoryMax="),
            (libc::EAGAIN, "TasksMax="),
        ] {
            let text = Error::Os { errno }.to_string();
            assert!(text.contains(words), "{text}");
            let operation = RdmaOperation::CreateQueuePair;
            let text = RdmaError::Os { operation, errno }.to_string();
            assert!(text.contains(words), "{text}");
        }
    }
}
