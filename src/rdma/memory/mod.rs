//! Registered memory: slabs of slots, and the three ways to hold one.
//!
//! Safe code above the boundary can never free or look into memory that a device still touches: whoever holds a
//! slot holds a count on it, a posted request owns its buffers, and a lent buffer ([`IoPin`]) has no slice.
//! May import the boundary's plain types only.

mod budget;
mod buffer;
mod domain;
mod free_list;
mod free_lists;
mod region;
mod slab;
mod slab_set;
#[cfg(any(test, feature = "testing"))]
mod stand_in;
mod sync;
#[cfg(test)]
mod tests;
mod user;

pub(crate) use budget::Charge;
pub use budget::MemoryBudget;
pub use buffer::{IoBuf, IoBytes, IoPin};
pub use domain::{Access, Domain, PlainDomain, Registration, RemoteAccess};
pub(crate) use region::Region;
pub(crate) use slab::NewSlab;
pub use slab::{Slab, SlabOptions};
pub(crate) use slab_set::SlabSet;
#[cfg(any(test, feature = "testing"))]
pub(crate) use stand_in::StandInDomain;
pub use user::{ReadOnlyMemory, UserMemory};
