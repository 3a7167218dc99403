//! The promises on the providers that need no device.

use std::net::{IpAddr, Ipv4Addr};

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

/// A connect that meets a taken port begins anew, within bounds: that is the machine's doing and breaks no promise.
#[test]
fn a_taken_port_breaks_no_promise() {
    let client = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let promises: [fn(&mut dyn Bed); 3] = [
        connecting::every_step_can_be_closed,
        connecting::fifty_connections_live_side_by_side,
        messages::what_arrives_with_the_connection_is_received,
    ];
    for (promise, taken) in promises.into_iter().zip([1, 2, 3]) {
        let mut bed = SimBed::new(1, DeviceOptions::siw(), DeviceOptions::siw());
        bed.network.take_ports(client, taken);
        promise(&mut bed);
    }
    let mut bed = SimBed::new(1, DeviceOptions::siw(), DeviceOptions::siw());
    bed.network.take_ports(client, 100);
    let endless = || connecting::every_step_can_be_closed(&mut bed);
    assert!(catch_unwind(AssertUnwindSafe(endless)).is_err());
}

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
