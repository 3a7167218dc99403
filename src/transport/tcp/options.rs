//! What a user may set.

use std::time::Duration;

use super::frame::MAX_MESSAGE;
use super::heap::Heap;

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
    /// that at most this and one message are held.
    pub receive_queue: usize,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a connection that is dropped without [`close`](crate::transport::Transport::close)
    /// goes on sending what was accepted.
    pub drop_timeout: Duration,
    /// Where buffers come from.
    pub heap: Heap,
}

impl Default for TcpOptions {
    /// Messages up to [`MAX_MESSAGE`] both ways, queues of 4 MiB, 20 s to connect, 5 s to flush
    /// after a drop.
    fn default() -> Self {
        Self {
            max_send: MAX_MESSAGE,
            max_receive: MAX_MESSAGE,
            send_queue: 4 << 20,
            receive_queue: 4 << 20,
            connect_timeout: Duration::from_secs(20),
            drop_timeout: Duration::from_secs(5),
            heap: Heap::new(),
        }
    }
}
