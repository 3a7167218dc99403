//! What a connection asks its driver to do.

use std::ops::Range;

use super::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};
use super::{DisconnectReason, MessageId, Parameters};

/// One RDMA Send: header bytes, then payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    header: [u8; NegotiateResponse::LEN],
    header_len: u8,
    /// The message and the bytes of it that follow the header. None: the header is the whole Send.
    pub payload: Option<(MessageId, Range<u64>)>,
    /// The payload is the end of its message: nothing of it will be asked for again.
    pub last_fragment: bool,
    /// Send with invalidation of this steering tag of the peer, where the device can; else an
    /// ordinary Send.
    pub invalidate: Option<u32>,
}

impl Transmit {
    pub(crate) fn request(message: &NegotiateRequest) -> Self {
        Self::whole(&message.encode())
    }

    pub(crate) fn response(message: &NegotiateResponse) -> Self {
        Self::whole(&message.encode())
    }

    pub(crate) fn control(message: &DataTransfer) -> Self {
        // No padding without payload ([MS-SMBD] 3.1.5.4).
        Self::whole(&message.encode())
    }

    pub(crate) fn data(
        message: &DataTransfer,
        payload: (MessageId, Range<u64>),
        invalidate: Option<u32>,
    ) -> Self {
        let mut transmit = Self::whole(&message.encode());
        // The bytes from the header's end to the payload are zero already.
        transmit.header_len = super::wire::DATA_OFFSET as u8;
        transmit.payload = Some(payload);
        transmit.last_fragment = message.remaining_data_length == 0;
        transmit.invalidate = invalidate;
        transmit
    }

    fn whole(bytes: &[u8]) -> Self {
        let mut header = [0; NegotiateResponse::LEN];
        header[..bytes.len()].copy_from_slice(bytes);
        Self {
            header,
            header_len: bytes.len() as u8,
            payload: None,
            last_fragment: false,
            invalidate: None,
        }
    }

    /// The bytes that come first: 20, 24 or 32 of them.
    pub fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_len)]
    }

    /// Bytes of the whole Send.
    pub fn len(&self) -> usize {
        let payload = self
            .payload
            .as_ref()
            .map_or(0, |(_, range)| range.end - range.start);
        // A fragment is never larger than `max_send_size`, which is a u32.
        usize::from(self.header_len) + payload as usize
    }

    /// Always false: there is a header at least.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// What to do with the bytes of a receive that has completed. Ranges are within these bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing for the upper layer: negotiation, credits, keepalives, or a connection that has
    /// ended.
    Nothing,
    /// A message of one fragment. It may be passed up without a copy.
    Whole {
        /// The message.
        data: Range<usize>,
        /// The steering tag that was invalidated with it, as the RDMA device said.
        invalidated: Option<u32>,
    },
    /// The first fragment of a message. It may be empty.
    First {
        /// The message's first bytes.
        data: Range<usize>,
        /// Bytes of the whole message, at most `max_fragmented_receive_size`.
        total: u64,
    },
    /// A fragment between first and last. It may be empty.
    Continue {
        /// The message's next bytes.
        data: Range<usize>,
    },
    /// The fragment that completes the message.
    Last {
        /// The message's last bytes.
        data: Range<usize>,
        /// The steering tag that was invalidated with the message, as the RDMA device said.
        invalidated: Option<u32>,
    },
}

/// What the layer above must hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection is ready for messages. Once at most, and before any message is delivered.
    Negotiated(Parameters),
    /// The connection has ended. Once, and nothing comes after it.
    Disconnect {
        /// Why: the first reason there was.
        reason: DisconnectReason,
        /// Let the sends posted so far complete (within a deadline) before disconnecting; else
        /// disconnect at once.
        flush: bool,
    },
}

/// Counters of one connection since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Upper-layer messages handed out completely.
    pub messages_sent: u64,
    /// Upper-layer messages delivered completely.
    pub messages_received: u64,
    /// Data transfer messages with payload handed out.
    pub fragments_sent: u64,
    /// Data transfer messages with payload received.
    pub fragments_received: u64,
    /// Bytes of payload handed out.
    pub bytes_sent: u64,
    /// Bytes of payload received.
    pub bytes_received: u64,
    /// Data transfer messages without payload handed out: grants, probes, answers.
    pub control_sent: u64,
    /// Data transfer messages without payload received.
    pub control_received: u64,
    /// Keepalive probes of ours.
    pub probes_sent: u64,
    /// Keepalive probes of the peer's that we answered.
    pub probes_answered: u64,
    /// Times that something waited to be sent and no credit allowed it.
    pub credit_stalls: u64,
    /// Receives granted to the peer.
    pub credits_granted: u64,
    /// Credits the peer granted to us.
    pub credits_received: u64,
}
