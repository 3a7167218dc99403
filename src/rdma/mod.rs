//! The boundary between the engine and whatever moves bytes by RDMA.
//!
//! What SMB Direct needs from RDMA and nothing more, modelled on verbs: a [`Provider`] makes connections, takes
//! receives and send requests that own their memory, and returns every one of them exactly once in an [`Event`].
//! It knows nothing of SMB Direct. May import `bytes`, `libc`, `thiserror`, `tracing` and std; nothing of `proto`,
//! `engine` or `transport`.
//!
//! ```text
//!  rdma/        the trait, plain types, registered memory
//!    iwarp/     software RNIC over TCP sockets        (feature `iwarp`)
//!    verbs/     RDMA devices through libibverbs       (feature `verbs`)
//!    sim/       virtual time and faults               (feature `testing`)
//! ```

mod blocking;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod creation;
mod error;
mod event;
#[cfg(feature = "verbs")]
mod inflight;
#[cfg(feature = "iwarp")]
pub mod iwarp;
pub mod memory;
mod open;
mod options;
mod provider;
mod request;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod time;
#[cfg(feature = "verbs")]
pub mod verbs;

#[cfg(any(test, feature = "testing", feature = "verbs"))]
pub(crate) use blocking::may_block;
pub(crate) use blocking::{NoBlocking, put_off};
pub use creation::{QpMade, QpWork};
pub(crate) use error::Cause;
pub use error::{CompletionStatus, PostError, RdmaError, RdmaOperation};
pub use event::{Close, Event, Incoming, LossReason, PeerInfo};
pub use memory::{
    Access, Domain, IoBuf, IoBytes, IoPin, MemoryBudget, PlainDomain, ReadOnlyMemory, Registration,
    RemoteAccess, Slab, SlabOptions, UserMemory,
};
pub(crate) use memory::{NewSlab, SlabSet};
pub use open::{Choice, Why, choose, open};
pub use options::{
    AcceptFilter, Capabilities, ConnectParams, Exposure, Fabric, FabricFilter, ListenOptions,
    QpOptions, ResolveOptions,
};
pub use provider::{Armed, ConnId, ListenerId, Provider, ProviderKind};
pub use request::{MAX_PIECES, Operation, Pieces, RemoteAddress, SendRequest, Window, WindowId};
pub(crate) use time::after;
