//! What can go wrong with RDMA, by cause and with the remedy.

use std::fmt;
use std::net::SocketAddr;

use super::FabricFilter;

/// A failure of an RDMA operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// The system refused.
    #[error("{operation} failed: {}", std::io::Error::from_raw_os_error(*errno))]
    Os {
        /// What was tried.
        operation: RdmaOperation,
        /// The error number.
        errno: i32,
    },
    /// The listening address is taken.
    #[error("{0} is in use: stop the program that listens there, or choose another port")]
    AddressInUse(SocketAddr),
    /// No RDMA device serves the address.
    #[error(
        "no RDMA device serves {0}: see `rdma link` for the devices and `ip address` for their addresses"
    )]
    NoDevice(SocketAddr),
    /// The device that serves the address is of another fabric than asked for.
    #[error("the device that serves {address} is not one of those asked for ({wanted:?})")]
    WrongFabric {
        /// The address.
        address: SocketAddr,
        /// What was asked for.
        wanted: FabricFilter,
    },
    /// The crate was built without this provider.
    #[error("built without verbs: rebuild with `--features verbs` (needs cmake and libclang)")]
    VerbsNotBuilt,
    /// The crate was built without this provider.
    #[error("built without iwarp: rebuild with `--features iwarp`")]
    IwarpNotBuilt,
    /// The user-space RDMA libraries are not there.
    #[error(
        "libibverbs or librdmacm cannot be loaded: install rdma-core (Debian: apt install rdma-core ibverbs-providers)"
    )]
    LibraryMissing,
    /// No access to a device node.
    #[error(
        "no permission for {0}: give the user access to it (often: group rdma, or a udev rule)"
    )]
    Permission(String),
    /// The limit on locked memory is too low.
    #[error(
        "{needed} more bytes cannot be locked (limit {limit}): raise it with `ulimit -l`, LimitMEMLOCK= of the unit, or /etc/security/limits.d"
    )]
    LockedMemory {
        /// The limit in bytes.
        limit: u64,
        /// Bytes asked for.
        needed: u64,
    },
    /// The process has no file descriptors left.
    #[error(
        "no file descriptors left: raise the limit with `ulimit -n` or LimitNOFILE= of the unit"
    )]
    NoDescriptors,
    /// Nobody listens there.
    #[error("connection refused: nothing listens there, or not with RDMA")]
    Refused,
    /// The peer's server rejected the connection.
    #[error("the peer rejected the connection")]
    Rejected {
        /// What it sent along.
        private_data: Vec<u8>,
    },
    /// There is no way to the peer.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// Nothing happened in time.
    #[error("{0} timed out")]
    Timeout(RdmaOperation),
    /// Too many unfinished handshakes.
    #[error("too many unfinished handshakes")]
    TooManyHalfOpen,
    /// The peer's handshake is not understood.
    #[error("the peer's connection set-up is not valid")]
    BadHandshake,
    /// The device cannot do it.
    #[error("the device cannot {0}")]
    Unsupported(RdmaOperation),
    /// More was asked for than the device has.
    #[error("{operation}: {asked} asked for, the device allows {limit}")]
    Limit {
        /// What was tried.
        operation: RdmaOperation,
        /// How much was asked for.
        asked: u64,
        /// How much there is.
        limit: u64,
    },
    /// Memory of another domain.
    #[error("the buffer is registered in another domain: allocate it on the channel that uses it")]
    WrongDomain,
    /// A request failed, and with it the connection.
    #[error("{operation} ended with {status}")]
    Completion {
        /// The request.
        operation: RdmaOperation,
        /// How it ended.
        status: CompletionStatus,
    },
    /// The peer ended the stream with an iWARP Terminate message.
    #[error("the peer terminated the stream: layer {layer}, type {error_type}, code {code:#04x}{}", operation.map(|o| format!(" ({o})")).unwrap_or_default())]
    Terminated {
        /// 0 RDMAP, 1 DDP, 2 MPA.
        layer: u8,
        /// Type of the error within the layer.
        error_type: u8,
        /// The error.
        code: u8,
        /// The request of ours that the message identifies.
        operation: Option<RdmaOperation>,
    },
    /// The peer broke the rules of the fabric; we ended the stream.
    #[error(
        "the peer broke a rule of the fabric: layer {layer}, type {error_type}, code {code:#04x}"
    )]
    FabricViolation {
        /// 0 RDMAP, 1 DDP, 2 MPA.
        layer: u8,
        /// Type of the error within the layer.
        error_type: u8,
        /// The error.
        code: u8,
    },
    /// The network connection broke.
    #[error("the network connection broke")]
    ConnectionLost,
    /// The device was removed.
    #[error("the device was removed")]
    DeviceRemoved,
    /// The id means nothing any more.
    #[error("the connection is gone")]
    Closed,
    /// It is not the time for it.
    #[error("{0} is not possible in this state")]
    State(RdmaOperation),
}

impl RdmaError {
    /// The calling thread's last system error.
    pub fn last_os(operation: RdmaOperation) -> Self {
        Self::os(operation, &std::io::Error::last_os_error())
    }

    /// A system error; those with a remedy of their own get their own variant.
    pub fn os(operation: RdmaOperation, error: &std::io::Error) -> Self {
        match error.raw_os_error().unwrap_or(libc::EIO) {
            libc::EMFILE | libc::ENFILE => Self::NoDescriptors,
            libc::ECONNREFUSED => Self::Refused,
            libc::ENETUNREACH | libc::EHOSTUNREACH => Self::Unreachable,
            libc::ECONNRESET | libc::EPIPE => Self::ConnectionLost,
            libc::ETIMEDOUT => Self::Timeout(operation),
            errno => Self::Os { operation, errno },
        }
    }
}

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RdmaOperation {
    /// Opening the provider or a device.
    Open,
    /// Allocating memory.
    AllocateMemory,
    /// Registering memory.
    Register,
    /// Listening.
    Listen,
    /// Finding address and route.
    Resolve,
    /// Making a protection domain.
    CreateDomain,
    /// Making a completion queue.
    CreateCompletionQueue,
    /// Making a queue pair.
    CreateQueuePair,
    /// Connecting.
    Connect,
    /// Accepting.
    Accept,
    /// Posting or executing a receive.
    Receive,
    /// Posting or executing a Send.
    Send,
    /// Posting or executing an RDMA Write.
    Write,
    /// Posting or executing an RDMA Read.
    Read,
    /// Binding a window.
    Bind,
    /// Invalidating a window.
    Invalidate,
    /// Waiting for events.
    Wait,
    /// Closing.
    Close,
}

impl fmt::Display for RdmaOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open the device",
            Self::AllocateMemory => "allocate memory",
            Self::Register => "register memory",
            Self::Listen => "listen",
            Self::Resolve => "resolve the address",
            Self::CreateDomain => "create a protection domain",
            Self::CreateCompletionQueue => "create a completion queue",
            Self::CreateQueuePair => "create a queue pair",
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Receive => "receive",
            Self::Send => "send",
            Self::Write => "RDMA write",
            Self::Read => "RDMA read",
            Self::Bind => "bind a window",
            Self::Invalidate => "invalidate a window",
            Self::Wait => "wait for events",
            Self::Close => "close",
        })
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CompletionStatus {
    /// Done. For a Send or a Write: the memory is reusable, not: the peer has it.
    Success,
    /// Not executed: the connection ended before.
    Flushed,
    /// Local memory was not registered for it.
    LocalAccess,
    /// The request or the received message did not fit.
    LocalLength,
    /// The peer's memory does not allow it.
    RemoteAccess,
    /// The peer could not carry it out.
    RemoteOperation,
    /// The peer had no receive posted.
    ReceiverNotReady,
    /// The peer did not answer.
    RetriesExceeded,
    /// A window could not be bound.
    Bind,
    /// Another failure, with the device's own number.
    Other(u32),
}

impl fmt::Display for CompletionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Flushed => f.write_str("flushed"),
            Self::LocalAccess => f.write_str("a local access error"),
            Self::LocalLength => f.write_str("a local length error"),
            Self::RemoteAccess => f.write_str("a remote access error"),
            Self::RemoteOperation => f.write_str("a remote operation error"),
            Self::ReceiverNotReady => f.write_str("no receive posted at the peer"),
            Self::RetriesExceeded => f.write_str("no answer from the peer"),
            Self::Bind => f.write_str("a window bind error"),
            Self::Other(code) => write!(f, "status {code}"),
        }
    }
}

/// Why posting stopped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The queue has no room: completions make some.
    #[error("the queue is full")]
    Full,
    /// The connection is not, or no longer, able to take requests.
    #[error("the connection takes no requests")]
    Closed,
    /// A buffer or window does not fit the connection.
    #[error("the request does not fit the connection")]
    Invalid,
    /// The system refused.
    #[error(transparent)]
    Failed(#[from] RdmaError),
}
