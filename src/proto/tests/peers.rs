//! Endpoints as the search for deadlocks sees them: ours, and models of others as far as credits matter.

use std::time::{Duration, Instant};

use super::world::{config, data_message, request};
use crate::proto::wire::*;
use crate::proto::*;

/// A message on the wire, as far as credits matter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) requested: u16,
    pub(super) granted: u16,
    pub(super) flag: bool,
    pub(super) data: bool,
}

/// An endpoint as the search sees it.
pub(super) trait Endpoint: Clone {
    fn key(&self) -> Vec<u32>;
    fn queued(&self) -> u32;
    fn enqueue(&mut self);
    /// The idle timer expires; false if a probe is under way already.
    fn probe(&mut self) -> bool;
    /// A probe of its own is not answered yet, or one of the peer's not by it.
    fn unanswered(&self) -> bool;
    /// Posts what it wants; false if it wants nothing.
    fn post(&mut self) -> bool;
    /// Lets some time pass, but not enough for the idle timer; false if it waits for nothing.
    fn wait(&mut self) -> bool;
    /// Sends one message, if it can and wants to.
    fn send(&mut self) -> Option<Message>;
    fn receive(&mut self, message: Message);
}

// ---- Our engine

#[derive(Clone)]
pub(super) struct Ours {
    connection: Connection,
    now: Instant,
    /// Receives that may be posted at a time.
    most_posted: u32,
    /// Posts before it sends, as a driver does that has memory.
    posts_first: bool,
}

impl Ours {
    /// Negotiated, with what this side granted. `held`: what it was granted, as initiator.
    pub(super) fn new(
        role: Role,
        target: u16,
        peer_target: u16,
        held: u16,
        now: Instant,
    ) -> (Self, u16) {
        let mut ours = Self {
            connection: Connection::new(role, &config(target), now).unwrap(),
            now,
            most_posted: u32::from(target) + 1,
            posts_first: false,
        };
        let connection = &mut ours.connection;
        connection.handle_receives_posted(1);
        connection.handle_established(now);
        let granted = match role {
            Role::Acceptor => {
                let request = NegotiateRequest {
                    credits_requested: peer_target,
                    ..request()
                };
                connection.handle_receive(now, &request.encode(), None);
                connection.handle_receives_posted(connection.receives_wanted());
                let transmit = connection.poll_transmit(now, 1).unwrap();
                NegotiateResponse::parse(transmit.header())
                    .unwrap()
                    .credits_granted
            }
            Role::Initiator => {
                connection.poll_transmit(now, 1).unwrap();
                let response = NegotiateResponse {
                    negotiated_version: VERSION,
                    credits_requested: peer_target,
                    credits_granted: held,
                    preferred_send_size: 1024,
                    max_receive_size: 1024,
                    max_fragmented_size: 131_072,
                    ..NegotiateResponse::failure(0)
                };
                connection.handle_receive(now, &response.encode(), None);
                connection.handle_receives_posted(connection.receives_wanted());
                0
            }
        };
        assert!(connection.is_established());
        (ours, granted)
    }

    /// Keeps its last credit if it has held this many.
    pub(super) fn keeping_from(mut self, credits: u32) -> Self {
        self.connection.keep_last_credit_from(credits);
        self
    }

    /// With a driver that posts what is wanted before it sends.
    pub(super) fn posting_first(mut self) -> Self {
        self.posts_first = true;
        self
    }
}

impl Endpoint for Ours {
    fn key(&self) -> Vec<u32> {
        self.connection.fingerprint().to_vec()
    }

    fn queued(&self) -> u32 {
        self.connection.queued_messages() as u32
    }

    fn enqueue(&mut self) {
        self.connection.send(10, None).unwrap();
    }

    fn probe(&mut self) -> bool {
        if self.unanswered() {
            return false;
        }
        self.connection
            .handle_timeout(self.now + Config::default().keepalive_interval);
        true
    }

    fn unanswered(&self) -> bool {
        self.connection.fingerprint()[5] != 0
    }

    fn post(&mut self) -> bool {
        let wanted = self.connection.receives_wanted();
        self.connection.handle_receives_posted(wanted);
        wanted > 0
    }

    fn wait(&mut self) -> bool {
        // Time begins to count with the attempt.
        assert!(self.send().is_none());
        let soon = self.now + Duration::from_secs(1);
        match self.connection.poll_timeout() {
            Some(deadline) if deadline < soon => {
                self.connection.handle_timeout(deadline);
                true
            }
            _ => false,
        }
    }

    fn send(&mut self) -> Option<Message> {
        if self.posts_first {
            self.post();
        }
        let before = self.connection.credits();
        let transmit = self.connection.poll_transmit(self.now, 1)?;
        let header = DataTransfer::parse(transmit.header()).unwrap();
        let after = self.connection.credits();
        assert!(after.granted <= after.posted, "I2");
        assert!(before.send > 1 || header.credits_granted > 0, "I3");
        Some(Message {
            requested: header.credits_requested,
            granted: header.credits_granted,
            flag: header.response_requested(),
            data: transmit.payload.is_some(),
        })
    }

    fn receive(&mut self, message: Message) {
        assert!(
            self.connection.credits().posted > 0,
            "a send met no posted receive"
        );
        let data: &[u8] = if message.data { &[1; 10] } else { &[] };
        let mut bytes = data_message(message.granted, 0, data);
        bytes[..2].copy_from_slice(&message.requested.to_le_bytes());
        bytes[4] = u8::from(message.flag);
        self.connection.handle_receive(self.now, &bytes, None);
        assert_eq!(self.connection.disconnect_reason(), None);
        assert!(
            self.connection.credits().posted <= self.most_posted,
            "one beyond the target"
        );
    }
}

// ---- The others

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// [MS-SMBD] 3.1.5 to the letter, where it says MUST before where it says SHOULD: grants after
    /// each receive.
    Specification,
    /// The same, but a reader who stops at the first rule of 3.1.5.9: nothing is granted while the
    /// target is met, not even for a last credit. Such a peer blocks itself with one or two.
    FirstRule,
    /// Refills at a quarter, does not send a grant of one, spends its last credit as long as the
    /// peer holds any.
    Linux,
    /// Before 7.0: spends every credit that it has, whatever the message grants; and it posts
    /// receives again some time after they were used, when so many more messages of its own have left
    /// at the latest.
    OldLinux { late: u32 },
    /// Grants in batches of three quarters.
    Windows,
}

/// A peer of another make. It posts receives when it grants them.
#[derive(Debug, Clone)]
pub(super) struct Other {
    kind: Kind,
    target: u16,
    peer_target: u16,
    receive_max: u16,
    send: u32,
    granted: u32,
    /// Posted and not granted; only Linux keeps such.
    available: u32,
    queued: u32,
    answer: bool,
    probe_pending: bool,
    probe_sent: bool,
    /// The specification's message that only grants, on its way into the send queue.
    grant_pending: bool,
    /// Old Linux: receives are to be posted, and so many messages may leave before.
    refill_within: Option<u32>,
}

impl Other {
    pub(super) fn new(kind: Kind, target: u16, peer_target: u16, send: u16, granted: u16) -> Self {
        let mut other = Self {
            kind,
            target,
            peer_target,
            receive_max: target,
            send: u32::from(send),
            granted: u32::from(granted),
            available: 0,
            queued: 0,
            answer: false,
            probe_pending: false,
            probe_sent: false,
            // After negotiation, an initiator owes the acceptor its first credits.
            grant_pending: granted == 0,
            refill_within: None,
        };
        other.refill();
        other.post();
        other
    }

    fn limit(&self) -> u32 {
        u32::from(self.peer_target.min(self.receive_max))
    }

    fn missing(&self) -> u32 {
        self.limit().saturating_sub(self.granted)
    }

    /// Linux posts receives again when three quarters are used.
    fn refill(&mut self) {
        if self.granted + self.available > self.limit() / 4 {
            return;
        }
        match self.kind {
            Kind::Linux => self.available = self.limit() - self.granted,
            Kind::OldLinux { late } if self.refill_within.is_none() => {
                self.refill_within = Some(late);
            }
            _ => {}
        }
    }

    fn is_linux(&self) -> bool {
        matches!(self.kind, Kind::Linux | Kind::OldLinux { .. })
    }

    /// What the next message would grant.
    fn grant(&self) -> u32 {
        let last = self.send == 1;
        match self.kind {
            Kind::Specification => self.missing().max(u32::from(last || self.granted == 0)),
            Kind::FirstRule => self.missing(),
            Kind::Linux | Kind::OldLinux { .. } => self.available.min(self.missing()),
            Kind::Windows if last => self.missing().max(1),
            Kind::Windows if 4 * self.missing() >= 3 * self.limit() => self.missing(),
            Kind::Windows => 0,
        }
    }

    fn wants_to_grant(&self) -> bool {
        match self.kind {
            Kind::Specification | Kind::FirstRule => self.grant_pending && self.queued == 0,
            Kind::Linux | Kind::OldLinux { .. } => {
                let grant = self.available.min(self.missing());
                grant > 1 || (grant == 1 && self.limit() == 1)
            }
            Kind::Windows => 4 * self.missing() >= 3 * self.limit(),
        }
    }

    fn owes_message(&self) -> bool {
        self.answer || self.probe_pending
    }

    fn may_spend(&self, grant: u32) -> bool {
        match self.kind {
            Kind::Linux => self.send > 1 || grant > 0 || self.granted > 0,
            Kind::OldLinux { .. } => true,
            Kind::Specification | Kind::FirstRule | Kind::Windows => self.send > 1 || grant > 0,
        }
    }
}

impl Endpoint for Other {
    fn key(&self) -> Vec<u32> {
        let flags = [
            self.answer,
            self.grant_pending,
            self.probe_pending,
            self.probe_sent,
        ];
        let flags = flags
            .iter()
            .fold(0, |bits, &flag| bits << 1 | u32::from(flag));
        let refill = self.refill_within.map_or(0, |left| left + 1);
        vec![
            self.send,
            self.granted,
            self.available,
            self.queued,
            flags,
            refill,
        ]
    }

    fn queued(&self) -> u32 {
        self.queued
    }

    fn enqueue(&mut self) {
        self.queued += 1;
    }

    fn probe(&mut self) -> bool {
        let fresh = !self.probe_pending && !self.probe_sent;
        self.probe_pending |= fresh;
        fresh
    }

    fn unanswered(&self) -> bool {
        self.answer || self.probe_pending || self.probe_sent
    }

    fn post(&mut self) -> bool {
        let due = self.refill_within.take().is_some();
        if due {
            self.available = self.limit().saturating_sub(self.granted);
        }
        due
    }

    fn wait(&mut self) -> bool {
        false
    }

    fn send(&mut self) -> Option<Message> {
        let data = self.queued > 0;
        if self.send == 0 || !(data || self.owes_message() || self.wants_to_grant()) {
            return None;
        }
        let grant = self.grant();
        if !self.may_spend(grant) || self.refill_within == Some(0) {
            return None;
        }
        if let Some(left) = &mut self.refill_within {
            *left -= 1;
        }
        self.send -= 1;
        self.granted += grant;
        if self.is_linux() {
            self.available -= grant;
        }
        self.queued -= u32::from(data);
        self.answer = false;
        self.grant_pending = false;
        Some(Message {
            requested: self.target,
            granted: grant as u16,
            flag: false,
            data,
        })
    }

    fn receive(&mut self, message: Message) {
        self.granted = self.granted.checked_sub(1).expect("sent without a credit");
        self.probe_pending = false;
        self.probe_sent = false;
        // [MS-SMBD] 3.1.5.8: with nothing queued, new credits are promptly granted.
        if self.queued == 0 && (self.missing() > 0 || self.granted == 0) {
            self.grant_pending = matches!(self.kind, Kind::Specification | Kind::FirstRule);
        }
        self.peer_target = message.requested;
        self.answer |= message.flag;
        self.send += u32::from(message.granted);
        self.refill();
    }
}
