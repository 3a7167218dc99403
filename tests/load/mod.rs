//! A load that keeps a connection busy: rounds of 32 transfers at a time, half written and half read by the server,
//! every byte checked. For tests of what happens to busy connections.

use std::time::Duration;

use smbdirect::engine::{Channel, Exposed};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{DirectPlacement, Error, Op, Target, Transport, TransportExt};

/// Transfers in flight in each round.
pub(crate) const TRANSFERS: usize = 32;

/// Nothing takes this long, even on an emulated machine under load.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What both ends know.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Bytes of each transfer.
    len: usize,
    /// Transfers are pieces of it, so that making and comparing them costs next to nothing.
    bytes: Vec<u8>,
}

/// How far one end came.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Rounds that were completed and right.
    pub(crate) rounds: u64,
    /// Transfers or exposures that the connection's end has cut short.
    pub(crate) cut_short: usize,
    /// What ended it; `None`: it was closed in order.
    pub(crate) error: Option<Error>,
}

impl Load {
    pub(crate) fn new(len: usize) -> Self {
        let mut state = 1u64;
        let next = || {
            // Knuth's MMIX generator: the upper bits are good enough to tell pieces apart.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        Self {
            len,
            bytes: std::iter::repeat_with(next).take(len + (1 << 16)).collect(),
        }
    }

    /// The bytes of one transfer: written ones and read ones, all rounds and both ends differ.
    fn piece(&self, round: u64, transfer: usize) -> &[u8] {
        let start = (round * 4099 + transfer as u64 * 257) as usize % (self.bytes.len() - self.len);
        &self.bytes[start..start + self.len]
    }

    /// The client's end, as long as `go_on` says so before each round. Does not close.
    pub(crate) fn request(&self, channel: &Channel, mut go_on: impl FnMut(u64) -> bool) -> Outcome {
        let mut outcome = Outcome::new();
        let mut memory: Vec<IoBuf> = Vec::new();
        while go_on(outcome.rounds) {
            if let Err(error) = self.ask(channel, &mut memory, &mut outcome) {
                outcome.error = Some(error);
                break;
            }
            outcome.rounds += 1;
        }
        outcome
    }

    fn ask(
        &self,
        channel: &Channel,
        memory: &mut Vec<IoBuf>,
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        while memory.len() < TRANSFERS {
            memory.push(channel.allocate(self.len).wait()?);
        }
        let mut exposures: Vec<Exposed> = Vec::new();
        let mut request = Vec::new();
        for (transfer, mut buffer) in memory.drain(..).enumerate() {
            let access = access(transfer);
            match access {
                RemoteAccess::Read => {
                    buffer.copy_from_slice(self.piece(outcome.rounds, transfer));
                }
                RemoteAccess::Write => buffer.fill(0),
            }
            let exposed = channel.expose(buffer, access)?;
            request.extend_from_slice(&exposed.descriptors()[0].encode());
            exposures.push(exposed);
        }
        let answer = channel
            .send_blocking(&request, Some(LONG))
            .and_then(|()| channel.recv_blocking(Some(LONG)));
        let ended = !matches!(answer, Ok(Some(_)));
        for (transfer, exposed) in exposures.into_iter().enumerate() {
            // Also after the connection's end: the peer's right is over then.
            let buffer = exposed.reclaim().wait().expect("memory that comes back");
            if ended {
                outcome.cut_short += 1;
            } else if access(transfer) == RemoteAccess::Write {
                let piece = self.piece(outcome.rounds, transfer);
                assert!(buffer[..] == *piece, "transfer {transfer} arrived");
            }
            memory.push(buffer);
        }
        match answer? {
            Some(_) => Ok(()),
            None => panic!("the server closed before its client"),
        }
    }

    /// The server's end, until its client closes. `posted` is called when the transfers of a round are under way.
    pub(crate) fn serve(&self, channel: &dyn Transport, mut posted: impl FnMut(u64)) -> Outcome {
        let mut outcome = Outcome::new();
        loop {
            match channel.recv_blocking(None) {
                Ok(None) => return outcome,
                Ok(Some(request)) => {
                    let done = self.answer(channel, &request, &mut posted, &mut outcome);
                    if let Err(error) = done {
                        outcome.error = Some(error);
                        return outcome;
                    }
                    outcome.rounds += 1;
                }
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
    }

    fn answer(
        &self,
        channel: &dyn Transport,
        request: &[u8],
        posted: &mut impl FnMut(u64),
        outcome: &mut Outcome,
    ) -> Result<(), Error> {
        let direct: &dyn DirectPlacement = channel.direct().expect("direct placement");
        let mut writes = Vec::new();
        let mut reads: Vec<(usize, Op<IoBuf>)> = Vec::new();
        for (transfer, descriptor) in request.chunks_exact(16).enumerate() {
            let descriptor = BufferDescriptorV1::parse(descriptor).expect("a descriptor");
            let mut buffer = channel.allocate(self.len).wait()?;
            let target = Target::new([descriptor]);
            match access(transfer) {
                RemoteAccess::Write => {
                    buffer.copy_from_slice(self.piece(outcome.rounds, transfer));
                    writes.push(direct.write(buffer.into(), target));
                }
                RemoteAccess::Read => {
                    reads.push((transfer, direct.read(buffer, 0..self.len, target)));
                }
            }
        }
        assert_eq!(writes.len() + reads.len(), TRANSFERS);
        posted(outcome.rounds);
        let mut failure = Ok(());
        let mut note = |error: Error| {
            outcome.cut_short += 1;
            failure = Err(error);
        };
        for write in writes {
            if let Err(error) = write.wait() {
                note(error);
            }
        }
        for (transfer, read) in reads {
            match read.wait() {
                Ok(buffer) => {
                    let piece = self.piece(outcome.rounds, transfer);
                    assert!(buffer[..] == *piece, "transfer {transfer} was read");
                }
                Err(error) => note(error),
            }
        }
        failure?;
        // Follows the writes: when it arrives, so have they.
        channel.send_blocking(b"done", Some(LONG))
    }
}

impl Outcome {
    fn new() -> Self {
        Self {
            rounds: 0,
            cut_short: 0,
            error: None,
        }
    }
}

/// What the peer may do with the memory of a transfer.
fn access(transfer: usize) -> RemoteAccess {
    if transfer.is_multiple_of(2) {
        RemoteAccess::Write
    } else {
        RemoteAccess::Read
    }
}
