//! Reactors and blocking calls that spin before they sleep: the same comes of it as without.
#![cfg(feature = "iwarp")]

use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{ProviderKind, RemoteAccess, open};
use smbdirect::transport::{Listener, ListenerExt, OutMessage, Target, Transport, TransportExt};

const LONG: Option<Duration> = Some(Duration::from_secs(60));
const ROUNDS: u8 = 100;
const LEN: usize = 5000;

fn reactor() -> Reactor {
    let mut options = ReactorOptions::default();
    options.spin = Duration::from_micros(50);
    let provider = open(ProviderKind::Iwarp).expect("a provider");
    let reactor = Reactor::new(provider, options).expect("a reactor");
    reactor.spawn().expect("a thread");
    reactor
}

/// Asks for data in memory of its own, which must be that of the round.
fn ask(client: &dyn Transport, round: u8) {
    let direct = client.direct().expect("direct placement");
    let memory = client.allocate(LEN).wait().expect("memory");
    let exposed = direct.expose(memory, RemoteAccess::Write).expect("exposed");
    let descriptor = exposed.descriptors()[0].encode();
    client.send_blocking(&descriptor, LONG).expect("sent");
    let answer = client.recv_blocking(LONG).expect("no failure");
    assert_eq!(&answer.expect("an answer")[..], b"done");
    let memory = exposed.reclaim().wait().expect("the memory");
    assert!(memory.iter().all(|byte| *byte == round));
}

fn answer(server: &dyn Transport, round: u8) {
    let direct = server.direct().expect("direct placement");
    let request = server.recv_blocking(LONG).expect("no failure");
    let descriptors = BufferDescriptorV1::parse_array(&request.expect("a request"));
    let target = Target::new(descriptors.expect("descriptors"));
    let mut data = server.allocate(LEN).wait().expect("memory");
    data.fill(round);
    let op = direct.write_then_send(data.into(), target, OutMessage::Slice(b"done"), None);
    op.wait().expect("written");
}

#[test]
fn messages_and_transfers_go_on() {
    let (serving, asking) = (reactor(), reactor());
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = serving
        .listen(&[anywhere], ChannelOptions::default())
        .expect("a listener");
    let connecting = asking.connect(listener.local_addresses()[0], ChannelOptions::default());
    let server = listener.accept_blocking(LONG).expect("a connection");
    let client = connecting.wait().expect("a channel");
    thread::scope(|scope| {
        scope.spawn(|| (0..ROUNDS).for_each(|round| ask(&client, round)));
        (0..ROUNDS).for_each(|round| answer(&*server, round));
    });
    asking.shutdown(Duration::from_secs(1));
    serving.shutdown(Duration::from_secs(1));
}
