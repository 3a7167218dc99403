//! The four bytes before each message.

use crate::transport::DisconnectReason;

/// The largest message that the framing can carry, in bytes: 2^24 - 1.
pub const MAX_MESSAGE: usize = (1 << 24) - 1;

/// Bytes of the header.
pub(super) const HEADER: usize = 4;

/// The header of a message of `len` bytes, of which the lower 24 bits count.
pub(super) fn encode(len: usize) -> [u8; HEADER] {
    let [.., a, b, c] = (len as u64).to_be_bytes();
    [0, a, b, c]
}

/// The length that a header announces.
///
/// # Errors
/// The first byte is not zero, the message is empty, or longer than `max`.
pub(super) fn decode(header: [u8; HEADER], max: usize) -> Result<usize, DisconnectReason> {
    let [zero, a, b, c] = header;
    // [MS-SMB2] 2.1: the first byte is zero. Others are NetBIOS session packets, which port 445
    // does not have.
    if zero != 0 {
        return Err(DisconnectReason::BadFraming);
    }
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    match len {
        0 => Err(DisconnectReason::BadFraming),
        len if len > max => Err(DisconnectReason::MessageTooLarge {
            len: len as u64,
            max: max as u64,
        }),
        len => Ok(len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_survive() {
        for len in [1, 255, 256, 65_535, 65_536, MAX_MESSAGE] {
            assert_eq!(decode(encode(len), MAX_MESSAGE), Ok(len));
        }
        assert_eq!(encode(0x01_02_03), [0, 1, 2, 3]);
    }

    #[test]
    fn bad_headers_are_named() {
        assert_eq!(
            decode([0x85, 0, 0, 0], 100),
            Err(DisconnectReason::BadFraming)
        );
        assert_eq!(
            decode([0xfe, b'S', b'M', b'B'], 100),
            Err(DisconnectReason::BadFraming)
        );
        assert_eq!(decode([0; 4], 100), Err(DisconnectReason::BadFraming));
        assert_eq!(decode([0, 0, 0, 100], 100), Ok(100));
        assert_eq!(
            decode([0, 0, 0, 101], 100),
            Err(DisconnectReason::MessageTooLarge { len: 101, max: 100 })
        );
    }
}
