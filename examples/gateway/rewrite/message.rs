//! SMB2 messages as a forwarder sees them: the header, and where the members of a compound are
//! ([MS-SMB2] 2.2.1, 3.3.5.2.7).

use std::fmt;
use std::ops::Range;

/// Bytes of the SMB2 header.
pub(super) const HEADER: usize = 64;

pub(super) const NEGOTIATE: u16 = 0x0000;
pub(super) const SESSION_SETUP: u16 = 0x0001;
pub(super) const READ: u16 = 0x0008;
pub(super) const WRITE: u16 = 0x0009;
pub(super) const CANCEL: u16 = 0x000C;
pub(super) const ECHO: u16 = 0x000D;

pub(super) const STATUS_SUCCESS: u32 = 0;
pub(super) const STATUS_PENDING: u32 = 0x0000_0103;
pub(super) const STATUS_INVALID_PARAMETER: u32 = 0xC000_000D;
pub(super) const STATUS_INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;

/// The id of what a server sends unasked, such as oplock breaks ([MS-SMB2] 3.3.4.6).
pub(super) const UNSOLICITED: u64 = u64::MAX;

const SERVER_TO_REDIR: u32 = 0x0000_0001;
const ASYNC_COMMAND: u32 = 0x0000_0002;
const SIGNED: u32 = 0x0000_0008;

const STATUS: usize = 8;
const COMMAND: usize = 12;
const FLAGS: usize = 16;
const NEXT: usize = 20;
const MESSAGE_ID: usize = 24;

/// What a message is, by its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// An SMB2 message in the clear.
    Smb2,
    /// An encrypted message ([MS-SMB2] 2.2.41).
    Encrypted,
    /// A compressed message ([MS-SMB2] 2.2.42), or the NEGOTIATE of SMB1 by which old clients ask
    /// for SMB2 ([MS-SMB2] 3.3.5.3).
    Other,
}

impl Protocol {
    /// What the message is; nothing if it is none of SMB.
    pub(super) fn of(message: &[u8]) -> Option<Self> {
        match message.first_chunk()? {
            b"\xFESMB" => Some(Self::Smb2),
            b"\xFDSMB" => Some(Self::Encrypted),
            b"\xFCSMB" | b"\xFFSMB" => Some(Self::Other),
            _ => None,
        }
    }
}

/// Whether a server answers this message, as far as that can be seen: a CANCEL has no answer.
pub(crate) fn owes_answer(message: &[u8]) -> bool {
    match Protocol::of(message) {
        Some(Protocol::Smb2) => {
            let first = members(message).next();
            first.is_some_and(|found| found.is_ok_and(|(_, member)| member.command() != CANCEL))
        }
        Some(Protocol::Other) => true,
        Some(Protocol::Encrypted) | None => false,
    }
}

/// A member of a compound, or the one member of a message: at least a whole header.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member<'a>(&'a [u8]);

impl<'a> Member<'a> {
    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn command(self) -> u16 {
        u16_at(self.0, COMMAND)
    }

    pub(super) fn status(self) -> u32 {
        u32_at(self.0, STATUS)
    }

    pub(super) fn message_id(self) -> u64 {
        u64::from(u32_at(self.0, MESSAGE_ID)) | u64::from(u32_at(self.0, MESSAGE_ID + 4)) << 32
    }

    /// Bytes to the next member; 0 in the last one.
    pub(super) fn next(self) -> u32 {
        u32_at(self.0, NEXT)
    }

    pub(super) fn is_signed(self) -> bool {
        self.flags() & SIGNED != 0
    }

    pub(super) fn is_async(self) -> bool {
        self.flags() & ASYNC_COMMAND != 0
    }

    pub(super) fn is_response(self) -> bool {
        self.flags() & SERVER_TO_REDIR != 0
    }

    /// Whether it only says that the answer takes long ([MS-SMB2] 3.3.4.2).
    pub(super) fn is_interim(self) -> bool {
        self.is_async() && self.status() == STATUS_PENDING
    }

    /// Whether it is the first answer to a request: the final one follows if it is an interim one.
    pub(super) fn begins_answer(self) -> bool {
        self.is_response()
            && self.message_id() != UNSOLICITED
            && (!self.is_async() || self.is_interim())
    }

    /// `StructureSize` of the body; 0 if there is none.
    pub(super) fn body_size(self) -> u16 {
        match self.0.len() {
            0..66 => 0,
            _ => u16_at(self.0, HEADER),
        }
    }

    fn flags(self) -> u32 {
        u32_at(self.0, FLAGS)
    }
}

/// A header that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Fewer than 64 bytes are left for it.
    TooShort {
        /// Where it starts, in bytes.
        at: usize,
        /// Bytes from there.
        len: usize,
    },
    /// It does not begin as an SMB2 header.
    ProtocolId {
        /// Where it starts, in bytes.
        at: usize,
    },
    /// Its `StructureSize` is not 64.
    StructureSize {
        /// Where it starts, in bytes.
        at: usize,
        /// The value found.
        found: u16,
    },
    /// `NextCommand` points into the member itself, behind the message, or is no multiple of 8.
    Next {
        /// Where the header starts, in bytes.
        at: usize,
        /// The value found, in bytes.
        next: u32,
    },
}

impl fmt::Display for BadHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { at, len } => write!(f, "the header at {at} has {len} bytes of 64"),
            Self::ProtocolId { at } => write!(f, "there is no SMB2 header at {at}"),
            Self::StructureSize { at, found } => {
                write!(f, "the header at {at} has StructureSize {found}, not 64")
            }
            Self::Next { at, next } => write!(f, "the header at {at} has NextCommand {next}"),
        }
    }
}

/// The members of a message, with their places. Each begins behind the one before it, so that no
/// chain loops or overlaps. Ends after the first error.
pub(super) fn members(
    message: &[u8],
) -> impl Iterator<Item = Result<(Range<usize>, Member<'_>), BadHeader>> {
    let mut at = Some(0);
    std::iter::from_fn(move || {
        let start = at.take()?;
        Some(member(message, start).inspect(|(range, member)| {
            if member.next() != 0 {
                at = Some(range.end);
            }
        }))
    })
}

fn member(message: &[u8], at: usize) -> Result<(Range<usize>, Member<'_>), BadHeader> {
    let rest = &message[at..];
    if rest.len() < HEADER {
        return Err(BadHeader::TooShort {
            at,
            len: rest.len(),
        });
    }
    if !rest.starts_with(b"\xFESMB") {
        return Err(BadHeader::ProtocolId { at });
    }
    let found = u16_at(rest, 4);
    if usize::from(found) != HEADER {
        return Err(BadHeader::StructureSize { at, found });
    }
    let next = u32_at(rest, NEXT);
    let len = match next as usize {
        0 => rest.len(),
        // [MS-SMB2] 2.2.1.2: members begin at multiples of 8 bytes.
        next if next >= HEADER && next < rest.len() && next % 8 == 0 => next,
        _ => return Err(BadHeader::Next { at, next }),
    };
    Ok((at..at + len, Member(&rest[..len])))
}

// The callers of these know that the field is inside the slice.

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(super) fn put_u16(b: &mut [u8], at: usize, value: u16) {
    b[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(b: &mut [u8], at: usize, value: u32) {
    b[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_next(header: &mut [u8], next: u32) {
    put_u32(header, NEXT, next);
}

pub(super) fn put_command(header: &mut [u8], command: u16) {
    put_u16(header, COMMAND, command);
}

pub(super) fn put_status(header: &mut [u8], status: u32) {
    put_u32(header, STATUS, status);
}
