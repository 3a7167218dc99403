//! The values of `Channel`, and which of them a connection may use.

use super::{RequestError, TransformCapabilities};

/// The dialects that may be spoken over RDMA ([MS-SMB2] 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// SMB 3.0.
    Smb300,
    /// SMB 3.0.2.
    Smb302,
    /// SMB 3.1.1.
    Smb311,
}

impl Dialect {
    /// The dialect with this `DialectRevision`; none if it is not one for RDMA.
    pub fn from_revision(revision: u16) -> Option<Self> {
        match revision {
            0x0300 => Some(Self::Smb300),
            0x0302 => Some(Self::Smb302),
            0x0311 => Some(Self::Smb311),
            _ => None,
        }
    }

    /// The `DialectRevision` on the wire.
    pub fn revision(self) -> u16 {
        match self {
            Self::Smb300 => 0x0300,
            Self::Smb302 => 0x0302,
            Self::Smb311 => 0x0311,
        }
    }
}

/// Where the data of a READ or WRITE goes ([MS-SMB2] 2.2.19, 2.2.21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// `SMB2_CHANNEL_NONE`: in the message.
    None,
    /// `SMB2_CHANNEL_RDMA_V1`: by RDMA; the client takes its memory back itself.
    RdmaV1,
    /// `SMB2_CHANNEL_RDMA_V1_INVALIDATE`: by RDMA; the response invalidates the first token.
    RdmaV1Invalidate,
    /// `SMB2_CHANNEL_RDMA_TRANSFORM`: by RDMA, encrypted or signed; in WRITE requests only.
    RdmaTransform,
}

impl Channel {
    /// The channel with this value on the wire.
    pub fn from_value(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::None),
            1 => Some(Self::RdmaV1),
            2 => Some(Self::RdmaV1Invalidate),
            3 => Some(Self::RdmaTransform),
            _ => None,
        }
    }

    /// The value on the wire.
    pub fn value(self) -> u32 {
        match self {
            Self::None => 0,
            Self::RdmaV1 => 1,
            Self::RdmaV1Invalidate => 2,
            Self::RdmaTransform => 3,
        }
    }
}

/// A request that can name memory of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// SMB2 READ: the server writes into the client's memory.
    Read,
    /// SMB2 WRITE: the server reads from the client's memory.
    Write,
}

/// What was negotiated on an SMB2 connection, as far as it decides on channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelRules {
    /// The dialect of the connection.
    pub dialect: Dialect,
    /// The transforms both sides agreed on; the default (none) before 3.1.1.
    pub transforms: TransformCapabilities,
}

impl ChannelRules {
    /// Whether a request of this kind may use `channel`.
    pub fn allows(&self, operation: Operation, channel: Channel) -> bool {
        match channel {
            Channel::None | Channel::RdmaV1 => true,
            // [MS-SMB2] 2.2.19: not valid for the SMB 3.0 dialect.
            Channel::RdmaV1Invalidate => self.dialect >= Dialect::Smb302,
            // [MS-SMB2] 2.2.21: WRITE requests of 3.1.1 only. 3.3.5.13 contradicts itself on
            // whether the value is valid there; servers that support transforms take it.
            Channel::RdmaTransform => {
                operation == Operation::Write
                    && self.dialect == Dialect::Smb311
                    && self.transforms.any()
            }
        }
    }

    /// The channel a request names.
    ///
    /// # Errors
    /// [`RequestError::UnknownChannel`], [`RequestError::ChannelNotAllowed`].
    pub(super) fn check(&self, operation: Operation, value: u32) -> Result<Channel, RequestError> {
        let channel = Channel::from_value(value).ok_or(RequestError::UnknownChannel { value })?;
        if !self.allows(operation, channel) {
            return Err(RequestError::ChannelNotAllowed { channel });
        }
        Ok(channel)
    }
}
