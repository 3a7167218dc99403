//! A server that goes away and comes back: who may connect meanwhile.

use std::net::TcpListener;

use smbdirect::transport::TransportExt;
use smbdirect::transport::tcp::{Tcp, TcpOptions};

use crate::smb2::*;
use crate::world::{Choice, LONG, Server, World};

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
