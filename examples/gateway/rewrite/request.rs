//! From the client to the server.

use bytes::{BufMut, Bytes, BytesMut};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::smb2::{Channel, Operation, Placement};
use smbdirect::transport::Target;

use super::message::{
    CANCEL, ECHO, HEADER, Member, Protocol, READ, STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER, UNSOLICITED, WRITE, members, put_command, put_next, put_u16, put_u32,
    u16_at, u32_at,
};
use super::pending::{Batch, Kind, Request, memory_for};
use super::reason::{Reason, Warning};
use super::{BULK, Limits, Negotiated, Output, Piece, Rewriter};

/// Header and body of READ and WRITE requests, without `Buffer`.
const BODY_END: usize = 112;
/// `StructureSize` of both.
const STRUCTURE_SIZE: u16 = 49;
/// `Flags` of a READ: READFLAG_READ_COMPRESSED, which means nothing on RDMA ([MS-SMB2] 3.3.5.12).
const READ_FLAGS: usize = 67;
const READ_COMPRESSED: u8 = 0x02;
/// `DataOffset` of a WRITE.
const DATA_OFFSET: usize = 66;
/// `Length` of both.
const LENGTH: usize = 68;

/// What becomes of a member of the client's message.
#[derive(Debug)]
enum Plan {
    Verbatim,
    Read(Placement),
    Write(Placement),
    /// Becomes an ECHO, whose answer becomes this error.
    Refuse {
        status: u32,
        token: Option<u32>,
    },
}

impl Rewriter {
    /// A message of the client.
    ///
    /// # Errors
    /// It cannot be understood.
    pub(crate) fn handle_request(&mut self, message: Bytes) -> Result<(), Reason> {
        match Protocol::of(&message).ok_or(Reason::ClientNotSmb)? {
            Protocol::Smb2 => {}
            other => {
                if other == Protocol::Encrypted && message.len() >= BULK as usize {
                    self.warn(Warning::EncryptedBulk);
                }
                self.outputs.push_back(Output::Forward(message));
                return Ok(());
            }
        }
        let (mut count, mut rewritten) = (0, false);
        for found in members(&message) {
            let (_, member) = found.map_err(Reason::ClientHeader)?;
            count += 1;
            if member.is_signed() && data_length(member) >= BULK {
                self.warn(Warning::SignedBulk);
            }
            let id = member.message_id();
            if member.command() != CANCEL {
                if self.pending.contains(id) || self.pending.is_held(id) {
                    return Err(Reason::MessageIdInUse(id));
                }
                self.unanswered += 1;
            }
            rewritten |= self.channel(member).is_some();
        }
        if rewritten {
            return self.rewrite(&message, count);
        }
        let message = self.after_its_request(message, count);
        self.outputs.extend(message.map(Output::Forward));
        Ok(())
    }

    /// Keeps a CANCEL back whose request is not forwarded yet: it would cancel nothing. A compound
    /// with one waits as a whole.
    fn after_its_request(&mut self, message: Bytes, count: usize) -> Option<Bytes> {
        let held = members(&message).flatten().find_map(|(_, member)| {
            // With an id of its own it is for a request that the server has answered once already.
            let is_cancel = member.command() == CANCEL && !member.is_async();
            let id = member.message_id();
            (is_cancel && self.pending.is_held(id)).then_some(id)
        });
        let Some(id) = held else {
            return Some(message);
        };
        let others: Vec<u64> = members(&message)
            .flatten()
            .filter(|(_, member)| member.command() != CANCEL)
            .map(|(_, member)| member.message_id())
            .collect();
        self.pending.hold_back(id, message, count == 1, others);
        None
    }

    /// What the member's channel says, if it is one that must be rewritten: signed ones cannot be.
    /// For clients that have not logged in no data is moved, and the server tells them so.
    fn channel(&self, member: Member<'_>) -> Option<(Operation, &Negotiated)> {
        // Before 3.0 the field means nothing.
        let negotiated = self.negotiated.as_ref().filter(|_| self.authenticated)?;
        let operation = match member.command() {
            READ => Operation::Read,
            WRITE => Operation::Write,
            _ => return None,
        };
        let bytes = member.bytes();
        // What is no valid request at all is the server's to judge.
        if member.is_signed() || bytes.len() < BODY_END || member.body_size() != STRUCTURE_SIZE {
            return None;
        }
        let channel = u32_at(bytes, channel_at(operation));
        (channel != Channel::None.value()).then_some((operation, negotiated))
    }

    /// Rewrites a message of `count` members, at least one of which names memory of the client.
    fn rewrite(&mut self, message: &Bytes, count: usize) -> Result<(), Reason> {
        let mut plans = Vec::with_capacity(count);
        for found in members(message) {
            let (_, member) = found.map_err(Reason::ClientHeader)?;
            let plan = match self.channel(member) {
                None => Plan::Verbatim,
                Some((operation, negotiated)) => plan(member, operation, negotiated, &self.limits),
            };
            plans.push((member, plan));
        }
        self.refuse_too_large(&mut plans);

        let mut batch = Batch::of(message.len());
        let mut text = BytesMut::with_capacity(plans.len() * (BODY_END + 8));
        let last = plans.len() - 1;
        for (at, (member, plan)) in plans.into_iter().enumerate() {
            let id = member.message_id();
            if member.command() != CANCEL {
                if self.pending.contains(id) {
                    return Err(Reason::MessageIdInUse(id));
                }
                batch.members.push(id);
            }
            let request = self.append(member, plan, at == last, &mut text, &mut batch);
            if let Some(request) = request {
                if id == UNSOLICITED {
                    return Err(Reason::MessageIdReserved);
                }
                self.pending.insert(id, request);
            }
        }
        if !text.is_empty() {
            batch.pieces.push(Piece::Bytes(text.freeze()));
        }
        self.pending.add(batch, &mut self.outputs);
        Ok(())
    }

    /// The server gets the message in one piece, and so does the gateway its answer.
    fn refuse_too_large(&mut self, plans: &mut [(Member<'_>, Plan)]) {
        let (mut out, mut back) = (0, 0);
        for (member, plan) in &*plans {
            match plan {
                Plan::Verbatim => out += member.bytes().len(),
                Plan::Read(placement) => {
                    out += BODY_END + 8;
                    back += BODY_END + placement.length as usize;
                }
                Plan::Write(placement) => out += BODY_END + 8 + placement.length as usize,
                Plan::Refuse { .. } => out += HEADER + 8,
            }
        }
        if out <= self.limits.max_backend && back <= self.limits.max_backend {
            return;
        }
        for (_, plan) in plans {
            if let Plan::Read(placement) | Plan::Write(placement) = plan {
                *plan = Plan::Refuse {
                    status: STATUS_INSUFFICIENT_RESOURCES,
                    token: placement.token_to_invalidate(),
                };
            }
        }
    }

    /// Appends what the server gets for a member.
    fn append(
        &mut self,
        member: Member<'_>,
        plan: Plan,
        last: bool,
        text: &mut BytesMut,
        batch: &mut Batch,
    ) -> Option<Request> {
        let start = text.len();
        match plan {
            Plan::Verbatim => {
                text.put_slice(member.bytes());
                None
            }
            Plan::Read(placement) => {
                self.counts.reads += 1;
                text.put_slice(&member.bytes()[..BODY_END]);
                // `StructureSize` counts a byte of `Buffer`.
                text.put_u8(0);
                no_channel(&mut text[start..], Operation::Read);
                text[start + READ_FLAGS] &= !READ_COMPRESSED;
                pad(text, start, BODY_END + 1, last);
                let (memory, token) = (memory_for(&placement), placement.token_to_invalidate());
                batch.memory += memory;
                let kind = Kind::Read {
                    length: placement.length,
                    target: Target::new(placement.descriptors),
                };
                Some(Request {
                    kind,
                    token,
                    memory,
                })
            }
            Plan::Write(placement) => {
                self.counts.writes += 1;
                text.put_slice(&member.bytes()[..BODY_END]);
                let request = &mut text[start..];
                no_channel(request, Operation::Write);
                put_u16(request, DATA_OFFSET, BODY_END as u16);
                put_u32(request, LENGTH, placement.length);
                let len = BODY_END + placement.length as usize;
                put_next(request, next(len, last));
                let transfer = self.pending.transfer();
                batch.pieces.push(Piece::Bytes(text.split().freeze()));
                batch.pieces.push(Piece::Fetched(transfer));
                if !last {
                    text.put_bytes(0, len.next_multiple_of(8) - len);
                }
                let (memory, token) = (memory_for(&placement), placement.token_to_invalidate());
                batch.memory += memory;
                let from = Target::new(placement.descriptors);
                batch.fetches.push((transfer, placement.length, from));
                Some(Request {
                    kind: Kind::Write,
                    token,
                    memory,
                })
            }
            Plan::Refuse { status, token } => {
                self.counts.refused += 1;
                text.put_slice(&member.bytes()[..HEADER]);
                put_command(&mut text[start..], ECHO);
                // StructureSize and Reserved ([MS-SMB2] 2.2.28).
                text.put_slice(&[4, 0, 0, 0]);
                pad(text, start, HEADER + 4, last);
                let command = member.command();
                Some(Request {
                    kind: Kind::Refused { command, status },
                    token,
                    memory: 0,
                })
            }
        }
    }
}

/// What becomes of a request that names memory of the client.
fn plan(
    member: Member<'_>,
    operation: Operation,
    negotiated: &Negotiated,
    limits: &Limits,
) -> Plan {
    let (parsed, max) = match operation {
        Operation::Read => (
            Placement::parse_read(member.bytes(), &negotiated.rules),
            negotiated.max_read,
        ),
        Operation::Write => (
            Placement::parse_write(member.bytes(), &negotiated.rules),
            negotiated.max_write,
        ),
    };
    let Ok(Some(placement)) = parsed else {
        // [MS-SMB2] 3.3.5.12, 3.3.5.13: whatever is wrong with the channel has this status.
        return Plan::Refuse {
            status: STATUS_INVALID_PARAMETER,
            token: first_token(member, operation, negotiated),
        };
    };
    let length = placement.length;
    let token = placement.token_to_invalidate();
    let target = Target::new(placement.descriptors.as_slice());
    let fits = length as usize <= limits.max_backend.saturating_sub(BODY_END);
    // A READ may find less data than it asks for: its descriptors are compared with what there is.
    let shape = target.check(0, limits.max_transfer);
    if length > max || length > limits.max_transfer || !fits || shape.is_err() {
        return Plan::Refuse {
            status: STATUS_INVALID_PARAMETER,
            token,
        };
    }
    match operation {
        Operation::Read => Plan::Read(placement),
        Operation::Write => Plan::Write(placement),
    }
}

/// The token that the client wants to be invalidated though its request is not valid, as far as it
/// can be found: clients rely on it for errors, too.
fn first_token(member: Member<'_>, operation: Operation, negotiated: &Negotiated) -> Option<u32> {
    let bytes = member.bytes();
    let at = channel_at(operation);
    let invalidate = Channel::from_value(u32_at(bytes, at)) == Some(Channel::RdmaV1Invalidate)
        && negotiated
            .rules
            .allows(operation, Channel::RdmaV1Invalidate);
    let offset = usize::from(u16_at(bytes, at + 8));
    let length = usize::from(u16_at(bytes, at + 10));
    let info = bytes.get(offset..offset + length)?;
    let descriptor = BufferDescriptorV1::parse_array(info.get(..BufferDescriptorV1::LEN)?).ok()?;
    let token = descriptor.first()?.token;
    (invalidate && offset >= BODY_END).then_some(token)
}

/// Bytes of file data that a READ or WRITE in messages is about; 0 for all else.
fn data_length(member: Member<'_>) -> u32 {
    let is_data = matches!(member.command(), READ | WRITE);
    if is_data && member.bytes().len() >= LENGTH + 4 {
        u32_at(member.bytes(), LENGTH)
    } else {
        0
    }
}

/// Where a request says which channel it uses. RemainingBytes, and offset and length of the channel
/// information follow.
fn channel_at(operation: Operation) -> usize {
    match operation {
        Operation::Read => 100,
        Operation::Write => 96,
    }
}

/// Takes the channel and all that belongs to it out of a request.
fn no_channel(request: &mut [u8], operation: Operation) {
    let at = channel_at(operation);
    request[at..at + 12].fill(0);
}

/// Ends a member of `len` bytes that starts at `start`.
fn pad(text: &mut BytesMut, start: usize, len: usize, last: bool) {
    put_next(&mut text[start..], next(len, last));
    if !last {
        text.put_bytes(0, len.next_multiple_of(8) - len);
    }
}

/// NextCommand of a member of `len` bytes.
fn next(len: usize, last: bool) -> u32 {
    match last {
        true => 0,
        // Less than a message to the server, which has 24 bits.
        false => len.next_multiple_of(8) as u32,
    }
}
