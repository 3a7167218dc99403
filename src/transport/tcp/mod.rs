//! SMB over TCP: the same traits without RDMA.
//!
//! Messages are framed as on port 445: a zero byte, the length as 24 bits in network order, then
//! the message ([MS-SMB2] 2.1). A connection has two threads, one that reads and one that writes,
//! with blocking sockets of the standard library: no runtime, no `unsafe`. TCP's own keepalive
//! finds out about dead peers. May import the transport's plain types, and memory and accept
//! filter of `rdma`.
//!
//! ```no_run
//! use smbdirect::transport::{TransportExt, tcp::{self, Tcp, TcpOptions}};
//!
//! let to = ([192, 0, 2, 7], tcp::PORT).into();
//! let connection = Tcp::connect(to, TcpOptions::default()).wait()?;
//! connection.send_blocking(b"\xfeSMB...", None)?;
//! let answer = connection.recv_blocking(None)?;
//! # Ok::<(), smbdirect::transport::Error>(())
//! ```

mod bell;
mod choice;
mod connection;
mod connector;
mod frame;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod guests;
mod heap;
mod keepalive;
mod listener;
mod options;
mod reader;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use connection::{Received, Tcp};
pub use connector::TcpConnector;
pub use frame::MAX_MESSAGE;
pub use heap::Heap;
pub use listener::TcpListener;
pub use options::TcpOptions;

/// The port of SMB over TCP.
pub const PORT: u16 = 445;

/// The longest prefix that [`Tcp::recv_into`] can look at, in bytes.
pub const MAX_PREFIX: usize = 4096;
