//! Counters of a connection.

use std::time::Duration;

/// How often something took place and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TimeTotal {
    /// How often.
    pub count: u64,
    /// Nanoseconds in all.
    pub nanoseconds: u64,
}

impl TimeTotal {
    /// Adds one of the given length.
    pub(crate) fn add(&mut self, time: Duration) {
        self.count += 1;
        self.nanoseconds += u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    }
}

/// Plain counters since the connection was made.
///
/// | field | Windows counter ("SMB Direct Connection") |
/// |---|---|
/// | `bytes_sent`, `bytes_received` | Bytes Sent/second, Bytes Received/second |
/// | `sends`, `receives` | Sends/second, Receives/second |
/// | `bytes_rdma_read`, `bytes_rdma_written` | Bytes RDMA Read/second, Bytes RDMA Written/second |
/// | `rdma_reads`, `rdma_writes` | RDMA Reads/second, RDMA Writes/second |
/// | `stalls_send_credit` | Stalls (Send Credit)/second |
/// | `stalls_send_queue` | Stalls (Send Queue)/second |
/// | `stalls_registration` | Stalls (RDMA Registration)/second |
/// | `registrations` | RDMA Registrations/second |
/// | `remote_invalidations` | Remote Invalidations/second |
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages of the upper layer that were accepted for sending.
    pub messages_sent: u64,
    /// Messages of the upper layer that arrived whole.
    pub messages_received: u64,
    /// Bytes of the upper layer in Sends.
    pub bytes_sent: u64,
    /// Bytes of the upper layer in receives.
    pub bytes_received: u64,
    /// Sends posted, fragments and empty messages included.
    pub sends: u64,
    /// Receives completed, fragments and empty messages included.
    pub receives: u64,
    /// Sends that were fragments of a larger message.
    pub fragments_sent: u64,
    /// Receives that were fragments of a larger message.
    pub fragments_received: u64,
    /// Bytes read from the peer's memory.
    pub bytes_rdma_read: u64,
    /// Bytes written to the peer's memory.
    pub bytes_rdma_written: u64,
    /// RDMA reads completed, and the time they took.
    pub rdma_reads: TimeTotal,
    /// RDMA writes completed, and the time they took.
    pub rdma_writes: TimeTotal,
    /// Times that a message had to wait for a send credit, and how long.
    pub stalls_send_credit: TimeTotal,
    /// Times that something had to wait for a place in the send queue.
    pub stalls_send_queue: u64,
    /// Times that something had to wait for registered memory.
    pub stalls_registration: u64,
    /// Memory registrations and window binds.
    pub registrations: u64,
    /// Exposures that the peer invalidated.
    pub remote_invalidations: u64,
    /// Fewest receives that were posted at any time since the connection was negotiated.
    pub receive_low_water: u32,
    /// Keepalive probes sent.
    pub keepalives_sent: u64,
    /// Keepalive probes of the peer that were answered.
    pub keepalives_answered: u64,
    /// Bytes handed up or sent without a copy.
    pub zero_copy_bytes: u64,
    /// Bytes that were copied on their way.
    pub copied_bytes: u64,
}
