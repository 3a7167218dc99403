//! Ports: which one a connection goes to, and where a listener is. On the simulated network, and on the software
//! iWARP over the loopback.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;
use crate::rdma::sim::{DeviceOptions, Network, NetworkOptions};
use crate::rdma::{FabricFilter, ProviderKind, RdmaError, ResolveOptions};
use crate::transport::{Connector, Error, IWARP_PORT, Op, PORT, Transport};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 1));
/// The server without a port.
const ANY: SocketAddr = SocketAddr::new(SERVER, 0);

struct World {
    network: Network,
    server: Reactor,
    client: Reactor,
    _listener: Option<DirectListener>,
}

impl World {
    /// Two hosts with such devices; the server listens on the port, if there is one.
    fn new(device: DeviceOptions, port: Option<u16>) -> Self {
        let network = Network::new(7, NetworkOptions::default());
        let reactor = |host| {
            let provider = network.provider_with(host, device.clone());
            Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap()
        };
        let (server, client) = (reactor(SERVER), reactor(CLIENT));
        let listener = port.map(|port| {
            let place = SocketAddr::new(SERVER, port);
            server.listen(&[place], ChannelOptions::default()).unwrap()
        });
        Self {
            network,
            server,
            client,
            _listener: listener,
        }
    }

    fn finish<T>(&self, mut op: Op<T>) -> Result<T, Error> {
        for _ in 0..100_000 {
            let next = [self.server.poll(), self.client.poll()];
            if let Some(result) = op.try_take() {
                return result;
            }
            let now = self.network.now();
            let next = next.into_iter().flatten().min();
            let step = next.map_or(Duration::from_millis(1), |at| {
                at.saturating_duration_since(now)
            });
            self.network.advance(step);
        }
        panic!("the operation does not end");
    }

    /// The server's port that was connected to.
    fn port(&self, options: ChannelOptions) -> Result<u16, Error> {
        self.finish(self.client.connect(ANY, options))
            .map(|channel| channel.info().peer.port())
    }
}

fn refused(first_port: u16, second_port: u16) -> Error {
    Error::BothPorts {
        first_port,
        first: Box::new(RdmaError::Refused.into()),
        second_port,
        second: Box::new(RdmaError::Refused.into()),
    }
}

#[test]
fn the_devices_port_comes_first() {
    for (device, own, other) in [
        (DeviceOptions::rxe(), PORT, IWARP_PORT),
        (DeviceOptions::siw(), IWARP_PORT, PORT),
        (DeviceOptions::iwarp(), IWARP_PORT, PORT),
    ] {
        let world = World::new(device.clone(), Some(own));
        assert_eq!(world.port(ChannelOptions::default()), Ok(own));
        let world = World::new(device.clone(), Some(other));
        assert_eq!(world.port(ChannelOptions::default()), Ok(other));
        let world = World::new(device, None);
        assert_eq!(
            world.port(ChannelOptions::default()),
            Err(refused(own, other))
        );
    }
}

#[test]
fn both_failures_are_told_to_people() {
    let error = refused(PORT, IWARP_PORT).to_string();
    assert_eq!(
        error,
        "port 445: connection refused: nothing listens there, or not with RDMA; \
         port 5445: connection refused: nothing listens there, or not with RDMA"
    );
    let kind = std::io::Error::from(refused(PORT, IWARP_PORT)).kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_port_that_was_given_is_the_only_one() {
    let world = World::new(DeviceOptions::rxe(), Some(IWARP_PORT));
    let to = SocketAddr::new(SERVER, PORT);
    let result = world.finish(world.client.connect(to, ChannelOptions::default()));
    assert_eq!(result.err(), Some(RdmaError::Refused.into()));
}

#[test]
fn no_other_port_is_tried_where_it_could_not_help() {
    let world = World::new(DeviceOptions::rxe(), Some(PORT));
    let nobody = "10.0.1.9:0".parse().unwrap();
    let op = world.client.connect(nobody, ChannelOptions::default());
    let error = world.finish(op).err();
    assert_eq!(error, Some(RdmaError::Unreachable.into()));

    // Another fabric than this host has: the caller's own filter is kept.
    let resolve = ResolveOptions {
        only: Some(FabricFilter::Iwarp),
        ..ResolveOptions::default()
    };
    let op = world
        .client
        .connect_with(ANY, &resolve, ChannelOptions::default());
    let error = RdmaError::WrongFabric {
        address: SocketAddr::new(SERVER, IWARP_PORT),
        wanted: FabricFilter::Iwarp,
    };
    assert_eq!(world.finish(op).err(), Some(error.into()));
}

#[test]
fn a_connector_does_not_say_what_it_connects() {
    let world = World::new(DeviceOptions::siw(), Some(IWARP_PORT));
    let connector: Box<dyn Connector> = Box::new(DirectConnector::new(
        world.client.clone(),
        ChannelOptions::default(),
    ));
    let transport = world.finish(connector.connect(ANY)).unwrap();
    assert_eq!(transport.info().peer.port(), IWARP_PORT);
    assert!(transport.direct().is_some());
}

#[test]
fn a_listener_is_on_the_device_that_was_asked_for() {
    let world = World::new(DeviceOptions::rxe(), None);
    let address = SocketAddr::new(SERVER, PORT);
    let places = [
        ListenAt::on_device("sim_rxe", address),
        ListenAt::on_device("other", SocketAddr::new(SERVER, IWARP_PORT)),
    ];
    let error = world
        .server
        .listen(&places, ChannelOptions::default())
        .err();
    assert_eq!(
        error,
        Some(Error::Rdma(RdmaError::WrongDevice {
            address: SocketAddr::new(SERVER, IWARP_PORT),
            wanted: "other".into()
        }))
    );
    // On none if one fails: the first one is free again.
    let _listener = world
        .server
        .listen(&places[..1], ChannelOptions::default())
        .unwrap();
}

#[test]
fn the_software_iwarp_has_its_port_at_every_address() {
    let address = IpAddr::from([127, 0, 0, 1]);
    let place = ListenAt::usual(ProviderKind::Iwarp, address).unwrap();
    assert_eq!(place, ListenAt::from(SocketAddr::new(address, IWARP_PORT)));
    let places = ListenAt::everywhere(ProviderKind::Iwarp).unwrap();
    assert!(places.iter().all(|p| p.address.ip().is_unspecified()));
    assert!(places.iter().all(|p| p.address.port() == IWARP_PORT));
    assert!(!places.is_empty());
}

#[test]
fn devices_are_never_listened_to_by_a_wildcard() {
    // On a machine without devices: an error that says so.
    match ListenAt::everywhere(ProviderKind::Verbs) {
        Ok(places) => {
            assert!(places.iter().all(|place| place.device.is_some()));
            assert!(places.iter().all(|p| !p.address.ip().is_unspecified()));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(feature = "iwarp")]
#[test]
fn the_software_iwarp_connects_without_a_port() {
    use crate::rdma::{Provider, iwarp::IwarpConfig, iwarp::IwarpProvider};

    let reactor = || {
        let provider = IwarpProvider::new(IwarpConfig::default()).unwrap();
        let provider: Box<dyn Provider> = Box::new(provider);
        let reactor = Reactor::new(provider, ReactorOptions::default()).unwrap();
        reactor.spawn().unwrap();
        reactor
    };
    let (server, client) = (reactor(), reactor());
    // Loopback addresses that nobody else uses.
    let (here, nowhere) = ([127, 54, 45, 1], [127, 54, 45, 2]);
    let place = ListenAt::usual(ProviderKind::Iwarp, here.into()).unwrap();
    let _listener = server.listen(&[place], ChannelOptions::default()).unwrap();
    let channel = client.connect((here, 0).into(), ChannelOptions::default());
    assert_eq!(channel.wait().unwrap().info().peer.port(), IWARP_PORT);
    let channel = client.connect((nowhere, 0).into(), ChannelOptions::default());
    assert_eq!(channel.wait().err(), Some(refused(IWARP_PORT, PORT)));
    client.shutdown(Duration::ZERO);
    server.shutdown(Duration::ZERO);
}
