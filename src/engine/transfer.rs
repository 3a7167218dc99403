//! RDMA reads and writes on behalf of the upper layer: cut into chunks, round-robin, many in flight.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Instant;

use super::shared::Outgoing;
use crate::rdma::{IoPin, Operation, Pieces, RemoteAddress, SendRequest};
use crate::transport::{Completer, Descriptors, Error, Gather, Target};

/// The mark of a transfer's requests in their cookies; the lower half is the transfer's place.
pub(crate) const COOKIE: u64 = 1 << 32;

/// What is moved, and who gets it back.
pub(crate) enum Payload {
    /// Towards the peer.
    Write {
        data: Gather,
        completer: Completer<Gather>,
    },
    /// From the peer, into memory whose pins are counted.
    Read {
        into: IoPin,
        start: usize,
        completer: Completer<crate::rdma::IoBuf>,
    },
}

/// One read or write of the upper layer.
pub(crate) struct Transfer {
    payload: Payload,
    descriptors: Descriptors,
    /// The descriptor in use, and bytes of it that are done.
    descriptor: usize,
    skip: u32,
    /// Bytes whose requests were made.
    done: usize,
    len: usize,
    /// Requests that have not come back.
    outstanding: u32,
    /// A message that follows the last write.
    response: Option<Outgoing>,
    error: Option<Error>,
    /// When the connection took it in.
    started: Option<Instant>,
}

/// All transfers of a connection.
#[derive(Default)]
pub(crate) struct Transfers {
    places: Vec<Option<Transfer>>,
    free: Vec<u32>,
    /// Those that have requests to make, in the order of their turns.
    turns: VecDeque<u32>,
    bytes_in_flight: usize,
    reads_in_flight: u32,
}

/// What may be in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes of one request.
    pub(crate) chunk: usize,
    /// Bytes of all requests.
    pub(crate) bytes: usize,
    /// Reads: what the peer serves at a time.
    pub(crate) reads: u32,
    /// Pieces of one gather list.
    pub(crate) pieces: usize,
}

/// The end of a transfer, for the counters.
pub(crate) struct Finished {
    pub(crate) read: bool,
    pub(crate) bytes: usize,
    pub(crate) ok: bool,
    pub(crate) started: Option<Instant>,
    pub(crate) waker: Option<Waker>,
}

impl Transfer {
    /// A transfer of `len` bytes that was checked against its target.
    pub(crate) fn new(
        payload: Payload,
        target: Target,
        len: usize,
        response: Option<Outgoing>,
    ) -> Self {
        let mut descriptor = 0;
        let mut skip = target.offset;
        // [MS-SMBD] 3.1.4.5: the first element is the one that the offset falls into.
        while let Some(next) = target.descriptors.get(descriptor)
            && skip >= u64::from(next.length)
        {
            skip -= u64::from(next.length);
            descriptor += 1;
        }
        Self {
            payload,
            descriptors: target.descriptors,
            descriptor,
            // Less than the length of a descriptor, which has 32 bits.
            skip: skip as u32,
            done: 0,
            len,
            outstanding: 0,
            response,
            error: None,
            started: None,
        }
    }

    /// The next request of at most `chunk` bytes.
    fn next(&mut self, chunk: usize, pieces: usize) -> Option<(Operation, usize)> {
        let descriptor = self.descriptors.get(self.descriptor)?;
        let left = (descriptor.length - self.skip) as usize;
        let mut len = chunk.min(left).min(self.len - self.done);
        let remote = RemoteAddress {
            address: descriptor.offset + u64::from(self.skip),
            key: descriptor.token,
        };
        let operation = match &self.payload {
            Payload::Write { data, .. } => {
                let from = gather(data, self.done, pieces, &mut len);
                Operation::Write { from, to: remote }
            }
            Payload::Read { into, start, .. } => {
                let at = start + self.done;
                Operation::Read {
                    into: into.slice(at..at + len),
                    from: remote,
                }
            }
        };
        self.done += len;
        self.outstanding += 1;
        // At most `left`, which is a u32.
        self.skip += len as u32;
        if self.skip == descriptor.length {
            self.descriptor += 1;
            self.skip = 0;
        }
        Some((operation, len))
    }

    /// It never began.
    pub(crate) fn abandon(mut self, error: Error) -> Option<Waker> {
        self.error = Some(error);
        self.finish().waker
    }

    fn is_read(&self) -> bool {
        matches!(self.payload, Payload::Read { .. })
    }

    fn finish(self) -> Finished {
        let read = self.is_read();
        let ok = self.error.is_none();
        let waker = match self.payload {
            Payload::Write { data, completer } => {
                completer.complete(self.error.map_or(Ok(data), Err))
            }
            Payload::Read {
                into, completer, ..
            } => {
                let result = match self.error {
                    Some(error) => Err(error),
                    // All requests have come back, and their pins with them.
                    None => into
                        .unpin()
                        .map_err(|_| Error::Rdma(crate::rdma::RdmaError::Closed)),
                };
                completer.complete(result)
            }
        };
        Finished {
            read,
            bytes: self.len,
            ok,
            started: self.started,
            waker,
        }
    }
}

impl Transfers {
    /// Takes a transfer in. One of no bytes is finished at once.
    pub(crate) fn add(&mut self, mut transfer: Transfer, now: Instant) {
        transfer.started = Some(now);
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            (self.places.len() - 1) as u32
        });
        self.places[place as usize] = Some(transfer);
        self.turns.push_back(place);
    }

    /// The next request, if the budget allows one. A response that may follow now is given with it.
    pub(crate) fn next(&mut self, budget: Budget) -> Option<Next> {
        let mut looked = 0;
        while looked < self.turns.len() {
            let place = self.turns.pop_front()?;
            looked += 1;
            let Some(transfer) = self.places[place as usize].as_mut() else {
                continue;
            };
            if transfer.done == transfer.len {
                // Nothing to move: it was empty from the start.
                let response = transfer.response.take();
                let finished = self.take(place).map(Transfer::finish);
                return Some(Next {
                    request: None,
                    response,
                    finished,
                });
            }
            let is_read = transfer.is_read();
            let too_much = self.bytes_in_flight >= budget.bytes
                || (is_read && self.reads_in_flight >= budget.reads);
            if too_much {
                self.turns.push_back(place);
                continue;
            }
            let Some((operation, len)) = transfer.next(budget.chunk, budget.pieces) else {
                continue;
            };
            self.bytes_in_flight += len;
            self.reads_in_flight += u32::from(is_read);
            let response = if transfer.done == transfer.len {
                transfer.response.take()
            } else {
                self.turns.push_back(place);
                None
            };
            let request = SendRequest {
                cookie: COOKIE | u64::from(place),
                // The last request of a transfer is awaited by its owner; reads return buffers one by one.
                signalled: is_read || transfer.done == transfer.len,
                operation,
            };
            return Some(Next {
                request: Some(request),
                response,
                finished: None,
            });
        }
        None
    }

    /// Whether there is something to post.
    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// A request has come back.
    pub(crate) fn completed(
        &mut self,
        request: SendRequest,
        error: Option<Error>,
    ) -> Option<Finished> {
        let place = request.cookie as u32;
        let is_read = matches!(request.operation, Operation::Read { .. });
        self.bytes_in_flight = self
            .bytes_in_flight
            .saturating_sub(request.operation.bytes());
        self.reads_in_flight = self.reads_in_flight.saturating_sub(u32::from(is_read));
        // Its pin or its bytes go before the buffer is handed back.
        drop(request);
        let transfer = self.places.get_mut(place as usize)?.as_mut()?;
        transfer.outstanding = transfer.outstanding.saturating_sub(1);
        if let Some(error) = error {
            transfer.error.get_or_insert(error);
        }
        if transfer.outstanding > 0 || (transfer.done < transfer.len && transfer.error.is_none()) {
            return None;
        }
        self.turns.retain(|turn| *turn != place);
        self.take(place).map(Transfer::finish)
    }

    /// The connection has ended: everything that is left fails with it.
    pub(crate) fn fail(&mut self, error: &Error, wakers: &mut Vec<Waker>) {
        self.turns.clear();
        for place in &mut self.places {
            if let Some(mut transfer) = place.take() {
                transfer.error.get_or_insert_with(|| error.clone());
                wakers.extend(transfer.finish().waker);
            }
        }
    }

    fn take(&mut self, place: u32) -> Option<Transfer> {
        let transfer = self.places.get_mut(place as usize)?.take();
        if transfer.is_some() {
            self.free.push(place);
        }
        transfer
    }
}

/// What the scheduler wants done.
pub(crate) struct Next {
    pub(crate) request: Option<SendRequest>,
    pub(crate) response: Option<Outgoing>,
    pub(crate) finished: Option<Finished>,
}

/// The pieces of `data` from byte `start` on; `len` is cut to what one gather list holds.
fn gather(data: &Gather, start: usize, max_pieces: usize, len: &mut usize) -> Pieces {
    let mut pieces = Pieces::default();
    let mut at = 0;
    let mut taken = 0;
    for piece in data.pieces() {
        let first = at;
        at += piece.len();
        if at <= start + taken {
            continue;
        }
        if taken == *len || pieces.len() == max_pieces {
            break;
        }
        let from = start + taken - first;
        let count = (piece.len() - from).min(*len - taken);
        // There is room: looked at above.
        let _ = pieces.push(piece.slice(from..from + count));
        taken += count;
    }
    *len = taken;
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::wire::BufferDescriptorV1;
    use crate::rdma::{MAX_PIECES, PlainDomain, Slab, SlabOptions};
    use crate::transport::Op;

    fn descriptors(lengths: &[u32]) -> Descriptors {
        lengths
            .iter()
            .enumerate()
            .map(|(i, length)| BufferDescriptorV1 {
                offset: 1000 * (i as u64 + 1),
                token: i as u32,
                length: *length,
            })
            .collect()
    }

    fn data(lengths: &[usize]) -> Gather {
        let slab = Slab::new(&PlainDomain::shared(), 256, 16, SlabOptions::default()).unwrap();
        let mut gather = Gather::new();
        let mut next = 0u8;
        for len in lengths {
            let mut buf = slab.take().unwrap();
            buf.set_len(*len);
            for byte in buf.iter_mut() {
                *byte = next;
                next = next.wrapping_add(1);
            }
            gather.push(buf);
        }
        gather
    }

    fn run(
        lengths: &[u32],
        offset: u64,
        pieces: &[usize],
        chunk: usize,
    ) -> Vec<(u64, u32, Vec<u8>)> {
        let data = data(pieces);
        let len = data.len();
        let (mut op, completer) = Op::pending();
        let mut transfers = Transfers::default();
        let target = Target {
            descriptors: descriptors(lengths),
            offset,
        };
        target.check(len, u32::MAX).unwrap();
        let payload = Payload::Write { data, completer };
        transfers.add(Transfer::new(payload, target, len, None), Instant::now());
        let budget = Budget {
            chunk,
            bytes: usize::MAX,
            reads: 1,
            pieces: MAX_PIECES,
        };
        let mut requests = Vec::new();
        while let Some(next) = transfers.next(budget) {
            requests.extend(next.request);
        }
        let mut seen = Vec::new();
        let last = requests.len() - 1;
        for (i, request) in requests.into_iter().enumerate() {
            let Operation::Write { from, to } = &request.operation else {
                panic!()
            };
            let bytes = from.iter().flat_map(|piece| piece.to_vec()).collect();
            seen.push((to.address, to.key, bytes));
            assert_eq!(transfers.completed(request, None).is_some(), i == last);
        }
        assert_eq!(op.try_take().unwrap().unwrap().len(), len);
        seen
    }

    #[test]
    fn writes_are_cut_at_descriptors_chunks_and_gather_lists() {
        assert_eq!(
            run(&[4, 10], 2, &[3, 5], 4),
            [
                (1002, 0, vec![0, 1]),
                (2000, 1, vec![2, 3, 4, 5]),
                (2004, 1, vec![6, 7]),
            ]
        );
        let many = run(&[64], 0, &[1; 10], 64);
        assert_eq!(
            many.iter()
                .map(|(_, _, bytes)| bytes.len())
                .collect::<Vec<_>>(),
            [4, 4, 2]
        );
        assert_eq!(run(&[1; 6], 1, &[5], 100).len(), 5);
    }

    #[test]
    fn transfers_take_turns_and_reads_keep_to_the_depth() {
        let slab = Slab::new(&PlainDomain::shared(), 100, 2, SlabOptions::default()).unwrap();
        let mut transfers = Transfers::default();
        let mut ops = Vec::new();
        for _ in 0..2 {
            let (op, completer) = Op::pending();
            let into = slab.take().unwrap().pin();
            let payload = Payload::Read {
                into,
                start: 0,
                completer,
            };
            let target = Target::new(descriptors(&[100]));
            transfers.add(Transfer::new(payload, target, 100, None), Instant::now());
            ops.push(op);
        }
        let budget = Budget {
            chunk: 50,
            bytes: 1000,
            reads: 3,
            pieces: MAX_PIECES,
        };
        let mut flying = VecDeque::new();
        while let Some(next) = transfers.next(budget) {
            flying.extend(next.request);
        }
        let order: Vec<u64> = flying.iter().map(|request| request.cookie & 0xff).collect();
        assert_eq!(order, [0, 1, 0]);
        transfers.completed(flying.pop_front().unwrap(), None);
        flying.extend(transfers.next(budget).unwrap().request);
        while let Some(request) = flying.pop_front() {
            transfers.completed(request, None);
        }
        for mut op in ops {
            assert_eq!(op.try_take().unwrap().unwrap().len(), 128);
        }
    }
}
