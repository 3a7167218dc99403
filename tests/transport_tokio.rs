//! The transport suite on the software iWARP, with reactors that are tasks of tokio runtimes.

mod suite;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use smbdirect::engine::{ChannelOptions, Reactor, ReactorGroup, ReactorOptions};
use smbdirect::rdma::{ProviderKind, open};
use smbdirect::transport::{Listener, ListenerExt, TransportExt};
use suite::{Bed, payload};

const BED: Bed = Bed {
    provider: || open(ProviderKind::Iwarp),
    server: IpAddr::V4(Ipv4Addr::LOCALHOST),
    reactors: 2,
    drive: as_tasks,
    slow: 1,
};

suite!(BED);
suite!(@bulk BED);

/// All reactors of a group share a runtime of one thread, which must not starve any of them.
fn as_tasks(group: &ReactorGroup) {
    let group = group.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let spawn = |reactor: &Reactor| tokio::spawn(reactor.drive());
            let drivers: Vec<_> = group.reactors().iter().map(spawn).collect();
            for driver in drivers {
                driver.await.expect("no panic").expect("a driver");
            }
        });
    });
}

/// Server, client and both reactors on one thread: whoever has much to do lets the others go on.
#[test]
fn everything_on_one_thread() {
    const CONNECTIONS: u64 = 4;
    const MESSAGES: u64 = 50;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .expect("a runtime");
    let reactor = || {
        let provider = open(ProviderKind::Iwarp).expect("a provider");
        Reactor::new(provider, ReactorOptions::default()).expect("a reactor")
    };
    let (server, client) = (reactor(), reactor());
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = server
        .listen(&[address], ChannelOptions::default())
        .expect("a listener");
    let address = listener.local_addresses()[0];
    runtime.block_on(async {
        let drivers = [tokio::spawn(server.drive()), tokio::spawn(client.drive())];
        tokio::spawn(async move {
            loop {
                let transport = listener.accept().await.expect("a connection");
                tokio::spawn(async move {
                    while let Some(message) = transport.recv().await.expect("no failure") {
                        transport.send(&message).await.expect("sent");
                    }
                });
            }
        });
        let exchanges: Vec<_> = (0..CONNECTIONS)
            .map(|connection| {
                let connecting = client.connect(address, ChannelOptions::default());
                tokio::spawn(async move {
                    let channel = connecting.await.expect("a channel");
                    for sequence in 0..MESSAGES {
                        let message = payload(5, connection, sequence, 100_000);
                        channel.send(&message).await.expect("sent");
                        let echo = channel.recv().await.expect("no failure");
                        assert!(echo.expect("a message")[..] == message[..]);
                    }
                })
            })
            .collect();
        for exchange in exchanges {
            exchange.await.expect("all came back");
        }
        client.shutdown(Duration::ZERO);
        server.shutdown(Duration::ZERO);
        for driver in drivers {
            driver.await.expect("no panic").expect("driven to its end");
        }
    });
}
