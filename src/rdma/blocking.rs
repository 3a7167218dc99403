//! The rule that nothing which may block is done under a reactor's lock: whoever holds it says so ([`NoBlocking`]), what
//! happens to be dropped meanwhile and may block is put off until it is released ([`put_off`]), and in debug builds the
//! calls that make and destroy what devices have check it ([`may_block`]). So every test of every provider is a
//! test of it.
//!
//! May import std only.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

thread_local! {
    /// Locks that this thread holds.
    static HELD: Cell<u32> = const { Cell::new(0) };
    /// What is to be dropped when it holds none.
    static LATER: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// As long as it lives, its thread calls nothing that may block. To be dropped after the lock.
pub(crate) struct NoBlocking {
    /// It belongs to its thread.
    _thread: PhantomData<*const ()>,
}

impl NoBlocking {
    pub(crate) fn begin() -> Self {
        HELD.set(HELD.get() + 1);
        Self {
            _thread: PhantomData,
        }
    }
}

impl Drop for NoBlocking {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        while HELD.get() == 0
            && let Some(next) = LATER.with_borrow_mut(Vec::pop)
        {
            drop(next);
        }
    }
}

/// Drops it, where that may block: as soon as the thread holds no lock.
pub(crate) fn put_off(what: impl Any) {
    if HELD.get() > 0 {
        LATER.with_borrow_mut(|later| later.push(Box::new(what)));
    }
}

/// To be called where something may block.
///
/// # Panics
/// In debug builds, if the thread must not.
#[cfg(any(test, feature = "testing", feature = "verbs"))]
#[track_caller]
pub(crate) fn may_block(what: &str) {
    debug_assert!(
        HELD.get() == 0 || std::thread::panicking(),
        "{what} under a reactor's lock"
    );
}

/// For what cannot be put off: does it although it may block.
#[cfg(feature = "verbs")]
pub(crate) fn excused<T>(work: impl FnOnce() -> T) -> T {
    let held = HELD.replace(0);
    let result = work();
    HELD.set(held);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::catch_unwind;

    #[test]
    fn only_who_holds_a_lock_must_not_block() {
        may_block("nothing");
        let held = NoBlocking::begin();
        let panics = || catch_unwind(|| may_block("registering")).is_err();
        assert_eq!(panics(), cfg!(debug_assertions));
        std::thread::spawn(|| may_block("another thread"))
            .join()
            .unwrap();
        drop(held);
        assert!(!panics());
    }

    #[test]
    fn what_is_put_off_is_dropped_after_the_last_lock() {
        struct Slow(std::rc::Rc<Cell<u32>>);
        impl Drop for Slow {
            fn drop(&mut self) {
                may_block("a slow drop");
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = std::rc::Rc::new(Cell::new(0));
        let (outer, inner) = (NoBlocking::begin(), NoBlocking::begin());
        for _ in 0..2 {
            put_off(Slow(dropped.clone()));
        }
        drop(inner);
        assert_eq!(dropped.get(), 0);
        drop(outer);
        assert_eq!(dropped.get(), 2);
        put_off(Slow(dropped.clone()));
        assert_eq!(dropped.get(), 3);
    }
}
