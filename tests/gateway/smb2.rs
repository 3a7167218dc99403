//! SMB2 messages made and taken apart by hand.

use smbdirect::proto::wire::BufferDescriptorV1;

pub(crate) const NEGOTIATE: u16 = 0;
pub(crate) const SESSION_SETUP: u16 = 1;
pub(crate) const CREATE: u16 = 5;
pub(crate) const CLOSE: u16 = 6;
pub(crate) const READ: u16 = 8;
pub(crate) const WRITE: u16 = 9;
pub(crate) const CANCEL: u16 = 12;
pub(crate) const ECHO: u16 = 13;
pub(crate) const OPLOCK_BREAK: u16 = 18;

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const PENDING: u32 = 0x103;
pub(crate) const BUFFER_OVERFLOW: u32 = 0x8000_0005;
pub(crate) const INVALID_PARAMETER: u32 = 0xC000_000D;
pub(crate) const INSUFFICIENT_RESOURCES: u32 = 0xC000_009A;
pub(crate) const END_OF_FILE: u32 = 0xC000_0011;
pub(crate) const DISK_FULL: u32 = 0xC000_007F;

pub(crate) const RESPONSE: u32 = 1;
pub(crate) const ASYNC: u32 = 2;
pub(crate) const RELATED: u32 = 4;
pub(crate) const SIGNED: u32 = 8;

/// Channels.
pub(crate) const NONE: u32 = 0;
pub(crate) const V1: u32 = 1;
pub(crate) const INVALIDATE: u32 = 2;

/// A header with these, and others that can be told apart.
pub(crate) fn header(command: u16, id: u64) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..4].copy_from_slice(b"\xFESMB");
    put16(&mut header, 4, 64);
    // CreditCharge and CreditRequest that belong to this id alone.
    put16(&mut header, 6, 1 + (id % 7) as u16);
    put16(&mut header, 12, command);
    put16(&mut header, 14, 100 + (id % 11) as u16);
    header[24..32].copy_from_slice(&id.to_le_bytes());
    header[36..40].copy_from_slice(&0x7711_u32.to_le_bytes());
    header[40..48].copy_from_slice(&0x5e55_u64.to_le_bytes());
    header
}

/// A request that means nothing to the gateway.
pub(crate) fn plain(command: u16, id: u64) -> Vec<u8> {
    let mut message = header(command, id);
    message.extend([24, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    message
}

/// `channel` with memory for exactly `length` bytes, in descriptors of at most `step` bytes.
pub(crate) fn memory(id: u64, length: u32, step: u32) -> Vec<BufferDescriptorV1> {
    let mut descriptors = Vec::new();
    let mut at = 0;
    while at < length {
        let piece = step.min(length - at);
        descriptors.push(BufferDescriptorV1 {
            offset: 0x1000_0000 + u64::from(at),
            token: token(id) + descriptors.len() as u32,
            length: piece,
        });
        at += piece;
    }
    descriptors
}

/// The first token of a request.
pub(crate) fn token(id: u64) -> u32 {
    0x1000 * (id as u32 + 1)
}

pub(crate) fn read(id: u64, length: u32, channel: u32, to: &[BufferDescriptorV1]) -> Vec<u8> {
    let mut message = header(READ, id);
    message.resize(112, 0x3b);
    message[72..80].fill(0);
    put16(&mut message, 64, 49);
    message[66] = 80;
    message[67] = 0;
    put32(&mut message, 68, length);
    add_channel(&mut message, 100, channel, length, to);
    message
}

pub(crate) fn write(id: u64, length: u32, channel: u32, from: &[BufferDescriptorV1]) -> Vec<u8> {
    let mut message = header(WRITE, id);
    message.resize(112, 0x3c);
    message[72..80].fill(0);
    put16(&mut message, 64, 49);
    put16(&mut message, 66, 0);
    put32(&mut message, 68, 0);
    add_channel(&mut message, 96, channel, length, from);
    message
}

/// Data in the message.
pub(crate) fn inline_write(id: u64, data: &[u8]) -> Vec<u8> {
    let mut message = write(id, 0, NONE, &[]);
    put16(&mut message, 66, 112);
    put32(&mut message, 68, data.len() as u32);
    message.truncate(112);
    message.extend_from_slice(data);
    message
}

fn add_channel(
    message: &mut Vec<u8>,
    at: usize,
    channel: u32,
    remaining: u32,
    info: &[BufferDescriptorV1],
) {
    put32(message, at, channel);
    put32(message, at + 4, remaining);
    let offset = if info.is_empty() { 0 } else { 112 };
    put16(message, at + 8, offset);
    put16(message, at + 10, 16 * info.len() as u16);
    info.iter().for_each(|d| message.extend(d.encode()));
    if info.is_empty() {
        message.push(0);
    }
}

/// Members one behind the other, each but the last padded to a multiple of 8 bytes.
pub(crate) fn compound(members: &[Vec<u8>]) -> Vec<u8> {
    let mut message = Vec::new();
    for (i, member) in members.iter().enumerate() {
        let start = message.len();
        message.extend_from_slice(member);
        if i + 1 < members.len() {
            message.resize(start + member.len().next_multiple_of(8), 0);
            let next = (message.len() - start) as u32;
            put32(&mut message, start + 20, next);
        }
    }
    message
}

/// The members of a message that must be a valid one.
pub(crate) fn split(message: &[u8]) -> Vec<&[u8]> {
    let mut members = Vec::new();
    let mut rest = message;
    loop {
        assert!(rest.len() >= 64, "a header of {} bytes", rest.len());
        assert_eq!(rest[..6], *b"\xFESMB\x40\0");
        match get32(rest, 20) as usize {
            0 => {
                members.push(rest);
                return members;
            }
            next => {
                assert!(
                    next >= 64 && next < rest.len() && next % 8 == 0,
                    "next {next}"
                );
                members.push(&rest[..next]);
                rest = &rest[next..];
            }
        }
    }
}

/// The beginning of the server's answer to a request.
pub(crate) fn answer(request: &[u8], status: u32, body: &[u8]) -> Vec<u8> {
    let mut answer = request[..64].to_vec();
    put32(&mut answer, 8, status);
    // Credits that the client must get.
    put16(&mut answer, 14, 200 + (id(request) % 13) as u16);
    let flags = get32(request, 16) | RESPONSE;
    put32(&mut answer, 16, flags);
    put32(&mut answer, 20, 0);
    answer.extend_from_slice(body);
    answer
}

pub(crate) fn read_answer(request: &[u8], status: u32, data: &[u8]) -> Vec<u8> {
    let mut body = vec![17, 0, 80, 0];
    body.extend((data.len() as u32).to_le_bytes());
    body.resize(16, 0);
    body.extend_from_slice(data);
    answer(request, status, &body)
}

pub(crate) fn write_answer(request: &[u8], count: u32) -> Vec<u8> {
    let mut body = vec![17, 0, 0, 0];
    body.extend(count.to_le_bytes());
    body.resize(16, 0);
    answer(request, SUCCESS, &body)
}

pub(crate) fn error_answer(request: &[u8], status: u32) -> Vec<u8> {
    answer(request, status, &[9, 0, 0, 0, 0, 0, 0, 0, 0])
}

pub(crate) fn interim(request: &[u8]) -> Vec<u8> {
    let mut interim = error_answer(request, PENDING);
    let flags = get32(&interim, 16) | ASYNC;
    put32(&mut interim, 16, flags);
    interim[32..40].copy_from_slice(&0xA5A5_u64.to_le_bytes());
    interim
}

pub(crate) fn negotiate_answer(dialect: u16, max_read: u32, max_write: u32) -> Vec<u8> {
    let mut body = vec![0; 65];
    put16(&mut body, 0, 65);
    put16(&mut body, 4, dialect);
    put32(&mut body, 28, 1 << 20);
    put32(&mut body, 32, max_read);
    put32(&mut body, 36, max_write);
    answer(&header(NEGOTIATE, 0), SUCCESS, &body)
}

/// The last answer of a server to a client that logs in.
pub(crate) fn logged_in(request: &[u8]) -> Vec<u8> {
    answer(request, SUCCESS, &[9, 0, 0, 0, 72, 0, 0, 0])
}

pub(crate) fn command(message: &[u8]) -> u16 {
    get16(message, 12)
}

pub(crate) fn id(message: &[u8]) -> u64 {
    u64::from_le_bytes(message[24..32].try_into().unwrap())
}

pub(crate) fn status(message: &[u8]) -> u32 {
    get32(message, 8)
}

pub(crate) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub(crate) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
