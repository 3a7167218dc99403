//! Buffers from ordinary memory, reused by size.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::rdma::{Domain, IoBuf, PlainDomain, RdmaError, RdmaOperation, Slab, SlabOptions};

/// The smallest class of buffers: 2^12 bytes.
const SMALLEST: u32 = 12;
/// The largest class of buffers: 2^24 bytes. Larger ones are mapped for one use.
const LARGEST: u32 = 24;
/// Slots are made so many bytes at a time, at least one.
const SLAB: usize = 1 << 20;
/// Bytes kept for reuse; what is needed beyond is mapped for one use.
const RETAINED: usize = 64 << 20;

/// A pool of buffers from ordinary memory in sizes of powers of two. Clones share it.
#[derive(Clone)]
pub struct Heap {
    shared: Arc<Shared>,
}

struct Shared {
    domain: Arc<dyn Domain>,
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    classes: [Vec<Slab>; (LARGEST - SMALLEST + 1) as usize],
    bytes: usize,
}

impl Heap {
    /// An empty pool; memory is taken when it is needed, and up to 64 MiB of it is kept.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                domain: PlainDomain::shared(),
                pool: Mutex::default(),
            }),
        }
    }

    /// A buffer of `len` bytes whose contents are unspecified.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn take(&self, len: usize) -> Result<IoBuf, RdmaError> {
        let mut buf = self.slot(len.max(1))?;
        buf.set_len(len);
        Ok(buf)
    }

    pub(super) fn domain(&self) -> &Arc<dyn Domain> {
        &self.shared.domain
    }

    fn slot(&self, len: usize) -> Result<IoBuf, RdmaError> {
        let Some(bits) = class(len) else {
            return self.once(len);
        };
        let (size, index) = (1 << bits, (bits - SMALLEST) as usize);
        // The pool is valid at every moment, so a panic elsewhere does not spoil it.
        let mut pool = self
            .shared
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(buf) = pool.classes[index].iter().rev().find_map(Slab::take) {
            return Ok(buf);
        }
        let count = (SLAB / size).max(1);
        if pool.bytes + size * count > RETAINED {
            drop(pool);
            return self.once(len);
        }
        let slab = self.slab(size, count as u32)?;
        let buf = slab.take().ok_or(NO_MEMORY)?;
        pool.bytes += size * count;
        pool.classes[index].push(slab);
        Ok(buf)
    }

    /// Memory that is unmapped when its buffer is dropped.
    fn once(&self, len: usize) -> Result<IoBuf, RdmaError> {
        if len > isize::MAX as usize / 2 {
            return Err(NO_MEMORY);
        }
        self.slab(len, 1)?.take().ok_or(NO_MEMORY)
    }

    fn slab(&self, size: usize, count: u32) -> Result<Slab, RdmaError> {
        Slab::new(&self.shared.domain, size, count, SlabOptions::default())
    }
}

/// The power of two that holds `len` bytes, if buffers of that class are kept.
fn class(len: usize) -> Option<u32> {
    let bits = (usize::BITS - len.saturating_sub(1).leading_zeros()).max(SMALLEST);
    (bits <= LARGEST).then_some(bits)
}

const NO_MEMORY: RdmaError = RdmaError::Os {
    operation: RdmaOperation::AllocateMemory,
    errno: libc::ENOMEM,
};

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self
            .shared
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        write!(f, "Heap({} bytes)", pool.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_have_the_length_asked_for() {
        let heap = Heap::new();
        for len in [
            0,
            1,
            4095,
            4096,
            4097,
            1 << 20,
            (1 << 24) - 1,
            1 << 24,
            (1 << 24) + 1,
        ] {
            let buf = heap.take(len).unwrap();
            assert_eq!(buf.len(), len);
            assert!(buf.capacity() >= len && buf.capacity() <= len.max(2048) * 2);
        }
    }

    #[test]
    fn buffers_are_reused_and_the_pool_is_bounded() {
        let heap = Heap::new();
        let first = heap.take(100_000).unwrap();
        let address = first.address();
        drop(first);
        assert_eq!(heap.take(100_000).unwrap().address(), address);
        let many: Vec<IoBuf> = (0..12).map(|_| heap.take(10 << 20).unwrap()).collect();
        drop(many);
        assert!(heap.shared.pool.lock().unwrap().bytes <= RETAINED);
    }
}
