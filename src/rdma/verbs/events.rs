//! What the descriptors say: the connection manager's events in every state, async events, announcements.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::cm::CmEvent;
use super::conn::{Depths, State};
use super::device;
use super::nudge::{Nudge, Sleeper};
use super::provider::{Key, MARK_CM, MARK_CONNECTOR, MARK_DEVICES, Request, Verbs};
use super::step::{Step, answers, step};
use super::sys::cm_event;
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
                MARK_DEVICES => self.device_changes(now, out),
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
        let Some(channel) = device.open.as_ref().map(|open| open.channel.clone()) else {
            return;
        };
        while let Some(queue) = channel.next() {
            if let Some(queue) = device.queues.get_mut(queue) {
                queue.armed = false;
            }
        }
    }

    /// The device's context is shared by the providers of the process, and any of them may read its events: so they
    /// only say what flushed requests and the connection manager say as well, except that the device is lost.
    fn async_events(&mut self, device: usize, now: Instant) {
        let open = (self.devices.get(device)).and_then(|device| device.open.as_ref());
        let Some(context) = open.map(|open| open.context.clone()) else {
            return;
        };
        while let Some(number) = context.next_async_event() {
            let name = device::name(context.raw());
            tracing::debug!(device = name, event = number, "async event");
            if matches!(number, ASYNC_CQ_ERR | ASYNC_DEVICE_FATAL) {
                tracing::error!(device = name, event = number, "the device has failed");
                self.lose_device(device, now);
                self.close_removed();
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
        match self.ids.get(&event.key) {
            Some(Key::Listener(index)) => self.listener_event(*index, event, out),
            Some(Key::Conn(index)) => self.peer_event(*index, event, now, out),
            Some(Key::Device(place)) => {
                if event.kind == cm_event::RDMA_CM_EVENT_DEVICE_REMOVAL {
                    self.device_removed(*place, now);
                }
            }
            None => self.late_event(&event),
        }
    }

    /// An event of what is not in the table: put aside until it is answered; or adopted by a sibling, dropped, or
    /// waiting to be adopted, when the call on it will fail.
    fn late_event(&mut self, event: &CmEvent) {
        let place = (self.parked.iter()).position(|(_, conn)| conn.cm.key() == event.key);
        if let Some(place) = place
            && answers(event.kind)
        {
            self.parked[place].1.unanswered = false;
            self.unpark(place);
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
            self.fail_listener(index, out);
        }
    }

    fn peer_event(&mut self, index: u32, event: CmEvent, now: Instant, out: &mut VecDeque<Event>) {
        let Some(conn) = self.conns[index as usize].content.as_mut() else {
            return;
        };
        if answers(event.kind) {
            conn.unanswered = false;
        }
        let (state, device) = (conn.state, conn.device);
        let to = conn.route.as_ref().map(|route| route.to);
        tracing::debug!(
            kind = event.kind,
            status = event.status,
            ?state,
            "connection manager event"
        );
        match step(state, &event, to) {
            Step::Ignore => {}
            Step::FindRoute => {
                if let Err(error) = self.address_resolved(index) {
                    self.lose(index, Some(LossReason::Failed(error)), now);
                }
            }
            Step::Resolved => self.route_resolved(index, out),
            Step::Established => self.established(index, event, now, out),
            Step::PeerLeft => self.peer_left(index, now),
            Step::Lose(error) => self.lose(index, Some(LossReason::Failed(error)), now),
            Step::LoseDevice => match device {
                Some(device) => self.device_removed(device, now),
                None => {
                    let removed = LossReason::Failed(RdmaError::DeviceRemoved);
                    self.lose(index, Some(removed), now);
                }
            },
        }
    }

    fn address_resolved(&mut self, index: u32) -> Result<(), RdmaError> {
        let Some(conn) = self.conns[index as usize].content.as_ref() else {
            return Ok(());
        };
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
        if let (Some(conn), Some(id)) = (self.conns[index as usize].content.as_mut(), id) {
            conn.state = State::Ready;
            conn.deadline = None;
            out.push_back(Event::Resolved { conn: id });
        }
    }

    fn established(&mut self, index: u32, event: CmEvent, now: Instant, out: &mut VecDeque<Event>) {
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
                conn.nudge = iwarp.then(|| Nudge::new(Sleeper::Peer, now));
                event.private_data
            }
            // Nothing but the fact comes with the acceptor's.
            _ => {
                let overlooks = conn
                    .device
                    .is_some_and(|d| self.devices[d].quirks.overlooks_first);
                // Without a Read in flight there is no way.
                conn.nudge =
                    (overlooks && conn.depths.initiator > 0).then(|| Nudge::new(Sleeper::Own, now));
                std::mem::take(&mut conn.private_data)
            }
        };
        conn.state = State::Established;
        conn.deadline = None;
        out.push_back(Event::Established {
            conn: id,
            private_data,
            initiator_depth: conn.depths.initiator.into(),
            responder_resources: conn.depths.responder.into(),
        });
        let due = conn.due();
        self.wake_by(due);
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
            let failed = returned.result.is_err();
            if let Some(conn) = self.conn_mut(returned.conn) {
                conn.calling = false;
                conn.unanswered &= !failed;
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
                let (_, conn) = &mut self.parked[place];
                conn.calling = false;
                conn.unanswered &= !failed;
                self.unpark(place);
            }
        }
    }
}
