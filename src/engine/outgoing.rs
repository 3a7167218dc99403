//! Messages that the protocol is sending, and the requests that carry their fragments.

use std::collections::VecDeque;
use std::ops::Range;

use super::shared::{Body, Outgoing};
use crate::proto::{MessageId, Transmit};
use crate::rdma::{IoBuf, IoBytes, Operation, Pieces, SendRequest};
use crate::transport::Stats;

/// Messages that were given to the protocol, in that order.
#[derive(Default)]
pub(crate) struct OutgoingQueue {
    messages: VecDeque<(MessageId, Outgoing)>,
    /// What messages that were posted whole had held.
    freed: usize,
}

impl OutgoingQueue {
    /// A message that the protocol took.
    pub(crate) fn push(&mut self, id: MessageId, message: Outgoing) {
        self.messages.push_back((id, message));
    }

    /// The connection has ended.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
    }

    /// What messages that were posted whole since the last call had held.
    pub(crate) fn take_freed(&mut self) -> usize {
        std::mem::take(&mut self.freed)
    }

    /// Makes the request for one message on the wire; `slot` holds any of them.
    pub(crate) fn build(
        &mut self,
        transmit: Transmit,
        mut slot: IoBuf,
        max_pieces: usize,
        stats: &mut Stats,
    ) -> Option<SendRequest> {
        let header = transmit.header();
        let mut pieces = Pieces::default();
        let Some((id, range)) = transmit.payload.clone() else {
            slot.set_len(header.len());
            slot.copy_from_slice(header);
            return Some(request(Pieces::one(slot), transmit.invalidate));
        };
        let start = usize::try_from(range.start).ok()?;
        let end = usize::try_from(range.end).ok()?;
        // The protocol takes messages in the order in which they were given to it.
        let (front, outgoing) = self.messages.front_mut()?;
        debug_assert_eq!(*front, id);
        if !transmit.last_fragment || start > 0 {
            stats.fragments_sent += 1;
        }
        match &mut outgoing.body {
            Body::Bytes(bytes) => {
                slot.set_len(header.len() + (end - start));
                slot[..header.len()].copy_from_slice(header);
                slot[header.len()..].copy_from_slice(&bytes[start..end]);
                stats.copied_bytes += (end - start) as u64;
                pieces = Pieces::one(slot);
            }
            Body::Slot(_) => {
                let (_, outgoing) = self.messages.pop_front()?;
                self.freed += outgoing.cost();
                let Body::Slot(mut buffer) = outgoing.body else {
                    return None;
                };
                buffer[..header.len()].copy_from_slice(header);
                return Some(request(Pieces::one(buffer), transmit.invalidate));
            }
            Body::Gather(gather) => {
                slot.set_len(header.len());
                slot.copy_from_slice(header);
                let parts = || parts(gather.pieces(), start, end);
                if parts().count() < max_pieces {
                    let _ = pieces.push(slot.freeze());
                    for (piece, range) in parts() {
                        let _ = pieces.push(piece.slice(range));
                    }
                    stats.zero_copy_bytes += (end - start) as u64;
                } else {
                    // More pieces than a request of the device takes: this fragment is copied.
                    slot.set_len(header.len() + (end - start));
                    let mut at = header.len();
                    for (piece, range) in parts() {
                        slot[at..at + range.len()].copy_from_slice(&piece[range.clone()]);
                        at += range.len();
                    }
                    stats.copied_bytes += (end - start) as u64;
                    pieces = Pieces::one(slot);
                }
            }
        }
        if transmit.last_fragment
            && let Some((_, outgoing)) = self.messages.pop_front()
        {
            self.freed += outgoing.cost();
        }
        Some(request(pieces, transmit.invalidate))
    }
}

fn request(message: Pieces, invalidate: Option<u32>) -> SendRequest {
    SendRequest {
        cookie: 0,
        signalled: false,
        operation: Operation::Send {
            message,
            invalidate,
            solicited: false,
        },
    }
}

/// The parts of `pieces` that bytes `start..end` of their concatenation lie in.
fn parts(
    pieces: &[IoBytes],
    start: usize,
    end: usize,
) -> impl Iterator<Item = (&IoBytes, Range<usize>)> {
    let mut at = 0;
    pieces.iter().filter_map(move |piece| {
        let first = at;
        at += piece.len();
        let from = start.clamp(first, at);
        let to = end.clamp(first, at);
        (from < to).then_some((piece, from - first..to - first))
    })
}
