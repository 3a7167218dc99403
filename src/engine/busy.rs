//! When timers may run: after the work, but not only when there is none left.
//!
//! A process that was suspended must find its peers' messages before it finds them silent, so that timers wait until
//! a pass left nothing to do. Peers that keep the reactor busy all the time must not stop its clock with that: work
//! that went on for a while has reached everybody who had something to say.

use std::time::{Duration, Instant};

/// Work of this length reaches every connection: each gets its turn, over and over.
const LONG: Duration = Duration::from_secs(1);
/// A pause between two passes that is no work: whoever drives had no time for it, or was suspended.
const PAUSE: Duration = Duration::from_millis(500);

/// How long the reactor has been at work without a pause.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    since: Option<Instant>,
    last: Option<Instant>,
}

impl Busy {
    /// After a pass, which left `more` to do or not: timers whose time had come by then may run.
    pub(crate) fn timers_until(&mut self, now: Instant, more: bool) -> Option<Instant> {
        let last = self.last.replace(now);
        if !more {
            self.since = None;
            return Some(now);
        }
        let paused = last.is_some_and(|last| now.saturating_duration_since(last) > PAUSE);
        let since = match self.since {
            Some(since) if !paused => since,
            _ => *self.since.insert(now),
        };
        if now.saturating_duration_since(since) < LONG {
            return None;
        }
        self.since = Some(now);
        Some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn work_without_end_does_not_stop_the_clock() {
        let start = Instant::now();
        let mut busy = Busy::default();
        assert_eq!(busy.timers_until(start, false), Some(start));
        let mut ran = Vec::new();
        for step in 1..=31 {
            ran.extend(busy.timers_until(start + STEP * step, true));
        }
        // Those that were due when a second of work began.
        let begins = [1, 11, 21].map(|step| start + STEP * step);
        assert_eq!(ran, begins);
        assert_eq!(
            busy.timers_until(start + STEP * 32, false),
            Some(start + STEP * 32)
        );
    }

    #[test]
    fn a_pause_is_no_work() {
        let start = Instant::now();
        let mut busy = Busy::default();
        assert_eq!(busy.timers_until(start, true), None);
        let hour = start + Duration::from_secs(3600);
        for step in 0..10 {
            assert_eq!(busy.timers_until(hour + STEP * step, true), None);
        }
        assert_eq!(busy.timers_until(hour + STEP * 10, true), Some(hour));
    }
}
