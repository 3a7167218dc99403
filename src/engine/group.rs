//! Several reactors as one: a listener accepts on one of them, and each connection moves to the one that has the
//! fewest before its queue pair is made.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::Channel;
use super::listen_at::ListenAt;
use super::listener::{Admitted, DirectListener, ListenShared};
use super::options::ChannelOptions;
use super::reactor::{Reactor, Shared};
use crate::rdma::{Incoming, ProviderKind, ResolveOptions};
use crate::transport::{ApiMisuse, Error, Op, Stats};

/// Several reactors that share their work. A cheap handle: clones share the group.
///
/// Each reactor has a provider and a thread of its own, and a connection lives on one of them: its work is never spread
/// over threads, and connections of different reactors do not wait for each other. A connection that is made or
/// accepted goes to the reactor that has the fewest at that moment.
///
/// ```no_run
/// use smbdirect::engine::{ChannelOptions, ListenAt, Reactor, ReactorGroup, ReactorOptions};
/// use smbdirect::rdma::{self, ProviderKind};
/// # fn main() -> Result<(), smbdirect::transport::Error> {
/// let kind = ProviderKind::Verbs;
/// let reactor = |_| Reactor::new(rdma::open(kind)?, ReactorOptions::default());
/// let reactors = (0..4).map(reactor).collect::<Result<Vec<_>, _>>()?;
/// let group = ReactorGroup::new(reactors)?;
/// group.spawn()?;
/// let listener = group.listen(&ListenAt::everywhere(kind)?, ChannelOptions::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ReactorGroup {
    members: Arc<Members>,
}

/// The reactors of a group; at least one.
pub(crate) struct Members {
    reactors: Vec<Reactor>,
}

/// A connection request on its way to the reactor that shall have it.
pub(crate) struct Arrival {
    pub(crate) incoming: Incoming,
    pub(crate) shared: Arc<ListenShared>,
    pub(crate) admitted: Admitted,
    pub(crate) options: Arc<ChannelOptions>,
    pub(crate) place: Place,
}

/// How many connections a reactor has, those on their way to it included.
#[derive(Clone, Default)]
pub(crate) struct Load(Arc<AtomicUsize>);

/// One connection's part of a [`Load`], until it is dropped.
pub(crate) struct Place(Load);

impl ReactorGroup {
    /// Joins reactors to a group. They stay usable on their own.
    ///
    /// # Errors
    /// [`ApiMisuse::EmptyGroup`], or [`ApiMisuse::MixedGroup`] if their providers are not of one kind: a connection
    /// cannot move between them.
    pub fn new(reactors: Vec<Reactor>) -> Result<Self, Error> {
        let Some(first) = reactors.first() else {
            return Err(ApiMisuse::EmptyGroup.into());
        };
        let first = first.kind();
        if let Some(other) = reactors.iter().find(|reactor| reactor.kind() != first) {
            let second = other.kind();
            return Err(ApiMisuse::MixedGroup { first, second }.into());
        }
        Ok(Self {
            members: Arc::new(Members { reactors }),
        })
    }

    /// The reactors, in the order in which they were given.
    pub fn reactors(&self) -> &[Reactor] {
        &self.members.reactors
    }

    /// Which providers they drive.
    pub fn kind(&self) -> ProviderKind {
        self.members.reactors[0].kind()
    }

    /// Starts a thread for each reactor; see [`Reactor::spawn`].
    ///
    /// # Errors
    /// The system has no threads left. Those that were started go on: end them with [`ReactorGroup::shutdown`].
    pub fn spawn(&self) -> Result<(), Error> {
        self.reactors().iter().try_for_each(Reactor::spawn)
    }

    /// As [`Reactor::listen`], for all reactors: the first one accepts, and each connection then lives on one of them.
    ///
    /// # Errors
    /// As for [`Reactor::listen`].
    pub fn listen<P: Clone + Into<ListenAt>>(
        &self,
        places: &[P],
        options: ChannelOptions,
    ) -> Result<DirectListener, Error> {
        let members = Some(self.members.clone());
        self.reactors()[0].listen_for(members, places, options)
    }

    /// As [`Reactor::connect`], on one of the reactors.
    pub fn connect(&self, to: SocketAddr, options: ChannelOptions) -> Op<Channel> {
        self.next().connect(to, options)
    }

    /// As [`Reactor::connect_with`], on one of the reactors.
    pub fn connect_with(
        &self,
        to: SocketAddr,
        resolve: &ResolveOptions,
        options: ChannelOptions,
    ) -> Op<Channel> {
        self.next().connect_with(to, resolve, options)
    }

    /// How many connections there are on all reactors, in any state.
    pub fn connections(&self) -> usize {
        self.reactors().iter().map(Reactor::connections).sum()
    }

    /// Counters of all connections of all reactors; see [`Reactor::stats`].
    pub fn stats(&self) -> Stats {
        let mut all = Stats::default();
        for reactor in self.reactors() {
            all += &reactor.stats();
        }
        all
    }

    /// Bytes of registered memory of all reactors; see [`Reactor::registered_memory`].
    pub fn registered_memory(&self) -> u64 {
        let reactors = self.reactors().iter();
        reactors.map(Reactor::registered_memory).sum()
    }

    /// Ends all reactors, side by side; see [`Reactor::shutdown`].
    pub fn shutdown(&self, limit: Duration) {
        let begin = |reactor: &Reactor| reactor.begin_shutdown(limit);
        let deadlines: Vec<_> = self.reactors().iter().map(begin).collect();
        for (reactor, deadline) in self.reactors().iter().zip(deadlines) {
            reactor.finish_shutdown(deadline);
        }
    }

    /// As [`ReactorGroup::shutdown`], without waiting; see [`Reactor::begin_shutdown`].
    pub fn begin_shutdown(&self, limit: Duration) {
        for reactor in self.reactors() {
            reactor.begin_shutdown(limit);
        }
    }

    /// The reactor for the next connection.
    pub(crate) fn next(&self) -> &Reactor {
        self.members.least().unwrap_or(&self.members.reactors[0])
    }
}

impl From<Reactor> for ReactorGroup {
    fn from(reactor: Reactor) -> Self {
        let reactors = vec![reactor];
        Self {
            members: Arc::new(Members { reactors }),
        }
    }
}

impl fmt::Debug for ReactorGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.reactors()).finish()
    }
}

impl Members {
    /// The reactor with the fewest connections, the first of several; `None` if all are shutting down.
    fn least(&self) -> Option<&Reactor> {
        self.reactors
            .iter()
            .filter(|reactor| !reactor.is_stopping())
            .min_by_key(|reactor| reactor.load().count())
    }

    /// Where a connection goes that has arrived at the reactor with this load and is counted there already; `None` if
    /// it stays.
    pub(crate) fn other(&self, own: &Load) -> Option<(Arc<Shared>, Place)> {
        let least = self.least()?;
        let moves = least.load().count() + 1 < own.count();
        moves.then(|| (least.shared().clone(), least.load().place()))
    }
}

impl Load {
    /// Counts one more.
    pub(crate) fn place(&self) -> Place {
        self.0.fetch_add(1, Ordering::Relaxed);
        Place(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
