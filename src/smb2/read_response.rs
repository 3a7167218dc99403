//! The response to a READ whose data went by RDMA ([MS-SMB2] 2.2.20).

use super::fields::{READ, check_message, put_u32, u32_at};
use super::{ChannelRules, CryptoTransform, Dialect, RdmaTransform, ResponseError, TransformError};

const STRUCTURE_SIZE: u16 = 17;
/// Where `Buffer` starts.
const BUFFER: usize = 80;
const DATA_OFFSET: usize = 66;
const DATA_LENGTH: usize = 68;
const DATA_REMAINING: usize = 72;
const FLAGS: usize = 76;
/// `SMB2_READFLAG_RESPONSE_RDMA_TRANSFORM`.
const FLAG_RDMA_TRANSFORM: u32 = 0x0000_0001;

/// The server has placed this much into the client's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedRead {
    /// Bytes placed: `DataRemaining`.
    pub placed: u32,
    /// How the placed data is encrypted or signed.
    pub transform: Option<CryptoTransform>,
}

impl PlacedRead {
    /// Reads a successful response to a READ of `requested` bytes by RDMA; `message` is one SMB2
    /// message from the start of its header.
    ///
    /// # Errors
    /// See [`ResponseError`].
    pub fn parse(
        message: &[u8],
        requested: u32,
        rules: &ChannelRules,
    ) -> Result<Self, ResponseError> {
        check_response(message)?;
        // Before 3.1.1 the flags are a reserved field ([MS-SMB2] 2.2.20).
        let transform = if rules.dialect == Dialect::Smb311
            && u32_at(message, FLAGS) & FLAG_RDMA_TRANSFORM != 0
        {
            if !rules.transforms.any() {
                return Err(ResponseError::TransformNotNegotiated);
            }
            Some(transform(message, rules)?)
        } else {
            let length = u32_at(message, DATA_LENGTH);
            if length != 0 {
                return Err(ResponseError::DataInMessage { length });
            }
            None
        };
        let placed = u32_at(message, DATA_REMAINING);
        if placed > requested {
            return Err(ResponseError::MoreThanRequested { placed, requested });
        }
        Ok(Self { placed, transform })
    }

    /// Makes the response of `message`: header and body (80 bytes), and at most the one byte of
    /// buffer that `StructureSize` counts, which stays if there is no transform. Sets `DataOffset`,
    /// `DataLength`, `DataRemaining` and `Flags`.
    ///
    /// # Errors
    /// See [`ResponseError`]; then `message` is as it was.
    pub fn encode(&self, message: &mut Vec<u8>, rules: &ChannelRules) -> Result<(), ResponseError> {
        check_response(message)?;
        if message.len() > BUFFER + 1 {
            return Err(ResponseError::BufferInUse { len: message.len() });
        }
        let mut data_length = 0;
        let mut flags = 0;
        if let Some(transform) = &self.transform {
            if rules.dialect != Dialect::Smb311 || !rules.transforms.any() {
                return Err(ResponseError::TransformNotNegotiated);
            }
            rules.transforms.check(transform.kind)?;
            let crypto = transform.encode()?;
            // [MS-SMB2] 3.3.5.12: one transform, no channel, no descriptors.
            let head = RdmaTransform {
                descriptor_offset: 0,
                descriptor_length: 0,
                channel: 0,
                transform_count: 1,
            };
            message.truncate(BUFFER);
            message.extend_from_slice(&head.encode());
            message.extend_from_slice(&crypto);
            // At most 16 + 8 + 16 + 65,535 + 7 bytes.
            data_length = (message.len() - BUFFER) as u32;
            flags = FLAG_RDMA_TRANSFORM;
        }
        message[DATA_OFFSET] = BUFFER as u8;
        put_u32(message, DATA_LENGTH, data_length);
        put_u32(message, DATA_REMAINING, self.placed);
        put_u32(message, FLAGS, flags);
        Ok(())
    }
}

fn check_response(message: &[u8]) -> Result<(), ResponseError> {
    check_message(message, READ, STRUCTURE_SIZE, BUFFER)
        .map_err(|error| ResponseError::not_message(error, message))
}

fn transform(message: &[u8], rules: &ChannelRules) -> Result<CryptoTransform, ResponseError> {
    let offset = message[DATA_OFFSET];
    let length = u32_at(message, DATA_LENGTH);
    let end = u64::from(offset) + u64::from(length);
    if usize::from(offset) < BUFFER || end > message.len() as u64 {
        return Err(ResponseError::TransformOutsideBuffer {
            offset,
            length,
            len: message.len(),
        });
    }
    let buffer = &message[usize::from(offset)..end as usize];
    let head = RdmaTransform::parse(buffer)?;
    if head.channel != 0 || head.descriptor_offset != 0 || head.descriptor_length != 0 {
        return Err(ResponseError::TransformWithDescriptors);
    }
    if head.transform_count != 1 {
        return Err(TransformError::Count {
            count: head.transform_count,
        }
        .into());
    }
    let (transform, _) = CryptoTransform::parse(&buffer[RdmaTransform::LEN..])?;
    rules.transforms.check(transform.kind)?;
    Ok(transform)
}
