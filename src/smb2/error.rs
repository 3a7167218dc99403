//! Why a message was refused, one variant per rule.

use thiserror::Error;

use super::fields::NotMessage;
use super::{Channel, TransformType};

/// A READ or WRITE request that breaks a rule, or that cannot be made.
///
/// A server answers all of these with `STATUS_INVALID_PARAMETER` ([MS-SMB2] 3.3.5.12, 3.3.5.13),
/// except [`TransformError::SignatureTooLong`], which it answers like a signature that does not
/// match.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Shorter than header and body, 112 bytes.
    #[error("the request has {len} bytes, header and body need 112")]
    TooShort {
        /// Bytes there are.
        len: usize,
    },
    /// Does not start with 0xFE 'S' 'M' 'B'.
    #[error("not an SMB2 message")]
    ProtocolId,
    /// Another command than the one expected.
    #[error("the command is {found:#06x}, not the one expected")]
    Command {
        /// `Command` of the header.
        found: u16,
    },
    /// `StructureSize` of the body is not 49.
    #[error("StructureSize is {found}, not 49")]
    StructureSize {
        /// The value found.
        found: u16,
    },
    /// `Channel` has a value nobody defined.
    #[error("channel {value:#x} is not defined")]
    UnknownChannel {
        /// The value found.
        value: u32,
    },
    /// The channel is not for this dialect, this command, or was not negotiated.
    #[error("channel {channel:?} may not be used here")]
    ChannelNotAllowed {
        /// The channel.
        channel: Channel,
    },
    /// A READ of 0 bytes, or a WRITE whose `RemainingBytes` is 0.
    #[error("no bytes are to be moved")]
    NothingToMove,
    /// A WRITE by RDMA whose `Length` is not 0.
    #[error("Length is {length}, but the data goes by RDMA")]
    LengthNotZero {
        /// The value found, in bytes.
        length: u32,
    },
    /// A WRITE by RDMA whose `DataOffset` is not 0.
    #[error("DataOffset is {offset}, but the data goes by RDMA")]
    DataOffsetNotZero {
        /// The value found, in bytes.
        offset: u16,
    },
    /// `ReadChannelInfoOffset` or `WriteChannelInfoOffset` is 0.
    #[error("the channel information has no offset")]
    InfoOffsetZero,
    /// `ReadChannelInfoLength` or `WriteChannelInfoLength` is 0.
    #[error("the channel information has no length")]
    InfoLengthZero,
    /// The channel information starts inside the header or the fixed part of the body.
    #[error("the channel information starts at {offset}, inside the first 112 bytes")]
    InfoInsideBody {
        /// From the start of the SMB2 header, in bytes.
        offset: u16,
    },
    /// The channel information ends behind the message.
    #[error("channel information of {length} bytes at {offset} in a message of {len} bytes")]
    InfoBeyondMessage {
        /// From the start of the SMB2 header, in bytes.
        offset: u16,
        /// Bytes.
        length: u16,
        /// Bytes of the message.
        len: usize,
    },
    /// The array of descriptors is not a multiple of 16 bytes.
    #[error("the descriptors take {length} bytes, not a multiple of 16")]
    DescriptorCutOff {
        /// Bytes.
        length: usize,
    },
    /// There is no descriptor.
    #[error("there is no descriptor")]
    NoDescriptors,
    /// The first descriptor of a WRITE has no length.
    #[error("the first descriptor has no length")]
    FirstDescriptorEmpty,
    /// The descriptors together are shorter than the data.
    #[error("the descriptors hold {capacity} bytes, {needed} are to be moved")]
    DescriptorsTooSmall {
        /// Sum of the descriptors, in bytes.
        capacity: u64,
        /// Bytes to be moved.
        needed: u32,
    },
    /// More descriptors than the 16-bit length can say.
    #[error("{count} descriptors do not fit into one request")]
    TooManyDescriptors {
        /// Descriptors given.
        count: usize,
    },
    /// The message to complete has something behind its body already.
    #[error("the request has {len} bytes, so its buffer is in use")]
    BufferInUse {
        /// Bytes of the message.
        len: usize,
    },
    /// The description of the encrypted or signed data breaks a rule.
    #[error(transparent)]
    Transform(#[from] TransformError),
}

impl RequestError {
    pub(super) fn not_message(error: NotMessage, message: &[u8]) -> Self {
        match error {
            NotMessage::TooShort => Self::TooShort { len: message.len() },
            NotMessage::ProtocolId => Self::ProtocolId,
            NotMessage::Command(found) => Self::Command { found },
            NotMessage::StructureSize(found) => Self::StructureSize { found },
        }
    }
}

/// A response to a READ by RDMA that breaks a rule, or that cannot be made.
///
/// A client gives up the request with `STATUS_INVALID_NETWORK_RESPONSE` ([MS-SMB2] 3.2.5.11).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResponseError {
    /// Shorter than header and body, 80 bytes.
    #[error("the response has {len} bytes, header and body need 80")]
    TooShort {
        /// Bytes there are.
        len: usize,
    },
    /// Does not start with 0xFE 'S' 'M' 'B'.
    #[error("not an SMB2 message")]
    ProtocolId,
    /// Not a READ.
    #[error("the command is {found:#06x}, not READ")]
    Command {
        /// `Command` of the header.
        found: u16,
    },
    /// `StructureSize` of the body is not 17, as in a failure.
    #[error("StructureSize is {found}, not 17")]
    StructureSize {
        /// The value found.
        found: u16,
    },
    /// There is data in the message, though it was asked for by RDMA.
    #[error("{length} bytes of data are in the message, they should have come by RDMA")]
    DataInMessage {
        /// `DataLength`, in bytes.
        length: u32,
    },
    /// More bytes placed than asked for.
    #[error("{placed} bytes were placed, {requested} were asked for")]
    MoreThanRequested {
        /// `DataRemaining`, in bytes.
        placed: u32,
        /// `Length` of the request, in bytes.
        requested: u32,
    },
    /// The description of the transform is not inside the buffer of the message.
    #[error("a transform of {length} bytes at {offset} in a message of {len} bytes")]
    TransformOutsideBuffer {
        /// `DataOffset`, from the start of the SMB2 header, in bytes.
        offset: u8,
        /// `DataLength`, in bytes.
        length: u32,
        /// Bytes of the message.
        len: usize,
    },
    /// The description of the transform names a channel or descriptors; a response has none.
    #[error("the transform of a response names a channel or descriptors")]
    TransformWithDescriptors,
    /// A transform in a response that was not negotiated, or before 3.1.1.
    #[error("the data is transformed, but that was not negotiated")]
    TransformNotNegotiated,
    /// The message to complete has something behind its body already.
    #[error("the response has {len} bytes, so its buffer is in use")]
    BufferInUse {
        /// Bytes of the message.
        len: usize,
    },
    /// The description of the encrypted or signed data breaks a rule.
    #[error(transparent)]
    Transform(#[from] TransformError),
}

impl ResponseError {
    pub(super) fn not_message(error: NotMessage, message: &[u8]) -> Self {
        match error {
            NotMessage::TooShort => Self::TooShort { len: message.len() },
            NotMessage::ProtocolId => Self::ProtocolId,
            NotMessage::Command(found) => Self::Command { found },
            NotMessage::StructureSize(found) => Self::StructureSize { found },
        }
    }
}

/// A description of transformed data that breaks a rule ([MS-SMB2] 2.2.43).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransformError {
    /// `SMB2_RDMA_TRANSFORM` has fewer than 16 bytes.
    #[error("SMB2_RDMA_TRANSFORM needs 16 bytes, there are {len}")]
    TransformTooShort {
        /// Bytes there are.
        len: usize,
    },
    /// `SMB2_RDMA_CRYPTO_TRANSFORM` is cut off.
    #[error("SMB2_RDMA_CRYPTO_TRANSFORM needs {needed} bytes, there are {len}")]
    CryptoTooShort {
        /// Bytes it says it has.
        needed: u64,
        /// Bytes there are.
        len: usize,
    },
    /// Not exactly one transform.
    #[error("TransformCount is {count}, not 1")]
    Count {
        /// The value found.
        count: u16,
    },
    /// `TransformType` has a value nobody defined.
    #[error("transform type {value:#06x} is not defined")]
    UnknownType {
        /// The value found.
        value: u16,
    },
    /// The type was not negotiated.
    #[error("transforms of type {kind:?} were not negotiated")]
    NotNegotiated {
        /// The type.
        kind: TransformType,
    },
    /// A signature of more than 16 bytes.
    #[error("the signature has {length} bytes, at most 16 are allowed")]
    SignatureTooLong {
        /// Bytes.
        length: usize,
    },
    /// A nonce whose length 16 bits cannot say.
    #[error("the nonce has {length} bytes")]
    NonceTooLong {
        /// Bytes.
        length: usize,
    },
    /// The inner channel is neither of those with descriptors, or not for this dialect.
    #[error("the inner channel is {value:#x}")]
    InnerChannel {
        /// The value found.
        value: u32,
    },
    /// The descriptors do not start at a multiple of 8 bytes.
    #[error("the descriptors start at {offset}, not a multiple of 8")]
    DescriptorsUnaligned {
        /// From the start of `SMB2_RDMA_TRANSFORM`, in bytes.
        offset: u16,
    },
    /// The descriptors overlap the transforms.
    #[error("the descriptors start at {offset}, inside the transforms")]
    DescriptorsInsideTransforms {
        /// From the start of `SMB2_RDMA_TRANSFORM`, in bytes.
        offset: u16,
    },
    /// The descriptors end behind the channel information.
    #[error("descriptors of {length} bytes at {offset} in channel information of {len} bytes")]
    DescriptorsBeyondInfo {
        /// From the start of `SMB2_RDMA_TRANSFORM`, in bytes.
        offset: u16,
        /// Bytes.
        length: u16,
        /// Bytes of the channel information.
        len: usize,
    },
}

/// A negotiate context `SMB2_RDMA_TRANSFORM_CAPABILITIES` that breaks a rule.
///
/// A server answers the negotiation with `STATUS_INVALID_PARAMETER` ([MS-SMB2] 3.3.5.4); a client
/// ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CapabilitiesError {
    /// Fewer bytes than its fields need.
    #[error("the context needs {needed} bytes, there are {len}")]
    TooShort {
        /// Bytes it says it has.
        needed: u64,
        /// Bytes there are.
        len: usize,
    },
    /// `TransformCount` is 0.
    #[error("the context names no transform")]
    Empty,
    /// The server names more transforms than were offered.
    #[error("the server names {count} transforms, more than were offered")]
    MoreThanOffered {
        /// Transforms named.
        count: u16,
    },
    /// The server names a transform that was not offered, or that nobody defined.
    #[error("the server names transform {id:#06x}, which was not offered")]
    NotOffered {
        /// The transform.
        id: u16,
    },
}

/// A list of `NETWORK_INTERFACE_INFO` that breaks a rule ([MS-SMB2] 2.2.32.5).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InterfaceError {
    /// An entry has fewer than 152 bytes.
    #[error("the entry at {at} needs 152 bytes, there are {len}")]
    TooShort {
        /// Where the entry starts, in bytes.
        at: usize,
        /// Bytes from there.
        len: usize,
    },
    /// `Next` points into the entry itself.
    #[error("Next is {next}, inside an entry of 152 bytes")]
    NextInsideEntry {
        /// The value found, in bytes.
        next: u32,
    },
    /// `Next` is not a multiple of 8.
    #[error("Next is {next}, not a multiple of 8")]
    NextUnaligned {
        /// The value found, in bytes.
        next: u32,
    },
    /// `Next` points behind the list.
    #[error("Next is {next}, behind the end of the list")]
    NextBeyondList {
        /// The value found, in bytes.
        next: u32,
    },
}
