//! A simulated RDMA network with virtual time, for tests of everything above the provider boundary.
//!
//! A [`Network`] holds any number of hosts in one thread. It owns the time, which moves only by
//! [`Network::advance`] and [`Network::step`], and a seed from which all jitter comes: the same calls give the same
//! events. [`Network::provider`] gives endpoints; what their devices can and cannot do is chosen with
//! [`DeviceOptions`]. Links can be cut, posts can be made to fail, and a promise that a real device would punish
//! with a panic or a stall is recorded as a [`Violation`], which fails the test when the network is dropped.
//!
//! Operations behave as on a reliable connection: in order, acknowledged by the peer, the first failure ends the
//! connection. The provider ignores the time passed to its calls, except in deadlines.
//! May import the boundary's plain types and registered memory.
//!
//! ```text
//!  network   the test's hand: time, links, faults, violations
//!  provider  the trait, on top of one locked world
//!  world     clock, schedule, links, hosts
//!    connect   connection set-up
//!    queue     executing requests, at both ends
//!    close     every way a connection ends
//! ```

mod close;
mod conn;
mod connect;
mod network;
mod options;
mod provider;
mod queue;
mod rng;
#[cfg(test)]
mod tests;
mod window;
mod world;

pub use network::{Network, Violation, ViolationKind};
pub use options::{DeviceOptions, NetworkOptions, Posted, Quirks};
pub use provider::SimProvider;
