//! What soft devices do other than the specifications say: that it is dealt with, or that it still is so.

use std::collections::VecDeque;
use std::time::Instant;

use super::end::{EXPOSED, End, check};
use super::world::{PATIENCE, World};
use crate::rdma::{
    Close, CompletionStatus, Event, Fabric, IoBuf, Operation, Provider, RemoteAccess, SendRequest,
    WindowId,
};

/// A client exposes memory again and again while messages of its own are not acknowledged. Telling where packets are lost,
/// as in the guest's `netem.sh`: soft-RoCE would bind a window again with what it sends again, and end the connection.
#[test]
fn exposing_goes_on_while_messages_are_sent_again() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    let (mut posted, mut received) = (0, 0);
    let mut open: VecDeque<WindowId> = VecDeque::new();
    let end = Instant::now() + 2 * PATIENCE;
    while received < 400 {
        // What has arrived may still be unacknowledged, and hold its buffer.
        let free = client.messages.free() > 0 && client.bulk.free() > 0;
        if posted < 400 && posted - received < 12 && free {
            expose_and_tell(&mut world, &client, posted, &mut open);
            posted += 1;
        }
        world.client.poll();
        world.server.poll();
        world.client.events.retain(|event| match event {
            Event::Completed { status, .. } => {
                assert_eq!(*status, CompletionStatus::Success);
                false
            }
            Event::Disconnected { reason, .. } => panic!("{reason:?}"),
            _ => true,
        });
        while let Some((_, event)) = world.server.take(&mut |event| match event {
            Event::Received { .. } => Some(()),
            Event::Disconnected { reason, .. } => panic!("{reason:?}"),
            _ => None,
        }) {
            let Event::Received { mut buffer, .. } = event else {
                unreachable!()
            };
            check(&buffer, received as u8);
            buffer.set_len(buffer.capacity());
            let mut again: VecDeque<IoBuf> = [buffer].into();
            let posted = world.server.verbs.post_receive(server.conn, &mut again);
            posted.unwrap();
            received += 1;
        }
        assert!(Instant::now() < end, "{received} of {posted} messages");
    }
    world.close(&client, Close::Abort);
    world.disconnected(&client);
    world.disconnected(&server);
    // The last messages, and what was exposed last, come back with the connection.
    world.client.events.clear();
    world.balanced(&client);
    world.balanced(&server);
    assert_eq!(client.bulk.free(), client.bulk.count());
}

/// Exposes memory, and tells of it without waiting for anything. What was exposed long ago is taken back first.
fn expose_and_tell(world: &mut World, client: &End, number: usize, open: &mut VecDeque<WindowId>) {
    if open.len() == 3
        && let Some(oldest) = open.pop_front()
    {
        assert!(client.close_window(world, oldest).is_some());
    }
    let pin = client.bulk.take().unwrap().pin().slice(0..EXPOSED);
    let exposure = client.capabilities.exposure;
    let mut prepared = pin.prepare(exposure, RemoteAccess::Write).unwrap();
    let verbs = &mut world.client.verbs;
    let window = verbs
        .open_window(client.conn, pin, RemoteAccess::Write, &mut prepared)
        .unwrap();
    let bind = window
        .needs_bind
        .then_some(Operation::Bind { window: window.id });
    let operations = bind.into_iter().chain([client.send(900, number as u8)]);
    let mut chain: VecDeque<SendRequest> = operations
        .map(|operation| SendRequest {
            cookie: 0,
            signalled: true,
            operation,
        })
        .collect();
    verbs.post_send(client.conn, &mut chain).unwrap();
    open.push_back(window.id);
}

/// Nothing can be done about it, but to say so (`SECURITY.md`). Should it fail, a kernel is better than that.
#[test]
fn soft_iwarp_answers_reads_of_what_is_exposed_for_writing() {
    let Some(mut world) = World::new() else {
        return;
    };
    let (client, server) = world.connect();
    if client.capabilities.fabric == Fabric::Iwarp {
        let window = client.expose(&mut world, RemoteAccess::Write, 1);
        let read = vec![server.read(64, &window)];
        assert_eq!(world.execute(&server, read), CompletionStatus::Success);
        assert!(client.close_window(&mut world, window.id).is_some());
    }
    world.end((client, server));
}
