//! Allocations per message and per transfer in steady state, on the software iWARP over loopback TCP: none, but the
//! box that a zero-copy `Bytes` needs for its owner.
#![cfg(feature = "iwarp")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::proto::CreditProfile;
use smbdirect::rdma::{IoBuf, ProviderKind, RemoteAccess, open};
use smbdirect::transport::{
    DirectPlacement, Gather, Listener, Op, OutMessage, SteeringTag, Target, Transport,
};

/// Nothing takes this long.
const LONG: Duration = Duration::from_secs(60);
/// Until all queues and pools have grown as far as they do.
const WARM_UP: usize = 1_000;
const MESSAGES: usize = 500;

/// The system's allocator, which counts the calls of each thread.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends allocates nothing that matters here.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

/// Two reactors that this thread drives, and a channel between them.
struct World {
    reactors: [Reactor; 2],
    // Closing a listener or channel needs its reactor no more than it is there.
    _listener: DirectListener,
    client: Channel,
    server: Arc<dyn Transport>,
}

impl World {
    fn new() -> Self {
        let reactor = || {
            let provider = open(ProviderKind::Iwarp).expect("a provider");
            Reactor::new(provider, ReactorOptions::default()).expect("a reactor")
        };
        let reactors = [reactor(), reactor()];
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        // All credits at once: when they grow with use, a machine that is slow for a while lets them do so after
        // the warm-up, and the queues with them.
        let mut options = ChannelOptions::default();
        options.protocol.credit_profile = CreditProfile::Full;
        let listener = reactors[0]
            .listen(&[any], options.clone())
            .expect("a listener");
        let address = listener.local_addresses()[0];
        let mut connecting = reactors[1].connect(address, options);
        let (mut client, mut server) = (None, None);
        drive(&reactors, |cx| {
            if let Some(result) = connecting.try_take() {
                client = Some(result.expect("a channel"));
            }
            if let Poll::Ready(result) = listener.poll_accept(cx) {
                server = Some(result.expect("a channel"));
            }
            client.is_some() && server.is_some()
        });
        Self {
            reactors,
            _listener: listener,
            client: client.expect("connected"),
            server: server.expect("accepted"),
        }
    }

    /// `rounds` times: `batch` messages from the client, and their echo. Returns the allocations.
    fn echo(&self, rounds: usize, batch: usize, body: &dyn Fn() -> OutMessage<'static>) -> u64 {
        let before = allocations();
        for _ in 0..rounds {
            for _ in 0..batch {
                self.client.start_send(body()).expect("room for it");
            }
            let (mut there, mut back) = (0, 0);
            drive(&self.reactors, |cx| {
                while let Poll::Ready(message) = self.server.poll_recv(cx) {
                    let message = message.expect("no error").expect("no end");
                    self.server
                        .start_send(OutMessage::Slice(&message))
                        .expect("room for it");
                    there += 1;
                }
                while let Poll::Ready(message) = self.client.poll_recv(cx) {
                    let message = message.expect("no error").expect("no end");
                    assert_eq!(message.len(), body().len());
                    back += 1;
                }
                there == batch && back == batch
            });
        }
        allocations() - before
    }
}

/// Drives both reactors until `done`.
fn drive(reactors: &[Reactor; 2], mut done: impl FnMut(&mut Context<'_>) -> bool) {
    let deadline = Instant::now() + LONG;
    let mut cx = Context::from_waker(Waker::noop());
    while !done(&mut cx) {
        assert!(Instant::now() < deadline, "nothing moves");
        for reactor in reactors {
            reactor.poll();
        }
    }
}

/// Bytes of a transfer: several requests.
const LEN: usize = 600_000;

impl World {
    fn allocate(&self, channel: &dyn Transport) -> IoBuf {
        channel
            .allocate(LEN)
            .try_take()
            .expect("done")
            .expect("memory")
    }

    fn finish<T>(&self, mut op: Op<T>) -> T {
        let mut result = None;
        drive(&self.reactors, |_| {
            result = op.try_take();
            result.is_some()
        });
        result.expect("the end").expect("success")
    }

    /// Counts the allocations of `rounds` rounds of work on the memory of both sides.
    fn rounds(
        &self,
        rounds: usize,
        memory: &mut (Option<IoBuf>, Option<IoBuf>),
        work: fn(&Self, IoBuf, IoBuf) -> (IoBuf, IoBuf),
    ) -> u64 {
        let before = allocations();
        for _ in 0..rounds {
            let taken = (
                memory.0.take().expect("a buffer"),
                memory.1.take().expect("a buffer"),
            );
            let (client, server) = work(self, taken.0, taken.1);
            *memory = (Some(client), Some(server));
        }
        allocations() - before
    }

    fn direct(&self) -> &dyn DirectPlacement {
        self.server.direct().expect("direct placement")
    }

    fn write(&self, client: IoBuf, server: IoBuf) -> (IoBuf, IoBuf) {
        let exposed = self
            .client
            .expose(client, RemoteAccess::Write)
            .expect("exposed");
        let target = Target::new(exposed.descriptors());
        let written = self.finish(self.direct().write(server.into(), target));
        // The end of a write says nothing of the peer; what is sent after it does.
        self.server.start_send(b"done".into()).expect("room for it");
        self.done();
        (self.finish(exposed.reclaim()), only(written))
    }

    /// The client takes the server's message.
    fn done(&self) {
        drive(&self.reactors, |cx| {
            matches!(self.client.poll_recv(cx), Poll::Ready(Ok(Some(_))))
        });
    }

    fn read(&self, client: IoBuf, server: IoBuf) -> (IoBuf, IoBuf) {
        let exposed = self
            .client
            .expose(client, RemoteAccess::Read)
            .expect("exposed");
        let target = Target::new(exposed.descriptors());
        let read = self.finish(self.direct().read(server, 0..LEN, target));
        (self.finish(exposed.reclaim()), read)
    }

    fn write_then_send(&self, client: IoBuf, server: IoBuf) -> (IoBuf, IoBuf) {
        let mut exposed = self
            .client
            .expose(client, RemoteAccess::Write)
            .expect("exposed");
        exposed.offer_invalidation();
        let target = Target::new(exposed.descriptors());
        let token = SteeringTag(target.descriptors[0].token);
        let op = self
            .direct()
            .write_then_send(server.into(), target, b"done".into(), Some(token));
        self.done();
        (self.finish(exposed.reclaim()), only(self.finish(op)))
    }

    fn expose_and_reclaim(&self, client: IoBuf, server: IoBuf) -> (IoBuf, IoBuf) {
        let exposed = self
            .client
            .expose(client, RemoteAccess::Write)
            .expect("exposed");
        (self.finish(exposed.reclaim()), server)
    }
}

/// The buffer that a list of one is made of, taken out without a copy.
fn only(gather: Gather) -> IoBuf {
    let piece = gather.pieces()[0].clone();
    drop(gather);
    piece.try_into_buf().expect("nobody else has it")
}

#[test]
fn a_transfer_allocates_nothing() {
    let world = World::new();
    let mut memory = (
        Some(world.allocate(&world.client)),
        Some(world.allocate(&*world.server)),
    );
    type Work = fn(&World, IoBuf, IoBuf) -> (IoBuf, IoBuf);
    // What a round costs is the box of the message that arrives in it.
    let kinds: [(&str, Work, u64); 4] = [
        ("write", World::write, 1),
        ("read", World::read, 0),
        ("write, then send", World::write_then_send, 1),
        ("expose and reclaim", World::expose_and_reclaim, 0),
    ];
    for (name, work, messages) in kinds {
        const ROUNDS: u64 = 50;
        world.rounds(100, &mut memory, work);
        let count = world.rounds(ROUNDS as usize, &mut memory, work);
        assert_eq!(count, messages * ROUNDS, "{name}");
    }
}

/// Each message that arrives costs its owner's box; an echo is two messages.
const PER_ECHO: u64 = 2;

#[test]
fn a_message_costs_the_box_of_its_owner_and_nothing_else() {
    let world = World::new();
    let payload: &'static [u8] = &[7; 1024];
    let slice = || OutMessage::Slice(payload);
    world.echo(WARM_UP, 1, &slice);
    assert_eq!(
        world.echo(MESSAGES, 1, &slice),
        PER_ECHO * MESSAGES as u64,
        "borrowed, one at a time"
    );
    let bytes = || OutMessage::Bytes(Bytes::from_static(payload));
    world.echo(WARM_UP, 1, &bytes);
    assert_eq!(
        world.echo(MESSAGES, 1, &bytes),
        PER_ECHO * MESSAGES as u64,
        "owned, one at a time"
    );
    const BATCH: usize = 16;
    world.echo(WARM_UP / 4, BATCH, &slice);
    assert_eq!(
        world.echo(MESSAGES / 4, BATCH, &slice),
        PER_ECHO * (MESSAGES / 4 * BATCH) as u64,
        "many at a time"
    );
}

#[test]
fn an_idle_reactor_allocates_nothing() {
    let world = World::new();
    world.echo(WARM_UP, 1, &|| OutMessage::Slice(b"warm"));
    let before = allocations();
    for _ in 0..1_000 {
        for reactor in &world.reactors {
            reactor.poll();
        }
    }
    assert_eq!(allocations() - before, 0);
}
