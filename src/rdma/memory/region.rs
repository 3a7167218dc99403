//! Page-aligned anonymous memory, and memory that a caller brings.
#![allow(unsafe_code)]

use std::any::Any;
use std::ptr::NonNull;

use crate::rdma::{RdmaError, RdmaOperation};

/// A range of mapped memory with whatever keeps it mapped.
pub(crate) struct Region {
    base: NonNull<u8>,
    len: usize,
    kind: Kind,
}

enum Kind {
    Mapped,
    Owned { _owner: Box<dyn Any + Send + Sync> },
}

// SAFETY: a region is a range of addresses; who may touch which part of it is decided by the slab's reference
// counts, and unmapping happens once, in `drop`.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives only the address and the length.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `len` bytes (rounded up to pages) of zeroed memory.
    pub(crate) fn map(len: usize, huge_pages: bool) -> Result<Self, RdmaError> {
        let page = if huge_pages { 2 << 20 } else { 4096 };
        let len = len.max(1).checked_next_multiple_of(page);
        // More than there are addresses: the system would say the same.
        let len = len.ok_or(RdmaError::Os {
            operation: RdmaOperation::AllocateMemory,
            errno: libc::ENOMEM,
        })?;
        let base = if huge_pages {
            map_pages(len, libc::MAP_HUGETLB).or_else(|_| {
                // No reserved huge pages: ordinary pages, with the wish for transparent ones.
                let base = map_pages(len, 0)?;
                // SAFETY: the range was just mapped by us; advice changes no contents.
                unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
                Ok(base)
            })
        } else {
            map_pages(len, 0)
        }?;
        // A child of fork() must not share pages that a device writes to.
        // SAFETY: the range was just mapped by us; advice changes no contents.
        unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) };
        Ok(Self {
            base,
            len,
            kind: Kind::Mapped,
        })
    }

    /// Memory that `owner` keeps valid.
    ///
    /// # Safety
    /// `base..base + len` is valid for reads and writes, and touched by nobody else, until `owner` is dropped.
    pub(crate) unsafe fn from_owner(
        base: NonNull<u8>,
        len: usize,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            base,
            len,
            kind: Kind::Owned { _owner: owner },
        }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if matches!(self.kind, Kind::Mapped) {
            // SAFETY: mapped by `map` with this length, and unmapped only here.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}

fn map_pages(len: usize, flags: libc::c_int) -> Result<NonNull<u8>, RdmaError> {
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(RdmaError::last_os(RdmaOperation::AllocateMemory));
    }
    NonNull::new(base.cast()).ok_or(RdmaError::last_os(RdmaOperation::AllocateMemory))
}
