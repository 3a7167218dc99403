//! The provider: tables of connections and listeners, the list of those with work, timers, and the
//! trait.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::IwarpConfig;
use super::conn::Conn;
use super::handshake::{HandshakeError, Request};
use super::listener::{Accepted, HalfOpen, Listener};
use super::mpa;
use super::slots::{Slots, Token};
use super::stream::{QueuePair, Shared};
use super::sys::{Epoll, Readiness, Socket};
use crate::rdma::{
    Armed, Capabilities, Close, ConnId, ConnectParams, Domain, Event, Exposure, Fabric,
    FabricFilter, Incoming, IoBuf, IoPin, ListenOptions, ListenerId, LossReason, Operation,
    PeerInfo, PlainDomain, PostError, Provider, ProviderKind, QpOptions, RdmaError, RdmaOperation,
    Registration, RemoteAccess, ResolveOptions, SendRequest, Window, WindowId,
};

/// The device name of every connection.
pub(super) const DEVICE: &str = "iwarp";
/// RDMA reads in flight in one direction, at most.
pub(super) const MAX_DEPTH: u16 = 128;
/// Bytes of the buffer that everything small is read into.
const SCRATCH: usize = 64 * 1024;

/// A software RNIC over TCP sockets of this process.
#[derive(Debug)]
pub struct IwarpProvider {
    config: IwarpConfig,
    capabilities: Capabilities,
    domain: Arc<dyn Domain>,
    epoll: Epoll,
    listeners: Slots<Listener>,
    half_open: Slots<HalfOpen>,
    conns: Slots<Conn>,
    /// Those that want a turn, each once.
    work: VecDeque<Token>,
    timers: BinaryHeap<Reverse<(Instant, Token)>>,
    /// What one call of epoll said.
    readiness: Vec<Readiness>,
    /// Whether the last poll asked epoll.
    looked: bool,
    shared: Shared,
}

impl IwarpProvider {
    /// A provider without connections.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new(config: IwarpConfig) -> Result<Self, RdmaError> {
        let epoll = Epoll::new().map_err(|error| RdmaError::os(RdmaOperation::Open, &error))?;
        Ok(Self {
            config,
            capabilities: Capabilities::new(DEVICE, Fabric::Iwarp, Exposure::SoftwareWindow),
            domain: PlainDomain::shared(),
            epoll,
            listeners: Slots::new(),
            half_open: Slots::new(),
            conns: Slots::new(),
            work: VecDeque::new(),
            timers: BinaryHeap::new(),
            readiness: Vec::new(),
            looked: false,
            shared: Shared {
                scratch: vec![0; SCRATCH],
                spare: Vec::new(),
                events: VecDeque::new(),
            },
        })
    }

    fn conn(&self, id: ConnId) -> Option<&Conn> {
        self.conns.find(id.index, id.generation)
    }

    fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.find_mut(id.index, id.generation)
    }

    /// Puts something in the list of work, once.
    fn enqueue(&mut self, token: Token) {
        let queued = match token {
            Token::Listener(index, generation) => self
                .listeners
                .find_mut(index, generation)
                .map(|listener| &mut listener.queued),
            Token::HalfOpen(index, generation) => self
                .half_open
                .find_mut(index, generation)
                .map(|half_open| &mut half_open.queued),
            Token::Conn(index, generation) => self
                .conns
                .find_mut(index, generation)
                .map(|conn| &mut conn.queued),
        };
        if let Some(queued) = queued
            && !*queued
        {
            *queued = true;
            self.work.push_back(token);
        }
    }

    /// Asks epoll what became ready and puts it in the list of work.
    fn look(&mut self) -> io::Result<()> {
        let mut readiness = std::mem::take(&mut self.readiness);
        readiness.clear();
        match self.epoll.ready() {
            Ok(ready) => readiness.extend(ready),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                self.readiness = readiness;
                return Err(error);
            }
        }
        for ready in &readiness {
            let token = Token::from_bits(ready.token);
            if let Token::Conn(index, generation) = token
                && let Some(conn) = self.conns.find_mut(index, generation)
            {
                conn.ready(*ready);
            }
            self.enqueue(token);
        }
        self.readiness = readiness;
        Ok(())
    }

    fn expire_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, token))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            if let Token::Conn(index, generation) = token
                && let Some(conn) = self.conns.find_mut(index, generation)
                && conn.timer == Some(at)
            {
                conn.timer = None;
            }
            self.enqueue(token);
        }
    }

    fn work_on(&mut self, token: Token, now: Instant) {
        match token {
            Token::Listener(index, generation) => self.accept_on(index, generation, now),
            Token::HalfOpen(index, generation) => self.read_request(index, generation, now),
            Token::Conn(index, generation) => self.work_on_conn(index, generation, now),
        }
    }

    fn work_on_conn(&mut self, index: u32, generation: u32, now: Instant) {
        let Some(conn) = self.conns.find_mut(index, generation) else {
            return;
        };
        conn.queued = false;
        let epoll = &self.epoll;
        let watch = |socket: &Socket| epoll.add(socket, Token::Conn(index, generation).to_bits());
        match conn.turn(&self.config, &mut self.shared, now, watch) {
            Some(reason) => self.finish(ConnId { index, generation }, reason),
            None => self.after_turn(index, generation),
        }
    }

    /// Sets the timer and comes back where there is more to do.
    fn after_turn(&mut self, index: u32, generation: u32) {
        let token = Token::Conn(index, generation);
        let Some(conn) = self.conns.find_mut(index, generation) else {
            return;
        };
        if let Some(at) = conn.deadline()
            && conn.timer.is_none_or(|timer| at < timer)
        {
            conn.timer = Some(at);
            self.timers.push(Reverse((at, token)));
        }
        if conn.wants_turn() {
            self.enqueue(token);
        }
    }

    fn finish(&mut self, id: ConnId, reason: LossReason) {
        if let Some(conn) = self.conns.remove(id.index, id.generation) {
            conn.finish(reason, &mut self.shared.events);
        }
    }

    fn accept_on(&mut self, index: u32, generation: u32, now: Instant) {
        let Some(listener) = self.listeners.find_mut(index, generation) else {
            return;
        };
        listener.queued = false;
        let mut accepted = Vec::new();
        let outcome = listener.accept(now, self.config.request_timeout, |half_open| {
            accepted.push(half_open);
        });
        let id = listener.id;
        for half_open in accepted {
            let (deadline, peer) = (half_open.deadline, half_open.peer);
            let (index, generation) = self.half_open.insert(|_, _| half_open);
            let token = Token::HalfOpen(index, generation);
            let watched = self
                .half_open
                .find(index, generation)
                .map(|half_open| self.epoll.add(&half_open.socket, token.to_bits()));
            if let Some(Err(error)) = watched {
                tracing::warn!(%peer, %error, "cannot watch an accepted connection");
                self.forget_half_open(index, generation);
                continue;
            }
            self.timers.push(Reverse((deadline, token)));
        }
        match outcome {
            Accepted::All => {}
            Accepted::More => self.enqueue(Token::Listener(index, generation)),
            Accepted::Rests(until) => self
                .timers
                .push(Reverse((until, Token::Listener(index, generation)))),
            Accepted::Failed(error) => {
                self.listeners.remove(index, generation);
                self.shared.events.push_back(Event::ListenerFailed {
                    listener: id,
                    error: RdmaError::os(RdmaOperation::Listen, &error),
                });
            }
        }
    }

    fn read_request(&mut self, index: u32, generation: u32, now: Instant) {
        let Some(half_open) = self.half_open.find_mut(index, generation) else {
            return;
        };
        half_open.queued = false;
        let result = half_open.request.read(&half_open.socket).and_then(|frame| {
            if let Some(frame) = &frame {
                mpa::acceptable(self.config.revision, frame).map_err(HandshakeError::Invalid)?;
            }
            Ok(frame)
        });
        let frame = match result {
            Ok(None) if now < half_open.deadline => return,
            Ok(None) => {
                tracing::debug!(peer = %half_open.peer, "no MPA request in time");
                None
            }
            Ok(frame) => frame,
            Err(error) => {
                tracing::debug!(peer = %half_open.peer, ?error, "no valid MPA request");
                None
            }
        };
        let Some(half_open) = self.forget_half_open(index, generation) else {
            return;
        };
        let Some(frame) = frame else {
            return;
        };
        // The connection may be adopted by another provider, which watches it itself.
        let moved = self.epoll.remove(&half_open.socket);
        let (Ok(()), Ok(local)) = (moved, half_open.socket.local()) else {
            return;
        };
        let private_data = frame.private_data.clone();
        let request = Request::new(half_open.socket, frame);
        self.shared.events.push_back(Event::Incoming {
            listener: half_open.listener,
            incoming: Incoming::new(
                PeerInfo::new(local, half_open.peer, DEVICE),
                private_data,
                Box::new(request),
            ),
        });
    }

    fn forget_half_open(&mut self, index: u32, generation: u32) -> Option<HalfOpen> {
        let half_open = self.half_open.remove(index, generation)?;
        let id = half_open.listener;
        if let Some(listener) = self.listeners.find_mut(id.index, id.generation)
            && listener.done(half_open.peer)
        {
            self.enqueue(Token::Listener(id.index, id.generation));
        }
        Some(half_open)
    }

    /// Hands out events. Returns how many.
    fn drain_events(&mut self, out: &mut VecDeque<Event>, budget: usize) -> usize {
        let count = self.shared.events.len().min(budget);
        out.extend(self.shared.events.drain(..count));
        count
    }
}

impl Provider for IwarpProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Iwarp
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, RdmaError> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => RdmaError::AddressInUse(address),
            Some(libc::EADDRNOTAVAIL) => RdmaError::NotLocal(address),
            Some(libc::EACCES) => RdmaError::PrivilegedPort(address),
            _ => RdmaError::os(RdmaOperation::Listen, &error),
        };
        if let Some(wanted) = &options.device
            && wanted != DEVICE
        {
            let wanted = wanted.clone();
            return Err(RdmaError::WrongDevice { address, wanted });
        }
        let socket =
            Socket::listen(address, options.backlog, options.type_of_service).map_err(failed)?;
        let address = socket.local().map_err(failed)?;
        let (index, generation) = self.listeners.insert(|index, generation| {
            let id = ListenerId { index, generation };
            Listener::new(id, socket, address, options)
        });
        let token = Token::Listener(index, generation);
        if let Some(listener) = self.listeners.find(index, generation)
            && let Err(error) = self.epoll.add(listener.socket(), token.to_bits())
        {
            self.listeners.remove(index, generation);
            return Err(failed(error));
        }
        Ok(ListenerId { index, generation })
    }

    fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr> {
        let listener = self.listeners.find(listener.index, listener.generation)?;
        Some(listener.address)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        // Handshakes that have begun end as they would have; those who wait for them find no
        // listener.
        self.listeners.remove(listener.index, listener.generation);
    }

    fn resolve(
        &mut self,
        to: SocketAddr,
        options: &ResolveOptions,
        _now: Instant,
    ) -> Result<ConnId, RdmaError> {
        if let Some(wanted) = options.only
            && wanted != FabricFilter::Iwarp
        {
            return Err(RdmaError::WrongFabric {
                address: to,
                wanted,
            });
        }
        let (index, generation) = self
            .conns
            .insert(|index, generation| Conn::resolved(ConnId { index, generation }, to, options));
        let conn = ConnId { index, generation };
        // The route is TCP's business. Connecting waits for `connect`: an open TCP connection
        // without its MPA request is a burden to the peer, and more than that to Linux siw.
        self.shared.events.push_back(Event::Resolved { conn });
        Ok(conn)
    }

    fn adopt(&mut self, incoming: Incoming, _now: Instant) -> Result<ConnId, RdmaError> {
        let peer = incoming.peer().clone();
        let request = incoming
            .into_request()
            .downcast::<Request>()
            .map_err(|_| RdmaError::State(RdmaOperation::Accept))?;
        let (index, generation) = self.conns.insert(|index, generation| {
            Conn::adopted(ConnId { index, generation }, peer, *request)
        });
        Ok(ConnId { index, generation })
    }

    fn reject(&mut self, incoming: Incoming) {
        // Dropping the request inside refuses it.
        drop(incoming);
    }

    fn peer(&self, conn: ConnId) -> Option<PeerInfo> {
        self.conn(conn).map(|conn| conn.peer.clone())
    }

    fn capabilities(&self, conn: ConnId) -> Option<&Capabilities> {
        self.conn(conn).map(|_| &self.capabilities)
    }

    fn domain(&mut self, conn: ConnId) -> Result<Arc<dyn Domain>, RdmaError> {
        // A tag is valid on its connection only, and local memory needs no registration: one domain
        // serves all.
        self.conn(conn)
            .map(|_| self.domain.clone())
            .ok_or(RdmaError::Closed)
    }

    fn create_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError> {
        let operation = RdmaOperation::CreateQueuePair;
        for (asked, limit) in [
            (options.send_depth, self.capabilities.max_send_depth),
            (options.receive_depth, self.capabilities.max_receive_depth),
        ] {
            if asked > limit {
                return Err(RdmaError::Limit {
                    operation,
                    asked: asked.into(),
                    limit: limit.into(),
                });
            }
        }
        let conn = self.conn_mut(conn).ok_or(RdmaError::Closed)?;
        if !conn.may_create_qp() {
            return Err(RdmaError::State(operation));
        }
        let qp = QueuePair::new(options).map_err(|error| RdmaError::os(operation, &error))?;
        conn.qp = Some(qp);
        Ok(())
    }

    fn connect(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError> {
        let ConnId { index, generation } = conn;
        let conn = self
            .conns
            .find_mut(index, generation)
            .ok_or(RdmaError::Closed)?;
        let socket = conn.connect(params, &self.config, now)?;
        let token = Token::Conn(index, generation);
        let watched = self.epoll.add(socket, token.to_bits());
        watched.map_err(|error| RdmaError::os(RdmaOperation::Connect, &error))?;
        self.after_turn(index, generation);
        Ok(())
    }

    fn accept(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        _now: Instant,
    ) -> Result<(), RdmaError> {
        let ConnId { index, generation } = conn;
        let conn = self
            .conns
            .find_mut(index, generation)
            .ok_or(RdmaError::Closed)?;
        let token = Token::Conn(index, generation);
        let epoll = &self.epoll;
        conn.accept(params, &self.config, &mut self.shared, |socket| {
            epoll.add(socket, token.to_bits())
        })?;
        self.after_turn(index, generation);
        Ok(())
    }

    fn post_receive(
        &mut self,
        conn: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        let conn = self.conn_mut(conn).ok_or(PostError::Closed)?;
        if !conn.is_alive() {
            return Err(PostError::Closed);
        }
        let qp = conn.qp.as_mut().ok_or(PostError::Invalid)?;
        while !buffers.is_empty() {
            if qp.receiver.posted() >= qp.receive_depth {
                return Err(PostError::Full);
            }
            if let Some(buffer) = buffers.pop_front() {
                qp.receiver.post(buffer);
            }
        }
        Ok(())
    }

    fn post_send(
        &mut self,
        id: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        let ConnId { index, generation } = id;
        let conn = self
            .conns
            .find_mut(index, generation)
            .ok_or(PostError::Closed)?;
        if !conn.is_alive() {
            return Err(PostError::Closed);
        }
        let qp = conn.qp.as_mut().ok_or(PostError::Invalid)?;
        let mut result = Ok(());
        while let Some(request) = chain.front() {
            if qp.transmitter.len() >= qp.send_depth {
                result = Err(PostError::Full);
                break;
            }
            let valid = match &request.operation {
                // D03: a message is shorter than 2^32 bytes.
                operation if operation.bytes() > self.capabilities.max_message as usize => false,
                Operation::Bind { window } | Operation::Invalidate { window } => {
                    qp.tags.exists(*window)
                }
                _ => true,
            };
            if !valid {
                result = Err(PostError::Invalid);
                break;
            }
            if let Some(request) = chain.pop_front() {
                qp.transmitter.post(request);
            }
        }
        if conn.send(&mut self.shared) {
            self.enqueue(Token::Conn(index, generation));
        }
        result
    }

    fn open_window(
        &mut self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        _prepared: &mut Option<Registration>,
    ) -> Result<Window, RdmaError> {
        let operation = RdmaOperation::Bind;
        let conn = self.conn_mut(conn).ok_or(RdmaError::Closed)?;
        let qp = conn.qp.as_mut().ok_or(RdmaError::State(operation))?;
        let len = u32::try_from(memory.len()).map_err(|_| RdmaError::Limit {
            operation,
            asked: memory.len() as u64,
            limit: u32::MAX.into(),
        })?;
        let exhausted = RdmaError::Limit {
            operation,
            asked: 1,
            limit: 0,
        };
        let (id, key) = qp.tags.open(memory, access).ok_or(exhausted)?;
        Ok(Window {
            id,
            key,
            address: 0,
            len,
            needs_bind: true,
        })
    }

    fn retire_window(
        &mut self,
        conn: ConnId,
        window: WindowId,
    ) -> Option<(IoPin, Option<Registration>)> {
        let memory = self.conn_mut(conn)?.qp.as_mut()?.tags.close(window)?;
        Some((memory, None))
    }

    fn poll(&mut self, now: Instant, out: &mut VecDeque<Event>, budget: usize) -> bool {
        // What posting has completed is handed out without a system call, but not twice in a row:
        // sockets must not wait for somebody who posts all the time. The answer is that there may be
        // more, since nobody has looked.
        if self.looked && !self.shared.events.is_empty() {
            self.looked = false;
            self.drain_events(out, budget);
            return true;
        }
        self.looked = true;
        if let Err(error) = self.look() {
            // Cannot happen to a descriptor that is ours; connections still end by their timers.
            tracing::error!(%error, "epoll");
        }
        self.expire_timers(now);
        let mut left = budget - self.drain_events(out, budget);
        // Each has one turn, whatever is left: a peer that sends faster than it is read, and nothing
        // that makes events, would keep this from ever returning.
        for _ in 0..self.work.len() {
            if left == 0 {
                break;
            }
            if let Some(token) = self.work.pop_front() {
                self.work_on(token, now);
                left -= self.drain_events(out, left);
            }
        }
        self.pending()
    }

    fn pending(&self) -> bool {
        !self.work.is_empty() || !self.shared.events.is_empty()
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    fn arm(&mut self) -> Result<Armed, RdmaError> {
        // Edges that epoll has not reported yet make its descriptor readable.
        if !self.pending() {
            Ok(Armed::Sleep)
        } else {
            Ok(Armed::Ready)
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn close(&mut self, conn: ConnId, how: Close, now: Instant) {
        let ConnId { index, generation } = conn;
        let Some(found) = self.conns.find_mut(index, generation) else {
            return LossReason::claim(&mut self.shared.events, conn);
        };
        match found.close(how, now) {
            Some(reason) => self.finish(conn, reason),
            None => self.enqueue(Token::Conn(index, generation)),
        }
    }
}
