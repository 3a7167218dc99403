//! The client's memory, as READ and WRITE requests name it ([MS-SMB2] 2.2.19, 2.2.21).

use super::fields::{READ, WRITE, check_message, put_u16, put_u32, u16_at, u32_at};
use super::{
    Channel, ChannelRules, CryptoTransform, Operation, RdmaTransform, RequestError, TransformError,
};
use crate::proto::wire::BufferDescriptorV1;

/// `StructureSize` of both requests.
const STRUCTURE_SIZE: u16 = 49;
/// Where `Buffer` starts in both requests.
const BUFFER: usize = 112;
/// `DataOffset` of a WRITE.
const DATA_OFFSET: usize = 66;
/// `Length` of both requests.
const LENGTH: usize = 68;

/// Where a request keeps what concerns the channel, in bytes from the start of the SMB2 header.
/// `RemainingBytes`, the offset and the length of the channel information follow the channel.
fn channel_at(operation: Operation) -> usize {
    match operation {
        Operation::Read => 100,
        Operation::Write => 96,
    }
}

/// What a READ or WRITE by RDMA asks for: so many bytes, into or out of this memory of the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Bytes to move: `Length` of a READ, `RemainingBytes` of a WRITE. Whether it is within
    /// `MaxReadSize` or `MaxWriteSize` is for the caller to decide.
    pub length: u32,
    /// Whether the final response invalidates the first token.
    pub invalidate: bool,
    /// The memory, in order. For a WRITE it holds `length` bytes or more. In a READ request it may
    /// be smaller, so compare [`capacity`](Self::capacity) with the data that is there.
    pub descriptors: Vec<BufferDescriptorV1>,
    /// How the data of a WRITE is encrypted or signed; none in a READ.
    pub transform: Option<CryptoTransform>,
}

impl Placement {
    /// Reads a READ request: `message` is one SMB2 message (of a compound: one element) from the
    /// start of its header. Nothing if its channel is `SMB2_CHANNEL_NONE`.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn parse_read(message: &[u8], rules: &ChannelRules) -> Result<Option<Self>, RequestError> {
        let Some((channel, info)) = channel_info(message, Operation::Read, rules)? else {
            return Ok(None);
        };
        // [MS-SMB2] 3.3.5.12: the length is not 0. RemainingBytes is not looked at: clients leave
        // it zero.
        let length = u32_at(message, LENGTH);
        if length == 0 {
            return Err(RequestError::NothingToMove);
        }
        Ok(Some(Self {
            length,
            invalidate: channel == Channel::RdmaV1Invalidate,
            descriptors: descriptors(info)?,
            transform: None,
        }))
    }

    /// Reads a WRITE request, like [`parse_read`](Self::parse_read). `SMB2_CHANNEL_RDMA_TRANSFORM`
    /// gives the inner channel and the transform.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn parse_write(message: &[u8], rules: &ChannelRules) -> Result<Option<Self>, RequestError> {
        let Some((channel, info)) = channel_info(message, Operation::Write, rules)? else {
            return Ok(None);
        };
        // [MS-SMB2] 3.3.5.13: the data is not in the message, and RemainingBytes says how much
        // there is.
        let length = u32_at(message, LENGTH);
        if length != 0 {
            return Err(RequestError::LengthNotZero { length });
        }
        let offset = u16_at(message, DATA_OFFSET);
        if offset != 0 {
            return Err(RequestError::DataOffsetNotZero { offset });
        }
        let length = u32_at(message, channel_at(Operation::Write) + 4);
        if length == 0 {
            return Err(RequestError::NothingToMove);
        }
        let (channel, transform, array) = match channel {
            Channel::RdmaTransform => {
                let (channel, transform, array) = transformed(info, rules)?;
                (channel, Some(transform), array)
            }
            channel => (channel, None, info),
        };
        let placement = Self {
            length,
            invalidate: channel == Channel::RdmaV1Invalidate,
            descriptors: descriptors(array)?,
            transform,
        };
        placement.check_source()?;
        Ok(Some(placement))
    }

    /// The value of `Channel` in the request.
    pub fn channel(&self) -> Channel {
        match self.transform {
            Some(_) => Channel::RdmaTransform,
            None => self.inner_channel(),
        }
    }

    /// The token that the final response invalidates: that of the first descriptor, and no other
    /// ([MS-SMB2] 3.3.5.12, 3.3.5.13).
    pub fn token_to_invalidate(&self) -> Option<u32> {
        let first = self.descriptors.first()?;
        self.invalidate.then_some(first.token)
    }

    /// Bytes the descriptors hold.
    pub fn capacity(&self) -> u64 {
        self.descriptors.iter().map(|d| u64::from(d.length)).sum()
    }

    /// Makes a READ request of `message`: header and body (112 bytes), and at most the one byte of
    /// buffer that `StructureSize` counts. Sets `Length`, `Channel`, `RemainingBytes` and the place
    /// of the channel information, and puts that into the buffer. All else, `CreditCharge` for
    /// `length` bytes included, is the caller's.
    ///
    /// # Errors
    /// See [`RequestError`]; then `message` is as it was.
    pub fn encode_read(
        &self,
        message: &mut Vec<u8>,
        rules: &ChannelRules,
    ) -> Result<(), RequestError> {
        self.append(message, Operation::Read, rules)?;
        put_u32(message, LENGTH, self.length);
        // [MS-SMB2] 3.2.4.6 does not set RemainingBytes.
        put_u32(message, channel_at(Operation::Read) + 4, 0);
        Ok(())
    }

    /// Makes a WRITE request of `message`, like [`encode_read`](Self::encode_read):
    /// `RemainingBytes` is the length, `Length` and `DataOffset` are 0.
    ///
    /// # Errors
    /// See [`RequestError`]; then `message` is as it was.
    pub fn encode_write(
        &self,
        message: &mut Vec<u8>,
        rules: &ChannelRules,
    ) -> Result<(), RequestError> {
        self.append(message, Operation::Write, rules)?;
        // [MS-SMB2] 3.2.4.7.
        put_u32(message, LENGTH, 0);
        put_u16(message, DATA_OFFSET, 0);
        put_u32(message, channel_at(Operation::Write) + 4, self.length);
        Ok(())
    }

    fn inner_channel(&self) -> Channel {
        match self.invalidate {
            true => Channel::RdmaV1Invalidate,
            false => Channel::RdmaV1,
        }
    }

    /// [MS-SMB2] 3.3.5.13: the first descriptor is not empty, and all together hold the data.
    fn check_source(&self) -> Result<(), RequestError> {
        if self.descriptors.first().is_some_and(|d| d.length == 0) {
            return Err(RequestError::FirstDescriptorEmpty);
        }
        let capacity = self.capacity();
        if capacity < u64::from(self.length) {
            return Err(RequestError::DescriptorsTooSmall {
                capacity,
                needed: self.length,
            });
        }
        Ok(())
    }

    /// Appends the channel information to a request and sets the fields both requests have.
    fn append(
        &self,
        message: &mut Vec<u8>,
        operation: Operation,
        rules: &ChannelRules,
    ) -> Result<(), RequestError> {
        check_request(message, operation)?;
        if message.len() > BUFFER + 1 {
            return Err(RequestError::BufferInUse { len: message.len() });
        }
        for channel in [self.channel(), self.inner_channel()] {
            if !rules.allows(operation, channel) {
                return Err(RequestError::ChannelNotAllowed { channel });
            }
        }
        if self.length == 0 {
            return Err(RequestError::NothingToMove);
        }
        if self.descriptors.is_empty() {
            return Err(RequestError::NoDescriptors);
        }
        self.check_source()?;

        let count = self.descriptors.len();
        let too_many = |_| RequestError::TooManyDescriptors { count };
        let array = count.saturating_mul(BufferDescriptorV1::LEN);
        let mut info = match &self.transform {
            Some(transform) => self.transform_head(transform, array, rules)?,
            None => Vec::new(),
        };
        let info_len = u16::try_from(info.len().saturating_add(array)).map_err(too_many)?;
        for descriptor in &self.descriptors {
            info.extend_from_slice(&descriptor.encode());
        }

        message.truncate(BUFFER);
        message.extend_from_slice(&info);
        let at = channel_at(operation);
        put_u32(message, at, self.channel().value());
        put_u16(message, at + 8, BUFFER as u16);
        put_u16(message, at + 10, info_len);
        Ok(())
    }

    /// What stands in front of `array` bytes of descriptors whose data is transformed.
    fn transform_head(
        &self,
        transform: &CryptoTransform,
        array: usize,
        rules: &ChannelRules,
    ) -> Result<Vec<u8>, RequestError> {
        rules.transforms.check(transform.kind)?;
        let crypto = transform.encode()?;
        let too_many = |_| RequestError::TooManyDescriptors {
            count: self.descriptors.len(),
        };
        // [MS-SMB2] 3.2.4.7: the descriptors follow the transforms. BUFFER is a multiple of 8, so
        // they are aligned from the start of the message, too.
        let offset = RdmaTransform::LEN + crypto.len();
        let head = RdmaTransform {
            descriptor_offset: u16::try_from(offset).map_err(|_| TransformError::NonceTooLong {
                length: transform.nonce.len(),
            })?,
            descriptor_length: u16::try_from(array).map_err(too_many)?,
            channel: self.inner_channel().value(),
            transform_count: 1,
        };
        let mut info = head.encode().to_vec();
        info.extend_from_slice(&crypto);
        Ok(info)
    }
}

fn check_request(message: &[u8], operation: Operation) -> Result<(), RequestError> {
    let command = match operation {
        Operation::Read => READ,
        Operation::Write => WRITE,
    };
    check_message(message, command, STRUCTURE_SIZE, BUFFER)
        .map_err(|error| RequestError::not_message(error, message))
}

/// The channel of a request and its channel information; nothing if the channel is none.
fn channel_info<'a>(
    message: &'a [u8],
    operation: Operation,
    rules: &ChannelRules,
) -> Result<Option<(Channel, &'a [u8])>, RequestError> {
    check_request(message, operation)?;
    let at = channel_at(operation);
    let channel = rules.check(operation, u32_at(message, at))?;
    if channel == Channel::None {
        return Ok(None);
    }
    let offset = u16_at(message, at + 8);
    let length = u16_at(message, at + 10);
    // [MS-SMB2] 3.3.5.12, 3.3.5.13: neither is 0.
    if offset == 0 {
        return Err(RequestError::InfoOffsetZero);
    }
    if length == 0 {
        return Err(RequestError::InfoLengthZero);
    }
    if usize::from(offset) < BUFFER {
        return Err(RequestError::InfoInsideBody { offset });
    }
    let end = u64::from(offset) + u64::from(length);
    if end > message.len() as u64 {
        return Err(RequestError::InfoBeyondMessage {
            offset,
            length,
            len: message.len(),
        });
    }
    Ok(Some((channel, &message[usize::from(offset)..end as usize])))
}

/// The inner channel, the transform and the descriptors' bytes of `SMB2_CHANNEL_RDMA_TRANSFORM`.
fn transformed<'a>(
    info: &'a [u8],
    rules: &ChannelRules,
) -> Result<(Channel, CryptoTransform, &'a [u8]), RequestError> {
    let head = RdmaTransform::parse(info)?;
    let channel = Channel::from_value(head.channel)
        .filter(|c| matches!(c, Channel::RdmaV1 | Channel::RdmaV1Invalidate))
        .filter(|c| rules.allows(Operation::Write, *c))
        .ok_or(TransformError::InnerChannel {
            value: head.channel,
        })?;
    // [MS-SMB2] 3.3.5.13: data is encrypted or signed, never both.
    if head.transform_count != 1 {
        return Err(TransformError::Count {
            count: head.transform_count,
        }
        .into());
    }
    let (transform, used) = CryptoTransform::parse(&info[RdmaTransform::LEN..])?;
    rules.transforms.check(transform.kind)?;

    let (offset, length) = (head.descriptor_offset, head.descriptor_length);
    if !offset.is_multiple_of(8) {
        return Err(TransformError::DescriptorsUnaligned { offset }.into());
    }
    if usize::from(offset) < RdmaTransform::LEN + used {
        return Err(TransformError::DescriptorsInsideTransforms { offset }.into());
    }
    let end = u64::from(offset) + u64::from(length);
    if end > info.len() as u64 {
        return Err(TransformError::DescriptorsBeyondInfo {
            offset,
            length,
            len: info.len(),
        }
        .into());
    }
    Ok((channel, transform, &info[usize::from(offset)..end as usize]))
}

fn descriptors(array: &[u8]) -> Result<Vec<BufferDescriptorV1>, RequestError> {
    if array.is_empty() {
        return Err(RequestError::NoDescriptors);
    }
    BufferDescriptorV1::parse_array(array).map_err(|_| RequestError::DescriptorCutOff {
        length: array.len(),
    })
}
