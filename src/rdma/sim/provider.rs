//! The provider trait on top of the shared world.

use std::any::Any;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::conn::{Conn, Outstanding, Phase, QueuePair};
use super::connect::Ticket;
use super::options::{DeviceOptions, Posted};
use super::window::Exposed;
use super::world::{Listener, Node, Shared, World};
use crate::rdma::memory::StandInDomain;
use crate::rdma::{
    Armed, Capabilities, Close, ConnId, ConnectParams, Domain, Event, Exposure, Incoming, IoBuf,
    IoPin, ListenOptions, ListenerId, Operation, PeerInfo, Pieces, PostError, Provider,
    ProviderKind, QpMade, QpOptions, QpWork, RdmaError, RdmaOperation, Registration, RemoteAccess,
    ResolveOptions, SendRequest, Window, WindowId,
};

/// One endpoint of a simulated [`Network`](super::Network). Dropping it ends its connections, as a process that
/// ends does.
#[derive(Debug)]
pub struct SimProvider {
    shared: Arc<Shared>,
    node: usize,
    capabilities: Capabilities,
}

impl SimProvider {
    pub(super) fn new(shared: Arc<Shared>, address: IpAddr, device: DeviceOptions) -> Self {
        let capabilities = device.capabilities.clone();
        let mut world = shared.enter();
        let node = world.nodes.len();
        world.nodes.push(Node {
            address,
            device,
            alive: true,
            out: VecDeque::new(),
            places: Vec::new(),
            listeners: Vec::new(),
            remains: None,
        });
        drop(world);
        Self {
            shared,
            node,
            capabilities,
        }
    }
}

impl Drop for SimProvider {
    fn drop(&mut self) {
        self.shared.enter().leave(self.node);
    }
}

impl Provider for SimProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Sim
    }

    fn listen(
        &mut self,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<ListenerId, RdmaError> {
        let mut world = self.shared.enter();
        let own = world.nodes[self.node].address;
        if address.ip() != own && !address.ip().is_unspecified() {
            return Err(RdmaError::NoDevice(address));
        }
        if let Some(wanted) = &options.device
            && *wanted != world.nodes[self.node].device.capabilities.device
        {
            let wanted = wanted.clone();
            return Err(RdmaError::WrongDevice { address, wanted });
        }
        let mut address = address;
        if address.port() == 0 {
            address.set_port(world.free_port());
        }
        if world.is_taken(own, address) {
            return Err(RdmaError::AddressInUse(address));
        }
        let listeners = &mut world.nodes[self.node].listeners;
        let index = match listeners.iter().position(|(_, l)| l.is_none()) {
            Some(index) => index,
            None => {
                listeners.push((0, None));
                listeners.len() - 1
            }
        };
        let backlog = options.max_half_open;
        listeners[index].0 += 1;
        listeners[index].1 = Some(Listener { address, backlog });
        Ok(ListenerId {
            index: index as u32,
            generation: listeners[index].0,
        })
    }

    fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr> {
        let world = self.shared.enter();
        let (generation, found) =
            (world.nodes[self.node].listeners).get(listener.index as usize)?;
        let found = found
            .as_ref()
            .filter(|_| *generation == listener.generation)?;
        Some(found.address)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        let mut world = self.shared.enter();
        let listeners = &mut world.nodes[self.node].listeners;
        if let Some((generation, place)) = listeners.get_mut(listener.index as usize)
            && *generation == listener.generation
        {
            *place = None;
        }
    }

    fn resolve(
        &mut self,
        to: SocketAddr,
        options: &ResolveOptions,
        _now: Instant,
    ) -> Result<ConnId, RdmaError> {
        self.shared.enter().resolve(self.node, to, options)
    }

    fn adopt(&mut self, incoming: Incoming, _now: Instant) -> Result<ConnId, RdmaError> {
        let other = RdmaError::State(RdmaOperation::Accept);
        let ticket = incoming.into_request().downcast::<Ticket>();
        let mut world = self.shared.enter();
        let number = (ticket.ok()).and_then(|ticket| ticket.take(&world.dropped));
        world.adopt(self.node, number.ok_or(other)?)
    }

    fn reject(&mut self, incoming: Incoming) {
        drop(incoming);
        // Entering rejects what was dropped.
        drop(self.shared.enter());
    }

    fn peer(&self, conn: ConnId) -> Option<PeerInfo> {
        let world = self.shared.enter();
        let conn = world.conn(self.node, conn)?;
        (conn.phase != Phase::Resolving).then(|| conn.info(&self.capabilities.device))
    }

    fn capabilities(&self, conn: ConnId) -> Option<&Capabilities> {
        let world = self.shared.enter();
        let phase = &world.conn(self.node, conn)?.phase;
        (*phase != Phase::Resolving).then_some(&self.capabilities)
    }

    fn domain(&mut self, conn: ConnId) -> Result<Arc<dyn Domain>, RdmaError> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn).ok_or(RdmaError::Closed)?;
        let host = world.nodes[self.node].address;
        let blocks = world.nodes[self.node].device.quirks.creation_blocks;
        let refusals = world.refusals.entry(host).or_default().clone();
        let new = || StandInDomain::shared(blocks, refusals.clone());
        // The key of a registration is good for every connection of its domain; that of a window is not.
        let domain = match self.capabilities.exposure {
            Exposure::Registration => None,
            _ => Some(world.domains.entry(host).or_insert_with(&new).clone()),
        };
        let conn = world.conns.get_mut(&end).ok_or(RdmaError::Closed)?;
        let domain = conn
            .domain
            .get_or_insert_with(|| domain.unwrap_or_else(new));
        Ok(domain.clone())
    }

    fn create_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError> {
        self.check_qp(options)?;
        self.domain(conn)?;
        self.put_qp(conn, QueuePair::new(options.clone()))
    }

    fn begin_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<Option<QpWork>, RdmaError> {
        let world = self.shared.enter();
        let blocks = world.nodes[self.node].device.quirks.creation_blocks;
        drop(world);
        if !blocks {
            return self.create_qp(conn, options).map(|()| None);
        }
        self.check_qp(options)?;
        let (domain, options) = (self.domain(conn)?, options.clone());
        Ok(Some(QpWork::new(move || {
            Ok(QpMade::new(domain, Box::new(QueuePair::new(options))))
        })))
    }

    fn finish_qp(&mut self, conn: ConnId, made: QpMade) -> Result<(), RdmaError> {
        let made = made.into_made().downcast::<QueuePair>();
        let made = made.map_err(|_| RdmaError::State(RdmaOperation::CreateQueuePair))?;
        self.put_qp(conn, *made)
    }

    fn connect(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        _now: Instant,
    ) -> Result<(), RdmaError> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn).ok_or(RdmaError::Closed)?;
        world.connect(end, params)
    }

    fn accept(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        _now: Instant,
    ) -> Result<(), RdmaError> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn).ok_or(RdmaError::Closed)?;
        world.accept(end, params)
    }

    fn post_receive(
        &mut self,
        conn: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        let mut world = self.shared.enter();
        let host = world.nodes[self.node].address;
        let end = world.end(self.node, conn).ok_or(PostError::Closed)?;
        while let Some(buffer) = buffers.front() {
            let conn = world.conns.get(&end).ok_or(PostError::Closed)?;
            let Some(qp) = (conn.qp.as_ref()).filter(|_| !matches!(conn.phase, Phase::Flushing(_)))
            else {
                return Err(PostError::Closed);
            };
            if !is_of(conn, buffer.domain()) {
                return Err(PostError::Invalid);
            }
            if qp.receives.len() >= qp.options.receive_depth as usize {
                return Err(PostError::Full);
            }
            if let Some(error) = world.fault(host, Posted::Receive) {
                return Err(error);
            }
            let conn = world.conns.get_mut(&end).ok_or(PostError::Closed)?;
            if let (Some(qp), Some(buffer)) = (&mut conn.qp, buffers.pop_front()) {
                qp.receives.push_back(buffer);
            }
        }
        Ok(())
    }

    fn post_send(
        &mut self,
        conn: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn).ok_or(PostError::Closed)?;
        let mut result = Ok(());
        while let Some(request) = chain.front() {
            result = self.check_send(&mut world, end, request);
            let Some(request) = result.is_ok().then(|| chain.pop_front()).flatten() else {
                break;
            };
            let token = world.number();
            let Some(conn) = world.conns.get_mut(&end) else {
                break;
            };
            if let Operation::Bind { window } | Operation::Invalidate { window } = request.operation
                && let Some(window) = conn.windows.find(window)
            {
                window.posted += 1;
            }
            if let Some(qp) = &mut conn.qp {
                qp.sends.push_back(Outstanding {
                    token,
                    request,
                    status: None,
                });
            }
        }
        // The doorbell, also for the part of the chain that was taken.
        world.progress(end);
        result
    }

    fn open_window(
        &mut self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        prepared: &mut Option<Registration>,
    ) -> Result<Window, RdmaError> {
        let mut world = self.shared.enter();
        let exposure = self.capabilities.exposure;
        let end = world.end(self.node, conn).ok_or(RdmaError::Closed)?;
        let most = world.nodes[self.node].device.quirks.max_windows;
        let (key, base) = (world.rng.next() as u32, world.rng.next());
        let conn = world.conns.get_mut(&end).ok_or(RdmaError::Closed)?;
        if !is_of(conn, memory.domain()) {
            return Err(RdmaError::WrongDomain);
        }
        if prepared.is_some() != (exposure == Exposure::Registration) {
            return Err(RdmaError::State(RdmaOperation::Bind));
        }
        let limit = |asked: usize, limit: u64| RdmaError::Limit {
            operation: RdmaOperation::Bind,
            asked: asked as u64,
            limit,
        };
        let len = u32::try_from(memory.len());
        let len = len.map_err(|_| limit(memory.len(), u32::MAX.into()))?;
        if conn.windows.count() >= most {
            return Err(limit(most + 1, most as u64));
        }
        let needs_bind = exposure == Exposure::Window;
        // Not where the memory is, so that nobody takes one for the other.
        let address = base & 0x7fff_ffff_ffff;
        let exposed = Exposed::new(memory, access, prepared.take(), (key, address), needs_bind);
        let id = conn.windows.insert(exposed);
        Ok(Window {
            id,
            key,
            address,
            len,
            needs_bind,
        })
    }

    fn retire_window(
        &mut self,
        conn: ConnId,
        window: WindowId,
    ) -> Option<(IoPin, Option<Registration>)> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn)?;
        world.conns.get_mut(&end)?.windows.close(window)
    }

    fn defer_remains(&mut self) {
        self.shared.enter().nodes[self.node].remains = Some(Vec::new());
    }

    fn take_remains(&mut self) -> Option<Box<dyn Any + Send>> {
        let windows = self.shared.enter().nodes[self.node]
            .remains
            .as_mut()?
            .pop()?;
        Some(Box::new(windows))
    }

    fn now(&self) -> Instant {
        self.shared.enter().now
    }

    fn poll(&mut self, _now: Instant, out: &mut VecDeque<Event>, budget: usize) -> bool {
        let mut world = self.shared.enter();
        let ready = &mut world.nodes[self.node].out;
        let count = budget.min(ready.len());
        out.extend(ready.drain(..count));
        !ready.is_empty()
    }

    fn pending(&self) -> bool {
        !self.shared.enter().nodes[self.node].out.is_empty()
    }

    /// When the next thing happens in the whole network: whoever drives the time may advance it to there.
    fn next_deadline(&self) -> Option<Instant> {
        self.shared.enter().peek_event()
    }

    fn arm(&mut self) -> Result<Armed, RdmaError> {
        Ok(if self.pending() {
            Armed::Ready
        } else {
            Armed::Sleep
        })
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn close(&mut self, conn: ConnId, how: Close, _now: Instant) {
        let mut world = self.shared.enter();
        match world.end(self.node, conn) {
            Some(end) => world.close(end, how),
            None => world.claim(self.node, conn),
        }
    }
}

impl SimProvider {
    fn check_qp(&self, options: &QpOptions) -> Result<(), RdmaError> {
        let limit = &self.capabilities;
        for (asked, limit) in [
            (options.send_depth, limit.max_send_depth),
            (options.receive_depth, limit.max_receive_depth),
            (options.max_gather, limit.max_gather as u32),
        ] {
            if asked > limit {
                return Err(RdmaError::Limit {
                    operation: RdmaOperation::CreateQueuePair,
                    asked: asked.into(),
                    limit: limit.into(),
                });
            }
        }
        Ok(())
    }

    /// A connection gets its queue pair.
    fn put_qp(&mut self, conn: ConnId, qp: QueuePair) -> Result<(), RdmaError> {
        let mut world = self.shared.enter();
        let end = world.end(self.node, conn).ok_or(RdmaError::Closed)?;
        let conn = world.conns.get_mut(&end).ok_or(RdmaError::Closed)?;
        if matches!(conn.phase, Phase::Flushing(_)) {
            return Err(RdmaError::Closed);
        }
        if !matches!(conn.phase, Phase::Resolved | Phase::Adopted) || conn.qp.is_some() {
            return Err(RdmaError::State(RdmaOperation::CreateQueuePair));
        }
        conn.qp = Some(qp);
        Ok(())
    }

    /// Whether a request may go into the send queue now.
    fn check_send(
        &self,
        world: &mut World,
        end: u64,
        request: &SendRequest,
    ) -> Result<(), PostError> {
        let host = world.nodes[self.node].address;
        let conn = world.conns.get_mut(&end).ok_or(PostError::Closed)?;
        if conn.phase != Phase::Up || conn.draining {
            return Err(PostError::Closed);
        }
        let qp = conn.qp.as_ref().ok_or(PostError::Closed)?;
        let fits = request.operation.bytes() <= self.capabilities.max_message as usize;
        let gathers = |pieces: &Pieces| {
            pieces.len() <= qp.options.max_gather as usize
                && pieces.iter().all(|piece| is_of(conn, piece.domain()))
        };
        let (full, valid) = (
            qp.occupied() >= qp.options.send_depth as usize,
            match &request.operation {
                Operation::Send { message, .. } => fits && gathers(message),
                Operation::Write { from, .. } => fits && gathers(from),
                Operation::Read { into, .. } => fits && is_of(conn, into.domain()),
                Operation::Bind { .. } | Operation::Invalidate { .. } => true,
            },
        );
        if let Operation::Bind { window } | Operation::Invalidate { window } = request.operation
            && conn.windows.find(window).is_none()
        {
            return Err(PostError::Invalid);
        }
        match (valid, full) {
            (false, _) => Err(PostError::Invalid),
            (true, true) => Err(PostError::Full),
            (true, false) => world.fault(host, Posted::Send).map_or(Ok(()), Err),
        }
    }
}

/// Whether memory of this domain may be used on the connection.
fn is_of(conn: &Conn, domain: &Arc<dyn Domain>) -> bool {
    let same = |own: &Arc<dyn Domain>| std::ptr::addr_eq(Arc::as_ptr(own), Arc::as_ptr(domain));
    conn.domain.as_ref().is_some_and(same)
}
