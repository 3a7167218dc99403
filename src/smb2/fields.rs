//! Fields of fixed place, and the start of an SMB2 message.

/// Bytes of the SMB2 header ([MS-SMB2] 2.2.1).
const HEADER_LEN: usize = 64;
/// Where `StructureSize` of the body is.
const BODY: usize = HEADER_LEN;

/// SMB2 READ.
pub(super) const READ: u16 = 0x0008;
/// SMB2 WRITE.
pub(super) const WRITE: u16 = 0x0009;

/// Why bytes are not the SMB2 message they should be.
pub(super) enum NotMessage {
    TooShort,
    ProtocolId,
    Command(u16),
    StructureSize(u16),
}

/// Checks that `message` is an SMB2 message of this command, with a body of this `StructureSize`,
/// and at least `min` bytes long (64 or more).
pub(super) fn check_message(
    message: &[u8],
    command: u16,
    structure_size: u16,
    min: usize,
) -> Result<(), NotMessage> {
    if message.len() < min.max(BODY + 2) {
        return Err(NotMessage::TooShort);
    }
    if message[..4] != *b"\xFESMB" {
        return Err(NotMessage::ProtocolId);
    }
    match (u16_at(message, 12), u16_at(message, BODY)) {
        (found, _) if found != command => Err(NotMessage::Command(found)),
        (_, found) if found != structure_size => Err(NotMessage::StructureSize(found)),
        _ => Ok(()),
    }
}

// The callers below have checked that the field is inside the slice.

pub(super) fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

pub(super) fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

pub(super) fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

pub(super) fn put_u16(b: &mut [u8], at: usize, value: u16) {
    b[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u32(b: &mut [u8], at: usize, value: u32) {
    b[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(b: &mut [u8], at: usize, value: u64) {
    b[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
