//! The core of a reactor: one provider, its connections, listeners and timers, under one lock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::conn::{Conn, Context};
use super::listener::ListenShared;
use super::options::{ChannelOptions, ReactorOptions};
use super::pool::Pools;
use super::rdma_header;
use super::reactor::Shared;
use super::setup::{Attempt, Entry, Origin, Setup};
use crate::proto::{self, Role};
use crate::rdma::{
    Close, ConnId, Event, Incoming, IoPin, ListenerId, LossReason, Provider, RdmaError,
    RdmaOperation, Registration, RemoteAccess, ResolveOptions, Window,
};
use crate::transport::{DisconnectReason, Error, Stats};

/// Everything that the reactor's lock protects.
pub(crate) struct Core {
    provider: Box<dyn Provider>,
    options: ReactorOptions,
    conns: Vec<Option<Box<Entry>>>,
    listeners: Vec<Listening>,
    /// One set of pools per registration domain that is in use.
    pools: Vec<Weak<Mutex<Pools>>>,
    events: VecDeque<Event>,
    timers: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    pub(crate) wakers: Vec<Waker>,
    /// Until when the driver sleeps, while it does; `Some(None)`: without limit.
    pub(crate) sleeping: Option<Option<Instant>>,
    shut_down: bool,
    /// The reactor's handle, for the channels that are made here.
    reactor: Weak<Shared>,
}

/// A listener: one or more addresses.
struct Listening {
    ids: Vec<ListenerId>,
    shared: Arc<ListenShared>,
    options: Arc<ChannelOptions>,
}

impl Core {
    pub(crate) fn new(
        provider: Box<dyn Provider>,
        options: ReactorOptions,
        reactor: Weak<Shared>,
    ) -> Self {
        Self {
            provider,
            options,
            conns: Vec::new(),
            listeners: Vec::new(),
            pools: Vec::new(),
            events: VecDeque::new(),
            timers: BinaryHeap::new(),
            wakers: Vec::new(),
            sleeping: None,
            shut_down: false,
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
    pub(crate) fn connect(&mut self, attempt: Attempt, options: Arc<ChannelOptions>, now: Instant) {
        let started = if self.shut_down {
            Err(Error::Closed(DisconnectReason::ReactorGone))
        } else {
            self.start(attempt.to, &attempt.resolve, &options, now)
        };
        match started {
            Ok((id, proto)) => {
                let span =
                    tracing::debug_span!("connection", peer = %attempt.to, role = "initiator");
                let conn = Conn::new(id, proto, options);
                self.insert(Entry {
                    conn,
                    origin: Origin::Connector(Some(attempt)),
                    peer: None,
                    legacy: None,
                    span,
                });
                self.schedule(id);
            }
            Err(error) => self.wakers.extend(attempt.completer.complete(Err(error))),
        }
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

    /// Listens on all the addresses, or on none.
    pub(crate) fn listen(
        &mut self,
        addresses: &[SocketAddr],
        options: Arc<ChannelOptions>,
        shared: &Arc<ListenShared>,
    ) -> Result<Vec<SocketAddr>, Error> {
        options.protocol.validate()?;
        let mut listen = options.listen.clone();
        listen.type_of_service = listen.type_of_service.or(options.type_of_service);
        let mut ids: Vec<ListenerId> = Vec::new();
        for address in addresses {
            match self.provider.listen(*address, &listen) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    for id in ids {
                        self.provider.unlisten(id);
                    }
                    return Err(error.into());
                }
            }
        }
        let local = ids
            .iter()
            .filter_map(|id| self.provider.listener_address(*id))
            .collect();
        self.listeners.push(Listening {
            ids,
            shared: shared.clone(),
            options,
        });
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
        for id in self.listeners.swap_remove(at).ids {
            self.provider.unlisten(id);
        }
    }

    /// A connection's handle left work in its queues.
    pub(crate) fn attend(&mut self, id: ConnId, now: Instant) {
        self.with(id, now, |entry, cx| entry.conn.pump(cx));
    }

    /// Does everything that can be done now. Returns whether there is more.
    pub(crate) fn pass(&mut self, now: Instant) -> bool {
        let mut events = std::mem::take(&mut self.events);
        let more = self
            .provider
            .poll(now, &mut events, self.options.poll_budget);
        for event in events.drain(..) {
            self.handle(event, now);
        }
        self.events = events;
        // A process that was suspended finds its peers' messages before it finds them silent.
        if !more {
            self.expire(now);
        }
        more
    }

    /// When a pass is due at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _, _))| *at);
        [timer, self.provider.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The time, as the provider has it.
    pub(crate) fn now(&self) -> Instant {
        self.provider.now()
    }

    /// Exposes memory of a connection.
    pub(crate) fn expose(
        &mut self,
        id: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        registration: Option<Registration>,
    ) -> Result<Window, RdmaError> {
        if self.entry(id).is_none_or(|entry| !entry.conn.negotiated) {
            return Err(RdmaError::Closed);
        }
        let window = self
            .provider
            .open_window(id, memory, access, registration)?;
        self.with_conn(id, |conn, cx| conn.exposed(&window, cx));
        Ok(window)
    }

    /// Works on a connection. `None` if it is gone.
    pub(crate) fn with_conn<T>(
        &mut self,
        id: ConnId,
        work: impl FnOnce(&mut Conn, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let now = self.now();
        let mut result = None;
        self.with(id, now, |entry, cx| {
            result = Some(work(&mut entry.conn, cx))
        });
        result
    }

    /// Whether every connection and listener is gone.
    pub(crate) fn is_idle(&self) -> bool {
        self.listeners.is_empty() && self.conns.iter().all(Option::is_none)
    }

    /// How many connections there are, in any state.
    pub(crate) fn connections(&self) -> usize {
        self.conns.iter().flatten().count()
    }

    /// Ends listeners, and connections in the given way.
    pub(crate) fn shut_down(&mut self, how: Close, now: Instant) {
        self.shut_down = true;
        for listening in std::mem::take(&mut self.listeners) {
            for id in listening.ids {
                self.provider.unlisten(id);
            }
            let error = Error::Closed(DisconnectReason::ReactorGone);
            self.wakers.extend(listening.shared.fail(error));
        }
        for entry in self.conns.iter().flatten() {
            let shared = &entry.conn.shared;
            shared.outbox().close.get_or_insert(match how {
                Close::Abort => super::shared::Closing::Abort,
                Close::Drain(deadline) => {
                    super::shared::Closing::Graceful(deadline.saturating_duration_since(now))
                }
            });
        }
        let ids: Vec<ConnId> = self
            .conns
            .iter()
            .flatten()
            .map(|entry| entry.conn.id)
            .collect();
        for id in ids {
            self.with(id, now, |entry, cx| {
                if entry.conn.negotiated {
                    entry.conn.pump(cx);
                } else {
                    entry.conn.fail(DisconnectReason::ReactorGone, cx);
                }
            });
        }
    }

    /// The reactor ends with connections left: tells their handles.
    pub(crate) fn abandon(&mut self) {
        let reason = DisconnectReason::ReactorGone;
        for entry in self.conns.drain(..).flatten() {
            entry.conn.shared.finish(&reason, &mut self.wakers);
            match entry.origin {
                Origin::Connector(Some(attempt)) => {
                    self.wakers.extend(
                        attempt
                            .completer
                            .complete(Err(Error::Closed(reason.clone()))),
                    );
                }
                Origin::Connector(None) | Origin::Listener { .. } => {}
            }
        }
    }

    /// Counters of a connection that is still there.
    pub(crate) fn stats(&self, id: ConnId) -> Option<Stats> {
        self.entry(id).map(|entry| entry.conn.stats())
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Incoming { listener, incoming } => self.incoming(listener, incoming, now),
            Event::Resolved { conn } => self.with(conn, now, Entry::resolved),
            Event::Established {
                conn,
                initiator_depth,
                ..
            } => {
                self.with(conn, now, |entry, cx| {
                    entry.conn.set_read_depth(initiator_depth);
                    entry.conn.proto.handle_established(cx.now);
                });
            }
            Event::Received {
                conn,
                buffer,
                invalidated,
            } => {
                self.with(conn, now, |entry, cx| {
                    entry.conn.received(buffer, invalidated, cx);
                });
            }
            Event::Flushed { conn, buffer } => {
                self.with(conn, now, |entry, _| entry.conn.flushed(buffer));
            }
            Event::Completed {
                conn,
                request,
                status,
            } => {
                self.with(conn, now, |entry, cx| {
                    entry.conn.completed(request, status, cx)
                });
            }
            Event::Disconnected { conn, reason } => self.disconnected(conn, reason, now),
            Event::ListenerFailed { listener, error } => {
                warn!(%error, "a listener failed");
                if let Some(listening) = self.listeners.iter().find(|l| l.ids.contains(&listener)) {
                    self.wakers.extend(listening.shared.fail(error.into()));
                }
            }
        }
    }

    /// Works on a connection, then moves what that made possible.
    fn with(
        &mut self,
        id: ConnId,
        now: Instant,
        work: impl FnOnce(&mut Entry, &mut Setup<'_, '_>),
    ) {
        let Some(place) = self.conns.get_mut(id.index as usize) else {
            return;
        };
        let Some(mut entry) = place.take_if(|entry| entry.conn.id == id) else {
            return;
        };
        let span = entry.span.clone();
        let _guard = span.enter();
        let mut cx = Setup {
            cx: Context {
                provider: &mut *self.provider,
                now,
                wakers: &mut self.wakers,
            },
            pools: &mut self.pools,
            huge_pages: self.options.huge_pages,
            reactor: &self.reactor,
        };
        work(&mut entry, &mut cx);
        entry.settle(&mut cx);
        self.conns[id.index as usize] = Some(entry);
        self.schedule(id);
    }

    fn incoming(&mut self, listener: ListenerId, incoming: Incoming, now: Instant) {
        let Some(listening) = self.listeners.iter().find(|l| l.ids.contains(&listener)) else {
            return self.provider.reject(incoming);
        };
        let peer = incoming.peer().clone();
        let shared = listening.shared.clone();
        let options = listening.options.clone();
        if !shared.admit(peer.remote.ip(), &options) {
            debug!(peer = %peer.remote, "refused: too many unfinished connections, or not allowed");
            return self.provider.reject(incoming);
        }
        let legacy = rdma_header::Header::parse(incoming.private_data());
        let result = proto::Connection::new(Role::Acceptor, &options.protocol, now)
            .map_err(Error::from)
            .and_then(|proto| Ok((self.provider.adopt(incoming, now)?, proto)));
        let (id, proto) = match result {
            Ok(made) => made,
            Err(error) => {
                warn!(peer = %peer.remote, %error, "a connection could not be taken");
                return shared.left(peer.remote.ip());
            }
        };
        let span = tracing::debug_span!("connection", peer = %peer.remote, role = "acceptor");
        let origin = Origin::Listener {
            shared,
            peer: peer.remote.ip(),
            negotiating: true,
        };
        let conn = Conn::new(id, proto, options);
        self.insert(Entry {
            conn,
            origin,
            peer: Some(peer),
            legacy,
            span,
        });
        self.with(id, now, Entry::accept);
    }

    fn disconnected(&mut self, id: ConnId, reason: LossReason, now: Instant) {
        let Some(place) = self.conns.get_mut(id.index as usize) else {
            return;
        };
        let Some(mut entry) = place.take_if(|entry| entry.conn.id == id) else {
            return;
        };
        let mut cx = Context {
            provider: &mut *self.provider,
            now,
            wakers: &mut self.wakers,
        };
        let negotiated = entry.conn.negotiated;
        let reason = entry.conn.lost(reason, &mut cx);
        entry.span.in_scope(|| {
            if negotiated {
                info!(%reason, "disconnected");
            } else {
                debug!(%reason, "not connected");
            }
        });
        match entry.origin {
            // Soft-iWARP binds the port that the connection manager chose from a space of its own: a TCP connection
            // may have it. Another attempt gets another port.
            Origin::Connector(Some(mut attempt))
                if attempt.again > 0
                    && port_is_taken(&reason)
                    && attempt.resolve.local.is_none() =>
            {
                attempt.again -= 1;
                self.connect(attempt, entry.conn.options.clone(), now);
            }
            Origin::Connector(Some(attempt)) => {
                let error = match reason {
                    DisconnectReason::Rdma(error) => Error::Rdma(error),
                    reason => Error::Closed(reason),
                };
                self.wakers.extend(attempt.completer.complete(Err(error)));
            }
            Origin::Connector(None) => {}
            Origin::Listener {
                shared,
                peer,
                negotiating,
            } => {
                if negotiating {
                    shared.left(peer);
                    shared.count_failure();
                }
            }
        }
        self.pools.retain(|pools| pools.strong_count() > 0);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            let id = ConnId { index, generation };
            let Some(entry) = self.entry_mut(id) else {
                continue;
            };
            if entry.conn.scheduled != Some(at) {
                // The connection was put into the queue again for an earlier time.
                continue;
            }
            entry.conn.scheduled = None;
            if entry
                .conn
                .deadline()
                .is_some_and(|deadline| deadline <= now)
            {
                self.with(id, now, |entry, cx| entry.conn.timeout(cx));
            } else {
                self.schedule(id);
            }
        }
    }

    /// Puts a connection into the timer queue, unless it stands there for an earlier time already: timers that are
    /// set back with every message cost nothing.
    fn schedule(&mut self, id: ConnId) {
        let Some(entry) = self.entry_mut(id) else {
            return;
        };
        let Some(deadline) = entry.conn.deadline() else {
            return;
        };
        if entry
            .conn
            .scheduled
            .is_none_or(|scheduled| deadline < scheduled)
        {
            entry.conn.scheduled = Some(deadline);
            self.timers
                .push(Reverse((deadline, id.index, id.generation)));
        }
    }

    fn insert(&mut self, entry: Entry) {
        let index = entry.conn.id.index as usize;
        if self.conns.len() <= index {
            self.conns.resize_with(index + 1, || None);
        }
        self.conns[index] = Some(Box::new(entry));
    }

    fn entry(&self, id: ConnId) -> Option<&Entry> {
        self.conns
            .get(id.index as usize)?
            .as_deref()
            .filter(|entry| entry.conn.id == id)
    }

    fn entry_mut(&mut self, id: ConnId) -> Option<&mut Entry> {
        self.conns
            .get_mut(id.index as usize)?
            .as_deref_mut()
            .filter(|entry| entry.conn.id == id)
    }
}

fn port_is_taken(reason: &DisconnectReason) -> bool {
    matches!(
        reason,
        DisconnectReason::Rdma(RdmaError::Os { operation: RdmaOperation::Connect, errno })
            if *errno == libc::EADDRINUSE
    )
}
