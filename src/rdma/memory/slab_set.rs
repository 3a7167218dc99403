//! Slabs of slots of one size, as one: as many as are needed, each with a registration of its own.

use super::free_lists::{Chain, Slots};
use super::slab::NewSlab;
use super::{IoBuf, Slab};

/// Slabs that slots are taken from in a time that does not depend on how many there are. One takes at a time; slots are
/// given back by any thread.
#[derive(Debug)]
pub(crate) struct SlabSet {
    /// By number.
    slabs: Vec<Option<Slab>>,
    /// Numbers of slabs that were removed.
    vacant: Vec<u32>,
    chain: Chain,
    /// Slots of all slabs.
    count: usize,
}

impl SlabSet {
    /// Without slabs.
    pub(crate) fn new() -> Self {
        Self {
            slabs: Vec::new(),
            vacant: Vec::new(),
            chain: Chain::new(),
            count: 0,
        }
    }

    /// Slots of a further slab are the next to be taken.
    pub(crate) fn add(&mut self, slab: NewSlab) {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.slabs.push(None);
            // The mappings of so many would not fit into the address space.
            u32::try_from(self.slabs.len() - 1).expect("fewer than 2^32 slabs")
        });
        let slab = slab.join(&mut self.chain, number);
        self.count += slab.count();
        self.slabs[number as usize] = Some(slab);
    }

    /// Takes a free slot as a buffer of the slot's whole size. Its contents are whatever was there before.
    pub(crate) fn take(&mut self) -> Option<IoBuf> {
        let (number, slot) = self.chain.take(|number| slots(&self.slabs, number))?;
        let slab = self.slabs[number as usize].as_ref()?;
        Some(slab.buffer(slot))
    }

    /// Removes slabs that nobody uses, those of which `goes` says so when it is told how many slots they have.
    pub(crate) fn remove_unused(
        &mut self,
        mut goes: impl FnMut(usize) -> bool,
        removed: &mut Vec<Slab>,
    ) {
        let mut leaving = Vec::new();
        for (number, slab) in (0..).zip(&mut self.slabs) {
            if let Some(slab) = slab
                && slab.is_unused()
                && goes(slab.count())
            {
                leaving.push(number);
            }
        }
        if leaving.is_empty() {
            return;
        }
        let leaves = |number: u32| leaving.binary_search(&number).is_ok();
        self.chain
            .leave(|number| slots(&self.slabs, number), leaves);
        for number in leaving {
            if let Some(slab) = self.slabs[number as usize].take() {
                self.count -= slab.count();
                self.vacant.push(number);
                removed.push(slab);
            }
        }
    }

    /// How many slots there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// How many slots are free; a moment's view.
    pub(crate) fn free(&self) -> usize {
        self.chain.free()
    }

    /// How many slabs there are.
    #[cfg(test)]
    pub(crate) fn slabs(&self) -> usize {
        self.slabs.len() - self.vacant.len()
    }
}

fn slots(slabs: &[Option<Slab>], number: u32) -> Option<&Slots> {
    slabs.get(number as usize)?.as_ref().map(Slab::slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::{PlainDomain, SlabOptions};

    fn slab(count: u32) -> NewSlab {
        let domain = PlainDomain::shared();
        NewSlab::new(&domain, 64, count, SlabOptions::default()).unwrap()
    }

    fn take_all(set: &mut SlabSet) -> Vec<IoBuf> {
        std::iter::from_fn(|| set.take()).collect()
    }

    #[test]
    fn slots_of_all_slabs_are_taken_and_come_back() {
        let mut set = SlabSet::new();
        assert!(set.take().is_none());
        for count in [3, 1, 2] {
            set.add(slab(count));
        }
        assert_eq!((set.count(), set.free(), set.slabs()), (6, 6, 3));
        let all = take_all(&mut set);
        assert_eq!((all.len(), set.free()), (6, 0));
        let mut addresses: Vec<_> = all.iter().map(IoBuf::address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 6);
        drop(all);
        assert_eq!((set.free(), take_all(&mut set).len()), (6, 6));
    }

    #[test]
    fn only_what_nobody_uses_is_removed_and_its_place_is_used_again() {
        let mut set = SlabSet::new();
        (0..3).for_each(|_| set.add(slab(2)));
        // The last one is taken from first.
        let used = set.take().unwrap();
        let mut removed = Vec::new();
        set.remove_unused(|_| false, &mut removed);
        assert!(removed.is_empty());
        let mut asked = 0;
        let first = |count| {
            assert_eq!(count, 2);
            asked += 1;
            asked == 1
        };
        set.remove_unused(first, &mut removed);
        assert_eq!((asked, removed.len()), (2, 1));
        assert_eq!((set.count(), set.free(), set.slabs()), (4, 3, 2));
        set.add(slab(1));
        assert_eq!((set.slabs.len(), set.count(), set.free()), (3, 5, 4));
        let all = take_all(&mut set);
        assert_eq!(all.len(), 4);
        drop((used, all));
        set.remove_unused(|_| true, &mut removed);
        assert_eq!((removed.len(), set.count(), set.free()), (4, 0, 0));
        assert!(set.take().is_none());
    }

    #[test]
    fn threads_give_back_while_one_takes() {
        let mut set = SlabSet::new();
        (0..4).for_each(|_| set.add(slab(2)));
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel::<IoBuf>();
            let receiver = std::sync::Arc::new(std::sync::Mutex::new(receiver));
            for _ in 0..3 {
                let receiver = receiver.clone();
                scope.spawn(move || {
                    while let Ok(buf) = { receiver.lock().unwrap().recv() } {
                        assert!(buf.iter().all(|byte| *byte == buf[0]));
                    }
                });
            }
            let mut taken = 0u32;
            while taken < 20_000 {
                let Some(mut buf) = set.take() else {
                    std::thread::yield_now();
                    continue;
                };
                buf.fill(taken as u8);
                sender.send(buf).unwrap();
                taken += 1;
            }
        });
        assert_eq!((set.free(), take_all(&mut set).len()), (8, 8));
    }
}
