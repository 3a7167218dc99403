//! Direct placement, on every provider: what arrives, and what does not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smbdirect::engine::{Channel, ChannelOptions};
use smbdirect::proto::wire::BufferDescriptorV1;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{
    DirectPlacement, Gather, Message, SteeringTag, Target, Transport, TransportExt,
};

use super::{Bed, LONG, World, payload};

/// A client and a server of one connection.
pub(crate) struct Pair {
    pub(crate) client: Channel,
    pub(crate) server: Arc<dyn Transport>,
}

impl Pair {
    pub(crate) fn new(world: &World) -> Self {
        let (client, server) = world.connect(ChannelOptions::default());
        Self { client, server }
    }

    pub(crate) fn direct(&self) -> &dyn DirectPlacement {
        self.server.direct().expect("direct placement")
    }

    /// Memory of the client's with known bytes.
    pub(crate) fn memory(&self, seed: u64, len: usize) -> IoBuf {
        filled(&self.client, seed, len)
    }

    /// The next message of the server's.
    pub(crate) fn message(&self) -> Message {
        self.client.recv_blocking(Some(LONG)).unwrap().unwrap()
    }

    /// Messages still go both ways.
    pub(crate) fn assert_alive(&self) {
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
    pub(crate) fn assert_ends(&self) {
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

pub(crate) fn filled(channel: &dyn Transport, seed: u64, len: usize) -> IoBuf {
    let mut buf = channel.allocate(len).wait().expect("memory");
    buf.copy_from_slice(&payload(seed, 0, 0, len));
    buf
}

pub(crate) fn descriptor(pair: &Pair, exposed: &smbdirect::engine::Exposed) -> BufferDescriptorV1 {
    request(pair, exposed.descriptors())[0]
}

/// What the server knows of an exposure: as an SMB request carries it, in a message that is sent after it.
fn request(pair: &Pair, descriptors: &[BufferDescriptorV1]) -> Vec<BufferDescriptorV1> {
    let bytes: Vec<u8> = descriptors.iter().flat_map(|each| each.encode()).collect();
    pair.client.send_blocking(&bytes, Some(LONG)).expect("sent");
    let request = pair.server.recv_blocking(Some(LONG)).unwrap().unwrap();
    BufferDescriptorV1::parse_array(&request).expect("descriptors")
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

/// Buffers of all sizes exposed together are one piece of memory to the server, also where it begins somewhere in it.
pub(crate) fn several_buffers_are_written_and_read(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let lens = [1, 70_000, 3, 4096, 200_000 / bed.slow];
    let total: usize = lens.iter().sum();
    let expected = payload(6, 0, 0, total);
    let buffers = lens.iter().map(|len| pair.memory(1, *len)).collect();
    let mut exposed = pair
        .client
        .expose_list(buffers, RemoteAccess::Write)
        .unwrap();
    assert_eq!(exposed.descriptors().len(), lens.len());
    let token = pair.client.remote_invalidation().then(|| {
        exposed.offer_invalidation();
        SteeringTag(exposed.descriptors()[0].token)
    });
    let target = Target::new(request(&pair, exposed.descriptors()));
    let data = filled(&*pair.server, 6, total);
    let op = (pair.direct()).write_then_send(data.into(), target, b"done".into(), token);
    assert_eq!(pair.message().invalidated(), token);
    let buffers = exposed.reclaim().wait().unwrap();
    op.wait().unwrap();
    let mut at = 0;
    for (buffer, len) in buffers.iter().zip(lens) {
        assert!(buffer[..] == expected[at..at + len], "{len} bytes at {at}");
        at += len;
    }

    let exposed = pair
        .client
        .expose_list(buffers, RemoteAccess::Read)
        .unwrap();
    let target = Target {
        descriptors: request(&pair, exposed.descriptors()).into(),
        offset: 60_000,
    };
    let len = total - 60_000 - 2;
    let into = pair.server.allocate(len + 9).wait().unwrap();
    let op = pair.direct().read(into, 9..9 + len, target);
    assert!(op.wait().unwrap()[9..] == expected[60_000..60_000 + len]);
    drop(exposed);
    pair.assert_alive();
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

/// After 20 ms without a message probes go between two sides while transfers are always under way, and are answered amid
/// them. It goes on until several were, and no longer: how much is moved by then is the machine's affair. So is how long an
/// answer takes, where the processor is somebody else's for seconds.
pub(crate) fn probes_are_answered_while_much_is_moved(bed: &Bed) {
    /// Transfers under way at a time, and in all: in vain at the latest then.
    const DEEP: usize = 4;
    const MOST: usize = 4096;
    let len = (8 << 20) / (bed.slow * bed.slow);
    let mut options = ChannelOptions::default();
    options.protocol.keepalive_interval = Duration::from_millis(20);
    options.protocol.keepalive_timeout = LONG;
    let world = bed.world(options.clone());
    let (client, server) = world.connect(options);
    let pair = Pair { client, server };
    // All from and to the same memory.
    let exposed = pair
        .client
        .expose(pair.memory(1, len), RemoteAccess::Write)
        .unwrap();
    let target = Target::new(descriptor(&pair, &exposed));
    let data = filled(&*pair.server, 2, len).freeze();
    let write = || pair.direct().write(data.clone().into(), target.clone());
    let answered = || {
        let (client, server) = (pair.client.stats(), pair.server.stats());
        client.keepalives_answered + server.keepalives_answered
    };
    let mut writes: VecDeque<_> = (0..DEEP).map(|_| write()).collect();
    let mut moved = DEEP;
    while answered() < 3 {
        assert!(moved < MOST, "{moved} transfers, {} answers", answered());
        writes.pop_front().unwrap().wait().unwrap();
        writes.push_back(write());
        moved += 1;
    }
    println!("{moved} transfers of {len} bytes, {} answers", answered());
    for write in writes {
        write.wait().unwrap();
    }
    pair.assert_alive();
    assert_eq!(pair.server.stats().rdma_writes.count, moved as u64);
    assert!(exposed.reclaim().wait().unwrap()[..] == payload(2, 0, 0, len)[..]);
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
