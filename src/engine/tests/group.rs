//! Several reactors as one, on the simulated network.

use super::*;
use crate::rdma::ProviderKind;
use crate::transport::ApiMisuse;

/// A server of several reactors on one host, and a client reactor.
struct Farm {
    network: Network,
    server: ReactorGroup,
    client: Reactor,
    listener: DirectListener,
}

impl Farm {
    fn new(reactors: usize) -> Self {
        let network = Network::new(1, NetworkOptions::default());
        let reactor = |host| {
            let provider = network.provider_with(host, DeviceOptions::rxe());
            Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap()
        };
        let server = ReactorGroup::new((0..reactors).map(|_| reactor(SERVER)).collect()).unwrap();
        let client = reactor(CLIENT);
        let place = [SocketAddr::new(SERVER, PORT)];
        let listener = server.listen(&place, ChannelOptions::default()).unwrap();
        Self {
            network,
            server,
            client,
            listener,
        }
    }

    fn until<T>(&self, limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
        let end = self.network.now() + limit;
        while self.network.now() < end {
            for reactor in self.server.reactors() {
                reactor.poll();
            }
            self.client.poll();
            if let Some(result) = done() {
                return Some(result);
            }
            self.network.advance(Duration::from_micros(10));
        }
        None
    }

    fn connect(&self) -> Result<Channel, Error> {
        let to = SocketAddr::new(SERVER, PORT);
        let mut op = self.client.connect(to, ChannelOptions::default());
        self.until(Duration::from_secs(10), || op.try_take())
            .expect("the operation ends")
    }

    fn accept(&self) -> Option<Channel> {
        self.until(Duration::from_millis(10), || {
            match self.listener.poll_accept_channel(&mut cx()) {
                Poll::Ready(result) => result.ok(),
                Poll::Pending => None,
            }
        })
    }

    fn counts(&self) -> Vec<usize> {
        let reactors = self.server.reactors().iter();
        reactors.map(Reactor::connections).collect()
    }
}

#[test]
fn accepted_connections_go_where_there_are_fewest() {
    let farm = Farm::new(3);
    let mut channels: Vec<_> = (0..7)
        .map(|_| (farm.connect().unwrap(), farm.accept().unwrap()))
        .collect();
    assert_eq!(farm.counts(), [3, 2, 2]);
    for (n, (client, server)) in channels.iter().enumerate() {
        client.start_send((&[n as u8; 5000]).into()).unwrap();
        let message = farm.until(Duration::from_secs(1), || {
            match server.poll_recv(&mut cx()) {
                Poll::Ready(message) => message.unwrap(),
                Poll::Pending => None,
            }
        });
        assert!(message.unwrap()[..] == [n as u8; 5000]);
    }
    // The second reactor's two end: the next two go there.
    channels.retain(|(_, server)| {
        !std::ptr::eq(server.reactor(), &**farm.server.reactors()[1].shared())
    });
    assert_eq!(channels.len(), 5);
    farm.until(Duration::from_secs(1), || None::<()>);
    assert_eq!(farm.counts(), [3, 0, 2]);
    for _ in 0..2 {
        channels.push((farm.connect().unwrap(), farm.accept().unwrap()));
    }
    assert_eq!(farm.counts(), [3, 2, 2]);
}

#[test]
fn connections_that_are_made_are_spread_too() {
    let farm = Farm::new(1);
    let reactor = |_| {
        let provider = farm.network.provider_with(CLIENT, DeviceOptions::rxe());
        Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap()
    };
    let group = ReactorGroup::new((0..4).map(reactor).collect()).unwrap();
    let to = SocketAddr::new(SERVER, PORT);
    let ops: Vec<_> = (0..8)
        .map(|_| group.connect(to, ChannelOptions::default()))
        .collect();
    let counts = || -> Vec<_> { group.reactors().iter().map(Reactor::connections).collect() };
    assert_eq!(counts(), [2; 4]);
    assert_eq!(group.connections(), 8);
    group.shutdown(Duration::ZERO);
    for mut op in ops {
        let result = op.try_take().expect("the operation has ended");
        assert_eq!(
            result.err(),
            Some(Error::Closed(DisconnectReason::ReactorGone))
        );
    }
}

#[test]
fn a_reactor_that_was_shut_down_gets_no_more() {
    let farm = Farm::new(3);
    farm.server.reactors()[1].shutdown(Duration::ZERO);
    let channels: Vec<_> = (0..4)
        .map(|_| (farm.connect().unwrap(), farm.accept().unwrap()))
        .collect();
    assert_eq!(farm.counts(), [2, 0, 2]);
    drop(channels);
    // The one that accepts is gone: there is no listener any more, and the others live.
    farm.server.reactors()[0].shutdown(Duration::ZERO);
    assert!(farm.connect().is_err());
    let gone = Error::Closed(DisconnectReason::ReactorGone);
    let place = [SocketAddr::new(SERVER, PORT + 1)];
    let again = farm.server.listen(&place, ChannelOptions::default());
    assert_eq!(again.err(), Some(gone.clone()));
    match farm.listener.poll_accept_channel(&mut cx()) {
        Poll::Ready(result) => assert_eq!(result.err(), Some(gone)),
        Poll::Pending => panic!("the listener is over"),
    }
}

/// What was handed over to a reactor that ends in the same moment is refused, and is no longer among those that
/// negotiate.
#[test]
fn a_connection_handed_over_too_late_is_refused() {
    let farm = Farm::new(2);
    let held = (farm.connect().unwrap(), farm.accept().unwrap());
    assert_eq!(farm.counts(), [1, 0]);
    let to = SocketAddr::new(SERVER, PORT);
    let mut op = farm.client.connect(to, ChannelOptions::default());
    // The other reactor's lock is held while it is handed over, and it is shut down under the same lock.
    farm.server.reactors()[1].hold(|core| {
        for _ in 0..200 {
            farm.server.reactors()[0].poll();
            farm.client.poll();
            farm.network.advance(Duration::from_micros(10));
        }
        core.shut_down(crate::rdma::Close::Abort, core.now());
    });
    let result = farm.until(Duration::from_secs(10), || op.try_take());
    assert!(matches!(result, Some(Err(Error::Rdma(_)))), "{result:?}");
    assert_eq!(
        (farm.counts(), farm.listener.negotiating()),
        (vec![1, 0], 0)
    );
    drop(held);
}

#[test]
fn reactors_of_one_kind_make_a_group() {
    assert_eq!(
        ReactorGroup::new(Vec::new()).err(),
        Some(ApiMisuse::EmptyGroup.into())
    );
    assert_eq!(Farm::new(1).server.kind(), ProviderKind::Sim);
}

#[cfg(feature = "iwarp")]
#[test]
fn reactors_of_different_kinds_make_none() {
    let farm = Farm::new(1);
    let provider = crate::rdma::open(ProviderKind::Iwarp).unwrap();
    let other = Reactor::new(provider, ReactorOptions::default()).unwrap();
    let error = ApiMisuse::MixedGroup {
        first: ProviderKind::Sim,
        second: ProviderKind::Iwarp,
    };
    assert_eq!(
        ReactorGroup::new(vec![farm.client.clone(), other]).err(),
        Some(error.into())
    );
}
