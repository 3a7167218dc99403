//! Operations that finish later: futures that any executor can poll and any thread can wait for.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{DisconnectReason, Error, ext};

/// The result of an operation, when it is there. Dropping it abandons the result, never the operation; buffers that
/// belong to it then go back to their pool.
#[must_use = "an abandoned operation's result is lost"]
pub struct Op<T> {
    state: OpState<T>,
    /// How long [`Op::wait`] looks for the result before it sleeps.
    spin: Duration,
}

enum OpState<T> {
    /// It had ended before anyone could wait for it.
    Ready(Option<Result<T, Error>>),
    Pending(Arc<Cell<T>>),
}

/// What both sides of an operation share.
struct Cell<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
    /// Nobody waits any more.
    abandoned: bool,
}

impl<T> Op<T> {
    /// An operation that has ended already.
    pub fn ready(result: Result<T, Error>) -> Self {
        Self {
            state: OpState::Ready(Some(result)),
            spin: Duration::ZERO,
        }
    }

    /// An operation and the one who will finish it.
    pub(crate) fn pending() -> (Self, Completer<T>) {
        Self::over(Arc::new(Cell::new()))
    }

    fn over(cell: Arc<Cell<T>>) -> (Self, Completer<T>) {
        let op = Self {
            state: OpState::Pending(cell.clone()),
            spin: Duration::ZERO,
        };
        (op, Completer { cell, done: false })
    }

    /// Lets [`Op::wait`] look for the result so long before it sleeps.
    pub(crate) fn spinning(mut self, spin: Duration) -> Self {
        self.spin = spin;
        self
    }

    /// Takes the result if it is there.
    pub fn try_take(&mut self) -> Option<Result<T, Error>> {
        match &mut self.state {
            OpState::Ready(result) => result.take(),
            OpState::Pending(cell) => cell.lock().result.take(),
        }
    }

    /// Waits on this thread. The connection's reactor must be driven by another thread.
    ///
    /// # Errors
    /// The operation failed.
    pub fn wait(mut self) -> Result<T, Error> {
        // Without a limit the wait has no other end than the result.
        loop {
            if let Some(result) = ext::block_on(self.spin, None, |cx| Pin::new(&mut self).poll(cx))
            {
                return result;
            }
        }
    }
}

// Nothing in it is ever pinned.
impl<T> Unpin for Op<T> {}

impl<T> Future for Op<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let cell = match &mut self.state {
            OpState::Ready(result) => return result.take().map_or(Poll::Pending, Poll::Ready),
            OpState::Pending(cell) => cell,
        };
        let mut state = cell.lock();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Op<T> {
    fn drop(&mut self) {
        if let OpState::Pending(cell) = &self.state {
            let mut state = cell.lock();
            state.abandoned = true;
            let left = (state.result.take(), state.waker.take());
            // What they do when they go is not for under the lock.
            drop(state);
            drop(left);
        }
    }
}

impl<T> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match &self.state {
            OpState::Ready(result) => result.is_some(),
            OpState::Pending(cell) => cell.lock().result.is_some(),
        };
        f.debug_struct("Op").field("done", &done).finish()
    }
}

impl<T> Cell<T> {
    fn new() -> Self {
        Self {
            state: Mutex::new(State::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, result: Result<T, Error>) -> Option<Waker> {
        let mut state = self.lock();
        if state.abandoned {
            drop(state);
            // Its buffers go back to their pool here.
            drop(result);
            return None;
        }
        state.result = Some(result);
        state.waker.take()
    }
}

impl<T> State<T> {
    fn new() -> Self {
        Self {
            result: None,
            waker: None,
            abandoned: false,
        }
    }
}

/// Finishes an [`Op`]. Dropped without a result it says that nobody is left who could have one: whatever goes wrong,
/// an operation ends.
pub(crate) struct Completer<T> {
    cell: Arc<Cell<T>>,
    done: bool,
}

impl<T> Completer<T> {
    /// Hands the result over. Returns who is to be woken, after locks are released.
    #[must_use]
    pub(crate) fn complete(mut self, result: Result<T, Error>) -> Option<Waker> {
        self.done = true;
        self.cell.complete(result)
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        if !self.done {
            let gone = Error::Closed(DisconnectReason::ReactorGone);
            if let Some(waker) = self.cell.complete(Err(gone)) {
                waker.wake();
            }
        }
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}

/// Makes operations out of those that are over: as many as are ever under way at a time are allocated, and no more.
pub(crate) struct OpPool<T> {
    cells: VecDeque<Arc<Cell<T>>>,
}

/// Cells that one pool keeps.
const MOST_CELLS: usize = 256;
/// Cells that are looked at for an operation: those in front have been used the longest time ago.
const PROBES: usize = 8;

impl<T> OpPool<T> {
    /// As [`Op::pending`].
    pub(crate) fn pending(&mut self) -> (Op<T>, Completer<T>) {
        for _ in 0..self.cells.len().min(PROBES) {
            let Some(mut cell) = self.cells.pop_front() else {
                break;
            };
            // Only where neither an operation nor a completer has it any more.
            let unused = Arc::get_mut(&mut cell).map(|cell| {
                let state = cell.state.get_mut();
                *state.unwrap_or_else(PoisonError::into_inner) = State::new();
            });
            self.cells.push_back(cell.clone());
            if unused.is_some() {
                return Op::over(cell);
            }
        }
        let cell = Arc::new(Cell::new());
        if self.cells.len() < MOST_CELLS {
            self.cells.push_back(cell.clone());
        }
        Op::over(cell)
    }
}

impl<T> Default for OpPool<T> {
    fn default() -> Self {
        Self {
            cells: VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells by its count whether it is still there.
    struct Counted(#[allow(dead_code)] Arc<()>);

    #[test]
    fn what_nobody_waits_for_is_dropped_at_once() {
        let mut pool = OpPool::default();
        for completed_first in [false, true] {
            let counted = Arc::new(());
            let (op, completer) = pool.pending();
            if completed_first {
                assert!(completer.complete(Ok(Counted(counted.clone()))).is_none());
                assert_eq!(Arc::strong_count(&counted), 2);
                drop(op);
            } else {
                drop(op);
                assert!(completer.complete(Ok(Counted(counted.clone()))).is_none());
            }
            assert_eq!(Arc::strong_count(&counted), 1);
        }
        assert_eq!(pool.cells.len(), 1);
    }

    #[test]
    fn an_operation_that_nobody_will_finish_ends() {
        let (op, completer) = Op::<u8>::pending();
        drop(completer);
        assert_eq!(op.wait(), Err(Error::Closed(DisconnectReason::ReactorGone)));
    }

    #[test]
    fn cells_are_used_again_when_both_sides_have_let_go() {
        let mut pool = OpPool::default();
        let (mut long, long_completer) = pool.pending();
        for n in 0..1000 {
            let (mut op, completer) = pool.pending();
            assert!(op.try_take().is_none());
            assert!(completer.complete(Ok(n)).is_none());
            assert_eq!(op.try_take(), Some(Ok(n)));
            assert_eq!(op.try_take(), None);
        }
        assert_eq!(pool.cells.len(), 2);
        assert!(long_completer.complete(Ok(7)).is_none());
        assert_eq!(long.try_take(), Some(Ok(7)));
    }

    #[test]
    fn more_than_the_pool_keeps_are_made_all_the_same() {
        let mut pool = OpPool::<u8>::default();
        let all: Vec<_> = (0..MOST_CELLS + 10).map(|_| pool.pending()).collect();
        assert_eq!(pool.cells.len(), MOST_CELLS);
        drop(all);
        assert_eq!(Op::ready(Ok(3)).wait(), Ok(3));
    }
}
