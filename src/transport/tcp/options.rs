//! What a user may set.

use std::time::Duration;

use super::frame::MAX_MESSAGE;
use super::heap::Heap;
use crate::rdma::AcceptFilter;

/// Settings of a TCP connection. Clones share the [`Heap`], so that all connections of a server
/// reuse the same buffers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TcpOptions {
    /// The largest message to send, in bytes; at most [`MAX_MESSAGE`].
    pub max_send: usize,
    /// The largest message to take, in bytes; at most [`MAX_MESSAGE`]. A peer that announces more
    /// is disconnected before any memory is taken for it.
    pub max_receive: usize,
    /// Messages are accepted for sending while fewer bytes than this wait, so that at most this and
    /// one message are queued.
    pub send_queue: usize,
    /// The socket is read while fewer bytes than this wait to be received by the application, so
    /// that at most this and one message are held. Each message counts for some 100 bytes more than
    /// it has.
    pub receive_queue: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a connection that is dropped without [`close`](crate::transport::Transport::close)
    /// goes on sending what was accepted.
    pub drop_timeout: Duration,
    /// TCP asks the peer for a sign of life after this time of silence; whole seconds, at most
    /// 32,767. `Duration::MAX`: never, and [`TcpOptions::keepalive_timeout`] has no effect.
    pub keepalive_interval: Duration,
    /// Time for the answer, then the connection ends with [`DisconnectReason::NoAnswer`]. It ends so
    /// too when the peer acknowledges or takes nothing of what is sent to it for interval and
    /// timeout together.
    ///
    /// [`DisconnectReason::NoAnswer`]: crate::transport::DisconnectReason::NoAnswer
    pub keepalive_timeout: Duration,
    /// Listeners: who may connect. Who may not is turned away before anything is spent on it.
    pub filter: AcceptFilter,
    /// Listeners: connections at a time; more are turned away.
    pub max_connections: usize,
    /// Listeners: connections of one peer address at a time; more are turned away.
    pub max_connections_per_peer: usize,
    /// Where buffers come from.
    pub heap: Heap,
}

impl Default for TcpOptions {
    /// Messages up to [`MAX_MESSAGE`] both ways, queues of 4 MiB, 20 s to connect, 5 s to flush
    /// after a drop, and the keepalive of SMB Direct: 120 s of silence, 5 s for the answer. Listeners
    /// take 4,096 connections of anybody, and 512 of one address.
    fn default() -> Self {
        Self {
            max_send: MAX_MESSAGE,
            max_receive: MAX_MESSAGE,
            send_queue: 4 << 20,
            receive_queue: 4 << 20,
            connect_timeout: Duration::from_secs(20),
            drop_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(120),
            keepalive_timeout: Duration::from_secs(5),
            filter: AcceptFilter::everybody(),
            max_connections: 4096,
            max_connections_per_peer: 512,
            heap: Heap::new(),
        }
    }
}
