//! What connections cost that have nothing to do.

use super::*;
use crate::proto::CreditProfile;

const CONNECTIONS: usize = 20;

fn world(profile: CreditProfile) -> (World, ChannelOptions) {
    let mut options = ChannelOptions::default();
    options.protocol.credit_profile = profile;
    // Each connection has a domain of its own, as on most devices.
    let world = World::new(1, DeviceOptions::siw(), options.clone());
    (world, options)
}

/// Bytes of registered memory that the server has for each of its connections.
fn cost(profile: CreditProfile) -> u64 {
    let (world, options) = world(profile);
    let _all: Vec<_> = (0..CONNECTIONS)
        .map(|_| world.connect(options.clone()))
        .collect();
    world.until(Duration::from_secs(1), || None::<()>);
    world.server.registered_memory() / CONNECTIONS as u64
}

#[test]
fn memory_follows_the_profile() {
    let small = cost(CreditProfile::Small);
    let adaptive = cost(CreditProfile::Adaptive);
    let full = cost(CreditProfile::Full);
    assert!(small <= 160 << 10, "{small} bytes");
    assert!(adaptive <= 320 << 10, "{adaptive} bytes");
    // All receives and all places of the send queue.
    assert!(full >= 2 * 255 * 1364, "{full} bytes");
}

#[test]
fn whoever_sends_much_gets_what_it_takes() {
    for profile in [CreditProfile::Small, CreditProfile::Adaptive] {
        let (world, options) = world(profile);
        let (client, server) = world.connect(options);
        for (sender, receiver) in [(&server, &client), (&client, &server)] {
            for n in 0..3u8 {
                sender.start_send((&vec![n; 1 << 20]).into()).unwrap();
            }
            for n in 0..3u8 {
                let message = world.recv(receiver).unwrap().unwrap();
                assert!(message.len() == 1 << 20 && message.iter().all(|byte| *byte == n));
            }
        }
    }
}
