//! The promises on the providers that need no device.

use super::*;
use crate::rdma::sim::DeviceOptions;

/// One test per promise.
macro_rules! promises_on_sim {
    ($($module:ident::$name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                for device in devices() {
                    for seed in 0..2 {
                        $module::$name(&mut SimBed::new(seed, device.clone(), device.clone()));
                    }
                }
            }
        )*
    };
}

with_promises!(promises_on_sim);

fn devices() -> [DeviceOptions; 6] {
    let mut slow = DeviceOptions::roce();
    slow.quirks.established_delay = std::time::Duration::from_millis(3);
    slow.quirks.flush_delay = std::time::Duration::from_millis(3);
    slow.quirks.lazy_unsignalled = false;
    [
        DeviceOptions::roce(),
        DeviceOptions::iwarp(),
        DeviceOptions::rxe(),
        DeviceOptions::siw(),
        DeviceOptions::bnxt(),
        slow,
    ]
}

#[cfg(feature = "iwarp")]
mod on_iwarp {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::super::*;
    use crate::rdma::Provider;
    use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};

    macro_rules! promises_on_iwarp {
        ($($module:ident::$name:ident,)*) => {
            $(
                #[test]
                fn $name() {
                    $module::$name(&mut bed());
                }
            )*
        };
    }

    with_promises!(promises_on_iwarp);

    fn bed() -> RealBed {
        let provider = || -> Box<dyn Provider> {
            Box::new(IwarpProvider::new(IwarpConfig::default()).unwrap())
        };
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        RealBed::new(
            [provider(), provider(), provider()],
            None,
            address,
            Duration::from_secs(20),
        )
    }
}

/// On two RDMA devices that reach each other: in the guest.
#[cfg(feature = "verbs")]
mod on_verbs {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::super::*;
    use crate::rdma::verbs::{DeviceInfo, Verbs, devices};
    use crate::rdma::{Exposure, Provider};

    macro_rules! promises_on_verbs {
        ($($module:ident::$name:ident,)*) => {
            $(
                #[test]
                fn $name() {
                    match bed() {
                        Some(_) if broken(stringify!($name)) => {
                            eprintln!("not kept by this device")
                        }
                        Some(mut bed) => $module::$name(&mut bed),
                        None => eprintln!("not run: this is no guest with RDMA devices"),
                    }
                }
            )*
        };
    }

    with_promises!(promises_on_verbs);

    /// Promises that soft-iWARP does not keep: it asks for no right when the peer reads, and serves as many reads as
    /// the peer asks for, whatever was accepted.
    fn broken(name: &str) -> bool {
        let siw = |device: &DeviceInfo| device.capabilities.exposure == Exposure::Registration;
        ["rights_are_kept", "depths_are_those_both_sides_allow"].contains(&name)
            && devices().unwrap().iter().any(siw)
    }

    fn bed() -> Option<RealBed> {
        std::env::var_os("SMBDIRECT_GUEST")?;
        let address = |name: &str| std::env::var(name).ok()?.parse::<IpAddr>().ok();
        let (local, remote) = (address("LOCAL")?, address("REMOTE")?);
        let provider = || -> Box<dyn Provider> { Box::new(Verbs::open().unwrap()) };
        let providers = [provider(), provider(), provider()];
        Some(RealBed::new(
            providers,
            Some(local),
            remote,
            Duration::from_secs(60),
        ))
    }
}
