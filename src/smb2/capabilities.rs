//! Which transforms of data by RDMA the two sides can do ([MS-SMB2] 2.2.3.1.6, 2.2.4.1.6).

use super::fields::{put_u16, u16_at};
use super::{CapabilitiesError, TransformError, TransformType};

/// `ContextType` of `SMB2_RDMA_TRANSFORM_CAPABILITIES` among the negotiate contexts.
pub const RDMA_TRANSFORM_CAPABILITIES: u16 = 0x0007;

/// Bytes in front of the array.
const FIXED: usize = 8;

const NONE: u16 = 0;
const ENCRYPTION: u16 = 1;
const SIGNING: u16 = 2;

/// The data of the negotiate context `SMB2_RDMA_TRANSFORM_CAPABILITIES`: a set of transforms.
/// A negotiation has at most one such context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransformCapabilities {
    /// `SMB2_RDMA_TRANSFORM_ENCRYPTION`.
    pub encryption: bool,
    /// `SMB2_RDMA_TRANSFORM_SIGNING`.
    pub signing: bool,
}

impl TransformCapabilities {
    /// Reads `Data` of the context in a NEGOTIATE request. Transforms nobody defined are passed
    /// over.
    ///
    /// # Errors
    /// [`CapabilitiesError::TooShort`], [`CapabilitiesError::Empty`].
    pub fn parse_request(data: &[u8]) -> Result<Self, CapabilitiesError> {
        let mut found = Self::default();
        for id in ids(data)? {
            match id {
                ENCRYPTION => found.encryption = true,
                SIGNING => found.signing = true,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Reads `Data` of the context in a NEGOTIATE response to `offered`.
    ///
    /// # Errors
    /// As for a request; and [`CapabilitiesError::MoreThanOffered`],
    /// [`CapabilitiesError::NotOffered`] ([MS-SMB2] 3.2.5.2).
    pub fn parse_response(data: &[u8], offered: Self) -> Result<Self, CapabilitiesError> {
        let ids = ids(data)?;
        if ids.len() > offered.count() {
            return Err(CapabilitiesError::MoreThanOffered {
                // The array's length came from 16 bits.
                count: ids.len() as u16,
            });
        }
        let mut found = Self::default();
        for id in ids {
            match id {
                // "None in common" needs no offer.
                NONE => {}
                ENCRYPTION if offered.encryption => found.encryption = true,
                SIGNING if offered.signing => found.signing = true,
                id => return Err(CapabilitiesError::NotOffered { id }),
            }
        }
        Ok(found)
    }

    /// `Data` of the context. No transform at all is said as `SMB2_RDMA_TRANSFORM_NONE`.
    pub fn encode(&self) -> Vec<u8> {
        let ids: &[u16] = match (self.encryption, self.signing) {
            (false, false) => &[NONE],
            (true, false) => &[ENCRYPTION],
            (false, true) => &[SIGNING],
            (true, true) => &[ENCRYPTION, SIGNING],
        };
        let mut data = vec![0; FIXED + 2 * ids.len()];
        put_u16(&mut data, 0, ids.len() as u16);
        for (i, &id) in ids.iter().enumerate() {
            put_u16(&mut data, FIXED + 2 * i, id);
        }
        data
    }

    /// What both can do: the server's answer ([MS-SMB2] 3.3.5.4).
    pub fn intersect(self, other: Self) -> Self {
        Self {
            encryption: self.encryption && other.encryption,
            signing: self.signing && other.signing,
        }
    }

    /// Whether there is any transform.
    pub fn any(&self) -> bool {
        self.encryption || self.signing
    }

    /// Whether transforms of this type are in the set.
    pub fn contains(&self, kind: TransformType) -> bool {
        match kind {
            TransformType::Encryption => self.encryption,
            TransformType::Signing => self.signing,
        }
    }

    pub(super) fn check(&self, kind: TransformType) -> Result<(), TransformError> {
        match self.contains(kind) {
            true => Ok(()),
            false => Err(TransformError::NotNegotiated { kind }),
        }
    }

    /// Elements of the array as encoded.
    fn count(&self) -> usize {
        (usize::from(self.encryption) + usize::from(self.signing)).max(1)
    }
}

/// The array of the context.
fn ids(data: &[u8]) -> Result<impl ExactSizeIterator<Item = u16>, CapabilitiesError> {
    let too_short = |needed| CapabilitiesError::TooShort {
        needed,
        len: data.len(),
    };
    let fixed: &[u8; FIXED] = data.first_chunk().ok_or(too_short(FIXED as u64))?;
    // [MS-SMB2] 2.2.3.1.6: greater than 0.
    let count = usize::from(u16_at(fixed, 0));
    if count == 0 {
        return Err(CapabilitiesError::Empty);
    }
    let needed = FIXED + 2 * count;
    let array = data.get(FIXED..needed).ok_or(too_short(needed as u64))?;
    Ok(array.chunks_exact(2).map(|id| u16_at(id, 0)))
}
