//! Operations that finish later: futures that any executor can poll and any thread can wait for.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::Error;

/// The result of an operation, when it is there. Dropping it abandons the result, never the operation; buffers that
/// belong to it then go back to their pool.
#[must_use = "an abandoned operation's result is lost"]
pub struct Op<T> {
    cell: Arc<Cell<T>>,
}

struct Cell<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

struct State<T> {
    result: Option<Result<T, Error>>,
    waker: Option<Waker>,
}

impl<T> Op<T> {
    /// An operation that has ended already.
    pub fn ready(result: Result<T, Error>) -> Self {
        Self {
            cell: Arc::new(Cell::new(Some(result))),
        }
    }

    /// An operation and the one who will finish it.
    pub(crate) fn pending() -> (Self, Completer<T>) {
        let cell = Arc::new(Cell::new(None));
        (Self { cell: cell.clone() }, Completer { cell })
    }

    /// Takes the result if it is there.
    pub fn try_take(&mut self) -> Option<Result<T, Error>> {
        self.cell.lock().result.take()
    }

    /// Waits on this thread. The connection's reactor must be driven by another thread.
    ///
    /// # Errors
    /// The operation failed.
    pub fn wait(self) -> Result<T, Error> {
        let mut state = self.cell.lock();
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            state = self
                .cell
                .done
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Future for Op<T> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.cell.lock();
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Op")
            .field("done", &self.cell.lock().result.is_some())
            .finish()
    }
}

impl<T> Cell<T> {
    fn new(result: Option<Result<T, Error>>) -> Self {
        Self {
            state: Mutex::new(State {
                result,
                waker: None,
            }),
            done: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finishes an [`Op`].
pub(crate) struct Completer<T> {
    cell: Arc<Cell<T>>,
}

impl<T> Completer<T> {
    /// Hands the result over. Returns who is to be woken, after locks are released.
    #[must_use]
    pub(crate) fn complete(self, result: Result<T, Error>) -> Option<Waker> {
        let mut state = self.cell.lock();
        state.result = Some(result);
        self.cell.done.notify_all();
        state.waker.take()
    }
}

impl<T> fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Completer")
    }
}
