//! Whatever ends, nobody is left waiting for it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::Wake;
use std::thread;

use super::*;
use crate::engine::shared::ConnShared;
use crate::engine::transfer::{Payload, Transfer};
use crate::rdma::ConnId;
use crate::transport::{Completer, Descriptors};

/// In real time, and so long that a busy machine makes no difference.
const LONG: Duration = Duration::from_secs(60);

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn woken(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Nobody drives these reactors once they are shut down.
#[test]
fn operations_end_with_their_reactor() {
    for device in devices() {
        for shut_down in [true, false] {
            let world = World::new(1, device.clone(), ChannelOptions::default());
            let (client, server) = world.connect(ChannelOptions::default());
            let memory = world.finish(client.allocate(100_000)).unwrap();
            let exposed = client.expose(memory, RemoteAccess::Write).unwrap();
            let data = world.finish(server.allocate(100_000)).unwrap();
            let into = world.finish(server.allocate(100_000)).unwrap();
            let target = Target::new(exposed.descriptors());
            let mut write = server.write(data.into(), target.clone());
            let mut read = server.read(into, 0..100_000, target);
            let mut reclaim = exposed.reclaim();
            let to = SocketAddr::new(SERVER, PORT);
            let mut connect = world.client.connect(to, ChannelOptions::default());
            if shut_down {
                world.server.shutdown(Duration::ZERO);
                world.client.shutdown(Duration::ZERO);
                // The handles are still there.
                assert!(client.poll_closed(&mut cx()).is_ready());
            } else {
                drop((client, server, world));
            }
            assert!(matches!(write.try_take(), Some(Err(_))));
            assert!(matches!(read.try_take(), Some(Err(_))));
            assert!(reclaim.try_take().is_some());
            assert!(matches!(connect.try_take(), Some(Err(_))));
        }
    }
}

/// The handle may put in a transfer until it can see that the connection has ended.
#[test]
fn a_transfer_that_comes_in_the_last_moment_ends_with_the_connection() {
    let id = ConnId {
        index: 0,
        generation: 0,
    };
    let shared = ConnShared::new(id, 1000);
    let (mut op, completer) = Op::pending();
    let payload = Payload::Write {
        data: Gather::new(),
        completer,
    };
    let target = Target::new(Descriptors::default());
    let transfer = Transfer::new(payload, target, 0, None);
    shared.outbox().transfers.push_back(transfer);
    let mut wakers = Vec::new();
    shared.finish(&DisconnectReason::Peer, &mut wakers);
    let peer = Error::Closed(DisconnectReason::Peer);
    assert_eq!(op.try_take().map(|result| result.err()), Some(Some(peer)));
}

/// A call on a channel works for the whole reactor, and may end what another thread drives it for.
#[test]
fn who_drives_for_one_operation_hears_of_its_end_by_others() {
    let world = World::roce();
    let (op, completer): (Op<u32>, Completer<u32>) = Op::pending();
    let (sender, result) = mpsc::channel();
    let reactor = world.client.clone();
    let driver = thread::spawn(move || sender.send(reactor.block_on(op)).unwrap());
    // It is asleep then, most likely: the test proves nothing otherwise, and does not fail.
    thread::sleep(Duration::from_millis(100));
    if let Some(waker) = completer.complete(Ok(7)) {
        waker.wake();
    }
    assert_eq!(result.recv_timeout(LONG), Ok(Ok(7)));
    driver.join().unwrap();
}

#[test]
fn all_who_wait_for_room_are_woken_and_all_who_wait_for_the_end() {
    let world = World::roce();
    let options = ChannelOptions {
        send_queue_bytes: 1,
        ..ChannelOptions::default()
    };
    let (client, server) = world.connect(options);
    let counts: [Arc<Count>; 3] = Default::default();
    let wakers = counts.clone().map(Waker::from);
    while client.start_send((&vec![1; 100_000]).into()).is_ok() {}
    for waker in &wakers {
        for _ in 0..2 {
            assert!(
                client
                    .poll_ready(&mut TaskContext::from_waker(waker))
                    .is_pending()
            );
        }
    }
    world.recv(&server).unwrap();
    assert_eq!(counts.each_ref().map(|count| count.woken()), [1; 3]);
    for waker in &wakers {
        assert!(
            client
                .poll_closed(&mut TaskContext::from_waker(waker))
                .is_pending()
        );
    }
    client.close(Close::Abort);
    world.closed(&client);
    assert_eq!(counts.each_ref().map(|count| count.woken()), [2; 3]);
}

/// A peer of many small messages fills no more memory than one of large ones: each takes a slot, or memory of its own.
#[test]
fn small_messages_that_nobody_takes_are_counted_for_what_they_hold() {
    let limit = 100_000;
    let options = ChannelOptions {
        receive_queue_bytes: limit,
        ..ChannelOptions::default()
    };
    let world = World::new(7, DeviceOptions::rxe(), options);
    let (client, server) = world.connect(ChannelOptions::default());
    const SENT: usize = 20_000;
    let mut sent = 0;
    world.until(Duration::from_secs(20), || {
        while sent < SENT && client.start_send((&[1; 1]).into()).is_ok() {
            sent += 1;
        }
        None::<()>
    });
    let mut waiting = 0;
    while server.poll_recv(&mut cx()).is_ready() {
        waiting += 1;
    }
    // What the peer was granted already still comes.
    let credits = usize::from(proto::Config::default().receive_credit_max);
    assert!(waiting <= limit / 100 + credits, "{waiting} messages");
}

/// A server may wait for the end in every request's task.
#[test]
fn tasks_that_wait_no_longer_are_forgotten() {
    let world = World::roce();
    let options = ChannelOptions {
        send_queue_bytes: 1,
        ..ChannelOptions::default()
    };
    let (client, _server) = world.connect(options);
    while client.start_send((&vec![1; 100_000]).into()).is_ok() {}
    let tasks: Vec<Arc<Count>> = (0..10_000).map(|_| Arc::default()).collect();
    for task in &tasks {
        let waker = Waker::from(task.clone());
        let cx = &mut TaskContext::from_waker(&waker);
        assert!(client.poll_ready(cx).is_pending());
        assert!(client.poll_closed(cx).is_pending());
    }
    let kept = |task: &&Arc<Count>| Arc::strong_count(task) > 1;
    let kept = tasks.iter().filter(kept).count();
    assert!(kept < 1000, "{kept} tasks are kept");
}

/// A provider gives the place of a connection to the next one before it has reported the former's end.
#[test]
fn an_end_is_told_also_when_another_connection_has_the_place_already() {
    for device in devices() {
        let world = World::new(1, device, ChannelOptions::default());
        let mut old = Vec::new();
        let (mut client, _) = world.connect(ChannelOptions::default());
        for n in 1..=5u8 {
            client.close(Close::Abort);
            let to = SocketAddr::new(SERVER, PORT);
            let next = world.client.connect(to, ChannelOptions::default());
            old.push(std::mem::replace(&mut client, world.finish(next).unwrap()));
            let server = world.accept();
            server.start_send((&[n]).into()).unwrap();
            assert_eq!(world.recv(&client).unwrap().unwrap(), [n]);
        }
        for old in old {
            assert_eq!(world.closed(&old), DisconnectReason::Local);
        }
        assert_eq!(world.client.connections(), 1);
    }
}
