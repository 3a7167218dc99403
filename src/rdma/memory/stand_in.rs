//! A domain for the simulated network: plain memory that is registered as slowly as a device does it, and that can be
//! refused.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Access, Domain, Registration};
use crate::rdma::{RdmaError, may_block};

/// See the module.
#[derive(Debug)]
pub(crate) struct StandInDomain {
    blocks: bool,
    /// Registrations that are refused from now on.
    refusals: Arc<AtomicU32>,
}

impl StandInDomain {
    /// A new domain of its own. `blocks`: nobody may wait for it under a lock.
    pub(crate) fn shared(blocks: bool, refusals: Arc<AtomicU32>) -> Arc<dyn Domain> {
        Arc::new(Self { blocks, refusals })
    }
}

impl Domain for StandInDomain {
    unsafe fn register(
        &self,
        _base: NonNull<u8>,
        len: usize,
        _access: Access,
    ) -> Result<Registration, RdmaError> {
        if self.blocks {
            may_block("registering memory");
        }
        let less = |left: u32| left.checked_sub(1);
        let refused = self
            .refusals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        match refused {
            Ok(_) => Err(RdmaError::LockedMemory {
                limit: 0,
                needed: len as u64,
            }),
            Err(_) if self.blocks => Ok(Registration::new(0, 0, Some(Box::new(Deregistering)))),
            Err(_) => Ok(Registration::new(0, 0, None)),
        }
    }

    fn may_block(&self) -> bool {
        self.blocks
    }
}

/// Taking memory back from a device may take as long as giving it.
struct Deregistering;

impl Drop for Deregistering {
    fn drop(&mut self) {
        may_block("deregistering memory");
    }
}
