//! What the gateway changes in the messages that it forwards, without I/O.
//!
//! READ and WRITE requests whose data goes by RDMA become ordinary ones towards the server, which
//! has no RDMA; all else passes as it is.
//!
//! Inputs: [`Rewriter::handle_request`], [`Rewriter::handle_response`] (and before it
//! [`Rewriter::room_for`], if the message can be received in two parts),
//! [`Rewriter::read_finished`], [`Rewriter::placed`]. After each of them all outputs are taken with
//! [`Rewriter::poll_output`] and carried out in their order. An input that fails is the end of the
//! connection. [`Rewriter::takes_requests`] and [`Rewriter::takes_responses`] say when to hold
//! messages back.
//!
//! Imports nothing but `bytes`, the standard library, and of the crate the SMB2 codec and the
//! description of the peer's memory.

mod message;
mod pending;
mod reason;
mod request;
mod response;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;
use smbdirect::smb2::ChannelRules;
use smbdirect::transport::Target;

// Who includes this module names what it needs.
#[allow(unused_imports)]
pub(crate) use message::{BadHeader, owes_answer};
use pending::Pending;
#[allow(unused_imports)]
pub(crate) use reason::{Reason, Warning};

/// Bytes of a message from the server that [`Rewriter::room_for`] looks at: header and body of a
/// response to READ.
pub(crate) const PREFIX: usize = 80;

/// A message with this much data or more is one of bulk data.
const BULK: u32 = 16 << 10;
/// Requests that wait for memory or for data, at most, and their bytes, without the data that RDMA
/// moves: then no more are taken.
const MAX_WAITING: usize = 128;
const MAX_WAITING_BYTES: usize = 4 << 20;

/// What the two connections allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of data by RDMA per request.
    pub(crate) max_transfer: u32,
    /// Bytes of the largest message that the client takes.
    pub(crate) max_to_client: u64,
    /// Bytes of the largest message both ways between gateway and server.
    pub(crate) max_backend: usize,
    /// Bytes of memory for data. One request always gets what it needs.
    pub(crate) max_memory: u64,
}

/// A transfer between the client's memory and ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TransferId(u64);

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Send this to the server.
    Forward(Bytes),
    /// Send these pieces to the server, as one message.
    ForwardPieces(Vec<Piece>),
    /// Read from the client's memory, then call [`Rewriter::read_finished`].
    Fetch {
        /// Names the data.
        transfer: TransferId,
        /// Bytes.
        len: u32,
        /// From where.
        from: Target,
    },
    /// Send this to the client, and invalidate the token with it.
    Answer {
        /// The message.
        message: Bytes,
        /// The token.
        invalidate: Option<u32>,
    },
    /// Write into the client's memory, then send the response; [`Rewriter::placed`] when the data
    /// is no longer needed.
    Place {
        /// Names the data.
        transfer: TransferId,
        /// What to write.
        data: Data,
        /// To where.
        to: Target,
        /// The message.
        response: Bytes,
        /// The token that goes with the message.
        invalidate: Option<u32>,
    },
    /// Tell the administrator.
    Warn(Warning),
}

/// A piece of a message to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// The data that this transfer has read, all of it.
    Fetched(TransferId),
}

/// Where the data of a READ is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Data {
    /// In the second part of the message that was just received.
    Payload(Range<usize>),
    /// In a message that came in one part.
    Message(Bytes),
}

/// Requests that were rewritten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// READ requests whose data was placed.
    pub(crate) reads: u64,
    /// WRITE requests whose data was fetched.
    pub(crate) writes: u64,
    /// READ and WRITE requests that the gateway refused.
    pub(crate) refused: u64,
}

/// What client and server have negotiated, as far as it decides on READ and WRITE.
#[derive(Debug, Clone, Copy)]
struct Negotiated {
    rules: ChannelRules,
    max_read: u32,
    max_write: u32,
}

/// Rewrites the messages of one connection.
#[derive(Debug)]
pub(crate) struct Rewriter {
    limits: Limits,
    /// Once both have agreed on a dialect that has RDMA.
    negotiated: Option<Negotiated>,
    /// The client has logged in at least once.
    authenticated: bool,
    pending: Pending,
    /// Requests in the clear that the server has not begun to answer.
    unanswered: u64,
    outputs: VecDeque<Output>,
    counts: Counts,
    warned: bool,
}

impl Rewriter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            negotiated: None,
            authenticated: false,
            pending: Pending::new(limits.max_memory),
            unanswered: 0,
            outputs: VecDeque::new(),
            counts: Counts::default(),
            warned: false,
        }
    }

    /// What is to be done next.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether messages of the client are to be taken: not too many wait.
    pub(crate) fn takes_requests(&self) -> bool {
        self.pending.waiting() < MAX_WAITING && self.pending.waiting_bytes() < MAX_WAITING_BYTES
    }

    /// Whether messages of the server are to be taken: not too much data is being placed.
    pub(crate) fn takes_responses(&self) -> bool {
        self.pending.placing() <= self.limits.max_memory
    }

    /// Whether no rewritten request is without its answer, and no data under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_idle()
    }

    /// Whether there are requests in the clear of which the server has not even said that their
    /// answer takes long.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.unanswered > 0
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// The data of a WRITE has been read.
    pub(crate) fn read_finished(&mut self, transfer: TransferId) {
        self.pending.fetched(transfer, &mut self.outputs);
    }

    /// The data of a READ has been written, or will not be: its memory is free.
    pub(crate) fn placed(&mut self, transfer: TransferId) {
        self.pending.placed(transfer, &mut self.outputs);
    }

    /// Tells the administrator, once.
    fn warn(&mut self, warning: Warning) {
        if !self.warned {
            self.warned = true;
            self.outputs.push_back(Output::Warn(warning));
        }
    }
}
