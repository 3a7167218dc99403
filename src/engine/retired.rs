//! What is ended and given back when the reactor's lock was released: ending may block, and memory is its owner's only
//! after what the peer could use it by has ended.
//!
//! Whoever releases the lock works the list off, unless somebody is at it already: so it is worked off in order, and
//! nobody waits.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::exposures::Reclaim;
use crate::rdma::Registration;
use crate::transport::List;

/// One thing on the list.
pub(crate) enum Retired {
    /// What was made for exposures.
    Prepared(List<Registration>),
    /// Memory whose owner wants it back.
    Memory(Reclaim),
    /// What an ended connection has left behind.
    Remains(Box<dyn Any + Send>),
}

impl Retired {
    /// Anything that may block when it is dropped.
    pub(crate) fn remains(what: impl Any + Send) -> Self {
        Self::Remains(Box::new(what))
    }

    fn end(self, wakers: &mut Vec<Waker>) {
        match self {
            Self::Prepared(list) => drop(list),
            Self::Memory(reclaim) => reclaim.give_back(wakers),
            Self::Remains(what) => drop(what),
        }
    }
}

/// The list.
#[derive(Default)]
pub(crate) struct RetiredList(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Retired>,
    /// Somebody works it off.
    busy: bool,
}

impl RetiredList {
    /// Appends in order.
    pub(crate) fn extend(&self, more: impl IntoIterator<Item = Retired>) {
        self.state().waiting.extend(more);
    }

    /// Ends everything, if nobody else is at it, and collects whom to wake then.
    pub(crate) fn work_off(&self, wakers: &mut Vec<Waker>) {
        let mut state = self.state();
        if state.busy || state.waiting.is_empty() {
            return;
        }
        state.busy = true;
        while let Some(next) = state.waiting.pop_front() {
            drop(state);
            next.end(wakers);
            state = self.state();
        }
        state.busy = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The list is whole at every moment, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Says when it goes, and waits until it may.
    struct Slow(u32, Sender<u32>, Option<Receiver<()>>);

    impl Drop for Slow {
        fn drop(&mut self) {
            self.1.send(self.0).unwrap();
            if let Some(may) = &self.2 {
                may.recv().unwrap();
            }
        }
    }

    #[test]
    fn it_is_worked_off_in_order_and_nobody_waits() {
        let list = Arc::new(RetiredList::default());
        let (sender, gone) = channel();
        let (go, may) = channel();
        list.extend([Retired::remains(Slow(1, sender.clone(), Some(may)))]);
        let other = list.clone();
        let thread = std::thread::spawn(move || other.work_off(&mut Vec::new()));
        assert_eq!(gone.recv(), Ok(1));
        // It is at the first; the next is left to it.
        list.extend([Retired::remains(Slow(2, sender, None))]);
        list.work_off(&mut Vec::new());
        assert!(gone.try_recv().is_err());
        go.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(gone.recv(), Ok(2));
    }
}
