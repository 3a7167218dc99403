//! What callers choose and what devices can do.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Options of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Listen only if the address is this device's; another is an [`RdmaError::WrongDevice`](super::RdmaError).
    pub device: Option<String>,
    /// Connection requests that may wait in the system's queue.
    pub backlog: u32,
    /// Handshakes of the provider's own that may be unfinished at a time, in total.
    pub max_half_open: usize,
    /// The same for one peer address.
    pub max_half_open_per_peer: usize,
    /// Type of service (IPv4) or traffic class (IPv6) byte of what is sent; the upper six bits are the DSCP.
    pub type_of_service: Option<u8>,
    /// Who may connect.
    pub filter: AcceptFilter,
}

/// Decides by its address whether a peer may connect. Who may not is refused before memory is spent on it.
#[derive(Clone, Default)]
pub struct AcceptFilter(Option<Arc<Filter>>);

struct Filter {
    allows: Box<dyn Fn(IpAddr) -> bool + Send + Sync>,
    refused: AtomicU64,
}

impl AcceptFilter {
    /// Everybody may connect.
    pub fn everybody() -> Self {
        Self::default()
    }

    /// Those may connect for whose address `allows` is true. It runs on the reactor's or the TCP listener's thread
    /// and must not block. IPv4 addresses come as such, also on listeners of IPv6.
    pub fn new(allows: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Filter {
            allows: Box::new(allows),
            refused: AtomicU64::new(0),
        })))
    }

    /// Connections that were refused by this filter and its clones.
    pub fn refused(&self) -> u64 {
        let filter = self.0.as_ref();
        filter.map_or(0, |filter| filter.refused.load(Ordering::Relaxed))
    }

    /// Whether this peer may connect; counts if not.
    pub(crate) fn admits(&self, peer: IpAddr) -> bool {
        let Some(filter) = &self.0 else { return true };
        let admitted = (filter.allows)(peer.to_canonical());
        if !admitted {
            filter.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
}

impl fmt::Debug for AcceptFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            None => "AcceptFilter(everybody)",
            Some(_) => "AcceptFilter(..)",
        })
    }
}

/// Equal if both let everybody connect, or if both ask the same function.
impl PartialEq for AcceptFilter {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for AcceptFilter {}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            device: None,
            backlog: 128,
            max_half_open: 1024,
            max_half_open_per_peer: 64,
            type_of_service: None,
            filter: AcceptFilter::everybody(),
        }
    }
}

/// Options of address and route resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResolveOptions {
    /// The local address to use; its device serves the connection. Port 0 for any.
    pub local: Option<std::net::SocketAddr>,
    /// How long address and route may take, each.
    pub timeout: Duration,
    /// Type of service (IPv4) or traffic class (IPv6) byte; the upper six bits are the DSCP.
    pub type_of_service: Option<u8>,
    /// Go only where the device is of this fabric; another is an [`RdmaError::WrongFabric`](super::RdmaError).
    pub only: Option<FabricFilter>,
}

impl Default for ResolveOptions {
    fn default() -> Self {
        Self {
            local: None,
            timeout: Duration::from_secs(5),
            type_of_service: None,
            only: None,
        }
    }
}

/// Which fabrics a connection attempt may use: the port depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FabricFilter {
    /// iWARP devices only.
    Iwarp,
    /// InfiniBand and RoCE devices only.
    InfinibandOrRoce,
}

impl FabricFilter {
    /// Whether a device of `fabric` may be used.
    pub fn allows(self, fabric: Fabric) -> bool {
        (self == Self::Iwarp) == (fabric == Fabric::Iwarp)
    }
}

/// Sizes of a queue pair.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QpOptions {
    /// Requests that may be in the send queue.
    pub send_depth: u32,
    /// Receives that may be posted.
    pub receive_depth: u32,
    /// Pieces of a gather list; at most [`MAX_PIECES`](super::MAX_PIECES).
    pub max_gather: u32,
    /// Bytes that should fit inline into a request of one piece, where the device can.
    pub inline: u32,
}

impl Default for QpOptions {
    fn default() -> Self {
        Self {
            send_depth: 256,
            receive_depth: 256,
            max_gather: 4,
            inline: 64,
        }
    }
}

/// What goes into a connect or an accept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectParams {
    /// Bytes for the peer; what does not fit the fabric is an error.
    pub private_data: Vec<u8>,
    /// RDMA reads that we may have in flight (ORD); cut to what the device and the peer allow.
    pub initiator_depth: u16,
    /// RDMA reads of the peer that we serve at a time (IRD); cut likewise.
    pub responder_resources: u16,
    /// How long connecting may take.
    pub timeout: Duration,
    /// ACK timeout exponent of the queue pair (4.096 µs × 2^n), where the fabric has one. What is not acknowledged is sent
    /// again six times before the connection fails. `None`: 18, so that a link may be gone for 7 s.
    pub ack_timeout: Option<u8>,
}

impl Default for ConnectParams {
    fn default() -> Self {
        Self {
            private_data: Vec::new(),
            initiator_depth: 16,
            responder_resources: 16,
            timeout: Duration::from_secs(5),
            ack_timeout: None,
        }
    }
}

/// The kind of network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fabric {
    /// iWARP: RDMA over TCP.
    Iwarp,
    /// RoCE: RDMA over Ethernet.
    Roce,
    /// InfiniBand.
    Infiniband,
}

/// How memory is exposed to the peer on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exposure {
    /// Type-2B memory windows of the device, bound in queue order, invalidated by the peer's Send.
    Window,
    /// Windows of the software RNIC, with the same properties.
    SoftwareWindow,
    /// A registration per operation; the peer cannot invalidate it.
    Registration,
}

/// What a device can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The device's name.
    pub device: String,
    /// The kind of network.
    pub fabric: Fabric,
    /// How memory is exposed.
    pub exposure: Exposure,
    /// Whether it may send with invalidate.
    pub send_with_invalidate: bool,
    /// Whether a receive says which key the peer invalidated.
    pub reports_invalidation: bool,
    /// Pieces of a gather list of a Send or a Write, at most.
    pub max_gather: usize,
    /// Requests in a send queue, at most.
    pub max_send_depth: u32,
    /// Receives in a receive queue, at most.
    pub max_receive_depth: u32,
    /// RDMA reads in flight as initiator, at most.
    pub max_initiator_depth: u16,
    /// RDMA reads served at a time, at most.
    pub max_responder_resources: u16,
    /// Bytes of one RDMA operation or message, at most.
    pub max_message: u32,
    /// Bytes that one exposure describes, at most.
    pub max_exposure: u64,
    /// Quirks of the device that are worked around, for people.
    pub quirks: Vec<&'static str>,
}

impl Capabilities {
    /// Capabilities of a device that can everything, from which a provider takes away.
    pub fn new(device: impl Into<String>, fabric: Fabric, exposure: Exposure) -> Self {
        Self {
            device: device.into(),
            fabric,
            exposure,
            send_with_invalidate: true,
            reports_invalidation: true,
            max_gather: super::MAX_PIECES,
            max_send_depth: 4096,
            max_receive_depth: 4096,
            max_initiator_depth: 128,
            max_responder_resources: 128,
            max_message: 1 << 30,
            max_exposure: u32::MAX.into(),
            quirks: Vec::new(),
        }
    }

    /// Whether the peer may be asked to invalidate exposed memory: it works and can be verified.
    pub fn remote_invalidation(&self) -> bool {
        self.exposure != Exposure::Registration && self.reports_invalidation
    }
}
