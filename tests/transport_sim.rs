//! The transport suite on the simulated network, which one thread per test drives in the system's time: the suite's
//! threads wait in it.
#![cfg(feature = "testing")]

#[allow(
    dead_code,
    reason = "virtual time has bulk transfers of its own; and who drives a reactor alone is not told of what the network does"
)]
mod suite;

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{ChannelOptions, Reactor, ReactorGroup};
use smbdirect::rdma::sim::{DeviceOptions, Network, NetworkOptions};
use smbdirect::rdma::{Provider, RdmaError};
use suite::Bed;

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
/// How long the network rests when nothing happens: calls do not wake it.
const REST: Duration = Duration::from_micros(100);

thread_local! {
    /// Each test has a thread, and a network of its own.
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

/// A network, and the reactors that are driven on it.
struct World {
    network: Network,
    reactors: Arc<Mutex<Vec<Reactor>>>,
}

impl World {
    fn new() -> Self {
        let network = Network::new(1, NetworkOptions::default());
        let reactors = Arc::default();
        let (time, driven) = (network.clone(), Arc::downgrade(&reactors));
        thread::spawn(move || drive(&time, &driven));
        Self { network, reactors }
    }
}

/// Lets the network's time be the system's, until the test is over.
fn drive(network: &Network, reactors: &Weak<Mutex<Vec<Reactor>>>) {
    while let Some(reactors) = reactors.upgrade() {
        network.advance_to(Instant::now());
        let now = network.now();
        let reactors = reactors.lock().unwrap_or_else(PoisonError::into_inner);
        let next = reactors.iter().filter_map(Reactor::poll).min();
        drop(reactors);
        let violations = network.take_violations();
        if !violations.is_empty() {
            // The test's own thread may wait for something that comes all the same.
            eprintln!("{violations:?}");
            std::process::abort();
        }
        if next.is_none_or(|next| next > now) {
            thread::sleep(REST);
        }
    }
}

fn provider(device: fn() -> DeviceOptions) -> Result<Box<dyn Provider>, RdmaError> {
    WORLD.with(|world| {
        let network = &world.get_or_init(World::new).network;
        Ok(Box::new(network.provider_with(HOST, device())) as Box<dyn Provider>)
    })
}

fn drive_group(group: &ReactorGroup) {
    WORLD.with(|world| {
        let reactors = &world.get_or_init(World::new).reactors;
        let mut reactors = reactors.lock().unwrap_or_else(PoisonError::into_inner);
        reactors.extend(group.reactors().iter().cloned());
    });
}

const BED: Bed = Bed {
    provider: || provider(DeviceOptions::roce),
    server: HOST,
    reactors: 1,
    drive: drive_group,
    slow: 1,
};

suite!(@ BED, graceful_close_delivers_everything, dropping_a_channel_closes_it, abort_ends_both_sides,
    bad_messages_are_refused, connecting_to_nobody_fails, idle_connections_exchange_probes_only,
    a_slow_application_loses_nothing, every_kind_of_message_arrives, connections_come_and_go);
suite!(@direct BED, memory_is_written_and_read, a_response_invalidates_its_token,
    several_buffers_are_written_and_read, transfers_go_beside_messages, many_tiny_descriptors_complete,
    memory_comes_back_from_a_dead_connection);
suite!(@forged BED, bad_descriptors_post_nothing, forged_descriptors_are_not_written_to,
    forged_descriptors_are_not_read_from);
suite!(@memory BED, brought_memory_is_moved, a_mapping_serves_many_connections, empty_memory_is_not_registered);

#[test]
fn echo_many() {
    suite::echo_many(&Bed { slow: 4, ..BED }, &ChannelOptions::default());
}

/// With several reactors at each end.
mod group {
    use super::{BED, Bed};

    crate::suite!(@ Bed { reactors: 3, ..BED }, graceful_close_delivers_everything, abort_ends_both_sides,
        connecting_to_nobody_fails, connections_come_and_go);
}

/// On devices that expose memory in other ways, and tell less of what goes wrong.
mod devices {
    use super::{BED, Bed, DeviceOptions, provider};

    macro_rules! on {
        ($($name:ident),*) => {
            $(mod $name {
                use super::{BED, Bed, DeviceOptions, provider};

                const ON: Bed = Bed { provider: || provider(DeviceOptions::$name), ..BED };

                crate::suite!(@direct ON, memory_is_written_and_read, a_response_invalidates_its_token,
                    several_buffers_are_written_and_read, many_tiny_descriptors_complete,
                    memory_comes_back_from_a_dead_connection);
                crate::suite!(@forged ON, bad_descriptors_post_nothing, forged_descriptors_are_not_written_to,
                    forged_descriptors_are_not_read_from);
            })*
        };
    }

    on!(iwarp, rxe, siw, bnxt);
}
