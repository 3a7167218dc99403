//! Lines that strangers cause: who knocks again and again must not fill the log.

use std::thread;
use std::time::{Duration, Instant};

/// Between lines.
const BETWEEN: Duration = Duration::from_secs(1);
/// Between lines that are the same.
const AGAIN: Duration = Duration::from_secs(60);

/// At most a line per second, and one per minute of those that say the same one after the other.
pub(crate) struct Sparing<T> {
    last: Option<(T, Instant)>,
}

impl<T: PartialEq> Sparing<T> {
    pub(crate) fn new() -> Self {
        Self { last: None }
    }

    /// Tells what there is to say unless that was just said; then waits until the next may be.
    pub(crate) fn tell(&mut self, what: T, tell: impl FnOnce(&T)) {
        let said = |(last, at): &(T, Instant)| *last == what && at.elapsed() < AGAIN;
        if self.last.as_ref().is_some_and(said) {
            return;
        }
        tell(&what);
        self.last = Some((what, Instant::now()));
        thread::sleep(BETWEEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_just_said_is_not_said_again() {
        let (mut sparing, mut said) = (Sparing::new(), Vec::new());
        for what in [1, 1, 2, 2, 2, 1] {
            sparing.tell(what, |what| said.push(*what));
        }
        assert_eq!(said, [1, 2, 1]);
    }
}
