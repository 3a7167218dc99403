//! Pools of message slots: slabs of a few sizes in one registration domain.
//!
//! A connection reserves its slots when it is made, so that the data path finds them without asking the system.

use std::sync::Arc;

use crate::rdma::{Domain, IoBuf, RdmaError, Slab, SlabOptions};

/// Slots that one slab holds at least, if they are small.
const MIN_SLOTS: usize = 64;
/// Bytes that a slab is made for, if its slots are large.
const SLAB_BYTES: usize = 1 << 20;
/// Slots that a slab grows to at most when its pool grows by doubling.
const MAX_SLOTS: usize = 4096;

/// Slabs of one domain, by slot size.
#[derive(Debug)]
pub(crate) struct Pools {
    domain: Arc<dyn Domain>,
    options: SlabOptions,
    classes: Vec<Class>,
}

/// Slots of one size.
#[derive(Debug)]
struct Class {
    slot_size: usize,
    slabs: Vec<Slab>,
    reserved: usize,
}

impl Pools {
    pub(crate) fn new(domain: Arc<dyn Domain>, options: SlabOptions) -> Self {
        Self {
            domain,
            options,
            classes: Vec::new(),
        }
    }

    pub(crate) fn domain(&self) -> &Arc<dyn Domain> {
        &self.domain
    }

    /// Makes sure of `count` more slots of at least `len` bytes. May register memory.
    pub(crate) fn reserve(&mut self, len: usize, count: usize) -> Result<(), RdmaError> {
        let slot_size = class_size(len);
        let at = match self
            .classes
            .iter()
            .position(|class| class.slot_size == slot_size)
        {
            Some(at) => at,
            None => {
                self.classes.push(Class {
                    slot_size,
                    slabs: Vec::new(),
                    reserved: 0,
                });
                self.classes.len() - 1
            }
        };
        let class = &mut self.classes[at];
        let have: usize = class.slabs.iter().map(Slab::count).sum();
        if let Some(missing) = (class.reserved + count)
            .checked_sub(have)
            .filter(|n| *n > 0)
        {
            // Growing by as much as there is keeps the number of slabs, and of registrations, small.
            let unit = (SLAB_BYTES / slot_size).clamp(1, MIN_SLOTS);
            let most = (4 * SLAB_BYTES / slot_size).clamp(1, MAX_SLOTS);
            let grow = missing.max(have).clamp(unit, most).max(missing);
            let grow = u32::try_from(grow).unwrap_or(u32::MAX);
            class
                .slabs
                .push(Slab::new(&self.domain, slot_size, grow, self.options)?);
        }
        class.reserved += count;
        Ok(())
    }

    /// Gives a reservation back.
    pub(crate) fn release(&mut self, len: usize, count: usize) {
        if let Some(class) = self.class(len) {
            class.reserved = class.reserved.saturating_sub(count);
        }
    }

    /// Takes a slot with its length set to `len` bytes. `None` if all are in use.
    pub(crate) fn take(&mut self, len: usize) -> Option<IoBuf> {
        let class = self.class(len)?;
        let mut buf = class.slabs.iter().find_map(Slab::take)?;
        buf.set_len(len);
        Some(buf)
    }

    /// A buffer of `len` bytes that nothing was reserved for. May register memory.
    pub(crate) fn allocate(&mut self, len: usize) -> Result<IoBuf, RdmaError> {
        if let Some(buf) = self.take(len) {
            return Ok(buf);
        }
        let in_use = self.class(len).map_or(0, |class| {
            class
                .slabs
                .iter()
                .map(Slab::count)
                .sum::<usize>()
                .saturating_sub(class.reserved)
        });
        self.reserve(len, in_use + 1)?;
        self.release(len, in_use + 1);
        self.take(len).ok_or(RdmaError::Os {
            operation: crate::rdma::RdmaOperation::AllocateMemory,
            errno: libc::ENOMEM,
        })
    }

    /// Free slots beyond what `len`-sized reservations still may want; a moment's view.
    pub(crate) fn free(&self, len: usize) -> usize {
        let slot_size = class_size(len);
        self.classes
            .iter()
            .filter(|class| class.slot_size == slot_size)
            .flat_map(|class| &class.slabs)
            .map(Slab::free)
            .sum()
    }

    fn class(&mut self, len: usize) -> Option<&mut Class> {
        let slot_size = class_size(len);
        self.classes
            .iter_mut()
            .find(|class| class.slot_size == slot_size)
    }
}

/// The slot size for `len` bytes: few classes above 2 KiB, exact cache lines below.
fn class_size(len: usize) -> usize {
    if len <= 2048 {
        len.max(64).next_multiple_of(64)
    } else {
        len.next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::PlainDomain;

    #[test]
    fn reservations_are_kept_and_given_back() {
        let mut pools = Pools::new(PlainDomain::shared(), SlabOptions::default());
        assert!(pools.take(1364).is_none());
        pools.reserve(1364, 100).unwrap();
        let all: Vec<IoBuf> = std::iter::from_fn(|| pools.take(1364)).collect();
        assert_eq!(
            (all.len(), all[0].len(), all[0].capacity()),
            (100, 1364, 1408)
        );
        pools.reserve(1370, 10).unwrap();
        assert!(pools.take(1364).is_some());
        drop(all);
        pools.release(1364, 100);
        pools.reserve(1364, 90).unwrap();
        assert_eq!(pools.classes[0].slabs.len(), 2);
    }

    #[test]
    fn allocated_buffers_come_back_to_the_pool() {
        let mut pools = Pools::new(PlainDomain::shared(), SlabOptions::default());
        let first = pools.allocate(3 << 20).unwrap();
        let second = pools.allocate(3 << 20).unwrap();
        assert_eq!(
            (first.len(), pools.classes[0].slot_size),
            (3 << 20, 4 << 20)
        );
        let slabs = pools.classes[0].slabs.len();
        drop((first, second));
        for _ in 0..10 {
            let _ = pools.allocate(3 << 20).unwrap();
        }
        assert_eq!(pools.classes[0].slabs.len(), slabs);
    }

    #[test]
    fn slots_that_others_hold_beyond_their_reservation_are_replaced() {
        let mut pools = Pools::new(PlainDomain::shared(), SlabOptions::default());
        pools.reserve(1364, 10).unwrap();
        let lent: Vec<IoBuf> = std::iter::from_fn(|| pools.take(1364)).collect();
        assert!(lent.len() > 10);
        // The reservation alone is covered by what exists, none of which is free.
        pools.reserve(1364, 8).unwrap();
        assert!(pools.take(1364).is_none());
        assert!(pools.allocate(1364).is_ok());
    }

    #[test]
    fn sizes_fall_into_few_classes() {
        assert_eq!(
            [1, 512, 1364, 2048, 2049, 8192].map(class_size),
            [64, 512, 1408, 2048, 4096, 8192]
        );
    }
}
