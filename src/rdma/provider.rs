//! The trait that every provider implements, and the ids it hands out.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::{
    Capabilities, Close, ConnectParams, Domain, Event, Incoming, IoBuf, IoPin, ListenOptions,
    PeerInfo, PostError, QpMade, QpOptions, QpWork, RdmaError, RdmaOperation, Registration,
    RemoteAccess, ResolveOptions, SendRequest, Window, WindowId,
};

/// A connection together with its queue pair. The generation keeps an old id from meaning a new connection, which may have
/// the index already while the end of the old one is still to be polled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    /// Place in the provider's table.
    pub index: u32,
    /// Changes each time the place is used again.
    pub generation: u32,
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnId({}.{})", self.index, self.generation)
    }
}

/// One listening address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    /// Place in the provider's table.
    pub index: u32,
    /// Changes each time the place is used again.
    pub generation: u32,
}

/// Which provider it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProviderKind {
    /// An RDMA device through libibverbs.
    Verbs,
    /// The software RNIC over TCP sockets.
    Iwarp,
    /// The simulated network.
    Sim,
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verbs => "verbs",
            Self::Iwarp => "iwarp",
            Self::Sim => "sim",
        })
    }
}

/// Whether one may sleep on the provider's descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// Nothing is ready: the descriptor becomes readable when something is.
    Sleep,
    /// Something is ready already: poll again before sleeping.
    Ready,
}

/// A source of RDMA connections, driven by one owner with `&mut self`. Time comes in from outside.
///
/// The life of a connection: `resolve` (then [`Event::Resolved`]) or `adopt`; then `create_qp`, `post_receive`,
/// `connect` or `accept` (then [`Event::Established`], which a receive may precede); requests; `close` or the
/// peer's end; and [`Event::Disconnected`], always, exactly once and last, after every posted buffer and request
/// has come back. No call sleeps. Calls with an id that is gone do nothing, or fail with [`RdmaError::Closed`].
pub trait Provider: Send {
    /// Which provider this is.
    fn kind(&self) -> ProviderKind;

    /// Listens on one address; port 0 lets the system choose.
    ///
    /// # Errors
    /// The address is in use, belongs to no device, or may not be used.
    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, RdmaError>;

    /// The address that a listener really has.
    fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr>;

    /// Stops listening. Connections already handed out live on.
    fn unlisten(&mut self, listener: ListenerId);

    /// Finds the device and the route to a peer; [`Event::Resolved`] or [`Event::Disconnected`] follows.
    ///
    /// # Errors
    /// It cannot even be tried.
    fn resolve(
        &mut self,
        to: SocketAddr,
        options: &ResolveOptions,
        now: Instant,
    ) -> Result<ConnId, RdmaError>;

    /// Takes a connection request that this provider's listener, or a sibling's of the same kind, handed out.
    ///
    /// # Errors
    /// The request is of another kind of provider, or is gone already.
    fn adopt(&mut self, incoming: Incoming, now: Instant) -> Result<ConnId, RdmaError>;

    /// Refuses a connection request.
    fn reject(&mut self, incoming: Incoming);

    /// Addresses and device of a resolved or adopted connection.
    fn peer(&self, conn: ConnId) -> Option<PeerInfo>;

    /// What the connection's device can do, as probed.
    fn capabilities(&self, conn: ConnId) -> Option<&Capabilities>;

    /// The domain in which the connection's memory must be registered. Connections share one only where no remote
    /// key is valid beyond its connection.
    ///
    /// # Errors
    /// The device refuses, or the connection is gone.
    fn domain(&mut self, conn: ConnId) -> Result<Arc<dyn Domain>, RdmaError>;

    /// Makes the queue pair of a resolved or adopted connection. May block where [`Provider::begin_qp`] gives work.
    ///
    /// # Errors
    /// The device refuses the sizes or is out of resources.
    fn create_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError>;

    /// Begins to make the queue pair, for callers that must not wait: gives the part that may block, to be run on
    /// another thread and handed to [`Provider::finish_qp`]. `None`: nothing blocks, and the queue pair is there.
    ///
    /// # Errors
    /// As for [`Provider::create_qp`].
    fn begin_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<Option<QpWork>, RdmaError> {
        self.create_qp(conn, options).map(|()| None)
    }

    /// Gives a connection the queue pair that was made for it.
    ///
    /// # Errors
    /// [`RdmaError::Closed`]: the connection has ended meanwhile, and the queue pair is destroyed.
    fn finish_qp(&mut self, conn: ConnId, made: QpMade) -> Result<(), RdmaError> {
        let _ = (conn, made);
        Err(RdmaError::State(RdmaOperation::CreateQueuePair))
    }

    /// Connects a resolved connection. [`Event::Established`] or [`Event::Disconnected`] follows.
    ///
    /// # Errors
    /// It cannot even be tried.
    fn connect(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError>;

    /// Accepts an adopted connection. [`Event::Established`] or [`Event::Disconnected`] follows.
    ///
    /// # Errors
    /// It cannot even be tried.
    fn accept(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError>;

    /// Posts receives, taking from the front what was accepted. Each comes back in [`Event::Received`] or
    /// [`Event::Flushed`].
    ///
    /// # Errors
    /// What is left in `buffers` was not taken.
    fn post_receive(
        &mut self,
        conn: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError>;

    /// Posts requests with one doorbell, taking from the front what was accepted. They are executed in order; each
    /// comes back in [`Event::Completed`], in order; one that is not signalled may wait for the next that is.
    ///
    /// # Errors
    /// What is left in `chain` was not taken.
    fn post_send(
        &mut self,
        conn: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError>;

    /// Prepares the exposure of memory to the peer: keeps the memory and decides key and address. Where
    /// [`Window::needs_bind`] is set, the peer's access begins when an
    /// [`Operation::Bind`](super::Operation::Bind) of it has been executed in queue order; else at once.
    /// `prepared` is what [`IoPin::prepare`] has made of this memory for the device's [`Exposure`](super::Exposure). It
    /// is taken if the window opens, and else left to the caller, as ending it may block.
    ///
    /// # Errors
    /// No window is left, the memory is of another domain, or `prepared` is not what the device needs.
    fn open_window(
        &mut self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        prepared: &mut Option<Registration>,
    ) -> Result<Window, RdmaError>;

    /// Ends an exposure that was never bound, was invalidated (by the peer or by a completed
    /// [`Operation::Invalidate`](super::Operation::Invalidate)), or needs no bind. Gives the memory back, and what must
    /// be dropped before anybody else may use it: that may block, and where the exposure needed no bind it is what ends
    /// the peer's access. `None` for a window that is gone or is still bound: only its connection's end can free it then.
    fn retire_window(
        &mut self,
        conn: ConnId,
        window: WindowId,
    ) -> Option<(IoPin, Option<Registration>)>;

    /// As [`Provider::retire_window`], for callers that may wait: the peer's access is over.
    fn close_window(&mut self, conn: ConnId, window: WindowId) -> Option<IoPin> {
        let (memory, rest) = self.retire_window(conn, window)?;
        drop(rest);
        Some(memory)
    }

    /// From now on the caller ends what connections leave behind where that may block, such as queue pairs and
    /// registrations: it takes it by [`Provider::take_remains`] after every call that may end connections, and drops it before
    /// it lets anybody use memory that was exposed. Without, everything is over when
    /// [`Event::Disconnected`] comes.
    fn defer_remains(&mut self) {}

    /// What ended connections have left behind, one at a time.
    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        None
    }

    /// The time, in which deadlines are given: the system's, unless time is virtual.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Moves everything that can be moved without sleeping and appends at most `budget` events and the few that
    /// belong to them. Returns whether there is more.
    fn poll(&mut self, now: Instant, out: &mut VecDeque<Event>, budget: usize) -> bool;

    /// Whether something waits to be polled that the descriptor does not announce, such as requests that were
    /// executed while they were posted. Costs no system call.
    fn pending(&self) -> bool {
        false
    }

    /// When `poll` wants to be called at the latest, for the provider's own timers.
    fn next_deadline(&self) -> Option<Instant>;

    /// Prepares for sleeping on [`Provider::fd`].
    ///
    /// # Errors
    /// The device cannot notify.
    fn arm(&mut self) -> Result<Armed, RdmaError>;

    /// What becomes readable when there is something to poll, after [`Provider::arm`]. `None`: there is no
    /// descriptor, time is virtual.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Ends a connection in any state. [`Event::Disconnected`] follows, and its reason is
    /// [`LossReason::Local`](super::LossReason::Local) whatever the peer and the network did before or do meanwhile:
    /// who closes is told of nothing else but by the status of each request.
    fn close(&mut self, conn: ConnId, how: Close, now: Instant);
}
