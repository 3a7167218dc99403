//! How encrypted or signed data that goes by RDMA is described ([MS-SMB2] 2.2.43).

use super::TransformError;
use super::fields::{put_u16, put_u32, u16_at, u32_at};

/// `SMB2_RDMA_TRANSFORM` ([MS-SMB2] 2.2.43): the head of the description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RdmaTransform {
    /// Where the descriptors start, in bytes from the start of this structure; 0 in a response.
    pub descriptor_offset: u16,
    /// Bytes of the descriptors; 0 in a response.
    pub descriptor_length: u16,
    /// The inner channel, as on the wire: 1 or 2 in a WRITE request, 0 in a READ response.
    pub channel: u32,
    /// How many [`CryptoTransform`] follow.
    pub transform_count: u16,
}

impl RdmaTransform {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// Reads the structure from the start of `bytes`; judges no value.
    ///
    /// # Errors
    /// [`TransformError::TransformTooShort`].
    pub fn parse(bytes: &[u8]) -> Result<Self, TransformError> {
        let b: &[u8; Self::LEN] = bytes
            .first_chunk()
            .ok_or(TransformError::TransformTooShort { len: bytes.len() })?;
        Ok(Self {
            descriptor_offset: u16_at(b, 0),
            descriptor_length: u16_at(b, 2),
            channel: u32_at(b, 4),
            transform_count: u16_at(b, 8),
        })
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        put_u16(&mut b, 0, self.descriptor_offset);
        put_u16(&mut b, 2, self.descriptor_length);
        put_u32(&mut b, 4, self.channel);
        put_u16(&mut b, 8, self.transform_count);
        b
    }
}

/// What was done to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransformType {
    /// `SMB2_RDMA_TRANSFORM_TYPE_ENCRYPTION`.
    Encryption,
    /// `SMB2_RDMA_TRANSFORM_TYPE_SIGNING`.
    Signing,
}

impl TransformType {
    fn value(self) -> u16 {
        match self {
            Self::Encryption => 1,
            Self::Signing => 2,
        }
    }
}

/// `SMB2_RDMA_CRYPTO_TRANSFORM` ([MS-SMB2] 2.2.43.1): what the receiver of the data needs to
/// decrypt or verify it. Which lengths an algorithm asks for is not decided here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptoTransform {
    /// What was done to the data.
    pub kind: TransformType,
    /// The signature or authentication tag, at most 16 bytes.
    pub signature: Vec<u8>,
    /// The nonce; may be empty.
    pub nonce: Vec<u8>,
}

impl CryptoTransform {
    /// The longest signature, in bytes ([MS-SMB2] 2.2.43.1).
    pub const MAX_SIGNATURE: usize = 16;

    /// Bytes in front of the signature.
    const FIXED: usize = 8;

    /// Reads the structure from the start of `bytes`, and says how many of them it takes, without
    /// padding.
    ///
    /// # Errors
    /// [`TransformError::CryptoTooShort`], [`TransformError::UnknownType`],
    /// [`TransformError::SignatureTooLong`].
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), TransformError> {
        let too_short = |needed| TransformError::CryptoTooShort {
            needed,
            len: bytes.len(),
        };
        let fixed: &[u8; Self::FIXED] = bytes.first_chunk().ok_or(too_short(Self::FIXED as u64))?;
        let kind = match u16_at(fixed, 0) {
            1 => TransformType::Encryption,
            2 => TransformType::Signing,
            value => return Err(TransformError::UnknownType { value }),
        };
        let signature = usize::from(u16_at(fixed, 2));
        let nonce = usize::from(u16_at(fixed, 4));
        if signature > Self::MAX_SIGNATURE {
            return Err(TransformError::SignatureTooLong { length: signature });
        }
        // Two 16-bit numbers and 8: no overflow.
        let len = Self::FIXED + signature + nonce;
        let used = bytes.get(..len).ok_or(too_short(len as u64))?;
        let (signature, nonce) = used[Self::FIXED..].split_at(signature);
        let transform = Self {
            kind,
            signature: signature.to_vec(),
            nonce: nonce.to_vec(),
        };
        Ok((transform, len))
    }

    /// The bytes to send, padded with zeros to a multiple of 8, so that descriptors can follow.
    ///
    /// # Errors
    /// [`TransformError::SignatureTooLong`]; [`TransformError::NonceTooLong`] for more than 65,535
    /// bytes.
    pub fn encode(&self) -> Result<Vec<u8>, TransformError> {
        let length = self.signature.len();
        if length > Self::MAX_SIGNATURE {
            return Err(TransformError::SignatureTooLong { length });
        }
        let nonce = u16::try_from(self.nonce.len()).map_err(|_| TransformError::NonceTooLong {
            length: self.nonce.len(),
        })?;
        let mut b = vec![0; Self::FIXED];
        put_u16(&mut b, 0, self.kind.value());
        put_u16(&mut b, 2, length as u16);
        put_u16(&mut b, 4, nonce);
        b.extend_from_slice(&self.signature);
        b.extend_from_slice(&self.nonce);
        b.resize(b.len().next_multiple_of(8), 0);
        Ok(b)
    }
}
