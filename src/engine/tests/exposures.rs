//! Exposures of several descriptors: by the caller's buffers, or by the device's limit.

use super::*;
use crate::transport::ApiMisuse;

/// Devices of every kind of exposure, which describe no more than so much with one descriptor.
fn limited(most: u64) -> [DeviceOptions; 3] {
    [
        DeviceOptions::rxe(),
        DeviceOptions::iwarp(),
        DeviceOptions::siw(),
    ]
    .map(|mut device| {
        device.capabilities.max_exposure = most;
        device
    })
}

fn lengths(descriptors: &[BufferDescriptorV1]) -> Vec<u32> {
    descriptors.iter().map(|each| each.length).collect()
}

/// The bytes of [`filled`] from its beginning.
fn expected(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

/// The server writes all of it, from the descriptors as they are.
fn write(world: &World, (client, server): (&Channel, &Channel), target: Target, seed: u8) {
    let data = filled(server, target.len() as usize, seed);
    let token = SteeringTag(target.descriptors[0].token);
    let token = server.remote_invalidation().then_some(token);
    let op = server.write_then_send(data.into(), target, b"done".into(), token);
    assert_eq!(world.recv(client).unwrap().unwrap(), b"done");
    world.finish(op).unwrap();
}

#[test]
fn a_device_that_limits_descriptors_gives_several_in_order() {
    for device in limited(1000) {
        let world = World::new(21, device, ChannelOptions::default());
        let (client, server) = world.connect(ChannelOptions::default());
        let mut exposed = client
            .expose(filled(&client, 3500, 1), RemoteAccess::Write)
            .unwrap();
        assert_eq!(lengths(exposed.descriptors()), [1000, 1000, 1000, 500]);
        if client.remote_invalidation() {
            exposed.offer_invalidation();
        }
        let target = Target::new(exposed.descriptors());
        write(&world, (&client, &server), target, 7);
        let memory = world.finish(exposed.reclaim()).unwrap();
        assert!(memory[..] == expected(3500, 7)[..]);
        let exposed = client.expose(memory, RemoteAccess::Read).unwrap();
        let target = Target {
            descriptors: exposed.descriptors().into(),
            offset: 900,
        };
        let into = server.allocate(2000).try_take().unwrap().unwrap();
        let into = world.finish(server.read(into, 0..2000, target)).unwrap();
        assert!(into[..] == expected(3500, 7)[900..2900]);
        world.finish(exposed.reclaim()).unwrap();
        assert_eq!(world.network.violations(), []);
    }
}

#[test]
fn several_buffers_are_one_piece_of_memory() {
    const LENS: [usize; 4] = [5, 70_000, 1, 3000];
    for device in limited(50_000) {
        let world = World::new(22, device, ChannelOptions::default());
        let (client, server) = world.connect(ChannelOptions::default());
        for offered in [true, false] {
            let buffers = LENS.map(|len| filled(&client, len, 1)).into();
            let mut exposed = client.expose_list(buffers, RemoteAccess::Write).unwrap();
            assert_eq!(
                lengths(exposed.descriptors()),
                [5, 50_000, 20_000, 1, 3000],
                "a descriptor per buffer, two for the one that is above the limit"
            );
            let offered = offered && client.remote_invalidation();
            if offered {
                exposed.offer_invalidation();
            }
            let target = Target::new(exposed.descriptors());
            write(&world, (&client, &server), target, 9);
            let buffers = world.finish(exposed.reclaim()).unwrap();
            let all: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
            assert!(buffers.iter().map(|buffer| buffer.len()).eq(LENS));
            assert!(all == expected(73_006, 9));
        }
        assert_eq!(world.network.violations(), []);
        // Afterwards none of the keys is worth anything.
        let buffers = LENS.map(|len| filled(&client, len, 1)).into();
        let exposed = client.expose_list(buffers, RemoteAccess::Write).unwrap();
        let last = *exposed.descriptors().last().unwrap();
        let buffers = world.finish(exposed.reclaim()).unwrap();
        let op = server.write(filled(&server, 3000, 2).into(), Target::new(last));
        let _ = world.finish(op);
        let _ = world.closed(&client);
        assert!(buffers[3][..] == expected(3000, 1)[..]);
    }
}

#[test]
fn a_list_that_does_not_fit_the_device_is_not_exposed_at_all() {
    let mut device = DeviceOptions::rxe();
    device.quirks.max_windows = 10;
    let world = World::new(23, device, ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    let buffers = |count| (0..count).map(|_| filled(&client, 64, 3)).collect();
    for _ in 0..5 {
        let error = client
            .expose_list(buffers(11), RemoteAccess::Read)
            .unwrap_err();
        assert!(
            matches!(error, Error::Rdma(RdmaError::Limit { .. })),
            "{error}"
        );
        assert!(!error.ends_connection());
    }
    // None of the windows is lost.
    let exposed = client.expose_list(buffers(10), RemoteAccess::Read).unwrap();
    let into = server.allocate(640).try_take().unwrap().unwrap();
    let target = Target::new(exposed.descriptors());
    world.finish(server.read(into, 0..640, target)).unwrap();
    // Dropped: the peer's right is taken back all the same, and the windows serve again.
    drop(exposed);
    world.until(Duration::from_millis(10), || None::<()>);
    drop(client.expose_list(buffers(10), RemoteAccess::Read).unwrap());
}

#[test]
fn as_many_descriptors_as_a_request_can_carry() {
    let world = World::new(24, DeviceOptions::rxe(), ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    let buffers = |count| (0..count).map(|_| filled(&client, 2, 3)).collect();
    assert_eq!(
        client
            .expose_list(buffers(4096), RemoteAccess::Write)
            .unwrap_err(),
        ApiMisuse::TooManyDescriptors { count: 4096 }.into()
    );
    for empty in [
        Vec::new(),
        vec![filled(&client, 2, 3), filled(&client, 0, 3)],
    ] {
        assert_eq!(
            client.expose_list(empty, RemoteAccess::Write).unwrap_err(),
            ApiMisuse::EmptyExposure.into()
        );
    }
    let exposed = client
        .expose_list(buffers(4095), RemoteAccess::Write)
        .unwrap();
    assert_eq!(exposed.descriptors().len(), 4095);
    let target = Target::new(exposed.descriptors());
    write(&world, (&client, &server), target, 5);
    let buffers = world.finish(exposed.reclaim()).unwrap();
    let all: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
    assert!(all == expected(8190, 5));
    assert_eq!(world.network.violations(), []);
}
