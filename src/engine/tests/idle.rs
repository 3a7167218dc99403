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

/// Receives that have grown leave enough slots for what is sent from then on, so that nothing of it goes over the heap.
#[test]
fn what_is_sent_after_much_was_received_finds_its_slot() {
    for wanted in [112, 124, 240, 250] {
        let (world, mut options) = world(CreditProfile::Adaptive);
        options.protocol.send_credit_target = wanted;
        let (client, server) = world.connect(options);
        for _ in 0..1200 {
            client.start_send((&[7; 1000]).into()).unwrap();
            world.recv(&server).unwrap().unwrap();
        }
        for _ in 0..3 {
            server.start_send((&[7; 100]).into()).unwrap();
            world.recv(&client).unwrap().unwrap();
        }
        assert_eq!(server.stats().copied_bytes, 0, "{wanted} credits");
    }
}

/// What the application keeps is copied when few slots are left, and does not have more of them made.
#[test]
fn messages_that_are_kept_take_no_more_registered_memory() {
    let (world, options) = world(CreditProfile::Adaptive);
    let (client, server) = world.connect(options);
    let mut kept = Vec::new();
    let mut keep = |count| {
        for _ in 0..count {
            client.start_send((&[7; 1000]).into()).unwrap();
            let message = world.until(Duration::from_secs(1), || {
                match server.poll_recv(&mut cx()) {
                    Poll::Ready(message) => message.unwrap(),
                    Poll::Pending => None,
                }
            });
            kept.push(message.unwrap());
        }
        world.server.registered_memory()
    };
    let first = keep(1000);
    let last = keep(5000);
    assert!(last == first && first < 1 << 20, "{first} {last} bytes");
}
