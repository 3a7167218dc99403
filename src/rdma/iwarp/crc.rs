//! The checksum at the end of every FPDU: CRC32C, as RFC 5044 stores it.

/// A CRC32C that is computed piece by piece.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Crc(u32);

impl Crc {
    /// Takes in the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The field on the wire. RFC 5044 appendix: the least significant octet comes first.
    pub(super) fn field(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// The field of one stretch of bytes.
    #[cfg(test)]
    pub(super) fn of(bytes: &[u8]) -> [u8; 4] {
        let mut crc = Self::default();
        crc.update(bytes);
        crc.field()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_same_checksum() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut crc = Crc::default();
        crc.update(&bytes[..100]);
        crc.update(&[]);
        crc.update(&bytes[100..]);
        assert_eq!(crc.field(), Crc::of(&bytes));
        // The check value of CRC-32C.
        assert_eq!(Crc::of(b"123456789"), 0xE306_9283_u32.to_le_bytes());
    }
}
