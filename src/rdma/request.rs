//! Send requests: what they do and the memory they own.

use super::{IoBytes, IoPin};

/// Pieces in one gather list, at most.
pub const MAX_PIECES: usize = 4;

/// A request for the send queue. It owns its memory until it comes back in
/// [`Event::Completed`](super::Event::Completed).
#[derive(Debug)]
pub struct SendRequest {
    /// The caller's own mark; comes back unchanged.
    pub cookie: u64,
    /// Whether its completion is to be reported as soon as it happens.
    pub signalled: bool,
    /// What to do.
    pub operation: Operation,
}

/// What a send request does.
#[derive(Debug)]
pub enum Operation {
    /// Sends one message into a receive of the peer.
    Send {
        /// The message's bytes.
        message: Pieces,
        /// A key of the peer to invalidate before the message is delivered.
        invalidate: Option<u32>,
        /// Whether the peer's solicited event is raised.
        solicited: bool,
    },
    /// Writes into the peer's memory.
    Write {
        /// The bytes.
        from: Pieces,
        /// Where they go.
        to: RemoteAddress,
    },
    /// Reads the peer's memory.
    Read {
        /// Where the bytes go; its length is the number of bytes.
        into: IoPin,
        /// Where they are.
        from: RemoteAddress,
    },
    /// Makes a window valid.
    Bind {
        /// A window of this connection from [`Provider::open_window`](super::Provider::open_window).
        window: WindowId,
    },
    /// Makes a window of our own invalid: the peer's access is over when it has completed.
    Invalidate {
        /// A window that is bound, or whose bind was posted before.
        window: WindowId,
    },
}

impl Operation {
    /// Bytes that it moves.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Send {
                message: pieces, ..
            }
            | Self::Write { from: pieces, .. } => pieces.bytes(),
            Self::Read { into, .. } => into.len(),
            Self::Bind { .. } | Self::Invalidate { .. } => 0,
        }
    }
}

/// A place in the peer's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteAddress {
    /// Address or tagged offset, as the peer's descriptor gives it.
    pub address: u64,
    /// Remote key or steering tag.
    pub key: u32,
}

/// A gather list of at most [`MAX_PIECES`] pieces, held in place.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    pieces: [Option<IoBytes>; MAX_PIECES],
    len: usize,
}

impl Pieces {
    /// A list of one piece.
    pub fn one(piece: impl Into<IoBytes>) -> Self {
        let mut pieces = Self::default();
        // An empty list has room for one.
        let _ = pieces.push(piece.into());
        pieces
    }

    /// Appends a piece.
    ///
    /// # Errors
    /// The list is full: the piece comes back.
    pub fn push(&mut self, piece: IoBytes) -> Result<(), IoBytes> {
        match self.pieces.get_mut(self.len) {
            Some(place) => {
                *place = Some(piece);
                self.len += 1;
                Ok(())
            }
            None => Err(piece),
        }
    }

    /// The pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = &IoBytes> {
        self.pieces.iter().flatten()
    }

    /// How many pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of all pieces.
    pub fn bytes(&self) -> usize {
        self.iter().map(|piece| piece.len()).sum()
    }
}

/// Names a window of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowId {
    /// Place in the connection's table.
    pub index: u32,
    /// Changes each time the place is used again.
    pub generation: u32,
}

/// An exposure of memory to the peer: what goes into a buffer descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its name.
    pub id: WindowId,
    /// The key (steering tag) the peer uses.
    pub key: u32,
    /// The address (tagged offset) of its first byte.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Whether it becomes valid only with an [`Operation::Bind`].
    pub needs_bind: bool,
}
