//! Connections that are killed amid transfers, by either side, over real sockets and on RDMA devices: every operation
//! ends, all memory comes back, and what the process and the kernel held for them is let go.
//!
//! The engine's own tests do the same on the simulated network, and the guest's script `killed.sh` counts what is left
//! in the kernel.
#![cfg(any(feature = "iwarp", feature = "verbs"))]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::rdma::{IoBuf, ProviderKind, RemoteAccess, open};
use smbdirect::transport::{
    Close, Listener, ListenerExt, Op, OutMessage, SteeringTag, Target, Transport, TransportExt,
};

const LONG: Duration = Duration::from_secs(60);
const TRANSFERS: usize = 32;
const LEN: usize = 20_000;

/// Two reactors with threads, and a listener.
struct Bed {
    server: Reactor,
    client: Reactor,
    listener: DirectListener,
    options: ChannelOptions,
}

impl Bed {
    fn new(kind: ProviderKind, server: IpAddr) -> Self {
        // Many requests per transfer are many moments to die at.
        let mut options = ChannelOptions::default();
        options.max_rdma_chunk = 2048;
        options.protocol.acceptor_timeout = Duration::from_secs(2);
        let reactor = || {
            let reactor = Reactor::new(open(kind).expect("a provider"), ReactorOptions::default());
            let reactor = reactor.expect("a reactor");
            reactor.spawn().expect("a thread");
            reactor
        };
        let (server_reactor, client) = (reactor(), reactor());
        let any_port = SocketAddr::new(server, 0);
        let listener = server_reactor
            .listen(&[any_port], options.clone())
            .expect("a listener");
        Self {
            server: server_reactor,
            client,
            listener,
            options,
        }
    }

    fn connect(&self) -> (Channel, Arc<dyn Transport>) {
        let to = self.listener.local_addresses()[0];
        for _ in 0..5 {
            match self.client.connect(to, self.options.clone()).wait() {
                Ok(client) => {
                    let server = self.listener.accept_blocking(Some(LONG));
                    return (client, server.expect("a channel"));
                }
                // Soft-iWARP of Linux overlooks the first message now and then.
                Err(error) if self.client.kind() == ProviderKind::Verbs => {
                    println!("not connected: {error}");
                }
                Err(error) => panic!("not connected: {error}"),
            }
        }
        panic!("not connected, five times in a row");
    }

    /// What the reactors hold: connections and registered memory.
    fn held(&self) -> (usize, u64) {
        let both = [&self.server, &self.client];
        (
            both.iter().map(|reactor| reactor.connections()).sum(),
            both.iter().map(|reactor| reactor.registered_memory()).sum(),
        )
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.listener.close();
        self.client.shutdown(Duration::from_secs(5));
        self.server.shutdown(Duration::from_secs(5));
    }
}

fn filled(transport: &dyn Transport, byte: u8) -> IoBuf {
    let mut buffer = transport.allocate(LEN).wait().expect("memory");
    buffer.fill(byte);
    buffer
}

/// One connection with 32 transfers of both kinds under way, killed at a moment of its own. The roles of the one who
/// exposes and of the one who kills change with the seed.
fn kill(bed: &Bed, seed: u64) {
    let (client, server) = bed.connect();
    let (client, server): (&dyn Transport, &dyn Transport) = (&client, &*server);
    let (owner, user) = if seed & 1 == 0 {
        (client, server)
    } else {
        (server, client)
    };
    let (exposing, using) = (owner.direct().unwrap(), user.direct().unwrap());
    let mut exposed = Vec::new();
    let mut writes = Vec::new();
    let mut reads = Vec::new();
    for n in 0..TRANSFERS {
        let access = [RemoteAccess::Write, RemoteAccess::Read][n % 2];
        let Ok(mut exposure) = exposing.expose(filled(owner, n as u8), access) else {
            panic!("the connection is new");
        };
        let offered = n % 4 == 0 && exposing.remote_invalidation();
        if offered {
            exposure.offer_invalidation();
        }
        exposed.push(exposure);
    }
    // The descriptors go ahead, as in requests; what they are good for is bound before.
    owner.send_blocking(b"requests", Some(LONG)).expect("sent");
    user.recv_blocking(Some(LONG)).expect("a message");
    for (n, exposure) in exposed.iter().enumerate() {
        let target = Target::new(exposure.descriptors());
        if n % 2 == 0 {
            let token = SteeringTag(target.descriptors[0].token);
            let token = (n % 4 == 0 && exposing.remote_invalidation()).then_some(token);
            let data = filled(user, 1).into();
            writes.push(using.write_then_send(data, target, OutMessage::Slice(b"done"), token));
        } else {
            reads.push(using.read(filled(user, 2), 0..LEN, target));
        }
    }
    // From at once to a while after all is done.
    thread::sleep(Duration::from_micros(seed * 7919 % 6000));
    let killer = if seed & 2 == 0 { owner } else { user };
    killer.close(Close::Abort);
    for side in [owner, user] {
        side.closed_blocking(Some(LONG)).expect("the end");
    }
    // Whether each was done in time depends on the moment; that it ends does not.
    ended(writes);
    ended(reads);
    for exposure in exposed {
        assert_eq!(exposure.reclaim().wait().expect("the memory").len(), LEN);
    }
}

fn ended<T>(ops: Vec<Op<T>>) {
    for op in ops {
        let _ = op.wait();
    }
}

/// It becomes so in reasonable time; else the last value is shown.
fn eventually<T: PartialEq + std::fmt::Debug>(expected: T, now: impl Fn() -> T) {
    let deadline = Instant::now() + LONG;
    while now() != expected {
        assert!(Instant::now() < deadline, "{:?}, not {expected:?}", now());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Open descriptors of the process, and the lines of its memory map.
fn of_the_process() -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("a map");
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("a list");
    (descriptors.count(), maps.lines().count())
}

fn run(bed: &Bed, runs: u64) {
    let mut before = None;
    for seed in 0..runs {
        kill(bed, seed);
        // Buffers that were lent are back; with the last of a connection its registrations go.
        eventually((0, 0), || bed.held());
        if seed == runs / 4 {
            before = Some(of_the_process());
        }
    }
    let (before, after) = (before.expect("there are runs"), of_the_process());
    println!("descriptors and mappings after a quarter {before:?}, at the end {after:?}");
    assert!(after.0 <= before.0, "descriptors");
    // The allocator's own arenas may come and go.
    assert!(after.1 <= before.1 + 8, "mappings");
}

#[cfg(feature = "iwarp")]
#[test]
fn killed_connections_leave_nothing_on_iwarp() {
    let bed = Bed::new(ProviderKind::Iwarp, [127, 0, 0, 1].into());
    run(&bed, 200);
}

/// Where `SMBDIRECT_GUEST` says that there are devices.
#[cfg(feature = "verbs")]
#[test]
fn killed_connections_leave_nothing_on_a_device() {
    let remote = std::env::var("REMOTE").ok();
    let server = std::env::var("SMBDIRECT_GUEST").ok().and(remote);
    let Some(server) = server.and_then(|server| server.parse().ok()) else {
        println!("not run: no RDMA devices here");
        return;
    };
    let runs = std::env::var("RUNS")
        .ok()
        .and_then(|runs| runs.parse().ok());
    let bed = Bed::new(ProviderKind::Verbs, server);
    run(&bed, runs.unwrap_or(200));
}
