//! Slabs: one registered region cut into slots of one size, with a reference count per slot.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;

use super::free_lists::{Chain, Slots};
use super::sync::{AtomicU32, Ordering, fence};
use super::{Access, Charge, Domain, IoBuf, MemoryBudget, Region, Registration};
use crate::rdma::{RdmaError, RdmaOperation, put_off};

/// How a slab's memory is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SlabOptions {
    /// Use huge pages where the system has them reserved, else ask for transparent ones.
    pub huge_pages: bool,
    /// Whether RDMA reads may go into it (default: yes). On iWARP devices the peer may then write to it, too.
    pub read_sinks: bool,
    /// What it is counted in, and limited by.
    pub budget: Option<MemoryBudget>,
}

impl Default for SlabOptions {
    fn default() -> Self {
        Self {
            huge_pages: false,
            read_sinks: true,
            budget: None,
        }
    }
}

/// Registered memory cut into slots of one size. Cloning is cheap and shares the memory, which is taken back when
/// the last clone and the last slot are gone.
#[derive(Clone)]
pub struct Slab {
    shared: Arc<Shared>,
}

/// A slab before there is a second reference to it.
pub(crate) struct NewSlab(Shared);

/// What the slab and all its slots hold together.
pub(crate) struct Shared {
    memory: ManuallyDrop<Memory>,
    domain: Arc<dyn Domain>,
    slot_size: usize,
    slots: Slots,
    counts: Box<[AtomicU32]>,
    /// Whether the memory can be written to at all.
    writable: bool,
}

/// What a device knows of. Giving it up may block, or run what its owner wants to be run then.
struct Memory {
    // Dropped in this order: the device forgets the memory before it is unmapped.
    registration: Registration,
    region: Region,
    _charge: Option<Charge>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: taken once, here, and not used again.
        put_off(unsafe { ManuallyDrop::take(&mut self.memory) });
    }
}

impl NewSlab {
    /// As [`Slab::new`].
    pub(crate) fn new(
        domain: &Arc<dyn Domain>,
        slot_size: usize,
        count: u32,
        options: SlabOptions,
    ) -> Result<Self, RdmaError> {
        let size = slot_size.max(1).checked_next_multiple_of(64);
        let len = size.and_then(|size| size.checked_mul(count as usize));
        let (Some(slot_size), Some(len)) = (size, len) else {
            // More than there are addresses: the system would say the same.
            return Err(RdmaError::Os {
                operation: RdmaOperation::AllocateMemory,
                errno: libc::ENOMEM,
            });
        };
        let region = Region::map(len, options.huge_pages)?;
        let access = if options.read_sinks {
            Access::DATA
        } else {
            Access::LOCAL
        };
        let slots = (slot_size, count);
        Self::over(domain, region, slots, access, options.budget.as_ref())
    }

    /// Registers a region as slots of a size and a number that it holds.
    pub(super) fn over(
        domain: &Arc<dyn Domain>,
        region: Region,
        (slot_size, count): (usize, u32),
        access: Access,
        budget: Option<&MemoryBudget>,
    ) -> Result<Self, RdmaError> {
        let charge = budget
            .map(|budget| budget.charge(region.len()))
            .transpose()?;
        // SAFETY: `Memory` drops the registration before the region, which stays mapped until then.
        let registration = unsafe { domain.register(region.base(), region.len(), access) }?;
        Ok(Self(Shared {
            memory: ManuallyDrop::new(Memory {
                registration,
                region,
                _charge: charge,
            }),
            domain: domain.clone(),
            slot_size,
            slots: Slots::full(count),
            counts: (0..count).map(|_| AtomicU32::new(0)).collect(),
            writable: access.local_write,
        }))
    }

    /// A slab of its own.
    pub(super) fn alone(self) -> Slab {
        Slab {
            shared: Arc::new(self.0),
        }
    }

    /// The slab with this number of a set, whose slots are taken through `chain`.
    pub(super) fn join(mut self, chain: &mut Chain, number: u32) -> Slab {
        chain.join(&mut self.0.slots, number);
        self.alone()
    }
}

impl Slab {
    /// Maps and registers memory for `count` slots of `slot_size` bytes (rounded up to a multiple of 64).
    ///
    /// # Errors
    /// The system has no memory, the device refuses to register it, or the budget is used up.
    pub fn new(
        domain: &Arc<dyn Domain>,
        slot_size: usize,
        count: u32,
        options: SlabOptions,
    ) -> Result<Self, RdmaError> {
        NewSlab::new(domain, slot_size, count, options).map(NewSlab::alone)
    }

    /// Takes a free slot as a buffer of the slot's whole size. Its contents are whatever was there before.
    pub fn take(&self) -> Option<IoBuf> {
        self.shared.slots.pop().map(|slot| self.buffer(slot))
    }

    /// How many slots are free; a moment's view.
    pub fn free(&self) -> usize {
        self.shared.slots.len()
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.shared.counts.len()
    }

    /// Bytes per slot.
    pub fn slot_size(&self) -> usize {
        self.shared.slot_size
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.shared.slots
    }

    /// A slot that was taken from [`Slab::slots`], as a buffer.
    pub(super) fn buffer(&self, slot: u32) -> IoBuf {
        self.shared.counts[slot as usize].store(1, Ordering::Relaxed);
        IoBuf::new(SlotRef {
            shared: self.shared.clone(),
            slot,
        })
    }

    /// Whether nobody has a slot, or is about to have given one back: all that was done so has happened before.
    pub(super) fn is_unused(&mut self) -> bool {
        Arc::get_mut(&mut self.shared).is_some()
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab")
            .field("slot_size", &self.slot_size())
            .field("count", &self.count())
            .field("free", &self.free())
            .finish_non_exhaustive()
    }
}

/// A counted reference to one slot. The slot goes back to its slab with the last one.
pub(crate) struct SlotRef {
    shared: Arc<Shared>,
    slot: u32,
}

impl SlotRef {
    /// The slot's first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        let offset = self.slot as usize * self.shared.slot_size;
        // SAFETY: `slot < count`, and the region holds `count * slot_size` bytes.
        unsafe { self.shared.memory.region.base().add(offset) }
    }

    pub(crate) fn size(&self) -> usize {
        self.shared.slot_size
    }

    pub(crate) fn local_key(&self) -> u32 {
        self.shared.memory.registration.local_key()
    }

    pub(crate) fn domain(&self) -> &Arc<dyn Domain> {
        &self.shared.domain
    }

    /// Whether the slot can be written to at all.
    pub(crate) fn is_writable(&self) -> bool {
        self.shared.writable
    }

    /// Whether this is the only reference to the slot. Pairs with the release in `drop`: all that other holders
    /// did with the slot has happened before.
    pub(crate) fn is_unique(&self) -> bool {
        self.shared.counts[self.slot as usize].load(Ordering::Acquire) == 1
    }
}

impl Clone for SlotRef {
    fn clone(&self) -> Self {
        self.shared.counts[self.slot as usize].fetch_add(1, Ordering::Relaxed);
        Self {
            shared: self.shared.clone(),
            slot: self.slot,
        }
    }
}

impl Drop for SlotRef {
    fn drop(&mut self) {
        if self.shared.counts[self.slot as usize].fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        self.shared.slots.push(self.slot);
    }
}
