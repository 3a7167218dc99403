//! Deadlines from the times that users choose. Imports nothing.

use std::time::{Duration, Instant};

/// As good as never, and far from the end of what an [`Instant`] can hold.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// `now + time`, where `time` may be as long as [`Duration::MAX`].
pub(crate) fn after(now: Instant, time: Duration) -> Instant {
    now + time.min(FOREVER)
}
