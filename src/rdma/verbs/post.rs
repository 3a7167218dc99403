//! Posting: chains of work requests built in place, one doorbell each.

use std::collections::VecDeque;

use super::conn::{Conn, Posted};
use super::sys;
use super::windows::Invalidation;
use crate::rdma::inflight::{Queue, WorkId};
use crate::rdma::{
    ConnId, IoBuf, Operation, Pieces, PostError, RdmaError, RdmaOperation, SendRequest, WindowId,
};

/// Requests in one chain.
const CHAIN: usize = 32;

/// Room for building chains, kept by the provider so that posting does not allocate.
pub(super) struct Workspace {
    sends: Vec<sys::ibv_send_wr>,
    receives: Vec<sys::ibv_recv_wr>,
    pieces: Vec<sys::ibv_sge>,
    /// Pieces of each request of the chain.
    counts: Vec<usize>,
    /// Binds of the chain, by place.
    binds: Vec<(usize, WindowId)>,
}

// SAFETY: the pointers in a finished chain are dangling remains that nothing follows; each chain is built anew.
unsafe impl Send for Workspace {}

impl Workspace {
    pub(super) fn new() -> Self {
        Self {
            sends: Vec::with_capacity(CHAIN),
            receives: Vec::with_capacity(CHAIN),
            pieces: Vec::with_capacity(CHAIN * crate::rdma::MAX_PIECES),
            counts: Vec::with_capacity(CHAIN),
            binds: Vec::with_capacity(CHAIN),
        }
    }

    fn clear(&mut self) {
        self.sends.clear();
        self.receives.clear();
        self.pieces.clear();
        self.counts.clear();
        self.binds.clear();
    }

    /// Posts receives from the front of `buffers`.
    pub(super) fn receives(
        &mut self,
        conn: &mut Conn,
        id: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        while !buffers.is_empty() {
            let refused = self.build_receives(conn, id, buffers);
            let built = self.receives.len();
            if built > 0 {
                self.link_receives();
                self.ring_receives(conn, built, buffers)?;
            }
            refused?;
        }
        Ok(())
    }

    /// Moves buffers into the ring as requests of one chain, as many as go; says why the next does not.
    fn build_receives(
        &mut self,
        conn: &mut Conn,
        id: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        self.clear();
        let depth = match &conn.queue_pair {
            Some(queue_pair) if conn.state.takes_receives() => queue_pair.receive_depth,
            _ => return Err(PostError::Closed),
        };
        while self.receives.len() < CHAIN {
            let Some(buffer) = buffers.front() else {
                return Ok(());
            };
            if conn.receives.len() >= depth {
                return Err(PostError::Full);
            }
            let len = u32::try_from(buffer.capacity()).map_err(|_| PostError::Invalid)?;
            if !conn.owns(buffer.domain()) {
                return Err(PostError::Invalid);
            }
            self.pieces.push(sys::ibv_sge {
                addr: buffer.address().as_ptr() as u64,
                length: len,
                lkey: buffer.local_key(),
            });
            let sequence = conn.receives.next_sequence();
            self.receives.push(sys::ibv_recv_wr {
                wr_id: WorkId::new(Queue::Receive, id.index, id.generation, sequence).pack(),
                next: std::ptr::null_mut(),
                sg_list: std::ptr::null_mut(),
                num_sge: 1,
            });
            if let Some(buffer) = buffers.pop_front() {
                conn.receives.push(buffer);
            }
        }
        Ok(())
    }

    /// Lets each request point to the next and to its piece; nothing moves from here to the call.
    fn link_receives(&mut self) {
        let (first, piece) = (self.receives.as_mut_ptr(), self.pieces.as_mut_ptr());
        let count = self.receives.len();
        for (i, request) in self.receives.iter_mut().enumerate() {
            request.sg_list = piece.wrapping_add(i);
            if i + 1 < count {
                request.next = first.wrapping_add(i + 1);
            }
        }
    }

    fn ring_receives(
        &mut self,
        conn: &mut Conn,
        built: usize,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        let Some(queue_pair) = &conn.queue_pair else {
            return Err(PostError::Closed);
        };
        let first = self.receives.as_mut_ptr();
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair is alive; the chain and its pieces live in `self` until after the call; the memory
        // belongs to buffers that the ring owns until their completion or the queue pair's end.
        let posted = unsafe { sys::ibv_post_recv(queue_pair.raw(), first, &mut bad) };
        let Err(error) = sys::verbs_result(posted) else {
            return Ok(());
        };
        let taken = position(
            first as usize,
            bad as usize,
            size_of::<sys::ibv_recv_wr>(),
            built,
        );
        for _ in taken..built {
            if let Some(buffer) = conn.receives.unpush() {
                buffers.push_front(buffer);
            }
        }
        Err(refusal(&error, RdmaOperation::Receive))
    }

    /// Posts requests from the front of `chain`.
    pub(super) fn sends(
        &mut self,
        conn: &mut Conn,
        id: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        while !chain.is_empty() {
            let unsignalled = conn.unsignalled;
            let refused = self.build_sends(conn, id, chain);
            let built = self.sends.len();
            if built > 0 {
                self.link_sends();
                self.ring_sends(conn, built, unsignalled, chain)?;
            }
            refused?;
        }
        Ok(())
    }

    fn build_sends(
        &mut self,
        conn: &mut Conn,
        id: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        self.clear();
        let limits = match &conn.queue_pair {
            Some(queue_pair) if conn.state.takes_sends() => Limits {
                depth: queue_pair.send_depth,
                gather: queue_pair.max_gather,
                inline: queue_pair.inline,
            },
            _ => return Err(PostError::Closed),
        };
        while self.sends.len() < CHAIN {
            let Some(request) = chain.front() else {
                return Ok(());
            };
            if conn.sends.len() >= limits.depth {
                return Err(PostError::Full);
            }
            let mut work = self
                .work(conn, request, &limits)
                .ok_or(PostError::Invalid)?;
            // Room in the queue comes back with a signalled completion only, so that there is one at half of it.
            // A Read always has its own: soft-iWARP completes younger requests while it is under way, and until its
            // own completion the device writes to its memory. So has what the device would read after its end.
            let own = request.signalled
                || matches!(request.operation, Operation::Read { .. })
                || request.operation.bytes() >= conn.signalled_from
                || conn.unsignalled + 1 >= (limits.depth / 2).max(1);
            if own {
                work.send_flags |= sys::SEND_SIGNALED;
                conn.unsignalled = 0;
            } else {
                conn.unsignalled += 1;
            }
            let sequence = conn.sends.next_sequence();
            work.wr_id = WorkId::new(Queue::Send, id.index, id.generation, sequence).pack();
            self.counts.push(work.num_sge.max(0) as usize);
            self.sends.push(work);
            if let Some(request) = chain.pop_front() {
                conn.sends.push(Posted {
                    request,
                    own,
                    done: None,
                });
            }
        }
        Ok(())
    }

    /// The device's form of a request; `None` if it does not fit the connection.
    fn work(
        &mut self,
        conn: &mut Conn,
        request: &SendRequest,
        limits: &Limits,
    ) -> Option<sys::ibv_send_wr> {
        // SAFETY: a structure of numbers and pointers, for which all zeroes is valid.
        let mut work: sys::ibv_send_wr = unsafe { std::mem::zeroed() };
        match &request.operation {
            Operation::Send {
                message,
                invalidate,
                solicited,
            } => {
                self.gather(conn, message, limits, &mut work)?;
                work.opcode = sys::wr_opcode::IBV_WR_SEND;
                if *solicited {
                    work.send_flags |= sys::SEND_SOLICITED;
                }
                if let Some(key) = invalidate {
                    work.opcode = sys::wr_opcode::IBV_WR_SEND_WITH_INV;
                    work.imm_data_invalidated_rkey_union = sys::imm_data_invalidated_rkey_union_t {
                        invalidated_rkey: *key,
                    };
                    // soft-iWARP's library takes the key from here.
                    work.wr.rdma = sys::rdma_t {
                        remote_addr: 0,
                        rkey: *key,
                    };
                }
            }
            Operation::Write { from, to } => {
                self.gather(conn, from, limits, &mut work)?;
                work.opcode = sys::wr_opcode::IBV_WR_RDMA_WRITE;
                work.wr.rdma = sys::rdma_t {
                    remote_addr: to.address,
                    rkey: to.key,
                };
            }
            Operation::Read { into, from } => {
                if !conn.owns(into.domain()) {
                    return None;
                }
                self.pieces.push(sys::ibv_sge {
                    addr: into.address().as_ptr() as u64,
                    length: u32::try_from(into.len()).ok()?,
                    lkey: into.local_key(),
                });
                work.num_sge = 1;
                work.opcode = sys::wr_opcode::IBV_WR_RDMA_READ;
                work.wr.rdma = sys::rdma_t {
                    remote_addr: from.address,
                    rkey: from.key,
                };
            }
            Operation::Bind { window } => {
                work.opcode = sys::wr_opcode::IBV_WR_BIND_MW;
                work.bind_mw_tso_union.bind_mw = conn.windows.bind(*window)?;
                self.binds.push((self.sends.len(), *window));
            }
            Operation::Invalidate { window } => match conn.windows.invalidation(*window)? {
                Invalidation::Needed(key) => {
                    work.opcode = sys::wr_opcode::IBV_WR_LOCAL_INV;
                    work.imm_data_invalidated_rkey_union = sys::imm_data_invalidated_rkey_union_t {
                        invalidated_rkey: key,
                    };
                    conn.windows.set_invalidating(*window, true);
                }
                // Nothing is written by it, and it keeps its place in the order.
                Invalidation::Done => work.opcode = sys::wr_opcode::IBV_WR_RDMA_WRITE,
            },
        }
        Some(work)
    }

    fn gather(
        &mut self,
        conn: &Conn,
        pieces: &Pieces,
        limits: &Limits,
        work: &mut sys::ibv_send_wr,
    ) -> Option<()> {
        let before = self.pieces.len();
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            // More pieces than the queue pair was made for are lost silently by some devices.
            if self.pieces.len() - before == limits.gather || !conn.owns(piece.domain()) {
                self.pieces.truncate(before);
                return None;
            }
            self.pieces.push(sys::ibv_sge {
                addr: piece.as_ptr() as u64,
                length: u32::try_from(piece.len()).ok()?,
                lkey: piece.local_key(),
            });
        }
        let count = self.pieces.len() - before;
        work.num_sge = count as i32;
        if goes_inline(count, pieces.bytes(), limits.inline) {
            work.send_flags |= sys::SEND_INLINE;
        }
        Some(())
    }

    fn link_sends(&mut self) {
        let (first, mut piece) = (self.sends.as_mut_ptr(), self.pieces.as_mut_ptr());
        let count = self.sends.len();
        for (i, (request, pieces)) in self.sends.iter_mut().zip(&self.counts).enumerate() {
            // None where there is none: a device library may look at the first all the same (irdma's until 2022).
            if *pieces > 0 {
                request.sg_list = piece;
                piece = piece.wrapping_add(*pieces);
            }
            if i + 1 < count {
                request.next = first.wrapping_add(i + 1);
            }
        }
    }

    /// `unsignalled` is what was so before the chain.
    fn ring_sends(
        &mut self,
        conn: &mut Conn,
        built: usize,
        unsignalled: usize,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        let Some(queue_pair) = &conn.queue_pair else {
            return Err(PostError::Closed);
        };
        let first = self.sends.as_mut_ptr();
        let mut bad = std::ptr::null_mut();
        // SAFETY: the queue pair is alive; the chain and its pieces live in `self` until after the call; the memory
        // belongs to requests that the ring owns until their completion or the queue pair's end.
        let posted = unsafe { sys::ibv_post_send(queue_pair.raw(), first, &mut bad) };
        let posted = sys::verbs_result(posted);
        let taken = match &posted {
            Ok(()) => built,
            Err(_) => position(
                first as usize,
                bad as usize,
                size_of::<sys::ibv_send_wr>(),
                built,
            ),
        };
        for (_, window) in self.binds.iter().filter(|(place, _)| *place < taken) {
            conn.windows.bind_posted(*window);
        }
        let Err(error) = posted else {
            return Ok(());
        };
        // One that was to be signalled may not have been taken.
        conn.unsignalled = (self.sends[..taken].iter()).fold(unsignalled, |count, work| {
            match work.send_flags & sys::SEND_SIGNALED {
                0 => count + 1,
                _ => 0,
            }
        });
        for _ in taken..built {
            let Some(Posted { request, .. }) = conn.sends.unpush() else {
                break;
            };
            match request.operation {
                Operation::Bind { window } => conn.windows.bind_refused(window),
                Operation::Invalidate { window } => conn.windows.set_invalidating(window, false),
                _ => {}
            }
            chain.push_front(request);
        }
        Err(refusal(&error, RdmaOperation::Send))
    }
}

struct Limits {
    depth: usize,
    gather: usize,
    inline: usize,
}

/// Whether so many pieces are copied into the request itself, which has room for `limit` bytes. One piece only: of more,
/// some device libraries send the first and lose the rest, without an error (i40iw's, and irdma's until 2022).
fn goes_inline(pieces: usize, bytes: usize, limit: usize) -> bool {
    pieces == 1 && bytes <= limit
}

/// How many requests of a chain were taken before the bad one. Where a device library names none, any may have been
/// taken: all stay in the ring until the queue pair ends, for the device may use their memory.
fn position(first: usize, bad: usize, size: usize, built: usize) -> usize {
    match bad.checked_sub(first) {
        Some(distance) if distance % size == 0 && distance / size < built => distance / size,
        _ => built,
    }
}

/// Why a queue took no more.
fn refusal(error: &std::io::Error, operation: RdmaOperation) -> PostError {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EAGAIN) => PostError::Full,
        Some(libc::ENOTCONN | libc::ECONNRESET | libc::EPIPE) => PostError::Closed,
        _ => PostError::Failed(RdmaError::os(operation, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bad_request_says_how_many_were_taken() {
        assert_eq!(position(1000, 1000, 8, 4), 0);
        assert_eq!(position(1000, 1016, 8, 4), 2);
        // None named, or not one of ours.
        assert_eq!(position(1000, 0, 8, 4), 4);
        assert_eq!(position(1000, 1032, 8, 4), 4);
        assert_eq!(position(1000, 1003, 8, 4), 4);
    }

    #[test]
    fn only_one_piece_goes_inline() {
        assert!(goes_inline(1, 64, 64));
        assert!(!goes_inline(1, 65, 64));
        assert!(!goes_inline(2, 8, 64));
        assert!(!goes_inline(0, 0, 64));
    }

    #[test]
    fn a_request_has_its_pieces_and_one_without_has_none() {
        let mut workspace = Workspace::new();
        for count in [0, 2, 0, 1, 0] {
            // SAFETY: structures of numbers and pointers, for which all zeroes is valid.
            let (work, piece): (sys::ibv_send_wr, sys::ibv_sge) =
                unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
            workspace.sends.push(work);
            workspace.counts.push(count);
            workspace.pieces.extend(std::iter::repeat_n(piece, count));
        }
        workspace.link_sends();
        let first = workspace.pieces.as_mut_ptr();
        let lists: Vec<_> = workspace.sends.iter().map(|work| work.sg_list).collect();
        let none = std::ptr::null_mut();
        assert_eq!(lists, [none, first, none, first.wrapping_add(2), none]);
    }

    #[test]
    fn a_full_queue_is_no_failure() {
        let refusal = |errno| {
            refusal(
                &std::io::Error::from_raw_os_error(errno),
                RdmaOperation::Send,
            )
        };
        assert_eq!(refusal(libc::ENOMEM), PostError::Full);
        assert_eq!(refusal(libc::ENOTCONN), PostError::Closed);
        assert!(matches!(refusal(libc::EINVAL), PostError::Failed(_)));
    }
}
