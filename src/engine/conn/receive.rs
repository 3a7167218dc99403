//! The receiving half of a connection: posts receives, and hands up what arrives, without a copy where slots are free.

use bytes::Bytes;

use super::{CONTROL, Conn, Context, Leave, closing};
use crate::engine::assembly::OverBudget;
use crate::engine::channel::LEFT_TO_OTHERS;
use crate::engine::pool::Pools;
use crate::proto::Delivery;
use crate::rdma::IoBuf;
use crate::transport::{DisconnectReason, Message, SteeringTag};

/// Receives that a pool keeps free before received messages are copied out of their slots.
const ZERO_COPY_RESERVE: usize = 16;
/// Slots that receives leave in any case to what is sent, where both have the same: a grant that cannot leave would make
/// all of them useless.
const LEFT_TO_SENDS: usize = 4;

impl Conn {
    /// A message arrived from the network.
    pub(crate) fn received(
        &mut self,
        buffer: IoBuf,
        invalidated: Option<u32>,
        cx: &mut Context<'_>,
    ) {
        self.posted_receives = self.posted_receives.saturating_sub(1);
        self.stats.receives += 1;
        if self.closed {
            return;
        }
        if self.negotiated {
            self.stats.receive_low_water = self.stats.receive_low_water.min(self.posted_receives);
        }
        if let Some(key) = invalidated {
            if !self.exposures.invalidated(key, &mut closing(self.id, cx)) {
                self.fail(DisconnectReason::UnknownInvalidation(SteeringTag(key)), cx);
                return;
            }
            self.stats.remote_invalidations += 1;
        }
        match self.proto.handle_receive(cx.now, &buffer, invalidated) {
            Delivery::Nothing => self.recycle(buffer),
            Delivery::Whole { data, invalidated } => {
                self.stats.bytes_received += data.len() as u64;
                let (bytes, memory) = if self.may_lend() {
                    self.stats.zero_copy_bytes += data.len() as u64;
                    // All of the slot, however little of it is used.
                    let memory = buffer.capacity();
                    (buffer.freeze().slice(data).into_bytes(), memory)
                } else {
                    self.stats.copied_bytes += data.len() as u64;
                    let bytes = Bytes::copy_from_slice(&buffer[data]);
                    self.recycle(buffer);
                    let memory = bytes.len();
                    (bytes, memory)
                };
                self.deliver(bytes, memory, invalidated, cx);
            }
            Delivery::First { data, total } => {
                self.stats.fragments_received += 1;
                self.assembly
                    .begin(usize::try_from(total).unwrap_or(usize::MAX));
                self.append(&buffer[data], cx);
                self.recycle(buffer);
            }
            Delivery::Continue { data } => {
                self.stats.fragments_received += 1;
                self.append(&buffer[data], cx);
                self.recycle(buffer);
            }
            Delivery::Last { data, invalidated } => {
                self.stats.fragments_received += 1;
                let complete = self.append(&buffer[data], cx);
                self.recycle(buffer);
                if complete {
                    let bytes = self.assembly.finish();
                    let memory = bytes.len();
                    self.deliver(bytes, memory, invalidated, cx);
                }
            }
        }
    }

    /// A posted receive came back unused.
    pub(crate) fn flushed(&mut self, buffer: IoBuf) {
        self.posted_receives = self.posted_receives.saturating_sub(1);
        drop(buffer);
    }

    pub(super) fn post_receives(&mut self, cx: &mut Context<'_>) {
        let wanted = self.proto.receives_wanted();
        if wanted == 0 || self.closed {
            return;
        }
        let size = self.proto.receive_size() as usize;
        let shared = self.negotiated && Pools::are_alike(size, self.fragment_size());
        let (at_least, to_others) = match shared {
            true => (LEFT_TO_SENDS, LEFT_TO_OTHERS),
            false => (0, 0),
        };
        while self.receives.len() < wanted {
            // More of them than ever leave so many slots that nothing is copied for want of free ones. Those that replace
            // what was lent leave less: else more and more would be made for an application that keeps its messages,
            // which are copied instead when few slots are left.
            let count = self.posted_receives as usize + self.receives.len();
            let more = self.negotiated && count >= self.most_receives;
            let leave = Leave {
                normally: match more {
                    true => ZERO_COPY_RESERVE + to_others,
                    false => at_least,
                },
                at_least,
            };
            match self.take_slot(size, wanted - self.receives.len(), leave, cx.now) {
                Some(buffer) => self.receives.push_back(buffer),
                None => break,
            }
            self.most_receives = self.most_receives.max(count + 1);
        }
        self.receives.truncate(wanted);
        let had = self.receives.len();
        let result = cx.provider.post_receive(self.id, &mut self.receives);
        let posted = had - self.receives.len();
        self.posted_receives += posted as u32;
        if self.posted_receives == 0 && posted == 0 && !self.growth.is_coming() {
            self.proto.handle_receives_unavailable();
        }
        if self.stats.receive_low_water == 0 && self.negotiated {
            self.stats.receive_low_water = self.posted_receives;
        }
        self.proto.handle_receives_posted(posted);
        self.check_post(result, cx);
    }

    /// Hands up a message whose bytes are in `memory` bytes of memory.
    fn deliver(
        &mut self,
        bytes: Bytes,
        memory: usize,
        invalidated: Option<u32>,
        cx: &mut Context<'_>,
    ) {
        self.stats.messages_received += 1;
        let mut inbox = self.shared.inbox();
        inbox.push(Message::new(bytes, invalidated.map(SteeringTag)), memory);
        inbox.full |= inbox.bytes > self.options.receive_queue_bytes;
        cx.wakers.extend(inbox.waker.take());
        let full = inbox.full;
        drop(inbox);
        if full && self.application_ready {
            self.application_ready = false;
            self.proto.set_application_ready(false);
        }
    }

    /// Adds a fragment to the message that is being put together; false if that ended the connection.
    fn append(&mut self, data: &[u8], cx: &mut Context<'_>) -> bool {
        self.stats.bytes_received += data.len() as u64;
        self.stats.copied_bytes += data.len() as u64;
        match self.assembly.append(data) {
            Ok(()) => true,
            Err(OverBudget { limit }) => {
                self.fail(DisconnectReason::ReassemblyBudget { limit }, cx);
                false
            }
        }
    }

    /// Keeps a receive for posting it again.
    pub(super) fn recycle(&mut self, mut buffer: IoBuf) {
        let size = self.proto.receive_size() as usize;
        if buffer.capacity() >= size && buffer.capacity() < 2 * size.max(CONTROL) {
            buffer.set_len(size);
            self.receives.push_back(buffer);
        }
    }

    /// Whether a receive may be lent to the application.
    fn may_lend(&self) -> bool {
        let size = self.proto.receive_size() as usize;
        self.pools()
            .is_some_and(|pools| pools.free(size) > ZERO_COPY_RESERVE)
    }
}
