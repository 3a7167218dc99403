//! Several who drive one reactor at a time.

use std::mem::MaybeUninit;
use std::sync::mpsc;
use std::thread;

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::time::Timespec;

use super::*;

/// In real time, and so long that a busy machine makes no difference.
const LONG: Duration = Duration::from_secs(60);

fn is_readable(reactor: &Reactor, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).unwrap();
    let fd = reactor.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&limit)).unwrap() == 1
}

/// Lets threads wait for operations that another one ends, over and over.
fn wait_in_threads(reactor: &Reactor, threads: usize) {
    let (done, all_done) = mpsc::channel();
    for n in 0..threads {
        let (completers, ends) = mpsc::channel();
        thread::spawn(move || {
            for (round, completer) in (0..).zip(ends) {
                if (round + n) % 3 > 0 {
                    thread::sleep(Duration::from_micros(100));
                }
                let completer: crate::transport::Completer<usize> = completer;
                if let Some(waker) = completer.complete(Ok(round)) {
                    waker.wake();
                }
            }
        });
        let (reactor, done) = (reactor.clone(), done.clone());
        thread::spawn(move || {
            for round in 0..500 {
                let (op, completer) = Op::pending();
                completers.send(completer).unwrap();
                assert_eq!(reactor.block_on(op).unwrap(), round);
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..threads {
        all_done.recv_timeout(LONG).expect("a wake-up got lost");
    }
}

/// Were both asleep on the reactor's descriptor, one would take the wake-up that is for the other.
#[test]
fn a_wake_up_reaches_who_waits_while_a_thread_drives() {
    let world = World::roce();
    let reactor = &world.client;
    reactor.spawn().unwrap();
    wait_in_threads(reactor, 1);
    wait_in_threads(reactor, 3);
    reactor.shutdown(Duration::ZERO);
    // Nobody else drives it any more.
    wait_in_threads(reactor, 1);
}

#[test]
fn threads_that_wait_take_turns_in_driving() {
    let world = World::roce();
    wait_in_threads(&world.client, 3);
}

/// What waits is told by the thread that begins to drive meanwhile.
#[test]
fn a_thread_takes_over_from_who_waits() {
    let world = World::roce();
    let (op, completer) = Op::pending();
    let (sender, receiver) = mpsc::channel();
    let reactor = world.client.clone();
    thread::spawn(move || sender.send(reactor.block_on(op)).unwrap());
    world.client.spawn().unwrap();
    // It ends although the other one still waits.
    world.client.shutdown(LONG);
    if let Some(waker) = completer.complete(Ok(7)) {
        waker.wake();
    }
    assert_eq!(receiver.recv_timeout(LONG), Ok(Ok(7)));
}

#[test]
fn a_loop_of_the_callers_is_told_when_a_wait_in_between_has_ended() {
    let world = World::roce();
    let reactor = &world.client;
    let _op = reactor.connect(SocketAddr::new(SERVER, PORT), ChannelOptions::default());
    let next = reactor.poll().expect("an event of the network is due");
    assert!(next <= world.network.now() + Duration::from_secs(1));
    // Virtual time stands still: the descriptor's timer has expired, and says so until it is set anew.
    assert!(is_readable(reactor, LONG));
    // It would end each sleep of the wait at once.
    assert!(!reactor.block_on(async { is_readable(reactor, Duration::ZERO) }));
    // The wait may have set timers that the loop knows nothing of.
    assert!(is_readable(reactor, Duration::ZERO));
}

/// A runtime hears of what is new only, and what it finds while another thread drives is that one's business.
#[test]
fn a_runtime_that_left_a_wake_up_to_a_wait_gets_another_one() {
    let world = World::roce();
    let reactor = &world.client;
    let runtime = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let new = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&runtime, reactor.fd(), epoll::EventData::new_u64(0), new).unwrap();
    let hears = || {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 1];
        let now = Timespec::try_from(Duration::ZERO).unwrap();
        !epoll::wait(&runtime, &mut events[..], Some(&now))
            .unwrap()
            .0
            .is_empty()
    };
    reactor.poll();
    assert!(!hears());
    reactor.block_on(async {
        let _sitting = reactor.shared().seat().try_sit().unwrap();
        reactor.shared().wake();
        assert!(hears() && !hears());
        assert_eq!(reactor.poll(), None);
    });
    assert!(hears());
}

/// The last of several who wait tells it.
#[test]
fn a_loop_of_the_callers_is_told_when_the_last_wait_has_ended() {
    let world = World::roce();
    let reactor = &world.client;
    let (op, completer) = Op::<usize>::pending();
    reactor.poll();
    let waits = {
        let reactor = reactor.clone();
        thread::spawn(move || reactor.block_on(op))
    };
    reactor.block_on(async {
        // The other one drives meanwhile.
        while !reactor.hold(|core| core.sleeping.is_some()) {
            thread::yield_now();
        }
    });
    // What this wait has left for the loop is taken by who still drives.
    while is_readable(reactor, Duration::ZERO) {
        thread::yield_now();
    }
    if let Some(waker) = completer.complete(Ok(7)) {
        waker.wake();
    }
    assert_eq!(waits.join().unwrap(), Ok(7));
    assert!(is_readable(reactor, Duration::ZERO));
}

/// What the first wait has left for the loop is taken by the second one, which sleeps.
#[test]
fn a_loop_of_the_callers_is_told_after_each_of_several_waits() {
    let world = World::roce();
    let reactor = &world.client;
    reactor.poll();
    for _ in 0..3 {
        let (op, completer) = Op::<usize>::pending();
        let asleep = reactor.clone();
        let other = thread::spawn(move || {
            // It takes back a wake-up first, if there was one.
            while is_readable(&asleep, Duration::ZERO)
                || !asleep.hold(|core| core.sleeping.is_some())
            {
                thread::yield_now();
            }
            if let Some(waker) = completer.complete(Ok(7)) {
                waker.wake();
            }
        });
        assert_eq!(reactor.block_on(op), Ok(7));
        other.join().unwrap();
        assert!(is_readable(reactor, Duration::ZERO));
    }
}

/// Each of them would make a system call to find that there is nothing to do.
#[test]
fn who_waits_to_drive_is_not_woken_by_work_of_who_does() {
    let world = World::roce();
    let reactor = &world.client;
    let (op, completer) = Op::<usize>::pending();
    let drives = {
        let reactor = reactor.clone();
        thread::spawn(move || reactor.block_on(op))
    };
    let is_asleep = || reactor.hold(|core| core.sleeping.is_some());
    let until_asleep = || {
        while is_readable(reactor, Duration::ZERO) || !is_asleep() {
            thread::yield_now();
        }
    };
    until_asleep();
    let seat = reactor.shared().seat();
    let standby = seat.standby();
    assert!(standby.try_sit().is_none());
    for _ in 0..3 {
        reactor.shared().wake();
        until_asleep();
        assert_eq!(seat.waiting(), 1);
    }
    if let Some(waker) = completer.complete(Ok(7)) {
        waker.wake();
    }
    assert_eq!(drives.join().unwrap(), Ok(7));
    assert_eq!(seat.waiting(), 0);
}

/// As [`ReactorOptions::spin`] says of whoever drives.
#[test]
fn who_waits_and_may_spin_does_not_sleep() {
    let options = ReactorOptions {
        spin: LONG,
        ..ReactorOptions::default()
    };
    let world = World::with_reactors(1, DeviceOptions::rxe(), ChannelOptions::default(), &options);
    let reactor = &world.client;
    let (op, completer) = Op::<usize>::pending();
    let drives = {
        let reactor = reactor.clone();
        thread::spawn(move || reactor.block_on(op))
    };
    while reactor.shared().seat().try_sit().is_some() {
        thread::yield_now();
    }
    // Virtual time stands still.
    for _ in 0..100 {
        thread::sleep(Duration::from_micros(500));
        assert!(!reactor.hold(|core| core.sleeping.is_some()));
    }
    if let Some(waker) = completer.complete(Ok(7)) {
        waker.wake();
    }
    assert_eq!(drives.join().unwrap(), Ok(7));
    // Nor does it keep those waiting who are to drive instead.
    let (op, completer) = Op::<usize>::pending();
    let waits = {
        let reactor = reactor.clone();
        thread::spawn(move || reactor.block_on(op))
    };
    while reactor.shared().seat().try_sit().is_some() {
        thread::yield_now();
    }
    let reservation = reactor.shared().seat().reserve();
    reactor.shared().wake();
    drop(reservation.sit());
    drop(reservation);
    if let Some(waker) = completer.complete(Ok(8)) {
        waker.wake();
    }
    assert_eq!(waits.join().unwrap(), Ok(8));
}

/// A task that computes, and yields now and then, expects that messages move meanwhile.
#[test]
fn a_future_that_is_never_at_rest_does_not_keep_the_reactor_from_its_work() {
    let world = World::roce();
    let mut connecting = world
        .client
        .connect(SocketAddr::new(SERVER, PORT), ChannelOptions::default());
    let mut polls = 0;
    let connected = world.client.block_on(std::future::poll_fn(|cx| {
        world.network.advance(Duration::from_micros(10));
        world.server.poll();
        cx.waker().wake_by_ref();
        polls += 1;
        match connecting.try_take() {
            None if polls < 10_000 => Poll::Pending,
            connected => Poll::Ready(connected),
        }
    }));
    assert!(matches!(connected, Some(Ok(_))), "{connected:?}");
}

/// Both would sleep on the reactor's descriptor, and one take the wake-up that is for the other. A timer that is left over
/// would help some seconds later.
#[cfg(feature = "iwarp")]
#[test]
fn a_shutdown_ends_with_the_last_connection_while_another_thread_drives() {
    use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};
    use std::time::Instant;

    /// Thousands of times what it takes.
    const SOON: Duration = Duration::from_secs(5);

    for _ in 0..50 {
        let reactor = || {
            let provider = IwarpProvider::new(IwarpConfig::default()).unwrap();
            Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap()
        };
        let (server, client) = (reactor(), reactor());
        let start = Instant::now();
        let until = |done: &mut dyn FnMut() -> bool| {
            while !done() {
                server.poll();
                assert!(start.elapsed() < SOON, "it waits for nothing");
            }
        };
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = server
            .listen(&[loopback], ChannelOptions::default())
            .unwrap();
        let to = listener.local_addresses()[0];
        let mut connecting = client.connect(to, ChannelOptions::default());
        let mut connected = None;
        until(&mut || {
            client.poll();
            connected = connecting.try_take();
            connected.is_some()
        });
        let _connected = connected.unwrap().unwrap();

        let (op, completer) = Op::<usize>::pending();
        let drives = {
            let client = client.clone();
            thread::spawn(move || client.block_on(op))
        };
        let is_asleep = || client.hold(|core| core.sleeping.is_some());
        while !is_asleep() {
            thread::yield_now();
        }
        let (sender, ended) = mpsc::channel();
        let other = client.clone();
        thread::spawn(move || {
            other.shutdown(LONG);
            sender.send(()).unwrap();
        });
        // It waits for the server's side of the end then, most likely.
        while !client.is_stopping() || !is_asleep() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(2));
        until(&mut || ended.try_recv().is_ok());
        if let Some(waker) = completer.complete(Ok(7)) {
            waker.wake();
        }
        assert_eq!(drives.join().unwrap(), Ok(7));
    }
}
