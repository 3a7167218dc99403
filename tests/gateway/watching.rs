//! A server that goes away and comes back: who may connect meanwhile, and how clients are left.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::task::Poll;
use std::thread;

use smbdirect::engine::ChannelOptions;
use smbdirect::transport::tcp::{Tcp, TcpOptions};
use smbdirect::transport::{Close, Listener, Transport, TransportExt};

use crate::parting::wait_for_silence;
use crate::smb2::*;
use crate::wake::Sleeper;
use crate::world::{Choice, LONG, Server, World, reactor};

fn watched(backend: String) -> World {
    let server = Server::new(Vec::new(), |_, _, _| {});
    let mut choice = Choice::of(&server);
    choice.backend = backend;
    choice.watch = true;
    World::new(&choice)
}

#[test]
fn clients_are_refused_while_the_server_is_away() {
    // An address of its own: meanwhile nobody else takes the port.
    let listener = TcpListener::bind(("127.0.0.55", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let world = watched(address.to_string());
    let line = world.line();
    assert!(line.contains("cannot be reached"), "{line}");
    while world.door.backend_away() == 0 {
        world.unwelcome_client();
    }
    assert_eq!(world.door.not_allowed(), 0);
    // It comes, and clients may connect again.
    let listener = TcpListener::bind(address).unwrap();
    let line = loop {
        let line = world.line();
        // Of clients that were quicker than the look at the server.
        if !line.contains("\"connection\"") {
            break line;
        }
    };
    assert!(line.contains("clients can connect again"), "{line}");
    let client = world.bare_client();
    client.send(&plain(NEGOTIATE, 0));
    // Those that looked at it come first.
    loop {
        let tcp = Tcp::from_stream(listener.accept().unwrap().0, TcpOptions::default()).unwrap();
        let message = tcp.recv_blocking(Some(LONG));
        if matches!(message, Ok(Some(message)) if message.len() == plain(NEGOTIATE, 0).len()) {
            break;
        }
    }
}

/// A client that would send without end has nothing under way when it is left: nothing is taken from
/// it any more, and its credits are over.
#[test]
fn clients_are_not_left_amid_what_they_send() {
    let (reactor, clients) = (reactor(), reactor());
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = reactor.listen(&[any], ChannelOptions::default()).unwrap();
    let address = listener.local_addresses()[0];
    let client = clients.connect(address, ChannelOptions::default());
    let client = client.wait().unwrap();
    let sleeper = Sleeper::new();
    let served = loop {
        match listener.poll_accept_channel(&mut sleeper.context()) {
            Poll::Ready(served) => break served.unwrap(),
            Poll::Pending => sleeper.sleep(None),
        }
    };
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let message = [7; 4000];
            while client.send_blocking(&message, Some(LONG)).is_ok() {}
        });
        while served.stats().receives == 0 {
            thread::yield_now();
        }
        wait_for_silence(&served, LONG);
        // It has none under way, and posts none.
        while client.stats().sends != served.stats().receives {
            thread::yield_now();
        }
        assert!(client.stats().stalls_send_credit.count > 0);
        served.close(Close::Abort);
        sending.join().unwrap();
    });
    clients.shutdown(LONG);
    reactor.shutdown(LONG);
}
