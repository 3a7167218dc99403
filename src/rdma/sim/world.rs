//! The clock, the schedule, the links and the hosts.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::conn::{Conn, End, Phase};
use super::connect::Request;
use super::network::{Violation, ViolationKind};
use super::options::{DeviceOptions, NetworkOptions, Posted};
use super::queue::Packet;
use super::rng::Rng;
use super::window::Windows;
use crate::rdma::{ConnId, Domain, Event, LossReason, PostError};

/// What the network's handle and all providers share.
#[derive(Debug)]
pub(super) struct Shared {
    world: Mutex<World>,
}

impl Shared {
    pub(super) fn new(seed: u64, options: NetworkOptions) -> Arc<Self> {
        Arc::new(Self {
            world: Mutex::new(World::new(seed, options)),
        })
    }

    /// The world, after the requests that were dropped meanwhile are rejected.
    pub(super) fn enter(&self) -> MutexGuard<'_, World> {
        // A test that panicked while it held the lock must not hide its own message behind a second panic.
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = std::mem::take(&mut *lock(&world.dropped));
        for request in dropped {
            world.reject(request);
        }
        world
    }
}

/// Numbers of requests whose `Incoming` was dropped. A list of its own, since that may happen anywhere.
pub(super) type Dropped = Arc<Mutex<Vec<u64>>>;

pub(super) fn lock(dropped: &Dropped) -> MutexGuard<'_, Vec<u64>> {
    dropped.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) rng: Rng,
    pub(super) options: NetworkOptions,
    pub(super) nodes: Vec<Node>,
    pub(super) conns: BTreeMap<End, Conn>,
    pub(super) requests: BTreeMap<u64, Request>,
    pub(super) domains: BTreeMap<IpAddr, Arc<dyn Domain>>,
    pub(super) violations: Vec<Violation>,
    /// Registrations of each host that are to be refused.
    pub(super) refusals: BTreeMap<IpAddr, Arc<AtomicU32>>,
    /// Connects of each host that are to find their local port taken.
    pub(super) taken_ports: BTreeMap<IpAddr, u32>,
    pub(super) faults: Vec<Fault>,
    pub(super) dropped: Dropped,
    pub(super) links: BTreeMap<(IpAddr, IpAddr), Link>,
    /// When a direction between two hosts has sent all that it was given.
    busy: BTreeMap<(IpAddr, IpAddr), Instant>,
    schedule: BinaryHeap<Reverse<Scheduled>>,
    next: u64,
}

/// One provider.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: IpAddr,
    pub(super) device: DeviceOptions,
    pub(super) alive: bool,
    pub(super) out: VecDeque<Event>,
    /// Windows of connections that have ended, if the provider's owner wants them.
    pub(super) remains: Option<Vec<Windows>>,
    pub(super) places: Vec<(u32, Option<End>)>,
    pub(super) listeners: Vec<(u32, Option<Listener>)>,
}

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    pub(super) backlog: usize,
}

/// Both directions between two hosts, the smaller address first.
#[derive(Debug, Default)]
pub(super) struct Link {
    down: bool,
    /// Counts the changes, so that an old timer means nothing.
    epoch: u64,
    held: Vec<Flight>,
}

/// A post that is to fail.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) host: IpAddr,
    pub(super) posted: Posted,
    pub(super) after: usize,
    pub(super) error: PostError,
}

#[derive(Debug)]
pub(super) struct Flight {
    between: (IpAddr, IpAddr),
    /// The end that waits for an effect of it, and gives up if there is none.
    waits: Option<End>,
    packet: Packet,
}

#[derive(Debug)]
pub(super) enum Action {
    Deliver(Flight),
    Report { node: usize, event: Event },
    Resolved(End),
    ResolveTimeout(End),
    ConnectTimeout(End),
    Established(End),
    Sent { end: End, token: u64 },
    RetryExpired { end: End, epoch: u64 },
    DrainDeadline(End),
    Flush(End),
}

#[derive(Debug)]
struct Scheduled {
    at: Instant,
    order: u64,
    action: Action,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl World {
    fn new(seed: u64, options: NetworkOptions) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            rng: Rng::new(seed),
            options,
            nodes: Vec::new(),
            conns: BTreeMap::new(),
            requests: BTreeMap::new(),
            domains: BTreeMap::new(),
            violations: Vec::new(),
            refusals: BTreeMap::new(),
            taken_ports: BTreeMap::new(),
            faults: Vec::new(),
            dropped: Dropped::default(),
            links: BTreeMap::new(),
            busy: BTreeMap::new(),
            schedule: BinaryHeap::new(),
            next: 0,
        }
    }

    /// A number that was never given before.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn schedule(&mut self, at: Instant, action: Action) {
        let order = self.number();
        let at = at.max(self.now);
        self.schedule.push(Reverse(Scheduled { at, order, action }));
    }

    /// When the next thing happens, timers that mean nothing any more left out.
    pub(super) fn next_event(&mut self) -> Option<Instant> {
        while let Some(Reverse(top)) = self.schedule.peek() {
            if !self.is_stale(&top.action) {
                return Some(top.at);
            }
            self.schedule.pop();
        }
        None
    }

    /// The same, for those who may not change anything.
    pub(super) fn peek_event(&self) -> Option<Instant> {
        self.schedule
            .iter()
            .filter(|Reverse(s)| !self.is_stale(&s.action))
            .map(|Reverse(s)| s.at)
            .min()
    }

    /// Lets everything happen until `until`, which becomes now.
    pub(super) fn run(&mut self, until: Instant) {
        while let Some(Reverse(top)) = self.schedule.peek()
            && top.at <= until
        {
            // Just peeked.
            let Some(Reverse(Scheduled { at, action, .. })) = self.schedule.pop() else {
                break;
            };
            self.now = self.now.max(at);
            if !self.is_stale(&action) {
                self.act(action);
            }
        }
        self.now = self.now.max(until);
    }

    fn is_stale(&self, action: &Action) -> bool {
        let phase = |end: &End| self.conns.get(end).map(|c| &c.phase);
        match action {
            Action::Deliver(_) | Action::Report { .. } => false,
            Action::Resolved(end) | Action::ResolveTimeout(end) => {
                phase(end) != Some(&Phase::Resolving)
            }
            Action::ConnectTimeout(end) => {
                !matches!(phase(end), Some(Phase::Connecting | Phase::Accepting))
            }
            Action::Established(end) | Action::Sent { end, .. } => phase(end) != Some(&Phase::Up),
            Action::RetryExpired { end, epoch } => {
                phase(end) != Some(&Phase::Up)
                    || self.conns.get(end).is_none_or(|c| {
                        let between = sorted(c.local.ip(), c.remote.ip());
                        self.links
                            .get(&between)
                            .is_none_or(|link| !link.down || link.epoch != *epoch)
                    })
            }
            Action::DrainDeadline(end) | Action::Flush(end) => phase(end).is_none(),
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Deliver(flight) => self.arrive(flight),
            Action::Report { node, event } => self.hand_out(node, event),
            Action::Resolved(end) => self.resolved(end),
            Action::ResolveTimeout(end) => self.resolve_timed_out(end),
            Action::ConnectTimeout(end) => self.connect_timed_out(end),
            Action::Established(end) => self.report_established(end),
            Action::Sent { end, token } => self.sent(end, token),
            Action::RetryExpired { end, .. } => self.retries_exceeded(end),
            Action::DrainDeadline(end) => self.abort(end),
            Action::Flush(end) => self.flush(end),
        }
    }

    /// Reports an event of a connection, after all that were reported for it before.
    pub(super) fn report(&mut self, end: End, event: Event) {
        let late = self.rng.up_to(self.options.report_jitter);
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let at = conn.last_report.max(now + late);
        let node = conn.node;
        conn.last_report = at;
        self.schedule(at, Action::Report { node, event });
    }

    /// Drops what is not reported yet to a provider that is gone.
    pub(super) fn forget_reports(&mut self, gone: usize) {
        self.schedule.retain(
            |Reverse(s)| !matches!(&s.action, Action::Report { node, .. } if *node == gone),
        );
    }

    /// The provider closes a connection whose end is not reported yet.
    pub(super) fn claim(&mut self, node: usize, conn: ConnId) {
        LossReason::claim(&mut self.nodes[node].out, conn);
        let mut schedule = std::mem::take(&mut self.schedule).into_vec();
        let reports = schedule
            .iter_mut()
            .filter_map(|Reverse(s)| match &mut s.action {
                Action::Report { node: n, event } if *n == node => Some(event),
                _ => None,
            });
        LossReason::claim(reports, conn);
        self.schedule = schedule.into();
    }

    pub(super) fn hand_out(&mut self, node: usize, event: Event) {
        let node = &mut self.nodes[node];
        if node.alive {
            node.out.push_back(event);
        }
    }

    pub(super) fn end(&self, node: usize, conn: ConnId) -> Option<End> {
        let (generation, end) = self.nodes[node].places.get(conn.index as usize)?;
        (*generation == conn.generation).then_some(*end).flatten()
    }

    pub(super) fn conn(&self, node: usize, conn: ConnId) -> Option<&Conn> {
        self.conns.get(&self.end(node, conn)?)
    }

    pub(super) fn device(&self, end: End) -> Option<&DeviceOptions> {
        Some(&self.nodes[self.conns.get(&end)?.node].device)
    }

    pub(super) fn violation(&mut self, host: IpAddr, kind: ViolationKind) {
        let at = self.now - self.start;
        self.violations.push(Violation { at, host, kind });
    }

    /// Sends along a connection: in order with all that this end sent before. Gives when it has left.
    pub(super) fn transmit(
        &mut self,
        end: End,
        bytes: usize,
        waits: Option<End>,
        packet: Packet,
    ) -> Instant {
        let Some(conn) = self.conns.get(&end) else {
            return self.now;
        };
        let (from, to, last) = (conn.local.ip(), conn.remote.ip(), conn.last_arrival);
        let (left, arrival) = self.travel(from, to, bytes);
        let arrival = arrival.max(last);
        if let Some(conn) = self.conns.get_mut(&end) {
            conn.last_arrival = arrival;
        }
        let between = sorted(from, to);
        self.schedule(
            arrival,
            Action::Deliver(Flight {
                between,
                waits,
                packet,
            }),
        );
        left
    }

    /// Sends from host to host, outside of any connection's order.
    pub(super) fn transmit_raw(&mut self, from: IpAddr, to: IpAddr, packet: Packet) {
        let (_, arrival) = self.travel(from, to, 0);
        let between = sorted(from, to);
        self.schedule(
            arrival,
            Action::Deliver(Flight {
                between,
                waits: None,
                packet,
            }),
        );
    }

    /// When so many bytes have left and when they arrive.
    fn travel(&mut self, from: IpAddr, to: IpAddr, bytes: usize) -> (Instant, Instant) {
        let left = match self.options.bandwidth {
            Some(rate) => {
                let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
                let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
                let busy = self.busy.entry((from, to)).or_insert(self.now);
                *busy = (*busy).max(self.now) + takes;
                *busy
            }
            None => self.now,
        };
        let jitter = self.rng.up_to(self.options.jitter);
        (left, left + self.options.latency + jitter)
    }

    fn arrive(&mut self, flight: Flight) {
        let retry = self.now + self.options.retry_timeout;
        let link = self.links.entry(flight.between).or_default();
        if !link.down {
            return self.handle(flight.packet);
        }
        let epoch = link.epoch;
        let waits = flight.waits;
        link.held.push(flight);
        if let Some(end) = waits
            && self
                .device(end)
                .is_some_and(|d| !d.quirks.silent_peer_death)
        {
            self.schedule(retry, Action::RetryExpired { end, epoch });
        }
    }

    /// Breaks a link without a word, or mends it: what was sent meanwhile arrives then.
    pub(super) fn set_link(&mut self, a: IpAddr, b: IpAddr, up: bool) {
        let link = self.links.entry(sorted(a, b)).or_default();
        if link.down != up {
            return;
        }
        link.down = !up;
        link.epoch += 1;
        for flight in std::mem::take(&mut link.held) {
            self.handle(flight.packet);
        }
    }

    pub(super) fn is_down(&self, a: IpAddr, b: IpAddr) -> bool {
        self.links.get(&sorted(a, b)).is_some_and(|link| link.down)
    }

    /// The error that a post on this host is to end with now, if it is to fail here.
    pub(super) fn fault(&mut self, host: IpAddr, posted: Posted) -> Option<PostError> {
        let index = (self.faults.iter()).position(|f| f.host == host && f.posted == posted)?;
        let fault = &mut self.faults[index];
        if fault.after > 0 {
            fault.after -= 1;
            return None;
        }
        Some(self.faults.remove(index).error)
    }
}

fn sorted(a: IpAddr, b: IpAddr) -> (IpAddr, IpAddr) {
    if a <= b { (a, b) } else { (b, a) }
}
