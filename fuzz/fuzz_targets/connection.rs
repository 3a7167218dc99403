//! `proto::Connection` in both roles under arbitrary operations: whatever happens in whatever order, its invariants
//! hold.
#![no_main]

use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use smbdirect::proto::wire::{DataTransfer, NegotiateRequest, NegotiateResponse, VERSION};
use smbdirect::proto::{Config, Connection, CreditProfile, Delivery, Event, Loss, MessageId, Role};

#[derive(Arbitrary, Debug)]
struct Input {
    acceptor: bool,
    /// Begin with a conforming negotiation.
    negotiated: bool,
    send_credits: u8,
    receive_credits: u8,
    profile: u8,
    operations: Vec<Operation>,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Established,
    Posted(u8),
    PostWanted,
    Unavailable,
    Receive(Vec<u8>, Option<u32>),
    ReceiveData(Data),
    ReceiveResponse { credits: [u16; 2], sizes: [u32; 4] },
    Lost(bool),
    Timeout(u8),
    Send(u32, Option<u32>),
    SendHuge(u64),
    Ready(bool),
    Close,
    Abort,
    Transmit(u8),
    Event,
}

/// A data transfer message, mostly a legal one.
#[derive(Arbitrary, Debug)]
struct Data {
    credits_requested: u8,
    credits_granted: u16,
    answer: bool,
    remaining: u16,
    /// Says what remains of the message that was begun.
    honest: bool,
    len: u16,
    offset: Option<u32>,
}

/// What was seen so far.
struct Model {
    connection: Connection,
    now: Instant,
    max_receive: u32,
    max_fragmented: u64,
    negotiated: u32,
    ended: u32,
    /// Bytes that are still to come of the message being received.
    incoming: u64,
    /// The message being sent, and up to where.
    outgoing: Option<(MessageId, u64)>,
    next: u64,
}

fuzz_target!(|input: Input| {
    let role = match input.acceptor {
        true => Role::Acceptor,
        false => Role::Initiator,
    };
    let config = Config {
        send_credit_target: u16::from(input.send_credits).max(1),
        receive_credit_max: u16::from(input.receive_credits).max(1),
        max_receive_size: 1500,
        max_fragmented_size: 131_072,
        credit_profile: match input.profile % 3 {
            0 => CreditProfile::Adaptive,
            1 => CreditProfile::Full,
            _ => CreditProfile::Small,
        },
        ..Config::default()
    };
    let now = Instant::now();
    let mut model = Model {
        connection: Connection::new(role, &config, now).expect("a valid config"),
        now,
        max_receive: config.max_receive_size,
        max_fragmented: config.max_fragmented_size.into(),
        negotiated: 0,
        ended: 0,
        incoming: 0,
        outgoing: None,
        next: 0,
    };
    if input.negotiated {
        model.negotiate(role);
    }
    for operation in input.operations {
        model.run(operation);
        model.check(&config);
    }
    while model.event() {}
    assert_eq!(model.ended, u32::from(model.connection.is_closed()));
    // After the end nothing comes any more, whatever still arrives.
    if model.connection.is_closed() {
        let reason = model.connection.disconnect_reason().cloned();
        model.connection.handle_established(model.now);
        model.connection.handle_lost(model.now, Loss::Failed);
        model.connection.abort();
        assert_eq!(model.connection.poll_event(), None);
        assert_eq!(model.connection.poll_transmit(model.now, 8), None);
        assert_eq!(model.connection.receives_wanted(), 0);
        assert_eq!(model.connection.disconnect_reason().cloned(), reason);
    }
});

impl Model {
    fn run(&mut self, operation: Operation) {
        let now = self.now;
        let connection = &mut self.connection;
        match operation {
            Operation::Established => connection.handle_established(now),
            Operation::Posted(count) => connection.handle_receives_posted(count.into()),
            Operation::PostWanted => {
                connection.handle_receives_posted(connection.receives_wanted());
            }
            Operation::Unavailable => connection.handle_receives_unavailable(),
            Operation::Receive(bytes, token) => self.receive(&bytes, token),
            Operation::ReceiveData(data) => {
                let bytes = data.bytes(self.incoming);
                self.receive(&bytes, None);
            }
            Operation::ReceiveResponse { credits, sizes } => {
                let bytes = NegotiateResponse {
                    negotiated_version: VERSION,
                    credits_requested: credits[0],
                    credits_granted: credits[1],
                    max_read_write_size: sizes[0],
                    preferred_send_size: sizes[1],
                    max_receive_size: sizes[2],
                    max_fragmented_size: sizes[3],
                    ..NegotiateResponse::failure(0)
                }
                .encode();
                self.receive(&bytes, None);
            }
            Operation::Lost(true) => connection.handle_lost(now, Loss::PeerDisconnected),
            Operation::Lost(false) => connection.handle_lost(now, Loss::Failed),
            Operation::Timeout(seconds) => {
                self.now += Duration::from_secs(seconds.into());
                connection.handle_timeout(self.now);
            }
            Operation::Send(len, token) => {
                let _ = connection.send(u64::from(len) % 200_000, token);
            }
            Operation::SendHuge(len) => {
                // Not queued in full: the limits of the peer may be as large as they get.
                if connection.send(len, None).is_ok() {
                    assert!(len > 0 && len <= u64::from(u32::MAX));
                }
            }
            Operation::Ready(ready) => connection.set_application_ready(ready),
            Operation::Close => connection.close(),
            Operation::Abort => connection.abort(),
            Operation::Transmit(slots) => {
                // As a driver does, until nothing more comes.
                for left in (1..=usize::from(slots)).rev() {
                    if !self.transmit(left) {
                        break;
                    }
                }
            }
            Operation::Event => {
                self.event();
            }
        }
    }

    fn receive(&mut self, bytes: &[u8], token: Option<u32>) {
        let delivery = self.connection.handle_receive(self.now, bytes, token);
        let data = match delivery {
            Delivery::Nothing => return,
            Delivery::Whole { data, .. } => {
                assert_eq!(self.incoming, 0);
                assert!(!data.is_empty());
                data
            }
            Delivery::First { data, total } => {
                assert_eq!(self.incoming, 0);
                assert!(total > 0 && total <= self.max_fragmented);
                self.incoming = total - data.len() as u64;
                assert!(self.incoming > 0);
                data
            }
            Delivery::Continue { data } => {
                assert!((data.len() as u64) < self.incoming);
                self.incoming -= data.len() as u64;
                data
            }
            Delivery::Last { data, .. } => {
                assert_eq!(data.len() as u64, self.incoming);
                self.incoming = 0;
                data
            }
        };
        assert!(bytes.len() <= self.max_receive as usize);
        assert!(bytes.get(data).is_some(), "outside of the message");
        assert!(self.connection.is_established());
        assert_eq!(self.connection.reassembly_remaining(), self.incoming);
    }

    fn transmit(&mut self, slots: usize) -> bool {
        let before = self.connection.credits();
        let data_phase = self.connection.is_established();
        let Some(transmit) = self.connection.poll_transmit(self.now, slots) else {
            return false;
        };
        if !data_phase {
            assert_eq!(transmit.payload, None);
            return true;
        }
        let header = DataTransfer::parse(transmit.header()).expect("our own header");
        let after = self.connection.credits();
        // The last credit is spent only on a message that grants one.
        assert!(before.send > 0);
        assert!(before.send > 1 || header.credits_granted > 0);
        assert!(header.credits_requested > 0);
        if !self.connection.is_closed() {
            assert_eq!(after.send, before.send - 1);
            assert_eq!(
                after.granted,
                before.granted + u32::from(header.credits_granted)
            );
            let parameters = self.connection.parameters().expect("negotiated");
            assert!(transmit.len() <= parameters.max_send_size as usize);
        }
        match transmit.payload {
            Some((id, range)) => {
                let from = match self.outgoing {
                    Some((same, at)) => {
                        assert_eq!(same, id, "another message in between");
                        at
                    }
                    None => {
                        assert_eq!(id.sequence(), self.next, "not in the order of acceptance");
                        0
                    }
                };
                assert_eq!(range.start, from);
                assert!(range.end > range.start);
                assert_eq!(range.end - range.start, u64::from(header.data_length));
                assert_eq!(transmit.last_fragment, header.remaining_data_length == 0);
                assert!(transmit.last_fragment || transmit.invalidate.is_none());
                self.outgoing = (!transmit.last_fragment).then_some((id, range.end));
                self.next += u64::from(transmit.last_fragment);
            }
            None => {
                assert_eq!(self.outgoing, None, "between the fragments of a message");
                assert_eq!((header.data_length, header.data_offset), (0, 0));
                assert_eq!(header.remaining_data_length, 0);
            }
        }
        true
    }

    fn event(&mut self) -> bool {
        match self.connection.poll_event() {
            Some(Event::Negotiated(_)) => {
                assert_eq!(self.ended, 0);
                self.negotiated += 1;
            }
            Some(Event::Disconnect { .. }) => self.ended += 1,
            None => return false,
        }
        true
    }

    fn check(&self, config: &Config) {
        let connection = &self.connection;
        let credits = connection.credits();
        assert!(
            credits.granted <= credits.posted,
            "granted what is not posted"
        );
        assert!(connection.receives_wanted() <= usize::from(config.receive_credit_max) + 1);
        assert!(self.negotiated <= 1 && self.ended <= 1);
        assert!(connection.is_closed() || connection.poll_timeout().is_some());
        assert!(!connection.is_closed() || connection.poll_timeout().is_none());
        assert!(!connection.is_closed() || connection.disconnect_reason().is_some());
        assert!(!connection.is_closed() || connection.queued_bytes() == 0);
    }

    /// A conforming start.
    fn negotiate(&mut self, role: Role) {
        self.run(Operation::PostWanted);
        self.run(Operation::Established);
        self.run(Operation::Transmit(1));
        match role {
            Role::Acceptor => {
                let request = NegotiateRequest {
                    min_version: VERSION,
                    max_version: VERSION,
                    credits_requested: 10,
                    preferred_send_size: 1024,
                    max_receive_size: 1024,
                    max_fragmented_size: 131_072,
                };
                self.receive(&request.encode(), None);
            }
            Role::Initiator => self.run(Operation::ReceiveResponse {
                credits: [3, 3],
                sizes: [1 << 20, 1024, 1024, 131_072],
            }),
        }
        self.run(Operation::PostWanted);
        self.run(Operation::Transmit(1));
        assert!(self.connection.is_established());
    }
}

impl Data {
    fn bytes(&self, incoming: u64) -> Vec<u8> {
        let len = usize::from(self.len) % 1500;
        let len = match self.honest && incoming > 0 {
            true => len.min(incoming as usize),
            false => len,
        };
        let remaining = match self.honest && incoming > 0 {
            true => incoming - len as u64,
            false => self.remaining.into(),
        };
        let header = DataTransfer {
            credits_requested: self.credits_requested.into(),
            credits_granted: self.credits_granted,
            flags: self.answer.into(),
            remaining_data_length: remaining as u32,
            data_offset: self.offset.unwrap_or(if len == 0 { 0 } else { 24 }),
            data_length: len as u32,
        };
        let mut bytes = header.encode().to_vec();
        if len > 0 {
            bytes.resize(24 + len, 0xAA);
        }
        bytes
    }
}
