//! Memory that the caller brings, on every provider: it is sent, exposed, written from and read into.

use smbdirect::engine::ChannelOptions;
use smbdirect::proto::CreditProfile;
use smbdirect::rdma::{IoBuf, RemoteAccess};
use smbdirect::transport::{
    ApiMisuse, DirectPlacement, Gather, OutMessage, Target, Transport, TransportExt,
};

use super::direct::{Pair, descriptor};
use super::guarded::{Flush, Guarded};
use super::{Bed, LONG, payload};

const LEN: usize = 300_000;

fn register(transport: &dyn Transport, guarded: &Guarded, seed: u64) -> IoBuf {
    let mut memory = transport
        .register(guarded.memory())
        .wait()
        .expect("registered");
    memory.copy_from_slice(&payload(seed, 0, 0, LEN));
    memory
}

/// An arena of the caller's on both sides, in both directions, and as a message.
pub(crate) fn brought_memory_is_moved(bed: &Bed) {
    // With all of its slots from the beginning: what else is counted is the memory that is brought.
    let mut options = ChannelOptions::default();
    options.protocol.credit_profile = CreditProfile::Full;
    let world = bed.world(options.clone());
    let (client, server) = world.connect(options);
    let pair = Pair { client, server };
    let before = world.client.registered_memory();
    let guarded = [Flush::Low, Flush::High].map(|flush| Guarded::new(LEN, flush));
    let memory = register(&pair.client, &guarded[0], 1);
    let data = register(&*pair.server, &guarded[1], 2);
    assert!(world.client.registered_memory() >= before + LEN as u64);

    let exposed = pair.client.expose(memory, RemoteAccess::Write).unwrap();
    let target = Target::new(descriptor(&pair, &exposed));
    let op = (pair.direct()).write_then_send(data.into(), target, b"done".into(), None);
    assert_eq!(&pair.message()[..], b"done");
    let memory = exposed.reclaim().wait().unwrap();
    assert!(memory[..] == payload(2, 0, 0, LEN)[..], "written");
    let data = op.wait().unwrap().into_pieces().remove(0);
    let mut data = data.try_into_buf().expect("nobody else has it");

    data.fill(0);
    let exposed = pair.client.expose(memory, RemoteAccess::Read).unwrap();
    let target = Target::new(descriptor(&pair, &exposed));
    let data = pair.direct().read(data, 0..LEN, target).wait().unwrap();
    assert!(data[..] == payload(2, 0, 0, LEN)[..], "read");
    let memory = exposed.reclaim().wait().unwrap();

    pair.client
        .start_send(OutMessage::Gather(memory.into()))
        .unwrap();
    let message = pair.server.recv_blocking(Some(LONG)).unwrap().unwrap();
    assert!(message[..] == payload(2, 0, 0, LEN)[..], "sent");
    drop(data);
    // The message has been sent from there, which its sender learns a little later.
    pair.assert_alive();
    super::eventually("the memory is let go", || {
        guarded.iter().all(|guarded| guarded.others() == 0)
    });
    assert_eq!(world.client.registered_memory(), before);
    guarded.iter().for_each(Guarded::assert_canary);
}

/// One mapping that nobody writes to, served on two connections at a time.
pub(crate) fn a_mapping_serves_many_connections(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pairs = [Pair::new(&world), Pair::new(&world)];
    let content = payload(5, 0, 0, LEN);
    let mapping = Guarded::new(LEN, Flush::High);
    let served = pairs.each_ref().map(|pair| {
        let memory = mapping.read_only(&content);
        pair.server
            .register_read_only(memory)
            .wait()
            .expect("registered")
    });
    let transfers: Vec<_> = (pairs.iter().zip(&served))
        .map(|(pair, served)| {
            let exposed = pair
                .client
                .expose(pair.memory(1, 200_000), RemoteAccess::Write)
                .unwrap();
            let target = Target::new(descriptor(pair, &exposed));
            let mut data = Gather::new();
            data.push(served.slice(1..100_001));
            data.push(served.slice(200_000..300_000));
            let op = (pair.direct()).write_then_send(data, target, b"done".into(), None);
            (pair, exposed, op)
        })
        .collect();
    for (pair, exposed, op) in transfers {
        assert_eq!(&pair.message()[..], b"done");
        let memory = exposed.reclaim().wait().unwrap();
        assert!(memory[..100_000] == content[1..100_001], "the first part");
        assert!(memory[100_000..] == content[200_000..], "the second part");
        op.wait().unwrap();
        let message = OutMessage::Gather(served[0].slice(7..50_007).into());
        if std::ptr::eq(pair, &pairs[0]) {
            pair.server.start_send(message).unwrap();
            assert!(pair.message()[..] == content[7..50_007], "sent");
        }
    }
    // Read only it stays.
    let [first, second] = served;
    drop(first.try_into_buf().expect_err("no buffer"));
    drop(second);
    super::eventually("the mapping is let go", || mapping.others() == 0);
    mapping.assert_canary();
}

/// What cannot be registered is refused, and let go.
pub(crate) fn empty_memory_is_not_registered(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let pair = Pair::new(&world);
    let guarded = Guarded::new(0, Flush::Low);
    let error = ApiMisuse::EmptyRegistration.into();
    assert_eq!(
        pair.client.register(guarded.memory()).wait().unwrap_err(),
        error
    );
    let memory = guarded.read_only(&[]);
    assert_eq!(
        pair.client.register_read_only(memory).wait().unwrap_err(),
        error
    );
    assert_eq!(guarded.others(), 0);
}
