//! Message slots of a connection beyond those that it begins with: made when they are needed, off the lock where that
//! may block, and asked for again where the system refused.

use std::time::{Duration, Instant};

use super::Conn;
use crate::engine::pool::Reserved;
use crate::rdma::{IoBuf, RdmaError};

/// How long to wait before memory that the system refused is asked for again, at first and at most.
const RETRY: Duration = Duration::from_millis(20);
const MOST_RARELY: Duration = Duration::from_millis(320);

/// Slots that are to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    /// Bytes of each.
    pub(crate) len: usize,
    /// To be reserved.
    pub(crate) count: usize,
    /// More than so many are to be free then.
    pub(crate) leave: usize,
}

/// Slots that somebody takes without leaving too few of them to others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Leave {
    /// While more of them can be made.
    pub(super) normally: usize,
    /// While no more can be made.
    pub(super) at_least: usize,
}

/// More message slots than were reserved.
#[derive(Debug, Default)]
pub(super) struct Growth {
    state: State,
    /// The next attempt, if the system refused.
    retry: Option<Instant>,
    /// How long the last attempts were apart.
    pause: Duration,
    /// How many slots were to be left when more were wanted last.
    leave: usize,
}

#[derive(Debug, Default)]
enum State {
    /// There is no need.
    #[default]
    None,
    /// These are to be asked for.
    Wanted(Missing),
    /// They are being made.
    Running,
    /// The system refused, until the next attempt.
    Refused,
}

impl Growth {
    /// Whether there may be more soon.
    pub(super) fn is_coming(&self) -> bool {
        matches!(self.state, State::Wanted(..) | State::Running)
    }

    /// When [`Growth::try_again`] wants to be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.retry
    }

    /// What was refused may be asked for again.
    pub(super) fn try_again(&mut self) {
        self.retry = None;
        if matches!(self.state, State::Refused) {
            self.state = State::None;
        }
    }

    /// A slot was there, with so many left.
    fn found(&mut self, leave: usize) {
        // What is sent leaves none, and so says nothing of what is missing for receives.
        if leave >= self.leave {
            self.pause = Duration::ZERO;
        }
    }

    /// An attempt is dear, and who has waited for long has most often to wait on.
    fn refused(&mut self, error: &RdmaError, now: Instant) {
        tracing::debug!(%error, "no memory for message slots, for now");
        self.state = State::Refused;
        self.pause = (2 * self.pause).clamp(RETRY, MOST_RARELY);
        self.retry.get_or_insert(now + self.pause);
    }
}

impl Conn {
    /// The slots that are missing, if they are to be asked for now.
    pub(crate) fn missing_slots(&mut self) -> Option<Missing> {
        match self.growth.state {
            State::Wanted(missing) if !self.closed => {
                self.growth.state = State::Running;
                Some(missing)
            }
            _ => None,
        }
    }

    /// The answer to that.
    pub(crate) fn grown(&mut self, slots: Result<Reserved, RdmaError>, now: Instant) {
        match slots {
            Ok(slots) => {
                self.growth.state = State::None;
                self.keep(slots);
            }
            Err(error) => self.growth.refused(&error, now),
        }
    }

    pub(super) fn keep(&mut self, more: Reserved) {
        self.growth.pause = Duration::ZERO;
        if let Some(slots) = &mut self.slots {
            slots.add(more);
        }
    }

    /// A slot of `len` bytes. If too few would be left, more of them are made: at once where that does not block, and else
    /// off the lock, and meanwhile, or where there is no memory, fewer are left.
    pub(super) fn take_slot(
        &mut self,
        len: usize,
        wanted: usize,
        leave: Leave,
        now: Instant,
    ) -> Option<IoBuf> {
        let pools = self.pools()?.clone();
        if let Some(slot) = pools.take(len, leave.normally) {
            self.growth.found(leave.normally);
            return Some(slot);
        }
        if matches!(self.growth.state, State::None) {
            self.growth.leave = leave.normally;
            self.stats.stalls_registration += 1;
            self.stats.registrations += 1;
            // Nobody tells this connection when others give back what they were lent, so that it must not wait for that.
            let missing = Missing {
                len,
                count: wanted.max(8),
                leave: leave.normally,
            };
            if pools.domain().may_block() {
                self.growth.state = State::Wanted(missing);
            } else {
                match pools.grow(len, missing.count, leave.normally) {
                    Ok(slots) => {
                        self.keep(slots);
                        // More can be had for others.
                        return pools.take(len, 0);
                    }
                    Err(error) => self.growth.refused(&error, now),
                }
            }
        }
        pools.take(len, leave.at_least)
    }
}
