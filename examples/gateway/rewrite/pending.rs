//! Requests that were rewritten and are not answered, and the memory that they take.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use smbdirect::smb2::Placement;
use smbdirect::transport::Target;

use super::{Output, Piece, TransferId};

/// The least memory that data takes, in bytes.
const SMALLEST: u64 = 4096;

/// Memory that data of this many bytes takes: buffers come in powers of two.
fn footprint(len: u32) -> u64 {
    u64::from(len).next_power_of_two().max(SMALLEST)
}

/// Memory that a request takes until it is answered: that of its data, and descriptors, of which
/// there may be thousands. One of them takes none of its own.
pub(super) fn memory_for(placement: &Placement) -> u64 {
    let descriptors = match &placement.descriptors[..] {
        [_] => 0,
        descriptors => size_of_val(descriptors) as u64,
    };
    footprint(placement.length) + descriptors
}

/// A rewritten request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: Kind,
    /// The token that the final response invalidates.
    pub(super) token: Option<u32>,
    /// Memory reserved for its data, in bytes.
    pub(super) memory: u64,
}

#[derive(Debug)]
pub(super) enum Kind {
    Read {
        /// Bytes asked for.
        length: u32,
        target: Target,
    },
    Write,
    /// Forwarded as an ECHO, whose answer becomes an error.
    Refused {
        command: u16,
        status: u32,
    },
}

/// A message of the client with rewritten requests in it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What the server gets.
    pub(super) pieces: Vec<Piece>,
    /// Data to be read from the client first.
    pub(super) fetches: Vec<(TransferId, u32, Target)>,
    /// The message ids of its members, but of CANCEL, and of those in `behind`.
    pub(super) members: Vec<u64>,
    /// Memory that they need, in bytes.
    pub(super) memory: u64,
    /// Bytes of the message.
    len: usize,
    /// Reads that are not finished.
    unfinished: usize,
    /// Messages with a CANCEL for a member, to be forwarded after it; with the member's id those
    /// that are nothing else.
    behind: Vec<(Option<u64>, Bytes)>,
}

impl Batch {
    /// Of a message of `len` bytes.
    pub(super) fn of(len: usize) -> Self {
        Self {
            len,
            ..Self::default()
        }
    }
}

type BatchId = u64;

/// All of them.
#[derive(Debug)]
pub(super) struct Pending {
    requests: HashMap<u64, Request>,
    /// Messages that are not forwarded yet.
    batches: HashMap<BatchId, Batch>,
    /// In which of them a member is, by its message id.
    held: HashMap<u64, BatchId>,
    /// Messages that are kept behind them.
    behind: usize,
    /// Bytes of all these messages.
    waiting_bytes: usize,
    /// Those of them that wait for memory, in order.
    queue: VecDeque<BatchId>,
    /// To which of them data belongs that is being read.
    fetching: HashMap<TransferId, BatchId>,
    /// Memory of data that is being placed.
    placing: HashMap<TransferId, u64>,
    placing_bytes: u64,
    max_memory: u64,
    memory: u64,
    next: u64,
}

impl Pending {
    pub(super) fn new(max_memory: u64) -> Self {
        Self {
            requests: HashMap::new(),
            batches: HashMap::new(),
            held: HashMap::new(),
            behind: 0,
            waiting_bytes: 0,
            queue: VecDeque::new(),
            fetching: HashMap::new(),
            placing: HashMap::new(),
            placing_bytes: 0,
            max_memory,
            memory: 0,
            next: 0,
        }
    }

    /// Messages that are not forwarded yet.
    pub(super) fn waiting(&self) -> usize {
        self.batches.len() + self.behind
    }

    /// Bytes of these, without the data that RDMA moves.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    pub(super) fn placing(&self) -> u64 {
        self.placing_bytes
    }

    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.placing.is_empty()
    }

    /// Whether a rewritten request has this id.
    pub(super) fn contains(&self, message_id: u64) -> bool {
        self.requests.contains_key(&message_id)
    }

    /// Whether the server has not been sent the member with this id.
    pub(super) fn is_held(&self, message_id: u64) -> bool {
        self.held.contains_key(&message_id)
    }

    pub(super) fn get_mut(&mut self, message_id: u64) -> Option<&mut Request> {
        self.requests.get_mut(&message_id)
    }

    pub(super) fn get(&self, message_id: u64) -> Option<&Request> {
        self.requests.get(&message_id)
    }

    pub(super) fn transfer(&mut self) -> TransferId {
        self.next += 1;
        TransferId(self.next)
    }

    /// Takes a rewritten request in, whose id is not in use; `add` follows with the message.
    pub(super) fn insert(&mut self, message_id: u64, request: Request) {
        self.requests.insert(message_id, request);
    }

    /// Takes the message of rewritten requests in, and forwards it as soon as its data is here.
    pub(super) fn add(&mut self, batch: Batch, outputs: &mut VecDeque<Output>) {
        self.next += 1;
        let id = self.next;
        let members = batch.members.iter().map(|message_id| (*message_id, id));
        self.held.extend(members);
        self.waiting_bytes += batch.len;
        let needs_memory = batch.memory > 0;
        self.batches.insert(id, batch);
        if needs_memory {
            self.queue.push_back(id);
            self.start(outputs);
        } else {
            self.forward(id, outputs);
        }
    }

    /// Keeps a message with a CANCEL behind the request that it is for. Of those that are nothing
    /// but that CANCEL one is enough: it has no answer. `others` are the ids of its other members.
    pub(super) fn hold_back(
        &mut self,
        message_id: u64,
        message: Bytes,
        alone: bool,
        others: Vec<u64>,
    ) {
        let Some(id) = self.held.get(&message_id).copied() else {
            return;
        };
        let Some(batch) = self.batches.get_mut(&id) else {
            return;
        };
        self.held.extend(others.iter().map(|other| (*other, id)));
        batch.members.extend(others);
        let key = alone.then_some(message_id);
        if key.is_none() || batch.behind.iter().all(|(other, _)| *other != key) {
            self.behind += 1;
            self.waiting_bytes += message.len();
            batch.behind.push((key, message));
        }
    }

    /// The data of a WRITE is here.
    pub(super) fn fetched(&mut self, transfer: TransferId, outputs: &mut VecDeque<Output>) {
        let Some(id) = self.fetching.remove(&transfer) else {
            return;
        };
        if let Some(batch) = self.batches.get_mut(&id) {
            batch.unfinished -= 1;
            if batch.unfinished == 0 {
                self.forward(id, outputs);
            }
        }
    }

    /// The final answer is here. Its memory is the caller's to give back.
    pub(super) fn remove(&mut self, message_id: u64) -> Option<Request> {
        self.requests.remove(&message_id)
    }

    /// Data goes to the client, in memory that was reserved for it.
    pub(super) fn place(&mut self, reserved: u64, len: u32) -> TransferId {
        let transfer = self.transfer();
        let memory = match reserved {
            // It was given back while the server took its time.
            0 => {
                let memory = footprint(len);
                self.memory += memory;
                memory
            }
            reserved => reserved,
        };
        self.placing.insert(transfer, memory);
        self.placing_bytes += memory;
        transfer
    }

    /// Data has gone to the client.
    pub(super) fn placed(&mut self, transfer: TransferId, outputs: &mut VecDeque<Output>) {
        if let Some(memory) = self.placing.remove(&transfer) {
            self.placing_bytes -= memory;
            self.release(memory, outputs);
        }
    }

    /// Memory is free again: who waits for it goes on.
    pub(super) fn release(&mut self, memory: u64, outputs: &mut VecDeque<Output>) {
        self.memory -= memory;
        self.start(outputs);
    }

    /// Starts those for whom there is memory. In order: large ones must not wait for ever.
    fn start(&mut self, outputs: &mut VecDeque<Output>) {
        while let Some(&id) = self.queue.front() {
            let Some(batch) = self.batches.get_mut(&id) else {
                self.queue.pop_front();
                continue;
            };
            // Alone it gets what it needs: otherwise it would never go on.
            if self.memory > 0 && self.memory + batch.memory > self.max_memory {
                return;
            }
            self.queue.pop_front();
            self.memory += batch.memory;
            batch.unfinished = batch.fetches.len();
            for (transfer, len, from) in batch.fetches.drain(..) {
                self.fetching.insert(transfer, id);
                outputs.push_back(Output::Fetch {
                    transfer,
                    len,
                    from,
                });
            }
            if batch.unfinished == 0 {
                self.forward(id, outputs);
            }
        }
    }

    fn forward(&mut self, id: BatchId, outputs: &mut VecDeque<Output>) {
        let Some(batch) = self.batches.remove(&id) else {
            return;
        };
        for message_id in &batch.members {
            self.held.remove(message_id);
        }
        outputs.push_back(Output::ForwardPieces(batch.pieces));
        self.waiting_bytes -= batch.len;
        self.behind -= batch.behind.len();
        for (_, message) in batch.behind {
            self.waiting_bytes -= message.len();
            outputs.push_back(Output::Forward(message));
        }
    }
}
