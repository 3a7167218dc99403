//! I4, exhaustively for one to three credits: no interleaving of our engine with another of its
//! kind, with the letter of the specification, with Linux or with Windows ends with data queued and
//! nobody able to send it, and when nothing is queued any more, both fall silent.
//!
//! The search visits every state that any order of sending, posting, delivering and queueing can
//! reach. Without new messages, every run must end (there is no cycle of grants), and where it
//! ends, nothing may be queued and every probe is answered. That is more than I4 asks for: no
//! fairness is assumed.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::world::{config, data_message};
use crate::proto::wire::*;
use crate::proto::*;

/// How much may happen: messages that each application may have queued at a time, and probes in
/// all.
#[derive(Debug, Clone, Copy)]
struct Load {
    queue: u32,
    probes: u8,
}

const MESSAGES: Load = Load {
    queue: 2,
    probes: 0,
};
const PROBE: Load = Load {
    queue: 1,
    probes: 1,
};

/// A message on the wire, as far as credits matter.
#[derive(Debug, Clone, Copy)]
struct Message {
    requested: u16,
    granted: u16,
    flag: bool,
    data: bool,
}

/// An endpoint as the search sees it.
trait Endpoint: Clone {
    fn key(&self) -> Vec<u32>;
    fn queued(&self) -> u32;
    fn enqueue(&mut self);
    /// The idle timer expires; false if a probe is under way already.
    fn probe(&mut self) -> bool;
    /// A probe of its own is not answered yet, or one of the peer's not by it.
    fn unanswered(&self) -> bool;
    /// Posts what it wants; false if it wants nothing.
    fn post(&mut self) -> bool;
    /// Sends one message, if it can and wants to.
    fn send(&mut self) -> Option<Message>;
    fn receive(&mut self, message: Message);
}

// ---- Our engine

#[derive(Clone)]
struct Ours {
    connection: Connection,
    now: Instant,
}

impl Ours {
    /// Negotiated, with what this side granted. `held`: what it was granted, as initiator.
    fn new(role: Role, target: u16, peer_target: u16, held: u16, now: Instant) -> (Self, u16) {
        let mut ours = Self {
            connection: Connection::new(role, &config(target), now).unwrap(),
            now,
        };
        let connection = &mut ours.connection;
        connection.handle_receives_posted(1);
        connection.handle_established(now);
        let granted = match role {
            Role::Acceptor => {
                let request = NegotiateRequest {
                    credits_requested: peer_target,
                    ..super::world::request()
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
            .handle_timeout(self.connection.poll_timeout().unwrap());
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

    fn send(&mut self) -> Option<Message> {
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
            self.connection.credits().posted <= 4,
            "one beyond the largest target"
        );
    }
}

// ---- The others

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// [MS-SMBD] 3.1.5 to the letter, where it says MUST before where it says SHOULD: grants after
    /// each receive.
    Specification,
    /// The same, but a reader who stops at the first rule of 3.1.5.9: nothing is granted while the
    /// target is met, not even for a last credit. Such a peer blocks itself with one or two.
    FirstRule,
    /// Refills at a quarter, does not send a grant of one, spends its last credit as long as the
    /// peer holds any.
    Linux,
    /// Grants in batches of three quarters.
    Windows,
}

/// A peer of another make. It posts receives when it grants them.
#[derive(Debug, Clone)]
struct Other {
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
}

impl Other {
    fn new(kind: Kind, target: u16, peer_target: u16, send: u16, granted: u16) -> Self {
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
        };
        other.refill();
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
        if self.kind == Kind::Linux && self.granted + self.available <= self.limit() / 4 {
            self.available = self.limit() - self.granted;
        }
    }

    /// What the next message would grant.
    fn grant(&self) -> u32 {
        let last = self.send == 1;
        match self.kind {
            Kind::Specification => self.missing().max(u32::from(last || self.granted == 0)),
            Kind::FirstRule => self.missing(),
            Kind::Linux => self.available.min(self.missing()),
            Kind::Windows if last => self.missing().max(1),
            Kind::Windows if 4 * self.missing() >= 3 * self.limit() => self.missing(),
            Kind::Windows => 0,
        }
    }

    fn wants_to_grant(&self) -> bool {
        match self.kind {
            Kind::Specification | Kind::FirstRule => self.grant_pending && self.queued == 0,
            Kind::Linux => {
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
        vec![self.send, self.granted, self.available, self.queued, flags]
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
        false
    }

    fn send(&mut self) -> Option<Message> {
        let data = self.queued > 0;
        if self.send == 0 || !(data || self.owes_message() || self.wants_to_grant()) {
            return None;
        }
        let grant = self.grant();
        if !self.may_spend(grant) {
            return None;
        }
        self.send -= 1;
        self.granted += grant;
        if self.kind == Kind::Linux {
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

// ---- The search

#[derive(Clone)]
struct State<A, B> {
    a: A,
    b: B,
    to_a: VecDeque<Message>,
    to_b: VecDeque<Message>,
    load: Load,
}

type Key = Box<[u8]>;

impl<A: Endpoint, B: Endpoint> State<A, B> {
    fn key(&self) -> Key {
        let byte = |number: u32| u8::try_from(number).expect("small numbers");
        let mut key: Vec<u8> = self
            .a
            .key()
            .into_iter()
            .chain(self.b.key())
            .map(byte)
            .collect();
        key.push(self.load.probes);
        for message in &self.to_a {
            let flags = u8::from(message.flag) | u8::from(message.data) << 1;
            key.extend([
                byte(message.requested.into()),
                byte(message.granted.into()),
                flags,
            ]);
        }
        key.push(u8::MAX);
        for message in &self.to_b {
            let flags = u8::from(message.flag) | u8::from(message.data) << 1;
            key.extend([
                byte(message.requested.into()),
                byte(message.granted.into()),
                flags,
            ]);
        }
        key.into()
    }

    /// Every state one step away without a new message.
    fn steps(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut step = |change: &dyn Fn(&mut Self) -> bool| {
            let mut state = self.clone();
            if change(&mut state) {
                next.push(state);
            }
        };
        step(&|state| state.a.post());
        step(&|state| state.b.post());
        step(&|state| {
            state
                .a
                .send()
                .map(|message| state.to_b.push_back(message))
                .is_some()
        });
        step(&|state| {
            state
                .b
                .send()
                .map(|message| state.to_a.push_back(message))
                .is_some()
        });
        step(&|state| {
            state
                .to_a
                .pop_front()
                .map(|message| state.a.receive(message))
                .is_some()
        });
        step(&|state| {
            state
                .to_b
                .pop_front()
                .map(|message| state.b.receive(message))
                .is_some()
        });
        next
    }

    /// Every state one step away by a new message or an idle timer.
    fn arrivals(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut arrival = |change: &dyn Fn(&mut Self) -> bool| {
            let mut state = self.clone();
            if change(&mut state) {
                next.push(state);
            }
        };
        let Load { queue, probes } = self.load;
        arrival(&|state| state.a.queued() < queue && enqueue(&mut state.a));
        arrival(&|state| state.b.queued() < queue && enqueue(&mut state.b));
        if probes > 0 {
            arrival(&|state| {
                state.load.probes -= 1;
                state.a.probe()
            });
            arrival(&|state| {
                state.load.probes -= 1;
                state.b.probe()
            });
        }
        next
    }
}

fn enqueue(endpoint: &mut impl Endpoint) -> bool {
    endpoint.enqueue();
    true
}

/// Visits everything reachable, then shows that runs without new messages end, with nothing queued.
fn explore<A: Endpoint, B: Endpoint>(what: &str, a: A, b: B) {
    explore_under(&[MESSAGES, PROBE], what, a, b);
}

fn explore_under<A: Endpoint, B: Endpoint>(loads: &[Load], what: &str, a: A, b: B) {
    for &load in loads {
        let start = State {
            a: a.clone(),
            b: b.clone(),
            to_a: VecDeque::new(),
            to_b: VecDeque::new(),
            load,
        };
        let states = explore_from(&format!("{what}, {load:?}"), start);
        assert!(states > 100, "{what}: {states}");
    }
}

fn explore_from<A: Endpoint, B: Endpoint>(what: &str, start: State<A, B>) -> usize {
    let mut numbers: HashMap<Key, usize> = HashMap::from([(start.key(), 0)]);
    let mut keys = vec![start.key()];
    let mut edges: Vec<Vec<usize>> = Vec::new();
    let mut work = VecDeque::from([start]);
    while let Some(state) = work.pop_front() {
        let steps = state.steps();
        let waiting =
            state.a.queued() + state.b.queued() > 0 || state.a.unanswered() || state.b.unanswered();
        assert!(
            !steps.is_empty() || !waiting,
            "{what}: deadlock at {:?}",
            state.key()
        );
        let quiet = steps.len();
        let mut out = Vec::with_capacity(quiet);
        for (index, next) in steps.into_iter().chain(state.arrivals()).enumerate() {
            let key = next.key();
            let number = *numbers.entry(key.clone()).or_insert_with(|| {
                keys.push(key);
                work.push_back(next);
                keys.len() - 1
            });
            if index < quiet {
                out.push(number);
            }
        }
        edges.push(out);
        assert!(keys.len() < 200_000, "{what}: too many states");
    }
    // Kahn: what is left over after taking away everything that ends is a cycle, or leads to one.
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    let mut open: Vec<usize> = Vec::with_capacity(edges.len());
    for (from, out) in edges.iter().enumerate() {
        open.push(out.len());
        out.iter().for_each(|&to| before[to].push(from));
    }
    let mut ended: Vec<usize> = (0..open.len()).filter(|&state| open[state] == 0).collect();
    let mut count = 0;
    while let Some(state) = ended.pop() {
        count += 1;
        for &from in &before[state] {
            open[from] -= 1;
            if open[from] == 0 {
                ended.push(from);
            }
        }
    }
    if count < edges.len() {
        // Walk from one to find the cycle itself.
        let mut at = (0..open.len()).find(|&state| open[state] > 0).unwrap();
        let mut path = Vec::new();
        while !path.contains(&at) {
            path.push(at);
            at = *edges[at].iter().find(|&&to| open[to] > 0).unwrap();
        }
        let cycle: Vec<_> = path
            .iter()
            .skip_while(|&&state| state != at)
            .map(|&s| &keys[s])
            .collect();
        panic!("{what}: they never fall silent: {cycle:?}");
    }
    edges.len()
}

fn for_all_targets(check: impl Fn(u16, u16)) {
    for ours in 1..=3 {
        for theirs in 1..=3 {
            check(ours, theirs);
        }
    }
}

fn against(kind: Kind) {
    let now = Instant::now();
    for_all_targets(|ours, theirs| {
        let (acceptor, granted) = Ours::new(Role::Acceptor, ours, theirs, 0, now);
        let peer = Other::new(kind, theirs, ours, granted, 0);
        explore(
            &format!("accepting {ours}, {kind:?} {theirs}"),
            acceptor,
            peer,
        );
        let held = ours.min(theirs);
        let (initiator, _) = Ours::new(Role::Initiator, ours, theirs, held, now);
        let peer = Other::new(kind, theirs, ours, 0, held);
        explore(
            &format!("connecting {ours}, {kind:?} {theirs}"),
            initiator,
            peer,
        );
    });
}

#[test]
fn our_engine_against_itself() {
    let now = Instant::now();
    for_all_targets(|client, server| {
        let (b, granted) = Ours::new(Role::Acceptor, server, client, 0, now);
        let (a, _) = Ours::new(Role::Initiator, client, server, granted, now);
        // A probe multiplies the states; the larger worlds do without.
        let loads: &[Load] = if client + server <= 3 {
            &[MESSAGES, PROBE]
        } else {
            &[MESSAGES]
        };
        explore_under(loads, &format!("{client} and {server}"), a, b);
    });
}

#[test]
fn our_engine_against_the_specification() {
    against(Kind::Specification);
}

#[test]
fn our_engine_against_a_peer_that_stops_at_the_first_rule() {
    let now = Instant::now();
    for theirs in 1..=3 {
        let (acceptor, granted) = Ours::new(Role::Acceptor, 3, theirs, 0, now);
        assert!(granted <= theirs);
        let peer = Other::new(Kind::FirstRule, theirs, 3, granted, 0);
        explore(&format!("accepting 3, first rule {theirs}"), acceptor, peer);
    }
}

#[test]
fn our_engine_against_linux() {
    against(Kind::Linux);
}

#[test]
fn our_engine_against_windows() {
    against(Kind::Windows);
}
