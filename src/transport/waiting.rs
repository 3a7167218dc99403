//! Tasks that wait for the same thing.

use std::task::Waker;

/// Wakers, each task's once. They are all woken together: who finds that there is not enough for all waits again.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Vec<Waker>);

impl Waiting {
    /// Adds a task, unless it waits already.
    pub(crate) fn add(&mut self, waker: &Waker) {
        if !self.0.iter().any(|one| one.will_wake(waker)) {
            self.0.push(waker.clone());
        }
    }

    /// Hands out all of them. What the list has allocated it keeps.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.0.drain(..)
    }
}
