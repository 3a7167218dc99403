//! Memory that the caller brings: a mapped file, an arena of its own.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{Access, Domain, IoBuf, IoBytes, MemoryBudget, NewSlab, Region};
use crate::rdma::{RdmaError, RdmaOperation};

/// Memory of the caller's that becomes a buffer by
/// [`Transport::register`](crate::transport::Transport::register), with the owner that keeps it there. The owner is dropped
/// by whoever is the last to have the memory, which may be a reactor at work: its `drop` must not use a transport.
///
/// ```
/// use std::ptr::NonNull;
///
/// use smbdirect::rdma::{IoBuf, UserMemory};
/// use smbdirect::transport::{Op, Transport};
///
/// /// The connection's own megabyte.
/// fn arena(transport: &dyn Transport) -> Op<IoBuf> {
///     let mut arena = vec![0u8; 1 << 20];
///     let base = NonNull::new(arena.as_mut_ptr()).expect("a vector has an address");
///     let len = arena.len();
///     // SAFETY: the vector is moved into the owner with its bytes where they are, and nobody touches it any more.
///     transport.register(unsafe { UserMemory::new(base, len, Box::new(arena)) })
/// }
/// ```
pub struct UserMemory(Region);

/// Memory of the caller's that is only read, and that any number of connections may use at a time, registered with
/// each of them by [`Transport::register_read_only`](crate::transport::Transport::register_read_only): a mapped file. For
/// its owner the same is true as for that of [`UserMemory`].
///
/// ```
/// use std::ptr::NonNull;
///
/// use smbdirect::rdma::{IoBytes, ReadOnlyMemory};
/// use smbdirect::transport::{Op, Transport};
///
/// static TABLE: [u8; 4096] = [7; 4096];
///
/// /// The table, to be sent and written from where it is.
/// fn table(transport: &dyn Transport) -> Op<IoBytes> {
///     let base = NonNull::from(&TABLE).cast();
///     // SAFETY: a static is there for ever and nobody changes it, so that no owner is needed. That of a mapping is an
///     // `Arc` of what unmaps it in its `drop`.
///     transport.register_read_only(unsafe { ReadOnlyMemory::new(base, TABLE.len(), Box::new(())) })
/// }
/// ```
pub struct ReadOnlyMemory(Region);

impl UserMemory {
    /// `len` bytes at `base`, which `owner` keeps. It is dropped when the buffer made of them is gone, and no device
    /// touches them any more; also if they cannot be registered.
    ///
    /// # Safety
    /// Until `owner` is dropped `base..base + len` is valid for reads and writes, initialised, and read or written by
    /// nobody but through the buffer made of it. (A mapping of a file that others may write to or truncate is not.)
    pub unsafe fn new(base: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        // SAFETY: the caller's promise is the one that `Region::from_owner` asks for.
        Self(unsafe { Region::from_owner(base, len, owner) })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: such memory cannot be registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Registers it as one buffer, within the budget.
    pub(crate) fn register(
        self,
        domain: &Arc<dyn Domain>,
        budget: Option<&MemoryBudget>,
    ) -> Result<IoBuf, RdmaError> {
        one(self.0, domain, Access::DATA, budget)
    }
}

impl ReadOnlyMemory {
    /// `len` bytes at `base`, which `owner` keeps. It is dropped when all that was made of them is gone, and no device
    /// reads them any more; also if they cannot be registered. For several connections the owner is an `Arc`.
    ///
    /// # Safety
    /// Until `owner` is dropped `base..base + len` is valid for reads, initialised, and changed by nobody. (A mapping
    /// of a file that others may write to or truncate is not.)
    pub unsafe fn new(base: NonNull<u8>, len: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        // SAFETY: the caller's promise, but for writes: `Access::READ_ONLY` keeps buffers and devices from them.
        Self(unsafe { Region::from_owner(base, len, owner) })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: such memory cannot be registered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Registers it, within the budget.
    pub(crate) fn register(
        self,
        domain: &Arc<dyn Domain>,
        budget: Option<&MemoryBudget>,
    ) -> Result<IoBytes, RdmaError> {
        one(self.0, domain, Access::READ_ONLY, budget).map(IoBuf::freeze)
    }
}

fn one(
    region: Region,
    domain: &Arc<dyn Domain>,
    access: Access,
    budget: Option<&MemoryBudget>,
) -> Result<IoBuf, RdmaError> {
    let len = region.len();
    let slab = NewSlab::over(domain, region, (len, 1), access, budget)?.alone();
    // The only slot of a new slab is free.
    slab.take().ok_or(RdmaError::State(RdmaOperation::Register))
}

impl fmt::Debug for UserMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserMemory({} bytes)", self.0.len())
    }
}

impl fmt::Debug for ReadOnlyMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadOnlyMemory({} bytes)", self.0.len())
    }
}
