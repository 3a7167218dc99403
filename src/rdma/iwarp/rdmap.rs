//! RDMAP (RFC 5040): opcodes, the Read Request and the Terminate message.

use super::ddp::{TAGGED_LEN, UNTAGGED_LEN};

/// Queue numbers of untagged messages.
pub(super) const QN_SEND: u32 = 0;
pub(super) const QN_READ_REQUEST: u32 = 1;
pub(super) const QN_TERMINATE: u32 = 2;

/// Bytes of a Read Request behind the DDP header.
pub(super) const READ_REQUEST_LEN: usize = 28;
/// Bytes of a Terminate message at most.
pub(super) const MAX_TERMINATE: usize = 4 + 2 + UNTAGGED_LEN + READ_REQUEST_LEN;

/// RDMAP message types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Write = 0,
    ReadRequest = 1,
    ReadResponse = 2,
    Send = 3,
    SendInvalidate = 4,
    SendSolicited = 5,
    SendSolicitedInvalidate = 6,
    Terminate = 7,
}

impl Opcode {
    /// The opcode with this number.
    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Write,
            1 => Self::ReadRequest,
            2 => Self::ReadResponse,
            3 => Self::Send,
            4 => Self::SendInvalidate,
            5 => Self::SendSolicited,
            6 => Self::SendSolicitedInvalidate,
            7 => Self::Terminate,
            _ => return None,
        })
    }

    /// Whether its segments carry a steering tag and an offset.
    pub(super) fn tagged(self) -> bool {
        matches!(self, Self::Write | Self::ReadResponse)
    }

    /// Whether it is one of the four Sends.
    pub(super) fn is_send(self) -> bool {
        matches!(
            self,
            Self::Send | Self::SendInvalidate | Self::SendSolicited | Self::SendSolicitedInvalidate
        )
    }

    /// Whether it invalidates a steering tag of the receiver.
    pub(super) fn invalidates(self) -> bool {
        matches!(self, Self::SendInvalidate | Self::SendSolicitedInvalidate)
    }

    /// The queue of an untagged message.
    pub(super) fn queue(self) -> u32 {
        match self {
            Self::ReadRequest => QN_READ_REQUEST,
            Self::Terminate => QN_TERMINATE,
            _ => QN_SEND,
        }
    }

    /// The Send with these properties.
    pub(super) fn send(invalidate: bool, solicited: bool) -> Self {
        match (invalidate, solicited) {
            (false, false) => Self::Send,
            (true, false) => Self::SendInvalidate,
            (false, true) => Self::SendSolicited,
            (true, true) => Self::SendSolicitedInvalidate,
        }
    }
}

/// A request for bytes of the receiver's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReadRequest {
    pub(super) sink_tag: u32,
    pub(super) sink_offset: u64,
    pub(super) len: u32,
    pub(super) source_tag: u32,
    pub(super) source_offset: u64,
}

impl ReadRequest {
    pub(super) fn encode(&self) -> [u8; READ_REQUEST_LEN] {
        let mut out = [0; READ_REQUEST_LEN];
        out[0..4].copy_from_slice(&self.sink_tag.to_be_bytes());
        out[4..12].copy_from_slice(&self.sink_offset.to_be_bytes());
        out[12..16].copy_from_slice(&self.len.to_be_bytes());
        out[16..20].copy_from_slice(&self.source_tag.to_be_bytes());
        out[20..28].copy_from_slice(&self.source_offset.to_be_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; READ_REQUEST_LEN]) -> Self {
        Self {
            sink_tag: u32_at(bytes, 0),
            sink_offset: u64_at(bytes, 4),
            len: u32_at(bytes, 12),
            source_tag: u32_at(bytes, 16),
            source_offset: u64_at(bytes, 20),
        }
    }
}

/// The error that a Terminate message names: layer, type and code of RFC 5040 section 4.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TermCode {
    pub(super) layer: u8,
    pub(super) error_type: u8,
    pub(super) code: u8,
}

impl TermCode {
    pub(super) const RDMAP_INVALID_TAG: Self = Self::new(0, 1, 0x00);
    pub(super) const RDMAP_BOUNDS: Self = Self::new(0, 1, 0x01);
    pub(super) const RDMAP_ACCESS: Self = Self::new(0, 1, 0x02);
    pub(super) const RDMAP_WRAP: Self = Self::new(0, 1, 0x04);
    pub(super) const RDMAP_CANNOT_INVALIDATE: Self = Self::new(0, 1, 0x09);
    pub(super) const RDMAP_VERSION: Self = Self::new(0, 2, 0x05);
    pub(super) const RDMAP_OPCODE: Self = Self::new(0, 2, 0x06);
    pub(super) const RDMAP_STREAM: Self = Self::new(0, 2, 0x07);
    pub(super) const DDP_INVALID_TAG: Self = Self::new(1, 1, 0x00);
    pub(super) const DDP_BOUNDS: Self = Self::new(1, 1, 0x01);
    pub(super) const DDP_WRAP: Self = Self::new(1, 1, 0x03);
    pub(super) const DDP_TAGGED_VERSION: Self = Self::new(1, 1, 0x04);
    pub(super) const DDP_QUEUE: Self = Self::new(1, 2, 0x01);
    pub(super) const DDP_NO_BUFFER: Self = Self::new(1, 2, 0x02);
    pub(super) const DDP_MSN: Self = Self::new(1, 2, 0x03);
    pub(super) const DDP_OFFSET: Self = Self::new(1, 2, 0x04);
    pub(super) const DDP_TOO_LONG: Self = Self::new(1, 2, 0x05);
    pub(super) const DDP_UNTAGGED_VERSION: Self = Self::new(1, 2, 0x06);
    pub(super) const MPA_CRC: Self = Self::new(2, 0, 0x02);
    pub(super) const MPA_MARKER: Self = Self::new(2, 0, 0x03);
    pub(super) const MPA_INSUFFICIENT_IRD: Self = Self::new(2, 0, 0x06);
    pub(super) const MPA_NO_MATCHING_RTR: Self = Self::new(2, 0, 0x07);

    const fn new(layer: u8, error_type: u8, code: u8) -> Self {
        Self {
            layer,
            error_type,
            code,
        }
    }

    /// Whether RFC 5040, 5041, 5044 or 6581 defines it.
    pub(super) fn is_defined(self) -> bool {
        match (self.layer, self.error_type) {
            (0, 0) => true,
            (0, 1) => matches!(self.code, 0..=4 | 9 | 0xFF),
            (0, 2) => matches!(self.code, 5..=9 | 0xFF),
            (1, 0) => self.code == 0,
            (1, 1) => self.code <= 4,
            (1, 2) => matches!(self.code, 1..=6),
            (2, 0) => matches!(self.code, 1..=7),
            _ => false,
        }
    }

    /// Whether the Terminate carries the offending DDP header (RFC 5040 table 5).
    fn has_ddp_header(self) -> bool {
        self.layer < 2 && self.error_type != 0
    }
}

/// The head of an offending segment, for the Terminate that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offender {
    /// The ULPDU's length as the peer gave it.
    pub(super) ulpdu_len: u16,
    /// DDP header: 14 bytes of a tagged, 18 of an untagged segment.
    pub(super) header: [u8; UNTAGGED_LEN],
    /// Whether it is the tagged one.
    pub(super) tagged: bool,
    /// The Read Request, where it was one.
    pub(super) read_request: Option<[u8; READ_REQUEST_LEN]>,
}

/// A Terminate message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terminate {
    pub(super) code: TermCode,
    pub(super) offender: Option<Offender>,
}

const FLAG_LENGTH: u8 = 0x80;
const FLAG_DDP: u8 = 0x40;
const FLAG_RDMAP: u8 = 0x20;

impl Terminate {
    /// Writes the message and returns its length.
    pub(super) fn encode(&self, out: &mut [u8; MAX_TERMINATE]) -> usize {
        let code = self.code;
        out[0] = code.layer << 4 | code.error_type;
        out[1] = code.code;
        out[2] = 0;
        out[3] = 0;
        let Some(offender) = self.offender.filter(|_| code.has_ddp_header()) else {
            return 4;
        };
        out[2] = FLAG_LENGTH | FLAG_DDP;
        out[4..6].copy_from_slice(&offender.ulpdu_len.to_be_bytes());
        let header_len = if offender.tagged {
            TAGGED_LEN
        } else {
            UNTAGGED_LEN
        };
        let end = 6 + header_len;
        out[6..end].copy_from_slice(&offender.header[..header_len]);
        match offender.read_request {
            // RFC 5040 table 5: only protection errors carry the Read Request.
            Some(request) if code.layer == 0 && code.error_type == 1 => {
                out[2] |= FLAG_RDMAP;
                out[end..end + READ_REQUEST_LEN].copy_from_slice(&request);
                end + READ_REQUEST_LEN
            }
            _ => end,
        }
    }

    /// Reads a message of whatever length it has. Linux siw writes layer and type in the wrong
    /// nibbles, and the three flags at the wrong end of their byte: both are understood.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; 4] = bytes.first_chunk()?;
        let mut code = TermCode::new(head[0] >> 4, head[0] & 0x0F, head[1]);
        let mut flags = head[2];
        let swapped = TermCode::new(head[0] & 0x0F, head[0] >> 4, head[1]);
        let swapped_flags = flags & 0xE0 == 0 && flags & 0x07 != 0;
        if swapped_flags {
            flags = (flags & 1) << 7 | (flags & 2) << 5 | (flags & 4) << 3;
        }
        if (swapped_flags || !code.is_defined()) && swapped.is_defined() {
            code = swapped;
        }
        Some(Self {
            code,
            offender: Self::decode_offender(flags, &bytes[4..]),
        })
    }

    fn decode_offender(flags: u8, bytes: &[u8]) -> Option<Offender> {
        if flags & FLAG_DDP == 0 {
            return None;
        }
        let (len, rest) = bytes.split_first_chunk::<2>()?;
        let tagged = rest.first()? & 0x80 != 0;
        let header_len = if tagged { TAGGED_LEN } else { UNTAGGED_LEN };
        let (head, rest) = rest.split_at_checked(header_len)?;
        let mut header = [0; UNTAGGED_LEN];
        header[..header_len].copy_from_slice(head);
        Some(Offender {
            ulpdu_len: u16::from_be_bytes(*len),
            header,
            tagged,
            read_request: if flags & FLAG_RDMAP == 0 {
                None
            } else {
                rest.first_chunk().copied()
            },
        })
    }
}

impl Offender {
    /// The opcode in the offending header.
    pub(super) fn opcode(&self) -> Option<Opcode> {
        Opcode::from_bits(self.header[1] & 0x0F)
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
#[path = "rdmap_tests.rs"]
mod tests;
