//! When connections want to be called: one queue for all of a reactor's. Imports the core.

use std::cmp::Reverse;
use std::time::Instant;

use super::Core;
use crate::rdma::ConnId;

impl Core {
    /// Runs the timers whose time had come at `due`, which is not after `now`.
    pub(super) fn expire(&mut self, due: Instant, now: Instant) {
        while let Some(Reverse((at, index, generation))) = self.timers.peek().copied() {
            if at > due {
                return;
            }
            self.timers.pop();
            let id = ConnId { index, generation };
            let Some(entry) = self.conns.get_mut(id) else {
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
                .is_some_and(|deadline| deadline <= due)
            {
                self.with(id, now, |entry, cx| entry.conn.timeout(cx));
            } else {
                self.schedule(id);
            }
        }
    }

    /// Puts a connection into the timer queue, unless it stands there for an earlier time already: timers that are
    /// set back with every message cost nothing.
    pub(super) fn schedule(&mut self, id: ConnId) {
        let Some(entry) = self.conns.get_mut(id) else {
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
}
