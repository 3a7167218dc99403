//! Every way in which a connection ends.

use std::net::{IpAddr, SocketAddr};

use super::conn::{End, Phase};
use super::queue::Packet;
use super::world::{Action, World};
use crate::rdma::{Close, CompletionStatus, Event, Fabric, ListenerId, LossReason, RdmaError};

impl World {
    pub(super) fn close(&mut self, end: End, how: Close) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        if let Phase::Flushing(reason) = &mut conn.phase {
            *reason = LossReason::Local;
            return;
        }
        match how {
            Close::Drain(deadline) if conn.phase == Phase::Up => {
                if !conn.draining {
                    conn.draining = true;
                    self.schedule(deadline, Action::DrainDeadline(end));
                    self.drained(end);
                }
            }
            Close::Drain(_) | Close::Abort => self.abort(end),
        }
    }

    /// Ends it at once.
    pub(super) fn abort(&mut self, end: End) {
        self.tell_peer(end, false);
        self.finish(end, LossReason::Local);
    }

    /// While draining: closes in order when all posted requests are over.
    pub(super) fn drained(&mut self, end: End) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let empty = conn.qp.as_ref().is_none_or(|qp| qp.sends.is_empty());
        if !conn.draining || conn.closed || conn.phase != Phase::Up || !empty {
            return;
        }
        conn.closed = true;
        if conn.peer_closed {
            if let Some(to) = conn.peer {
                self.transmit(end, 0, None, Packet::CloseReply { to });
            }
            self.finish(end, LossReason::Local);
        } else {
            self.tell_peer(end, true);
        }
    }

    pub(super) fn tell_peer(&mut self, end: End, orderly: bool) {
        let Some(conn) = self.conns.get(&end) else {
            return;
        };
        if matches!(conn.phase, Phase::Flushing(_)) {
            return;
        }
        if let Some(to) = conn.peer {
            self.transmit(end, 0, None, Packet::Close { to, orderly });
        }
    }

    /// The peer has ended the connection.
    pub(super) fn peer_closed(&mut self, end: End, orderly: bool) {
        let iwarp = (self.device(end)).is_some_and(|d| d.capabilities.fabric == Fabric::Iwarp);
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let reason = match conn.phase {
            Phase::Connecting => LossReason::Failed(RdmaError::Rejected {
                private_data: Vec::new(),
            }),
            Phase::Adopted | Phase::Accepting => LossReason::Peer,
            Phase::Up => {
                let busy = conn.qp.as_ref().is_some_and(|qp| !qp.sends.is_empty());
                if orderly && conn.draining && busy {
                    conn.peer_closed = true;
                    return;
                }
                if orderly && let Some(to) = conn.peer {
                    self.transmit(end, 0, None, Packet::CloseReply { to });
                }
                if orderly || !iwarp {
                    LossReason::Peer
                } else {
                    // A reset of the TCP connection.
                    LossReason::Failed(RdmaError::ConnectionLost)
                }
            }
            Phase::Resolving | Phase::Resolved | Phase::Flushing(_) => return,
        };
        self.finish(end, reason);
    }

    pub(super) fn close_reply(&mut self, end: End) {
        if self.conns.get(&end).is_some_and(|conn| conn.closed) {
            self.finish(end, LossReason::Local);
        }
    }

    /// A failure of this end, of which the peer hears too.
    pub(super) fn fail(&mut self, end: End, error: RdmaError) {
        self.tell_peer(end, false);
        self.finish(end, LossReason::Failed(error));
    }

    /// The connection is over: everything comes back, at once or when the device gets round to it.
    pub(super) fn finish(&mut self, end: End, reason: LossReason) {
        let delay = (self.device(end)).map_or_else(Default::default, |d| d.quirks.flush_delay);
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        if matches!(conn.phase, Phase::Flushing(_)) {
            return;
        }
        let reason = if conn.draining {
            LossReason::Local
        } else {
            reason
        };
        conn.phase = Phase::Flushing(reason);
        if let Some(request) = conn.request.take() {
            self.requests.remove(&request);
        }
        if delay.is_zero() {
            self.flush(end);
        } else {
            self.schedule(self.now + delay, Action::Flush(end));
        }
    }

    /// Reports everything posted, then the end, and forgets the connection.
    pub(super) fn flush(&mut self, end: End) {
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let Phase::Flushing(reason) = conn.phase.clone() else {
            return;
        };
        let (id, node) = (conn.id, conn.node);
        if let Some(qp) = conn.qp.take() {
            let done = (qp.quiet.into_iter()).map(|r| (r, CompletionStatus::Success));
            let rest = (qp.sends.into_iter())
                .map(|s| (s.request, s.status.unwrap_or(CompletionStatus::Flushed)));
            for (request, status) in done.chain(rest).collect::<Vec<_>>() {
                let event = Event::Completed {
                    conn: id,
                    request,
                    status,
                };
                self.report(end, event);
            }
            for buffer in qp.receives {
                self.report(end, Event::Flushed { conn: id, buffer });
            }
        }
        self.report(end, Event::Disconnected { conn: id, reason });
        if let Some(conn) = self.conns.remove(&end)
            && let Some(remains) = &mut self.nodes[node].remains
        {
            remains.push(conn.windows);
        }
        if let Some(place) = self.nodes[node].places.get_mut(id.index as usize) {
            place.1 = None;
        }
    }

    /// Ends all connections that `which` picks by its two addresses, on both sides, as a broken network does.
    pub(super) fn cut(
        &mut self,
        error: &RdmaError,
        which: impl Fn(SocketAddr, SocketAddr) -> bool,
    ) {
        let ends: Vec<End> = (self.conns.iter())
            .filter(|(_, c)| which(c.local, c.remote))
            .map(|(end, _)| *end)
            .collect();
        for end in ends {
            self.finish(end, LossReason::Failed(error.clone()));
        }
    }

    /// The host's device is gone, with everything on it; peers get no word.
    pub(super) fn remove_device(&mut self, host: IpAddr) {
        let others: Vec<IpAddr> = self.nodes.iter().map(|n| n.address).collect();
        for other in others {
            self.set_link(host, other, false);
        }
        self.cut(&RdmaError::DeviceRemoved, |local, _| local.ip() == host);
        for node in 0..self.nodes.len() {
            if self.nodes[node].address != host {
                continue;
            }
            let failed: Vec<ListenerId> = (self.nodes[node].listeners.iter_mut().enumerate())
                .filter_map(|(index, (generation, listener))| {
                    listener.take().map(|_| ListenerId {
                        index: index as u32,
                        generation: *generation,
                    })
                })
                .collect();
            for listener in failed {
                let error = RdmaError::DeviceRemoved;
                self.hand_out(node, Event::ListenerFailed { listener, error });
            }
        }
    }

    /// A provider is dropped, as when its process ends: its connections with it.
    pub(super) fn leave(&mut self, node: usize) {
        let ends: Vec<End> = (self.conns.iter())
            .filter(|(_, c)| c.node == node)
            .map(|(end, _)| *end)
            .collect();
        for end in ends {
            self.abort(end);
            self.flush(end);
        }
        self.forget_reports(node);
        let node = &mut self.nodes[node];
        node.alive = false;
        node.listeners.clear();
        node.out.clear();
    }

    /// The time is up for everything that was sent before `now` to a peer that is silent.
    pub(super) fn retries_exceeded(&mut self, end: End) {
        let iwarp = (self.device(end)).is_some_and(|d| d.capabilities.fabric == Fabric::Iwarp);
        let Some(conn) = self.conns.get_mut(&end) else {
            return;
        };
        let oldest = (conn.qp.as_mut()).and_then(|qp| {
            let issued = qp.unissued;
            (qp.sends.iter_mut().take(issued)).find(|s| s.status.is_none())
        });
        match oldest {
            Some(oldest) if !iwarp => {
                oldest.status = Some(CompletionStatus::RetriesExceeded);
                self.progress(end);
            }
            _ => self.finish(end, LossReason::Failed(RdmaError::ConnectionLost)),
        }
    }
}
