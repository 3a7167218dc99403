//! A peer that ignores all rules goes on writing after its rights are over: to descriptors that it had, and to such as
//! it guesses. A canary proves that nothing arrives; its own connection ends and no other does.
//!
//! The peer is a provider driven by hand, below any engine: over the software iWARP, and on RDMA devices in the guest.
#![cfg(any(feature = "iwarp", feature = "verbs"))]

#[allow(dead_code, reason = "other tests use the rest of it")]
mod raw;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use raw::{LONG, Peer};
use smbdirect::engine::{
    Channel, ChannelOptions, DirectListener, Exposed, Reactor, ReactorOptions,
};
use smbdirect::proto::wire::{BufferDescriptorV1, DataTransfer, NegotiateRequest};
use smbdirect::rdma::{IoBuf, Operation, ProviderKind, RemoteAccess, RemoteAddress, open};
use smbdirect::transport::{Listener, ListenerExt, Transport, TransportExt};

const LEN: usize = 4096;
const CANARY: u8 = 0xc7;
const POISON: u8 = 0x66;

/// The victim's reactor, and a good connection beside those of the peers.
struct Bed {
    kind: ProviderKind,
    reactor: Reactor,
    other: Reactor,
    listener: DirectListener,
    good: (Channel, Arc<dyn Transport>),
}

impl Bed {
    fn new(kind: ProviderKind, address: IpAddr) -> Self {
        let reactor = || {
            let reactor = Reactor::new(open(kind).expect("a provider"), ReactorOptions::default());
            let reactor = reactor.expect("a reactor");
            reactor.spawn().expect("a thread");
            reactor
        };
        let (victims, other) = (reactor(), reactor());
        let any_port = SocketAddr::new(address, 0);
        let listener = victims
            .listen(&[any_port], ChannelOptions::default())
            .expect("a listener");
        let op = other.connect(listener.local_addresses()[0], ChannelOptions::default());
        let accepted = listener.accept_blocking(Some(LONG)).expect("accepted");
        let good = (op.wait().expect("connected"), accepted);
        Self {
            kind,
            reactor: victims,
            other,
            listener,
            good,
        }
    }

    /// A peer that has negotiated as it should, and the victim's side of it.
    fn meet(&self) -> (Peer, Arc<dyn Transport>) {
        let provider = open(self.kind).expect("a provider");
        let mut peer = Peer::connect_with(provider, self.listener.local_addresses()[0]);
        let request = NegotiateRequest {
            min_version: 0x100,
            max_version: 0x100,
            credits_requested: 32,
            preferred_send_size: 1024,
            max_receive_size: 8192,
            max_fragmented_size: 1 << 20,
        };
        peer.send(&request.encode());
        peer.message(LONG).expect("a response");
        peer.send(&data_transfer(64, b""));
        let victim = self.listener.accept_blocking(Some(LONG)).expect("accepted");
        (peer, victim)
    }

    fn assert_good(&self) {
        let (client, server) = &self.good;
        client.send_blocking(b"ping", Some(LONG)).expect("sent");
        let message = server.recv_blocking(Some(LONG)).expect("alive");
        assert_eq!(&message.expect("a message")[..], b"ping");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.listener.close();
        self.other.shutdown(Duration::from_secs(5));
        self.reactor.shutdown(Duration::from_secs(5));
    }
}

/// Memory of the victim's that the peer may write to, for now; what it was given is known to it.
fn expose(peer: &mut Peer, victim: &dyn Transport) -> (Exposed, BufferDescriptorV1) {
    let mut memory = victim.allocate(LEN).wait().expect("memory");
    memory.fill(CANARY);
    let direct = victim.direct().expect("direct placement");
    let exposed = direct.expose(memory, RemoteAccess::Write).expect("exposed");
    let descriptor = exposed.descriptors()[0];
    // Bound before this message, which stands for the request.
    victim.send_blocking(b"request", Some(LONG)).expect("sent");
    peer.message(LONG).expect("the request");
    (exposed, descriptor)
}

fn at(descriptor: BufferDescriptorV1) -> RemoteAddress {
    RemoteAddress {
        address: descriptor.offset,
        key: descriptor.token,
    }
}

/// Writes into the victim's memory, whether it may or not. What has become of it is for others to ask.
fn write(peer: &mut Peer, to: RemoteAddress, bytes: &[u8]) {
    peer.post(bytes, |from| Operation::Write { from, to });
}

/// A message that grants so many credits, with this payload.
fn data_transfer(credits_granted: u16, payload: &[u8]) -> Vec<u8> {
    let header = DataTransfer {
        credits_requested: 32,
        credits_granted,
        flags: 0,
        remaining_data_length: 0,
        data_offset: if payload.is_empty() { 0 } else { 24 },
        data_length: payload.len() as u32,
    };
    let mut message = header.encode().to_vec();
    if !payload.is_empty() {
        message.resize(24, 0);
        message.extend_from_slice(payload);
    }
    message
}

fn assert_canary(memory: &IoBuf, what: &str) {
    assert!(memory.iter().all(|byte| *byte == CANARY), "{what}");
}

/// While it has the right it writes, and that arrives: the peer's writes are real ones.
fn writes_with_a_right(bed: &Bed) {
    let (mut peer, victim) = bed.meet();
    let (exposed, descriptor) = expose(&mut peer, &*victim);
    write(&mut peer, at(descriptor), &[POISON; LEN]);
    // It tells the victim.
    peer.send(&data_transfer(1, b"written"));
    victim
        .recv_blocking(Some(LONG))
        .expect("no error")
        .expect("its word");
    let memory = exposed.reclaim().wait().expect("the memory");
    assert!(memory.iter().all(|byte| *byte == POISON), "it arrived");
}

/// It writes all the time, before, during and after `reclaim`.
fn writes_across_the_end(bed: &Bed, rounds: usize) {
    for round in 0..rounds {
        let (mut peer, victim) = bed.meet();
        let (exposed, descriptor) = expose(&mut peer, &*victim);
        for _ in 0..round % 7 {
            write(&mut peer, at(descriptor), &[POISON; LEN]);
        }
        let mut op = exposed.reclaim();
        let mut memory = None;
        // It has given its memory back, or has lost its connection over it; either way it is told so.
        while memory.is_none() {
            write(&mut peer, at(descriptor), &[POISON; LEN]);
            memory = op.try_take();
        }
        let mut memory = memory.expect("taken").expect("the memory");
        memory.fill(CANARY);
        while !peer.ends(Duration::ZERO) {
            write(&mut peer, at(descriptor), &[POISON; LEN]);
        }
        victim.closed_blocking(Some(LONG)).expect("the end");
        assert_canary(&memory, "written after it was reclaimed");
        bed.assert_good();
    }
}

/// After its right is over it tries all that it can think of, each on a connection of its own, since each costs it
/// that.
fn guesses(bed: &Bed) {
    let (mut stranger, strangers_victim) = bed.meet();
    let (foreign, foreign_descriptor) = expose(&mut stranger, &*strangers_victim);
    for guess in 0..12 {
        let (mut peer, victim) = bed.meet();
        let (exposed, old) = expose(&mut peer, &*victim);
        let mut memory = exposed.reclaim().wait().expect("the memory");
        memory.fill(CANARY);
        // What it learned, and what it may know about how keys are made; even the key for local use.
        let local = RemoteAddress {
            address: memory.address().as_ptr() as u64,
            key: memory.local_key(),
        };
        let key = |key| RemoteAddress { key, ..at(old) };
        let target = match guess {
            0 => at(old),
            1 => key(old.token.wrapping_add(1)),
            2 => key(old.token.wrapping_sub(1)),
            3 => key(old.token ^ 0x100),
            4 => key(old.token & !0xff),
            5 => key(0),
            6 => key(u32::MAX),
            7 => local,
            8 => RemoteAddress {
                address: 0,
                ..local
            },
            9 => at(foreign_descriptor),
            10 => RemoteAddress {
                address: at(old).address.wrapping_add(LEN as u64),
                ..at(old)
            },
            _ => RemoteAddress {
                address: 0,
                ..at(old)
            },
        };
        // One write is refused and ends it; that it goes on changes nothing.
        while !peer.ends(Duration::ZERO) {
            write(&mut peer, target, &[POISON; LEN]);
        }
        victim.closed_blocking(Some(LONG)).expect("the end");
        assert_canary(&memory, "written with a guessed descriptor");
        bed.assert_good();
    }
    let memory = foreign.reclaim().wait().expect("the memory");
    assert_canary(&memory, "written on another connection");
}

fn run(bed: &Bed, rounds: usize) {
    writes_with_a_right(bed);
    writes_across_the_end(bed, rounds);
    guesses(bed);
}

#[cfg(feature = "iwarp")]
#[test]
fn nothing_arrives_after_reclaim_on_iwarp() {
    run(&Bed::new(ProviderKind::Iwarp, [127, 0, 0, 1].into()), 40);
}

/// Where `SMBDIRECT_GUEST` says that there are devices.
#[cfg(feature = "verbs")]
#[test]
fn nothing_arrives_after_reclaim_on_a_device() {
    let remote = std::env::var("REMOTE").ok();
    let address = std::env::var("SMBDIRECT_GUEST").ok().and(remote);
    let Some(address) = address.and_then(|address| address.parse().ok()) else {
        println!("not run: no RDMA devices here");
        return;
    };
    run(&Bed::new(ProviderKind::Verbs, address), 8);
}
