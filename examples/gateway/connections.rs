//! All connections: how many there may be, who they are, what they have moved, and their end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use smbdirect::engine::Channel;
use smbdirect::transport::Transport;

/// How long connections have to end at once, and to tell of it.
const MOMENT: Duration = Duration::from_secs(1);

/// The gateway's end, as connections see it.
#[derive(Default)]
pub(crate) struct Stop {
    deadline: OnceLock<Instant>,
    at_once: AtomicBool,
}

impl Stop {
    /// Since when the gateway ends: until then what is under way may be finished.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Whether the gateway ends at once.
    pub(crate) fn at_once(&self) -> bool {
        self.at_once.load(Ordering::Relaxed)
    }

    /// Whether there is no time left.
    pub(crate) fn is_over(&self) -> bool {
        let passed = |deadline| deadline <= Instant::now();
        self.at_once() || self.deadline().is_some_and(passed)
    }
}

/// What has been moved, in bytes and requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// From clients' memory.
    pub(crate) rdma_read: u64,
    /// Into clients' memory.
    pub(crate) rdma_written: u64,
    /// In messages from clients.
    pub(crate) received: u64,
    /// In messages to clients.
    pub(crate) sent: u64,
    /// READ requests by RDMA.
    pub(crate) reads: u64,
    /// WRITE requests by RDMA.
    pub(crate) writes: u64,
    /// Such requests that the gateway refused.
    pub(crate) requests_refused: u64,
}

impl Moved {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.requests_refused += other.requests_refused;
        self.rdma_read += other.rdma_read;
        self.rdma_written += other.rdma_written;
        self.received += other.received;
        self.sent += other.sent;
    }
}

/// All connections together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Connections there are.
    pub(crate) open: usize,
    /// Connections there were.
    pub(crate) ended: u64,
    /// Connections that were refused for want of a place.
    pub(crate) refused: u64,
    pub(crate) moved: Moved,
}

/// All connections.
pub(crate) struct Connections {
    pub(crate) stop: Stop,
    max: usize,
    max_per_client: usize,
    /// Nothing is called on a channel while it is locked, and none is dropped: channels take the
    /// reactor's lock, under which the door asks for a place here.
    state: Mutex<State>,
    left: Condvar,
}

#[derive(Default)]
struct State {
    next: u64,
    open: HashMap<u64, Arc<Entry>>,
    per_client: HashMap<IpAddr, usize>,
    /// Of connections that are gone.
    past: Totals,
}

impl State {
    /// Those that are open, for what is to be called on them without the lock.
    fn entries(&self) -> Vec<Arc<Entry>> {
        self.open.values().cloned().collect()
    }
}

/// One connection, as others see it.
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) client: Arc<Channel>,
    /// READ requests by RDMA so far.
    pub(crate) reads: AtomicU64,
    /// WRITE requests by RDMA so far.
    pub(crate) writes: AtomicU64,
    /// Such requests that were refused so far.
    pub(crate) refused: AtomicU64,
    /// Its thread, for the gateway's end.
    waker: OnceLock<Waker>,
}

impl Entry {
    /// Who is to be woken when the gateway ends.
    pub(crate) fn wake_at_end(&self, waker: &Waker) {
        // There is one thread.
        let _ = self.waker.set(waker.clone());
    }

    pub(crate) fn moved(&self) -> Moved {
        let stats = self.client.stats();
        Moved {
            rdma_read: stats.bytes_rdma_read,
            rdma_written: stats.bytes_rdma_written,
            received: stats.bytes_received,
            sent: stats.bytes_sent,
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            requests_refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn address(&self) -> IpAddr {
        self.client.info().peer.ip().to_canonical()
    }
}

/// Why a connection may not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    Connections(usize),
    PerClient(usize),
}

impl Connections {
    pub(crate) fn new(max: usize, max_per_client: usize) -> Self {
        Self {
            stop: Stop::default(),
            max,
            max_per_client,
            state: Mutex::default(),
            left: Condvar::new(),
        }
    }

    /// Whether there is a place for one more connection of this client; counts if not. Does not
    /// keep it.
    pub(crate) fn place_for(&self, client: IpAddr) -> Result<(), NoPlace> {
        self.check(&mut self.lock(), client)
    }

    fn check(&self, state: &mut State, client: IpAddr) -> Result<(), NoPlace> {
        let here = state.per_client.get(&client).copied().unwrap_or(0);
        let no_place = if state.open.len() >= self.max {
            NoPlace::Connections(self.max)
        } else if here >= self.max_per_client {
            NoPlace::PerClient(self.max_per_client)
        } else {
            return Ok(());
        };
        state.past.refused += 1;
        Err(no_place)
    }

    /// Takes a connection in, which [`leave`](Self::leave) must end.
    pub(crate) fn enter(&self, client: &Arc<Channel>) -> Result<Arc<Entry>, NoPlace> {
        let address = client.info().peer.ip().to_canonical();
        let mut state = self.lock();
        self.check(&mut state, address)?;
        let id = state.next;
        state.next += 1;
        *state.per_client.entry(address).or_default() += 1;
        let entry = Arc::new(Entry {
            id,
            client: client.clone(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waker: OnceLock::new(),
        });
        state.open.insert(id, entry.clone());
        Ok(entry)
    }

    /// The connection has ended.
    pub(crate) fn leave(&self, entry: &Entry) {
        let (address, moved) = (entry.address(), entry.moved());
        let mut state = self.lock();
        let Some(gone) = state.open.remove(&entry.id) else {
            return;
        };
        if let Some(count) = state.per_client.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                state.per_client.remove(&address);
            }
        }
        state.past.ended += 1;
        state.past.moved.add(moved);
        drop(state);
        drop(gone);
        self.left.notify_all();
    }

    pub(crate) fn totals(&self) -> Totals {
        let (mut totals, open) = {
            let state = self.lock();
            (state.past, state.entries())
        };
        totals.open = open.len();
        for entry in open {
            totals.moved.add(entry.moved());
        }
        totals
    }

    /// The gateway ends: connections finish what is under way until `deadline`.
    pub(crate) fn stop(&self, deadline: Instant) {
        // A second call changes nothing.
        let _ = self.stop.deadline.set(deadline);
        self.wake_all();
    }

    /// The gateway ends at once.
    pub(crate) fn stop_at_once(&self) {
        self.stop.at_once.store(true, Ordering::Relaxed);
        // With the lock in between: who waits has seen it or sleeps already.
        self.wake_all();
        self.left.notify_all();
    }

    /// Waits until all connections have ended, for at most this time; for a moment if the gateway
    /// ends at once.
    pub(crate) fn wait_until_empty(&self, limit: Duration) {
        let in_order = |state: &mut State| !state.open.is_empty() && !self.stop.at_once();
        self.wait_while(limit, in_order);
        if self.stop.at_once() {
            self.wait_while(limit.min(MOMENT), |state| !state.open.is_empty());
        }
    }

    fn wait_while(&self, limit: Duration, waits: impl FnMut(&mut State) -> bool) {
        // Whether it took too long does not matter: the process ends either way.
        let _ = self.left.wait_timeout_while(self.lock(), limit, waits);
    }

    fn wake_all(&self) {
        let open = self.lock().entries();
        for entry in open {
            if let Some(waker) = entry.waker.get() {
                waker.wake_by_ref();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
