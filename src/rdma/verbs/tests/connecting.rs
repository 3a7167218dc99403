//! Finding the peer and its device, and shaking hands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use super::end::End;
use super::world::{Side, Who, World, addresses};
use crate::rdma::verbs::{device_for, devices, interfaces};
use crate::rdma::{
    CompletionStatus, ConnectParams, Event, Fabric, FabricFilter, ListenOptions, LossReason,
    Provider, RdmaError, ResolveOptions,
};

#[test]
fn handshakes_carry_private_data_and_depths() {
    let Some(mut world) = World::new() else {
        return;
    };
    let params = |text: &[u8], initiator_depth, responder_resources| ConnectParams {
        private_data: text.to_vec(),
        initiator_depth,
        responder_resources,
        ..ConnectParams::default()
    };
    let c = params(b"from the client", 3, 9);
    let s = params(b"from the server", 7, 5);
    let (ends, [client, server]) = world.connect_with(&c, &s);
    // InfiniBand and RoCE pad with zeroes.
    assert!(client.0.starts_with(b"from the server"));
    assert!(server.0.starts_with(b"from the client"));
    assert_eq!((client.1, client.2), (3, 7), "client");
    assert_eq!((server.1, server.2), (7, 3), "server");
    world.end(ends);

    // The client of SMB Direct never reads.
    let (c, s) = (params(b"", 0, 16), params(b"", 8, 0));
    let (ends, [client, server]) = world.connect_with(&c, &s);
    assert_eq!((client.1, server.1, server.2), (0, 8, 0));
    world.end(ends);
}

#[test]
fn type_of_service_and_ack_timeout_reach_the_queue_pairs() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.type_of_service = Some(0x68);
    let params = ConnectParams {
        ack_timeout: Some(11),
        ..ConnectParams::default()
    };
    let (client, server) = world.connect_with(&params, &params).0;
    if client.capabilities.fabric == Fabric::Roce {
        for end in [&client, &server] {
            let side = &world.side(end.who).verbs;
            let queue_pair = side
                .conn(end.conn)
                .and_then(|conn| conn.queue_pair.as_ref());
            let attributes = queue_pair.unwrap().attributes().unwrap();
            assert_eq!(attributes.timeout, 11, "{:?}", end.who);
            // The accepting side's is that of the peer's request.
            assert_eq!(attributes.ah_attr.grh.traffic_class, 0x68, "{:?}", end.who);
        }
    }
    // iWARP has no such timeout, and takes the option for what it is.
    world.end((client, server));
}

#[test]
fn a_rejected_client_is_told_so() {
    let Some(mut world) = World::new() else {
        return;
    };
    for drop_it in [false, true] {
        let conn = world.resolve();
        let client = End::new(Who::Client, &mut world, conn);
        let params = ConnectParams::default();
        world
            .client
            .verbs
            .connect(conn, &params, Instant::now())
            .unwrap();
        let incoming = world.incoming();
        if drop_it {
            drop(incoming);
        } else {
            world.server.verbs.reject(incoming);
        }
        let reason = world.disconnected(&client);
        assert!(
            matches!(reason, LossReason::Failed(RdmaError::Rejected { .. })),
            "{reason:?}"
        );
        world.balanced(&client);
    }
}

#[test]
fn nobody_there_is_refused() {
    let Some(mut world) = World::new() else {
        return;
    };
    let listener = world.listener;
    world.server.verbs.unlisten(listener);
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    let params = ConnectParams::default();
    world
        .client
        .verbs
        .connect(conn, &params, Instant::now())
        .unwrap();
    let reason = world.disconnected(&client);
    assert_eq!(reason, LossReason::Failed(RdmaError::Refused));
    world.balanced(&client);
}

/// A link-local address is one on a link only: without its scope nothing can be bound to it.
#[test]
fn a_link_local_address_whose_port_is_taken_is_not_without_a_device() {
    let Some(mut world) = World::new() else {
        return;
    };
    let link = std::env::var("REMOTE_LINK").unwrap_or("v1".into());
    let own = interfaces().into_iter().find_map(|own| match own.address {
        IpAddr::V6(ip) if own.name == link && ip.is_unicast_link_local() => Some((ip, own.index)),
        _ => None,
    });
    let (ip, scope) = own.expect("the guest's links have one each");
    let verbs = &mut world.server.verbs;
    let options = ListenOptions::default();
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0);
    let everywhere = verbs.listen(everywhere, &options).unwrap();
    let port = verbs.listener_address(everywhere).unwrap().port();
    let there = |port| SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope));
    let taken = there(port);
    assert_eq!(
        verbs.listen(taken, &options),
        Err(RdmaError::AddressInUse(taken))
    );
    verbs.unlisten(everywhere);
    let listener = verbs.listen(there(0), &options).unwrap();
    verbs.unlisten(listener);
}

#[test]
fn addresses_without_a_device_are_named() {
    let Some(mut world) = World::new() else {
        return;
    };
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listened = world
        .server
        .verbs
        .listen(loopback, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::NoDevice(loopback)));
    let taken = world.target();
    let listened = world.server.verbs.listen(taken, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::AddressInUse(taken)));
    // As a listener on every address that is in the way of one on a single address.
    let everywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), taken.port());
    let listened = world
        .server
        .verbs
        .listen(everywhere, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::AddressInUse(everywhere)));
    let foreign: SocketAddr = "10.0.1.77:5445".parse().unwrap();
    let listened = world
        .server
        .verbs
        .listen(foreign, &ListenOptions::default());
    assert_eq!(listened, Err(RdmaError::NoDevice(foreign)));
    // No such neighbour: an error at once, or the end soon.
    let nobody: SocketAddr = "10.0.1.77:5445".parse().unwrap();
    let options = ResolveOptions {
        timeout: Duration::from_secs(1),
        ..ResolveOptions::default()
    };
    if let Ok(conn) = world.client.verbs.resolve(nobody, &options, Instant::now()) {
        let (reason, _) = world.wait(Who::Client, |event| match event {
            Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
            _ => None,
        });
        assert!(matches!(reason, LossReason::Failed(_)), "{reason:?}");
    }
    // A fabric that was not asked for.
    let fabric = devices().unwrap()[0].capabilities.fabric;
    let wanted = match fabric {
        Fabric::Iwarp => FabricFilter::InfinibandOrRoce,
        _ => FabricFilter::Iwarp,
    };
    let options = ResolveOptions {
        only: Some(wanted),
        ..ResolveOptions::default()
    };
    let conn = world
        .client
        .verbs
        .resolve(taken, &options, Instant::now())
        .unwrap();
    let (reason, _) = world.wait(Who::Client, |event| match event {
        Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
        _ => None,
    });
    let address = taken;
    assert_eq!(
        reason,
        LossReason::Failed(RdmaError::WrongFabric { address, wanted })
    );
}

#[test]
fn the_inventory_knows_which_device_serves_which_address() {
    let Some((local, remote)) = addresses() else {
        return;
    };
    let found = devices().unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|device| device.active));
    for address in [local, remote] {
        let (name, port) = device_for(address).unwrap();
        let device = found.iter().find(|device| device.name == name).unwrap();
        assert_eq!(
            (device.port, device.addresses.contains(&address)),
            (port, true)
        );
        eprintln!("{device:?}");
    }
    assert_ne!(device_for(local), device_for(remote));
}

#[test]
fn a_request_moves_to_another_provider() {
    let Some(mut world) = World::new() else {
        return;
    };
    let conn = world.resolve();
    let client = End::new(Who::Client, &mut world, conn);
    world
        .client
        .verbs
        .connect(conn, &ConnectParams::default(), Instant::now())
        .unwrap();
    let incoming = world.incoming();
    // The listener's provider keeps the listener only; the connection lives on another.
    let other = Side::new();
    let listening = std::mem::replace(&mut world.server, other);
    let conn = world.server.verbs.adopt(incoming, Instant::now()).unwrap();
    let server = End::new(Who::Server, &mut world, conn);
    world
        .server
        .verbs
        .accept(conn, &ConnectParams::default(), Instant::now())
        .unwrap();
    for who in [Who::Client, Who::Server] {
        world.wait(who, |event| {
            matches!(event, Event::Established { .. }).then_some(())
        });
    }
    assert_eq!(
        world.execute(&client, vec![client.send(99, 1)]),
        CompletionStatus::Success
    );
    assert_eq!(world.received(&server).0.len(), 99);
    drop(listening);
    assert_eq!(
        world.execute(&server, vec![server.send(98, 1)]),
        CompletionStatus::Success
    );
    assert_eq!(world.received(&client).0.len(), 98);
    world.end((client, server));
}
