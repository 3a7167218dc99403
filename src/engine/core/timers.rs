//! When connections want to be called: one queue for all of a reactor's. Imports the core.

use std::cmp::Reverse;
use std::time::Instant;

use super::Core;
use crate::rdma::ConnId;

/// Where a connection stands in the queue.
#[derive(Debug, Default)]
pub(crate) struct Scheduled {
    next: Option<Instant>,
    /// A later place: it serves again after a timer that came between, so that those which come and go leave nothing
    /// behind.
    later: Option<Instant>,
}

impl Scheduled {
    /// Takes a place, unless there is an earlier one.
    fn add(&mut self, at: Instant) -> bool {
        if self.next.is_some_and(|next| next <= at) {
            return false;
        }
        self.later = self.later.max(self.next);
        self.next = Some(at);
        true
    }

    /// A place has come to the front of the queue; false if it was given up.
    fn take(&mut self, at: Instant) -> bool {
        let counts = self.next == Some(at);
        if counts {
            self.next = self.later.take();
        }
        counts
    }
}

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
            if !entry.conn.scheduled.take(at) {
                // The connection was put into the queue again for an earlier time.
                continue;
            }
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
        if entry.conn.scheduled.add(deadline) {
            self.timers
                .push(Reverse((deadline, id.index, id.generation)));
        }
    }

    /// How many stand in the queue.
    #[cfg(test)]
    pub(crate) fn timers(&self) -> usize {
        self.timers.len()
    }
}
