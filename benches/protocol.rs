//! The protocol without a transport: codec, credits, fragments.

use std::hint::black_box;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use smbdirect::proto::wire::{BufferDescriptorV1, DATA_OFFSET, DataTransfer};
use smbdirect::proto::{Config, Connection, Delivery, Role};

fn wire(criterion: &mut Criterion) {
    let header = DataTransfer {
        credits_requested: 255,
        credits_granted: 1,
        data_offset: DATA_OFFSET,
        data_length: 1000,
        ..DataTransfer::default()
    };
    let mut message = header.encode().to_vec();
    message.resize(1024, 0);
    criterion.bench_function("wire/encode", |b| b.iter(|| black_box(&header).encode()));
    criterion.bench_function("wire/parse", |b| {
        b.iter(|| {
            let header = DataTransfer::parse(black_box(&message))?;
            header.payload(message.len())
        });
    });
    let descriptors: Vec<u8> = (0..64)
        .flat_map(|index| {
            BufferDescriptorV1 {
                offset: index << 16,
                token: 7,
                length: 1 << 16,
            }
            .encode()
        })
        .collect();
    criterion.bench_function("wire/64 descriptors", |b| {
        b.iter(|| BufferDescriptorV1::parse_array(black_box(&descriptors)));
    });
}

/// Two connections without anything between them.
struct Pair {
    now: Instant,
    client: Connection,
    server: Connection,
    wire: Vec<u8>,
}

impl Pair {
    fn connected() -> Self {
        let now = Instant::now();
        let end = |role| {
            let config = Config::default();
            let mut connection = Connection::new(role, &config, now).expect("the defaults");
            connection.handle_receives_posted(connection.receives_wanted());
            connection.handle_established(now);
            connection
        };
        let mut pair = Self {
            now,
            client: end(Role::Initiator),
            server: end(Role::Acceptor),
            wire: vec![0; 16 << 10],
        };
        while pair.exchange() > 0 {}
        while pair.client.poll_event().is_some() || pair.server.poll_event().is_some() {}
        assert!(pair.client.is_established() && pair.server.is_established());
        pair
    }

    /// Moves what can be moved, both ways. Returns how many messages there were on the wire.
    fn exchange(&mut self) -> usize {
        let Self {
            now,
            client,
            server,
            wire,
        } = self;
        one_way(client, server, wire, *now) + one_way(server, client, wire, *now)
    }

    /// Sends a message of `len` bytes from the client and counts the bytes that arrive.
    fn message(&mut self, len: u64) -> u64 {
        self.client.send(len, None).expect("established");
        let before = self.server.stats().bytes_received;
        while self.exchange() > 0 {}
        self.server.stats().bytes_received - before
    }
}

fn one_way(from: &mut Connection, to: &mut Connection, wire: &mut [u8], now: Instant) -> usize {
    from.handle_receives_posted(from.receives_wanted());
    to.handle_receives_posted(to.receives_wanted());
    let mut count = 0;
    while let Some(transmit) = from.poll_transmit(now, 64) {
        let header = transmit.header();
        wire[..header.len()].copy_from_slice(header);
        let delivery = to.handle_receive(now, &wire[..transmit.len()], None);
        if let Delivery::Whole { data, .. } | Delivery::Last { data, .. } = &delivery {
            black_box(&wire[data.clone()]);
        }
        count += 1;
    }
    count
}

fn connection(criterion: &mut Criterion) {
    let mut pair = Pair::connected();
    criterion.bench_function("connection/message of one fragment", |b| {
        b.iter(|| assert_eq!(pair.message(1000), 1000));
    });
    let mut group = criterion.benchmark_group("connection");
    for len in [64 << 10, 1 << 20] {
        group.throughput(Throughput::Bytes(len));
        group.bench_function(format!("fragments of {len} bytes"), |b| {
            b.iter(|| assert_eq!(pair.message(len), len));
        });
    }
    group.finish();
}

criterion_group!(benches, wire, connection);
criterion_main!(benches);
