//! Memory between guard pages: whoever touches a byte outside of it is found out.

use std::ptr::NonNull;
use std::sync::Arc;

use smbdirect::rdma::{ReadOnlyMemory, UserMemory};

const PAGE: usize = 4096;
const CANARY: u8 = 0xa5;

/// Which of the two guard pages the memory touches. Between it and the other one there is a canary.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flush {
    Low,
    High,
}

/// A mapping with memory for somebody in it.
pub(crate) struct Guarded(Arc<Mapping>);

struct Mapping {
    base: NonNull<u8>,
    /// Bytes between the guard pages.
    room: usize,
    start: usize,
    len: usize,
}

// SAFETY: a range of addresses. What of it is given away is touched by nobody but through that, and the rest is
// written to only while it is made.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Guarded {
    /// `len` bytes between guard pages, zeroed.
    pub(crate) fn new(len: usize, flush: Flush) -> Self {
        let room = (len + 1).next_multiple_of(PAGE);
        // SAFETY: a new mapping at an address of the system's choice; the inner part, which is made accessible, is
        // within it.
        let base = unsafe {
            let all = libc::mmap(
                std::ptr::null_mut(),
                room + 2 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(all, libc::MAP_FAILED);
            let inner = all.cast::<u8>().add(PAGE);
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(inner.cast(), room, rights), 0);
            NonNull::new(inner).expect("not null")
        };
        let start = match flush {
            Flush::Low => 0,
            Flush::High => room - len,
        };
        let mapping = Mapping {
            base,
            room,
            start,
            len,
        };
        // SAFETY: the inner part is mapped, and nobody else knows of it yet.
        unsafe {
            base.write_bytes(CANARY, room);
            base.add(start).write_bytes(0, len);
        }
        Self(Arc::new(mapping))
    }

    /// The memory, once: for a buffer.
    pub(crate) fn memory(&self) -> UserMemory {
        let Mapping {
            base, start, len, ..
        } = *self.0;
        // SAFETY: the mapping is there as long as its owners, of which the memory has one, and nothing here touches
        // the part that is given away.
        unsafe { UserMemory::new(base.add(start), len, Box::new(self.0.clone())) }
    }

    /// The memory with this content, which nobody can change from now on; any number of times.
    pub(crate) fn read_only(&self, content: &[u8]) -> ReadOnlyMemory {
        let Mapping {
            base, start, len, ..
        } = *self.0;
        assert_eq!(content.len(), len);
        // SAFETY: the inner part is mapped. Where it is still writable nobody has it yet; after that it is only read,
        // as long as its owners are there.
        unsafe {
            if std::slice::from_raw_parts(base.add(start).as_ptr(), len) != content {
                base.add(start).copy_from(
                    NonNull::new_unchecked(content.as_ptr().cast_mut()),
                    content.len(),
                );
            }
            let inner = base.as_ptr().cast();
            assert_eq!(libc::mprotect(inner, self.0.room, libc::PROT_READ), 0);
            ReadOnlyMemory::new(base.add(start), len, Box::new(self.0.clone()))
        }
    }

    /// Nobody wrote to the bytes beside the memory, in its own pages.
    pub(crate) fn assert_canary(&self) {
        let Mapping {
            base,
            room,
            start,
            len,
        } = *self.0;
        for at in (0..start).chain(start + len..room) {
            // SAFETY: within the inner part, and beside what was given away.
            let byte = unsafe { base.add(at).read_volatile() };
            assert_eq!(byte, CANARY, "byte {at} of {room}, beside {start}+{len}");
        }
    }

    /// How many have it besides this.
    pub(crate) fn others(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size, unmapped once.
        unsafe {
            let all = self.base.as_ptr().sub(PAGE);
            libc::munmap(all.cast(), self.room + 2 * PAGE);
        }
    }
}
