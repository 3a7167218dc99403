//! What devices and systems have in limited number.

use super::end::check;
use super::world::World;
use crate::rdma::verbs::{Verbs, devices, errors};
use crate::rdma::{
    CompletionStatus, Provider, RdmaError, RdmaOperation, RemoteAccess, Slab, SlabOptions,
};

/// What all devices have of a kind (`qp`, `mr`, `cm_id`), as the kernel counts.
fn resources(kind: &str) -> u32 {
    let output = std::process::Command::new("rdma")
        .args(["resource", "show"])
        .output()
        .expect("the guest has iproute2");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    let mut count = 0;
    while let Some(word) = words.next() {
        if word == kind {
            count += words.next().unwrap().parse::<u32>().unwrap();
        }
    }
    count
}

#[test]
fn two_hundred_connections_have_their_places_and_leave_nothing_behind() {
    let Some(mut world) = World::new() else {
        return;
    };
    // What stays with the provider is there after the first.
    let first = world.connect();
    world.end(first);
    let kinds = ["qp", "mr", "cm_id", "cq"];
    let before = kinds.map(resources);
    let mut ends = Vec::new();
    for i in 0..200 {
        let (client, server) = world.connect();
        let window = client.expose(&mut world, RemoteAccess::Write, i);
        let chain = vec![server.write(64, i, &window, 0), server.send(50, i)];
        assert_eq!(world.execute(&server, chain), CompletionStatus::Success);
        check(&world.received(&client).0, i);
        ends.push((client, server));
    }
    let during = kinds.map(resources);
    assert!(during[0] >= before[0] + 400 && during[1] >= before[1] + 800);
    // More than one completion queue holds, and every request has its place.
    for side in [&world.client, &world.server] {
        let device = &side.verbs.devices[0];
        let places: Vec<(u32, u32)> = (device.queues.iter()).map(|queue| queue.places()).collect();
        assert!(places.len() > 1 && places.iter().all(|(taken, all)| taken <= all));
        assert!(places.iter().map(|(taken, _)| taken).sum::<u32>() >= 200 * 128);
    }
    for ends in ends {
        world.end(ends);
    }
    let (client, server) = world.connect();
    world.end((client, server));
    let after = kinds.map(resources);
    // Completion queues are kept; everything else is as it was.
    assert_eq!(after[..3], before[..3], "{kinds:?}");
    assert!(after[3] <= before[3] + 8);
}

/// No completion queue can be larger than the device has them: soft-RoCE stops at 32,767 entries.
#[test]
fn completion_queues_are_added_as_needed() {
    let Some(mut world) = World::new() else {
        return;
    };
    let ends = world.connect();
    let device = &mut world.client.verbs.devices[0];
    let most = device.max_entries();
    let places = most.min(32_000);
    let queues = [(); 3].map(|()| device.reserve(places).unwrap());
    assert!(queues[0] < queues[1] && queues[1] < queues[2]);
    let beyond = device.reserve(most.saturating_add(1));
    let limit = RdmaError::Limit {
        operation: RdmaOperation::CreateCompletionQueue,
        asked: u64::from(most) + 1,
        limit: most.into(),
    };
    assert_eq!(beyond, Err(limit));
    // What is given back is used again.
    device.release(queues[1], places);
    assert_eq!(device.reserve(places), Ok(queues[1]));
    world.end(ends);
}

/// What a user without privileges is told; `SMBDIRECT_LIMITS` says which limit the caller has set.
#[test]
fn limits_are_explained() {
    match std::env::var("SMBDIRECT_LIMITS").as_deref() {
        Ok("memory") => {
            let Some(mut world) = World::new() else {
                return;
            };
            let conn = world.resolve();
            let domain = world.client.verbs.domain(conn).unwrap();
            let slab = Slab::new(&domain, 1 << 20, 4, SlabOptions::default());
            let error = slab.expect_err("4 MiB are more than the limit");
            let limit = errors::locked_memory_limit().unwrap();
            let needed = 4 << 20;
            assert_eq!(error, RdmaError::LockedMemory { limit, needed });
        }
        Ok("nodes") => {
            let node = errors::CM_NODE.to_owned();
            assert_eq!(Verbs::open().err(), Some(RdmaError::Permission(node)));
            let error = devices().unwrap_err();
            assert!(matches!(error, RdmaError::Permission(_)), "{error:?}");
        }
        _ => eprintln!("not run: no limits are set"),
    }
}
