//! The reactor's lock as its holder has it.
//!
//! May import the core, and from `rdma` the rule of what must not be done under a lock.

use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use super::core::Core;
use crate::rdma::NoBlocking;

/// The core while this thread has it, and must not block.
pub(crate) struct Locked<'a> {
    core: MutexGuard<'a, Core>,
    _no_blocking: NoBlocking,
}

impl<'a> Locked<'a> {
    pub(crate) fn new(core: MutexGuard<'a, Core>) -> Self {
        Self {
            core,
            _no_blocking: NoBlocking::begin(),
        }
    }
}

impl Deref for Locked<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}
