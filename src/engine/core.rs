//! The core of a reactor: one provider, its connections, listeners and timers, under one lock.

pub(crate) mod timers;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::assembly::ReassemblyBudget;
use super::attempt::Attempt;
use super::busy::Busy;
use super::conn::{Conn, Context};
use super::entries::Entries;
use super::exposures::ExposureId;
use super::group::{Arrival, Load, Members};
use super::helper::Helper;
use super::listen_at::ListenAt;
use super::listener::ListenShared;
use super::listening::{Listening, TRY_AGAIN};
use super::options::{ChannelOptions, ReactorOptions};
use super::pool::Registry;
use super::rdma_header;
use super::reactor::Shared;
use super::retired::Retired;
use super::setup::{Done, Entry, Origin, Setup};
use crate::proto::{self, Role};
use crate::rdma::{
    Close, ConnId, Event, Incoming, IoPin, ListenerId, LossReason, MemoryBudget, Provider,
    RdmaError, Registration, RemoteAccess, ResolveOptions, SlabOptions, Window,
};
use crate::transport::{DisconnectReason, Error, List, Stats};

/// Events that a connection takes in before it moves on: it goes on sending while a long pass is worked off.
const EVENTS_PER_TURN: u32 = 32;
/// Windows that one exposure opens before others get their turn.
const WINDOWS_PER_TURN: usize = 32;

/// Everything that the reactor's lock protects.
pub(crate) struct Core {
    provider: Box<dyn Provider>,
    options: ReactorOptions,
    conns: Entries,
    listeners: Vec<Listening>,
    /// When lost places of listeners are tried again.
    take_up: Option<Instant>,
    registry: Arc<Registry>,
    helper: Helper,
    events: VecDeque<Event>,
    reassembly: Arc<ReassemblyBudget>,
    /// Connections whose events of this pass are taken in, and that have not moved on yet.
    touched: Vec<ConnId>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    busy: Busy,
    pub(crate) wakers: Vec<Waker>,
    /// What is to be ended when this lock is released.
    pub(crate) retired: Vec<Retired>,
    /// Until when the driver sleeps, while it does; `Some(None)`: without limit.
    pub(crate) sleeping: Option<Option<Instant>>,
    shut_down: bool,
    /// The last listener or connection has gone since [`Core::has_emptied`] was asked.
    emptied: bool,
    /// Counters of connections that have ended.
    past: Stats,
    load: Load,
    /// Connections for other reactors of the group, to be given to them when this lock is released.
    pub(crate) handed: Vec<(Arc<Shared>, Box<Arrival>)>,
    /// The reactor's handle, for the channels that are made here.
    reactor: Weak<Shared>,
}

impl Core {
    pub(crate) fn new(
        mut provider: Box<dyn Provider>,
        options: ReactorOptions,
        load: Load,
        helper: Helper,
        reactor: Weak<Shared>,
    ) -> Self {
        provider.defer_remains();
        let slabs = SlabOptions {
            huge_pages: options.huge_pages,
            budget: Some(MemoryBudget::new(options.max_registered_memory)),
            ..SlabOptions::default()
        };
        Self {
            provider,
            reassembly: ReassemblyBudget::new(options.reassembly_budget),
            options,
            conns: Entries::default(),
            listeners: Vec::new(),
            take_up: None,
            registry: Arc::new(Registry::new(slabs)),
            helper,
            events: VecDeque::new(),
            touched: Vec::new(),
            timers: BinaryHeap::new(),
            busy: Busy::default(),
            wakers: Vec::new(),
            retired: Vec::new(),
            sleeping: None,
            shut_down: false,
            emptied: false,
            past: Stats::default(),
            load,
            handed: Vec::new(),
            reactor,
        }
    }

    pub(crate) fn provider(&self) -> &dyn Provider {
        &*self.provider
    }

    pub(crate) fn provider_mut(&mut self) -> &mut dyn Provider {
        &mut *self.provider
    }

    /// Begins to connect.
    pub(crate) fn connect(
        &mut self,
        mut attempt: Attempt,
        options: Arc<ChannelOptions>,
        now: Instant,
    ) {
        let (id, proto) = loop {
            let started = if self.shut_down {
                Err(Error::Closed(DisconnectReason::ReactorGone))
            } else {
                self.start(attempt.to, &attempt.resolve, &options, now)
            };
            match started {
                Ok(started) => break started,
                Err(error) => match attempt.failed(error, &mut self.wakers) {
                    Some(next) => attempt = next,
                    None => return,
                },
            }
        };
        let span = tracing::debug_span!("connection", peer = %attempt.to, role = "initiator");
        let conn = Conn::new(id, proto, options, self.reassembly.clone());
        self.conns.put(Box::new(Entry {
            conn,
            origin: Origin::Connector(Some(attempt)),
            peer: None,
            legacy: None,
            span,
            unsettled: 0,
            _place: self.load.place(),
        }));
        self.schedule(id);
    }

    fn start(
        &mut self,
        to: SocketAddr,
        resolve: &ResolveOptions,
        options: &ChannelOptions,
        now: Instant,
    ) -> Result<(ConnId, proto::Connection), Error> {
        let proto = proto::Connection::new(Role::Initiator, &options.protocol, now)?;
        let id = self.provider.resolve(to, resolve, now)?;
        Ok((id, proto))
    }

    /// Listens on all the places, or on none.
    pub(crate) fn listen(
        &mut self,
        places: &[ListenAt],
        options: Arc<ChannelOptions>,
        shared: &Arc<ListenShared>,
        members: Weak<Members>,
    ) -> Result<Vec<SocketAddr>, Error> {
        if self.shut_down {
            return Err(Error::Closed(DisconnectReason::ReactorGone));
        }
        options.protocol.validate()?;
        let listening = Listening::open(&mut *self.provider, places, options, shared, members)?;
        let local = listening.addresses();
        self.listeners.push(listening);
        Ok(local)
    }

    /// Ends a listener.
    pub(crate) fn unlisten(&mut self, shared: &Arc<ListenShared>) {
        let Some(at) = self
            .listeners
            .iter()
            .position(|l| Arc::ptr_eq(&l.shared, shared))
        else {
            return;
        };
        self.listeners.swap_remove(at).close(&mut *self.provider);
        self.emptied = self.is_idle();
    }

    /// A connection's handle left work in its queues.
    pub(crate) fn attend(&mut self, id: ConnId, now: Instant) {
        self.with(id, now, |entry, cx| entry.conn.pump(cx));
    }

    /// Work for a connection has been done off the lock. If the connection is gone, what was made goes with it.
    pub(crate) fn finished(&mut self, id: ConnId, done: Done, now: Instant) {
        let mut left = Some(done);
        self.with(id, now, |entry, cx| {
            if let Some(done) = left.take() {
                entry.done(done, cx);
            }
        });
        self.retired.extend(left.map(Retired::remains));
    }

    /// Does everything that can be done now. Returns whether there is more.
    pub(crate) fn pass(&mut self, now: Instant) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let more = self
            .provider
            .poll(now, &mut events, self.options.poll_budget);
        // Before the memory is given back that these connections had exposed.
        self.collect_remains();
        for event in events.drain(..) {
            self.handle(event, now);
        }
        self.events = events;
        self.settle_touched(now);
        // A process that was suspended finds its peers' messages before it finds them silent.
        if let Some(due) = self.busy.timers_until(now, more) {
            self.expire(due, now);
            self.take_up(now);
        }
        more
    }

    /// Puts what connections have left behind on the list of what is to be ended.
    pub(crate) fn collect_remains(&mut self) {
        while let Some(remains) = self.provider.take_remains() {
            self.retired.push(Retired::Remains(remains));
        }
    }

    /// When a pass is due at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _, _))| *at);
        [timer, self.take_up, self.provider.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The time, as the provider has it.
    pub(crate) fn now(&self) -> Instant {
        self.provider.now()
    }

    /// Exposes memory of a connection, piece by piece: all of it or nothing. Devices take their time for each, so that
    /// others get their turn meanwhile: `None` wants to be called again with the rest, and with the windows so far.
    pub(crate) fn expose(
        &mut self,
        id: ConnId,
        pieces: &mut impl Iterator<Item = (IoPin, Option<Registration>)>,
        access: RemoteAccess,
        windows: &mut List<Window>,
    ) -> Result<Option<ExposureId>, RdmaError> {
        if self
            .conns
            .get(id)
            .is_none_or(|entry| !entry.conn.negotiated)
        {
            return Err(RdmaError::Closed);
        }
        for _ in 0..WINDOWS_PER_TURN {
            let Some((memory, mut prepared)) = pieces.next() else {
                let exposure = self.with_conn(id, |conn, cx| conn.exposed(windows, cx));
                return exposure.map(Some).ok_or(RdmaError::Closed);
            };
            match self.provider.open_window(id, memory, access, &mut prepared) {
                Ok(window) => windows.push(window),
                Err(error) => {
                    // None of them was bound yet, so that they can be closed.
                    let closed = (windows.iter())
                        .filter_map(|window| self.provider.retire_window(id, window.id)?.1);
                    let rest: List<Registration> = closed.chain(prepared).collect();
                    self.retired.push(Retired::Prepared(rest));
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Works on a connection. `None` if it is gone.
    pub(crate) fn with_conn<T>(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Conn, &mut Context<'_>) -> T,
    ) -> Option<T> {
        // What it left behind goes first, if the provider's side of it is gone already.
        self.collect_remains();
        let now = self.now();
        let mut result = None;
        self.with(id, now, |entry, cx| {
            result = Some(work(&mut entry.conn, cx))
        });
        result
    }

    /// Whether every connection and listener is gone.
    pub(crate) fn is_idle(&self) -> bool {
        self.listeners.is_empty() && self.conns.iter().next().is_none()
    }

    /// Whether the last listener or connection has gone; true once.
    pub(crate) fn has_emptied(&mut self) -> bool {
        std::mem::take(&mut self.emptied)
    }

    /// How many connections there are, in any state.
    pub(crate) fn connections(&self) -> usize {
        self.conns.iter().count()
    }

    /// Ends listeners, and connections in the given way.
    pub(crate) fn shut_down(&mut self, how: Close, now: Instant) {
        self.shut_down = true;
        for listening in std::mem::take(&mut self.listeners) {
            let error = Error::Closed(DisconnectReason::ReactorGone);
            self.wakers.extend(listening.shared.fail(error));
            listening.close(&mut *self.provider);
        }
        let ids: Vec<ConnId> = self.conns.iter().map(|entry| entry.conn.id).collect();
        for id in ids {
            self.with(id, now, |entry, cx| entry.conn.shut_down(how, cx));
        }
    }

    /// The reactor ends with connections left: tells their handles.
    pub(crate) fn abandon(&mut self) {
        let reason = DisconnectReason::ReactorGone;
        for mut entry in self.conns.drain() {
            self.past += &entry.conn.stats();
            entry
                .conn
                .release(&reason, &mut self.wakers, &mut self.retired);
            if let Origin::Connector(attempt) = &mut entry.origin
                && let Some(attempt) = attempt.take()
            {
                self.wakers
                    .extend(attempt.waiter.complete(Err(Error::Closed(reason.clone()))));
            }
            self.retired.push(Retired::Remains(entry));
        }
    }

    /// Counters of all connections, those that have ended included.
    pub(crate) fn totals(&self) -> Stats {
        let mut totals = self.past.clone();
        for entry in self.conns.iter() {
            totals += &entry.conn.stats();
        }
        totals
    }

    /// Counters of a connection that is still there.
    pub(crate) fn stats(&self, id: ConnId) -> Option<Stats> {
        self.conns.get(id).map(|entry| entry.conn.stats())
    }

    /// What registered memory is counted in.
    pub(crate) fn budget(&self) -> Option<&MemoryBudget> {
        self.registry.budget()
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Incoming { listener, incoming } => self.incoming(listener, incoming, now),
            Event::Resolved { conn } => self.with(conn, now, Entry::begin),
            Event::Established {
                conn,
                initiator_depth,
                private_data,
                ..
            } => {
                self.with(conn, now, |entry, cx| {
                    let depth = entry.read_depth(initiator_depth, &private_data, cx);
                    entry.conn.set_read_depth(depth);
                    entry.conn.proto.handle_established(cx.now);
                });
            }
            Event::Received {
                conn,
                buffer,
                invalidated,
            } => {
                self.touch(conn, now, |entry, cx| {
                    entry.conn.received(buffer, invalidated, cx);
                });
            }
            Event::Flushed { conn, buffer } => {
                self.touch(conn, now, |entry, _| entry.conn.flushed(buffer));
            }
            Event::Completed {
                conn,
                request,
                status,
            } => {
                self.touch(conn, now, |entry, cx| {
                    entry.conn.completed(request, status, cx)
                });
            }
            Event::Disconnected { conn, reason } => {
                // What the protocol found in the last messages is the reason, if it found one.
                self.settle_touched(now);
                self.disconnected(conn, reason, now);
            }
            Event::ListenerFailed { listener, error } => {
                if let Some(listening) = self.listeners.iter_mut().find(|l| l.has(listener)) {
                    if listening.lose(listener, &error) {
                        self.take_up = Some(now + TRY_AGAIN);
                    } else {
                        self.wakers.extend(listening.shared.fail(error.into()));
                    }
                }
            }
        }
    }

    /// Takes lost places of listeners up again, if it is time to try.
    fn take_up(&mut self, now: Instant) {
        if self.take_up.is_none_or(|at| now < at) {
            return;
        }
        let mut lost = false;
        for listening in self.listeners.iter_mut().filter(|l| l.is_partly_lost()) {
            lost |= listening.take_up(&mut *self.provider);
        }
        self.take_up = lost.then(|| now + TRY_AGAIN);
    }

    /// Works on a connection, then moves what that made possible.
    fn with(
        &mut self,
        id: ConnId,
        now: Instant,
        work: impl FnOnce(&mut Entry, &mut Setup<'_, '_>),
    ) {
        let settled = self.work_on(id, now, |entry, cx| {
            work(entry, cx);
            entry.unsettled = 0;
            entry.settle(cx);
        });
        if settled.is_some() {
            self.schedule(id);
        }
    }

    /// Lets an established connection take in an event; it moves on once per pass and not once per
    /// event. One doorbell then carries what all of them made possible, and grants are not handed
    /// out one by one: a peer that waits for credits would send, and be granted, single fragments
    /// for ever.
    fn touch(
        &mut self,
        id: ConnId,
        now: Instant,
        work: impl FnOnce(&mut Entry, &mut Setup<'_, '_>),
    ) {
        let taken = self.work_on(id, now, |entry, cx| {
            work(entry, cx);
            entry.unsettled += 1;
            (entry.unsettled, entry.conn.negotiated)
        });
        match taken {
            // During set-up an event may decide what the next one means.
            Some((EVENTS_PER_TURN.., _) | (_, false)) => self.with(id, now, |_, _| {}),
            Some((1, true)) => self.touched.push(id),
            _ => {}
        }
    }

    fn settle_touched(&mut self, now: Instant) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            if self.conns.get(id).is_some_and(|entry| entry.unsettled > 0) {
                self.with(id, now, |_, _| {});
            }
        }
        self.touched = touched;
    }

    fn work_on<T>(
        &mut self,
        id: ConnId,
        now: Instant,
        work: impl FnOnce(&mut Entry, &mut Setup<'_, '_>) -> T,
    ) -> Option<T> {
        let mut entry = self.conns.take(id)?;
        let span = entry.span.clone();
        let _guard = span.enter();
        let mut cx = Setup {
            cx: Context {
                provider: &mut *self.provider,
                now,
                wakers: &mut self.wakers,
                retired: &mut self.retired,
            },
            registry: &self.registry,
            helper: &self.helper,
            reactor: &self.reactor,
        };
        let result = work(&mut entry, &mut cx);
        self.conns.put(entry);
        Some(result)
    }

    fn incoming(&mut self, listener: ListenerId, incoming: Incoming, now: Instant) {
        let Some(listening) = self.listeners.iter().find(|l| l.has(listener)) else {
            return self.provider.reject(incoming);
        };
        let peer = incoming.peer().remote;
        let Some(admitted) = listening.shared.admit(peer.ip(), &listening.options) else {
            debug!(%peer, "refused: too many unfinished connections, or not allowed");
            return self.provider.reject(incoming);
        };
        let arrival = Arrival {
            incoming,
            shared: listening.shared.clone(),
            admitted,
            options: listening.options.clone(),
            place: self.load.place(),
        };
        match listening
            .members
            .upgrade()
            .and_then(|m| m.other(&self.load))
        {
            Some((other, place)) => {
                let arrival = Arrival { place, ..arrival };
                self.handed.push((other, Box::new(arrival)));
            }
            None => self.take_in(arrival, now),
        }
    }

    /// A connection request that a listener of this reactor, or of another in its group, has let in.
    pub(crate) fn take_in(&mut self, arrival: Arrival, now: Instant) {
        let Arrival {
            incoming,
            shared,
            admitted,
            options,
            place,
        } = arrival;
        if self.shut_down {
            return self.provider.reject(incoming);
        }
        let peer = incoming.peer().clone();
        let legacy = rdma_header::Header::parse(incoming.private_data());
        let result = proto::Connection::new(Role::Acceptor, &options.protocol, now)
            .map_err(Error::from)
            .and_then(|proto| Ok((self.provider.adopt(incoming, now)?, proto)));
        let (id, proto) = match result {
            Ok(made) => made,
            Err(error) => {
                warn!(peer = %peer.remote, %error, "a connection could not be taken");
                return shared.count_failure(peer.remote, error);
            }
        };
        let span = tracing::debug_span!("connection", peer = %peer.remote, role = "acceptor");
        let origin = Origin::Listener {
            shared,
            admitted: Some(admitted),
        };
        let conn = Conn::new(id, proto, options, self.reassembly.clone());
        self.conns.put(Box::new(Entry {
            conn,
            origin,
            peer: Some(peer),
            legacy,
            span,
            unsettled: 0,
            _place: place,
        }));
        self.with(id, now, Entry::begin);
    }

    fn disconnected(&mut self, id: ConnId, reason: LossReason, now: Instant) {
        let Some(mut entry) = self.conns.take(id) else {
            return;
        };
        self.emptied = self.is_idle();
        let mut cx = Context {
            provider: &mut *self.provider,
            now,
            wakers: &mut self.wakers,
            retired: &mut self.retired,
        };
        let negotiated = entry.conn.negotiated;
        let reason = entry.conn.lost(reason, &mut cx);
        self.past += &entry.conn.stats();
        entry.span.in_scope(|| {
            if negotiated {
                info!(%reason, "disconnected");
            } else {
                debug!(%reason, "not connected");
            }
        });
        let error = match reason {
            DisconnectReason::Rdma(error) => Error::Rdma(error),
            reason => Error::Closed(reason),
        };
        match &mut entry.origin {
            Origin::Connector(attempt) => {
                if let Some(attempt) = attempt.take()
                    && let Some(next) = attempt.failed(error, &mut self.wakers)
                {
                    self.connect(next, entry.conn.options.clone(), now);
                }
            }
            Origin::Listener { shared, admitted } => {
                if let (Some(_), Some(peer)) = (admitted, &entry.peer) {
                    shared.count_failure(peer.remote, error);
                }
            }
        }
        // Its slots may be the last of their domain.
        self.retired.push(Retired::Remains(entry));
    }
}
