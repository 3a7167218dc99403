//! The provider contract on RDMA devices, in a guest that has some: soft-RoCE or soft-iWARP.
#![cfg(all(feature = "verbs", feature = "testing"))]

use std::net::IpAddr;
use std::time::Duration;

use smbdirect::rdma::Provider;
use smbdirect::rdma::contract::{Bed, RealBed, keep_promises};
use smbdirect::rdma::verbs::{Verbs, VerbsOptions};

#[test]
fn devices_keep_the_promises() {
    if std::env::var_os("SMBDIRECT_GUEST").is_none() {
        eprintln!("not in a guest with RDMA devices: nothing to do here");
        return;
    }
    let (local, remote) = (address("LOCAL", "10.0.1.1"), address("REMOTE", "10.0.1.2"));
    // soft-iWARP serves as many reads as the peer asks for, whatever was accepted, and lets the peer read what is
    // exposed for writing.
    let except: &[&str] = match std::env::var("DEVICE").as_deref() {
        Ok("siw") => &["depths_are_those_both_sides_allow", "rights_are_kept"],
        _ => &[],
    };
    let keep = |options: &VerbsOptions| {
        let provider = || -> Box<dyn Provider> {
            Box::new(Verbs::open_with(options.clone()).expect("RDMA devices"))
        };
        let bed = || -> Box<dyn Bed> {
            Box::new(RealBed::new(
                [provider(), provider(), provider()],
                Some(local),
                remote,
                // An emulated machine on a busy host.
                Duration::from_secs(60),
            ))
        };
        keep_promises(bed, except);
    };
    let mut options = VerbsOptions::default();
    keep(&options);
    if std::env::var("DEVICE").as_deref() == Ok("rxe") {
        eprintln!("and with windows:");
        options.soft_roce_windows = true;
        keep(&options);
    }
}

fn address(variable: &str, default: &str) -> IpAddr {
    let address = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    address.parse().expect("an IP address")
}
