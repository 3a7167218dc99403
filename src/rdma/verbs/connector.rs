//! Helper threads for `connect` calls that sleep: soft-iWARP connects its TCP socket inside the call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

use super::cm::{CmId, Handshake};
use crate::rdma::ConnId;

/// What a call returned.
pub(super) struct Returned {
    pub(super) conn: ConnId,
    pub(super) result: io::Result<()>,
}

/// The calls that are running, and where they report.
pub(super) struct Connector {
    wake: Arc<OwnedFd>,
    reports: (Sender<Returned>, Receiver<Returned>),
}

impl Connector {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            wake: Arc::new(wake),
            reports: channel(),
        })
    }

    /// Calls `connect` on a thread of its own, which ends with the call.
    pub(super) fn connect(
        &self,
        conn: ConnId,
        id: Arc<CmId>,
        private_data: Vec<u8>,
        depths: (u8, u8),
    ) -> io::Result<()> {
        let (report, wake) = (self.reports.0.clone(), self.wake.clone());
        std::thread::Builder::new()
            .name("smbdirect-connect".into())
            .spawn(move || {
                let result = id.connect(&Handshake {
                    private_data: &private_data,
                    initiator_depth: depths.0,
                    responder_resources: depths.1,
                });
                // The provider destroys the id, unless it is gone itself.
                drop(id);
                let _ = report.send(Returned { conn, result });
                let _ = rustix::io::write(&*wake, &1u64.to_ne_bytes());
            })?;
        Ok(())
    }

    /// The next call that has returned.
    pub(super) fn next(&self) -> Option<Returned> {
        self.reports.1.try_recv().ok()
    }

    /// Waits on a thread of its own until `calls` calls have returned, and then drops `kept`, which they use.
    pub(super) fn outlive<T: Send + 'static>(&mut self, calls: usize, kept: T) {
        let (_, reports) = std::mem::replace(&mut self.reports, channel());
        drop_after(kept, move || {
            for _ in 0..calls {
                let _ = reports.recv();
            }
        });
    }

    /// Takes the announcement back.
    pub(super) fn acknowledge(&self) {
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
    }
}

/// Drops on a thread of its own what sleeps while it is dropped.
pub(super) fn drop_aside<T: Send + 'static>(sleeper: T) {
    drop_after(sleeper, || ());
}

fn drop_after<T: Send + 'static>(kept: T, wait: impl FnOnce() + Send + 'static) {
    // Should there be no thread, `kept` is dropped with the closure: but for its being forgotten.
    let kept = std::mem::ManuallyDrop::new(kept);
    let waiting = std::thread::Builder::new()
        .name("smbdirect-connect".into())
        .spawn(move || {
            wait();
            drop(std::mem::ManuallyDrop::into_inner(kept));
        });
    if let Err(error) = waiting {
        tracing::error!(%error, "no thread: the memory of unfinished connects is given up");
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
