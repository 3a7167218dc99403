//! Upper-layer messages cut into fragments, and fragments put together, without touching a byte of
//! payload.

use std::collections::VecDeque;
use std::ops::Range;

use super::PeerMisbehaved;
use super::wire::DataTransfer;

/// An outgoing message: its number in the order of acceptance, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

impl MessageId {
    /// The number. Messages leave in its order, so a queue of payloads can be indexed by the
    /// difference of two.
    pub fn sequence(self) -> u64 {
        self.0
    }
}

/// `Connection.SendQueue` ([MS-SMBD] 3.1.1.1): whole messages, first in first out. Fragments are
/// cut when they are sent, and only ever from the head, so that nothing can come between two
/// fragments of a message.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct SendQueue {
    messages: VecDeque<Queued>,
    next: u64,
    bytes: u64,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Queued {
    id: MessageId,
    len: u32,
    sent: u32,
    token: Option<u32>,
}

/// The next piece of the queue's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: MessageId,
    pub(crate) range: Range<u64>,
    /// Bytes of the message after this fragment.
    pub(crate) remaining: u32,
    /// To be invalidated at the receiver; only ever on the last fragment.
    pub(crate) token: Option<u32>,
}

impl SendQueue {
    /// Appends a message of `len` bytes, which is more than 0.
    pub(crate) fn push(&mut self, len: u32, token: Option<u32>) -> MessageId {
        let id = MessageId(self.next);
        self.next += 1;
        self.bytes += u64::from(len);
        self.messages.push_back(Queued {
            id,
            len,
            sent: 0,
            token,
        });
        id
    }

    /// Cuts up to `max_payload` bytes from the head.
    pub(crate) fn pop_fragment(&mut self, max_payload: u32) -> Option<Fragment> {
        let head = self.messages.front_mut()?;
        let from = head.sent;
        let length = max_payload.min(head.len - from);
        head.sent = from + length;
        self.bytes -= u64::from(length);
        let remaining = head.len - head.sent;
        let fragment = Fragment {
            id: head.id,
            range: u64::from(from)..u64::from(head.sent),
            remaining,
            // The token accompanies exactly one fragment ([MS-SMBD] 3.1.4.2); the last, so that the
            // peer's memory is in use no more when it arrives.
            token: if remaining == 0 { head.token } else { None },
        };
        if remaining == 0 {
            self.messages.pop_front();
        }
        Some(fragment)
    }

    /// Whether the next fragment of at most `max_payload` bytes is all that there is.
    pub(crate) fn is_last_fragment(&self, max_payload: u32) -> bool {
        self.messages.len() == 1 && self.bytes <= u64::from(max_payload)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub(crate) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// Bytes of payload not yet handed out.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.messages = VecDeque::new();
        self.bytes = 0;
    }
}

/// What a data transfer message means for reassembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// No data: credits or a keepalive.
    Control,
    Whole,
    First {
        total: u64,
    },
    Continue,
    Last,
}

/// `Connection.FragmentReassemblyRemaining` and `InvalidatedToken` ([MS-SMBD] 3.1.1.1). The buffer
/// is the caller's.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Reassembler {
    remaining: u64,
    invalidated: Option<u32>,
}

impl Reassembler {
    /// Takes the header of the next message, whose total was checked against the limit. The
    /// specification leaves the remaining length of middle fragments unchecked; here it must be
    /// exactly the former one less the data, else a message could grow beyond its limit.
    pub(crate) fn accept(&mut self, header: &DataTransfer) -> Result<Piece, PeerMisbehaved> {
        if header.total() == 0 {
            // Also within a fragmented message, where some Linux versions emit it.
            return Ok(Piece::Control);
        }
        if self.remaining == 0 {
            if header.remaining_data_length == 0 {
                return Ok(Piece::Whole);
            }
            // The opener may be empty: then all of the data follows.
            self.remaining = u64::from(header.remaining_data_length);
            return Ok(Piece::First {
                total: header.total(),
            });
        }
        if header.total() != self.remaining {
            return Err(PeerMisbehaved::RemainingLengthMismatch {
                expected: self.remaining,
                data_length: header.data_length,
                remaining: header.remaining_data_length,
            });
        }
        self.remaining = u64::from(header.remaining_data_length);
        Ok(if self.remaining == 0 {
            Piece::Last
        } else {
            Piece::Continue
        })
    }

    /// Remembers what the RDMA device said was invalidated; the last one counts ([MS-SMBD]
    /// 3.1.5.8).
    pub(crate) fn latch_invalidated(&mut self, token: Option<u32>) {
        if token.is_some() {
            self.invalidated = token;
        }
    }

    /// What to tell the upper layer with the message that is complete now.
    pub(crate) fn take_invalidated(&mut self) -> Option<u32> {
        self.invalidated.take()
    }

    /// Bytes still to come of the message under way.
    pub(crate) fn remaining(&self) -> u64 {
        self.remaining
    }
}
