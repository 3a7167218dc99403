//! The engine: drives the protocol's state machines with a provider. The only place where `proto` and `rdma` meet.
//!
//! A [`Reactor`] owns one provider, its connections and timers. Its core stands under one lock that is never held
//! while sleeping; a call on a [`Channel`] puts its work into the connection's queue and does it itself if the lock
//! is free. May import `proto`, `rdma` and the types of `transport` that it implements.

mod channel;
mod conn;
mod core;
mod exposure;
mod listener;
mod options;
mod outgoing;
mod pool;
mod rdma_header;
mod reactor;
mod setup;
mod shared;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;

pub use channel::Channel;
pub use exposure::Exposed;
pub use listener::DirectListener;
pub use options::{ChannelOptions, ReactorOptions};
pub use reactor::Reactor;
