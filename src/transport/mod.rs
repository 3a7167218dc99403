//! The public face: what an SMB server or client needs from its transport.
//!
//! [`Transport`] is implemented by the SMB Direct [`Channel`](crate::engine::Channel) and by the crate's own [`Tcp`](tcp::Tcp),
//! so that a server is written once. May import `proto`, `rdma` and, for implementing the traits, `engine`.

mod direct;
mod error;
mod ext;
mod info;
mod list;
mod message;
mod op;
mod ports;
mod stats;
pub mod tcp;
mod waiting;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub use direct::{BadDescriptors, Descriptors, DirectPlacement, MAX_DESCRIPTORS, Target};
pub use error::{ApiMisuse, DisconnectReason, Error, TrySendError};
pub use ext::{ListenerExt, TransportExt};
pub use info::{Info, Limits, TransportKind};
pub(crate) use list::List;
pub use message::{Gather, Message, OutMessage, SteeringTag};
pub use op::Op;
pub(crate) use op::{Completer, OpPool};
pub use ports::{IWARP_PORT, PORT, port_for};
pub use stats::{Stats, TimeTotal};
pub(crate) use waiting::Waiting;

use crate::rdma::{IoBuf, IoBytes, ReadOnlyMemory, UserMemory};

/// How to close a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// At once. Messages that were accepted but not sent yet are lost.
    Abort,
    /// In order: new sends are refused, what was accepted is sent, then the connection ends; at the latest after
    /// this time.
    Graceful(Duration),
}

/// What an SMB server or client needs from its transport: whole messages both ways, in order.
///
/// All methods may be called from any thread. None of them sleeps; [`TransportExt`] has `async` and blocking forms.
///
/// Dropping it closes the connection in order, in the background: what was accepted is still sent, within
/// [`ChannelOptions::linger`](crate::engine::ChannelOptions::linger) or
/// [`TcpOptions::drop_timeout`](tcp::TcpOptions::drop_timeout). Who wants to know that it was, or how a connection ended,
/// calls [`Transport::close`] and waits for [`Transport::poll_closed`].
pub trait Transport: Send + Sync {
    /// What this connection is: kind, provider, device, addresses, negotiated parameters.
    fn info(&self) -> &Info;

    /// The largest messages and transfers, in bytes.
    fn limits(&self) -> Limits;

    /// Waits until a message of any legal size would be accepted by [`Transport::start_send`]. Any number of tasks may
    /// wait. All are woken when there is room, and those that find the queue full again wait again.
    ///
    /// # Errors
    /// The connection has ended, or this side is closing it.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>>;

    /// Accepts all of a message for sending, or nothing of it. Once accepted it is sent whole, in the order of
    /// acceptance; a later failure appears in [`Transport::poll_recv`] and [`Transport::poll_closed`].
    ///
    /// An owned message that is not accepted is dropped: to try again keep a clone, which shares the memory.
    ///
    /// # Errors
    /// The queue is full, the message is empty or too large, or the connection has ended; nothing was sent.
    fn start_send(&self, message: OutMessage<'_>) -> Result<(), TrySendError>;

    /// The next message; `None` when the peer closed in order and all messages were taken. One caller at a time: a
    /// later call replaces the earlier one's waker. Nothing is lost when the waiting caller goes away.
    ///
    /// # Errors
    /// The connection failed, or this side has closed it, which is
    /// [`Closed`](Error::Closed)`(`[`Local`](DisconnectReason::Local)`)`; messages that had arrived whole come first.
    fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Message>, Error>>;

    /// Waits for the end of the connection and says why. Any number of tasks may wait; where many do, they may be woken
    /// before it to say that they still wait.
    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<DisconnectReason>;

    /// Begins to close. Closing twice is harmless; an abort overrides a graceful close.
    fn close(&self, how: Close);

    /// Memory of at least `len` bytes that this transport can use without a copy: registered for RDMA, from the heap
    /// on TCP. Its length is `len`; its contents are unspecified.
    fn allocate(&self, len: usize) -> Op<IoBuf>;

    /// Makes a buffer of memory that the caller brings: registered for this connection on RDMA, as it is on TCP. Its
    /// length is all of it. Counted in the reactor's [registered memory](crate::engine::Reactor::registered_memory).
    /// May sleep while the system pins the memory: in blocks of gigabytes, better not on an executor's thread.
    ///
    /// The operation fails if the memory is empty, the device or the limit on locked memory refuses it
    /// ([`RdmaError::LockedMemory`](crate::rdma::RdmaError)), or the reactor's own limit does. Then its owner is
    /// dropped.
    fn register(&self, memory: UserMemory) -> Op<IoBuf>;

    /// As [`Transport::register`], for memory that is only read: it can be sent, and written to the peer.
    fn register_read_only(&self, memory: ReadOnlyMemory) -> Op<IoBytes>;

    /// How long blocking calls look for their result before they sleep.
    fn spin(&self) -> Duration {
        Duration::ZERO
    }

    /// Counters since the connection was made.
    fn stats(&self) -> Stats;

    /// Transfers between memories, past messages; `None` on TCP.
    fn direct(&self) -> Option<&dyn DirectPlacement> {
        None
    }
}

/// Where connections come from.
pub trait Listener: Send + Sync {
    /// The next connection, negotiated and ready for messages. Handshakes run beside it; failed ones are counted and
    /// logged, never returned. One caller at a time: a later call replaces the earlier one's waker.
    ///
    /// # Errors
    /// The listener itself cannot go on: on none of its addresses, where it has several.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Arc<dyn Transport>, Error>>;

    /// The addresses on which it listens.
    fn local_addresses(&self) -> Vec<std::net::SocketAddr>;

    /// Stops listening; connections that were accepted live on.
    fn close(&self);
}

/// What makes connections.
pub trait Connector: Send + Sync {
    /// Connects to a server, and negotiates where the transport does. Port 0 is for the port that such servers use:
    /// 445 on TCP; on SMB Direct that of the device first, see [`port_for`], and then the other one.
    ///
    /// The operation ends with [`Error::BothPorts`] if two ports were tried.
    fn connect(&self, to: std::net::SocketAddr) -> Op<Arc<dyn Transport>>;
}
