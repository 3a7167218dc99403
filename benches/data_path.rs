//! Memory and the whole path: slots, and an echo over the software iWARP on loopback.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use smbdirect::engine::{Channel, ChannelOptions, Reactor, ReactorOptions};
use smbdirect::rdma::{PlainDomain, ProviderKind, Slab, SlabOptions, open};
use smbdirect::transport::{Listener, OutMessage, Transport};

fn slab(criterion: &mut Criterion) {
    let slab = Slab::new(&PlainDomain::shared(), 8192, 256, SlabOptions::default())
        .expect("two megabytes");
    criterion.bench_function("slab/take and return", |b| {
        b.iter(|| black_box(slab.take().expect("a free slot")));
    });
    criterion.bench_function("slab/take, share and return", |b| {
        b.iter(|| {
            let bytes = slab.take().expect("a free slot").freeze();
            black_box((bytes.slice(0..100), bytes))
        });
    });
}

/// Both ends, driven by one thread: what the code costs, without any waking.
struct World {
    reactors: [Reactor; 2],
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
        let mut cx = Context::from_waker(Waker::noop());
        let (mut client, mut server) = (None, None);
        loop {
            for reactor in &reactors {
                reactor.poll();
            }
            client = client.or_else(|| connecting.try_take().map(|r| r.expect("a channel")));
            if let Poll::Ready(result) = listener.poll_accept(&mut cx) {
                server = Some(result.expect("a channel"));
            }
            if let (Some(_), Some(server)) = (&client, &server) {
                return Self {
                    server: server.clone(),
                    client: client.expect("just seen"),
                    reactors,
                };
            }
        }
    }

    fn echo(&self, payload: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        self.client
            .start_send(OutMessage::Slice(payload))
            .expect("room");
        loop {
            for reactor in &self.reactors {
                reactor.poll();
            }
            if let Poll::Ready(message) = self.server.poll_recv(&mut cx) {
                let message = message.expect("no error").expect("no end");
                self.server
                    .start_send(OutMessage::Slice(&message))
                    .expect("room");
            }
            if let Poll::Ready(message) = self.client.poll_recv(&mut cx) {
                let message = message.expect("no error").expect("no end");
                assert_eq!(message.len(), payload.len());
                return;
            }
        }
    }
}

fn echo(criterion: &mut Criterion) {
    let world = World::new();
    let mut group = criterion.benchmark_group("echo over iwarp");
    for len in [64, 1024, 64 << 10, 1 << 20] {
        let payload = vec![7; len];
        group.throughput(Throughput::Bytes(2 * len as u64));
        group.bench_function(format!("{len} bytes"), |b| b.iter(|| world.echo(&payload)));
    }
    group.finish();
}

criterion_group!(benches, slab, echo);
criterion_main!(benches);
