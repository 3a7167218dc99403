//! READ and WRITE requests that `smb2` has no types for, and their answers ([MS-SMB2] 2.2.19 to
//! 2.2.22).

use smb2::pack::{Pack, WriteCursor};
use smb2::types::{Command, FileId};
use smbdirect::smb2::{ChannelRules, Placement, RequestError};

/// Bytes of the SMB2 header, which `smb2` puts in front.
const HEADER: usize = 64;
/// Bytes of both requests' bodies without the buffer.
const BODY: usize = 48;

/// The body of a request, packed already.
pub(crate) struct Body(Vec<u8>);

impl Pack for Body {
    fn pack(&self, cursor: &mut WriteCursor) {
        cursor.write_bytes(&self.0);
    }
}

/// A READ whose data comes in the answer.
pub(crate) fn read(file: FileId, offset: u64, len: u32) -> Body {
    let mut body = read_body(file, offset, len);
    body.push(0);
    Body(body)
}

/// A READ whose data the server places.
pub(crate) fn placed_read(
    file: FileId,
    offset: u64,
    placement: &Placement,
    rules: &ChannelRules,
) -> Result<Body, RequestError> {
    let mut message = message(Command::Read, &read_body(file, offset, placement.length));
    placement.encode_read(&mut message, rules)?;
    Ok(Body(message.split_off(HEADER)))
}

/// A WRITE with its data.
pub(crate) fn write(file: FileId, offset: u64, data: &[u8]) -> Body {
    let mut body = write_body(file, offset);
    body[2..4].copy_from_slice(&((HEADER + BODY) as u16).to_le_bytes());
    body[4..8].copy_from_slice(&(data.len() as u32).to_le_bytes());
    body.extend_from_slice(data);
    Body(body)
}

/// A WRITE whose data the server fetches.
pub(crate) fn placed_write(
    file: FileId,
    offset: u64,
    placement: &Placement,
    rules: &ChannelRules,
) -> Result<Body, RequestError> {
    let mut message = message(Command::Write, &write_body(file, offset));
    placement.encode_write(&mut message, rules)?;
    Ok(Body(message.split_off(HEADER)))
}

/// The data in the answer to a READ; `raw` begins with the header.
pub(crate) fn data(raw: &[u8]) -> Option<&[u8]> {
    let offset = usize::from(*raw.get(HEADER + 2)?);
    let len = u32::from_le_bytes(raw.get(HEADER + 4..HEADER + 8)?.try_into().ok()?);
    raw.get(offset..)?.get(..usize::try_from(len).ok()?)
}

/// How much the answer to a WRITE says was written; `raw` begins with the header.
pub(crate) fn written(raw: &[u8]) -> Option<u32> {
    let count = raw.get(HEADER + 4..HEADER + 8)?;
    Some(u32::from_le_bytes(count.try_into().ok()?))
}

fn read_body(file: FileId, offset: u64, len: u32) -> Vec<u8> {
    let mut body = vec![0; BODY];
    body[0] = 49;
    // Where the answer's data should stand: after header and body.
    body[2] = 80;
    body[4..8].copy_from_slice(&len.to_le_bytes());
    place(&mut body, file, offset);
    body
}

fn write_body(file: FileId, offset: u64) -> Vec<u8> {
    let mut body = vec![0; BODY];
    body[0] = 49;
    place(&mut body, file, offset);
    body
}

fn place(body: &mut [u8], file: FileId, offset: u64) {
    body[8..16].copy_from_slice(&offset.to_le_bytes());
    body[16..24].copy_from_slice(&file.persistent.to_le_bytes());
    body[24..32].copy_from_slice(&file.volatile.to_le_bytes());
}

/// The body behind as much of a header as the codec looks at.
fn message(command: Command, body: &[u8]) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[..4].copy_from_slice(b"\xFESMB");
    message[4] = HEADER as u8;
    message[12..14].copy_from_slice(&u16::from(command).to_le_bytes());
    message.extend_from_slice(body);
    message
}

#[cfg(test)]
mod tests {
    use smbdirect::proto::wire::BufferDescriptorV1;
    use smbdirect::smb2::{Dialect, TransformCapabilities};

    use super::*;

    const FILE: FileId = FileId {
        persistent: 1,
        volatile: 2,
    };
    const RULES: ChannelRules = ChannelRules {
        dialect: Dialect::Smb311,
        transforms: TransformCapabilities {
            encryption: false,
            signing: false,
        },
    };

    fn placement() -> Placement {
        let descriptor = BufferDescriptorV1 {
            offset: 0x1000,
            token: 9,
            length: 500,
        };
        Placement {
            length: 500,
            invalidate: true,
            descriptors: vec![descriptor],
            transform: None,
        }
    }

    #[test]
    fn the_codec_reads_what_is_packed() {
        let read = placed_read(FILE, 77, &placement(), &RULES).unwrap();
        let sent = message(Command::Read, &read.0);
        assert_eq!(sent.len(), 112 + 16);
        assert_eq!(Placement::parse_read(&sent, &RULES), Ok(Some(placement())));

        let write = placed_write(FILE, 77, &placement(), &RULES).unwrap();
        let sent = message(Command::Write, &write.0);
        assert_eq!(Placement::parse_write(&sent, &RULES), Ok(Some(placement())));
    }

    #[test]
    fn plain_requests_name_no_channel() {
        let sent = message(Command::Read, &read(FILE, 0, 5).0);
        assert_eq!(Placement::parse_read(&sent, &RULES), Ok(None));
        let sent = message(Command::Write, &write(FILE, 0, b"hello").0);
        assert_eq!(Placement::parse_write(&sent, &RULES), Ok(None));
        assert_eq!(&sent[112..], b"hello");
    }

    #[test]
    fn answers_that_lie_are_noticed() {
        let mut answer = vec![0; 85];
        answer[66] = 80;
        answer[68] = 5;
        assert_eq!(data(&answer), Some(&[0; 5][..]));
        assert_eq!(written(&answer), Some(5));
        answer[68] = 6;
        assert_eq!(data(&answer), None);
        answer[66] = 255;
        assert_eq!(data(&answer), None);
        assert_eq!(data(&answer[..66]), None);
    }
}
