//! Peers that mean no good, or have stopped: connections that never get anywhere, by the thousand,
//! while a good client is served and memory stays bounded; applications that do not take their
//! messages; peers that fall silent.
#![cfg(feature = "iwarp")]

mod raw;

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use raw::{LONG, Peer, Server};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use smbdirect::engine::{Channel, ChannelOptions, Reactor, ReactorOptions};
use smbdirect::proto::wire::{DataTransfer, NegotiateRequest, NegotiateResponse};
use smbdirect::proto::{Config, Timeout};
use smbdirect::rdma::iwarp::{IwarpConfig, IwarpProvider};
use smbdirect::rdma::{
    ConnId, ConnectParams, Event, Provider, ProviderKind, QpOptions, RdmaError, ResolveOptions,
    open,
};
use smbdirect::transport::{
    Close, DisconnectReason, Listener, ListenerExt, Stats, Transport, TransportExt, TrySendError,
};

/// How long the server waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes that a thousand connections to nowhere may cost, both ends of them together, above what a
/// test costs anyway.
const BYTES_PER_THOUSAND: usize = 16 << 20;

/// Descriptors and memory are the process's: one flood at a time.
static FLOOD: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    FLOOD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This share, in percent, of the connections of all floods: 10,000, or fewer where the process may
/// not have two descriptors for each.
fn share(percent: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let line = (limits.lines())
        .find(|line| line.starts_with("Max open files"))
        .expect("a limit on open files");
    let limit: usize = (line.split_whitespace().nth(3))
        .and_then(|word| word.parse().ok())
        .unwrap_or(usize::MAX);
    let all = (limit.saturating_sub(200) / 2).clamp(100, 10_000);
    all * percent / 100
}

/// Resident memory of the process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = (status.lines())
        .find(|line| line.starts_with("VmRSS:"))
        .expect("resident memory");
    let kilobytes = line.split_whitespace().nth(1).expect("a number");
    kilobytes.parse::<usize>().expect("a number") << 10
}

/// `n` connections may have cost this much since then.
fn assert_bounded(before: usize, n: usize) {
    let grown = resident().saturating_sub(before);
    let allowed = (32 << 20) + n * (BYTES_PER_THOUSAND / 1000);
    eprintln!("{n} connections took {} KiB", grown >> 10);
    assert!(grown <= allowed, "{grown} bytes for {n} connections");
}

/// Open descriptors of the process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("a list").count()
}

/// The server holds no more than `most` connections of a flood that began with `before` descriptors
/// and holds its own ends: the rest are other tests' and the good clients'.
fn assert_held(before: usize, own: usize, most: usize) {
    let held = descriptors().saturating_sub(before + own);
    eprintln!("the server holds {held}, {most} allowed");
    assert!(held <= most + 50, "the server holds {held}");
}

/// The nth of many loopback addresses.
fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 1, (n / 200) as u8, (n % 200 + 1) as u8)
}

/// An echo server that soon loses its patience.
fn server(options: ChannelOptions) -> Server {
    let mut config = IwarpConfig::default();
    config.request_timeout = PATIENCE;
    let provider = IwarpProvider::new(config).expect("the software RNIC");
    Server::start(Box::new(provider), options, <[u8]>::to_vec)
}

/// Options for thousands of strangers.
fn options() -> ChannelOptions {
    let mut options = ChannelOptions::default();
    options.protocol.acceptor_timeout = PATIENCE;
    options.listen.backlog = 4096;
    options
}

/// An ordinary client with a reactor of its own, which leaves the floods' addresses alone.
struct Good {
    reactor: Reactor,
    channel: Channel,
}

impl Good {
    /// Connects; who is turned away tries again, as clients do.
    fn connect(to: SocketAddr) -> Self {
        let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
        let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
        reactor.spawn().expect("a thread");
        let mut from = ResolveOptions::default();
        from.local = Some(SocketAddr::from(([127, 0, 0, 2], 0)));
        let deadline = Instant::now() + LONG;
        let channel = loop {
            let attempt = reactor.connect_with(to, &from, ChannelOptions::default());
            match attempt.wait() {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > deadline => panic!("not served: {error}"),
                Err(_) => thread::sleep(Duration::from_millis(50)),
            }
        };
        Self { reactor, channel }
    }

    /// One message there and back.
    fn exchange(&self, len: usize) {
        let message: Vec<u8> = (0..len).map(|n| n as u8).collect();
        self.channel
            .send_blocking(&message, Some(LONG))
            .expect("sent");
        let echo = self.channel.recv_blocking(Some(LONG)).expect("no failure");
        assert!(echo.expect("a message")[..] == message[..]);
    }
}

impl Drop for Good {
    fn drop(&mut self) {
        self.channel.close(Close::Abort);
        self.reactor.shutdown(Duration::from_secs(1));
    }
}

/// Begins a TCP connection, without waiting for it.
fn knock(from: Ipv4Addr, to: SocketAddr) -> Option<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket: OwnedFd =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).ok()?;
    rustix::net::bind(&socket, &SocketAddrV4::new(from, 0)).expect("a loopback address");
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Some(socket.into()),
        // Turned away at once.
        Err(_) => None,
    }
}

/// Whether the server has ended the connection.
fn is_over(socket: &mut TcpStream) -> bool {
    match socket.read(&mut [0; 64]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted
        ),
    }
}

/// Waits until no more than `most` of the connections are left.
fn await_left(sockets: &mut Vec<TcpStream>, most: usize) {
    let deadline = Instant::now() + LONG;
    loop {
        sockets.retain_mut(|socket| !is_over(socket));
        if sockets.len() <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{} are left", sockets.len());
        thread::sleep(Duration::from_millis(20));
    }
}

/// TCP connections of one address that say nothing: a few are borne for a while, the others are
/// dropped, and others are served.
#[test]
fn one_address_that_says_nothing() {
    let _alone = alone();
    let server = server(options());
    let most = options().listen.max_half_open_per_peer;
    Good::connect(server.address).exchange(1000);
    let count = share(20);
    let (before, open) = (resident(), descriptors());
    let mut sockets: Vec<_> = (0..count)
        .filter_map(|_| knock(Ipv4Addr::LOCALHOST, server.address))
        .collect();
    eprintln!("{} silent TCP connections of one address", sockets.len());
    assert_held(open, sockets.len(), most);
    Good::connect(server.address).exchange(100_000);
    await_left(&mut sockets, most);
    assert_bounded(before, count);
    // And then the others, too.
    await_left(&mut sockets, 0);
}

/// The same of many addresses: the total is what holds. The others wait their turn, and so does a
/// good client.
#[test]
fn many_addresses_that_say_nothing() {
    let _alone = alone();
    let count = share(50);
    let most = count / 5;
    let mut options = options();
    options.listen.max_half_open = most;
    let server = server(options);
    let served = Good::connect(server.address);
    let (before, open) = (resident(), descriptors());
    let mut sockets: Vec<_> = (0..count)
        .filter_map(|n| knock(address(n % 200), server.address))
        .collect();
    eprintln!("{} silent TCP connections of 200 addresses", sockets.len());
    served.exchange(100_000);
    assert_held(open, sockets.len(), most);
    assert_bounded(before, count);
    // The crowd thins as the server loses its patience.
    Good::connect(server.address).exchange(100_000);
    served.exchange(1000);
    assert_bounded(before, count);
    // Whoever was let in first is let go.
    let others = sockets.len() - most;
    await_left(&mut sockets, others);
}

/// Connections of a provider that do not say a word of SMB Direct.
struct Mutes {
    provider: IwarpProvider,
    states: HashMap<ConnId, Mute>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mute {
    Connecting,
    Connected,
    Over,
}

impl Mutes {
    fn new() -> Self {
        Self {
            provider: IwarpProvider::new(IwarpConfig::default()).expect("the software RNIC"),
            states: HashMap::new(),
        }
    }

    fn connect(&mut self, from: Ipv4Addr, to: SocketAddr) {
        let now = Instant::now();
        let mut options = ResolveOptions::default();
        options.local = Some(SocketAddr::from((from, 0)));
        let conn = (self.provider.resolve(to, &options, now)).expect("a route over loopback");
        let mut sizes = QpOptions::default();
        (sizes.send_depth, sizes.receive_depth) = (1, 1);
        self.provider.create_qp(conn, &sizes).expect("a queue pair");
        let mut params = ConnectParams::default();
        params.timeout = LONG;
        let begun = self.provider.connect(conn, &params, now);
        assert!(
            matches!(begun, Ok(()) | Err(RdmaError::Refused)),
            "{begun:?}"
        );
        self.states.insert(conn, Mute::Connecting);
        self.poll();
    }

    fn poll(&mut self) {
        let mut events = Default::default();
        while self.provider.poll(Instant::now(), &mut events, 256) {}
        for event in events {
            match event {
                Event::Established { conn, .. } => self.states.insert(conn, Mute::Connected),
                Event::Disconnected { conn, .. } => self.states.insert(conn, Mute::Over),
                _ => None,
            };
        }
    }

    fn count(&self, state: Mute) -> usize {
        self.states.values().filter(|s| **s == state).count()
    }

    /// Waits until none is in this state.
    fn await_none(&mut self, state: Mute) {
        let deadline = Instant::now() + LONG;
        while self.count(state) > 0 {
            assert!(Instant::now() < deadline, "{} left", self.count(state));
            thread::sleep(Duration::from_millis(5));
            self.poll();
        }
    }
}

/// RDMA connections that are made and then say nothing of SMB Direct: few of each address are
/// taken, and they do not last.
#[test]
fn addresses_that_do_not_negotiate() {
    const PER_PEER: usize = 10;
    const ADDRESSES: usize = 50;
    let _alone = alone();
    let mut options = options();
    options.max_negotiating_per_peer = PER_PEER;
    let server = server(options);
    let served = Good::connect(server.address);
    let count = share(20);
    let before = resident();
    let mut mutes = Mutes::new();
    let mut most = 0;
    for n in 0..count {
        mutes.connect(address(n % ADDRESSES), server.address);
        most = most.max(server.reactor.connections());
    }
    eprintln!("{count} RDMA connections of {ADDRESSES} addresses that do not negotiate");
    served.exchange(100_000);
    Good::connect(server.address).exchange(1000);
    assert_bounded(before, count);
    eprintln!("{most} at a time");
    assert!(most <= PER_PEER * ADDRESSES + 2, "{most} at a time");
    mutes.await_none(Mute::Connecting);
    mutes.await_none(Mute::Connected);
    served.exchange(1000);
    assert!(server.listener.failed_handshakes() > 0);
}

/// As many as the total allows: who comes then is turned away, and served when they are gone.
#[test]
fn too_many_that_do_not_negotiate() {
    const TOTAL: usize = 100;
    let _alone = alone();
    let mut options = options();
    options.max_negotiating = TOTAL;
    let server = server(options);
    let served = Good::connect(server.address);
    let count = share(10);
    let before = resident();
    let mut mutes = Mutes::new();
    let mut most = 0;
    for n in 0..count {
        mutes.connect(address(n % 200), server.address);
        most = most.max(server.reactor.connections());
    }
    eprintln!("{count} RDMA connections of 200 addresses that do not negotiate");
    served.exchange(100_000);
    Good::connect(server.address).exchange(1000);
    assert_bounded(before, count);
    eprintln!("{most} at a time");
    assert!(most <= TOTAL + 2, "{most} at a time");
    mutes.await_none(Mute::Connecting);
    mutes.await_none(Mute::Connected);
}

/// Negotiations that fail, one after the other, leave nothing behind.
#[test]
fn negotiations_that_fail() {
    let _alone = alone();
    let server = server(options());
    let fail = |n: usize| {
        let mut peer = Peer::connect(server.address);
        // Too short, of no version in common, asking for nothing; or an end instead.
        match n % 4 {
            0 => peer.send(&[0; 19]),
            1 => peer.send(&[0; 20]),
            2 => peer.send(&[0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0, 2, 0]),
            _ => return,
        }
        assert!(peer.ends(LONG), "still connected");
    };
    (0..40).for_each(fail);
    let (before, open) = (resident(), descriptors());
    let count = 3000;
    (0..count).for_each(fail);
    Good::connect(server.address).exchange(1000);
    let grown = resident().saturating_sub(before);
    eprintln!("{count} failed negotiations took {} KiB", grown >> 10);
    assert!(grown <= 8 << 20, "{grown} bytes for {count} of them");
    let deadline = Instant::now() + LONG;
    while server.reactor.connections() > 0 {
        assert!(Instant::now() < deadline, "connections are left");
        thread::sleep(Duration::from_millis(5));
    }
    // Other tests' connections come and go.
    assert!(descriptors() <= open + 50);
    assert!(server.listener.failed_handshakes() >= count as u64 * 3 / 4);
}

/// The keepalive settings of the tests below.
fn quick(interval: u64, timeout: u64) -> Config {
    Config {
        keepalive_interval: Duration::from_millis(interval),
        keepalive_timeout: Duration::from_millis(timeout),
        ..Config::default()
    }
}

/// An application that never calls `recv` keeps its connection: its probes and answers go on while
/// its queue is full, and nothing that was sent to it is lost.
#[test]
fn an_application_that_does_not_receive() {
    let reactor = || {
        let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
        let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
        reactor.spawn().expect("a thread");
        reactor
    };
    let (ours, theirs) = (reactor(), reactor());
    let mut options = ChannelOptions::default();
    // Ten intervals, each with plenty of time for the answer. (Each probe to a peer that has data to
    // send takes one of the 16 credits kept for them; when they are gone, the connection ends.)
    options.protocol = quick(300, 10_000);
    options.receive_queue_bytes = 64 << 10;
    options.send_queue_bytes = 64 << 10;
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = ours.listen(&[any_port], options.clone()).expect("listener");
    let attempt = theirs.connect(listener.local_addresses()[0], options);
    let lazy = listener.accept_blocking(Some(LONG)).expect("accepted");
    let client = attempt.wait().expect("connected");

    let message = |n: u64| [&n.to_le_bytes()[..], &[n as u8; 3000]].concat();
    let mut sent = 0;
    let mut full_since = Instant::now();
    while full_since.elapsed() < Duration::from_millis(300) {
        match client.start_send((&message(sent)[..]).into()) {
            Ok(()) => {
                sent += 1;
                full_since = Instant::now();
            }
            Err(TrySendError::Full) => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("{error}"),
        }
    }
    let before = lazy.stats();
    assert_eq!(client.closed_blocking(Some(Duration::from_secs(3))), None);
    let after = lazy.stats();
    let probes = |stats: &Stats| stats.keepalives_sent + stats.keepalives_answered;
    assert!(probes(&after) > probes(&before), "no probes");
    for n in 0..sent {
        let received = lazy.recv_blocking(Some(LONG)).expect("no failure");
        assert!(received.expect("a message")[..] == message(n)[..], "{n}");
    }
    listener.close();
    theirs.shutdown(Duration::from_secs(1));
    ours.shutdown(Duration::from_secs(1));
}

/// A peer that negotiates, asks for `bytes` and never speaks again. The server ends the connection,
/// for the right reason and not before its time.
fn silent_peer(bytes: usize, granted: u16) {
    let mut options = ChannelOptions::default();
    options.protocol = quick(400, 300);
    let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
    let server = Server::start(provider, options, move |_| vec![1; bytes]);
    let mut peer = Peer::connect(server.address);
    let request = NegotiateRequest {
        min_version: 0x0100,
        max_version: 0x0100,
        credits_requested: 10,
        preferred_send_size: 1364,
        max_receive_size: 1364,
        max_fragmented_size: 1 << 20,
    };
    peer.send(&request.encode());
    let response = peer.message(LONG).expect("a response");
    assert_eq!(NegotiateResponse::parse(&response).map(|r| r.status), Ok(0));
    let header = DataTransfer {
        credits_requested: 10,
        credits_granted: granted,
        data_offset: 24,
        data_length: 1,
        ..DataTransfer::default()
    };
    let start = Instant::now();
    peer.send(&[&header.encode()[..], &[0; 5]].concat());
    // Nobody looks after the peer's end from here on.
    let reason: smbdirect::proto::DisconnectReason = Timeout::Keepalive.into();
    assert_eq!(server.end(), DisconnectReason::Protocol(reason));
    assert!(start.elapsed() >= Duration::from_millis(700), "too early");
    assert!(peer.ends(LONG), "still connected");
}

#[test]
fn a_peer_that_has_stopped() {
    silent_peer(1, 10);
}

#[test]
fn a_peer_that_stops_amid_an_answer() {
    silent_peer(1 << 20, 10);
}

#[test]
fn a_peer_that_never_grants_a_credit() {
    silent_peer(1, 0);
}
