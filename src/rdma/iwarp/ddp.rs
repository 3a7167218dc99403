//! DDP segment headers (RFC 5041) together with the RDMAP control byte in them.

use super::rdmap::{Opcode, TermCode, u32_at, u64_at};

/// Bytes of the control fields and the tagged header.
pub(super) const TAGGED_LEN: usize = 14;
/// Bytes of the control fields and the untagged header.
pub(super) const UNTAGGED_LEN: usize = 18;

const TAGGED: u8 = 0x80;
const LAST: u8 = 0x40;
const DDP_VERSION: u8 = 1;
const RDMAP_VERSION: u8 = 1;

/// The header of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) opcode: Opcode,
    /// L: the message's last segment.
    pub(super) last: bool,
    pub(super) address: Address,
}

/// Where a segment's payload belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    /// Into memory that a steering tag names.
    Tagged { tag: u32, offset: u64 },
    /// Into the message with this number of a queue.
    Untagged {
        /// The steering tag to invalidate, where the opcode says so.
        invalidate: u32,
        queue: u32,
        msn: u32,
        offset: u32,
    },
}

impl Segment {
    /// Length of the header that begins with this first control byte.
    pub(super) fn header_len(first: u8) -> usize {
        if first & TAGGED != 0 {
            TAGGED_LEN
        } else {
            UNTAGGED_LEN
        }
    }

    /// Bytes of this header.
    pub(super) fn len(&self) -> usize {
        match self.address {
            Address::Tagged { .. } => TAGGED_LEN,
            Address::Untagged { .. } => UNTAGGED_LEN,
        }
    }

    /// Appends the header.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let tagged = matches!(self.address, Address::Tagged { .. });
        out.push(if tagged { TAGGED } else { 0 } | if self.last { LAST } else { 0 } | DDP_VERSION);
        out.push(RDMAP_VERSION << 6 | self.opcode as u8);
        match self.address {
            Address::Tagged { tag, offset } => {
                out.extend_from_slice(&tag.to_be_bytes());
                out.extend_from_slice(&offset.to_be_bytes());
            }
            Address::Untagged {
                invalidate,
                queue,
                msn,
                offset,
            } => {
                for word in [invalidate, queue, msn, offset] {
                    out.extend_from_slice(&word.to_be_bytes());
                }
            }
        }
    }

    /// Reads a header of the length that [`Segment::header_len`] gave.
    ///
    /// # Panics
    /// If `bytes` is shorter.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, TermCode> {
        let tagged = bytes[0] & TAGGED != 0;
        // D01.
        if bytes[0] & 0x03 != DDP_VERSION {
            return Err(if tagged {
                TermCode::DDP_TAGGED_VERSION
            } else {
                TermCode::DDP_UNTAGGED_VERSION
            });
        }
        // R01. RDMAP version 0 is that of the RDMA Consortium, with the same messages.
        if bytes[1] >> 6 > RDMAP_VERSION {
            return Err(TermCode::RDMAP_VERSION);
        }
        let opcode = Opcode::from_bits(bytes[1] & 0x0F).ok_or(TermCode::RDMAP_OPCODE)?;
        if opcode.tagged() != tagged {
            return Err(TermCode::RDMAP_OPCODE);
        }
        let address = if tagged {
            Address::Tagged {
                tag: u32_at(bytes, 2),
                offset: u64_at(bytes, 6),
            }
        } else {
            Address::Untagged {
                invalidate: u32_at(bytes, 2),
                queue: u32_at(bytes, 6),
                msn: u32_at(bytes, 10),
                offset: u32_at(bytes, 14),
            }
        };
        Ok(Self {
            opcode,
            last: bytes[0] & LAST != 0,
            address,
        })
    }
}

/// The message sequence number after `msn`; wraps to zero.
pub(super) fn next_msn(msn: u32) -> u32 {
    msn.wrapping_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged(opcode: Opcode, last: bool, tag: u32, offset: u64) -> Segment {
        Segment {
            opcode,
            last,
            address: Address::Tagged { tag, offset },
        }
    }

    fn untagged(opcode: Opcode, last: bool) -> Segment {
        Segment {
            opcode,
            last,
            address: Address::Untagged {
                invalidate: 0xAABB_CCDD,
                queue: opcode.queue(),
                msn: 0xFFFF_FFFF,
                offset: 1482,
            },
        }
    }

    #[test]
    fn control_bytes_of_every_opcode() {
        let expected = [
            (Opcode::Write, [0xC1, 0x40], 14),
            (Opcode::ReadRequest, [0x41, 0x41], 18),
            (Opcode::ReadResponse, [0xC1, 0x42], 14),
            (Opcode::Send, [0x41, 0x43], 18),
            (Opcode::SendInvalidate, [0x41, 0x44], 18),
            (Opcode::SendSolicited, [0x41, 0x45], 18),
            (Opcode::SendSolicitedInvalidate, [0x41, 0x46], 18),
            (Opcode::Terminate, [0x41, 0x47], 18),
        ];
        for (opcode, control, len) in expected {
            let segment = if opcode.tagged() {
                tagged(opcode, true, 0x1A00_BC56, 0xABCD_E012)
            } else {
                untagged(opcode, true)
            };
            let mut bytes = Vec::new();
            segment.encode(&mut bytes);
            assert_eq!((bytes.len(), &bytes[..2]), (len, &control[..]));
            assert_eq!(segment.len(), len);
            assert_eq!(Segment::header_len(bytes[0]), len);
            assert_eq!(Segment::decode(&bytes), Ok(segment));
        }
    }

    #[test]
    fn d01_wrong_ddp_version() {
        let mut bytes = [0; 18];
        for version in [0, 2, 3] {
            bytes[0] = 0x40 | version;
            assert_eq!(Segment::decode(&bytes), Err(TermCode::DDP_UNTAGGED_VERSION));
            bytes[0] |= 0x80;
            assert_eq!(Segment::decode(&bytes), Err(TermCode::DDP_TAGGED_VERSION));
        }
    }

    #[test]
    fn r01_version_and_opcode() {
        let mut bytes = [0; 18];
        bytes[0] = 0x41;
        for (control, error) in [
            (0x83, TermCode::RDMAP_VERSION),
            (0xC3, TermCode::RDMAP_VERSION),
            (0x48, TermCode::RDMAP_OPCODE),
            (0x4F, TermCode::RDMAP_OPCODE),
            (0x40, TermCode::RDMAP_OPCODE),
        ] {
            bytes[1] = control;
            assert_eq!(Segment::decode(&bytes), Err(error), "{control:#x}");
        }
        bytes[1] = 0x03;
        assert!(Segment::decode(&bytes).is_ok(), "RDMAC version");
        bytes[0] = 0xC1;
        assert_eq!(Segment::decode(&bytes), Err(TermCode::RDMAP_OPCODE));
    }

    #[test]
    fn reserved_bits_are_not_looked_at() {
        let mut bytes = Vec::new();
        untagged(Opcode::Send, false).encode(&mut bytes);
        bytes[0] |= 0x3C;
        bytes[1] |= 0x30;
        assert_eq!(Segment::decode(&bytes), Ok(untagged(Opcode::Send, false)));
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        assert_eq!(next_msn(u32::MAX), 0);
    }
}
