//! Connection set-up: resolve, connect, adopt, accept, reject.

use std::net::{IpAddr, SocketAddr};

use super::conn::{Conn, End, Phase};
use super::network::ViolationKind;
use super::queue::Packet;
use super::world::{Action, Dropped, World, lock};
use crate::rdma::{
    ConnId, ConnectParams, Event, Fabric, Incoming, ListenerId, LossReason, PeerInfo, RdmaError,
    RdmaOperation, ResolveOptions, after,
};

/// A wish to connect that waits for `adopt` or `reject`.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) client: End,
    /// Our address and the peer's, as the accepting side sees them.
    local: SocketAddr,
    remote: SocketAddr,
    /// (initiator depth, responder resources) of the connecting side.
    asked: (u16, u16),
    /// Whether a listener has handed it out.
    delivered: bool,
    private_data: Vec<u8>,
}

/// What an [`Incoming`] carries.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    dropped: Dropped,
    used: bool,
}

impl Ticket {
    /// Its number, if it belongs to this network; whoever takes it decides what becomes of the request.
    pub(super) fn take(mut self, dropped: &Dropped) -> Option<u64> {
        if !std::sync::Arc::ptr_eq(&self.dropped, dropped) {
            return None;
        }
        self.used = true;
        Some(self.number)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.used {
            lock(&self.dropped).push(self.number);
        }
    }
}

impl World {
    pub(super) fn resolve(
        &mut self,
        node: usize,
        to: SocketAddr,
        options: &ResolveOptions,
    ) -> Result<ConnId, RdmaError> {
        let own = self.nodes[node].address;
        if let Some(local) = options.local
            && local.ip() != own
            && !local.ip().is_unspecified()
        {
            return Err(RdmaError::NoDevice(local));
        }
        let port = options.local.map_or(0, |local| local.port());
        let port = if port == 0 { self.free_port() } else { port };
        let local = SocketAddr::new(own, port);
        let (end, id) = self.place(node, local, to, Phase::Resolving);
        let fabric = self.nodes[node].device.capabilities.fabric;
        if let Some(wanted) = options.only
            && !wanted.allows(fabric)
        {
            let address = to;
            let reason = RdmaError::WrongFabric { address, wanted };
            self.finish(end, LossReason::Failed(reason));
            return Ok(id);
        }
        if self.is_down(own, to.ip()) {
            self.schedule(
                after(self.now, options.timeout),
                Action::ResolveTimeout(end),
            );
        } else {
            self.schedule(self.now + self.options.latency, Action::Resolved(end));
        }
        Ok(id)
    }

    pub(super) fn resolved(&mut self, end: End) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let to = conn.remote.ip();
        if !self.nodes.iter().any(|n| n.alive && n.address == to) {
            return self.finish(end, LossReason::Failed(RdmaError::Unreachable));
        }
        conn.phase = Phase::Resolved;
        let id = conn.id;
        self.report(end, Event::Resolved { conn: id });
    }

    pub(super) fn resolve_timed_out(&mut self, end: End) {
        let reason = RdmaError::Timeout(RdmaOperation::Resolve);
        self.finish(end, LossReason::Failed(reason));
    }

    pub(super) fn connect(&mut self, end: End, params: &ConnectParams) -> Result<(), RdmaError> {
        let asked = self.own_depths(end, params);
        let private_data = self.private_data(end, RdmaOperation::Connect, params)?;
        let number = self.number();
        let conn = self.conns.get_mut(&end).ok_or(RdmaError::Closed)?;
        let Some(qp) = conn.qp.as_ref().filter(|_| conn.phase == Phase::Resolved) else {
            return Err(RdmaError::State(RdmaOperation::Connect));
        };
        let without_receive = qp.receives.is_empty();
        conn.phase = Phase::Connecting;
        conn.asked = asked;
        conn.request = Some(number);
        let (local, remote) = (conn.local, conn.remote);
        if without_receive {
            self.violation(local.ip(), ViolationKind::NoReceiveAtConnect);
        }
        if let Some(left) = self.taken_ports.get_mut(&local.ip())
            && let Some(less) = left.checked_sub(1)
        {
            *left = less;
            let reason = RdmaError::Os {
                operation: RdmaOperation::Connect,
                errno: libc::EADDRINUSE,
            };
            self.finish(end, LossReason::Failed(reason));
            return Ok(());
        }
        self.requests.insert(
            number,
            Request {
                client: end,
                local: remote,
                remote: local,
                asked,
                delivered: false,
                private_data,
            },
        );
        self.schedule(after(self.now, params.timeout), Action::ConnectTimeout(end));
        self.transmit(end, 0, None, Packet::Connect { request: number });
        Ok(())
    }

    pub(super) fn connect_timed_out(&mut self, end: End) {
        let reason = RdmaError::Timeout(RdmaOperation::Connect);
        self.tell_peer(end, false);
        self.finish(end, LossReason::Failed(reason));
    }

    /// A wish to connect has arrived at a host.
    pub(super) fn arrived(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(&number) else {
            return;
        };
        let (address, remote, client) = (request.local, request.remote, request.client);
        let found = self.nodes.iter().enumerate().find_map(|(n, node)| {
            let at = |a: SocketAddr| {
                a.port() == address.port() && (a.ip() == address.ip() || a.ip().is_unspecified())
            };
            let same = node.alive && node.address == address.ip();
            let listener = node
                .listeners
                .iter()
                .enumerate()
                .find_map(|(i, (gen_, l))| {
                    let l = l.as_ref().filter(|l| same && at(l.address))?;
                    Some((i, *gen_, l.backlog))
                });
            listener.map(|(index, generation, backlog)| (n, index, generation, backlog))
        });
        let Some((node, index, generation, backlog)) = found else {
            self.requests.remove(&number);
            let error = RdmaError::Refused;
            return self.transmit_raw(
                address.ip(),
                remote.ip(),
                Packet::Refused { to: client, error },
            );
        };
        let waiting = (self.requests.values())
            .filter(|r| r.delivered && r.local == address)
            .count();
        if waiting >= backlog {
            // As a full backlog does: no answer, the connecting side tries until its time is up.
            self.requests.remove(&number);
            return;
        }
        let device = self.nodes[node].device.capabilities.device.clone();
        let dropped = self.dropped.clone();
        let Some(request) = self.requests.get_mut(&number) else {
            return;
        };
        request.delivered = true;
        let ticket = Ticket {
            number,
            dropped,
            used: false,
        };
        let peer = PeerInfo::new(address, remote, device);
        let incoming = Incoming::new(peer, request.private_data.clone(), Box::new(ticket));
        let listener = ListenerId {
            index: index as u32,
            generation,
        };
        self.hand_out(node, Event::Incoming { listener, incoming });
    }

    pub(super) fn adopt(&mut self, node: usize, number: u64) -> Result<ConnId, RdmaError> {
        let request = self.requests.remove(&number).ok_or(RdmaError::Closed)?;
        if self.nodes[node].address != request.local.ip() {
            self.refuse(&request);
            return Err(RdmaError::NoDevice(request.local));
        }
        let (end, id) = self.place(node, request.local, request.remote, Phase::Adopted);
        if let Some(client) = self.conns.get_mut(&request.client) {
            client.peer = Some(end);
            client.request = None;
        }
        if let Some(conn) = self.conns.get_mut(&end) {
            conn.peer = Some(request.client);
            conn.asked = request.asked;
        }
        Ok(id)
    }

    pub(super) fn reject(&mut self, number: u64) {
        if let Some(request) = self.requests.remove(&number) {
            self.refuse(&request);
        }
    }

    fn refuse(&mut self, request: &Request) {
        let error = RdmaError::Rejected {
            private_data: Vec::new(),
        };
        let to = request.client;
        let (from, at) = (request.local.ip(), request.remote.ip());
        self.transmit_raw(from, at, Packet::Refused { to, error });
    }

    pub(super) fn accept(&mut self, end: End, params: &ConnectParams) -> Result<(), RdmaError> {
        let own = self.own_depths(end, params);
        let private_data = self.private_data(end, RdmaOperation::Accept, params)?;
        let conn = self.conns.get_mut(&end).ok_or(RdmaError::Closed)?;
        let Some(qp) = conn.qp.as_ref().filter(|_| conn.phase == Phase::Adopted) else {
            return Err(RdmaError::State(RdmaOperation::Accept));
        };
        let without_receive = qp.receives.is_empty();
        conn.phase = Phase::Accepting;
        let asked = conn.asked;
        conn.depths = (own.0.min(asked.1), own.1.min(asked.0));
        let (depths, host, peer) = (conn.depths, conn.local.ip(), conn.peer);
        if without_receive {
            self.violation(host, ViolationKind::NoReceiveAtConnect);
        }
        let timeout = after(self.now, params.timeout);
        self.schedule(timeout, Action::ConnectTimeout(end));
        if let Some(to) = peer {
            // The peer's view: what we serve is what it may have in flight.
            let depths = (depths.1, depths.0);
            self.transmit(
                end,
                0,
                None,
                Packet::Accepted {
                    to,
                    depths,
                    private_data,
                },
            );
        }
        Ok(())
    }

    /// The peer has accepted us.
    pub(super) fn accepted(&mut self, end: End, depths: (u16, u16), private_data: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        if conn.phase != Phase::Connecting {
            return;
        }
        conn.phase = Phase::Up;
        conn.depths = depths;
        conn.private_data = private_data;
        let peer = conn.peer;
        self.report_established(end);
        if let Some(to) = peer {
            self.transmit(end, 0, None, Packet::Ready { to });
        }
    }

    /// The connecting side knows that it is connected.
    pub(super) fn ready(&mut self, end: End) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        if conn.phase != Phase::Accepting {
            return;
        }
        conn.phase = Phase::Up;
        let late = (self.device(end)).map_or_else(Default::default, |d| d.quirks.established_delay);
        if late.is_zero() {
            self.report_established(end);
        } else {
            self.schedule(self.now + late, Action::Established(end));
        }
    }

    pub(super) fn report_established(&mut self, end: End) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let event = Event::Established {
            conn: conn.id,
            private_data: std::mem::take(&mut conn.private_data),
            initiator_depth: conn.depths.0,
            responder_resources: conn.depths.1,
        };
        self.report(end, event);
    }

    pub(super) fn refused(&mut self, end: End, error: RdmaError) {
        if (self.conns.get(&end)).is_some_and(|c| c.phase == Phase::Connecting) {
            self.finish(end, LossReason::Failed(error));
        }
    }

    fn place(
        &mut self,
        node: usize,
        local: SocketAddr,
        remote: SocketAddr,
        phase: Phase,
    ) -> (End, ConnId) {
        let end = self.number();
        let places = &mut self.nodes[node].places;
        let index = match places.iter().position(|(_, end)| end.is_none()) {
            Some(index) => index,
            None => {
                places.push((0, None));
                places.len() - 1
            }
        };
        let place = &mut places[index];
        place.0 += 1;
        place.1 = Some(end);
        let id = ConnId {
            index: index as u32,
            generation: place.0,
        };
        let conn = Conn::new(node, id, local, remote, phase, self.now);
        self.conns.insert(end, conn);
        (end, id)
    }

    pub(super) fn free_port(&mut self) -> u16 {
        // The dynamic range; a number comes back only after as many connections.
        (49_152 + self.number() % 16_384) as u16
    }

    /// Whether a listener has this address already.
    pub(super) fn is_taken(&self, host: IpAddr, address: SocketAddr) -> bool {
        (self.nodes.iter())
            .filter(|node| node.alive && node.address == host)
            .flat_map(|node| node.listeners.iter().filter_map(|(_, l)| l.as_ref()))
            .any(|l| l.address.port() == address.port())
    }

    fn own_depths(&self, end: End, params: &ConnectParams) -> (u16, u16) {
        self.device(end).map_or((0, 0), |device| {
            let c = &device.capabilities;
            (
                params.initiator_depth.min(c.max_initiator_depth),
                params.responder_resources.min(c.max_responder_resources),
            )
        })
    }

    /// The private data as the peer gets it: on InfiniBand and RoCE filled up with zeros.
    fn private_data(
        &self,
        end: End,
        operation: RdmaOperation,
        params: &ConnectParams,
    ) -> Result<Vec<u8>, RdmaError> {
        let fabric = self
            .device(end)
            .ok_or(RdmaError::Closed)?
            .capabilities
            .fabric;
        let room = match (fabric, operation) {
            (Fabric::Iwarp, _) => 508,
            (_, RdmaOperation::Connect) => 56,
            _ => 196,
        };
        let mut data = params.private_data.clone();
        if data.len() > room {
            return Err(RdmaError::Limit {
                operation,
                asked: data.len() as u64,
                limit: room as u64,
            });
        }
        if fabric != Fabric::Iwarp {
            data.resize(room, 0);
        }
        Ok(data)
    }
}
