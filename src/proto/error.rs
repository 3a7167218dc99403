//! Everything that can end a connection or refuse a call, one variant per rule, by whose fault it
//! was.

use thiserror::Error;

use super::wire::{
    MIN_FRAGMENTED_SIZE, MIN_RECEIVE_SIZE, STATUS_INSUFFICIENT_RESOURCES, STATUS_NOT_SUPPORTED,
    VERSION,
};

/// A value of [`Config`](super::Config) that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// `send_credit_target` is 0.
    #[error(
        "send_credit_target is 0, but every peer ends a connection that asks for none; \
         set at least 1"
    )]
    SendCreditTargetZero,
    /// `receive_credit_max` is 0.
    #[error("receive_credit_max is 0, so the peer could never send; set at least 1")]
    ReceiveCreditMaxZero,
    /// `max_send_size` is below 128 bytes.
    #[error("max_send_size is {0} bytes; set at least {MIN_RECEIVE_SIZE}")]
    MaxSendSizeTooSmall(u32),
    /// `max_receive_size` is below 128 bytes.
    #[error("max_receive_size is {0} bytes; the protocol requires at least {MIN_RECEIVE_SIZE}")]
    MaxReceiveSizeTooSmall(u32),
    /// `max_fragmented_size` is below 131,072 bytes.
    #[error(
        "max_fragmented_size is {0} bytes; the protocol requires at least {MIN_FRAGMENTED_SIZE}"
    )]
    MaxFragmentedSizeTooSmall(u32),
    /// A timer is zero.
    #[error(
        "keepalive_interval, keepalive_timeout, initiator_timeout and acceptor_timeout \
         must be longer than zero"
    )]
    TimerZero,
}

/// A message that [`Connection::send`](super::Connection::send) did not take. Nothing of it was
/// sent.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SendError {
    /// Negotiation is not finished.
    #[error("the connection is not negotiated yet")]
    NotEstablished,
    /// The connection has ended or is closing.
    #[error("the connection is closed")]
    Closed,
    /// The message has no bytes; SMB Direct cannot carry an empty message.
    #[error("an empty message cannot be sent")]
    Empty,
    /// The message is larger than the peer can reassemble.
    #[error("the message has {len} bytes, the peer takes at most {max}")]
    TooLarge {
        /// Bytes of the message.
        len: u64,
        /// The peer's limit, in bytes.
        max: u32,
    },
}

/// Bytes from the peer that are not a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// Fewer than 20 bytes.
    #[error("a negotiate request of {len} bytes is too short, it has 20")]
    NegotiateRequestTooShort {
        /// Bytes received.
        len: usize,
    },
    /// Fewer than 32 bytes.
    #[error("a negotiate response of {len} bytes is too short, it has 32")]
    NegotiateResponseTooShort {
        /// Bytes received.
        len: usize,
    },
    /// Fewer than 20 bytes.
    #[error("a data transfer message of {len} bytes is too short, its header has 20")]
    DataTransferTooShort {
        /// Bytes received.
        len: usize,
    },
    /// Fewer than 16 bytes.
    #[error("a buffer descriptor of {len} bytes is too short, it has 16")]
    BufferDescriptorTooShort {
        /// Bytes there were.
        len: usize,
    },
    /// `DataOffset` is not a multiple of 8.
    #[error("the data offset {offset} is not a multiple of 8")]
    UnalignedDataOffset {
        /// The `DataOffset` received.
        offset: u32,
    },
    /// `DataOffset` + `DataLength` point behind the message.
    #[error("{length} bytes of data at offset {offset} exceed a message of {message_len} bytes")]
    DataBeyondMessage {
        /// The `DataOffset` received.
        offset: u32,
        /// The `DataLength` received.
        length: u32,
        /// Bytes received.
        message_len: usize,
    },
}

/// A rule of the protocol that the peer broke.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PeerMisbehaved {
    /// A message before the connection was ready for one.
    #[error("it sent a message before the negotiate request that it should answer")]
    MessageBeforeRequest,
    /// `CreditsRequested` is 0.
    #[error("it asked for no credits at all")]
    NoCreditsRequested,
    /// The negotiate response's `CreditsGranted` is 0.
    #[error("its negotiate response grants no credits")]
    NoCreditsGranted,
    /// `MaxReceiveSize` below 128.
    #[error("its maximum receive size of {0} bytes is below {MIN_RECEIVE_SIZE}")]
    MaxReceiveSizeTooSmall(u32),
    /// `MaxFragmentedSize` below 131,072.
    #[error("its maximum fragmented size of {0} bytes is below {MIN_FRAGMENTED_SIZE}")]
    MaxFragmentedSizeTooSmall(u32),
    /// The negotiate response's `PreferredSendSize` exceeds what we said we can receive.
    #[error("it wants to send messages of {preferred} bytes, we offered to receive {offered}")]
    PreferredSendSizeTooLarge {
        /// The response's `PreferredSendSize`, in bytes.
        preferred: u32,
        /// The `MaxReceiveSize` of our request, in bytes.
        offered: u32,
    },
    /// A message without a credit for it.
    #[error("it sent a message without holding a credit")]
    SentWithoutCredit,
    /// A message larger than negotiated.
    #[error("it sent a message of {len} bytes, {max} were negotiated")]
    MessageTooLarge {
        /// Bytes received.
        len: usize,
        /// The negotiated limit, in bytes.
        max: u32,
    },
    /// `DataLength` + `RemainingDataLength` above our limit.
    #[error("it announced an upper-layer message of at least {total} bytes, we take at most {max}")]
    FragmentedSizeExceeded {
        /// The sum received.
        total: u64,
        /// Our `MaxFragmentedSize`.
        max: u32,
    },
    /// `RemainingDataLength` is not exactly the former one less the data.
    #[error(
        "a fragment of {data_length} bytes leaves {remaining} bytes, but {expected} were to \
         come before it"
    )]
    RemainingLengthMismatch {
        /// Bytes that were still to come.
        expected: u64,
        /// `DataLength` of the fragment.
        data_length: u32,
        /// `RemainingDataLength` of the fragment.
        remaining: u32,
    },
}

/// What the two sides cannot agree on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PeerIncompatible {
    /// Acceptor: the initiator's versions do not include 1.0.
    #[error("it speaks versions {min:#06x} to {max:#06x}, we speak {VERSION:#06x}")]
    NoCommonVersion {
        /// Its lowest version.
        min: u16,
        /// Its highest version.
        max: u16,
    },
    /// Initiator: the acceptor chose a version we do not speak.
    #[error("it chose version {0:#06x}, we speak {VERSION:#06x}")]
    VersionNotSupported(u16),
    /// Initiator: the acceptor refused, with this NTSTATUS.
    #[error("it refused with {}", Status(*status))]
    Refused {
        /// The NTSTATUS of the negotiate response.
        status: u32,
    },
}

/// What did not come in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Timeout {
    /// Connection and negotiation did not finish.
    #[error(
        "negotiation did not finish in time; is there an SMB Direct peer at this address and port?"
    )]
    Negotiation,
    /// The peer did not answer a probe.
    #[error("the peer did not answer a keepalive probe")]
    Keepalive,
}

/// How the RDMA connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Loss {
    /// The peer disconnected.
    #[error("the peer disconnected")]
    PeerDisconnected,
    /// The RDMA connection or device failed.
    #[error("the RDMA connection failed")]
    Failed,
}

/// Why a connection ended. Latched: the first reason is the only one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The peer sent bytes that are not a message.
    #[error("the peer sent an invalid message: {0}")]
    InvalidMessage(#[from] InvalidMessage),
    /// The peer broke a rule.
    #[error("the peer misbehaved: {0}")]
    PeerMisbehaved(#[from] PeerMisbehaved),
    /// Both sides are right and do not fit.
    #[error("the peer is incompatible: {0}")]
    PeerIncompatible(#[from] PeerIncompatible),
    /// The peer was silent.
    #[error("{0}")]
    Timeout(#[from] Timeout),
    /// Our application did not take its messages for so long that keepalives had to stop.
    #[error(
        "this side's application has not taken received messages for many keepalive \
         intervals; call recv, or close the connection"
    )]
    ApplicationStalled,
    /// Not one receive could be posted after negotiation.
    #[error(
        "no receive could be posted; raise the memory limits or lower the number of connections"
    )]
    NoReceives,
    /// The RDMA connection was lost.
    #[error("connection lost: {0}")]
    Lost(#[from] Loss),
    /// This side closed.
    #[error("closed by this side")]
    LocalClose,
}

impl DisconnectReason {
    /// Whether one of the two sides closed in order and nothing went wrong.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::LocalClose | Self::Lost(Loss::PeerDisconnected))
    }
}

/// An NTSTATUS with its name, where one is known.
struct Status(u32);

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            STATUS_NOT_SUPPORTED => f.write_str("STATUS_NOT_SUPPORTED (no common version)"),
            STATUS_INSUFFICIENT_RESOURCES => f.write_str(
                "STATUS_INSUFFICIENT_RESOURCES (out of memory, or max_send_size above \
                 8136 bytes at a Windows server)",
            ),
            other => write!(f, "NTSTATUS {other:#010x}"),
        }
    }
}
