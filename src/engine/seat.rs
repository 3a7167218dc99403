//! The driver's seat of a reactor: who has it works, and may sleep on what wakes the reactor.
//!
//! There is one. Of two threads asleep on the same descriptor one would take the wake-up that is for the other, and each
//! would sleep past the timers that the other one has set. May import std only.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

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
    taken: bool,
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

    fn sit_unless_taken(&self, state: &mut State) -> Option<Sitting<'_>> {
        if state.taken || state.reserved > 0 {
            return None;
        }
        state.taken = true;
        Some(Sitting(self))
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
        if !self.taken && self.reserved == 0 {
            self.waiting.drain(..).for_each(|thread| thread.unpark());
        }
    }
}

impl Reservation {
    /// Sits down as soon as the seat is free.
    pub(crate) fn sit(&self) -> Sitting<'_> {
        let waited = self.0.0.free.wait_while(self.0.lock(), |state| state.taken);
        waited.unwrap_or_else(PoisonError::into_inner).taken = true;
        Sitting(&self.0)
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
        state.taken = false;
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
