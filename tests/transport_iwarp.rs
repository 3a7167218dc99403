//! The transport suite on the software iWARP, over loopback TCP.
#![cfg(feature = "iwarp")]

mod suite;

use std::net::{IpAddr, Ipv4Addr};

use smbdirect::rdma::{ProviderKind, open};
use suite::Bed;

const BED: Bed = Bed {
    provider: || open(ProviderKind::Iwarp),
    server: IpAddr::V4(Ipv4Addr::LOCALHOST),
    reactors: 1,
    drive: |group| group.spawn().expect("threads"),
    slow: 1,
};

suite!(BED);
suite!(@bulk BED);

/// The same with several reactors at each end: connections move to another than the one that accepted them.
mod group {
    use super::{BED, Bed};

    crate::suite!(Bed { reactors: 3, ..BED });
}

/// The same over IPv6, where the host has it.
mod ipv6 {
    use std::net::{Ipv6Addr, TcpListener};

    use super::{BED, Bed};

    fn bed() -> Option<Bed> {
        let server = Ipv6Addr::LOCALHOST.into();
        if TcpListener::bind((server, 0)).is_err() {
            println!("not run: no IPv6 here");
            return None;
        }
        Some(Bed { server, ..BED })
    }

    crate::suite!(match bed() {
        Some(bed) => bed,
        None => return,
    });
}
