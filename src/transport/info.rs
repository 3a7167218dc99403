//! What a connection is.

use std::fmt;
use std::net::SocketAddr;

use crate::proto::Parameters;
use crate::rdma::ProviderKind;

/// The kind of transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportKind {
    /// SMB Direct.
    SmbDirect,
    /// SMB over TCP with 4-byte framing.
    Tcp,
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SmbDirect => "SMB Direct",
            Self::Tcp => "TCP",
        })
    }
}

/// What a connection is.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Info {
    /// The kind of transport.
    pub kind: TransportKind,
    /// The RDMA provider; `None` on TCP.
    pub provider: Option<ProviderKind>,
    /// The RDMA device's name; `None` on TCP.
    pub device: Option<String>,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// What was negotiated; `None` on TCP.
    pub parameters: Option<Parameters>,
}

/// Largest sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest message that the peer takes.
    pub max_send: u64,
    /// The largest message that this side takes.
    pub max_receive: u64,
    /// The largest transfer by RDMA for one request; 0 where there is no direct placement.
    pub max_transfer: u32,
}
