//! The SMB Direct protocol ([MS-SMBD]) as a pure state machine, for both roles.
//!
//! [`Connection`] takes what happened (bytes received, receives posted, time passed, messages to
//! send) and says what to do (post receives, send this, deliver that, disconnect). It owns no
//! payload, no socket and no clock: time is an argument, outgoing messages are known by
//! [`MessageId`] and length, and received payload is named by its place in the buffer that the
//! caller holds.
//!
//! This module imports nothing but `thiserror` and the standard library, and knows nothing of RDMA
//! devices.
#![forbid(unsafe_code)]

mod config;
mod connection;
mod credits;
mod error;
mod fragment;
mod negotiate;
mod output;
#[cfg(test)]
mod tests;
mod timer;
pub mod wire;

pub use config::{Config, CreditProfile};
pub use connection::{Connection, Role};
pub use credits::{CreditSnapshot, STALL_RESERVE};
pub use error::{
    ConfigError, DisconnectReason, InvalidMessage, Loss, PeerIncompatible, PeerMisbehaved,
    SendError, Timeout,
};
pub use fragment::MessageId;
pub use negotiate::Parameters;
pub use output::{Delivery, Event, Stats, Transmit};
