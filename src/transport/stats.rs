//! Counters of a connection, and of many.

use std::ops::AddAssign;
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

/// Plain counters since the connection was made. Those of several are added with `+=`; a reactor has those of all its
/// connections, the ended ones included ([`Reactor::stats`](crate::engine::Reactor::stats)).
///
/// Times are those of the reactor, which looks at the clock once per pass: what begins and ends within one pass, as a
/// write of the software iWARP that fits the socket, took 0.
///
/// Windows counts the same, per second. Its names here are the properties of two WMI classes, taken from Microsoft's
/// published bindings of them and not from a running system: `Win32_PerfRawData_Counters_SMBDirectConnection`, which is
/// the performance counter set "SMB Direct Connection" (Performance Monitor writes the first as `Bytes RDMA Read/sec`),
/// and the newer `Win32_PerfFormattedData_MicrosoftWindowsSMBDirect_SMBDirect`.
///
/// | field | `SMBDirectConnection` | `SMBDirect_SMBDirect` |
/// |---|---|---|
/// | `bytes_rdma_read` | `BytesRDMAReadPersec` | the same |
/// | `bytes_rdma_written` | `BytesRDMAWrittenPersec` | the same |
/// | `bytes_sent`, `bytes_received` | `BytesSentPersec`, `BytesReceivedPersec` | the same |
/// | `sends`, `receives` | `SendsPersec`, `ReceivesPersec` | the same |
/// | `rdma_reads.count`, `rdma_writes.count` | | `RDMAReadsPersec`, `RDMAWritesPersec` |
/// | `stalls_send_credit.count` | `StallsSendCreditPersec` | the same |
/// | `stalls_send_queue` | `StallsSendQueuePersec` | `StallsSQPersec` |
/// | `stalls_registration` | `StallsRDMARegistrationsPersec` | `StallsFRMRPersec` |
/// | `registrations` | `RDMARegistrationsPersec` | `FastregistrationsPersec` |
/// | `remote_invalidations` | `RemoteInvalidationsPersec` | the same |
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
    /// Times that requests were handed to the device, each time all that were ready. Stays 0 on TCP.
    pub doorbells: u64,
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
    /// Times that a message or a transfer had to wait for a place in the send queue.
    pub stalls_send_queue: u64,
    /// Times that messages had to wait for registered memory: more slots than the connection had reserved.
    pub stalls_registration: u64,
    /// Memory registrations and window binds.
    pub registrations: u64,
    /// Exposures that the peer invalidated.
    pub remote_invalidations: u64,
    /// Fewest receives that were posted at any time since the connection was negotiated; of several connections the
    /// lowest.
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

impl AddAssign for TimeTotal {
    fn add_assign(&mut self, more: Self) {
        self.count += more.count;
        self.nanoseconds += more.nanoseconds;
    }
}

impl AddAssign<&Stats> for Stats {
    fn add_assign(&mut self, more: &Stats) {
        // Every field, by the compiler's word.
        let Stats {
            messages_sent,
            messages_received,
            bytes_sent,
            bytes_received,
            sends,
            doorbells,
            receives,
            fragments_sent,
            fragments_received,
            bytes_rdma_read,
            bytes_rdma_written,
            rdma_reads,
            rdma_writes,
            stalls_send_credit,
            stalls_send_queue,
            stalls_registration,
            registrations,
            remote_invalidations,
            receive_low_water,
            keepalives_sent,
            keepalives_answered,
            zero_copy_bytes,
            copied_bytes,
        } = more;
        self.messages_sent += messages_sent;
        self.messages_received += messages_received;
        self.bytes_sent += bytes_sent;
        self.bytes_received += bytes_received;
        self.sends += sends;
        self.doorbells += doorbells;
        self.receives += receives;
        self.fragments_sent += fragments_sent;
        self.fragments_received += fragments_received;
        self.bytes_rdma_read += bytes_rdma_read;
        self.bytes_rdma_written += bytes_rdma_written;
        self.rdma_reads += *rdma_reads;
        self.rdma_writes += *rdma_writes;
        self.stalls_send_credit += *stalls_send_credit;
        self.stalls_send_queue += stalls_send_queue;
        self.stalls_registration += stalls_registration;
        self.registrations += registrations;
        self.remote_invalidations += remote_invalidations;
        // 0 is that of a connection which was never negotiated.
        self.receive_low_water = match (self.receive_low_water, *receive_low_water) {
            (0, other) | (other, 0) => other,
            (one, other) => one.min(other),
        };
        self.keepalives_sent += keepalives_sent;
        self.keepalives_answered += keepalives_answered;
        self.zero_copy_bytes += zero_copy_bytes;
        self.copied_bytes += copied_bytes;
    }
}
