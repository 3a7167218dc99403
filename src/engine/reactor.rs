//! The reactor: who drives the core, and how a call on a channel gets its work done.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Channel;
use super::attempt::{Attempt, Waiter};
use super::calls::Calls;
use super::conn::{Conn, Context};
use super::core::Core;
use super::group::{Arrival, Load, Members};
use super::helper::Helper;
use super::listen_at::ListenAt;
use super::listener::{DirectListener, ListenShared};
use super::locked::Locked;
use super::numa::Node;
use super::options::{ChannelOptions, ReactorOptions};
use super::retired::RetiredList;
use super::seat::{Reservation, Seat};
use super::setup::Done;
use super::shared::ConnShared;
use super::wait::Wait;
use crate::rdma::{
    Armed, Close as RdmaClose, ConnId, MemoryBudget, Provider, ProviderKind, ResolveOptions, after,
};
use crate::transport::{Error, Op, Stats, Transport};

mod exposing;

/// Passes with more to do after which whoever drives gets its turn.
const PASSES: u32 = 64;
/// Times that a caller attends to what others have left meanwhile, before it is the driver's.
const ROUNDS: u32 = 16;

/// Drives one provider and its connections. A cheap handle: clones share the reactor.
///
/// Somebody has to drive it, in one of these ways, all of which run the same code:
/// - its own thread: [`Reactor::spawn`];
/// - the caller's loop: [`Reactor::fd`] and [`Reactor::poll`];
/// - a task of a tokio runtime: `Reactor::drive`, with the feature `tokio`;
/// - the calling thread, while it waits for something: [`Reactor::block_on`].
///
/// Until somebody does, operations do not end, and blocking calls on other threads wait for ever.
///
/// Calls on channels never wait for the driver: they do their work themselves when the reactor is free, and leave it
/// to whoever holds it when it is not.
#[derive(Clone)]
pub struct Reactor {
    shared: Arc<Shared>,
    /// `None` for who drives the reactor: it is not kept for its driver's sake.
    _owner: Option<Arc<Owner>>,
}

/// All handles together.
struct Owner(Arc<Shared>);

/// What handles, channels and the driver share.
pub(crate) struct Shared {
    core: Mutex<Core>,
    /// What is ended when the core was released.
    retired: RetiredList,
    /// What waits for whoever holds the core next.
    calls: Calls<Call>,
    wait: Wait,
    seat: Seat,
    /// A loop of the caller's may sleep on the descriptor.
    polled: AtomicBool,
    /// That loop has set the descriptor's timer.
    timer_set: AtomicBool,
    kind: ProviderKind,
    options: ReactorOptions,
    stopping: AtomicBool,
    /// There is no handle any more, so that nothing new can begin but through what there is.
    unowned: AtomicBool,
    load: Load,
    helper: Helper,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What another thread leaves to whoever holds the core.
enum Call {
    /// A connection's queues want attention.
    Attend(ConnId),
    /// A sibling's listener hands a connection over.
    TakeIn(Box<Arrival>),
    /// Work for a connection has been done off the lock.
    Finished(ConnId, Box<Done>),
}

impl Reactor {
    /// A reactor over a provider, driven by nobody yet.
    ///
    /// # Errors
    /// The system has no descriptors left; [`ApiMisuse::NoNumaNode`](crate::transport::ApiMisuse) for such an option.
    pub fn new(provider: Box<dyn Provider>, options: ReactorOptions) -> Result<Self, Error> {
        let wait = Wait::new(provider.fd()).map_err(|errno| Error::os(&errno.into()))?;
        let kind = provider.kind();
        let load = Load::default();
        let node = options.numa_node.map(Node::new).transpose()?;
        let helper = Helper::new(&options.thread_name, node, provider.fd().is_none());
        let shared = Arc::new_cyclic(|weak| Shared {
            core: Mutex::new(Core::new(
                provider,
                options.clone(),
                load.clone(),
                helper.clone(),
                weak.clone(),
            )),
            retired: RetiredList::default(),
            calls: Calls::new(),
            wait,
            seat: Seat::default(),
            polled: AtomicBool::new(false),
            timer_set: AtomicBool::new(false),
            kind,
            options,
            stopping: AtomicBool::new(false),
            unowned: AtomicBool::new(false),
            load,
            helper,
            thread: Mutex::new(None),
        });
        let owner = Arc::new(Owner(shared.clone()));
        Ok(Self {
            shared,
            _owner: Some(owner),
        })
    }

    /// Which provider it drives.
    pub fn kind(&self) -> ProviderKind {
        self.shared.kind
    }

    /// Starts a thread that drives the reactor until [`Reactor::shutdown`], or until nothing is left that needs it: no
    /// handle of the reactor, no listener and no connection.
    ///
    /// # Errors
    /// The system has no threads left.
    pub fn spawn(&self) -> Result<(), Error> {
        let shared = self.shared.clone();
        let reservation = shared.seat.reserve();
        // Who drives now may sleep.
        shared.wait.wake();
        let thread = thread::Builder::new()
            .name(shared.options.thread_name.clone())
            .spawn(move || shared.run(&reservation))
            .map_err(|error| Error::os(&error))?;
        *ignore_poison(self.shared.thread.lock()) = Some(thread);
        Ok(())
    }

    /// Listens at all the places (at none if one fails): at plain addresses, where port 0 lets the system choose, or
    /// at those that [`ListenAt::everywhere`] and [`ListenAt::usual`] find, with their usual ports.
    ///
    /// # Errors
    /// An address is in use, or belongs to no device or to another than was asked for; the options are not valid.
    pub fn listen<P: Clone + Into<ListenAt>>(
        &self,
        places: &[P],
        options: ChannelOptions,
    ) -> Result<DirectListener, Error> {
        self.listen_for(None, places, options)
    }

    /// As [`Reactor::listen`], for a group of which this is a member.
    pub(crate) fn listen_for<P: Clone + Into<ListenAt>>(
        &self,
        members: Option<Arc<Members>>,
        places: &[P],
        options: ChannelOptions,
    ) -> Result<DirectListener, Error> {
        let places: Vec<ListenAt> = places.iter().cloned().map(Into::into).collect();
        let options = Arc::new(options);
        let listen = Arc::new(ListenShared::new(options.accept_backlog));
        let spread = members.as_ref().map(Arc::downgrade).unwrap_or_default();
        let local = self
            .shared
            .with_core(|core| core.listen(&places, options, &listen, spread))?;
        self.shared.kick();
        let reactor = self.shared.clone();
        Ok(DirectListener::new(reactor, members, listen, local))
    }

    /// Connects and negotiates. The operation ends with a channel that is ready for messages.
    ///
    /// Port 0 is for the [usual one](crate::transport::port_for) of the device that the way to the peer leads over: it
    /// is tried first, then that of the other fabrics, and [`Error::BothPorts`] says how both have failed.
    pub fn connect(&self, to: SocketAddr, options: ChannelOptions) -> Op<Channel> {
        self.connect_with(to, &ResolveOptions::default(), options)
    }

    /// As [`Reactor::connect`], with the choice of local address and fabric. A type of service in `resolve` comes before
    /// that in `options`.
    pub fn connect_with(
        &self,
        to: SocketAddr,
        resolve: &ResolveOptions,
        options: ChannelOptions,
    ) -> Op<Channel> {
        let (op, completer) = Op::pending();
        self.begin(
            Attempt::new(Waiter::Channel(completer), to, resolve, &options),
            options,
        );
        op
    }

    /// As [`Reactor::connect_with`], with the channel as a transport of any kind.
    pub(crate) fn connect_transport(
        &self,
        to: SocketAddr,
        resolve: &ResolveOptions,
        options: ChannelOptions,
    ) -> Op<Arc<dyn Transport>> {
        let (op, completer) = Op::pending();
        self.begin(
            Attempt::new(Waiter::Transport(completer), to, resolve, &options),
            options,
        );
        op
    }

    /// What becomes readable when [`Reactor::poll`] has something to do: for a loop of the caller's own.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.shared.wait.fd()
    }

    /// Does what can be done without sleeping, but no more than is good for the rest of the caller's loop, and prepares
    /// [`Reactor::fd`] for the next sleep. Returns when it wants to be called again at the latest, which may be at once;
    /// the descriptor becomes readable then, too.
    ///
    /// While another thread drives the reactor this does nothing; the descriptor becomes readable when that has ended.
    pub fn poll(&self) -> Option<Instant> {
        self.shared.polled.store(true, Ordering::SeqCst);
        let _sitting = self.shared.seat.try_sit()?;
        self.shared.wait.acknowledge();
        let deadline = self.shared.settle(self.shared.options.spin);
        let after = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        self.shared.wait.set_timer(after);
        // After it, so that who sits down next finds a timer that may be running.
        self.shared.timer_set.store(true, Ordering::SeqCst);
        deadline
    }

    /// How many connections there are, in any state.
    pub fn connections(&self) -> usize {
        self.shared.with_core(|core| core.connections())
    }

    /// Counters of all its connections since the reactor was made, those that have ended included.
    pub fn stats(&self) -> Stats {
        self.shared.with_core(|core| core.totals())
    }

    /// Bytes of registered memory that the reactor's connections hold, whether in use or kept for the next use.
    /// [`ReactorOptions::max_registered_memory`] limits it.
    pub fn registered_memory(&self) -> u64 {
        self.shared
            .with_core(|core| core.budget().map_or(0, MemoryBudget::used))
    }

    /// Ends listeners at once and connections in order (accepted messages are sent first), at the latest after
    /// `limit`; then the thread, if there is one. Channels that are left see
    /// [`ReactorGone`](crate::transport::DisconnectReason::ReactorGone). Calling it twice is harmless. It blocks, up to
    /// its limit: an asynchronous program has [`Reactor::begin_shutdown`].
    pub fn shutdown(&self, limit: Duration) {
        let deadline = self.begin_shutdown(limit);
        self.finish_shutdown(deadline);
    }

    /// As [`Reactor::shutdown`], without waiting: returns until when it may take. The thread or the task that drives the
    /// reactor ends when everything has.
    pub fn begin_shutdown(&self, limit: Duration) -> Instant {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let deadline = self.shared.with_core(|core| {
            let now = core.now();
            let deadline = after(now, limit);
            let how = if limit.is_zero() {
                RdmaClose::Abort
            } else {
                RdmaClose::Drain(deadline)
            };
            core.shut_down(how, now);
            deadline
        });
        self.shared.wait.wake();
        deadline
    }

    /// Waits until everything has ended.
    pub(crate) fn finish_shutdown(&self, deadline: Instant) {
        let thread = ignore_poison(self.shared.thread.lock()).take();
        match thread {
            Some(thread) if thread.thread().id() != thread::current().id() => {
                // The thread has no way to panic that would not have been seen in the connections.
                let _ = thread.join();
            }
            _ => {
                // Two asleep on the descriptor would take each other's wake-ups, so that another one who drives is to
                // stop; but this thread itself may be at work for the reactor while it calls this.
                let seat = &self.shared.seat;
                let reservation = (!seat.is_mine()).then(|| seat.reserve());
                // Who drives now may sleep.
                self.shared.wait.wake();
                let sitting = reservation
                    .as_ref()
                    .and_then(|seat| seat.sit_until(deadline));
                loop {
                    let next = self.shared.settle(Duration::ZERO);
                    if self.shared.with_core(|core| core.is_idle()) || Instant::now() >= deadline {
                        break;
                    }
                    self.shared
                        .sleep(Some(next.map_or(deadline, |at| at.min(deadline))));
                }
                self.shared.with_core(Core::abandon);
                drop(sitting);
                drop(reservation);
                // Whoever drives it besides sees that it is over.
                self.shared.wake_anew();
            }
        }
    }

    /// A handle for who drives the reactor.
    #[cfg(feature = "tokio")]
    pub(crate) fn for_driver(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            _owner: None,
        }
    }

    /// Whether it was shut down, or can have nothing more to do, and nothing of it is left.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_over()
    }

    /// How many connections it has, those that are on their way to it included.
    pub(crate) fn load(&self) -> &Load {
        &self.shared.load
    }

    /// Whether it takes no new connections any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::SeqCst)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Works under the lock, for tests of what happens meanwhile.
    #[cfg(test)]
    pub(crate) fn hold<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        self.shared.with_core(work)
    }
}

impl Reactor {
    fn begin(&self, attempt: Attempt, options: ChannelOptions) {
        self.shared.with_core(|core| {
            let now = core.now();
            core.connect(attempt, Arc::new(options), now);
        });
        self.shared.kick();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.unowned.store(true, Ordering::SeqCst);
        // The driver may sleep.
        self.0.wait.wake();
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
            self.calls.leave(Call::Attend(conn.conn));
        }
        self.kick();
    }

    /// A sibling's listener hands a connection over.
    pub(crate) fn hand_over(&self, arrival: Box<Arrival>) {
        self.calls.leave(Call::TakeIn(arrival));
        self.kick();
    }

    /// Work for a connection has been done off the lock: the driver goes on with it, where the reactor was put to run.
    pub(crate) fn finished(&self, conn: ConnId, done: Done) {
        self.calls.leave(Call::Finished(conn, Box::new(done)));
        self.wait.wake();
        // Then there may be no driver any more.
        if self.stopping.load(Ordering::SeqCst) {
            self.kick();
        }
    }

    /// How long who waits looks for what it waits for before it sleeps.
    pub(crate) fn spin(&self) -> Duration {
        self.options.spin
    }

    /// Where work goes that may block.
    pub(crate) fn helper(&self) -> &Helper {
        &self.helper
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

    /// Works off what is left to do, if nobody else is at it.
    fn kick(&self) {
        let done = self.calls.work_off(ROUNDS, || {
            let core = match self.core.try_lock() {
                Ok(core) => core,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // The holder looks at the list again after it has unlocked.
                Err(TryLockError::WouldBlock) => return false,
            };
            let mut core = Locked::new(core);
            let now = core.now();
            self.attend(&mut core, now);
            self.unlock(core, now);
            true
        });
        if !done {
            self.wait.wake();
        }
    }

    /// Works off the calls that there are.
    fn attend(&self, core: &mut Core, now: Instant) {
        self.calls.attend(|call| match call {
            Call::Attend(conn) => core.attend(conn, now),
            Call::TakeIn(arrival) => core.take_in(*arrival, now),
            Call::Finished(conn, done) => core.finished(conn, *done, now),
        });
    }

    /// Leaves the core, and wakes those who wait for what happened in it.
    fn unlock(&self, mut core: Locked<'_>, now: Instant) {
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
        let handed = std::mem::take(&mut core.handed);
        core.collect_remains();
        let retired = !core.retired.is_empty();
        if retired {
            // While the lock is held, so that the order is that of what happened under it.
            self.retired.extend(core.retired.drain(..));
        }
        let emptied = core.has_emptied();
        drop(core);
        if emptied {
            // Whoever waits for that may sleep, and so may the driver, which ends then if nobody needs it any more.
            self.wait.wake();
        }
        wakers.drain(..).for_each(Waker::wake);
        SPARE.set(wakers);
        if retired {
            self.work_off_retired();
        }
        for (sibling, arrival) in handed {
            sibling.hand_over(arrival);
        }
    }

    /// Ends and gives back what was left for when the lock is released.
    fn work_off_retired(&self) {
        let mut wakers = SPARE.take();
        self.retired.work_off(&mut wakers);
        wakers.drain(..).for_each(Waker::wake);
        SPARE.set(wakers);
    }

    /// Runs something under the lock.
    fn with_core<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let mut core = Locked::new(ignore_poison(self.core.lock()));
        let result = work(&mut core);
        let now = core.now();
        self.unlock(core, now);
        // Others may have left work meanwhile.
        self.kick();
        result
    }

    /// Works until there is nothing to do, spinning for the given time, and prepares for sleeping. Returns when
    /// there will be something to do at the latest: at once where the work does not end, so that whoever drives has
    /// time for other things.
    pub(super) fn settle(&self, spin: Duration) -> Option<Instant> {
        self.settle_unless(spin, || false)
    }

    /// As [`Shared::settle`], without spinning any more when the driver has something else to do.
    pub(super) fn settle_unless(
        &self,
        spin: Duration,
        has_other_work: impl Fn() -> bool,
    ) -> Option<Instant> {
        let mut spin_until = None;
        let mut passes = 0;
        loop {
            let mut core = Locked::new(ignore_poison(self.core.lock()));
            core.sleeping = None;
            let now = core.now();
            self.attend(&mut core, now);
            let before = core.wakers.len();
            let mut more = core.pass(now) || core.provider().pending();
            let worked = core.wakers.len() > before;
            passes += u32::from(more);
            if passes > PASSES {
                self.unlock(core, now);
                return Some(now);
            }
            if !more && !spin.is_zero() && !has_other_work() {
                let until = *spin_until.get_or_insert(after(now, spin));
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
                        let worked = self.helper.drive();
                        if !worked && self.calls.is_empty() {
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

    /// Ends the driver's sleep.
    pub(super) fn wake(&self) {
        self.wait.wake();
    }

    /// As [`Shared::wake`], also for who has seen an earlier wake-up and left it to another driver.
    pub(super) fn wake_anew(&self) {
        self.wait.acknowledge();
        self.wait.wake();
    }

    /// Who drives it.
    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Stops the timer of the descriptor, if a loop has set it. Whether one had.
    pub(super) fn stop_timer(&self) -> bool {
        let set =
            self.timer_set.load(Ordering::SeqCst) && self.timer_set.swap(false, Ordering::SeqCst);
        if set {
            self.wait.set_timer(None);
        }
        set
    }

    /// Tells a loop of the caller's, if there is one, that the reactor is its own again: it knows nothing of the timers
    /// that were set meanwhile, and its wake-ups may have been taken.
    pub(super) fn return_to_loop(&self) {
        if self.polled.load(Ordering::SeqCst) {
            self.wake_anew();
        }
    }

    pub(super) fn sleep(&self, deadline: Option<Instant>) {
        let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if limit.is_none_or(|limit| !limit.is_zero()) {
            self.wait.sleep(limit);
        }
    }

    /// Whether it was shut down, or can have nothing more to do, and nothing of it is left.
    fn is_over(&self) -> bool {
        (self.stopping.load(Ordering::SeqCst) || self.unowned.load(Ordering::SeqCst))
            && self.with_core(|core| core.is_idle())
    }

    /// The spawned thread.
    fn run(&self, reservation: &Reservation) {
        self.helper.place_this_thread();
        let _sitting = reservation.sit();
        loop {
            let deadline = self.settle(self.options.spin);
            if self.is_over() {
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
