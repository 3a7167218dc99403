//! Listeners.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{LONG, received};
use crate::rdma::AcceptFilter;
use crate::transport::tcp::{Tcp, TcpListener, TcpOptions};
use crate::transport::{
    DisconnectReason, Error, Listener, ListenerExt, Transport, TransportExt, TransportKind,
};

#[test]
fn listeners_hand_out_connections_and_stop() {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let listener = TcpListener::bind(&[any, any], TcpOptions::default()).unwrap();
    let addresses = listener.local_addresses();
    assert_eq!(addresses.len(), 2);
    for address in &addresses {
        let client = Tcp::connect(*address, TcpOptions::default())
            .wait()
            .unwrap();
        let server: Arc<dyn Transport> = listener.accept_blocking(LONG).unwrap();
        assert_eq!(server.info().kind, TransportKind::Tcp);
        assert_eq!(server.info().peer, client.info().local);
        client.send_blocking(b"hello", LONG).unwrap();
        let hello = server.recv_blocking(LONG).unwrap().unwrap();
        server.start_send(hello.into_bytes().into()).unwrap();
        assert_eq!(received(&client), b"hello");
    }
    let in_use = TcpListener::bind(&addresses[..1], TcpOptions::default()).unwrap_err();
    let address = addresses[0];
    let errno = libc::EADDRINUSE;
    assert_eq!(in_use, Error::Listen { address, errno });
    let text = in_use.to_string();
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("choose another port"), "{text}");
    listener.close();
    let closed = listener.accept_blocking(LONG).err();
    assert_eq!(closed, Some(Error::Closed(DisconnectReason::Local)));
    // The threads let go of the ports soon, while the listener is still there.
    let start = Instant::now();
    let refused = loop {
        match Tcp::connect(addresses[0], TcpOptions::default()).wait() {
            // Accepted by the system just before the end, and reset.
            Err(Error::Os {
                errno: libc::ENOTCONN | libc::ECONNRESET,
            })
            | Ok(_) => assert!(start.elapsed() < Duration::from_secs(20)),
            Err(error) => break error,
        }
    };
    assert_eq!(
        refused,
        Error::Os {
            errno: libc::ECONNREFUSED
        }
    );
    let again = || TcpListener::bind(&addresses, TcpOptions::default());
    while let Err(error) = again() {
        assert!(start.elapsed() < Duration::from_secs(20), "{error}");
        thread::yield_now();
    }
}

/// Whether the other side ends a connection at once.
fn is_turned_away(to: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(LONG).unwrap();
    // A reset is as good as an end.
    stream.read(&mut [0]).is_ok_and(|read| read == 0) || stream.peer_addr().is_err()
}

#[test]
fn listeners_turn_away_whom_they_must() {
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let options = TcpOptions {
        max_connections_per_peer: 2,
        ..TcpOptions::default()
    };
    let listener = TcpListener::bind(&[any], options).unwrap();
    let to = listener.local_addresses()[0];
    let connect = || {
        let client = Tcp::connect(to, TcpOptions::default()).wait().unwrap();
        (client, listener.accept_blocking(LONG).unwrap())
    };
    let (first, second) = (connect(), connect());
    assert!(is_turned_away(to));
    second.0.send_blocking(b"still here", LONG).unwrap();
    assert!(second.1.recv_blocking(LONG).unwrap().is_some());
    // A place is free when the connection is gone, threads and all.
    drop(first);
    let start = Instant::now();
    let third = loop {
        let client = Tcp::connect(to, TcpOptions::default()).wait();
        let accepted = listener.accept_blocking(Some(Duration::from_millis(200)));
        match (client, accepted) {
            (Ok(client), Ok(server)) => break (client, server),
            _ => assert!(start.elapsed() < Duration::from_secs(20)),
        }
    };
    third.1.send_blocking(b"welcome", LONG).unwrap();
    assert_eq!(received(&third.0), b"welcome");

    let options = TcpOptions {
        filter: AcceptFilter::new(|peer| peer.is_ipv6()),
        ..TcpOptions::default()
    };
    let filter = options.filter.clone();
    let picky = TcpListener::bind(&[any], options).unwrap();
    assert!(is_turned_away(picky.local_addresses()[0]));
    assert_eq!(filter.refused(), 1);
    picky.close();
    assert!(picky.accept_blocking(LONG).is_err());
}
