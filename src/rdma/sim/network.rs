//! The test's hand on the network: time, links, faults, violations.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::options::{DeviceOptions, NetworkOptions, Posted};
use super::provider::SimProvider;
use super::world::{Fault, Shared};
use crate::rdma::{PostError, RdmaError};

/// A simulated network. Cheap to clone; all clones are the same network.
///
/// # Panics
/// Dropping the last clone panics if there are violations that nobody has taken with
/// [`Network::take_violations`], unless the thread panics already.
#[derive(Debug, Clone)]
pub struct Network {
    shared: Arc<Shared>,
    _judge: Arc<Judge>,
}

/// A broken promise, which a real device may punish with a stall, a lost connection or a kernel panic.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// When, since the network began.
    pub at: Duration,
    /// The host that broke it.
    pub host: IpAddr,
    /// What it did.
    pub kind: ViolationKind,
}

/// What was done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ViolationKind {
    /// A message arrived while the host had no receive posted.
    SendWithoutReceive,
    /// The host connected or accepted without a posted receive.
    NoReceiveAtConnect,
    /// The host invalidated a window that was free, which panics the kernel of soft-RoCE.
    FreeWindowInvalidated,
}

impl Network {
    /// A network without hosts. The same seed and the same calls give the same events.
    pub fn new(seed: u64, options: NetworkOptions) -> Self {
        let shared = Shared::new(seed, options);
        Self {
            _judge: Arc::new(Judge(shared.clone())),
            shared,
        }
    }

    /// A provider on the host with this address and a RoCE device; see [`Network::provider_with`].
    pub fn provider(&self, address: IpAddr) -> SimProvider {
        self.provider_with(address, DeviceOptions::default())
    }

    /// A provider on the host with this address. Several providers of one address are siblings: a connection that
    /// arrived at one may be adopted by another.
    pub fn provider_with(&self, address: IpAddr, device: DeviceOptions) -> SimProvider {
        SimProvider::new(self.shared.clone(), address, device)
    }

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.shared.enter().now
    }

    /// The virtual time since the network began.
    pub fn elapsed(&self) -> Duration {
        let world = self.shared.enter();
        world.now - world.start
    }

    /// Lets so much time pass.
    pub fn advance(&self, duration: Duration) {
        let mut world = self.shared.enter();
        let until = world.now + duration;
        world.run(until);
    }

    /// Lets time pass until `until`; time never goes back, but what is to happen now happens.
    pub fn advance_to(&self, until: Instant) {
        let mut world = self.shared.enter();
        let until = until.max(world.now);
        world.run(until);
    }

    /// Moves to the next thing that happens in the network, and lets it happen. `false`: nothing ever will, unless
    /// someone calls a provider. Timers of those above the boundary are not known here; with such, use
    /// [`Network::next_event`] and [`Network::advance_to`].
    pub fn step(&self) -> bool {
        let mut world = self.shared.enter();
        match world.next_event() {
            Some(at) => {
                world.run(at);
                true
            }
            None => false,
        }
    }

    /// When the next thing happens in the network; what a provider's `next_deadline` gives too.
    pub fn next_event(&self) -> Option<Instant> {
        self.shared.enter().next_event()
    }

    /// Breaks the link between two hosts without a word, or mends it. What is sent meanwhile arrives when it is
    /// mended, unless its sender has given up.
    pub fn set_link(&self, a: IpAddr, b: IpAddr, up: bool) {
        self.shared.enter().set_link(a, b, up);
    }

    /// Ends all connections between two hosts on both sides at once, with an event.
    pub fn cut(&self, a: IpAddr, b: IpAddr) {
        let same = |l: SocketAddr, r: SocketAddr| {
            (l.ip() == a && r.ip() == b) || (l.ip() == b && r.ip() == a)
        };
        self.shared.enter().cut(&RdmaError::ConnectionLost, same);
    }

    /// Ends the one connection with this address at one of its ends, on both sides.
    pub fn cut_connection(&self, end: SocketAddr) {
        let same = |l: SocketAddr, r: SocketAddr| l == end || r == end;
        self.shared.enter().cut(&RdmaError::ConnectionLost, same);
    }

    /// A host falls silent, as when its machine stops: nobody hears of it.
    pub fn silence(&self, host: IpAddr) {
        let mut world = self.shared.enter();
        let others: Vec<IpAddr> = world.nodes.iter().map(|n| n.address).collect();
        for other in others {
            world.set_link(host, other, false);
        }
    }

    /// Takes the device away from a host. Its connections and listeners end; peers hear nothing.
    pub fn remove_device(&self, host: IpAddr) {
        self.shared.enter().remove_device(host);
    }

    /// Lets a post on a host fail, after so many more of that kind were accepted, be it in the same call or in
    /// later ones.
    pub fn fail_post(&self, host: IpAddr, posted: Posted, after: usize, error: PostError) {
        self.shared.enter().faults.push(Fault {
            host,
            posted,
            after,
            error,
        });
    }

    /// Refuses so many registrations of memory on a host, as a system does that has none left.
    pub fn refuse_memory(&self, host: IpAddr, count: u32) {
        let mut world = self.shared.enter();
        let refusals = world.refusals.entry(host).or_default();
        refusals.store(count, Ordering::SeqCst);
    }

    /// Lets so many connects of a host find that the local port is taken, as happens on soft-iWARP, which binds what
    /// the connection manager chose from a space of its own.
    pub fn take_ports(&self, host: IpAddr, count: u32) {
        self.shared.enter().taken_ports.insert(host, count);
    }

    /// Ends of connections that exist, with their queue pairs and windows.
    pub fn connection_ends(&self) -> usize {
        self.shared.enter().conns.len()
    }

    /// The violations so far.
    pub fn violations(&self) -> Vec<Violation> {
        self.shared.enter().violations.clone()
    }

    /// The violations so far, which are then forgotten.
    pub fn take_violations(&self) -> Vec<Violation> {
        std::mem::take(&mut self.shared.enter().violations)
    }
}

/// Fails the test at its end.
#[derive(Debug)]
struct Judge(Arc<Shared>);

impl Drop for Judge {
    fn drop(&mut self) {
        let violations = std::mem::take(&mut self.0.enter().violations);
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("violations in the simulated network: {violations:?}");
        }
    }
}
