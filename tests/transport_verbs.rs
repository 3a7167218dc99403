//! The transport suite on an RDMA device, from this host's second address back to it. Runs where
//! `SMBDIRECT_GUEST` says that there are devices: `cargo xtask guest --device rxe -- transport_verbs`.
#![cfg(feature = "verbs")]

mod suite;

use std::net::IpAddr;

use smbdirect::rdma::{ProviderKind, open};
use suite::Bed;

/// The server's address: the guest's, on the other side of the wire.
fn server() -> Option<IpAddr> {
    std::env::var("SMBDIRECT_GUEST").ok()?;
    std::env::var("REMOTE").ok()?.parse().ok()
}

suite!(Bed {
    provider: || open(ProviderKind::Verbs),
    server: match server() {
        Some(server) => server,
        None => {
            println!("not run: no RDMA devices here");
            return;
        }
    },
    slow: 4,
});
