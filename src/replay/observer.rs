//! A passive observer of SMB Direct: checks what both sides send against the rules, with the
//! protocol's own parsers, and puts the upper layer's messages together in two ways: by its own few
//! lines, and by two [`Connection`]s that get what the real ends got.

use std::time::Instant;

use super::capture::{Send, Side};
use crate::proto::wire::{
    DataTransfer, MIN_FRAGMENTED_SIZE, NegotiateRequest, NegotiateResponse, VERSION,
};
use crate::proto::{Config, Connection, CreditProfile, Delivery, Event, Role};

/// A message of the upper layer.
pub(crate) type Message = (Side, Vec<u8>);

/// What is known of one side.
#[derive(Debug, Default)]
struct End {
    /// Messages it may still send.
    credits: u32,
    /// What it last asked for.
    requested: u16,
    max_receive_size: u32,
    max_fragmented_size: u32,
    /// The message it is sending.
    message: Vec<u8>,
    remaining: u64,
}

/// What the observer counted.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) messages: Vec<Message>,
    pub(crate) fragmented: usize,
    pub(crate) control: usize,
    pub(crate) credits_granted: u32,
}

/// Checks a whole session, from the negotiate request on.
pub(crate) fn observe(sends: &[Send]) -> Summary {
    let [request, response, data @ ..] = sends else {
        panic!("no negotiation in {} sends", sends.len());
    };
    let mut ends = negotiate(request, response);
    let mut summary = Summary::default();
    for send in data {
        let (from, to) = (send.from as usize, send.from.other() as usize);
        let header = DataTransfer::parse(&send.message).expect("a data transfer header");
        assert!(send.message.len() as u64 <= u64::from(ends[to].max_receive_size));

        assert!(ends[from].credits > 0, "sent without a credit: {header:?}");
        ends[from].credits -= 1;
        ends[to].credits += u32::from(header.credits_granted);
        summary.credits_granted += u32::from(header.credits_granted);
        assert!(header.credits_requested > 0);
        ends[from].requested = header.credits_requested;
        assert!(
            ends[to].credits <= u32::from(ends[to].requested),
            "granted more than was asked for: {ends:?}"
        );

        let payload = header.payload(send.message.len()).expect("a payload");
        let limit = u64::from(ends[to].max_fragmented_size);
        assert!(header.total() <= limit, "{header:?}");
        let end = &mut ends[from];
        if header.total() == 0 {
            assert_eq!(end.remaining, 0, "an empty message within a message");
            summary.control += 1;
            continue;
        }
        if end.message.is_empty() {
            end.remaining = header.total();
            summary.fragmented += usize::from(header.remaining_data_length > 0);
        }
        end.message.extend_from_slice(&send.message[payload]);
        end.remaining -= u64::from(header.data_length);
        assert_eq!(end.remaining, u64::from(header.remaining_data_length));
        if end.remaining == 0 {
            summary
                .messages
                .push((send.from, std::mem::take(&mut end.message)));
        }
    }
    summary
}

fn negotiate(request: &Send, response: &Send) -> [End; 2] {
    assert_eq!(
        (request.from, response.from),
        (Side::Client, Side::Server),
        "the client begins"
    );
    assert_eq!(request.message.len(), NegotiateRequest::LEN);
    let request = NegotiateRequest::parse(&request.message).expect("a negotiate request");
    assert!((request.min_version..=request.max_version).contains(&VERSION));
    assert!(request.max_fragmented_size >= MIN_FRAGMENTED_SIZE);
    assert_eq!(response.message.len(), NegotiateResponse::LEN);
    let response = NegotiateResponse::parse(&response.message).expect("a negotiate response");
    assert_eq!((response.negotiated_version, response.status), (VERSION, 0));
    assert!(response.preferred_send_size <= request.max_receive_size);
    assert!((1..=request.credits_requested).contains(&response.credits_granted));
    [
        End {
            credits: u32::from(response.credits_granted),
            requested: request.credits_requested,
            max_receive_size: request.max_receive_size,
            max_fragmented_size: request.max_fragmented_size,
            ..End::default()
        },
        End {
            requested: response.credits_requested,
            max_receive_size: response.max_receive_size,
            max_fragmented_size: response.max_fragmented_size,
            ..End::default()
        },
    ]
}

/// The same session as [`Connection`]s see it: one in the place of each end, getting what the other
/// end sent. They play their own part meanwhile, which nobody hears.
pub(crate) fn deliver(sends: &[Send]) -> Vec<Message> {
    let now = Instant::now();
    let mut client = Receiver::new(Role::Initiator, now);
    let mut server = Receiver::new(Role::Acceptor, now);
    let mut messages = Vec::new();
    for send in sends {
        let receiver = match send.from {
            Side::Client => &mut server,
            Side::Server => &mut client,
        };
        if let Some(message) = receiver.receive(now, send) {
            messages.push((send.from, message));
        }
    }
    messages
}

struct Receiver {
    connection: Connection,
    message: Vec<u8>,
}

impl Receiver {
    fn new(role: Role, now: Instant) -> Self {
        let config = Config {
            credit_profile: CreditProfile::Full,
            ..Config::default()
        };
        let mut connection = Connection::new(role, &config, now).expect("a valid configuration");
        connection.handle_receives_posted(1);
        connection.handle_established(now);
        let mut receiver = Self {
            connection,
            message: Vec::new(),
        };
        receiver.drive(now);
        receiver
    }

    fn drive(&mut self, now: Instant) {
        loop {
            let wanted = self.connection.receives_wanted();
            self.connection.handle_receives_posted(wanted);
            let sent = std::iter::from_fn(|| self.connection.poll_transmit(now, 256)).count();
            while let Some(event) = self.connection.poll_event() {
                assert!(matches!(event, Event::Negotiated(_)), "{event:?}");
            }
            if wanted == 0 && sent == 0 {
                break;
            }
        }
    }

    fn receive(&mut self, now: Instant, send: &Send) -> Option<Vec<u8>> {
        let delivery = self
            .connection
            .handle_receive(now, &send.message, send.invalidated);
        self.drive(now);
        let complete = matches!(delivery, Delivery::Whole { .. } | Delivery::Last { .. });
        match delivery {
            Delivery::Nothing => {}
            Delivery::Whole { data, .. }
            | Delivery::First { data, .. }
            | Delivery::Continue { data }
            | Delivery::Last { data, .. } => self.message.extend_from_slice(&send.message[data]),
        }
        complete.then(|| std::mem::take(&mut self.message))
    }
}
