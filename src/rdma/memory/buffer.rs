//! The three ways to hold a slot: alone and mutable, shared and immutable, or lent to a device.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(any(test, feature = "testing", feature = "iwarp"))]
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::slab::SlotRef;
use super::{Access, Domain, Registration, RemoteAccess};
use crate::rdma::{Exposure, RdmaError};

/// Registered memory that one holder owns and may change. Goes back to its pool when dropped.
pub struct IoBuf {
    slot: SlotRef,
    len: usize,
}

impl IoBuf {
    /// A buffer over a slot to which `slot` is the only reference.
    pub(crate) fn new(slot: SlotRef) -> Self {
        let len = slot.size();
        Self { slot, len }
    }

    /// The most bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.slot.size()
    }

    /// Changes the length in bytes; bytes that come into view are whatever was there before.
    ///
    /// # Panics
    /// If `len` is above [`IoBuf::capacity`].
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "length {len} above the capacity {}",
            self.capacity()
        );
        self.len = len;
    }

    /// Makes it immutable and cheap to clone, without a copy.
    pub fn freeze(self) -> IoBytes {
        IoBytes {
            start: 0,
            len: self.len,
            slot: self.slot,
        }
    }

    /// Gives it to a device: from now on nobody can look into it until [`IoPin::unpin`].
    pub fn pin(self) -> IoPin {
        IoPin {
            start: 0,
            len: self.len,
            slot: self.slot,
        }
    }

    /// The key that local requests to the device carry.
    pub fn local_key(&self) -> u32 {
        self.slot.local_key()
    }

    /// The domain in which it is registered.
    pub fn domain(&self) -> &Arc<dyn Domain> {
        self.slot.domain()
    }

    /// The address at which a device writes into this buffer, for a provider that owns it while it is posted.
    pub fn address(&self) -> NonNull<u8> {
        self.slot.base()
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: an `IoBuf` is the only reference to its slot, `len` is within it, and the memory was
        // initialised by the mapping (zero) or by the caller who brought it.
        unsafe { std::slice::from_raw_parts(self.slot.base().as_ptr(), self.len) }
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` excludes other borrows of the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.slot.base().as_ptr(), self.len) }
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} of {} bytes)", self.len, self.capacity())
    }
}

/// Registered memory that nobody may change, shared by cheap clones.
#[derive(Clone)]
pub struct IoBytes {
    slot: SlotRef,
    start: usize,
    len: usize,
}

impl IoBytes {
    /// A part of it, without a copy.
    ///
    /// # Panics
    /// If the range is not within it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        Self {
            slot: self.slot.clone(),
            start: self.start + range.start,
            len: range.len(),
        }
    }

    /// The only holder gets the buffer back, to change it; its view is the whole slot from the first byte.
    ///
    /// # Errors
    /// Others hold it too, or it is [`ReadOnlyMemory`](super::ReadOnlyMemory): it comes back unchanged.
    pub fn try_into_buf(self) -> Result<IoBuf, Self> {
        if self.slot.is_unique() && self.slot.is_writable() {
            let mut buf = IoBuf::new(self.slot);
            buf.len = self.start + self.len;
            Ok(buf)
        } else {
            Err(self)
        }
    }

    /// As [`Bytes`], without a copy; allocates the small box that `Bytes` needs for its owner.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The key that local requests to the device carry.
    pub fn local_key(&self) -> u32 {
        self.slot.local_key()
    }

    /// The domain in which it is registered.
    pub fn domain(&self) -> &Arc<dyn Domain> {
        self.slot.domain()
    }
}

impl Deref for IoBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: while an `IoBytes` lives nobody has the slot mutably (`IoBuf` and `IoPin` come from one only by
        // `try_into_buf`, which asks for the last reference); `start + len` is within the slot.
        unsafe { std::slice::from_raw_parts(self.slot.base().as_ptr().add(self.start), self.len) }
    }
}

impl AsRef<[u8]> for IoBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<IoBuf> for IoBytes {
    fn from(buf: IoBuf) -> Self {
        buf.freeze()
    }
}

impl fmt::Debug for IoBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBytes({} bytes)", self.len)
    }
}

/// Registered memory that a device, or the peer through it, may read or write at any time. It has an address and a
/// length, and cannot be looked into: only when the last pin is left does [`IoPin::unpin`] give the buffer back.
pub struct IoPin {
    slot: SlotRef,
    start: usize,
    len: usize,
}

impl IoPin {
    /// A part of it, which keeps the whole pinned.
    ///
    /// # Panics
    /// If the range is not within it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        Self {
            slot: self.slot.clone(),
            start: self.start + range.start,
            len: range.len(),
        }
    }

    /// The buffer, if this is the last pin on it; its view is the slot's bytes up to this pin's end.
    ///
    /// # Errors
    /// Other pins are left: this one comes back.
    pub fn unpin(self) -> Result<IoBuf, Self> {
        if self.slot.is_unique() {
            let mut buf = IoBuf::new(self.slot);
            buf.len = self.start + self.len;
            Ok(buf)
        } else {
            Err(self)
        }
    }

    /// Where it begins.
    pub fn address(&self) -> NonNull<u8> {
        // SAFETY: `start` is within the slot.
        unsafe { self.slot.base().add(self.start) }
    }

    /// Writes `bytes` at `offset`, as a device does: who else copies the same bytes meanwhile sees old and new
    /// ones mixed. For providers that place in software.
    ///
    /// # Panics
    /// If the range is not within it.
    #[cfg(any(test, feature = "testing", feature = "iwarp"))]
    #[cfg_attr(not(any(test, feature = "testing")), allow(dead_code))]
    pub(crate) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        for (cell, byte) in self.cells(offset, bytes.len()).iter().zip(bytes) {
            cell.store(*byte, Ordering::Relaxed);
        }
    }

    /// Reads `bytes.len()` bytes from `offset` on; otherwise as [`IoPin::copy_in`].
    ///
    /// # Panics
    /// If the range is not within it.
    #[cfg(any(test, feature = "testing", feature = "iwarp"))]
    #[cfg_attr(not(any(test, feature = "testing")), allow(dead_code))]
    pub(crate) fn copy_out(&self, offset: usize, bytes: &mut [u8]) {
        for (cell, byte) in self.cells(offset, bytes.len()).iter().zip(bytes) {
            *byte = cell.load(Ordering::Relaxed);
        }
    }

    /// A range of it as atomics, which any number of threads may copy from and to.
    #[cfg(any(test, feature = "testing", feature = "iwarp"))]
    #[cfg_attr(not(any(test, feature = "testing")), allow(dead_code))]
    fn cells(&self, offset: usize, len: usize) -> &[AtomicU8] {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "{len} bytes at {offset} of {}",
            self.len
        );
        // SAFETY: the range is within the slot, whose memory is initialised, and `AtomicU8` has the layout of `u8`.
        // While a pin lives there is no slice of the slot (`IoBuf` comes from one only by `unpin`, which asks for
        // the last reference), so that all of Rust's accesses to these bytes are atomic; what a device does to them
        // is outside of Rust's memory model, as it is for all registered memory.
        unsafe {
            std::slice::from_raw_parts(self.address().as_ptr().add(offset).cast::<AtomicU8>(), len)
        }
    }

    /// Makes what exposing this memory needs besides it on a device with this kind of exposure. May block.
    ///
    /// # Errors
    /// The device refuses.
    pub fn prepare(
        &self,
        exposure: Exposure,
        access: RemoteAccess,
    ) -> Result<Option<Registration>, RdmaError> {
        match exposure {
            Exposure::Registration => self.register(access).map(Some),
            Exposure::Window => self.domain().prepare_window(self),
            Exposure::SoftwareWindow => Ok(None),
        }
    }

    /// Registers this memory alone, for the peer's use through a key of its own. The slot is kept until the
    /// registration is dropped. May block.
    ///
    /// # Errors
    /// The device refuses.
    pub fn register(&self, access: RemoteAccess) -> Result<Registration, RdmaError> {
        // SAFETY: the guard holds the slot, and with it the mapping, until the device has forgotten the range: it is
        // dropped after the inner registration.
        let inner = unsafe {
            self.domain()
                .register(self.address(), self.len, Access::remote(access))
        }?;
        let (local, remote) = (inner.local_key(), inner.remote_key());
        Ok(Registration::new(
            local,
            remote,
            Some(Box::new((inner, self.slot.clone()))),
        ))
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key that local requests to the device carry.
    pub fn local_key(&self) -> u32 {
        self.slot.local_key()
    }

    /// The domain in which it is registered.
    pub fn domain(&self) -> &Arc<dyn Domain> {
        self.slot.domain()
    }
}

impl fmt::Debug for IoPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoPin({} bytes)", self.len)
    }
}
