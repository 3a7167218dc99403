//! The free slots of many slabs: one that has some is found without a look at those that have none.
//!
//! Slabs with free slots stand in a chain whose links are their own, so that nothing is allocated. Whoever takes the last
//! slot of a slab takes the slab out of the chain; whoever gives the first one back puts it on a pile, which becomes the
//! chain when that is at an end. The free list says exactly who these two are, so that each slab is in one place at most.
//! One takes at a time; any number of threads give back meanwhile.

use std::sync::Arc;

use super::free_list::FreeList;
use super::sync::{AtomicU32, AtomicU64, Ordering};

/// "No slab" in a link.
const NONE: u32 = u32::MAX;

/// The free slots of one slab.
#[derive(Debug)]
pub(crate) struct Slots {
    list: FreeList,
    place: Option<Place>,
}

/// Where a slab is among those of a set.
#[derive(Debug)]
struct Place {
    number: u32,
    /// The slab behind it in the chain or on the pile. Written by whoever puts it there, who is alone then.
    next: AtomicU32,
    pile: Arc<Pile>,
}

/// Slabs that have got a slot since their last one was taken, and what is counted of all.
#[derive(Debug)]
struct Pile {
    top: AtomicU32,
    /// Free slots of all slabs.
    free: AtomicU64,
}

/// Takes slots: the only one of its set.
#[derive(Debug)]
pub(crate) struct Chain {
    first: u32,
    pile: Arc<Pile>,
}

impl Slots {
    /// Of a slab that is in no set.
    pub(crate) fn full(count: u32) -> Self {
        Self {
            list: FreeList::full(count),
            place: None,
        }
    }

    /// Takes a slot of a slab that is in no set: that of others are taken through their [`Chain`].
    pub(crate) fn pop(&self) -> Option<u32> {
        debug_assert!(self.place.is_none());
        self.list.pop().map(|popped| popped.slot)
    }

    /// Gives a slot back. The caller owns it and forgets it.
    pub(crate) fn push(&self, slot: u32) {
        let Some(place) = &self.place else {
            self.list.push(slot);
            return;
        };
        // Before it can be taken, so that the counter never goes below zero.
        place.pile.free.fetch_add(1, Ordering::Relaxed);
        if self.list.push(slot) {
            place.pile.put(place);
        }
    }

    /// How many slots are free; a moment's view.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }
}

impl Pile {
    fn put(&self, place: &Place) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            place.next.store(top, Ordering::Relaxed);
            match self.top.compare_exchange_weak(
                top,
                place.number,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all of it: nobody takes single slabs, so that the same top is the same pile.
    fn fetch(&self) -> u32 {
        self.top.swap(NONE, Ordering::Acquire)
    }
}

impl Chain {
    /// Of a set without slabs.
    pub(crate) fn new() -> Self {
        let pile = Pile {
            top: AtomicU32::new(NONE),
            free: AtomicU64::new(0),
        };
        Self {
            first: NONE,
            pile: Arc::new(pile),
        }
    }

    /// Lets a slab's slots, none of which are taken, join as those of slab `number`.
    pub(crate) fn join(&mut self, slots: &mut Slots, number: u32) {
        let count = slots.len();
        if count == 0 {
            return;
        }
        slots.place = Some(Place {
            number,
            next: AtomicU32::new(self.first),
            pile: self.pile.clone(),
        });
        self.first = number;
        self.pile.free.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Takes a slot; `slots` gives those of a slab. Returns the slab's number and the slot's.
    pub(crate) fn take<'a>(
        &mut self,
        slots: impl FnOnce(u32) -> Option<&'a Slots>,
    ) -> Option<(u32, u32)> {
        if self.first == NONE {
            self.first = self.pile.fetch();
        }
        let number = self.first;
        if number == NONE {
            return None;
        }
        let slots = slots(number)?;
        // Before its last slot is taken: from then on another may write it.
        let next = slots.next();
        let popped = slots.list.pop();
        debug_assert!(popped.is_some(), "a slab in the chain has slots");
        let popped = popped?;
        if popped.last {
            self.first = next;
        }
        self.pile.free.fetch_sub(1, Ordering::Relaxed);
        Some((number, popped.slot))
    }

    /// Lets slabs go, none of whose slots are taken or being given back.
    pub(crate) fn leave<'a>(
        &mut self,
        slots: impl Fn(u32) -> Option<&'a Slots>,
        leaves: impl Fn(u32) -> bool,
    ) {
        let mut kept = NONE;
        for first in [self.pile.fetch(), self.first] {
            let mut number = first;
            while let Some(slots) = slots(number) {
                let next = slots.next();
                if leaves(number) {
                    let count = slots.len() as u64;
                    self.pile.free.fetch_sub(count, Ordering::Relaxed);
                } else if let Some(place) = &slots.place {
                    place.next.store(kept, Ordering::Relaxed);
                    kept = number;
                }
                number = next;
            }
        }
        self.first = kept;
    }

    /// How many slots of all slabs are free; a moment's view.
    pub(crate) fn free(&self) -> usize {
        self.pile.free.load(Ordering::Relaxed) as usize
    }
}

impl Slots {
    fn next(&self) -> u32 {
        let next = |place: &Place| place.next.load(Ordering::Relaxed);
        self.place.as_ref().map_or(NONE, next)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Slabs of so many slots.
    fn set(counts: &[u32]) -> (Chain, Vec<Slots>) {
        let mut chain = Chain::new();
        let slabs = (0..).zip(counts).map(|(number, count)| {
            let mut slots = Slots::full(*count);
            chain.join(&mut slots, number);
            slots
        });
        let slabs = slabs.collect();
        (chain, slabs)
    }

    fn all(chain: &mut Chain, slabs: &[Slots]) -> Vec<(u32, u32)> {
        let mut all: Vec<_> =
            std::iter::from_fn(|| chain.take(|number| slabs.get(number as usize))).collect();
        assert_eq!(chain.free(), 0);
        all.sort_unstable();
        all
    }

    #[test]
    fn every_slot_of_every_slab_is_taken_once_and_again_when_it_is_back() {
        let (mut chain, slabs) = set(&[2, 0, 1, 3]);
        assert_eq!(chain.free(), 6);
        let taken = all(&mut chain, &slabs);
        assert_eq!(taken, [(0, 0), (0, 1), (2, 0), (3, 0), (3, 1), (3, 2)]);
        for (number, slot) in &taken {
            slabs[*number as usize].push(*slot);
        }
        assert_eq!(chain.free(), 6);
        assert_eq!(all(&mut chain, &slabs), taken);
        slabs[2].push(0);
        assert_eq!(all(&mut chain, &slabs), [(2, 0)]);
    }

    #[test]
    fn slabs_leave_from_the_chain_and_from_the_pile() {
        let (mut chain, slabs) = set(&[1, 1, 1, 1]);
        let slab = |number: u32| slabs.get(number as usize);
        assert_eq!(chain.take(slab), Some((3, 0)));
        assert_eq!(chain.take(slab), Some((2, 0)));
        slabs[3].push(0);
        slabs[2].push(0);
        chain.leave(slab, |number| number == 0 || number == 3);
        assert_eq!(chain.free(), 2);
        assert_eq!(all(&mut chain, &slabs), [(1, 0), (2, 0)]);
    }

    /// Many connections have many slabs, nearly all of whose slots are posted as receives.
    #[test]
    fn a_slot_is_found_with_one_look_however_many_slabs_there_are() {
        for count in [1, 10, 10_000] {
            let (mut chain, slabs) = set(&vec![2; count]);
            let looks = Cell::new(0);
            let mut take = || {
                looks.set(0);
                let taken = chain.take(|number| {
                    looks.set(looks.get() + 1);
                    slabs.get(number as usize)
                });
                assert!(looks.get() <= 1, "{} looks at {count} slabs", looks.get());
                taken
            };
            // Both when there is plenty and when nothing is left but what has just come back.
            while take().is_some() {}
            for (number, slots) in (0..).zip(&slabs) {
                slots.push(0);
                assert_eq!(take(), Some((number, 0)));
                assert_eq!(take(), None);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::thread;

    /// Slabs of so many slots, the first `held` of which are taken, and given back by threads of their own while one
    /// takes: each comes once.
    fn given_back_while_one_takes(counts: &'static [u32], held: usize) {
        let mut model = loom::model::Builder::new();
        // All interleavings take minutes.
        model.preemption_bound = Some(3);
        model.check(move || {
            let mut chain = Chain::new();
            let mut slabs = Vec::new();
            for (number, count) in (0..).zip(counts) {
                let mut slots = Slots::full(*count);
                chain.join(&mut slots, number);
                slabs.push(slots);
            }
            let slabs = Arc::new(slabs);
            let slab = |number: u32| slabs.get(number as usize);
            let threads: Vec<_> = (0..held)
                .map(|_| {
                    let (number, slot) = chain.take(slab).unwrap();
                    let slabs = slabs.clone();
                    thread::spawn(move || slabs[number as usize].push(slot))
                })
                .collect();
            let mut taken: Vec<_> = (0..2).filter_map(|_| chain.take(slab)).collect();
            for thread in threads {
                thread.join().unwrap();
            }
            taken.extend(std::iter::from_fn(|| chain.take(slab)));
            assert_eq!(chain.free(), 0);
            taken.sort_unstable();
            let all = (0..).zip(counts);
            let all: Vec<_> = all
                .flat_map(|(number, count)| (0..*count).map(move |slot| (number, slot)))
                .collect();
            assert_eq!(taken, all);
        });
    }

    #[test]
    fn no_slot_is_lost_or_taken_twice_in_one_slab() {
        given_back_while_one_takes(&[2], 2);
    }

    #[test]
    fn no_slot_is_lost_or_taken_twice_in_two_slabs() {
        given_back_while_one_takes(&[1, 1], 2);
    }

    /// The last slot of the first slab is taken while another one of it is given back.
    #[test]
    fn what_is_behind_a_slab_stays_in_the_chain() {
        given_back_while_one_takes(&[1, 2], 1);
    }
}
