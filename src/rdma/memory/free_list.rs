//! A lock-free stack of slot numbers: any thread may give a slot back while the reactor takes one.

use super::sync::{AtomicU32, AtomicU64, Ordering};

/// "No slot" in a link.
const NONE: u32 = u32::MAX;

/// A slot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Popped {
    pub(crate) slot: u32,
    /// It was the last: the list was empty then.
    pub(crate) last: bool,
}

/// A Treiber stack over slot numbers. The head carries a tag that changes with every operation, so that a slot
/// which was taken and given back in between cannot make a stale exchange succeed.
#[derive(Debug)]
pub(crate) struct FreeList {
    /// `tag << 32 | first slot`.
    head: AtomicU64,
    next: Box<[AtomicU32]>,
    len: AtomicU32,
}

impl FreeList {
    /// A list with the slots `0..count`, of which 0 is taken first.
    pub(crate) fn full(count: u32) -> Self {
        let next = (0..count)
            .map(|slot| AtomicU32::new(if slot + 1 < count { slot + 1 } else { NONE }))
            .collect();
        let first = if count == 0 { NONE } else { 0 };
        Self {
            head: AtomicU64::new(u64::from(first)),
            next,
            len: AtomicU32::new(count),
        }
    }

    /// Takes the slot that was given back last.
    pub(crate) fn pop(&self) -> Option<Popped> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let slot = head as u32;
            if slot == NONE {
                return None;
            }
            let next = self.next[slot as usize].load(Ordering::Relaxed);
            match self.head.compare_exchange_weak(
                head,
                retag(head, next),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    let last = next == NONE;
                    return Some(Popped { slot, last });
                }
                Err(now) => head = now,
            }
        }
    }

    /// Gives a slot back. The caller owns it and forgets it. Whether it is the first: the list was empty before.
    pub(crate) fn push(&self, slot: u32) -> bool {
        // Counted before it can be taken, so that the counter never goes below zero.
        self.len.fetch_add(1, Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            self.next[slot as usize].store(head as u32, Ordering::Relaxed);
            match self.head.compare_exchange_weak(
                head,
                retag(head, slot),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return head as u32 == NONE,
                Err(now) => head = now,
            }
        }
    }

    /// How many slots are free; a moment's view while other threads work.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }
}

fn retag(head: u64, slot: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | u64::from(slot)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn popped(slot: u32, last: bool) -> Option<Popped> {
        Some(Popped { slot, last })
    }

    #[test]
    fn takes_each_slot_once_and_the_last_returned_first() {
        let list = FreeList::full(3);
        assert_eq!(list.pop(), popped(0, false));
        assert_eq!(list.pop(), popped(1, false));
        assert_eq!((list.pop(), list.pop()), (popped(2, true), None));
        assert!(list.push(1));
        assert!(!list.push(2));
        assert_eq!(list.len(), 2);
        assert_eq!(list.pop(), popped(2, false));
        assert_eq!((list.pop(), list.pop()), (popped(1, true), None));
    }

    #[test]
    fn an_empty_list_has_nothing() {
        assert_eq!(FreeList::full(0).pop(), None);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn two_threads_never_own_the_same_slot() {
        loom::model(|| {
            let list = Arc::new(FreeList::full(2));
            let other = list.clone();
            let thread = loom::thread::spawn(move || {
                if let Some(popped) = other.pop() {
                    other.push(popped.slot);
                }
                other.pop()
            });
            let mine = list.pop();
            let theirs = thread.join().unwrap();
            let slot = |popped: Option<Popped>| popped.map(|popped| popped.slot);
            assert!(mine.is_none() || slot(mine) != slot(theirs));
            assert!(mine.is_some() || theirs.is_some());
        });
    }
}
