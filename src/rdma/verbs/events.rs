//! What the descriptors say: the connection manager's events in every state, async events, announcements.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::cm::CmEvent;
use super::conn::{Conn, Depths, State};
use super::device;
use super::errors;
use super::provider::{Key, MARK_CM, MARK_CONNECTOR, Request, Verbs};
use super::sys::{self, cm_event};
use crate::rdma::{
    Event, Fabric, Incoming, ListenerId, LossReason, PeerInfo, RdmaError, RdmaOperation,
};

/// How often the descriptors are looked at while completions are polled without sleeping in between.
const LOOK_INTERVAL: Duration = Duration::from_micros(200);

/// Async events that end a device: completion queue error, queue-independent fatal error.
const ASYNC_CQ_ERR: u32 = 0;
const ASYNC_DEVICE_FATAL: u32 = 8;

impl Verbs {
    /// Handles what the descriptors announce, if it is time to ask them.
    pub(super) fn look(&mut self, now: Instant, out: &mut VecDeque<Event>) {
        let recent = self
            .looked
            .is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_INTERVAL);
        if recent && !self.armed {
            return;
        }
        self.looked = Some(now);
        self.armed = false;
        let mut ready = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 16];
        let at_once = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok(count) = epoll::wait(&self.epoll, &mut ready[..], Some(&at_once)) else {
            return;
        };
        for event in &ready[..count] {
            match event.data.u64() {
                MARK_CM => self.connection_events(now, out),
                MARK_CONNECTOR => self.returned_calls(now),
                mark if mark & 1 == 1 => self.async_events((mark >> 1) as usize, now),
                mark => self.announcements((mark >> 1) as usize),
            }
        }
    }

    fn announcements(&mut self, device: usize) {
        let Some(device) = self.devices.get_mut(device) else {
            return;
        };
        while let Some(queue) = device.channel.next() {
            if let Some(queue) = device.queues.get_mut(queue) {
                queue.armed = false;
            }
        }
    }

    /// The device's context is shared by the providers of the process, and any of them may read its events: so they
    /// only say what flushed requests and the connection manager say as well, except that the device is lost.
    fn async_events(&mut self, device: usize, now: Instant) {
        let Some(context) = self
            .devices
            .get(device)
            .map(|device| device.context.clone())
        else {
            return;
        };
        while let Some(number) = context.next_async_event() {
            let name = device::name(context.raw());
            tracing::debug!(device = name, event = number, "async event");
            if matches!(number, ASYNC_CQ_ERR | ASYNC_DEVICE_FATAL) {
                tracing::error!(device = name, event = number, "the device has failed");
                self.lose_device(device, now);
            }
        }
    }

    fn lose_device(&mut self, device: usize, now: Instant) {
        self.devices[device].dead = true;
        for index in 0..self.conns.len() as u32 {
            let on_it = |conn: &Conn| conn.device == Some(device);
            if self.conns[index as usize]
                .content
                .as_ref()
                .is_some_and(on_it)
            {
                self.lose(
                    index,
                    Some(LossReason::Failed(RdmaError::DeviceRemoved)),
                    now,
                );
            }
        }
    }

    fn connection_events(&mut self, now: Instant, out: &mut VecDeque<Event>) {
        loop {
            match self.channel.next() {
                Ok(Some(event)) => self.connection_event(event, now, out),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection manager event could not be read");
                    return;
                }
            }
        }
    }

    fn connection_event(&mut self, event: CmEvent, now: Instant, out: &mut VecDeque<Event>) {
        // What is not in the table was adopted by a sibling, dropped, or is waiting to be adopted: then the call
        // on it will fail.
        match self.ids.get(&event.key) {
            Some(Key::Listener(index)) => self.listener_event(*index, event, out),
            Some(Key::Conn(index)) => self.peer_event(*index, event, now, out),
            None => drop(event.request),
        }
    }

    fn listener_event(&mut self, index: u32, event: CmEvent, out: &mut VecDeque<Event>) {
        let Some(slot) = self.listeners.get_mut(index as usize) else {
            return;
        };
        let listener = ListenerId {
            index,
            generation: slot.generation,
        };
        if let Some(cm) = event.request {
            let device = match cm.verbs() {
                Some(context) => device::name(context.as_ptr()),
                None => return cm.reject(),
            };
            let (Some(local), Some(remote)) = (cm.local(), cm.remote()) else {
                return cm.reject();
            };
            let peer = PeerInfo::new(local, remote, device);
            let request = Request {
                cm: Some(cm),
                peer: peer.clone(),
                private_data: event.private_data.clone(),
                depths: (event.initiator_depth, event.responder_resources),
            };
            let incoming = Incoming::new(peer, event.private_data, Box::new(request));
            out.push_back(Event::Incoming { listener, incoming });
        } else if event.kind == cm_event::RDMA_CM_EVENT_DEVICE_REMOVAL {
            if let Some(gone) = slot.content.take() {
                slot.generation = slot.generation.wrapping_add(1);
                self.ids.remove(&gone.cm.key());
            }
            out.push_back(Event::ListenerFailed {
                listener,
                error: RdmaError::DeviceRemoved,
            });
        }
    }

    fn peer_event(&mut self, index: u32, event: CmEvent, now: Instant, out: &mut VecDeque<Event>) {
        let lost = |error: RdmaError| Some(LossReason::Failed(error));
        match event.kind {
            cm_event::RDMA_CM_EVENT_ADDR_RESOLVED => {
                if let Err(error) = self.address_resolved(index) {
                    self.lose(index, lost(error), now);
                }
            }
            cm_event::RDMA_CM_EVENT_ROUTE_RESOLVED => self.route_resolved(index, out),
            cm_event::RDMA_CM_EVENT_ADDR_ERROR | cm_event::RDMA_CM_EVENT_ROUTE_ERROR => {
                let to = self.conns[index as usize]
                    .content
                    .as_ref()
                    .and_then(|conn| Some(conn.route.as_ref()?.to));
                let error = match (event.status.saturating_abs(), to) {
                    (libc::ETIMEDOUT, _) => RdmaError::Timeout(RdmaOperation::Resolve),
                    (libc::ENODEV | libc::ENOENT, Some(to)) => RdmaError::NoDevice(to),
                    _ => RdmaError::Unreachable,
                };
                self.lose(index, lost(error), now);
            }
            cm_event::RDMA_CM_EVENT_CONNECT_ERROR | cm_event::RDMA_CM_EVENT_UNREACHABLE => {
                let reason = match event.status {
                    0 => LossReason::Failed(RdmaError::Unreachable),
                    status => errors::loss(RdmaOperation::Connect, status),
                };
                self.lose(index, Some(reason), now);
            }
            cm_event::RDMA_CM_EVENT_REJECTED => {
                let error = rejected(event.status, event.private_data);
                self.lose(index, lost(error), now);
            }
            cm_event::RDMA_CM_EVENT_ESTABLISHED => self.established(index, event, out),
            cm_event::RDMA_CM_EVENT_DISCONNECTED => {
                self.peer_left(index, now);
            }
            cm_event::RDMA_CM_EVENT_DEVICE_REMOVAL => {
                let device = self.conns[index as usize]
                    .content
                    .as_ref()
                    .and_then(|conn| conn.device);
                match device {
                    Some(device) => self.lose_device(device, now),
                    None => self.lose(index, lost(RdmaError::DeviceRemoved), now),
                }
            }
            cm_event::RDMA_CM_EVENT_ADDR_CHANGE => {
                // The address has moved to another link: what is sent goes nowhere.
                self.lose(index, lost(RdmaError::ConnectionLost), now);
            }
            // TIMEWAIT_EXIT comes after the end; CONNECT_RESPONSE only where the id has no queue pair; the others
            // belong to multicast.
            _ => {}
        }
    }

    fn address_resolved(&mut self, index: u32) -> Result<(), RdmaError> {
        let Some(conn) = self.conns[index as usize].content.as_ref() else {
            return Ok(());
        };
        if conn.state != State::Resolving {
            return Ok(());
        }
        let cm = conn.cm.clone();
        let device = self.device_of(&cm)?;
        let fabric = self.devices[device].capabilities.fabric;
        let name = self.devices[device].capabilities.device.clone();
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return Ok(());
        };
        conn.device = Some(device);
        if let (Some(local), Some(remote)) = (cm.local(), cm.remote()) {
            conn.peer = Some(PeerInfo::new(local, remote, name));
        }
        let Some(route) = &conn.route else {
            return Ok(());
        };
        if let Some(wanted) = route.only
            && !wanted.allows(fabric)
        {
            return Err(RdmaError::WrongFabric {
                address: route.to,
                wanted,
            });
        }
        cm.resolve_route(route.timeout)
            .map_err(|error| RdmaError::os(RdmaOperation::Resolve, &error))
    }

    fn route_resolved(&mut self, index: u32, out: &mut VecDeque<Event>) {
        let id = self.conn_id(index);
        if let (Some(conn), Some(id)) = (self.conns[index as usize].content.as_mut(), id)
            && conn.state == State::Resolving
        {
            conn.state = State::Ready;
            conn.deadline = None;
            out.push_back(Event::Resolved { conn: id });
        }
    }

    fn established(&mut self, index: u32, event: CmEvent, out: &mut VecDeque<Event>) {
        let Some(id) = self.conn_id(index) else {
            return;
        };
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return;
        };
        let private_data = match conn.state {
            State::Connecting => {
                let iwarp = conn
                    .device
                    .is_some_and(|d| self.devices[d].capabilities.fabric == Fabric::Iwarp);
                let peer =
                    Depths::from_answer(event.initiator_depth, event.responder_resources, iwarp);
                conn.depths = conn.depths.within(peer);
                event.private_data
            }
            // Nothing but the fact comes with the acceptor's.
            State::Accepting => std::mem::take(&mut conn.private_data),
            _ => return,
        };
        conn.state = State::Established;
        conn.deadline = None;
        out.push_back(Event::Established {
            conn: id,
            private_data,
            initiator_depth: conn.depths.initiator.into(),
            responder_resources: conn.depths.responder.into(),
        });
    }

    fn peer_left(&mut self, index: u32, now: Instant) {
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return;
        };
        conn.peer_left = true;
        self.recheck = true;
        if !matches!(conn.state, State::Leaving | State::Flushing) {
            self.lose(index, None, now);
        }
    }

    fn returned_calls(&mut self, now: Instant) {
        self.connector.acknowledge();
        while let Some(returned) = self.connector.next() {
            if let Some(conn) = self.conn_mut(returned.conn) {
                conn.calling = false;
                self.recheck = true;
                if let Err(error) = returned.result {
                    let error = RdmaError::os(RdmaOperation::Connect, &error);
                    self.lose(returned.conn.index, Some(LossReason::Failed(error)), now);
                }
            } else if let Some(place) = self
                .parked
                .iter()
                .position(|(conn, _)| *conn == returned.conn)
            {
                let (_, mut conn) = self.parked.swap_remove(place);
                conn.destroy_queue_pair();
                if let (Some(device), Some((queue, places))) = (conn.device, conn.reserved) {
                    self.devices[device].release(queue, places);
                }
            }
        }
    }
}

/// What a reject says. InfiniBand and RoCE give the reason, iWARP how the stream ended.
fn rejected(status: i32, private_data: Vec<u8>) -> RdmaError {
    match status {
        sys::REJECT_INVALID_SERVICE => RdmaError::Refused,
        sys::REJECT_CONSUMER => RdmaError::Rejected { private_data },
        status if status == -libc::ECONNREFUSED => RdmaError::Refused,
        status if status < 0 => RdmaError::Rejected { private_data },
        _ => RdmaError::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_there_is_not_a_reject() {
        assert_eq!(rejected(8, vec![]), RdmaError::Refused);
        assert_eq!(rejected(-libc::ECONNREFUSED, vec![]), RdmaError::Refused);
        let private_data = vec![1];
        let no = RdmaError::Rejected {
            private_data: private_data.clone(),
        };
        assert_eq!(rejected(28, private_data.clone()), no);
        assert_eq!(rejected(-libc::ECONNRESET, private_data), no);
    }
}
