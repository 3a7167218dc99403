//! The transport suite on the software iWARP, over loopback TCP.
#![cfg(feature = "iwarp")]

mod suite;

use std::net::{IpAddr, Ipv4Addr};

use smbdirect::rdma::{ProviderKind, open};
use suite::Bed;

suite!(Bed {
    provider: || open(ProviderKind::Iwarp),
    server: IpAddr::V4(Ipv4Addr::LOCALHOST),
    slow: 1,
});
