//! RDMA without content, while an iWARP peer says nothing after the connection was accepted.
//!
//! Linux soft-iWARP can overlook what arrives right behind its MPA reply: its `data_ready` callback gives up when it
//! does not get the queue pair's lock at once, which `accept` holds, and nothing reads the socket before more arrives.
//! The first message of a connection is such a thing, and both sides would wait for each other until a timer ends it.
//! Any further segment wakes it up.
//!
//! - The connecting side sends a Write of no bytes, which is legal at any time, needs no key and changes nothing (RFC
//!   5040; RFC 6581 has it as ready-to-receive message). The peer's kind is not known: every iWARP acceptor gets them.
//! - An acceptor on soft-iWARP asks for a Read of no bytes, which needs no key either (RFC 5040, 5.2.1) and which the
//!   peer's RDMA answers by itself: the answer is the segment that wakes our own device.
//!
//! The first comes after 50 ms of silence, the next after twice the time, five in all.

use std::time::{Duration, Instant};

use super::conn::Conn;
use super::sys;
use crate::rdma::ConnId;
use crate::rdma::inflight::{Queue, WorkId};

/// How many, at most: places in the send queue beyond those of the user.
pub(super) const NUDGES: u32 = 5;

const FIRST: Duration = Duration::from_millis(50);

/// Who is to be woken up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sleeper {
    /// The peer's device: by a Write.
    Peer,
    /// This side's: by the answer to a Read.
    Own,
}

/// When the next is due.
#[derive(Debug)]
pub(super) struct Nudge {
    sleeper: Sleeper,
    at: Instant,
    wait: Duration,
    left: u32,
}

impl Nudge {
    /// The connection is there.
    pub(super) fn new(sleeper: Sleeper, now: Instant) -> Self {
        Self {
            sleeper,
            at: now + FIRST,
            wait: FIRST,
            left: NUDGES,
        }
    }

    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// One is sent. Returns what is left to do.
    fn next(mut self) -> Option<Self> {
        self.wait *= 2;
        self.at += self.wait;
        self.left -= 1;
        (self.left > 0).then_some(self)
    }
}

/// The id of a nudge. It completes only when it is flushed, and may do so when its connection is over and another has
/// the place: it must not be a request of that one, nor of those that come soon after.
fn nobody(conn: ConnId) -> WorkId {
    let before = conn.generation.wrapping_sub(1);
    WorkId::new(Queue::Send, conn.index, before, 0)
}

impl Conn {
    /// Wakes up who sleeps, if it is time.
    pub(super) fn nudge(&mut self, id: ConnId, now: Instant) {
        let Some(nudge) = self.nudge.take_if(|nudge| now >= nudge.at) else {
            return;
        };
        let (true, Some(queue_pair)) = (self.state.takes_sends(), &self.queue_pair) else {
            return;
        };
        let sleeper = nudge.sleeper;
        self.nudge = nudge.next();
        // SAFETY: a structure of numbers and pointers, for which all zeroes is valid.
        let mut work: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
        work.opcode = match sleeper {
            Sleeper::Peer => sys::wr_opcode::IBV_WR_RDMA_WRITE,
            Sleeper::Own => sys::wr_opcode::IBV_WR_RDMA_READ,
        };
        work.wr_id = nobody(id).pack();
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair is alive; the request has no memory and is read within the call.
        let posted = unsafe { sys::ibv_post_send(queue_pair.raw(), &mut work, &mut bad) };
        if let Err(error) = sys::verbs_result(posted) {
            tracing::debug!(conn = ?id, %error, "a nudge could not be posted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nudges_come_at_growing_intervals_and_end() {
        let start = Instant::now();
        let mut nudge = Some(Nudge::new(Sleeper::Peer, start));
        let mut times = Vec::new();
        while let Some(next) = nudge {
            times.push((next.at() - start).as_millis());
            nudge = next.next();
        }
        assert_eq!(times, [50, 150, 350, 750, 1550]);
        assert_eq!(times.len(), NUDGES as usize);
    }

    #[test]
    fn a_nudge_is_no_request_of_its_connection_nor_of_those_that_follow() {
        for first in [0, 1, 0x7fff, u32::MAX] {
            let id = nobody(ConnId {
                index: 5,
                generation: first,
            });
            for later in 0..1000 {
                let generation = first.wrapping_add(later);
                assert_ne!(
                    id.generation,
                    WorkId::short(generation),
                    "{first} + {later}"
                );
            }
        }
    }
}
