//! A close in order that takes its time, and what cuts it short.

use super::*;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(1);

/// A connection whose client closes in order, which a dead link keeps from its end: in the middle of what it was to send, or
/// when it waits for nothing but the peer.
fn closing(device: DeviceOptions, busy: bool) -> (World, Channel, Channel) {
    let world = World::new(1, device, ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    world.network.set_link(CLIENT, SERVER, false);
    if busy {
        // More than there are credits for.
        client.start_send((&[1; 200_000]).into()).unwrap();
    }
    client.close(Close::Graceful(HOUR));
    world.until(Duration::from_millis(1), || None::<()>);
    assert_eq!(world.client.connections(), 1);
    (world, client, server)
}

fn all(mut check: impl FnMut(World, Channel)) {
    for device in devices() {
        for busy in [false, true] {
            let (world, client, _server) = closing(device.clone(), busy);
            check(world, client);
        }
    }
}

#[test]
fn an_abort_cuts_it_short() {
    all(|world, client| {
        client.close(Close::Abort);
        world.until(SOON, || None::<()>);
        assert_eq!(world.client.connections(), 0);
        assert_eq!(world.closed(&client), DisconnectReason::Local);
    });
}

#[test]
fn it_ends_with_its_reactor_which_does_not_wait_for_longer() {
    all(|world, client| {
        world.client.begin_shutdown(SOON);
        world.until(SOON / 2, || None::<()>);
        assert_eq!(world.client.connections(), 1);
        world.until(SOON, || None::<()>);
        assert_eq!(world.client.connections(), 0);
        assert!(client.poll_closed(&mut cx()).is_ready());
    });
    all(|world, client| {
        world.client.begin_shutdown(Duration::ZERO);
        world.until(SOON / 2, || None::<()>);
        assert_eq!(world.client.connections(), 0);
        assert!(client.poll_closed(&mut cx()).is_ready());
    });
}
