//! The engine: drives the protocol's state machines with a provider. The only place where `proto` and `rdma` meet.
//!
//! A [`Reactor`] owns one provider, its connections and timers. Its core stands under one lock that is never held
//! while sleeping, and under which nothing is done that a device may take its time for: queue pairs and domains are made,
//! and memory is registered, on a helper thread that is there while there is such work. A call on a [`Channel`] puts its
//! work into the connection's queue and does it itself if the lock is free. May import `proto`, `rdma` and the types of `transport` that it implements.

mod assembly;
mod attempt;
mod block_on;
mod busy;
mod calls;
mod channel;
mod conn;
#[cfg(test)]
mod connect_tests;
mod connector;
mod core;
#[cfg(feature = "tokio")]
mod drive;
mod entries;
mod exposure;
mod exposures;
mod group;
mod helper;
mod listen_at;
mod listener;
mod listening;
mod locked;
mod numa;
mod options;
mod outgoing;
mod pool;
mod rdma_header;
mod reactor;
mod retired;
mod seat;
mod setup;
mod shared;
mod sleeper;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;

pub use channel::Channel;
pub use connector::DirectConnector;
pub use exposure::{Exposed, ExposedList};
pub use group::ReactorGroup;
pub use listen_at::ListenAt;
pub use listener::DirectListener;
pub use options::{ChannelOptions, ReactorOptions};
pub use reactor::Reactor;
