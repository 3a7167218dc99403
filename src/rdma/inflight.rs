//! The in-flight table: owns every posted buffer and request until its completion or its queue pair's destruction.
//!
//! Each queue of a queue pair has a [`Ring`], in posting order. What the device carries about is a number, the
//! [`WorkId`]: connection, generation, queue and sequence number. A completion whose id is of an earlier use of the
//! place, or of a request that came back already, finds nothing.

use std::collections::VecDeque;

/// Which queue of the queue pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    Send,
    Receive,
}

/// The 64 bits that travel through the device with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkId {
    pub(crate) queue: Queue,
    /// The connection's place in the provider's table; below [`WorkId::MAX_INDEX`].
    pub(crate) index: u32,
    /// The low 15 bits of the place's generation.
    pub(crate) generation: u16,
    /// The request's number in its queue.
    pub(crate) sequence: u32,
}

impl WorkId {
    /// Places that an id can name.
    pub(crate) const MAX_INDEX: u32 = 1 << 16;

    /// The id of a request of the connection at `index`.
    pub(crate) fn new(queue: Queue, index: u32, generation: u32, sequence: u32) -> Self {
        Self {
            queue,
            index,
            generation: Self::short(generation),
            sequence,
        }
    }

    /// As much of a generation as fits.
    pub(crate) fn short(generation: u32) -> u16 {
        (generation & 0x7fff) as u16
    }

    pub(crate) fn pack(self) -> u64 {
        let receive = u64::from(self.queue == Queue::Receive);
        receive << 63
            | u64::from(self.generation) << 48
            | u64::from(self.index & 0xffff) << 32
            | u64::from(self.sequence)
    }

    pub(crate) fn unpack(id: u64) -> Self {
        Self {
            queue: if id >> 63 == 1 {
                Queue::Receive
            } else {
                Queue::Send
            },
            generation: (id >> 48 & 0x7fff) as u16,
            index: (id >> 32 & 0xffff) as u32,
            sequence: id as u32,
        }
    }
}

/// What is posted to one queue, in order.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    /// Sequence number of the front.
    base: u32,
    /// `None` came back before its elders.
    items: VecDeque<Option<T>>,
    live: usize,
}

impl<T> Ring<T> {
    /// A ring for `capacity` requests without allocating again.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            base: 0,
            items: VecDeque::with_capacity(capacity),
            live: 0,
        }
    }

    /// Requests that are posted and did not come back.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Whether nothing is posted.
    pub(crate) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// The sequence number that the next request will have.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.base.wrapping_add(self.items.len() as u32)
    }

    /// Takes a request in, at the end.
    pub(crate) fn push(&mut self, item: T) {
        self.items.push_back(Some(item));
        self.live += 1;
    }

    /// Takes the youngest out again: the device did not take it.
    pub(crate) fn unpush(&mut self) -> Option<T> {
        let item = self.items.pop_back()??;
        self.live -= 1;
        Some(item)
    }

    /// The request with this number comes back, in whatever order.
    pub(crate) fn take(&mut self, sequence: u32) -> Option<T> {
        let place = sequence.wrapping_sub(self.base) as usize;
        let item = self.items.get_mut(place)?.take()?;
        self.live -= 1;
        while let Some(None) = self.items.front() {
            self.items.pop_front();
            self.base = self.base.wrapping_add(1);
        }
        Some(item)
    }

    /// The request with this number, while it is posted.
    pub(crate) fn get_mut(&mut self, sequence: u32) -> Option<&mut T> {
        let place = sequence.wrapping_sub(self.base) as usize;
        self.items.get_mut(place)?.as_mut()
    }

    /// All that was posted before the request with this number and is posted still.
    pub(crate) fn before(&mut self, sequence: u32) -> impl Iterator<Item = &mut T> {
        let count = sequence.wrapping_sub(self.base) as usize;
        self.items.iter_mut().take(count).flatten()
    }

    /// The eldest that is posted.
    pub(crate) fn front(&self) -> Option<&T> {
        self.items.iter().flatten().next()
    }

    /// The eldest that is posted comes back.
    pub(crate) fn pop_front(&mut self) -> Option<T> {
        while let Some(item) = self.items.pop_front() {
            self.base = self.base.wrapping_add(1);
            if let Some(item) = item {
                self.live -= 1;
                return Some(item);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_device() {
        for queue in [Queue::Send, Queue::Receive] {
            for (index, generation, sequence) in
                [(0, 0, 0), (1, 2, 3), (0xffff, u32::MAX, u32::MAX)]
            {
                let id = WorkId::new(queue, index, generation, sequence);
                assert_eq!(WorkId::unpack(id.pack()), id);
            }
        }
    }

    #[test]
    fn requests_come_back_once_in_any_order() {
        let mut ring = Ring::with_capacity(4);
        for item in 0..4 {
            assert_eq!(ring.next_sequence(), item);
            ring.push(item);
        }
        assert_eq!((ring.take(1), ring.take(1)), (Some(1), None));
        assert_eq!((ring.take(0), ring.len()), (Some(0), 2));
        assert_eq!(
            (ring.take(0), ring.take(4), ring.take(77)),
            (None, None, None)
        );
        assert_eq!(ring.front(), Some(&2));
        assert_eq!(ring.before(3).count(), 1);
        assert_eq!(ring.pop_front(), Some(2));
        assert_eq!(ring.pop_front(), Some(3));
        assert!(ring.is_empty() && ring.pop_front().is_none());
        assert_eq!(ring.next_sequence(), 4);
    }

    #[test]
    fn what_was_not_taken_comes_out_again_youngest_first() {
        let mut ring = Ring::with_capacity(4);
        ring.push('a');
        ring.push('b');
        assert_eq!((ring.unpush(), ring.next_sequence()), (Some('b'), 1));
        ring.push('c');
        assert_eq!((ring.take(1), ring.take(0)), (Some('c'), Some('a')));
        assert_eq!(ring.unpush(), None);
    }

    #[test]
    fn numbers_wrap() {
        let mut ring = Ring::with_capacity(2);
        ring.base = u32::MAX;
        ring.push(1);
        ring.push(2);
        assert!(ring.get_mut(u32::MAX).is_some() && ring.get_mut(0).is_some());
        assert!(ring.get_mut(1).is_none());
        assert_eq!(ring.before(0).count(), 1);
        assert_eq!((ring.take(0), ring.take(u32::MAX)), (Some(2), Some(1)));
        assert_eq!(ring.next_sequence(), 1);
    }
}
