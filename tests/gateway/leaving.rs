//! How clients are left: not amid what they send, unless the gateway ends at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor};
use smbdirect::rdma::AcceptFilter;
use smbdirect::transport::{Close, Listener, Transport, TransportExt};

use crate::connections::{Connections, NoPlace, Stop};
use crate::parting::{QUIET, wait_for_silence};
use crate::wake::Sleeper;
use crate::world::{Choice, LONG, Server, World, file_server, reactor};

/// Two reactors with a connection from one to the other, without a gateway.
struct Pair {
    reactor: Reactor,
    clients: Reactor,
    _listener: DirectListener,
    address: SocketAddr,
    client: Channel,
    served: Arc<Channel>,
}

impl Pair {
    fn new(filter: AcceptFilter) -> Self {
        let (reactor, clients) = (reactor(), reactor());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut options = ChannelOptions::default();
        options.listen.filter = filter;
        let listener = reactor.listen(&[any], options).unwrap();
        let address = listener.local_addresses()[0];
        let client = clients.connect(address, ChannelOptions::default());
        let client = client.wait().unwrap();
        let sleeper = Sleeper::new();
        let served = loop {
            match listener.poll_accept_channel(&mut sleeper.context()) {
                Poll::Ready(served) => break Arc::new(served.unwrap()),
                Poll::Pending => sleeper.sleep(None),
            }
        };
        Self {
            reactor,
            clients,
            _listener: listener,
            address,
            client,
            served,
        }
    }

    fn shut_down(self) {
        self.clients.shutdown(LONG);
        self.reactor.shutdown(LONG);
    }
}

/// A client that would send without end has nothing under way when it is left: nothing is taken
/// from it any more, and its credits are over.
#[test]
fn clients_are_not_left_amid_what_they_send() {
    let pair = Pair::new(AcceptFilter::everybody());
    let (client, served) = (&pair.client, &pair.served);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let message = [7; 4000];
            while client.send_blocking(&message, Some(LONG)).is_ok() {}
        });
        while served.stats().receives == 0 {
            thread::yield_now();
        }
        wait_for_silence(served, QUIET, LONG, &Stop::default());
        // It has none under way, and posts none.
        while client.stats().sends != served.stats().receives {
            thread::yield_now();
        }
        assert!(client.stats().stalls_send_credit.count > 0);
        served.close(Close::Abort);
        sending.join().unwrap();
    });
    pair.shut_down();
}

/// Whether its signal was the second one, or it has no time to end in.
#[test]
fn the_gateways_end_does_not_wait_for_silence() {
    let ways: [fn(&Connections); 2] = [Connections::stop_at_once, |all| all.stop(Instant::now())];
    for stop in ways {
        let pair = Pair::new(AcceptFilter::everybody());
        let all = Arc::new(Connections::new(1, 1));
        let (done, told) = channel();
        let (served, waiting) = (pair.served.clone(), all.clone());
        thread::spawn(move || {
            wait_for_silence(&served, 100 * LONG, 100 * LONG, &waiting.stop);
            done.send(())
        });
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        stop(&all);
        told.recv_timeout(LONG).expect("the end of the wait");
        pair.shut_down();
    }
}

/// Who waits for the last connection waits no longer when the gateway ends at once.
#[test]
fn the_end_at_once_waits_for_nobody() {
    let pair = Pair::new(AcceptFilter::everybody());
    let all = Arc::new(Connections::new(1, 1));
    let entry = all.enter(&pair.served).expect("a place");
    let (done, told) = channel();
    let waiting = all.clone();
    thread::spawn(move || {
        waiting.wait_until_empty(100 * LONG);
        done.send(())
    });
    assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
    all.stop_at_once();
    told.recv_timeout(LONG).expect("the end of the wait");
    all.leave(&entry);
    pair.shut_down();
}

/// The door is asked under the reactor's lock: what takes that lock must not be done under the one
/// that the door takes.
#[test]
fn the_door_waits_for_no_connection() {
    let all = Arc::new(Connections::new(1, 1));
    let (knocked, knocks) = channel();
    let door = {
        let all = all.clone();
        AcceptFilter::new(move |peer| {
            if all.place_for(peer).is_ok() {
                return true;
            }
            // Nobody listens any more when the client tries again.
            let _ = knocked.send(None);
            // Until others have come to where they wait for the reactor.
            thread::sleep(Duration::from_millis(200));
            let _ = knocked.send(Some(all.place_for(peer)));
            false
        })
    };
    let pair = Pair::new(door);
    let entry = all.enter(&pair.served).expect("a place");
    let second = pair
        .clients
        .connect(pair.address, ChannelOptions::default());
    assert_eq!(knocks.recv_timeout(LONG).expect("a knock"), None);
    let (counting, leaving) = (all.clone(), all.clone());
    let others = [
        thread::spawn(move || _ = counting.totals()),
        thread::spawn(move || leaving.leave(&entry)),
    ];
    let Ok(answer) = knocks.recv_timeout(LONG) else {
        // Its end would wait for the door.
        std::mem::forget(pair);
        panic!("the door waits");
    };
    assert_eq!(answer, Some(Err(NoPlace::Connections(1))));
    for other in others {
        other.join().expect("no panic");
    }
    // Whether it tried again after that does not matter.
    drop(second);
    pair.shut_down();
}

/// There was a place when it came to the door, and there is none when it is connected.
#[test]
fn who_comes_too_late_is_sent_away() {
    let server = Server::new(Vec::new(), file_server);
    let mut choice = Choice::of(&server);
    choice.max_connections = 1;
    choice.door_is_blind = true;
    let world = World::new(&choice);
    let _first = world.client(0x0311);
    world.bare_client().ends();
    let line = world.line();
    assert!(line.contains("\"limit\":\"--max-connections\""), "{line}");
    assert_eq!(world.connections.totals().refused, 1);
}
