//! The four structures SMB Direct puts on the wire, and nothing else.
//!
//! All fields are little-endian ([MS-SMBD] 2.2). Reserved fields are sent as zero and ignored on
//! receipt; bytes behind a structure are ignored. Parsing checks lengths only; what a value means
//! is decided by the state machine. Imports nothing but the errors.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::InvalidMessage;

/// The only protocol version there is ([MS-SMBD] 1.7).
pub const VERSION: u16 = 0x0100;

/// `SMB_DIRECT_RESPONSE_REQUESTED`: the receiver must answer promptly ([MS-SMBD] 2.2.3).
pub const FLAG_RESPONSE_REQUESTED: u16 = 0x0001;

/// Where we put the payload in a data transfer message: behind the header and 4 bytes of padding.
pub const DATA_OFFSET: u32 = 24;

/// The smallest legal `MaxReceiveSize`, in bytes ([MS-SMBD] 3.1.5.6).
pub const MIN_RECEIVE_SIZE: u32 = 128;

/// The smallest legal `MaxFragmentedSize`, in bytes ([MS-SMBD] 3.1.5.6).
pub const MIN_FRAGMENTED_SIZE: u32 = 131_072;

/// The smallest receive that may be posted for a negotiate message, in bytes ([MS-SMBD] 3.1.4.1,
/// 3.1.7.2).
pub const NEGOTIATE_RECEIVE_SIZE: u32 = 512;

/// `STATUS_SUCCESS`.
pub const STATUS_SUCCESS: u32 = 0x0000_0000;
/// `STATUS_NOT_SUPPORTED`: no protocol version in common.
pub const STATUS_NOT_SUPPORTED: u32 = 0xC000_00BB;
/// `STATUS_INSUFFICIENT_RESOURCES`: the server could not post a receive, or refuses the sizes asked
/// for.
pub const STATUS_INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;

/// The first message of a connection, from the initiator ([MS-SMBD] 2.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateRequest {
    /// The lowest version the initiator speaks.
    pub min_version: u16,
    /// The highest version the initiator speaks.
    pub max_version: u16,
    /// Send credits the initiator wants to hold.
    pub credits_requested: u16,
    /// The largest message the initiator will send, in bytes, header included.
    pub preferred_send_size: u32,
    /// The largest message the initiator can receive, in bytes, header included.
    pub max_receive_size: u32,
    /// The largest reassembled upper-layer message the initiator can receive, in bytes.
    pub max_fragmented_size: u32,
}

impl NegotiateRequest {
    /// Bytes on the wire.
    pub const LEN: usize = 20;

    /// Reads the structure from the start of `bytes`.
    ///
    /// # Errors
    /// [`InvalidMessage::NegotiateRequestTooShort`] if there are fewer than 20 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let b: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(InvalidMessage::NegotiateRequestTooShort { len: bytes.len() })?;
        Ok(Self {
            min_version: u16_at(b, 0),
            max_version: u16_at(b, 2),
            credits_requested: u16_at(b, 6),
            preferred_send_size: u32_at(b, 8),
            max_receive_size: u32_at(b, 12),
            max_fragmented_size: u32_at(b, 16),
        })
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.min_version);
        put_u16(&mut b, 2, self.max_version);
        put_u16(&mut b, 6, self.credits_requested);
        put_u32(&mut b, 8, self.preferred_send_size);
        put_u32(&mut b, 12, self.max_receive_size);
        put_u32(&mut b, 16, self.max_fragmented_size);
        b
    }
}

/// The acceptor's answer to the negotiate request ([MS-SMBD] 2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiateResponse {
    /// The lowest version the acceptor speaks.
    pub min_version: u16,
    /// The highest version the acceptor speaks.
    pub max_version: u16,
    /// The version of this connection; 0 in a failure.
    pub negotiated_version: u16,
    /// Send credits the acceptor wants to hold.
    pub credits_requested: u16,
    /// Send credits the initiator holds from now on.
    pub credits_granted: u16,
    /// NTSTATUS, 0 for success.
    pub status: u32,
    /// The most bytes the acceptor moves by RDMA for one upper-layer request.
    pub max_read_write_size: u32,
    /// The largest message the acceptor will send, in bytes, header included.
    pub preferred_send_size: u32,
    /// The largest message the acceptor can receive, in bytes, header included.
    pub max_receive_size: u32,
    /// The largest reassembled upper-layer message the acceptor can receive, in bytes.
    pub max_fragmented_size: u32,
}

impl NegotiateResponse {
    /// Bytes on the wire.
    pub const LEN: usize = 32;

    /// A failure: both versions, the status, and zero everywhere else ([MS-SMBD] 3.1.5.3).
    pub fn failure(status: u32) -> Self {
        Self {
            min_version: VERSION,
            max_version: VERSION,
            negotiated_version: 0,
            credits_requested: 0,
            credits_granted: 0,
            status,
            max_read_write_size: 0,
            preferred_send_size: 0,
            max_receive_size: 0,
            max_fragmented_size: 0,
        }
    }

    /// Reads the structure from the start of `bytes`.
    ///
    /// # Errors
    /// [`InvalidMessage::NegotiateResponseTooShort`] if there are fewer than 32 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let b: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(InvalidMessage::NegotiateResponseTooShort { len: bytes.len() })?;
        Ok(Self {
            min_version: u16_at(b, 0),
            max_version: u16_at(b, 2),
            negotiated_version: u16_at(b, 4),
            credits_requested: u16_at(b, 8),
            credits_granted: u16_at(b, 10),
            status: u32_at(b, 12),
            max_read_write_size: u32_at(b, 16),
            preferred_send_size: u32_at(b, 20),
            max_receive_size: u32_at(b, 24),
            max_fragmented_size: u32_at(b, 28),
        })
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.min_version);
        put_u16(&mut b, 2, self.max_version);
        put_u16(&mut b, 4, self.negotiated_version);
        put_u16(&mut b, 8, self.credits_requested);
        put_u16(&mut b, 10, self.credits_granted);
        put_u32(&mut b, 12, self.status);
        put_u32(&mut b, 16, self.max_read_write_size);
        put_u32(&mut b, 20, self.preferred_send_size);
        put_u32(&mut b, 24, self.max_receive_size);
        put_u32(&mut b, 28, self.max_fragmented_size);
        b
    }
}

/// The header of every message after negotiation ([MS-SMBD] 2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataTransfer {
    /// Send credits the sender wants to hold, in total, those it holds included.
    pub credits_requested: u16,
    /// New credits for the receiver.
    pub credits_granted: u16,
    /// [`FLAG_RESPONSE_REQUESTED`] or 0.
    pub flags: u16,
    /// Bytes of the upper-layer message still to come after this one.
    pub remaining_data_length: u32,
    /// Where the payload starts, in bytes from the start of this header; 0 without payload.
    pub data_offset: u32,
    /// Bytes of payload.
    pub data_length: u32,
}

impl DataTransfer {
    /// Bytes of the header, and of a whole message without payload.
    pub const LEN: usize = 20;

    /// Reads the header from the start of a message.
    ///
    /// # Errors
    /// [`InvalidMessage::DataTransferTooShort`] if there are fewer than 20 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let b: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(InvalidMessage::DataTransferTooShort { len: bytes.len() })?;
        Ok(Self {
            credits_requested: u16_at(b, 0),
            credits_granted: u16_at(b, 2),
            flags: u16_at(b, 4),
            remaining_data_length: u32_at(b, 8),
            data_offset: u32_at(b, 12),
            data_length: u32_at(b, 16),
        })
    }

    /// The header as sent. A message with payload has 4 bytes of zero between this and the payload.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.credits_requested);
        put_u16(&mut b, 2, self.credits_granted);
        put_u16(&mut b, 4, self.flags);
        put_u32(&mut b, 8, self.remaining_data_length);
        put_u32(&mut b, 12, self.data_offset);
        put_u32(&mut b, 16, self.data_length);
        b
    }

    /// The payload's place in a received message of `message_len` bytes. An offset that points into
    /// the header is legal by the letter of the specification and harmless: the range is always
    /// inside the message.
    ///
    /// # Errors
    /// [`InvalidMessage::UnalignedDataOffset`], [`InvalidMessage::DataBeyondMessage`].
    pub fn payload(&self, message_len: usize) -> Result<Range<usize>, InvalidMessage> {
        // [MS-SMBD] 3.1.5.8: DataOffset is 8-byte aligned, DataOffset + DataLength is inside the
        // message.
        if !self.data_offset.is_multiple_of(8) {
            return Err(InvalidMessage::UnalignedDataOffset {
                offset: self.data_offset,
            });
        }
        let end = u64::from(self.data_offset) + u64::from(self.data_length);
        if end > message_len as u64 {
            return Err(InvalidMessage::DataBeyondMessage {
                offset: self.data_offset,
                length: self.data_length,
                message_len,
            });
        }
        Ok(self.data_offset as usize..end as usize)
    }

    /// Bytes of the upper-layer message in this and all later fragments.
    pub fn total(&self) -> u64 {
        u64::from(self.data_length) + u64::from(self.remaining_data_length)
    }

    /// Whether the sender wants an answer.
    pub fn response_requested(&self) -> bool {
        self.flags & FLAG_RESPONSE_REQUESTED != 0
    }
}

/// One piece of remotely accessible memory, as named in an SMB2 READ or WRITE request ([MS-SMBD]
/// 2.2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferDescriptorV1 {
    /// Where the piece starts, in the terms of the RDMA device that made the token (a virtual
    /// address with ibverbs).
    pub offset: u64,
    /// The steering tag (rkey).
    pub token: u32,
    /// Bytes.
    pub length: u32,
}

impl BufferDescriptorV1 {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// Reads one descriptor from the start of `bytes`.
    ///
    /// # Errors
    /// [`InvalidMessage::BufferDescriptorTooShort`] if there are fewer than 16 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMessage> {
        let b: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(InvalidMessage::BufferDescriptorTooShort { len: bytes.len() })?;
        let mut offset = [0; 8];
        offset.copy_from_slice(&b[..8]);
        Ok(Self {
            offset: u64::from_le_bytes(offset),
            token: u32_at(b, 8),
            length: u32_at(b, 12),
        })
    }

    /// Reads an array that fills `bytes`.
    ///
    /// # Errors
    /// [`InvalidMessage::BufferDescriptorTooShort`] if the last descriptor is cut off.
    pub fn parse_array(bytes: &[u8]) -> Result<Vec<Self>, InvalidMessage> {
        bytes.chunks(Self::LEN).map(Self::parse).collect()
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[..8].copy_from_slice(&self.offset.to_le_bytes());
        put_u32(&mut b, 8, self.token);
        put_u32(&mut b, 12, self.length);
        b
    }
}

// The offsets below are constants of the structures above, inside arrays of fixed length.

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn put_u16(b: &mut [u8], at: usize, value: u16) {
    b[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(b: &mut [u8], at: usize, value: u32) {
    b[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
