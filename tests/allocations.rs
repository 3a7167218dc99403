//! Allocations per message in steady state, on the software iWARP over loopback TCP: none, but the box that a
//! zero-copy `Bytes` needs for its owner.
#![cfg(feature = "iwarp")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smbdirect::engine::{Channel, ChannelOptions, DirectListener, Reactor, ReactorOptions};
use smbdirect::rdma::{ProviderKind, open};
use smbdirect::transport::{Listener, OutMessage, Transport};

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
        let listener = reactors[0]
            .listen(&[any], ChannelOptions::default())
            .expect("a listener");
        let address = listener.local_addresses()[0];
        let mut connecting = reactors[1].connect(address, ChannelOptions::default());
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
