//! The provider: its tables, and the calls of the trait.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::event::epoll;

use super::VerbsOptions;
use super::cm::{CmId, EventChannel, Handshake};
use super::conn::{
    ACK_TIMEOUT, Conn, Depths, FLUSH_TIME, Route, State, check_private_data, wished,
};
use super::connector::Connector;
use super::device::Device;
use super::domain::WindowParts;
use super::errors;
use super::listener::Listener;
use super::post::Workspace;
use super::removal::DeviceEvents;
use super::sys;
use crate::rdma::inflight::WorkId;
use crate::rdma::{
    Armed, Capabilities, Close, ConnId, ConnectParams, Domain, Event, Exposure, Fabric, Incoming,
    IoBuf, IoPin, ListenOptions, ListenerId, LossReason, PeerInfo, PostError, Provider,
    ProviderKind, QpMade, QpOptions, QpWork, RdmaError, RdmaOperation, Registration, RemoteAccess,
    ResolveOptions, SendRequest, Window, WindowId, after,
};

/// Marks in epoll of what is not a device.
pub(super) const MARK_CM: u64 = u64::MAX;
pub(super) const MARK_CONNECTOR: u64 = u64::MAX - 1;
pub(super) const MARK_DEVICES: u64 = u64::MAX - 2;

/// A provider over RDMA devices.
///
/// Dropping it ends its connections at once. Memory registered in its domains may live on.
pub struct Verbs {
    options: VerbsOptions,
    // Connections first: their queue pairs go before completion queues, ids before the channel.
    pub(super) conns: Vec<Slot<Conn>>,
    pub(super) free: Vec<u32>,
    /// Connections that are over for the caller, but cannot be taken apart without sleeping yet.
    pub(super) parked: Vec<(ConnId, Conn)>,
    /// What connections have left behind, if the caller ends it: whatever must not block the caller.
    pub(super) remains: Option<Vec<Box<dyn Any + Send>>>,
    pub(super) listeners: Vec<Slot<Listener>>,
    pub(super) devices: Vec<Device>,
    pub(super) ids: HashMap<usize, Key>,
    pub(super) channel: Arc<EventChannel>,
    pub(super) connector: Connector,
    /// `None` where the system has none.
    pub(super) device_events: Option<DeviceEvents>,
    /// A lost device still has connections.
    pub(super) losing: bool,
    /// Removed devices may be open that nobody uses.
    pub(super) unclosed: Arc<AtomicBool>,
    pub(super) epoll: OwnedFd,
    pub(super) workspace: Workspace,
    /// Completions that are polled and not handled.
    pub(super) completions: VecDeque<sys::ibv_wc>,
    pub(super) scratch: Vec<sys::ibv_wc>,
    /// Events of calls, for the next poll.
    pub(super) queue: VecDeque<Event>,
    /// Places of connections on their way out.
    pub(super) closing: Vec<u32>,
    /// A closing connection may be finished without an announcement.
    pub(super) recheck: bool,
    /// No timer ends before this.
    pub(super) earliest: Option<Instant>,
    /// The descriptors were armed since they were looked at.
    pub(super) armed: bool,
    pub(super) looked: Option<Instant>,
    /// Where polling of completion queues goes on.
    pub(super) cursor: usize,
}

/// What an id of the connection manager belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Conn(u32),
    Listener(u32),
    /// What keeps a device open: its place.
    Device(usize),
}

/// A place in a table.
pub(super) struct Slot<T> {
    pub(super) generation: u32,
    pub(super) content: Option<T>,
}

/// What travels in an [`Incoming`]. Dropping it rejects.
pub(super) struct Request {
    pub(super) cm: Option<CmId>,
    pub(super) peer: PeerInfo,
    pub(super) private_data: Vec<u8>,
    /// What the peer allows, as its request says it.
    pub(super) depths: (u8, u8),
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(cm) = &self.cm {
            cm.reject();
        }
    }
}

impl Verbs {
    /// Opens the connection manager, with default options.
    ///
    /// # Errors
    /// [`RdmaError::LibraryMissing`], [`RdmaError::Permission`], or the system has no RDMA.
    pub fn open() -> Result<Self, RdmaError> {
        Self::open_with(VerbsOptions::default())
    }

    /// Opens the connection manager.
    ///
    /// # Errors
    /// As for [`Verbs::open`].
    pub fn open_with(options: VerbsOptions) -> Result<Self, RdmaError> {
        let failed = |error: std::io::Error| RdmaError::os(RdmaOperation::Open, &error);
        let channel = EventChannel::open()?;
        let connector = Connector::new().map_err(failed)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let watch = |fd: BorrowedFd<'_>, mark: u64| {
            let data = epoll::EventData::new_u64(mark);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN).map_err(|e| failed(e.into()))
        };
        watch(channel.as_fd(), MARK_CM)?;
        watch(connector.as_fd(), MARK_CONNECTOR)?;
        let device_events = DeviceEvents::open();
        match &device_events {
            Ok(events) => watch(events.as_fd(), MARK_DEVICES)?,
            Err(error) => tracing::debug!(%error, "no device events"),
        }
        Ok(Self {
            options,
            conns: Vec::new(),
            free: Vec::new(),
            parked: Vec::new(),
            remains: None,
            listeners: Vec::new(),
            devices: Vec::new(),
            ids: HashMap::new(),
            channel,
            connector,
            device_events: device_events.ok(),
            losing: false,
            unclosed: Arc::default(),
            epoll,
            workspace: Workspace::new(),
            completions: VecDeque::with_capacity(256),
            scratch: Vec::with_capacity(64),
            queue: VecDeque::new(),
            closing: Vec::new(),
            recheck: false,
            earliest: None,
            armed: false,
            looked: None,
            cursor: 0,
        })
    }

    pub(super) fn conn(&self, id: ConnId) -> Option<&Conn> {
        let slot = self.conns.get(id.index as usize)?;
        (slot.generation == id.generation).then_some(())?;
        slot.content.as_ref()
    }

    pub(super) fn conn_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        let slot = self.conns.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then_some(())?;
        slot.content.as_mut()
    }

    /// The full id of an occupied place.
    pub(super) fn conn_id(&self, index: u32) -> Option<ConnId> {
        let slot = self.conns.get(index as usize)?;
        slot.content.as_ref()?;
        Some(ConnId {
            index,
            generation: slot.generation,
        })
    }

    /// Gives a connection its place.
    fn insert(&mut self, conn: Conn) -> Result<ConnId, RdmaError> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if (self.conns.len() as u32) < WorkId::MAX_INDEX => {
                self.conns.push(Slot {
                    generation: 0,
                    content: None,
                });
                (self.conns.len() - 1) as u32
            }
            None => {
                return Err(RdmaError::Limit {
                    operation: RdmaOperation::CreateQueuePair,
                    asked: u64::from(WorkId::MAX_INDEX) + 1,
                    limit: WorkId::MAX_INDEX.into(),
                });
            }
        };
        self.ids.insert(conn.cm.key(), Key::Conn(index));
        let slot = &mut self.conns[index as usize];
        slot.content = Some(conn);
        Ok(ConnId {
            index,
            generation: slot.generation,
        })
    }

    /// The table's place of the device of a resolved id, opened on first use.
    pub(super) fn device_of(&mut self, cm: &CmId) -> Result<usize, RdmaError> {
        if let Some(place) = self.devices.iter().position(|device| device.serves(cm)) {
            return match self.devices[place].dead {
                false => Ok(place),
                true => Err(RdmaError::DeviceRemoved),
            };
        }
        let device = Device::of(cm, &self.options, &self.channel)?;
        let key = device.open.as_ref().and_then(|open| open.context.key());
        // The place of one that is gone, or a new one.
        let vacant = self.devices.iter().position(|device| device.open.is_none());
        let place = vacant.unwrap_or(self.devices.len());
        let watch = |fd: BorrowedFd<'_>, mark: u64| {
            let data = epoll::EventData::new_u64(mark);
            match epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN) {
                // Two ports of a device share its async events.
                Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
                Err(error) => Err(RdmaError::os(RdmaOperation::Open, &error.into())),
            }
        };
        if let Some(open) = &device.open {
            watch(open.channel.as_fd(), (place as u64) << 1)?;
            watch(open.context.async_fd(), (place as u64) << 1 | 1)?;
        }
        tracing::debug!(capabilities = ?device.capabilities, "device opened");
        match self.devices.get_mut(place) {
            Some(vacant) => *vacant = device,
            None => self.devices.push(device),
        }
        self.ids.extend(key.map(|key| (key, Key::Device(place))));
        Ok(place)
    }

    /// Ends what may block to be ended: on this thread, unless the caller wants to do that.
    pub(super) fn leave(&mut self, remains: impl Any + Send) {
        if let Some(list) = &mut self.remains {
            list.push(Box::new(remains));
        }
    }

    /// Sets when a connection must have gone on.
    pub(super) fn set_deadline(&mut self, index: u32, deadline: Instant) {
        if let Some(conn) = self
            .conns
            .get_mut(index as usize)
            .and_then(|s| s.content.as_mut())
        {
            conn.deadline = Some(deadline);
        }
        self.wake_by(Some(deadline));
    }

    /// Looks at the timers at this time at the latest.
    pub(super) fn wake_by(&mut self, time: Option<Instant>) {
        self.earliest = self.earliest.into_iter().chain(time).min();
    }

    pub(super) fn is_iwarp(&self, conn: &Conn) -> bool {
        conn.device
            .is_some_and(|d| self.devices[d].capabilities.fabric == Fabric::Iwarp)
    }

    /// What a handshake of `conn` says, checked.
    fn handshake(
        &self,
        id: ConnId,
        params: &ConnectParams,
        operation: RdmaOperation,
    ) -> Result<Depths, RdmaError> {
        let conn = self.conn(id).ok_or(RdmaError::Closed)?;
        // Who resolved connects, who was adopted accepts.
        let right = conn.route.is_none() == (operation == RdmaOperation::Accept);
        if conn.state != State::Ready || conn.queue_pair.is_none() || !right {
            return Err(RdmaError::State(operation));
        }
        let device = conn.device.ok_or(RdmaError::State(operation))?;
        let capabilities = &self.devices[device].capabilities;
        check_private_data(&params.private_data, operation, self.is_iwarp(conn))?;
        let limits = (
            capabilities.max_initiator_depth,
            capabilities.max_responder_resources,
        );
        let wish = wished(params.initiator_depth, params.responder_resources, limits);
        if !self.is_iwarp(conn) {
            // An older kernel does not know the option, and has a timeout of its own.
            let exponent = params.ack_timeout.unwrap_or(ACK_TIMEOUT);
            let _ = conn.cm.set_ack_timeout(exponent);
        }
        Ok(wish)
    }
}

impl Drop for Verbs {
    fn drop(&mut self) {
        let unfinished = |slot: &mut Slot<Conn>| {
            let held = slot.content.as_ref().is_some_and(Conn::held);
            if held { slot.content.take() } else { None }
        };
        let mut held: Vec<Conn> = self.conns.iter_mut().filter_map(unfinished).collect();
        held.extend(self.parked.drain(..).map(|(_, conn)| conn));
        self.conns.clear();
        if held.is_empty() {
            // What was registered on a lost device must not keep it open.
            for device in self.devices.iter_mut().filter(|device| device.dead) {
                drop(device.close());
            }
        } else {
            // Helper threads are in `connect` with these ids, or destroying them would sleep: their queue pairs, and
            // what these stand on, must wait.
            let devices = std::mem::take(&mut self.devices);
            let channel = self.channel.clone();
            let calls = held.iter().filter(|conn| conn.calling).count();
            self.connector.outlive(calls, (held, devices, channel));
        }
    }
}

impl Provider for Verbs {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Verbs
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, RdmaError> {
        let listener = Listener::open(&self.channel, address, options)?;
        let vacant = self
            .listeners
            .iter()
            .position(|slot| slot.content.is_none());
        let index = vacant.unwrap_or_else(|| {
            self.listeners.push(Slot {
                generation: 0,
                content: None,
            });
            self.listeners.len() - 1
        });
        self.ids
            .insert(listener.cm.key(), Key::Listener(index as u32));
        let slot = &mut self.listeners[index];
        slot.content = Some(listener);
        Ok(ListenerId {
            index: index as u32,
            generation: slot.generation,
        })
    }

    fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr> {
        let slot = self.listeners.get(listener.index as usize)?;
        (slot.generation == listener.generation).then_some(())?;
        Some(slot.content.as_ref()?.address)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        if let Some(slot) = self.listeners.get_mut(listener.index as usize)
            && slot.generation == listener.generation
            && let Some(gone) = slot.content.take()
        {
            slot.generation = slot.generation.wrapping_add(1);
            self.ids.remove(&gone.cm.key());
        }
    }

    fn resolve(
        &mut self,
        to: SocketAddr,
        options: &ResolveOptions,
        now: Instant,
    ) -> Result<ConnId, RdmaError> {
        let failed = |error: std::io::Error| match error.raw_os_error() {
            Some(libc::ENODEV | libc::ENOENT | libc::EADDRNOTAVAIL) => {
                errors::hidden_device().unwrap_or(RdmaError::NoDevice(options.local.unwrap_or(to)))
            }
            _ => RdmaError::os(RdmaOperation::Resolve, &error),
        };
        let cm = CmId::new(&self.channel).map_err(failed)?;
        if let Some(value) = options.type_of_service {
            cm.set_type_of_service(value).map_err(failed)?;
        }
        cm.resolve_address(options.local, to, options.timeout)
            .map_err(failed)?;
        let mut conn = Conn::new(cm, State::Resolving);
        conn.route = Some(Route {
            to,
            timeout: options.timeout,
            only: options.only,
        });
        let id = self.insert(conn)?;
        // The connection manager has its own timer; this one is for a connection manager that forgets.
        self.set_deadline(
            id.index,
            after(now, options.timeout.saturating_mul(2)) + FLUSH_TIME,
        );
        Ok(id)
    }

    fn adopt(&mut self, incoming: Incoming, _now: Instant) -> Result<ConnId, RdmaError> {
        let request = incoming.into_request().downcast::<Request>();
        let mut request = request.map_err(|_| RdmaError::State(RdmaOperation::Accept))?;
        let mut cm = request.cm.take().ok_or(RdmaError::Closed)?;
        let adopted = cm
            .migrate(&self.channel)
            .map_err(|error| RdmaError::os(RdmaOperation::Accept, &error))
            .and_then(|()| self.device_of(&cm));
        let device = match adopted {
            Ok(device) => device,
            Err(error) => {
                cm.reject();
                return Err(error);
            }
        };
        let mut conn = Conn::new(cm, State::Ready);
        conn.device = Some(device);
        conn.peer = Some(request.peer.clone());
        conn.private_data = std::mem::take(&mut request.private_data);
        conn.depths = Depths::from_request(request.depths.0, request.depths.1);
        self.insert(conn)
    }

    fn reject(&mut self, incoming: Incoming) {
        drop(incoming);
    }

    fn peer(&self, conn: ConnId) -> Option<PeerInfo> {
        self.conn(conn)?.peer.clone()
    }

    fn capabilities(&self, conn: ConnId) -> Option<&Capabilities> {
        Some(&self.devices[self.conn(conn)?.device?].capabilities)
    }

    fn domain(&mut self, conn: ConnId) -> Result<Arc<dyn Domain>, RdmaError> {
        let found = self.conn(conn).ok_or(RdmaError::Closed)?;
        if let Some(domain) = &found.domain {
            return Ok(domain.clone());
        }
        let device = found
            .device
            .ok_or(RdmaError::State(RdmaOperation::CreateDomain))?;
        let domain = self.devices[device].domain()?;
        if let Some(found) = self.conn_mut(conn) {
            found.domain = Some(domain.clone());
        }
        Ok(domain)
    }

    fn create_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError> {
        self.make_qp(conn, options)
    }

    fn begin_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<Option<QpWork>, RdmaError> {
        self.qp_work(conn, options).map(Some)
    }

    fn finish_qp(&mut self, conn: ConnId, made: QpMade) -> Result<(), RdmaError> {
        self.join_qp(conn, made)
    }

    fn connect(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError> {
        let wish = self.handshake(conn, params, RdmaOperation::Connect)?;
        let failed = |error: std::io::Error| RdmaError::os(RdmaOperation::Connect, &error);
        let found = self.conn(conn).ok_or(RdmaError::Closed)?;
        let sleeps = found
            .device
            .is_some_and(|d| self.devices[d].quirks.connect_sleeps);
        if sleeps {
            let depths = (wish.initiator, wish.responder);
            self.connector
                .connect(conn, found.cm.clone(), params.private_data.clone(), depths)
                .map_err(failed)?;
        } else {
            let handshake = Handshake {
                private_data: &params.private_data,
                initiator_depth: wish.initiator,
                responder_resources: wish.responder,
            };
            found.cm.connect(&handshake).map_err(failed)?;
        }
        let iwarp = self.is_iwarp(found);
        if let Some(found) = self.conn_mut(conn) {
            found.calling = sleeps;
            found.unanswered = iwarp;
            found.depths = wish;
            found.state = State::Connecting;
            found.joined = true;
        }
        self.set_deadline(conn.index, after(now, params.timeout));
        Ok(())
    }

    fn accept(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError> {
        let wish = self.handshake(conn, params, RdmaOperation::Accept)?;
        let iwarp = self.conn(conn).is_some_and(|found| self.is_iwarp(found));
        let found = self.conn_mut(conn).ok_or(RdmaError::Closed)?;
        let agreed = wish.within(found.depths);
        found.depths = agreed;
        found.state = State::Accepting;
        found.joined = true;
        let handshake = Handshake {
            private_data: &params.private_data,
            initiator_depth: agreed.initiator,
            responder_resources: agreed.responder,
        };
        let accepted = found.cm.accept(&handshake);
        found.unanswered = iwarp && accepted.is_ok();
        self.set_deadline(conn.index, after(now, params.timeout));
        if let Err(error) = accepted {
            // The peer has left meanwhile: an end like another.
            let error = RdmaError::os(RdmaOperation::Accept, &error);
            self.lose(conn.index, Some(LossReason::Failed(error)), now);
        }
        Ok(())
    }

    fn post_receive(
        &mut self,
        conn: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        let slot = self.conns.get_mut(conn.index as usize);
        match slot.filter(|slot| slot.generation == conn.generation) {
            Some(Slot {
                content: Some(found),
                ..
            }) => self.workspace.receives(found, conn, buffers),
            _ => Err(PostError::Closed),
        }
    }

    fn post_send(
        &mut self,
        conn: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        let slot = self.conns.get_mut(conn.index as usize);
        match slot.filter(|slot| slot.generation == conn.generation) {
            Some(Slot {
                content: Some(found),
                ..
            }) => self.workspace.sends(found, conn, chain),
            _ => Err(PostError::Closed),
        }
    }

    fn open_window(
        &mut self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        prepared: &mut Option<Registration>,
    ) -> Result<Window, RdmaError> {
        let unfit = RdmaError::State(RdmaOperation::Bind);
        let found = self.conn(conn).ok_or(RdmaError::Closed)?;
        let device = found.device.ok_or(RdmaError::State(RdmaOperation::Bind))?;
        let exposure = self.devices[device].capabilities.exposure;
        let found = self.conn_mut(conn).ok_or(RdmaError::Closed)?;
        if found.state.closing() {
            return Err(RdmaError::Closed);
        }
        if !found.owns(memory.domain()) {
            return Err(RdmaError::WrongDomain);
        }
        let Some(made) = prepared.take_if(|_| exposure != Exposure::SoftwareWindow) else {
            return Err(unfit);
        };
        if exposure == Exposure::Registration {
            return Ok(found.windows.open_registered(memory, made, access));
        }
        let domain = found.domain.as_ref().ok_or(RdmaError::WrongDomain)?;
        let region = domain
            .region(made.local_key())
            .ok_or(RdmaError::WrongDomain)?;
        let parts = made.into_guard().and_then(|guard| guard.downcast().ok());
        let parts: Box<WindowParts> = parts.ok_or(unfit)?;
        Ok(found.windows.open(memory, region, access, *parts))
    }

    fn retire_window(
        &mut self,
        conn: ConnId,
        window: WindowId,
    ) -> Option<(IoPin, Option<Registration>)> {
        self.conn_mut(conn)?.windows.retire(window)
    }

    fn defer_remains(&mut self) {
        self.remains = Some(Vec::new());
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        self.remains.as_mut()?.pop()
    }

    fn poll(&mut self, now: Instant, out: &mut VecDeque<Event>, budget: usize) -> bool {
        out.append(&mut self.queue);
        self.look(now, out);
        let more = self.complete(now, out, budget);
        self.run_timers(now);
        self.bury(now, out);
        self.release_devices();
        more || self.pending()
    }

    fn pending(&self) -> bool {
        !self.queue.is_empty() || !self.completions.is_empty() || self.recheck
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.earliest
    }

    fn arm(&mut self) -> Result<Armed, RdmaError> {
        self.armed = true;
        if self.pending() {
            return Ok(Armed::Ready);
        }
        for device in self.devices.iter_mut().filter(|device| !device.dead) {
            for queue in &mut device.queues {
                if queue.arm()?
                    && let Some(queue) = queue.get()
                {
                    queue.poll(&mut self.scratch)?;
                    self.completions.extend(self.scratch.drain(..));
                }
            }
        }
        Ok(if self.pending() {
            Armed::Ready
        } else {
            Armed::Sleep
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn close(&mut self, conn: ConnId, how: Close, now: Instant) {
        let Some(found) = self.conn_mut(conn) else {
            return;
        };
        // Also where it has failed already, which nobody was told: the peer may have left just before `accept`.
        found.reason = Some(LossReason::Local);
        match (found.state, how) {
            (State::Flushing, _) => self.recheck = true,
            (State::Established, Close::Drain(deadline)) => {
                found.state = State::Draining;
                self.set_deadline(conn.index, deadline);
                self.start_closing(conn.index);
            }
            (State::Draining | State::Leaving, Close::Drain(deadline)) => {
                self.set_deadline(conn.index, deadline);
            }
            _ => self.lose(conn.index, None, now),
        }
    }
}
