//! An endpoint with a driver that checks the invariants at every step, and a world of two of them
//! with virtual time, latency and a link that can fail.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::proto::wire::{DataTransfer, NegotiateRequest};
use crate::proto::{
    Config, Connection, CreditProfile, Delivery, DisconnectReason, Event, Loss, MessageId, Role,
};

/// One RDMA Send as it arrives.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) invalidated: Option<u32>,
}

pub(super) struct End {
    pub(super) connection: Connection,
    /// Receives posted and not consumed, as the device sees them.
    pub(super) posted: usize,
    /// The most receives that the driver can post.
    pub(super) most_posted: usize,
    /// Free send-queue slots for each look at the outputs.
    pub(super) slots: usize,
    outgoing: VecDeque<(MessageId, Vec<u8>)>,
    partial: Vec<u8>,
    partial_total: u64,
    /// Complete messages, with the token that came with each.
    pub(super) received: Vec<(Vec<u8>, Option<u32>)>,
    pub(super) negotiated: usize,
    pub(super) ended: Vec<(DisconnectReason, bool)>,
    /// The message that a fragment was sent of, and not the last.
    unfinished: Option<MessageId>,
    /// Every Send, in order.
    pub(super) sent: Vec<Packet>,
}

impl End {
    pub(super) fn new(role: Role, config: &Config, now: Instant) -> Self {
        let mut end = Self {
            connection: Connection::new(role, config, now).unwrap(),
            posted: 0,
            most_posted: usize::MAX,
            slots: 64,
            outgoing: VecDeque::new(),
            partial: Vec::new(),
            partial_total: 0,
            received: Vec::new(),
            negotiated: 0,
            ended: Vec::new(),
            unfinished: None,
            sent: Vec::new(),
        };
        end.post();
        assert!(end.posted >= 1, "I8: a receive before connect and accept");
        assert!(end.connection.receive_size() >= 512);
        end
    }

    pub(super) fn send(&mut self, data: &[u8]) {
        self.send_with(data, None);
    }

    pub(super) fn send_with(&mut self, data: &[u8], token: Option<u32>) {
        let id = self.connection.send(data.len() as u64, token).unwrap();
        self.outgoing.push_back((id, data.to_vec()));
    }

    /// Posts what is wanted, as far as it can; says whether it posted anything.
    pub(super) fn post(&mut self) -> bool {
        let count = self
            .connection
            .receives_wanted()
            .min(self.most_posted.saturating_sub(self.posted));
        self.posted += count;
        self.connection.handle_receives_posted(count);
        assert!(self.posted <= usize::from(u16::MAX) + 1);
        count > 0
    }

    /// Drains all outputs in the documented order.
    pub(super) fn pump(&mut self, now: Instant) -> Vec<Packet> {
        let mut packets = Vec::new();
        let mut slots = self.slots;
        loop {
            let posted = self.post();
            let before = packets.len();
            while slots > 0
                && let Some(packet) = self.transmit(now, slots)
            {
                slots -= 1;
                packets.push(packet);
            }
            self.events();
            if packets.len() == before && !posted {
                break;
            }
        }
        self.sent.extend(packets.iter().cloned());
        packets
    }

    pub(super) fn transmit(&mut self, now: Instant, slots: usize) -> Option<Packet> {
        let before = self.connection.credits();
        let data_phase = self.connection.is_established();
        let transmit = self.connection.poll_transmit(now, slots)?;
        let after = self.connection.credits();
        assert!(after.granted <= after.posted, "I2: {after:?}");
        assert!(
            after.posted as usize <= self.posted,
            "I2: posted by us, not by the device"
        );

        let mut bytes = transmit.header().to_vec();
        if data_phase {
            let header = DataTransfer::parse(&bytes).unwrap();
            assert_eq!(after.send + 1, before.send);
            assert!(
                before.send > 1 || header.credits_granted > 0,
                "I3: {before:?} {header:?}"
            );
            assert!(header.credits_requested > 0);
        }
        match &transmit.payload {
            None => assert_eq!(
                self.unfinished, None,
                "I5: a control message between fragments"
            ),
            Some((id, range)) => {
                assert!(
                    self.unfinished.is_none_or(|unfinished| unfinished == *id),
                    "I5"
                );
                self.unfinished = (!transmit.last_fragment).then_some(*id);
                let (head, data) = self.outgoing.front().unwrap();
                assert_eq!(head, id);
                bytes.extend(&data[range.start as usize..range.end as usize]);
                assert_eq!(transmit.last_fragment, range.end == data.len() as u64);
                if transmit.last_fragment {
                    self.outgoing.pop_front();
                }
            }
        }
        assert_eq!(bytes.len(), transmit.len());
        assert!(transmit.invalidate.is_none() || transmit.last_fragment);
        Some(Packet {
            bytes,
            invalidated: transmit.invalidate,
        })
    }

    pub(super) fn events(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            match event {
                Event::Negotiated(_) => {
                    assert!(self.ended.is_empty());
                    self.negotiated += 1;
                    assert_eq!(self.negotiated, 1);
                }
                Event::Disconnect { reason, flush } => {
                    assert_eq!(self.connection.disconnect_reason(), Some(&reason));
                    self.ended.push((reason, flush));
                    assert_eq!(self.ended.len(), 1, "I9");
                }
            }
        }
    }

    /// A packet meets a posted receive, or the test fails.
    pub(super) fn receive(&mut self, now: Instant, packet: &Packet) -> Delivery {
        if self.connection.is_closed() {
            return self
                .connection
                .handle_receive(now, &packet.bytes, packet.invalidated);
        }
        assert!(self.posted > 0, "a send met no posted receive");
        self.posted -= 1;
        let delivery = self
            .connection
            .handle_receive(now, &packet.bytes, packet.invalidated);
        match &delivery {
            Delivery::Nothing => {}
            Delivery::Whole { data, invalidated } => {
                assert!(self.negotiated == 1 || self.connection.is_established());
                self.received
                    .push((packet.bytes[data.clone()].to_vec(), *invalidated));
            }
            Delivery::First { data, total } => {
                assert_eq!(self.partial_total, 0);
                self.partial_total = *total;
                self.partial = packet.bytes[data.clone()].to_vec();
            }
            Delivery::Continue { data } => self.partial.extend(&packet.bytes[data.clone()]),
            Delivery::Last { data, invalidated } => {
                self.partial.extend(&packet.bytes[data.clone()]);
                assert_eq!(self.partial.len() as u64, self.partial_total);
                self.partial_total = 0;
                self.received
                    .push((std::mem::take(&mut self.partial), *invalidated));
            }
        }
        assert!(self.partial.len() as u64 <= self.partial_total || self.partial_total == 0);
        delivery
    }

    /// Receives bytes that a test made up.
    pub(super) fn feed(&mut self, now: Instant, bytes: &[u8]) -> Delivery {
        self.receive(
            now,
            &Packet {
                bytes: bytes.to_vec(),
                invalidated: None,
            },
        )
    }

    pub(super) fn reason(&self) -> Option<&DisconnectReason> {
        self.ended.first().map(|(reason, _)| reason)
    }
}

/// An initiator (0) and an acceptor (1).
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [End; 2],
    pub(super) latency: Duration,
    /// Packets under way, with their time of arrival, by destination.
    wires: [VecDeque<(Instant, Packet)>; 2],
    /// Packets sent by each end are dropped: its link is dead and nobody has noticed.
    pub(super) mute: [bool; 2],
    /// Packets that arrived at each end.
    pub(super) arrived: [usize; 2],
}

impl Pair {
    pub(super) fn new(initiator: &Config, acceptor: &Config) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            ends: [
                End::new(Role::Initiator, initiator, now),
                End::new(Role::Acceptor, acceptor, now),
            ],
            latency: Duration::from_micros(10),
            wires: Default::default(),
            mute: [false; 2],
            arrived: [0; 2],
        };
        for end in &mut pair.ends {
            end.connection.handle_established(now);
        }
        pair
    }

    /// Negotiated, and quiet.
    pub(super) fn connected(initiator: &Config, acceptor: &Config) -> Self {
        let mut pair = Self::new(initiator, acceptor);
        pair.settle();
        assert_eq!(pair.ends.each_ref().map(|end| end.negotiated), [1, 1]);
        pair
    }

    /// Runs until nothing is under way, without letting a timer fire.
    pub(super) fn settle(&mut self) {
        self.pump();
        for _ in 0..1_000_000 {
            if !self.deliver_next(None) {
                return;
            }
        }
        panic!("two endpoints never stop talking");
    }

    /// Runs for this long, timers included.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.pump();
        for _ in 0..1_000_000 {
            if self.deliver_next(Some(end)) {
                continue;
            }
            let timers = self
                .ends
                .iter()
                .filter_map(|end| end.connection.poll_timeout());
            match timers.min() {
                Some(deadline) if deadline <= end => {
                    self.now = self.now.max(deadline);
                    for end in &mut self.ends {
                        end.connection.handle_timeout(self.now);
                    }
                    self.pump();
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("two endpoints never stop talking");
    }

    /// The link is lost, and both see it.
    pub(super) fn cut(&mut self) {
        self.wires = Default::default();
        for end in &mut self.ends {
            end.connection.handle_lost(self.now, Loss::Failed);
            end.events();
        }
    }

    pub(super) fn pump(&mut self) {
        for from in 0..2 {
            for packet in self.ends[from].pump(self.now) {
                if !self.mute[from] {
                    self.wires[1 - from].push_back((self.now + self.latency, packet));
                }
            }
        }
    }

    /// Delivers the packet that arrives next, if it does so before `until` and before any timer.
    fn deliver_next(&mut self, until: Option<Instant>) -> bool {
        let arrivals = [0, 1].map(|to| self.wires[to].front().map(|(at, _)| *at));
        let Some(to) = (0..2)
            .filter(|&to| arrivals[to].is_some())
            .min_by_key(|&to| arrivals[to])
        else {
            return false;
        };
        let at = arrivals[to].unwrap();
        if let Some(until) = until {
            let timers = self
                .ends
                .iter()
                .filter_map(|end| end.connection.poll_timeout());
            if at > until || timers.min().is_some_and(|timer| timer < at) {
                return false;
            }
        }
        let (_, packet) = self.wires[to].pop_front().unwrap();
        self.now = self.now.max(at);
        self.arrived[to] += 1;
        self.ends[to].receive(self.now, &packet);
        self.pump();
        true
    }
}

/// Small numbers, as the public test suite uses them.
pub(super) fn config(credits: u16) -> Config {
    Config {
        send_credit_target: credits,
        receive_credit_max: credits,
        max_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
        credit_profile: CreditProfile::Full,
        ..Config::default()
    }
}

/// The request of the public test suite.
pub(super) fn request() -> NegotiateRequest {
    NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

/// A data transfer message with payload at offset 24.
pub(super) fn data_message(granted: u16, remaining: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = DataTransfer {
        credits_requested: 255,
        credits_granted: granted,
        remaining_data_length: remaining,
        data_offset: 24,
        data_length: data.len() as u32,
        ..DataTransfer::default()
    }
    .encode()
    .to_vec();
    bytes.extend([0; 4]);
    bytes.extend(data);
    bytes
}

/// A data transfer message without payload.
pub(super) fn control(granted: u16, flags: u16) -> Vec<u8> {
    DataTransfer {
        credits_requested: 255,
        credits_granted: granted,
        flags,
        ..DataTransfer::default()
    }
    .encode()
    .to_vec()
}

/// Payload that tells where it came from.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}
