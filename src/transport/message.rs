//! Messages in and out.

use std::fmt;
use std::io::IoSlice;
use std::ops::Deref;

use bytes::Bytes;

use super::list::List;
use crate::rdma::IoBytes;

/// A steering tag (remote key): names memory that one side exposed to the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SteeringTag(pub u32);

impl fmt::Debug for SteeringTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SteeringTag({:#010x})", self.0)
    }
}

/// A received message.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    bytes: Bytes,
    invalidated: Option<SteeringTag>,
}

impl Message {
    /// From its parts.
    pub fn new(bytes: Bytes, invalidated: Option<SteeringTag>) -> Self {
        Self { bytes, invalidated }
    }

    /// The message's bytes. While they are held they may occupy a receive; copy what is to be kept for long.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The tag of ours that the peer invalidated with it.
    pub fn invalidated(&self) -> Option<SteeringTag> {
        self.invalidated
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.bytes.len())
    }
}

/// A message to send.
#[derive(Debug)]
#[non_exhaustive]
pub enum OutMessage<'a> {
    /// Borrowed bytes, copied before the call returns.
    Slices(&'a [IoSlice<'a>]),
    /// Borrowed bytes in one piece, copied before the call returns.
    Slice(&'a [u8]),
    /// Owned bytes, kept until they are sent. Where the transport needs registered memory they are copied once,
    /// fragment by fragment.
    Bytes(Bytes),
    /// Registered memory, sent from where it is.
    Gather(Gather),
}

impl OutMessage<'_> {
    /// Its bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Slices(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Self::Slice(slice) => slice.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Gather(gather) => gather.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [u8]> for OutMessage<'a> {
    fn from(slice: &'a [u8]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for OutMessage<'a> {
    fn from(slice: &'a [u8; N]) -> Self {
        Self::Slice(slice)
    }
}

impl<'a> From<&'a Vec<u8>> for OutMessage<'a> {
    fn from(slice: &'a Vec<u8>) -> Self {
        Self::Slice(slice)
    }
}

impl From<Bytes> for OutMessage<'_> {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Gather> for OutMessage<'_> {
    fn from(gather: Gather) -> Self {
        Self::Gather(gather)
    }
}

impl From<IoBytes> for OutMessage<'_> {
    fn from(bytes: IoBytes) -> Self {
        Self::Gather(bytes.into())
    }
}

/// A list of registered buffers that are sent or written one after the other. A list of one allocates nothing.
#[derive(Debug, Clone, Default)]
pub struct Gather {
    pieces: List<IoBytes>,
    len: usize,
}

impl Gather {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a buffer; an empty one is left out.
    pub fn push(&mut self, piece: impl Into<IoBytes>) {
        let piece = piece.into();
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers in order.
    pub fn pieces(&self) -> &[IoBytes] {
        &self.pieces
    }

    /// The buffers in order.
    pub fn into_pieces(self) -> Vec<IoBytes> {
        self.pieces.into_vec()
    }
}

impl<T: Into<IoBytes>> From<T> for Gather {
    fn from(piece: T) -> Self {
        let mut gather = Self::new();
        gather.push(piece);
        gather
    }
}
