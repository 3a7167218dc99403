//! What programs do to the crate that they had better not: nothing of it hangs, leaks or panics.
#![cfg(feature = "iwarp")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::rdma::{ProviderKind, RemoteAccess, open};
use smbdirect::transport::{
    Close, DirectPlacement, DisconnectReason, Error, Listener, ListenerExt, Target, Transport,
    TransportExt, TrySendError,
};

/// Nothing takes this long, even on an emulated machine under load.
const LONG: Duration = Duration::from_secs(60);

fn reactor(thread_name: &str) -> Reactor {
    let mut options = ReactorOptions::default();
    options.thread_name = thread_name.into();
    let provider = open(ProviderKind::Iwarp).expect("a provider");
    let reactor = Reactor::new(provider, options).expect("a reactor");
    reactor.spawn().expect("a thread");
    reactor
}

fn listen(reactor: &Reactor) -> (DirectListener, SocketAddr) {
    let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let listener = reactor
        .listen(&[loopback], ChannelOptions::default())
        .expect("a listener");
    let address = listener.local_addresses()[0];
    (listener, address)
}

fn pair(reactor: &Reactor, options: ChannelOptions) -> (Channel, Arc<dyn Transport>) {
    let (listener, address) = listen(reactor);
    let channel = reactor.connect(address, options);
    let accepted = listener.accept_blocking(Some(LONG)).expect("accepted");
    (channel.wait().expect("a channel"), accepted)
}

/// Whether a thread of this process has the name.
fn runs(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").expect("tasks");
    tasks.flatten().any(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    })
}

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_reactor_that_is_just_dropped_leaves_no_thread() {
    let unused = reactor("unused");
    eventually("the thread has its name", || runs("unused"));
    drop(unused);
    eventually("the thread ends", || !runs("unused"));
    let listening = reactor("listening");
    let (listener, _) = listen(&listening);
    drop(listening);
    drop(listener);
    eventually("the thread ends", || !runs("listening"));
}

#[test]
fn connections_go_on_without_the_reactors_handle() {
    let orphaned = reactor("orphaned");
    let (client, server) = pair(&orphaned, ChannelOptions::default());
    drop(orphaned);
    client
        .send_blocking(b"still here", Some(LONG))
        .expect("sent");
    let message = server.recv_blocking(Some(LONG)).expect("no failure");
    assert_eq!(&message.expect("a message")[..], b"still here");
    drop(client);
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    eventually("the thread ends", || !runs("orphaned"));
    drop(server);
}

#[test]
fn times_without_end_are_taken_as_such() {
    let mut forever = ChannelOptions::default();
    forever.linger = Duration::MAX;
    let protocol = &mut forever.protocol;
    protocol.keepalive_interval = Duration::MAX;
    protocol.keepalive_timeout = Duration::MAX;
    protocol.initiator_timeout = Duration::MAX;
    protocol.acceptor_timeout = Duration::MAX;
    let reactor = reactor("endless");
    let (client, server) = pair(&reactor, forever.clone());
    client
        .send_blocking(b"all", Some(Duration::MAX))
        .expect("sent");
    client.close(Close::Graceful(Duration::MAX));
    let message = server
        .recv_blocking(Some(Duration::MAX))
        .expect("no failure");
    assert_eq!(&message.expect("a message")[..], b"all");
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    assert_eq!(
        client.closed_blocking(Some(LONG)),
        Some(DisconnectReason::Local)
    );
    // Dropped without a close.
    let (client, server) = pair(&reactor, forever);
    drop(client);
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    let begin = Instant::now();
    reactor.shutdown(Duration::MAX);
    assert!(begin.elapsed() < LONG);
    assert!(server.closed_blocking(Some(LONG)).is_some());
}

#[test]
fn forgotten_exposures_keep_their_memory_and_nothing_else() {
    let reactor = reactor("forgetful");
    let (client, server) = pair(&reactor, ChannelOptions::default());
    for access in [RemoteAccess::Read, RemoteAccess::Write] {
        let memory = client.allocate(4096).wait().expect("memory");
        std::mem::forget(client.expose(memory, access).expect("exposed"));
    }
    client.send_blocking(b"go", Some(LONG)).expect("sent");
    assert!(
        server
            .recv_blocking(Some(LONG))
            .expect("no failure")
            .is_some()
    );
    drop(client);
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    drop(server);
    eventually("the connections end", || reactor.connections() == 0);
}

/// Held messages take the receives' memory: what comes then is copied, and the peer does not notice.
#[test]
fn messages_may_be_kept_for_ever() {
    let reactor = reactor("hoarder");
    let (client, server) = pair(&reactor, ChannelOptions::default());
    let mut kept = Vec::new();
    for n in 0..3000u32 {
        client
            .send_blocking(&n.to_le_bytes(), Some(LONG))
            .expect("sent");
        let message = server.recv_blocking(Some(LONG)).expect("no failure");
        kept.push(message.expect("a message"));
    }
    client.close(Close::Graceful(LONG));
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    drop((client, server));
    reactor.shutdown(LONG);
    drop(reactor);
    for (n, message) in kept.iter().enumerate() {
        assert_eq!(&message[..], (n as u32).to_le_bytes());
    }
}

/// Who never takes a message holds up the peer, and only this connection; both sides can still leave.
#[test]
fn a_receiver_that_never_receives_stops_its_own_peer_only() {
    let reactor = reactor("deaf");
    let (client, _deaf) = pair(&reactor, ChannelOptions::default());
    let message = vec![7; 100_000];
    let mut accepted = 0;
    let begin = Instant::now();
    // The queues of both sides fill up: they are bounded.
    while begin.elapsed() < LONG {
        match client.send_blocking(&message, Some(Duration::from_secs(2))) {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert_eq!(error, Error::WouldBlock);
                break;
            }
        }
    }
    assert!((1..1000).contains(&accepted), "{accepted}");
    assert_eq!(
        client.start_send((&message).into()),
        Err(TrySendError::Full)
    );
    let (other, server) = pair(&reactor, ChannelOptions::default());
    other.send_blocking(b"beside", Some(LONG)).expect("sent");
    assert!(
        server
            .recv_blocking(Some(LONG))
            .expect("no failure")
            .is_some()
    );
    client.close(Close::Abort);
    assert_eq!(
        client.closed_blocking(Some(LONG)),
        Some(DisconnectReason::Local)
    );
}

/// Futures that are dropped amid their work take nothing with them.
#[test]
fn waits_may_be_given_up() {
    let reactor = reactor("fickle");
    let (client, server) = pair(&reactor, ChannelOptions::default());
    let direct = server.direct().expect("direct placement");
    for round in 0..50u8 {
        let memory = client.allocate(100_000).wait().expect("memory");
        let exposed = client.expose(memory, RemoteAccess::Write).expect("exposed");
        let mut data = server.allocate(100_000).wait().expect("memory");
        data.fill(round);
        let target = Target::new(exposed.descriptors());
        // The result is not wanted; the operation goes on.
        drop(direct.write_then_send(data.into(), target, b"done".into(), None));
        // Nothing is lost with a wait for a message.
        let mut early = client.recv_blocking(Some(Duration::ZERO));
        drop(client.recv());
        if early == Err(Error::WouldBlock) {
            early = client.recv_blocking(Some(LONG));
        }
        assert_eq!(&early.expect("no failure").expect("a message")[..], b"done");
        if round % 2 == 0 {
            drop(exposed.reclaim());
        } else {
            let memory = exposed.reclaim().wait().expect("given back");
            assert_eq!(memory.len(), 100_000);
        }
    }
    // A connection that nobody waits for ends by itself.
    let (listener, address) = listen(&reactor);
    drop(reactor.connect(address, ChannelOptions::default()));
    drop(listener.accept_blocking(Some(LONG)));
    drop((client, server));
    eventually("the connections end", || reactor.connections() == 0);
}
