//! The examples' own protocol: a request names an operation, a place in the file and exposed memory; the response has
//! the status and the checksum of what was moved. All fields are little-endian.

use smbdirect::proto::wire::BufferDescriptorV1;

/// What the server is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Write the file's content into the exposed memory (as an SMB READ).
    Get,
    /// Read the exposed memory into the file (as an SMB WRITE).
    Put,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// The response invalidates the first descriptor.
    pub(crate) invalidate: bool,
    pub(crate) id: u64,
    /// Where in the file.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) descriptors: Vec<BufferDescriptorV1>,
}

/// A response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) id: u64,
    pub(crate) ok: bool,
    /// Of the bytes as the server has them.
    pub(crate) checksum: u64,
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.operation as u8, u8::from(self.invalidate)];
        bytes.extend(self.id.to_le_bytes());
        bytes.extend(self.offset.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        for descriptor in &self.descriptors {
            bytes.extend(descriptor.encode());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, descriptors) = bytes.split_at_checked(22)?;
        Some(Self {
            operation: match fixed[0] {
                0 => Operation::Get,
                1 => Operation::Put,
                _ => return None,
            },
            invalidate: fixed[1] != 0,
            id: u64::from_le_bytes(fixed[2..10].try_into().ok()?),
            offset: u64::from_le_bytes(fixed[10..18].try_into().ok()?),
            len: u32::from_le_bytes(fixed[18..22].try_into().ok()?),
            descriptors: BufferDescriptorV1::parse_array(descriptors).ok()?,
        })
    }
}

impl Response {
    pub(crate) fn encode(&self) -> [u8; 17] {
        let mut bytes = [0; 17];
        bytes[0] = u8::from(self.ok);
        bytes[1..9].copy_from_slice(&self.id.to_le_bytes());
        bytes[9..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 17] = bytes.try_into().ok()?;
        Some(Self {
            ok: bytes[0] != 0,
            id: u64::from_le_bytes(bytes[1..9].try_into().ok()?),
            checksum: u64::from_le_bytes(bytes[9..].try_into().ok()?),
        })
    }
}

/// A checksum of content: of eight-byte words, so that it keeps up with the transfers.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, word: u64| {
        (sum ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words
        .iter()
        .fold(bytes.len() as u64 ^ 0xcbf2_9ce4_8422_2325, |sum, word| {
            mix(sum, u64::from_le_bytes(*word))
        });
    rest.iter()
        .fold(sum, |sum, byte| mix(sum, u64::from(*byte)))
}
