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

use super::peers::*;
use crate::proto::Role;

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

/// Lets something happen; false if it cannot.
type Move<A, B> = fn(&mut State<A, B>) -> bool;

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

    /// What may happen next without a new message.
    const MOVES: [Move<A, B>; 6] = [
        |state| state.a.post(),
        |state| state.b.post(),
        |state| {
            let sent = state.a.send();
            state.to_b.extend(sent);
            sent.is_some()
        },
        |state| {
            let sent = state.b.send();
            state.to_a.extend(sent);
            sent.is_some()
        },
        |state| {
            let arrived = state.to_a.pop_front();
            arrived.map(|message| state.a.receive(message)).is_some()
        },
        |state| {
            let arrived = state.to_b.pop_front();
            arrived.map(|message| state.b.receive(message)).is_some()
        },
    ];

    /// What happens when nothing else does: time passes.
    const WAITS: [Move<A, B>; 2] = [|state| state.a.wait(), |state| state.b.wait()];

    /// Every state one step away without a new message.
    fn steps(&self) -> Vec<Self> {
        let by = |moves: &[Move<A, B>]| -> Vec<Self> {
            let after = |change: &Move<A, B>| {
                let mut state = self.clone();
                change(&mut state).then_some(state)
            };
            moves.iter().filter_map(after).collect()
        };
        let steps = by(&Self::MOVES);
        match steps.is_empty() {
            true => by(&Self::WAITS),
            false => steps,
        }
    }

    /// Whether somebody waits for something.
    fn is_unfinished(&self) -> bool {
        self.a.queued() + self.b.queued() > 0 || self.a.unanswered() || self.b.unanswered()
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
        let states = states.unwrap_or_else(|deadlock| panic!("{what}: deadlock at {deadlock:?}"));
        assert!(states > 100, "{what}: {states}");
    }
}

/// How many states there are, or one that is a deadlock.
fn explore_from<A: Endpoint, B: Endpoint>(what: &str, start: State<A, B>) -> Result<usize, Key> {
    let mut numbers: HashMap<Key, usize> = HashMap::from([(start.key(), 0)]);
    let mut keys = vec![start.key()];
    let mut edges: Vec<Vec<usize>> = Vec::new();
    let mut work = VecDeque::from([start]);
    while let Some(state) = work.pop_front() {
        let steps = state.steps();
        if steps.is_empty() && state.is_unfinished() {
            return Err(state.key());
        }
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
    Ok(edges.len())
}

fn for_all_targets(check: impl Fn(u16, u16)) {
    for ours in 1..=3 {
        for theirs in 1..=3 {
            check(ours, theirs);
        }
    }
}

/// From how many credits on our engine keeps the last: from more than there are here, as the constant
/// has it, or from so few that it does so all the time.
const KEEPING: [u32; 2] = [u32::MAX, 2];

fn against(kind: Kind) {
    let now = Instant::now();
    for_all_targets(|ours, theirs| {
        for keeping in KEEPING {
            let (acceptor, granted) = Ours::new(Role::Acceptor, ours, theirs, 0, now);
            let peer = Other::new(kind, theirs, ours, granted, 0);
            explore(
                &format!("accepting {ours}, {kind:?} {theirs}, keeping from {keeping}"),
                acceptor.keeping_from(keeping),
                peer,
            );
            let held = ours.min(theirs);
            let (initiator, _) = Ours::new(Role::Initiator, ours, theirs, held, now);
            let peer = Other::new(kind, theirs, ours, 0, held);
            explore(
                &format!("connecting {ours}, {kind:?} {theirs}, keeping from {keeping}"),
                initiator.keeping_from(keeping),
                peer,
            );
        }
    });
}

#[test]
fn our_engine_against_itself() {
    let now = Instant::now();
    for_all_targets(|client, server| {
        // A probe multiplies the states; the larger worlds do without.
        let loads: &[Load] = if client + server <= 3 {
            &[MESSAGES, PROBE]
        } else {
            &[MESSAGES]
        };
        for keeping in KEEPING {
            let (b, granted) = Ours::new(Role::Acceptor, server, client, 0, now);
            let (a, _) = Ours::new(Role::Initiator, client, server, granted, now);
            let what = format!("{client} and {server}, keeping from {keeping}");
            explore_under(
                loads,
                &what,
                a.keeping_from(keeping),
                b.keeping_from(keeping),
            );
        }
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

// ---- A peer that keeps no last credit

/// Our side in this role and a peer of this kind, with so many credits each.
fn with_old_linux(
    role: Role,
    credits: u16,
    keeping: u32,
    late: u32,
    load: Load,
) -> State<Ours, Other> {
    let held = match role {
        Role::Initiator => credits,
        Role::Acceptor => 0,
    };
    let (ours, granted) = Ours::new(role, credits, credits, held, Instant::now());
    State {
        // What the last credit pays for is there.
        a: ours.keeping_from(keeping).posting_first(),
        b: Other::new(Kind::OldLinux { late }, credits, credits, granted, held),
        to_a: VecDeque::new(),
        to_b: VecDeque::new(),
        load,
    }
}

/// As long as it posts its receives again before it has used up what our last credit has paid for.
#[test]
fn our_last_credit_is_there_for_a_peer_that_keeps_none() {
    for role in [Role::Acceptor, Role::Initiator] {
        let search = |keeping| {
            let start = with_old_linux(role, 4, keeping, 2, MESSAGES);
            explore_from(&format!("{role:?}, keeping from {keeping}"), start)
        };
        assert!(search(u32::MAX).is_err(), "what it is there for");
        let states = search(4).unwrap_or_else(|deadlock| panic!("{role:?}: {deadlock:?}"));
        assert!(states > 1000, "{states}");
    }
}

/// The same with as many credits as real peers have, in random orders.
#[test]
fn random_walks_with_a_peer_that_keeps_no_last_credit_go_on() {
    const LOAD: Load = Load {
        queue: 200,
        probes: 0,
    };
    for role in [Role::Acceptor, Role::Initiator] {
        for credits in [16, 32, 100] {
            let late = u32::from(credits) / 2;
            let stopped = |keeping| {
                let start = || with_old_linux(role, credits, keeping, late, LOAD);
                let burst = 4 * usize::from(credits);
                (0..50).filter(|&seed| !walk(start(), burst, seed)).count()
            };
            let without = stopped(u32::MAX);
            assert!(without > 0, "{role:?}, {credits} credits: nothing is found");
            let with = stopped(16);
            assert_eq!(with, 0, "{role:?}, {credits} credits: {without} without");
        }
    }
}

/// Does one thing after the other, up to so many in a row of which some do not happen; false when
/// nothing can be done any more and somebody waits.
fn walk<A: Endpoint, B: Endpoint>(mut state: State<A, B>, burst: usize, seed: u64) -> bool {
    let mut random = Random(seed);
    for _ in 0..300 {
        // For a while not everything happens, so that one side gets ahead of the other.
        let allowed: Vec<_> = (State::<A, B>::MOVES.iter())
            .filter(|_| random.below(3) > 0)
            .collect();
        for _ in 0..random.below(burst) {
            let queue = state.load.queue;
            if state.a.queued() < queue && random.below(2) == 0 {
                state.a.enqueue();
            }
            if state.b.queued() < queue && random.below(2) == 0 {
                state.b.enqueue();
            }
            if !allowed.is_empty() {
                allowed[random.below(allowed.len())](&mut state);
            }
        }
        let go_on = |moves: &[Move<A, B>], state: &mut State<A, B>| {
            moves.iter().any(|change| change(state))
        };
        if !go_on(&State::MOVES, &mut state)
            && !go_on(&State::WAITS, &mut state)
            && state.is_unfinished()
        {
            return false;
        }
    }
    true
}

/// Numbers without a pattern, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = (self.0 ^ 0x9E37_79B9)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }
}
