//! A close in order that takes its time, and what cuts it short.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

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

/// There will be no room for what may not be sent any more.
#[test]
fn who_waits_for_room_is_told_when_it_begins() {
    let full = || {
        let options = ChannelOptions {
            send_queue_bytes: 1,
            ..ChannelOptions::default()
        };
        let world = World::roce();
        let (client, server) = world.connect(options);
        world.network.set_link(CLIENT, SERVER, false);
        client.start_send((&vec![1; 100_000]).into()).unwrap();
        (world, client, server)
    };
    let ends: [fn(&World, &Channel); 2] = [
        |_, client| client.close(Close::Graceful(HOUR)),
        |world, _| _ = world.client.begin_shutdown(HOUR),
    ];
    for end in ends {
        let (world, client, _server) = full();
        let told = Arc::new(Told::default());
        let waker = Waker::from(told.clone());
        let cx = &mut TaskContext::from_waker(&waker);
        assert!(client.poll_ready(cx).is_pending());
        end(&world, &client);
        assert!(told.0.load(Ordering::SeqCst));
        let closed = Error::Closed(DisconnectReason::Local);
        assert_eq!(client.poll_ready(cx), Poll::Ready(Err(closed)));
    }
}

#[derive(Default)]
struct Told(AtomicBool);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
