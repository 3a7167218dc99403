//! How a client is left that is still there: not amid what it sends.
//!
//! Linux' client (seen with 6.12) hangs for good if its connection ends while one of its Sends is
//! under way: it waits for the Send's success with its lock held, and never connects again. Once it
//! is answered nothing more it soon has nothing to send, or no credits to send with. Until then its
//! Sends are received, and so acknowledged.

use std::time::{Duration, Instant};

use smbdirect::engine::Channel;
use smbdirect::transport::{Transport, TransportExt};

use crate::connections::Stop;

/// Who has sent nothing for this time has nothing under way.
pub(crate) const QUIET: Duration = Duration::from_millis(50);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until the client has sent nothing for `quiet`, is gone, or there is no time left: `limit`
/// is over, or the gateway ends.
pub(crate) fn wait_for_silence(client: &Channel, quiet: Duration, limit: Duration, stop: &Stop) {
    let start = Instant::now();
    let mut receives = client.stats().receives;
    let mut heard = start;
    while start.elapsed() < limit && !stop.is_over() {
        if client.closed_blocking(Some(LOOK)).is_some() {
            return;
        }
        let now = client.stats().receives;
        if now != receives {
            (receives, heard) = (now, Instant::now());
        } else if heard.elapsed() >= quiet {
            // Only after a look: this thread may have had no processor for so long.
            return;
        }
    }
}
