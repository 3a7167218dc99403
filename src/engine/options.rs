//! What users choose for reactors and channels.

use std::time::Duration;

use crate::proto;
use crate::rdma::ListenOptions;

/// Options of a reactor. There will be more of them, so that they are made by changing the defaults:
///
/// ```
/// use smbdirect::engine::ReactorOptions;
///
/// let mut options = ReactorOptions::default();
/// options.max_registered_memory = 1 << 30;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReactorOptions {
    /// Name of the thread that [`Reactor::spawn`](super::Reactor::spawn) starts.
    pub thread_name: String,
    /// How long the driving thread polls before it sleeps, and a blocking call on one of the reactor's channels before
    /// its thread does. Zero: at once, which costs least; a few tens of microseconds save a wake-up per message, and
    /// another one per answer, at the price of busy processors.
    pub spin: Duration,
    /// Events that one pass handles before timers and other work get their turn.
    pub poll_budget: usize,
    /// Bytes that unfinished messages of all connections may take together. The connection whose fragment goes
    /// beyond it ends with [`ReassemblyBudget`](crate::transport::DisconnectReason::ReassemblyBudget).
    pub reassembly_budget: usize,
    /// The NUMA node on whose processors the reactor's own threads run, and where the memory is that they register: best
    /// that of the device (`/sys/class/infiniband/*/device/numa_node`). Who drives the reactor otherwise chooses
    /// for the driving thread. Default: wherever the system puts them.
    pub numa_node: Option<u32>,
    /// Use huge pages for registered memory where the system has them.
    pub huge_pages: bool,
    /// Bytes of registered memory of all connections together: message slots, buffers that were allocated, and memory
    /// that the caller brought. What goes beyond fails with
    /// [`MemoryBudget`](crate::rdma::RdmaError::MemoryBudget). Default: no limit but the system's.
    pub max_registered_memory: u64,
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self {
            thread_name: "smbdirect".into(),
            spin: Duration::ZERO,
            poll_budget: 256,
            reassembly_budget: 1 << 30,
            numa_node: None,
            huge_pages: false,
            max_registered_memory: u64::MAX,
        }
    }
}

/// Options of a channel, and of the channels that a listener accepts; made as [`ReactorOptions`] are:
///
/// ```
/// use std::time::Duration;
///
/// use smbdirect::engine::ChannelOptions;
///
/// let mut options = ChannelOptions::default();
/// options.protocol.max_read_write_size = 1 << 20;
/// options.linger = Duration::from_secs(1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelOptions {
    /// What is offered in the negotiation, and the timers.
    pub protocol: proto::Config,
    /// Bytes of memory of accepted but unsent messages, above which no more are accepted. One message is always accepted by
    /// an empty queue.
    pub send_queue_bytes: usize,
    /// Bytes of memory of received messages that the application has not taken, above which no more are received. A message
    /// that lies in a message slot counts as all of the slot, and each for some 100 bytes more.
    pub receive_queue_bytes: usize,
    /// Places in the send queue of the queue pair. Each takes a slot of
    /// [`max_send_size`](proto::Config::max_send_size) bytes while it is used; the connection begins with 8 of them, 64 or
    /// all, by its [profile](proto::CreditProfile) `Small`, `Adaptive` or `Full`, and has more when it needs them.
    pub send_depth: u32,
    /// RDMA reads in flight as initiator (a server reads what a client writes).
    pub initiator_depth: u16,
    /// RDMA reads of the peer served at a time (a client's memory is read by the server).
    pub responder_resources: u16,
    /// Type of service (IPv4) or traffic class (IPv6) byte; the upper six bits are the DSCP.
    pub type_of_service: Option<u8>,
    /// ACK timeout exponent of the queue pair (4.096 µs × 2^n), where the fabric has one. What is not acknowledged is sent
    /// again six times before the connection fails. `None`: 18, so that a link may be gone for 7 s.
    pub ack_timeout: Option<u8>,
    /// Bytes of one RDMA read or write request; larger transfers are cut, so that they do not hold up messages.
    pub max_rdma_chunk: usize,
    /// Bytes of RDMA read and write requests in flight.
    pub max_rdma_in_flight: usize,
    /// How long a dropped channel still sends what it had accepted.
    pub linger: Duration,
    /// Listeners: the system's queue and the limits on unfinished RDMA handshakes.
    pub listen: ListenOptions,
    /// Listeners: connections that are connected but not negotiated, at most, in total.
    pub max_negotiating: usize,
    /// Listeners: the same for one peer address.
    pub max_negotiating_per_peer: usize,
    /// Listeners: negotiated connections that nobody has accepted yet, at most (at least 1). While there are so many, new
    /// connections are refused, and what had begun to negotiate before ends with
    /// [`NotAccepted`](crate::transport::DisconnectReason::NotAccepted) when it has. Those that negotiate have limits of
    /// their own and do not count for this one, so that peers who never finish keep nobody else out.
    pub accept_backlog: usize,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            protocol: proto::Config::default(),
            send_queue_bytes: 4 << 20,
            receive_queue_bytes: 4 << 20,
            send_depth: 256,
            initiator_depth: 16,
            responder_resources: 16,
            type_of_service: None,
            ack_timeout: None,
            max_rdma_chunk: 256 << 10,
            max_rdma_in_flight: 8 << 20,
            linger: Duration::from_secs(5),
            listen: ListenOptions::default(),
            max_negotiating: 1024,
            max_negotiating_per_peer: 64,
            accept_backlog: 128,
        }
    }
}
