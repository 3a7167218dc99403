//! The queue of timers.

use super::*;

/// What waits for a moment only, over and over, would else leave an entry of the keepalive's behind each time.
#[test]
fn timers_that_come_and_go_leave_nothing_in_the_queue() {
    let mut options = ChannelOptions::default();
    options.protocol.receive_credit_max = 32;
    let world = World::new(1, DeviceOptions::rxe(), options);
    let (client, server) = world.connect(ChannelOptions::default());
    for _ in 0..300 {
        // The last credit is kept until the server grants more.
        client.start_send((&[1; 100_000]).into()).unwrap();
        world.recv(&server).unwrap().unwrap();
        world.until(Duration::from_millis(200), || None::<()>);
    }
    assert!(client.stats().stalls_send_credit.count >= 300);
    let timers = world.client.hold(|core| core.timers());
    assert!(timers < 10, "{timers}");
}
