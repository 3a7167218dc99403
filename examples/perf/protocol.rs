//! What the two ends say to each other. A request: kind, length, descriptors; on TCP the content of a write follows. A
//! response to a read on TCP is the content; all others are one byte.

use smbdirect::proto::wire::BufferDescriptorV1;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message goes there and back.
    Echo,
    /// Content goes to the client, as with an SMB READ: placed by RDMA, or inside the response on TCP.
    Read,
    /// Content goes to the server, as with an SMB WRITE.
    Write,
}

impl Kind {
    /// "echo", "read" or "write".
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "echo" => Ok(Self::Echo),
            "read" => Ok(Self::Read),
            "write" => Ok(Self::Write),
            _ => Err(format!("{text}: echo, read or write")),
        }
    }
}

/// Bytes before the descriptors.
pub(crate) const FIXED: usize = 5;
/// The response that carries no content.
pub(crate) const DONE: [u8; 1] = [1];

/// The request without content.
pub(crate) fn request(kind: Kind, len: usize, descriptors: &[BufferDescriptorV1]) -> Vec<u8> {
    let mut bytes = vec![kind as u8];
    bytes.extend((len as u32).to_le_bytes());
    for descriptor in descriptors {
        bytes.extend(descriptor.encode());
    }
    bytes
}

/// Kind and length of a request.
pub(crate) fn parse(request: &[u8]) -> Result<(Kind, usize), String> {
    let kind = match request.first() {
        Some(0) => Kind::Echo,
        Some(1) => Kind::Read,
        Some(2) => Kind::Write,
        _ => return Err("a request of unknown kind".into()),
    };
    match request.get(1..FIXED).map(TryInto::try_into) {
        Some(Ok(len)) => Ok((kind, u32::from_le_bytes(len) as usize)),
        _ => Err("a request that is too short".into()),
    }
}
