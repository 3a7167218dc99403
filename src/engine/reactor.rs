//! The reactor: who drives the core, and how a call on a channel gets its work done.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Channel;
use super::conn::{Conn, Context};
use super::core::Core;
use super::listener::{DirectListener, ListenShared};
use super::options::{ChannelOptions, ReactorOptions};
use super::setup::Attempt;
use super::shared::ConnShared;
use super::wait::Wait;
use crate::rdma::{
    Armed, Close as RdmaClose, ConnId, IoBuf, IoPin, Provider, ProviderKind, RdmaError,
    Registration, RemoteAccess, ResolveOptions, Window, WindowId,
};
use crate::transport::{Completer, Error, Op, Stats};

/// Drives one provider and its connections. A cheap handle: clones share the reactor.
///
/// Somebody has to drive it, in one of three ways, all of which run the same code:
/// - its own thread: [`Reactor::spawn`];
/// - the caller's loop: [`Reactor::fd`] and [`Reactor::poll`];
/// - one operation at a time on the calling thread: [`Reactor::block_on`].
///
/// Calls on channels never wait for the driver: they do their work themselves when the reactor is free, and leave it
/// to whoever holds it when it is not.
#[derive(Clone)]
pub struct Reactor {
    shared: Arc<Shared>,
}

/// What handles, channels and the driver share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// Connections whose queues want attention.
    pending: Mutex<Vec<ConnId>>,
    /// How many there are in `pending`: saves its lock.
    pending_count: AtomicUsize,
    wait: Wait,
    kind: ProviderKind,
    options: ReactorOptions,
    stopping: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reactor {
    /// A reactor over a provider, driven by nobody yet.
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub fn new(provider: Box<dyn Provider>, options: ReactorOptions) -> Result<Self, Error> {
        let wait = Wait::new(provider.fd()).map_err(|errno| Error::os(&errno.into()))?;
        let kind = provider.kind();
        let shared = Arc::new_cyclic(|weak| Shared {
            core: Mutex::new(Core::new(provider, options.clone(), weak.clone())),
            pending: Mutex::new(Vec::with_capacity(64)),
            pending_count: AtomicUsize::new(0),
            wait,
            kind,
            options,
            stopping: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        Ok(Self { shared })
    }

    /// Which provider it drives.
    pub fn kind(&self) -> ProviderKind {
        self.shared.kind
    }

    /// Starts a thread that drives the reactor until [`Reactor::shutdown`].
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn spawn(&self) -> Result<(), Error> {
        let shared = self.shared.clone();
        let thread = thread::Builder::new()
            .name(shared.options.thread_name.clone())
            .spawn(move || shared.run())
            .map_err(|error| Error::os(&error))?;
        *ignore_poison(self.shared.thread.lock()) = Some(thread);
        Ok(())
    }

    /// Listens on all the addresses (on none if one fails). Port 0 lets the system choose.
    ///
    /// # Errors
    /// An address is in use, or belongs to no device; the options are not valid.
    pub fn listen(
        &self,
        addresses: &[SocketAddr],
        options: ChannelOptions,
    ) -> Result<DirectListener, Error> {
        let options = Arc::new(options);
        let listen = Arc::new(ListenShared::new(options.accept_backlog));
        let local = self
            .shared
            .with_core(|core| core.listen(addresses, options, &listen))?;
        self.shared.kick();
        Ok(DirectListener::new(self.shared.clone(), listen, local))
    }

    /// Connects and negotiates. The operation ends with a channel that is ready for messages.
    pub fn connect(&self, to: SocketAddr, options: ChannelOptions) -> Op<Channel> {
        let resolve = ResolveOptions {
            type_of_service: options.type_of_service,
            ..ResolveOptions::default()
        };
        self.connect_with(to, &resolve, options)
    }

    /// As [`Reactor::connect`], with the choice of local address and fabric.
    pub fn connect_with(
        &self,
        to: SocketAddr,
        resolve: &ResolveOptions,
        options: ChannelOptions,
    ) -> Op<Channel> {
        let (op, completer) = Op::pending();
        self.shared.with_core(|core| {
            let now = core.now();
            let resolve = resolve.clone();
            let attempt = Attempt {
                completer,
                to,
                resolve,
                again: 3,
            };
            core.connect(attempt, Arc::new(options), now);
        });
        self.shared.kick();
        op
    }

    /// What becomes readable when [`Reactor::poll`] has something to do: for a loop of the caller's own.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.wait.fd()
    }

    /// Does everything that can be done without sleeping, and prepares [`Reactor::fd`] for the next sleep. Returns
    /// when it wants to be called again at the latest; the descriptor becomes readable then, too.
    pub fn poll(&self) -> Option<Instant> {
        self.shared.wait.acknowledge();
        let deadline = self.shared.settle(self.shared.options.spin);
        let after = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.shared.wait.set_timer(after);
        deadline
    }

    /// Drives the reactor on this thread until the operation is over: the lowest latency where nobody else drives
    /// it.
    ///
    /// # Errors
    /// The operation failed.
    pub fn block_on<T>(&self, mut op: Op<T>) -> Result<T, Error> {
        loop {
            if let Some(result) = op.try_take() {
                return result;
            }
            let deadline = self.shared.settle(Duration::ZERO);
            if let Some(result) = op.try_take() {
                return result;
            }
            self.shared.sleep(deadline);
        }
    }

    /// How many connections there are, in any state.
    pub fn connections(&self) -> usize {
        self.shared.with_core(|core| core.connections())
    }

    /// Ends listeners at once and connections in order (accepted messages are sent first), at the latest after
    /// `limit`; then the thread, if there is one. Channels that are left see
    /// [`ReactorGone`](crate::transport::DisconnectReason::ReactorGone). Calling it twice is harmless.
    pub fn shutdown(&self, limit: Duration) {
        let deadline = self.shared.with_core(|core| {
            let now = core.now();
            let deadline = now + limit;
            let how = if limit.is_zero() {
                RdmaClose::Abort
            } else {
                RdmaClose::Drain(deadline)
            };
            core.shut_down(how, now);
            deadline
        });
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wait.wake();
        let thread = ignore_poison(self.shared.thread.lock()).take();
        match thread {
            Some(thread) if thread.thread().id() != thread::current().id() => {
                // The thread has no way to panic that would not have been seen in the connections.
                let _ = thread.join();
            }
            _ => {
                while !self.shared.with_core(|core| core.is_idle()) && Instant::now() < deadline {
                    let next = self.shared.settle(Duration::ZERO);
                    self.shared
                        .sleep(Some(next.map_or(deadline, |at| at.min(deadline))));
                }
                self.shared.with_core(Core::abandon);
            }
        }
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("kind", &self.shared.kind)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// A channel left work in its queues: does it now if the reactor is free; whoever holds it sees it otherwise.
    pub(crate) fn request(&self, conn: &ConnShared) {
        if conn.mark() {
            ignore_poison(self.pending.lock()).push(conn.conn);
            self.pending_count.fetch_add(1, Ordering::SeqCst);
        }
        self.kick();
    }

    /// Ends a listener.
    pub(crate) fn unlisten(&self, listen: &Arc<ListenShared>) {
        self.with_core(|core| core.unlisten(listen));
        self.kick();
    }

    /// Counters of a connection that is still there.
    pub(crate) fn stats(&self, conn: ConnId) -> Option<Stats> {
        self.with_core(|core| core.stats(conn))
    }

    /// Works on a connection under the lock. `None` if it is gone.
    pub(crate) fn with_conn<T>(
        &self,
        conn: ConnId,
        work: impl FnOnce(&mut Conn, &mut Context<'_>) -> T,
    ) -> Option<T> {
        self.with_core(|core| core.with_conn(conn, work))
    }

    /// Exposes memory of a connection to its peer.
    pub(crate) fn expose(
        &self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        registration: Option<Registration>,
    ) -> Result<Window, RdmaError> {
        self.with_core(|core| core.expose(conn, memory, access, registration))
    }

    /// Takes exposed memory back; see [`Exposed::reclaim`](super::Exposed::reclaim).
    pub(crate) fn reclaim(
        &self,
        conn: ConnId,
        window: WindowId,
        memory: IoPin,
        completer: Option<Completer<IoBuf>>,
    ) {
        let mut taken = Some((memory, completer));
        self.with_conn(conn, |conn, cx| {
            if let Some((memory, completer)) = taken.take() {
                conn.reclaim(window, memory, completer, cx);
            }
        });
        // The connection is gone, and every right with it.
        if let Some((memory, Some(completer))) = taken {
            let result = memory.unpin().map_err(|_| Error::Rdma(RdmaError::Closed));
            if let Some(waker) = completer.complete(result) {
                waker.wake();
            }
        }
    }

    /// Works off what is pending, if nobody else is at it.
    fn kick(&self) {
        while self.pending_count.load(Ordering::SeqCst) > 0 {
            let mut core = match self.core.try_lock() {
                Ok(core) => core,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // The holder looks at the list again after it has unlocked.
                Err(TryLockError::WouldBlock) => return,
            };
            let now = core.now();
            self.attend(&mut core, now);
            self.unlock(core, now);
        }
    }

    /// Attends to all connections on the list.
    fn attend(&self, core: &mut Core, now: Instant) {
        while self.pending_count.load(Ordering::SeqCst) > 0 {
            let next = {
                let mut pending = ignore_poison(self.pending.lock());
                let next = pending.pop();
                if next.is_some() {
                    self.pending_count.fetch_sub(1, Ordering::SeqCst);
                }
                next
            };
            let Some(conn) = next else { return };
            core.attend(conn, now);
        }
    }

    /// Leaves the core, and wakes those who wait for what happened in it.
    fn unlock(&self, mut core: MutexGuard<'_, Core>, now: Instant) {
        if core.sleeping.is_some() {
            // The driver sleeps on what the descriptor announces: the rest is done here.
            let mut rounds = 0;
            while core.provider().pending() && rounds < 16 {
                core.pass(now);
                rounds += 1;
            }
            let earlier = match (core.sleeping, core.deadline()) {
                (Some(Some(until)), Some(deadline)) => deadline < until,
                (Some(None), Some(_)) => true,
                _ => false,
            };
            if earlier || core.provider().pending() {
                core.sleeping = None;
                self.wait.wake();
            }
        }
        let mut wakers = SPARE.take();
        std::mem::swap(&mut wakers, &mut core.wakers);
        drop(core);
        wakers.drain(..).for_each(Waker::wake);
        SPARE.set(wakers);
    }

    /// Runs something under the lock.
    fn with_core<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = ignore_poison(self.core.lock());
        let result = work(&mut core);
        let now = core.now();
        self.unlock(core, now);
        // Others may have left work meanwhile.
        self.kick();
        result
    }

    /// Works until there is nothing to do, spinning for the given time, and prepares for sleeping. Returns when
    /// there will be something to do at the latest.
    fn settle(&self, spin: Duration) -> Option<Instant> {
        let mut spin_until = None;
        loop {
            let mut core = ignore_poison(self.core.lock());
            core.sleeping = None;
            let now = core.now();
            self.attend(&mut core, now);
            let before = core.wakers.len();
            let mut more = core.pass(now) || core.provider().pending();
            let worked = core.wakers.len() > before;
            if !more && !spin.is_zero() {
                let until = *spin_until.get_or_insert(now + spin);
                if worked {
                    spin_until = None;
                    more = true;
                } else if now < until {
                    more = true;
                }
            }
            if !more {
                match core.provider_mut().arm() {
                    Ok(Armed::Sleep) => {
                        let deadline = core.deadline();
                        core.sleeping = Some(deadline);
                        self.unlock(core, now);
                        if self.pending_count.load(Ordering::SeqCst) == 0 {
                            return deadline;
                        }
                        continue;
                    }
                    Ok(Armed::Ready) => {}
                    Err(error) => {
                        tracing::error!(%error, "the provider cannot notify");
                        self.unlock(core, now);
                        return Some(now + Duration::from_millis(1));
                    }
                }
            }
            self.unlock(core, now);
        }
    }

    fn sleep(&self, deadline: Option<Instant>) {
        let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if limit.is_none_or(|limit| !limit.is_zero()) {
            self.wait.sleep(limit);
        }
    }

    /// The spawned thread.
    fn run(&self) {
        loop {
            let deadline = self.settle(self.options.spin);
            if self.stopping.load(Ordering::SeqCst) && self.with_core(|core| core.is_idle()) {
                break;
            }
            self.sleep(deadline);
        }
        self.with_core(Core::abandon);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

thread_local! {
    /// An empty list that keeps its memory, so that waking allocates nothing.
    static SPARE: Cell<Vec<Waker>> = const { Cell::new(Vec::new()) };
}

/// The states under these locks are valid at every moment, so a panic elsewhere does not spoil them.
fn ignore_poison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Handles may go to other threads.
const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<Reactor>();
    send_and_sync::<Channel>();
};
