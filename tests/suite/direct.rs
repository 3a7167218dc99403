//! Direct placement, on every provider: what arrives, and what does not.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smbdirect::engine::{Channel, ChannelOptions};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{
    BadDescriptors, DirectPlacement, Error, Gather, SteeringTag, Target, Transport, TransportExt,
};

use super::{Bed, LONG, World, payload};

/// A client and a server of one connection.
struct Pair {
    client: Channel,
    server: Arc<dyn Transport>,
}

impl Pair {
    fn new(world: &World) -> Self {
        let (client, server) = world.connect(ChannelOptions::default());
        Self { client, server }
    }

    fn direct(&self) -> &dyn DirectPlacement {
        self.server.direct().expect("direct placement")
    }

    /// Memory of the client's with known bytes.
    fn memory(&self, seed: u64, len: usize) -> IoBuf {
        filled(&self.client, seed, len)
    }

    /// Messages still go both ways.
    fn assert_alive(&self) {
        self.client
            .send_blocking(b"ping", Some(LONG))
            .expect("sent");
        assert_eq!(
            &self.server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
            b"ping"
        );
        self.server
            .send_blocking(b"pong", Some(LONG))
            .expect("sent");
        assert_eq!(
            &self.client.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
            b"pong"
        );
    }

    /// The peer's use of what it may not ends the connection, on both sides.
    fn assert_ends(&self) {
        assert!(
            self.server.closed_blocking(Some(LONG)).is_some(),
            "the server's end"
        );
        assert!(
            self.client.closed_blocking(Some(LONG)).is_some(),
            "the client's end"
        );
    }
}

fn filled(channel: &dyn Transport, seed: u64, len: usize) -> IoBuf {
    let mut buf = channel.allocate(len).wait().expect("memory");
    buf.copy_from_slice(&payload(seed, 0, 0, len));
    buf
}

fn descriptor(pair: &Pair, exposed: &smbdirect::engine::Exposed) -> BufferDescriptorV1 {
    // As an SMB request carries it: in a message that is sent after the exposure.
    let bytes: [u8; 16] = exposed.descriptors()[0].encode();
    pair.client.send_blocking(&bytes, Some(LONG)).expect("sent");
    let request = pair.server.recv_blocking(Some(LONG)).unwrap().unwrap();
    BufferDescriptorV1::parse(&request).expect("a descriptor")
}

/// Both directions, from one byte to the negotiated maximum, byte for byte.
pub(crate) fn memory_is_written_and_read(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let largest = (8 << 20) / bed.slow;
    for len in [1, 3, 4095, 4096, 262_145, 1 << 20, largest] {
        let expected = payload(9, 1, len as u64, len);
        let exposed = pair
            .client
            .expose(pair.memory(1, len), RemoteAccess::Write)
            .unwrap();
        let target = Target::new([descriptor(&pair, &exposed)]);
        let mut data = pair.server.allocate(len).wait().unwrap();
        data.copy_from_slice(&expected);
        let op = pair
            .direct()
            .write_then_send(data.into(), target, b"done".into(), None);
        assert_eq!(
            &pair.client.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
            b"done"
        );
        let memory = exposed.reclaim().wait().unwrap();
        assert!(memory[..] == expected[..], "{len} bytes written");
        op.wait().unwrap();

        let exposed = pair.client.expose(memory, RemoteAccess::Read).unwrap();
        let target = Target::new([descriptor(&pair, &exposed)]);
        let into = pair.server.allocate(len).wait().unwrap();
        let into = pair.direct().read(into, 0..len, target).wait().unwrap();
        assert!(into[..] == expected[..], "{len} bytes read");
        pair.server.send_blocking(b"done", Some(LONG)).unwrap();
        pair.client.recv_blocking(Some(LONG)).unwrap().unwrap();
        exposed.reclaim().wait().unwrap();
    }
    let stats = pair.server.stats();
    assert_eq!(stats.bytes_rdma_read, stats.bytes_rdma_written);
}

/// Where the device can: the final response takes the peer's right away, and the client knows.
pub(crate) fn a_response_invalidates_its_token(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    if !pair.client.remote_invalidation() {
        println!("not possible on this device");
        return;
    }
    for round in 0..5 {
        let mut exposed = pair
            .client
            .expose(pair.memory(round, 5000), RemoteAccess::Write)
            .unwrap();
        exposed.offer_invalidation();
        let descriptor = descriptor(&pair, &exposed);
        let data = filled(&*pair.server, 100 + round, 5000);
        let token = Some(SteeringTag(descriptor.token));
        let target = Target::new([descriptor]);
        let op = pair
            .direct()
            .write_then_send(data.into(), target, b"done".into(), token);
        let response = pair.client.recv_blocking(Some(LONG)).unwrap().unwrap();
        assert_eq!(response.invalidated(), token);
        let memory = exposed.reclaim().wait().unwrap();
        assert!(memory[..] == payload(100 + round, 0, 0, 5000)[..]);
        op.wait().unwrap();
    }
    assert_eq!(pair.client.stats().remote_invalidations, 5);
    // One that was invalidated is dead.
    let mut exposed = pair
        .client
        .expose(pair.memory(1, 64), RemoteAccess::Write)
        .unwrap();
    exposed.offer_invalidation();
    let descriptor = descriptor(&pair, &exposed);
    pair.direct()
        .send_invalidate(b"gone".into(), SteeringTag(descriptor.token))
        .wait()
        .unwrap();
    pair.client.recv_blocking(Some(LONG)).unwrap().unwrap();
    let memory = exposed.reclaim().wait().unwrap();
    let data = filled(&*pair.server, 7, 64);
    let _ = pair
        .direct()
        .write(data.into(), Target::new([descriptor]))
        .wait();
    pair.assert_ends();
    assert!(
        memory[..] == payload(1, 0, 0, 64)[..],
        "nothing was written"
    );
}

/// Many transfers in flight, in both directions, beside messages.
pub(crate) fn transfers_go_beside_messages(bed: &Bed) {
    const COUNT: u64 = 32;
    let len = (1 << 20) / bed.slow;
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let mut writes = Vec::new();
    let mut reads = Vec::new();
    for n in 0..COUNT {
        let access = if n % 2 == 0 {
            RemoteAccess::Write
        } else {
            RemoteAccess::Read
        };
        let exposed = pair.client.expose(pair.memory(n, len), access).unwrap();
        let target = Target::new([descriptor(&pair, &exposed)]);
        match access {
            RemoteAccess::Write => {
                let mut gather = Gather::new();
                for part in payload(1000 + n, 0, 0, len).chunks(len.div_ceil(6)) {
                    let mut buf = pair.server.allocate(part.len()).wait().unwrap();
                    buf.copy_from_slice(part);
                    gather.push(buf);
                }
                writes.push((n, exposed, pair.direct().write(gather, target)));
            }
            RemoteAccess::Read => {
                let into = pair.server.allocate(len).wait().unwrap();
                reads.push((n, exposed, pair.direct().read(into, 0..len, target)));
            }
        }
    }
    pair.assert_alive();
    for (n, exposed, op) in reads {
        assert!(
            op.wait().unwrap()[..] == payload(n, 0, 0, len)[..],
            "read {n}"
        );
        exposed.reclaim().wait().unwrap();
    }
    let mut exposures = Vec::new();
    for (n, exposed, op) in writes {
        op.wait().unwrap();
        exposures.push((n, exposed));
    }
    // A message after the writes tells that they have arrived.
    pair.server.send_blocking(b"all", Some(LONG)).unwrap();
    pair.client.recv_blocking(Some(LONG)).unwrap().unwrap();
    for (n, exposed) in exposures {
        let memory = exposed.reclaim().wait().unwrap();
        assert!(memory[..] == payload(1000 + n, 0, 0, len)[..], "write {n}");
    }
}

/// Descriptors that cannot be right are refused before anything is posted.
pub(crate) fn bad_descriptors_post_nothing(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let exposed = pair
        .client
        .expose(pair.memory(1, 100), RemoteAccess::Write)
        .unwrap();
    let good = descriptor(&pair, &exposed);
    let write = |len: usize, descriptors: Vec<BufferDescriptorV1>, offset: u64| {
        let data = filled(&*pair.server, 5, len);
        pair.direct()
            .write(
                data.into(),
                Target {
                    descriptors,
                    offset,
                },
            )
            .wait()
            .unwrap_err()
    };
    let empty = BufferDescriptorV1 { length: 0, ..good };
    let wraps = BufferDescriptorV1 {
        offset: u64::MAX - 5,
        ..good
    };
    assert_eq!(
        write(1, vec![], 0),
        Error::BadDescriptors(BadDescriptors::None)
    );
    assert_eq!(
        write(1, vec![good, empty], 0),
        Error::BadDescriptors(BadDescriptors::ZeroLength)
    );
    assert_eq!(
        write(1, vec![wraps], 0),
        Error::BadDescriptors(BadDescriptors::AddressWraps)
    );
    let available = 100;
    for (len, offset) in [(101, 0), (1, 100), (100, 1), (1, u64::MAX)] {
        let error = BadDescriptors::BeyondEnd {
            offset,
            len: len as u64,
            available,
        };
        assert_eq!(write(len, vec![good], offset), Error::BadDescriptors(error));
    }
    pair.assert_alive();
    let memory = exposed.reclaim().wait().unwrap();
    assert!(memory[..] == payload(1, 0, 0, 100)[..]);
}

/// A shifted offset and a longer length end the connection; nothing outside of the range is touched, and other
/// connections go on.
pub(crate) fn a_descriptor_gives_nothing_but_its_range(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let other = Pair::new(&world);
    for (shift, grow) in [(1, 0), (0, 1), (u64::MAX, 0)] {
        let pair = Pair::new(&world);
        let exposed = pair
            .client
            .expose(pair.memory(3, 4096), RemoteAccess::Write)
            .unwrap();
        let mut forged = descriptor(&pair, &exposed);
        forged.offset = forged.offset.wrapping_add(shift);
        forged.length += grow;
        let data = filled(&*pair.server, 4, forged.length as usize);
        let target = Target::new([forged]);
        if target.descriptors[0]
            .offset
            .checked_add(forged.length.into())
            .is_none()
        {
            continue;
        }
        let _ = pair.direct().write(data.into(), target).wait();
        pair.assert_ends();
        drop(exposed.reclaim().wait());
        other.assert_alive();
    }
}

/// Memory exposed for reading is not written.
pub(crate) fn a_read_only_exposure_is_not_written(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (pair, other) = (Pair::new(&world), Pair::new(&world));
    let exposed = pair
        .client
        .expose(pair.memory(3, 4096), RemoteAccess::Read)
        .unwrap();
    let target = Target::new([descriptor(&pair, &exposed)]);
    let data = filled(&*pair.server, 4, 4096);
    let _ = pair.direct().write(data.into(), target).wait();
    pair.assert_ends();
    let memory = exposed.reclaim().wait().unwrap();
    assert!(
        memory[..] == payload(3, 0, 0, 4096)[..],
        "nothing was written"
    );
    other.assert_alive();
}

/// Memory exposed for writing is not read.
pub(crate) fn a_write_only_exposure_is_not_read(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (pair, other) = (Pair::new(&world), Pair::new(&world));
    let exposed = pair
        .client
        .expose(pair.memory(3, 4096), RemoteAccess::Write)
        .unwrap();
    let target = Target::new([descriptor(&pair, &exposed)]);
    let into = pair.server.allocate(4096).wait().unwrap();
    let result = pair.direct().read(into, 0..4096, target).wait();
    if pair
        .client
        .info()
        .device
        .as_deref()
        .is_some_and(|device| device.starts_with("siw"))
    {
        // Soft-iWARP of Linux answers reads from any registered memory of the connection's domain.
        println!("the device does not check the right to read");
        return;
    }
    assert!(result.is_err());
    pair.assert_ends();
    drop(exposed);
    other.assert_alive();
}

/// After `reclaim` the descriptor is worth nothing: a canary in the memory proves it.
pub(crate) fn a_reclaimed_descriptor_is_dead(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (pair, other) = (Pair::new(&world), Pair::new(&world));
    let exposed = pair
        .client
        .expose(pair.memory(3, 4096), RemoteAccess::Write)
        .unwrap();
    let old = descriptor(&pair, &exposed);
    let memory = exposed.reclaim().wait().unwrap();
    let data = filled(&*pair.server, 4, 4096);
    let _ = pair.direct().write(data.into(), Target::new([old])).wait();
    pair.assert_ends();
    assert!(memory[..] == payload(3, 0, 0, 4096)[..], "the canary lives");
    other.assert_alive();
}

/// A descriptor is worth nothing on another connection.
pub(crate) fn a_descriptor_of_another_connection_is_nothing(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (pair, thief) = (Pair::new(&world), Pair::new(&world));
    let exposed = pair
        .client
        .expose(pair.memory(3, 4096), RemoteAccess::Write)
        .unwrap();
    let stolen = descriptor(&pair, &exposed);
    let data = filled(&*thief.server, 4, 4096);
    let _ = thief
        .direct()
        .write(data.into(), Target::new([stolen]))
        .wait();
    thief.assert_ends();
    let memory = exposed.reclaim().wait().unwrap();
    assert!(
        memory[..] == payload(3, 0, 0, 4096)[..],
        "nothing was written"
    );
    pair.assert_alive();
}

/// 4,000 one-byte descriptors are legal, complete, and starve nobody.
pub(crate) fn many_tiny_descriptors_complete(bed: &Bed) {
    let count = 4000 / bed.slow;
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let exposed = pair
        .client
        .expose(pair.memory(3, count), RemoteAccess::Write)
        .unwrap();
    let whole = descriptor(&pair, &exposed);
    let tiny: Vec<BufferDescriptorV1> = (0..count as u64)
        .map(|n| BufferDescriptorV1 {
            offset: whole.offset + n,
            length: 1,
            ..whole
        })
        .collect();
    let expected = payload(8, 0, 0, count);
    let mut data = pair.server.allocate(count).wait().unwrap();
    data.copy_from_slice(&expected);
    let op = pair.direct().write(data.into(), Target::new(tiny));
    pair.assert_alive();
    op.wait().unwrap();
    pair.server.send_blocking(b"done", Some(LONG)).unwrap();
    pair.client.recv_blocking(Some(LONG)).unwrap().unwrap();
    assert!(exposed.reclaim().wait().unwrap()[..] == expected[..]);
}

/// The connection dies in the middle of transfers: every operation ends and the memory comes back.
pub(crate) fn memory_comes_back_from_a_dead_connection(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    for round in 0..10 / bed.slow.min(3) as u64 {
        let pair = Pair::new(&world);
        let mut ops = Vec::new();
        let mut exposures = Vec::new();
        for n in 0..8 {
            let exposed = pair
                .client
                .expose(pair.memory(n, 300_000), RemoteAccess::Write)
                .unwrap();
            let target = Target::new([descriptor(&pair, &exposed)]);
            let data = filled(&*pair.server, n, 300_000);
            ops.push(pair.direct().write(data.into(), target));
            exposures.push(exposed);
        }
        thread::sleep(Duration::from_micros(200 * round));
        match round % 2 {
            0 => pair.server.close(smbdirect::transport::Close::Abort),
            _ => pair.client.close(smbdirect::transport::Close::Abort),
        }
        pair.assert_ends();
        for op in ops {
            let _ = op.wait();
        }
        for exposed in exposures {
            assert_eq!(exposed.reclaim().wait().unwrap().len(), 300_000);
        }
    }
    Pair::new(&world).assert_alive();
}
