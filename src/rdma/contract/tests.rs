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
    slow.quirks.creation_blocks = true;
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
