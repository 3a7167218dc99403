//! How clients are left: not amid what they send, unless the gateway ends at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor};
use smbdirect::transport::{Close, Listener, Transport, TransportExt};

use crate::connections::{Connections, Stop};
use crate::parting::{QUIET, wait_for_silence};
use crate::wake::Sleeper;
use crate::world::{LONG, reactor};

/// Two reactors with a connection from one to the other, without a gateway.
struct Pair {
    reactor: Reactor,
    clients: Reactor,
    _listener: DirectListener,
    client: Channel,
    served: Arc<Channel>,
}

impl Pair {
    fn new() -> Self {
        let (reactor, clients) = (reactor(), reactor());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = reactor.listen(&[any], ChannelOptions::default()).unwrap();
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
    let pair = Pair::new();
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
        let pair = Pair::new();
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
    let pair = Pair::new();
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
