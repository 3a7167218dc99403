//! SMB Direct ([MS-SMBD], SMB2/3 over RDMA) for user space, server and client.
//!
//! The crate carries the messages of an SMB server or client over RDMA, and moves file data between the memories of
//! both machines. It contains no SMB: what a message says is its user's business ([`smb2`] has a codec of the few
//! structures that RDMA adds to SMB2).
//!
//! # Where to begin
//!
//! A [`Reactor`](engine::Reactor) drives one RDMA provider. It connects, or listens, and what comes of it is a
//! [`Channel`](engine::Channel): a [`Transport`](transport::Transport), which takes and gives whole messages in order.
//! Plain TCP implements the same trait ([`transport::tcp`]), so that a server is written once. Where there is RDMA,
//! [`Transport::direct`](transport::Transport::direct) gives [`DirectPlacement`](transport::DirectPlacement): a client
//! exposes memory, and a server writes to it or reads it.
//!
//! Both ends in one program, over the software iWARP, which needs no RDMA device:
//!
//! ```
//! # #[cfg(feature = "iwarp")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{net::SocketAddr, thread};
//!
//! use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
//! use smbdirect::rdma::{self, ProviderKind};
//! use smbdirect::transport::{Listener, ListenerExt, TransportExt};
//!
//! let reactor = Reactor::new(rdma::open(ProviderKind::Iwarp)?, ReactorOptions::default())?;
//! reactor.spawn()?;
//!
//! // Port 0: the system chooses. A server of SMB listens at `ListenAt::everywhere`.
//! let loopback: SocketAddr = "127.0.0.1:0".parse()?;
//! let listener = reactor.listen(&[loopback], ChannelOptions::default())?;
//! let server = listener.local_addresses()[0];
//! let serving = thread::spawn(move || {
//!     let transport = listener.accept_blocking(None)?;
//!     while let Some(request) = transport.recv_blocking(None)? {
//!         transport.send_blocking(&request, None)?;
//!     }
//!     Ok::<(), smbdirect::transport::Error>(())
//! });
//!
//! let channel = reactor.connect(server, ChannelOptions::default()).wait()?;
//! channel.send_blocking(b"\xfeSMB...", None)?;
//! let answer = channel.recv_blocking(None)?.expect("the server answers before it ends");
//! assert_eq!(&answer[..], b"\xfeSMB...");
//!
//! drop(channel);
//! serving.join().expect("the server does not panic")?;
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "iwarp"))]
//! # fn main() {}
//! ```
//!
//! # How it is built
//!
//! ```text
//!    your SMB server or client
//!             |
//!    transport    Transport, DirectPlacement, Listener, Connector, TCP: the public face
//!             |
//!    engine       Reactor, Channel: drives the protocol with a provider
//!        |      |
//!    proto     rdma     the protocol without I/O; the boundary to RDMA, which knows nothing of it
//!                |
//!         verbs, iwarp, sim     RDMA devices; software iWARP over TCP; simulated network
//! ```
//!
//! Arrows point down only. To read the code, begin with [`proto::Connection`], the protocol as a state machine whose
//! inputs and outputs are listed at the type, then [`rdma::Provider`], what is asked of RDMA, and then `engine/conn.rs`,
//! where both meet.
//!
//! # Features
//!
//! | feature | what it adds | what it needs |
//! |---|---|---|
//! | `iwarp` (default) | the software iWARP, which speaks the wire of iWARP cards and of Linux's soft-iWARP | nothing |
//! | `verbs` | InfiniBand, RoCE and iWARP devices, soft-RoCE and soft-iWARP | cmake and libclang to build; the RDMA libraries are loaded at run time, if they are there |
//! | `tokio` | [`Reactor::drive`](engine::Reactor), a reactor as a task of a tokio runtime | nothing |
//! | `testing` | the simulated network with virtual time and faults, and the contract that every provider keeps | nothing |
//!
//! [MS-SMBD]: https://learn.microsoft.com/openspecs/windows_protocols/ms-smbd/
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

pub mod engine;
pub mod proto;
pub mod rdma;
pub mod smb2;
pub mod transport;

#[cfg(test)]
mod replay;

// The README's programs are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
