//! The driver's seat of a reactor: who has it works, and may sleep on what wakes the reactor.
//!
//! There is one. Of two threads asleep on the same descriptor one would take the wake-up that is for the other, and each
//! would sleep past the timers that the other one has set. May import std only.

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(loom)]
use loom::thread::{self, Thread, ThreadId};
use std::sync::{Arc, PoisonError};
#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
use std::thread::{self, Thread, ThreadId};
use std::time::Instant;

/// A reactor's seat. Clones are of the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seat(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Whoever has reserved it may sit down.
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Who has it.
    sitter: Option<ThreadId>,
    /// How many come before all others.
    reserved: usize,
    /// Threads that want to know when it may be had.
    waiting: Vec<Thread>,
}

/// The seat, until it is dropped.
#[derive(Debug)]
pub(crate) struct Sitting<'a>(&'a Seat);

/// The right to have the seat before those who have none.
#[derive(Debug)]
pub(crate) struct Reservation(Seat);

/// A thread that drives if nobody else does.
#[derive(Debug)]
pub(crate) struct Standby<'a> {
    seat: &'a Seat,
    thread: Thread,
}

impl Seat {
    /// Sits down, if it is free and nobody has reserved it.
    pub(crate) fn try_sit(&self) -> Option<Sitting<'_>> {
        self.sit_unless_taken(&mut self.lock())
    }

    /// Reserves it: who has it without a reservation is to be woken, and finds it reserved when it has left it.
    pub(crate) fn reserve(&self) -> Reservation {
        self.lock().reserved += 1;
        Reservation(self.clone())
    }

    /// This thread may drive.
    pub(crate) fn standby(&self) -> Standby<'_> {
        Standby {
            seat: self,
            thread: thread::current(),
        }
    }

    /// Whether this thread has it.
    pub(crate) fn is_mine(&self) -> bool {
        self.lock().sitter == Some(thread::current().id())
    }

    fn sit_unless_taken(&self, state: &mut State) -> Option<Sitting<'_>> {
        if state.sitter.is_some() || state.reserved > 0 {
            return None;
        }
        Some(self.sit(state))
    }

    fn sit(&self, state: &mut State) -> Sitting<'_> {
        state.sitter = Some(thread::current().id());
        Sitting(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock but for want of memory, and the state is valid then, too.
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sitting<'_> {
    /// Whether somebody has reserved the seat.
    pub(crate) fn is_wanted(&self) -> bool {
        self.0.lock().reserved > 0
    }
}

impl State {
    /// Tells those who wait, if one of them may have it.
    fn tell(&mut self) {
        if self.sitter.is_none() && self.reserved == 0 {
            self.waiting.drain(..).for_each(|thread| thread.unpark());
        }
    }
}

impl Reservation {
    /// Sits down as soon as the seat is free.
    pub(crate) fn sit(&self) -> Sitting<'_> {
        let mut state = self.0.lock();
        while state.sitter.is_some() {
            let waited = self.0.0.free.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        self.0.sit(&mut state)
    }

    /// The same, until this time at the latest.
    pub(crate) fn sit_until(&self, deadline: Instant) -> Option<Sitting<'_>> {
        let mut state = self.0.lock();
        while state.sitter.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.0.0.free.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(self.0.sit(&mut state))
    }
}

impl Standby<'_> {
    /// Sits down if that may be. Else the thread is unparked when it may try again.
    pub(crate) fn try_sit(&self) -> Option<Sitting<'_>> {
        let mut state = self.seat.lock();
        let sitting = self.seat.sit_unless_taken(&mut state);
        if sitting.is_none() && !state.waiting.iter().any(|thread| self.is(thread)) {
            state.waiting.push(self.thread.clone());
        }
        sitting
    }

    fn is(&self, thread: &Thread) -> bool {
        self.thread.id() == thread.id()
    }
}

impl Drop for Sitting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.sitter = None;
        state.tell();
        let reserved = state.reserved > 0;
        drop(state);
        // A system call, also when nobody waits.
        if reserved {
            self.0.0.free.notify_one();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.reserved -= 1;
        state.tell();
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        self.seat.lock().waiting.retain(|thread| !self.is(thread));
    }
}

#[cfg(test)]
impl Seat {
    /// How many want to know when it may be had.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn there_is_one_seat_and_it_is_told_when_it_is_free() {
        let seat = Seat::default();
        let first = seat.try_sit().unwrap();
        assert!(seat.try_sit().is_none());
        let standby = seat.standby();
        assert!(standby.try_sit().is_none() && standby.try_sit().is_none());
        assert_eq!(seat.waiting(), 1);
        drop(first);
        // Returns at once: it was told.
        thread::park();
        assert_eq!(seat.waiting(), 0);
        let second = standby.try_sit().unwrap();
        drop(second);
        assert!(seat.try_sit().is_some());
    }

    #[test]
    fn a_reservation_comes_first() {
        let seat = Seat::default();
        let first = seat.try_sit().unwrap();
        assert!(!first.is_wanted());
        let reservation = seat.reserve();
        assert!(first.is_wanted());
        let standby = seat.standby();
        drop(first);
        assert!(standby.try_sit().is_none() && seat.try_sit().is_none());
        let owner = reservation.sit();
        drop(owner);
        assert!(standby.try_sit().is_none());
        drop(reservation);
        thread::park();
        assert!(standby.try_sit().is_some());
    }

    #[test]
    fn who_waits_no_longer_is_forgotten() {
        let seat = Seat::default();
        let _first = seat.try_sit().unwrap();
        let standby = seat.standby();
        assert!(standby.try_sit().is_none());
        drop(standby);
        assert_eq!(seat.waiting(), 0);
    }

    #[test]
    fn who_has_reserved_waits_for_who_sits() {
        let seat = Seat::default();
        let first = seat.try_sit().unwrap();
        let reservation = seat.reserve();
        let thread = thread::spawn(move || drop(reservation.sit()));
        drop(first);
        thread.join().unwrap();
        assert!(seat.try_sit().is_some());
    }
    #[test]
    fn who_waits_for_so_long_and_who_asks_for_itself() {
        let seat = Seat::default();
        let first = seat.try_sit().unwrap();
        let reservation = seat.reserve();
        assert!(reservation.sit_until(Instant::now()).is_none());
        let moment = Duration::from_millis(1);
        assert!(reservation.sit_until(Instant::now() + moment).is_none());
        assert!(seat.is_mine());
        let other = seat.clone();
        assert!(!thread::spawn(move || other.is_mine()).join().unwrap());
        drop(first);
        assert!(!seat.is_mine());
        assert!(reservation.sit_until(Instant::now()).is_some());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    /// One sits, two wait in different ways until the seat is free: each of them gets it.
    #[test]
    fn everybody_sits_in_the_end() {
        loom::model(|| {
            let seat = Seat::default();
            let first = seat.try_sit().unwrap();
            let stands_by = {
                let seat = seat.clone();
                thread::spawn(move || {
                    let standby = seat.standby();
                    while standby.try_sit().is_none() {
                        thread::park();
                    }
                })
            };
            let reserves = {
                let seat = seat.clone();
                thread::spawn(move || drop(seat.reserve().sit()))
            };
            drop(first);
            stands_by.join().unwrap();
            reserves.join().unwrap();
            assert!(seat.try_sit().is_some());
            assert!(seat.lock().waiting.is_empty());
        });
    }
}
