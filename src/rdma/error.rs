//! What can go wrong with RDMA, by cause and with the remedy.

use std::fmt;
use std::net::SocketAddr;

use super::FabricFilter;

/// A failure of an RDMA operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// The system refused.
    #[error("{operation} failed: {}{}", Cause(*errno), of_queues(*operation, *errno))]
    Os {
        /// What was tried.
        operation: RdmaOperation,
        /// The error number.
        errno: i32,
    },
    /// The listening address is taken.
    #[error("{0} is in use: stop the program that listens there, or choose another port")]
    AddressInUse(SocketAddr),
    /// Only privileged processes may listen on the port.
    #[error(
        "listening on {0} needs privileges: choose a port from 1024 on, give the program \
         CAP_NET_BIND_SERVICE (AmbientCapabilities= of the unit, or setcap), or lower \
         net.ipv4.ip_unprivileged_port_start"
    )]
    PrivilegedPort(SocketAddr),
    /// The address is none of this machine's.
    #[error("{0} is no address of this machine: `ip address` shows those that are")]
    NotLocal(SocketAddr),
    /// No RDMA device serves the address.
    #[error(
        "no RDMA device serves {0}: see `rdma link` for the devices and `ip address` for their addresses"
    )]
    NoDevice(SocketAddr),
    /// There is no RDMA device that can be used, whatever the address.
    #[error(
        "this machine has no RDMA device that is up and has an address (`rdma link`, `ip address`): a card needs its \
         driver, and `modprobe rdma_ucm`; `rdma link add rxe0 type rxe netdev INTERFACE` makes one in software"
    )]
    NoDevices,
    /// The device that serves the address is of another fabric than asked for.
    #[error("the device that serves {address} is not one of those asked for ({wanted:?})")]
    WrongFabric {
        /// The address.
        address: SocketAddr,
        /// What was asked for.
        wanted: FabricFilter,
    },
    /// The address is not that of the device asked for.
    #[error(
        "{address} is no address of the device {wanted}: `rdma link` shows which interface it serves"
    )]
    WrongDevice {
        /// The address.
        address: SocketAddr,
        /// The name of the device.
        wanted: String,
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
    /// The reactor's own limit on registered memory is reached.
    #[error(
        "{needed} more bytes cannot be registered: {used} of {limit} are in use; release buffers, or raise `ReactorOptions::max_registered_memory`"
    )]
    MemoryBudget {
        /// The limit in bytes.
        limit: u64,
        /// Bytes that are registered already.
        used: u64,
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
    /// Too much of it waits already.
    #[error("{0}: too many wait already, try again later")]
    Busy(RdmaOperation),
    /// The peer's handshake is not understood.
    #[error(
        "the peer's connection set-up is not valid: is it an iWARP peer? One that knows only \
         revision 1 of MPA cannot do with `IwarpConfig::peer_to_peer`"
    )]
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
    #[error(
        "the peer terminated the stream for {} ({layer}/{error_type}/{code:#04x}){}",
        terminate_text(*layer, *error_type, *code),
        operation.map(|o| format!(", at our {o}")).unwrap_or_default()
    )]
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
        "the peer broke a rule of the fabric: {} ({layer}/{error_type}/{code:#04x})",
        terminate_text(*layer, *error_type, *code)
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
    /// The device was removed (`rdma link del`, an unloaded driver, a pulled card). It may come back, and be used again.
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

    /// Whether the connection that it happened on is over with it. What could not be allocated,
    /// registered or exposed was refused, and nothing else happened.
    pub fn ends_connection(&self) -> bool {
        match self {
            Self::WrongDomain
            | Self::LockedMemory { .. }
            | Self::MemoryBudget { .. }
            | Self::Busy(_)
            | Self::Limit { .. } => false,
            Self::Os { operation, .. } | Self::Unsupported(operation) => !matches!(
                operation,
                RdmaOperation::AllocateMemory | RdmaOperation::Register
            ),
            // It did not come to a connection.
            Self::NoDescriptors
            | Self::AddressInUse(_)
            | Self::PrivilegedPort(_)
            | Self::NotLocal(_)
            | Self::NoDevice(_)
            | Self::NoDevices
            | Self::WrongFabric { .. }
            | Self::WrongDevice { .. }
            | Self::VerbsNotBuilt
            | Self::IwarpNotBuilt
            | Self::LibraryMissing
            | Self::Permission(_)
            | Self::Refused
            | Self::Rejected { .. }
            | Self::Unreachable
            | Self::TooManyHalfOpen
            | Self::BadHandshake => true,
            Self::Timeout(_)
            | Self::Completion { .. }
            | Self::Terminated { .. }
            | Self::FabricViolation { .. }
            | Self::ConnectionLost
            | Self::DeviceRemoved
            | Self::Closed
            | Self::State(_) => true,
        }
    }
}

/// The error that an iWARP Terminate names (RFC 5040 4.8, 5041, 5044, 6581). In some of them it is
/// SMB Direct's own limits that were passed.
fn terminate_text(layer: u8, error_type: u8, code: u8) -> &'static str {
    match (layer, error_type, code) {
        (0, 0, _) => "a failure of its own",
        (0, 1, 0x00) | (1, 1, 0x00) => "a steering tag that is not valid, or not any more",
        (0, 1, 0x01) | (1, 1, 0x01) => "an access outside of what a steering tag covers",
        (0, 1, 0x02) => "an access that a steering tag does not allow",
        (0, 1, 0x03) | (1, 1, 0x02) => "a steering tag of another connection",
        (0, 1, 0x04) | (1, 1, 0x03) => "an access beyond the end of the address space",
        (0, 1 | 2, 0x09) => "a steering tag that cannot be invalidated",
        (0, 1, _) => "a violation of protection",
        (0, 2, 0x05) => "an unknown version of RDMAP",
        (0, 2, 0x06) => "an unexpected opcode",
        (0, 2, 0x07) => "an error of the stream, such as more RDMA reads than agreed",
        (0, 2, 0x08) => "a failure of the whole device",
        (0, 2, _) => "an error of an operation",
        (1, 0, _) => "a failure of its DDP layer",
        (1, 1, 0x04) | (1, 2, 0x06) => "an unknown version of DDP",
        (1, 2, 0x01) => "an invalid queue number",
        (1, 2, 0x02) => "a message without a receive posted for it: more were sent than granted",
        (1, 2, 0x03) => "a message number out of order",
        (1, 2, 0x04) => "an invalid offset in a message",
        (1, 2, 0x05) => "a message longer than the receive posted for it",
        (2, 0, 0x01) => "the loss of the TCP connection",
        (2, 0, 0x02) => "a checksum that does not match: the network changes data",
        (2, 0, 0x03) => "an invalid frame length or marker",
        (2, 0, 0x04) => "an invalid MPA frame at the start",
        (2, 0, 0x05) => "a failure of its MPA layer",
        (2, 0, 0x06) => "more RDMA reads asked for than are served",
        (2, 0, 0x07) => "no ready-to-receive message in common",
        _ => "an error that no RFC defines",
    }
}

/// What else it may be: cards have their queues in memory of the process, which is locked.
fn of_queues(operation: RdmaOperation, errno: i32) -> &'static str {
    match (operation, errno) {
        (RdmaOperation::CreateCompletionQueue | RdmaOperation::CreateQueuePair, libc::ENOMEM) => {
            "; or the queues are more than may be locked: raise the limit with `ulimit -l`, \
             LimitMEMLOCK= of the unit, or /etc/security/limits.d"
        }
        _ => "",
    }
}

/// A number of the system's, as text with what can be done about it.
pub(crate) struct Cause(pub(crate) i32);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))?;
        f.write_str(match self.0 {
            libc::EMFILE | libc::ENFILE => {
                ": raise the limit with `ulimit -n` or LimitNOFILE= of the unit"
            }
            libc::ENOMEM | libc::ENOBUFS => {
                ": this machine, or the control group, is short of memory; close connections, or \
                 raise MemoryMax= of the unit"
            }
            libc::EAGAIN => {
                ": where a thread was to be started, raise `ulimit -u` or TasksMax= of the unit"
            }
            libc::ECONNREFUSED => ": nothing listens there",
            libc::ETIMEDOUT => {
                ": no answer; is the peer up, and lets a firewall its answers through?"
            }
            libc::ENETUNREACH | libc::EHOSTUNREACH => {
                ": `ip route get` shows the way to an address"
            }
            _ => "",
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_without_memory_may_lack_locked_memory() {
        let text = |operation, errno| RdmaError::Os { operation, errno }.to_string();
        let locked = |text: &str| text.contains("ulimit -l");
        for operation in [
            RdmaOperation::CreateCompletionQueue,
            RdmaOperation::CreateQueuePair,
        ] {
            assert!(locked(&text(operation, libc::ENOMEM)));
            assert!(!locked(&text(operation, libc::EINVAL)));
        }
        assert!(!locked(&text(RdmaOperation::AllocateMemory, libc::ENOMEM)));
    }

    #[test]
    fn every_terminate_has_its_text() {
        let table = include_str!("iwarp/testdata/terminate-codes.tsv");
        let mut texts = std::collections::HashSet::new();
        for line in table.lines().skip(1) {
            let fields: Vec<&str> = line.split('\t').collect();
            let number = |n: usize, radix| u8::from_str_radix(fields[n], radix);
            let code = number(2, 16).unwrap_or(0);
            let text = terminate_text(number(0, 10).unwrap(), number(1, 10).unwrap(), code);
            assert_ne!(text, terminate_text(9, 9, 9), "{line}");
            texts.insert(text);
        }
        assert!(texts.len() > 25);
        let error = RdmaError::Terminated {
            layer: 1,
            error_type: 2,
            code: 5,
            operation: Some(RdmaOperation::Send),
        };
        assert_eq!(
            error.to_string(),
            "the peer terminated the stream for a message longer than the receive posted for it \
             (1/2/0x05), at our send"
        );
    }
}
