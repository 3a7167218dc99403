//! Slabs: one registered region cut into slots of one size, with a reference count per slot.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::free_list::FreeList;
use super::sync::{AtomicU32, Ordering, fence};
use super::{Access, Domain, IoBuf, Region, Registration};
use crate::rdma::RdmaError;

/// How a slab's memory is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlabOptions {
    /// Use huge pages where the system has them reserved, else ask for transparent ones.
    pub huge_pages: bool,
}

/// Registered memory cut into slots of one size. Cloning is cheap and shares the memory, which is taken back when
/// the last clone and the last slot are gone.
#[derive(Clone)]
pub struct Slab {
    shared: Arc<Shared>,
}

/// What the slab and all its slots hold together.
pub(crate) struct Shared {
    // Dropped in this order: the device forgets the memory before it is unmapped.
    registration: Registration,
    region: Region,
    domain: Arc<dyn Domain>,
    slot_size: usize,
    free: FreeList,
    counts: Box<[AtomicU32]>,
}

impl Slab {
    /// Maps and registers memory for `count` slots of `slot_size` bytes (rounded up to a multiple of 64).
    ///
    /// # Errors
    /// The system has no memory, or the device refuses to register it.
    pub fn new(
        domain: &Arc<dyn Domain>,
        slot_size: usize,
        count: u32,
        options: SlabOptions,
    ) -> Result<Self, RdmaError> {
        let slot_size = slot_size.max(1).next_multiple_of(64);
        let region = Region::map(slot_size * count as usize, options.huge_pages)?;
        Self::over(domain, region, slot_size, count)
    }

    /// Registers memory that the caller brings, as one slot.
    ///
    /// # Safety
    /// `base..base + len` is valid for reads and writes, and read or written by nobody but through the slab's
    /// buffers, until `owner` is dropped. The slab drops it when the last buffer and the last clone are gone.
    ///
    /// # Errors
    /// The device refuses to register it.
    pub unsafe fn from_owner(
        domain: &Arc<dyn Domain>,
        base: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, RdmaError> {
        // SAFETY: the caller's promise is the one that `Region::from_owner` asks for.
        let region = unsafe { Region::from_owner(base, len, owner) };
        Self::over(domain, region, len, 1)
    }

    fn over(
        domain: &Arc<dyn Domain>,
        region: Region,
        slot_size: usize,
        count: u32,
    ) -> Result<Self, RdmaError> {
        // SAFETY: `Shared` drops the registration before the region, which stays mapped until then.
        let registration = unsafe { domain.register(region.base(), region.len(), Access::LOCAL) }?;
        Ok(Self {
            shared: Arc::new(Shared {
                registration,
                region,
                domain: domain.clone(),
                slot_size,
                free: FreeList::full(count),
                counts: (0..count).map(|_| AtomicU32::new(0)).collect(),
            }),
        })
    }

    /// Takes a free slot as a buffer of the slot's whole size. Its contents are whatever was there before.
    pub fn take(&self) -> Option<IoBuf> {
        let slot = self.shared.free.pop()?;
        self.shared.counts[slot as usize].store(1, Ordering::Relaxed);
        Some(IoBuf::new(SlotRef {
            shared: self.shared.clone(),
            slot,
        }))
    }

    /// How many slots are free; a moment's view.
    pub fn free(&self) -> usize {
        self.shared.free.len()
    }

    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.shared.counts.len()
    }

    /// Bytes per slot.
    pub fn slot_size(&self) -> usize {
        self.shared.slot_size
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
        unsafe { self.shared.region.base().add(offset) }
    }

    pub(crate) fn size(&self) -> usize {
        self.shared.slot_size
    }

    pub(crate) fn local_key(&self) -> u32 {
        self.shared.registration.local_key()
    }

    pub(crate) fn domain(&self) -> &Arc<dyn Domain> {
        &self.shared.domain
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
        self.shared.free.push(self.slot);
    }
}
