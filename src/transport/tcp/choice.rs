//! Where the payload of a message goes: the reader puts the choice, and the application makes it.
//!
//! The application's code runs without the lock, so that the reader may have given up by the time that it answers. May
//! import buffers.

use bytes::Bytes;

use crate::rdma::IoBuf;

/// The choice for the message whose payload is still in the socket.
#[derive(Debug, Default)]
pub(super) enum Choice {
    /// There is none.
    #[default]
    None,
    /// Nobody has seen the prefix yet.
    Put(Bytes),
    /// The application has seen it and not answered.
    Asked(Bytes),
    Made(Decision),
}

/// Where a payload goes.
#[derive(Debug)]
pub(super) enum Decision {
    Heap,
    Into(IoBuf),
}

impl Choice {
    /// The reader shows the prefix of the next message.
    pub(super) fn put(&mut self, prefix: Bytes) {
        *self = Self::Put(prefix);
    }

    /// The application looks at the prefix, if there is a choice to be made; again, if it never answered because its code
    /// panicked.
    pub(super) fn ask(&mut self) -> Option<Bytes> {
        match std::mem::take(self) {
            Self::Put(prefix) | Self::Asked(prefix) => {
                *self = Self::Asked(prefix.clone());
                Some(prefix)
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// The application answers. The decision comes back if it was for a choice that the reader has taken back: what is
    /// put now is another one. To be dropped without the lock, as what owns a buffer's memory is the application's.
    #[must_use]
    pub(super) fn make(&mut self, decision: Decision) -> Option<Decision> {
        if !matches!(self, Self::Asked(_)) {
            return Some(decision);
        }
        *self = Self::Made(decision);
        None
    }

    /// The application does not want to choose. Whether there was a choice.
    pub(super) fn forgo(&mut self) -> bool {
        let open = matches!(self, Self::Put(_) | Self::Asked(_));
        if open {
            *self = Self::Made(Decision::Heap);
        }
        open
    }

    /// The reader takes the decision, if it is made.
    pub(super) fn take(&mut self) -> Option<Decision> {
        match std::mem::take(self) {
            Self::Made(decision) => Some(decision),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The reader waits no longer.
    pub(super) fn take_back(&mut self) {
        *self = Self::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_put_and_made() {
        let mut choice = Choice::default();
        assert!(choice.ask().is_none() && !choice.forgo());
        choice.put("head".into());
        assert!(choice.take().is_none());
        // Twice: an answer that never came is asked for again.
        assert_eq!(
            [choice.ask(), choice.ask()],
            [Some("head".into()), Some("head".into())]
        );
        assert!(choice.make(Decision::Heap).is_none());
        assert!(choice.ask().is_none());
        assert!(choice.take().is_some() && choice.take().is_none());
        choice.put("head".into());
        assert!(choice.forgo());
        assert!(choice.take().is_some());
    }

    #[test]
    fn an_answer_for_one_message_is_not_taken_for_the_next() {
        let mut choice = Choice::default();
        choice.put("first".into());
        assert!(choice.ask().is_some());
        choice.take_back();
        assert!(choice.make(Decision::Heap).is_some());
        choice.put("second".into());
        assert!(choice.make(Decision::Heap).is_some());
        assert_eq!(choice.ask(), Some("second".into()));
        assert!(choice.make(Decision::Heap).is_none());
    }
}
