//! From the server to the client.

use std::ops::Range;

use bytes::Bytes;
use smbdirect::smb2::{ChannelRules, Dialect, TransformCapabilities};

use super::message::{
    ECHO, HEADER, Member, NEGOTIATE, Protocol, READ, SESSION_SETUP, STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS, UNSOLICITED, WRITE, members, put_command, put_next, put_status, put_u16,
    put_u32, u16_at, u32_at,
};
use super::pending::{Kind, Request};
use super::reason::Reason;
use super::{Data, Negotiated, Output, PREFIX, Rewriter};

/// `StructureSize` of a response to READ that has data, and where its fields are.
const READ_SIZE: u16 = 17;
const DATA_OFFSET: usize = 66;
const DATA_LENGTH: usize = 68;
const DATA_REMAINING: usize = 72;

/// Header and body of a response to NEGOTIATE, up to MaxWriteSize.
const NEGOTIATE_END: usize = 104;
const NEGOTIATE_SIZE: u16 = 65;

impl Rewriter {
    /// Where the rest of a message of the server belongs that begins with these [`PREFIX`] bytes:
    /// if it is the data of a READ that is to be placed, into a buffer of this many bytes of its
    /// own. Otherwise the message is received as a whole.
    pub(crate) fn room_for(&self, prefix: &[u8]) -> Option<usize> {
        let (_, member) = members(prefix).next()?.ok()?;
        let request = self.pending.get(member.message_id())?;
        let Kind::Read { length, .. } = request.kind else {
            return None;
        };
        let fits = member.next() == 0
            && member.command() == READ
            && member.message_id() != UNSOLICITED
            && member.is_response()
            && !member.is_signed()
            && !member.is_interim()
            && !self.pending.is_held(member.message_id())
            && member.body_size() == READ_SIZE
            && prefix.len() >= PREFIX;
        if !fits {
            return None;
        }
        let data = u32_at(prefix, DATA_LENGTH);
        let before = usize::from(prefix[DATA_OFFSET]).checked_sub(PREFIX)?;
        (1..=length)
            .contains(&data)
            .then_some(before + data as usize)
    }

    /// A message of the server: as a whole, or [`PREFIX`] bytes of it, and `payload` bytes in a
    /// buffer that [`room_for`](Self::room_for) has asked for.
    ///
    /// # Errors
    /// It cannot be understood, or the client could not.
    pub(crate) fn handle_response(&mut self, head: Bytes, payload: usize) -> Result<(), Reason> {
        if Protocol::of(&head).ok_or(Reason::BackendNotSmb)? != Protocol::Smb2 {
            return self.answer(head, None);
        }
        // Members from here on pass as they are.
        let mut from = 0;
        for found in members(&head) {
            let (range, member) = found.map_err(Reason::BackendHeader)?;
            if member.begins_answer() {
                self.unanswered = self.unanswered.saturating_sub(1);
            }
            if self.pending.contains(member.message_id()) && member.message_id() != UNSOLICITED {
                if self.answered(&head, from..range.start, member, payload)? {
                    from = range.end;
                }
            } else {
                self.learn(member);
            }
        }
        if from < head.len() {
            self.answer(head.slice(from..), None)?;
        }
        Ok(())
    }

    /// The response to a rewritten request. Those that are changed, or invalidate a token, end
    /// their message: it can carry one token, and follow the data of one READ. `before` are the
    /// members that pass with it. Whether the message was ended.
    fn answered(
        &mut self,
        head: &Bytes,
        before: Range<usize>,
        member: Member<'_>,
        payload: usize,
    ) -> Result<bool, Reason> {
        let message_id = member.message_id();
        if self.pending.is_held(message_id) {
            return Err(Reason::AnswerTooEarly(message_id));
        }
        let Some(request) = self.pending.get_mut(message_id) else {
            return Ok(false);
        };
        let found = member.command();
        let (expected, refused) = match request.kind {
            Kind::Read { .. } => (READ, None),
            Kind::Write => (WRITE, None),
            Kind::Refused { command, .. } => (ECHO, Some(command)),
        };
        if found != expected || !member.is_response() {
            return Err(Reason::AnswerToOther { message_id, found });
        }
        if member.is_signed() {
            return Err(Reason::AnswerSigned);
        }
        let whole = before.start..before.end + member.bytes().len();
        if member.is_interim() {
            // It may take for ever, which others must not wait for.
            let memory = std::mem::take(&mut request.memory);
            self.pending.release(memory, &mut self.outputs);
            let Some(command) = refused else {
                return Ok(false);
            };
            let mut message = head[whole].to_vec();
            end(&mut message, before.len());
            put_command(&mut message[before.len()..], command);
            self.answer(message.into(), None)?;
            return Ok(true);
        }
        let Some(request) = self.pending.remove(message_id) else {
            return Ok(false);
        };
        match request.kind {
            Kind::Read { .. } if member.body_size() == READ_SIZE => {
                self.read_answered(head, before, member, payload, request)?;
                return Ok(true);
            }
            Kind::Refused { command, status } => {
                let mut header = member.bytes()[..HEADER].to_vec();
                put_command(&mut header, command);
                // An ECHO that fails fails for a reason that the request has, too.
                if member.status() == STATUS_SUCCESS {
                    put_status(&mut header, status);
                }
                self.answer(error(&head[before], header), request.token)?;
                return Ok(true);
            }
            Kind::Read { .. } | Kind::Write => {}
        }
        self.pending.release(request.memory, &mut self.outputs);
        if request.token.is_none() {
            return Ok(false);
        }
        let message = match member.next() {
            0 => head.slice(whole),
            _ => {
                let mut message = head[whole].to_vec();
                end(&mut message, before.len());
                message.into()
            }
        };
        self.answer(message, request.token)?;
        Ok(true)
    }

    /// The response to a READ with data, or with none though it succeeded.
    fn read_answered(
        &mut self,
        head: &Bytes,
        before: Range<usize>,
        member: Member<'_>,
        payload: usize,
        request: Request,
    ) -> Result<(), Reason> {
        let Request {
            kind: Kind::Read { length, target },
            token,
            memory,
            ..
        } = request
        else {
            return Ok(());
        };
        let bytes = member.bytes();
        let len = bytes.len() + payload;
        if bytes.len() < PREFIX {
            let (offset, length) = (0, 0);
            return Err(Reason::DataOutside {
                offset,
                length,
                len,
            });
        }
        let (offset, data) = (bytes[DATA_OFFSET], u32_at(bytes, DATA_LENGTH));
        let start = usize::from(offset);
        if data > length {
            return Err(Reason::MoreThanRequested {
                data,
                requested: length,
            });
        }
        let outside = start < PREFIX || start + data as usize > len;
        if data > 0 && outside {
            return Err(Reason::DataOutside {
                offset,
                length: data,
                len,
            });
        }
        if u64::from(data) > target.len() {
            // [MS-SMBD] 3.1.4.5: the data must fit the descriptors.
            self.pending.release(memory, &mut self.outputs);
            let mut header = bytes[..HEADER].to_vec();
            put_status(&mut header, STATUS_INVALID_PARAMETER);
            return self.answer(error(&head[before], header), token);
        }
        // [MS-SMB2] 3.3.5.12: no data in the message, DataRemaining says how much was placed.
        let mut response = head[before.clone()].to_vec();
        let at = response.len();
        response.extend_from_slice(&bytes[..HEADER]);
        response.resize(at + PREFIX, 0);
        end(&mut response, at);
        let body = &mut response[at..];
        put_u16(body, HEADER, READ_SIZE);
        body[DATA_OFFSET] = PREFIX as u8;
        put_u32(body, DATA_REMAINING, data);
        if data == 0 {
            self.pending.release(memory, &mut self.outputs);
            return self.answer(response.into(), token);
        }
        self.check_size(response.len())?;
        let data_end = start + data as usize;
        let from = match payload {
            0 => Data::Message(head.slice(before.end + start..before.end + data_end)),
            _ => Data::Payload(start - PREFIX..data_end - PREFIX),
        };
        let transfer = self.pending.place(memory, data);
        self.outputs.push_back(Output::Place {
            transfer,
            data: from,
            to: target,
            response: response.into(),
            invalidate: token,
        });
        Ok(())
    }

    /// What the answer to a request tells that is not ours.
    fn learn(&mut self, member: Member<'_>) {
        if member.is_response() && member.status() == STATUS_SUCCESS {
            match member.command() {
                NEGOTIATE => self.negotiate(member),
                SESSION_SETUP => self.authenticated = true,
                _ => {}
            }
        }
    }

    /// What both have agreed on. It is only read: changing it would break the hash over it
    /// ([MS-SMB2] 3.3.5.4).
    fn negotiate(&mut self, member: Member<'_>) {
        let bytes = member.bytes();
        let whole = member.body_size() == NEGOTIATE_SIZE && bytes.len() >= NEGOTIATE_END;
        if !whole || self.negotiated.is_some() {
            return;
        }
        // The answer to SMB1's NEGOTIATE names no dialect yet: another one follows.
        let dialect = Dialect::from_revision(u16_at(bytes, HEADER + 4));
        self.negotiated = dialect.map(|dialect| Negotiated {
            rules: ChannelRules {
                dialect,
                // Encrypted and signed data is not the gateway's to see.
                transforms: TransformCapabilities::default(),
            },
            max_read: u32_at(bytes, HEADER + 32),
            max_write: u32_at(bytes, HEADER + 36),
        });
    }

    fn answer(&mut self, message: Bytes, invalidate: Option<u32>) -> Result<(), Reason> {
        self.check_size(message.len())?;
        self.outputs.push_back(Output::Answer {
            message,
            invalidate,
        });
        Ok(())
    }

    fn check_size(&self, len: usize) -> Result<(), Reason> {
        let max = self.limits.max_to_client;
        match len as u64 > max {
            true => Err(Reason::TooLargeForClient { len, max }),
            false => Ok(()),
        }
    }
}

/// Makes the member at `at` the last one.
fn end(message: &mut [u8], at: usize) {
    put_next(&mut message[at..], 0);
}

/// An error response ([MS-SMB2] 2.2.2) behind other members.
fn error(before: &[u8], header: Vec<u8>) -> Bytes {
    let mut message = before.to_vec();
    let at = message.len();
    message.extend_from_slice(&header);
    end(&mut message, at);
    // StructureSize 9, no contexts, no bytes, and the byte of ErrorData that it counts.
    message.extend_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0, 0]);
    message.into()
}
