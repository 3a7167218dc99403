//! Whether the server is there. While it is not, clients are refused before they are connected: who
//! is connected and sent away again comes back at once and without end (Linux), or hangs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use smbdirect::transport::{Close, Transport};

use crate::backend::{Backend, Unreachable};
use crate::probe::{self, Doubt};
use crate::report::Log;

/// How often a server is looked for that is away.
const AGAIN: Duration = Duration::from_millis(500);

/// What is known of the server, and the wish to know more.
#[derive(Default)]
pub(crate) struct Watch {
    away: AtomicBool,
    doubted: Mutex<bool>,
    doubt: Condvar,
}

impl Watch {
    /// Asks the server what it is and tells what is wrong with it, then looks again whenever
    /// somebody [doubts](Self::doubt) that it is there. Meanwhile clients can connect.
    ///
    /// # Errors
    /// There is no thread for it; in words.
    pub(crate) fn start(
        self: &Arc<Self>,
        backend: Backend,
        timeout: Duration,
        log: Log,
    ) -> Result<(), String> {
        let watch = self.clone();
        let thread = thread::Builder::new().name("backend".into());
        thread
            .spawn(move || watch.run(&backend, timeout, &log))
            .map(drop)
            .map_err(|error| format!("no thread for looking at the backend: {error}"))
    }

    /// Whether the server could not be reached when it was looked for last.
    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::Relaxed)
    }

    /// A connection to the server has failed, or there was none: is it there at all?
    pub(crate) fn doubt(&self) {
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.doubt.notify_one();
    }

    fn run(&self, backend: &Backend, timeout: Duration, log: &Log) {
        let mut doubt = probe::probe(backend, timeout);
        loop {
            if let Some(doubt) = &doubt {
                log.doubt(backend, doubt);
            }
            if let Some(Doubt::Unreachable(_)) = doubt {
                self.away.store(true, Ordering::Relaxed);
                while look(backend).is_err() {
                    thread::sleep(AGAIN);
                }
                self.away.store(false, Ordering::Relaxed);
                log.back(backend);
                // It may be another one, or have other settings.
                doubt = probe::probe(backend, timeout);
                continue;
            }
            self.wait_for_doubt();
            doubt = look(backend).err().map(Doubt::Unreachable);
        }
    }

    fn wait_for_doubt(&self) {
        let doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.doubt.wait_while(doubted, |doubted| !*doubted);
        *waited.unwrap_or_else(PoisonError::into_inner) = false;
    }
}

fn look(backend: &Backend) -> Result<(), Unreachable> {
    backend
        .connect()
        .map(|connection| connection.close(Close::Abort))
}
