//! The transport suite on an RDMA device, from this host's second address back to it. Runs where
//! `SMBDIRECT_GUEST` says that there are devices: `cargo xtask guest --device rxe -- transport_verbs`.
#![cfg(feature = "verbs")]

mod suite;

use std::net::IpAddr;

use smbdirect::rdma::verbs::{Verbs, VerbsOptions};
use smbdirect::rdma::{ProviderKind, open};
use suite::Bed;

/// The server's address: the guest's, on the other side of the wire.
fn server(variable: &str) -> Option<IpAddr> {
    std::env::var("SMBDIRECT_GUEST").ok()?;
    std::env::var(variable).ok()?.parse().ok()
}

/// `None` where there are no devices.
fn bed(reactors: usize) -> Option<Bed> {
    bed_at("REMOTE", reactors)
}

fn bed_at(variable: &str, reactors: usize) -> Option<Bed> {
    let bed = server(variable).map(|server| Bed {
        provider: || open(ProviderKind::Verbs),
        server,
        reactors,
        drive: |group| group.spawn().expect("threads"),
        slow: 4,
    });
    if bed.is_none() {
        println!("not run: no RDMA devices here");
    }
    bed
}

suite!(match bed(1) {
    Some(bed) => bed,
    None => return,
});
suite!(@bulk match bed(1) {
    Some(bed) => bed,
    None => return,
});

/// Connections move to another reactor than the one that accepted them. Not the whole suite: the machine is slow.
mod group {
    use super::bed;

    crate::suite!(@ match bed(3) {
        Some(bed) => bed,
        None => return,
    }, graceful_close_delivers_everything, abort_ends_both_sides, connecting_to_nobody_fails,
        connections_come_and_go);

    crate::suite!(@direct match bed(3) {
        Some(bed) => bed,
        None => return,
    }, memory_is_written_and_read, memory_comes_back_from_a_dead_connection);
}

/// Over IPv6. Not the whole suite either.
mod ipv6 {
    use super::bed_at;

    crate::suite!(@ match bed_at("REMOTE6", 1) {
        Some(bed) => bed,
        None => return,
    }, graceful_close_delivers_everything, connecting_to_nobody_fails, idle_connections_exchange_probes_only);

    crate::suite!(@direct match bed_at("REMOTE6", 1) {
        Some(bed) => bed,
        None => return,
    }, memory_is_written_and_read);
}

/// With memory windows where they are not used by default: soft-RoCE has the only ones here.
mod windows {
    use super::{Bed, Verbs, VerbsOptions, bed};

    fn trusting() -> Option<Bed> {
        if std::env::var("DEVICE").is_ok_and(|device| device != "rxe") {
            println!("not run: the device has no windows");
            return None;
        }
        let mut bed = bed(1)?;
        bed.provider = || {
            let mut options = VerbsOptions::default();
            options.soft_roce_windows = true;
            Ok(Box::new(Verbs::open_with(options)?))
        };
        Some(bed)
    }

    crate::suite!(@direct match trusting() {
        Some(bed) => bed,
        None => return,
    }, memory_is_written_and_read, a_response_invalidates_its_token, several_buffers_are_written_and_read,
        memory_comes_back_from_a_dead_connection);

    crate::suite!(@forged match trusting() {
        Some(bed) => bed,
        None => return,
    }, forged_descriptors_are_not_written_to, forged_descriptors_are_not_read_from);

    crate::suite!(@memory match trusting() {
        Some(bed) => bed,
        None => return,
    }, brought_memory_is_moved);
}
