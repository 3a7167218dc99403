//! Pools of registered memory: slabs of a few sizes in one registration domain.
//!
//! What a slot costs to take and to give back depends on how many sizes there are, and not on how many connections.
//!
//! A connection reserves its slots when it is made, so that the data path finds them without asking the system. Whatever
//! registers memory may take long: it is called under the reactor's lock only where the domain says that its
//! registrations do not block.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::rdma::{Domain, IoBuf, MemoryBudget, NewSlab, RdmaError, SlabOptions, SlabSet};

/// Slots that one slab holds at least, if they are small.
const MIN_SLOTS: usize = 64;
/// Bytes that a slab is made for, if its slots are large.
const SLAB_BYTES: usize = 1 << 20;
/// Slots that a slab grows to at most when its pool grows by doubling.
const MAX_SLOTS: usize = 4096;

/// Bytes of slots beyond reservations that are kept for reuse while nobody uses them, per use.
const RETAINED: usize = 64 << 20;

/// Slots of one domain: for messages, and apart from them for data, which the peer may be given rights to.
#[derive(Debug)]
pub(crate) struct Pools {
    domain: Arc<dyn Domain>,
    messages: Classes,
    data: Classes,
}

/// Slabs of one use, by slot size.
#[derive(Debug)]
struct Classes {
    options: SlabOptions,
    /// Held while memory is registered, so that two do not do it for the same want. `classes` is not.
    growth: Mutex<()>,
    classes: Mutex<Vec<Class>>,
}

/// Slots of one size.
#[derive(Debug)]
struct Class {
    slot_size: usize,
    slabs: SlabSet,
    reserved: usize,
}

/// Message slots that a connection has reserved, until this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved {
    pools: Arc<Pools>,
    /// Length and count.
    slots: Vec<(usize, usize)>,
}

/// One set of pools per registration domain that is in use.
#[derive(Debug)]
pub(crate) struct Registry {
    options: SlabOptions,
    pools: Mutex<Vec<Weak<Pools>>>,
}

impl Pools {
    pub(crate) fn new(domain: Arc<dyn Domain>, options: SlabOptions) -> Self {
        let classes = |read_sinks| Classes {
            options: SlabOptions {
                read_sinks,
                ..options.clone()
            },
            growth: Mutex::new(()),
            classes: Mutex::new(Vec::new()),
        };
        Self {
            domain,
            messages: classes(false),
            data: classes(true),
        }
    }

    pub(crate) fn domain(&self) -> &Arc<dyn Domain> {
        &self.domain
    }

    /// What all memory of the pools is counted in.
    pub(crate) fn budget(&self) -> Option<&MemoryBudget> {
        self.data.options.budget.as_ref()
    }

    /// Reserves message slots: of at least so many bytes, so many more of them. May register memory.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        slots: &[(usize, usize)],
    ) -> Result<Reserved, RdmaError> {
        let mut reserved = Reserved {
            pools: self.clone(),
            slots: Vec::with_capacity(slots.len()),
        };
        for (len, count) in slots {
            self.messages.reserve(&self.domain, *len, *count)?;
            reserved.slots.push((*len, *count));
        }
        Ok(reserved)
    }

    /// As [`Pools::reserve`], and makes sure that more than `leave` slots are free: what others were lent, or have queued,
    /// may exceed what they had reserved. May register memory.
    pub(crate) fn grow(
        self: &Arc<Self>,
        len: usize,
        count: usize,
        leave: usize,
    ) -> Result<Reserved, RdmaError> {
        let reserved = self.reserve(&[(len, count)])?;
        self.messages.make_room(&self.domain, len, leave)?;
        Ok(reserved)
    }

    /// Takes a message slot with its length set to `len` bytes, unless no more than `leave` are free, which are for others.
    pub(crate) fn take(&self, len: usize, leave: usize) -> Option<IoBuf> {
        self.messages.take(len, leave)
    }

    /// Whether slots for so many bytes are the same as those for so many.
    pub(crate) fn are_alike(len: usize, other: usize) -> bool {
        class_size(len) == class_size(other)
    }

    /// A buffer of `len` bytes for data, if there is a free one.
    pub(crate) fn take_data(&self, len: usize) -> Option<IoBuf> {
        self.data.take(len, 0)
    }

    /// A buffer of `len` bytes for data. May register memory.
    pub(crate) fn allocate(&self, len: usize) -> Result<IoBuf, RdmaError> {
        self.data.take_or_make(&self.domain, len)
    }

    /// Free message slots of at least `len` bytes; a moment's view.
    pub(crate) fn free(&self, len: usize) -> usize {
        self.messages.free(len)
    }
}

impl Classes {
    fn reserve(&self, domain: &Arc<dyn Domain>, len: usize, count: usize) -> Result<(), RdmaError> {
        let _growing = ignore_poison(self.growth.lock());
        let slot_size = class_size(len);
        let (have, reserved) = {
            let mut classes = self.lock();
            let class = class(&mut classes, slot_size);
            (class.slabs.count(), class.reserved)
        };
        let slab = match (reserved + count).saturating_sub(have) {
            0 => None,
            missing => Some(self.slab(domain, slot_size, missing, have)?),
        };
        let mut classes = self.lock();
        let class = class(&mut classes, slot_size);
        if let Some(slab) = slab {
            class.slabs.add(slab);
        }
        class.reserved += count;
        Ok(())
    }

    fn take(&self, len: usize, leave: usize) -> Option<IoBuf> {
        let mut classes = self.lock();
        let class = class(&mut classes, class_size(len));
        if leave > 0 && class.slabs.free() <= leave {
            return None;
        }
        let mut buf = class.slabs.take()?;
        buf.set_len(len);
        Some(buf)
    }

    /// A slot that nothing was reserved for.
    fn take_or_make(&self, domain: &Arc<dyn Domain>, len: usize) -> Result<IoBuf, RdmaError> {
        if let Some(buf) = self.take(len, 0) {
            return Ok(buf);
        }
        let _growing = ignore_poison(self.growth.lock());
        // Another one may have made some meanwhile.
        if let Some(buf) = self.take(len, 0) {
            return Ok(buf);
        }
        let slot_size = class_size(len);
        let slab = self.one_more(domain, slot_size, 1)?;
        let mut classes = self.lock();
        let class = class(&mut classes, slot_size);
        class.slabs.add(slab);
        // Before it is there for others.
        let mut buf = class.slabs.take().ok_or(RdmaError::Os {
            operation: crate::rdma::RdmaOperation::AllocateMemory,
            errno: libc::ENOMEM,
        })?;
        buf.set_len(len);
        Ok(buf)
    }

    /// Makes sure that more than `leave` slots are free, and one of them can be taken.
    fn make_room(
        &self,
        domain: &Arc<dyn Domain>,
        len: usize,
        leave: usize,
    ) -> Result<(), RdmaError> {
        let _growing = ignore_poison(self.growth.lock());
        // Another one may have made some meanwhile.
        if self.take(len, leave).is_some() {
            return Ok(());
        }
        let slot_size = class_size(len);
        let slab = self.one_more(domain, slot_size, leave + 1)?;
        class(&mut self.lock(), slot_size).slabs.add(slab);
        Ok(())
    }

    /// A further slab. The lock on growth is held.
    fn one_more(
        &self,
        domain: &Arc<dyn Domain>,
        slot_size: usize,
        missing: usize,
    ) -> Result<NewSlab, RdmaError> {
        self.give_up(slot_size);
        let have = class(&mut self.lock(), slot_size).slabs.count();
        self.slab(domain, slot_size, missing, have)
    }

    /// A slab of at least `missing` slots, where there are `have`: growing by as much as there is keeps the number of
    /// slabs, and of registrations, small.
    fn slab(
        &self,
        domain: &Arc<dyn Domain>,
        slot_size: usize,
        missing: usize,
        have: usize,
    ) -> Result<NewSlab, RdmaError> {
        let unit = (SLAB_BYTES / slot_size).clamp(1, MIN_SLOTS);
        let most = (4 * SLAB_BYTES / slot_size).clamp(1, MAX_SLOTS);
        let grow = missing.max(have).clamp(unit, most).max(missing);
        let grow = u32::try_from(grow).unwrap_or(u32::MAX);
        NewSlab::new(domain, slot_size, grow, self.options.clone())
    }

    /// Before more memory is taken: gives back what nobody uses or has reserved, as far as it is too much to keep.
    /// Otherwise a peer that makes its requests ever larger would leave behind what it used of each size.
    fn give_up(&self, wanted: usize) {
        let mut classes = self.lock();
        let mut kept: usize = classes.iter().map(Class::unreserved).sum();
        let mut given_up = Vec::new();
        for class in classes.iter_mut() {
            let slot_size = class.slot_size;
            let mut spare = class.unreserved();
            let goes = |slots| {
                let bytes = slots * slot_size;
                let goes = bytes <= spare && kept.saturating_add(wanted) > RETAINED;
                if goes {
                    kept -= bytes;
                    spare -= bytes;
                }
                goes
            };
            class.slabs.remove_unused(goes, &mut given_up);
        }
        // Taking memory back from a device may take long as well.
        drop(classes);
        drop(given_up);
    }

    fn free(&self, len: usize) -> usize {
        let slot_size = class_size(len);
        let classes = self.lock();
        let class = classes.iter().find(|class| class.slot_size == slot_size);
        class.map_or(0, |class| class.slabs.free())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Class>> {
        ignore_poison(self.classes.lock())
    }
}

impl Class {
    /// Bytes of slots beyond reservations.
    fn unreserved(&self) -> usize {
        self.slabs.count().saturating_sub(self.reserved) * self.slot_size
    }
}

impl Reserved {
    pub(crate) fn pools(&self) -> &Arc<Pools> {
        &self.pools
    }

    /// Adds what was reserved besides, in the same pools.
    pub(crate) fn add(&mut self, mut more: Self) {
        debug_assert!(Arc::ptr_eq(&self.pools, &more.pools));
        self.slots.append(&mut more.slots);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut classes = self.pools.messages.lock();
        for (len, count) in self.slots.drain(..) {
            let class = class(&mut classes, class_size(len));
            class.reserved = class.reserved.saturating_sub(count);
        }
    }
}

impl Registry {
    pub(crate) fn new(options: SlabOptions) -> Self {
        Self {
            options,
            pools: Mutex::new(Vec::new()),
        }
    }

    /// What all memory of all pools is counted in.
    pub(crate) fn budget(&self) -> Option<&MemoryBudget> {
        self.options.budget.as_ref()
    }

    /// The pools of a domain.
    pub(crate) fn of(&self, domain: &Arc<dyn Domain>) -> Arc<Pools> {
        let mut all = ignore_poison(self.pools.lock());
        all.retain(|pools| pools.strong_count() > 0);
        let same = |pools: &Arc<Pools>| Arc::ptr_eq(pools.domain(), domain);
        if let Some(pools) = all.iter().filter_map(Weak::upgrade).find(same) {
            return pools;
        }
        let pools = Arc::new(Pools::new(domain.clone(), self.options.clone()));
        all.push(Arc::downgrade(&pools));
        pools
    }
}

/// The class of a size, made on first use.
fn class(classes: &mut Vec<Class>, slot_size: usize) -> &mut Class {
    let found = classes
        .iter()
        .position(|class| class.slot_size == slot_size);
    let at = found.unwrap_or_else(|| {
        classes.push(Class {
            slot_size,
            slabs: SlabSet::new(),
            reserved: 0,
        });
        classes.len() - 1
    });
    &mut classes[at]
}

/// Every section under these locks leaves the pools valid, so a panic elsewhere does not spoil them.
fn ignore_poison<T>(result: Result<T, PoisonError<T>>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// The slot size for `len` bytes: few classes above 2 KiB, exact cache lines below. What is beyond
/// all addresses stays so, for the slab to refuse.
fn class_size(len: usize) -> usize {
    if len <= 2048 {
        len.max(64).next_multiple_of(64)
    } else {
        len.checked_next_power_of_two().unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::PlainDomain;

    #[test]
    fn reservations_are_kept_and_given_back() {
        let pools = Arc::new(Pools::new(PlainDomain::shared(), SlabOptions::default()));
        assert!(pools.take(1364, 0).is_none());
        let hundred = pools.reserve(&[(1364, 100)]).unwrap();
        let all: Vec<IoBuf> = std::iter::from_fn(|| pools.take(1364, 0)).collect();
        assert_eq!(
            (all.len(), all[0].len(), all[0].capacity()),
            (100, 1364, 1408)
        );
        let mut ten = pools.reserve(&[(1370, 10)]).unwrap();
        assert!(pools.take(1364, 0).is_some());
        drop((all, hundred));
        ten.add(pools.reserve(&[(1364, 90)]).unwrap());
        assert_eq!(pools.messages.lock()[0].slabs.slabs(), 2);
        assert_eq!(pools.messages.lock()[0].reserved, 100);
        drop(ten);
        assert_eq!(pools.messages.lock()[0].reserved, 0);
    }

    #[test]
    fn allocated_buffers_come_back_to_the_pool() {
        let pools = Arc::new(Pools::new(PlainDomain::shared(), SlabOptions::default()));
        let first = pools.allocate(3 << 20).unwrap();
        let second = pools.allocate(3 << 20).unwrap();
        assert_eq!(
            (first.len(), pools.data.lock()[0].slot_size),
            (3 << 20, 4 << 20)
        );
        let slabs = pools.data.lock()[0].slabs.slabs();
        drop((first, second));
        for _ in 0..10 {
            let _ = pools.allocate(3 << 20).unwrap();
        }
        assert_eq!(pools.data.lock()[0].slabs.slabs(), slabs);
    }

    #[test]
    fn slots_that_others_hold_beyond_their_reservation_are_replaced() {
        let pools = Arc::new(Pools::new(PlainDomain::shared(), SlabOptions::default()));
        let _ten = pools.reserve(&[(1364, 10)]).unwrap();
        let lent: Vec<IoBuf> = std::iter::from_fn(|| pools.take(1364, 0)).collect();
        assert!(lent.len() > 10);
        // The reservation alone is covered by what exists, none of which is free.
        let _eight = pools.reserve(&[(1364, 8)]).unwrap();
        assert!(pools.take(1364, 0).is_none());
        assert!(pools.grow(1364, 8, 0).is_ok());
        let more = pools.free(1364);
        assert!(more > 0);
        assert!(pools.grow(1364, 8, more - 1).is_ok());
        assert_eq!(pools.free(1364), more);
        assert!(pools.grow(1364, 8, more).is_ok());
        assert!(pools.free(1364) > more);
    }

    #[test]
    fn messages_and_data_never_share_a_registration() {
        let budget = MemoryBudget::new(1 << 20);
        let options = SlabOptions {
            budget: Some(budget.clone()),
            ..SlabOptions::default()
        };
        let pools = Arc::new(Pools::new(PlainDomain::shared(), options));
        let slots = pools.reserve(&[(4096, 64)]).unwrap();
        assert_eq!((pools.free(4096), budget.used()), (64, 64 * 4096));
        let _data = pools.allocate(4096).unwrap();
        assert_eq!((pools.free(4096), budget.used()), (64, 2 * 64 * 4096));
        assert!(!pools.messages.options.read_sinks && pools.data.options.read_sinks);
        let error = pools.allocate(1 << 20).unwrap_err();
        assert!(matches!(error, RdmaError::MemoryBudget { .. }), "{error}");
        drop((pools, slots));
        drop(_data);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        let pools = Arc::new(Pools::new(PlainDomain::shared(), SlabOptions::default()));
        for len in [usize::MAX, usize::MAX / 2 + 2, 1 << 60] {
            assert!(pools.allocate(len).is_err());
            assert!(pools.reserve(&[(len, usize::MAX / 2)]).is_err());
        }
        assert!(pools.allocate(100).is_ok());
    }

    #[test]
    fn what_is_not_used_is_kept_within_bounds() {
        let pools = Pools::new(PlainDomain::shared(), SlabOptions::default());
        let bytes = |pools: &Pools| {
            let classes = pools.data.lock();
            classes.iter().map(Class::unreserved).sum::<usize>()
        };
        // Each size in turn takes as much as may be kept, and leaves it.
        for bits in 14..24 {
            let (size, count) = (1 << bits, RETAINED >> bits);
            let used: Vec<IoBuf> = (0..count).map(|_| pools.allocate(size).unwrap()).collect();
            drop(used);
            let bytes = bytes(&pools);
            assert!(bytes <= RETAINED + (8 << 20), "{bytes} bytes");
        }
    }

    #[test]
    fn sizes_fall_into_few_classes() {
        assert_eq!(
            [1, 512, 1364, 2048, 2049, 8192].map(class_size),
            [64, 512, 1408, 2048, 4096, 8192]
        );
    }
}
