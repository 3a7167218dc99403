//! A software RNIC in user space, over TCP sockets: MPA (revisions 1 and 2, CRC32C, RFC 6581), DDP
//! and RDMAP.
//!
//! It speaks the wire of iWARP cards and of Linux `siw`, and runs wherever TCP does. Steering tags
//! are valid on their connection only, for exactly their range and direction, from the execution of
//! their bind to their invalidation, local or by the peer; they come in a secret order and are
//! never used again.
//!
//! May import the boundary's types, `libc`, `crc32c`, `tracing` and std. `unsafe` is in `sys`
//! (system calls) and `pinned` (memory that is exposed to the peer) only.
//!
//! ```text
//!  provider          the trait: tables, list of work, timers
//!    listener        accepting, caps on unfinished handshakes
//!    handshake       MPA frames over a socket           mpa    frames and what follows from them
//!    conn            a connection in any state
//!      stream        socket + both halves while it is up
//!        receive     checks and places                  fpdu   sizes, markers
//!        transmit    send queue, answers to reads       ddp, rdmap, crc
//!          batch     one gathered write
//!        tags        steering tags and windows
//! ```

mod batch;
mod config;
mod conn;
mod crc;
mod ddp;
mod fpdu;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod listener;
mod mpa;
mod pinned;
mod provider;
mod rdmap;
mod receive;
mod slots;
mod stream;
mod sys;
mod tags;
mod transmit;

#[cfg(test)]
pub(crate) mod replay;
#[cfg(test)]
mod tests;

pub use config::IwarpConfig;
pub use provider::IwarpProvider;
