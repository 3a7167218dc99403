//! How a client is left that is still there: not amid what it sends.
//!
//! Linux' client (seen with 6.12) hangs for good if its connection ends while one of its Sends is
//! under way: it waits for the Send's success with its lock held, and never connects again. Once it
//! is answered nothing more it soon has nothing to send, or no credits to send with. Until then its
//! Sends are received, and so acknowledged.

use std::time::{Duration, Instant};

use smbdirect::engine::Channel;
use smbdirect::transport::{Transport, TransportExt};

/// Who has sent nothing for this time has nothing under way.
const QUIET: Duration = Duration::from_millis(50);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until the client sends nothing, is gone, or `limit` is over.
pub(crate) fn wait_for_silence(client: &Channel, limit: Duration) {
    let start = Instant::now();
    let mut receives = client.stats().receives;
    let mut heard = start;
    while heard.elapsed() < QUIET && start.elapsed() < limit {
        if client.closed_blocking(Some(LOOK)).is_some() {
            return;
        }
        let now = client.stats().receives;
        if now != receives {
            (receives, heard) = (now, Instant::now());
        }
    }
}
