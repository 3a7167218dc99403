//! Transport tests, written once for all providers: a [`Bed`] says where they run.

pub(crate) mod direct;
pub(crate) mod forged;
pub(crate) mod guarded;
pub(crate) mod memory;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::{
    Channel, ChannelOptions, DirectListener, Reactor, ReactorGroup, ReactorOptions,
};
use smbdirect::rdma::{Provider, RdmaError};
use smbdirect::transport::{
    ApiMisuse, Close, DisconnectReason, Error, Listener, ListenerExt, OutMessage, Transport,
    TransportExt, TrySendError,
};

/// Nothing takes this long, even on an emulated machine under load.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Where the tests run.
pub(crate) struct Bed {
    /// Makes a provider.
    pub(crate) provider: fn() -> Result<Box<dyn Provider>, RdmaError>,
    /// The server's address.
    pub(crate) server: IpAddr,
    /// Reactors of the server and of the client, each.
    pub(crate) reactors: usize,
    /// Lets the reactors be driven until they are shut down.
    pub(crate) drive: fn(&ReactorGroup),
    /// Divides the amount of work, for slow machines.
    pub(crate) slow: usize,
}

/// Reactors of a server and of a client.
pub(crate) struct World {
    pub(crate) server: ReactorGroup,
    pub(crate) client: ReactorGroup,
    pub(crate) listener: DirectListener,
    pub(crate) address: SocketAddr,
}

impl Bed {
    pub(crate) fn world(&self, options: ChannelOptions) -> World {
        let reactor = |_| {
            let provider = (self.provider)().expect("a provider");
            Reactor::new(provider, ReactorOptions::default()).expect("a reactor")
        };
        let group = || {
            let reactors = (0..self.reactors).map(reactor).collect();
            let group = ReactorGroup::new(reactors).expect("a group");
            (self.drive)(&group);
            group
        };
        let (server, client) = (group(), group());
        let listener = server
            .listen(&[SocketAddr::new(self.server, 0)], options)
            .expect("a listener");
        let address = listener.local_addresses()[0];
        World {
            server,
            client,
            listener,
            address,
        }
    }
}

impl World {
    pub(crate) fn connect(&self, options: ChannelOptions) -> (Channel, Arc<dyn Transport>) {
        let channel = self.client.connect(self.address, options);
        let accepted = self
            .listener
            .accept_blocking(Some(LONG))
            .expect("an accepted channel");
        (channel.wait().expect("a channel"), accepted)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.listener.close();
        self.client.shutdown(Duration::from_secs(5));
        self.server.shutdown(Duration::from_secs(5));
    }
}

/// A message's bytes are a function of seed, connection and sequence number.
pub(crate) fn payload(seed: u64, connection: u64, sequence: u64, len: usize) -> Vec<u8> {
    let mut state =
        seed ^ connection.rotate_left(32) ^ sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// It becomes so in reasonable time.
pub(crate) fn eventually(what: &str, so: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Echoes until the peer closes in order. Returns how many messages there were.
fn echo(channel: &dyn Transport) -> Result<u64, Error> {
    let mut count = 0;
    while let Some(message) = channel.recv_blocking(Some(LONG))? {
        let bytes = message.into_bytes();
        loop {
            match channel.start_send(OutMessage::Bytes(bytes.clone())) {
                Ok(()) => break,
                Err(TrySendError::Full) => wait_ready(channel)?,
                Err(error) => return Err(error.into()),
            }
        }
        count += 1;
    }
    Ok(count)
}

fn wait_ready(channel: &dyn Transport) -> Result<(), Error> {
    // Room comes as messages leave; a blocking wait of the same kind as the extension trait's.
    let deadline = Instant::now() + LONG;
    let waker = Waker::noop();
    let mut cx = Context::from_waker(waker);
    loop {
        if let Poll::Ready(result) = channel.poll_ready(&mut cx) {
            return result;
        }
        assert!(Instant::now() < deadline, "no room in the send queue");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Messages of many sizes, many in flight, on several connections: every byte and the order are right.
pub(crate) fn echo_many(bed: &Bed, options: &ChannelOptions) {
    const IN_FLIGHT: usize = 64;
    let sizes = [
        1,
        23,
        24,
        1339,
        1340,
        1341,
        4096,
        65_536,
        131_072,
        173_910,
        1 << 20,
    ];
    let world = bed.world(options.clone());
    thread::scope(|scope| {
        for connection in 0..8 / (bed.slow as u64).min(2) {
            let (client, server) = world.connect(options.clone());
            let echoed = scope.spawn(move || echo(&*server).expect("an orderly end"));
            let slow = bed.slow;
            scope.spawn(move || {
                let limit = client.limits().max_send as usize;
                let lens: Vec<usize> = sizes
                    .iter()
                    .filter(|len| **len <= limit)
                    .flat_map(|len| {
                        let count = ((2 << 20) / slow / len).clamp(3, IN_FLIGHT * 2 / slow.min(2));
                        std::iter::repeat_n(*len, count)
                    })
                    .collect();
                let client = &client;
                let sent = &lens;
                thread::scope(|both| {
                    let (token, window) = std::sync::mpsc::sync_channel::<()>(IN_FLIGHT);
                    both.spawn(move || {
                        for (sequence, len) in sent.iter().enumerate() {
                            token.send(()).expect("the receiver lives");
                            let message = payload(7, connection, sequence as u64, *len);
                            client.send_blocking(&message, Some(LONG)).expect("sent");
                        }
                    });
                    for (sequence, len) in lens.iter().enumerate() {
                        let message = client
                            .recv_blocking(Some(LONG))
                            .expect("no failure")
                            .expect("a message before the end");
                        assert!(
                            message[..] == payload(7, connection, sequence as u64, *len)[..],
                            "message {sequence} of {len} bytes on connection {connection}"
                        );
                        window.recv().expect("the sender lives");
                    }
                });
                client.close(Close::Graceful(LONG));
                assert_eq!(
                    client.closed_blocking(Some(LONG)),
                    Some(DisconnectReason::Local)
                );
                let stats = client.stats();
                assert_eq!(stats.messages_sent, lens.len() as u64);
                assert_eq!(stats.messages_received, lens.len() as u64);
                assert_eq!(stats.bytes_sent, stats.bytes_received);
                assert_eq!(echoed.join().expect("the echo"), lens.len() as u64);
            });
        }
    });
}

/// What was accepted before a graceful close arrives, and then the peer sees the end.
pub(crate) fn graceful_close_delivers_everything(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    let messages: Vec<Vec<u8>> = (0..20).map(|n| payload(1, 0, n, 10_000)).collect();
    for message in &messages {
        client.send_blocking(message, Some(LONG)).unwrap();
    }
    client.close(Close::Graceful(LONG));
    assert_eq!(
        client.start_send((&[1u8]).into()),
        Err(TrySendError::Closed(DisconnectReason::Local))
    );
    for message in &messages {
        assert_eq!(
            &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
            &message[..]
        );
    }
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
    assert_eq!(
        server.closed_blocking(Some(LONG)),
        Some(DisconnectReason::Peer)
    );
    assert_eq!(
        client.closed_blocking(Some(LONG)),
        Some(DisconnectReason::Local)
    );
}

/// Dropping a channel sends what was accepted and closes.
pub(crate) fn dropping_a_channel_closes_it(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    client.send_blocking(b"the last words", Some(LONG)).unwrap();
    drop(client);
    assert_eq!(
        &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
        b"the last words"
    );
    assert_eq!(server.recv_blocking(Some(LONG)), Ok(None));
}

/// An abort ends both sides.
pub(crate) fn abort_ends_both_sides(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    client.close(Close::Abort);
    assert_eq!(
        client.closed_blocking(Some(LONG)),
        Some(DisconnectReason::Local)
    );
    assert!(server.closed_blocking(Some(LONG)).is_some());
    assert_eq!(
        client.recv_blocking(Some(LONG)),
        Err(Error::Closed(DisconnectReason::Local))
    );
}

/// The caller's mistakes are refused before anything is sent, and the connection lives on.
pub(crate) fn bad_messages_are_refused(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    assert_eq!(
        client.start_send((&[0u8; 0]).into()),
        Err(ApiMisuse::EmptyMessage.into())
    );
    let max = client.limits().max_send;
    let large = vec![0; max as usize + 1];
    assert_eq!(
        client.start_send((&large).into()),
        Err(ApiMisuse::MessageTooLarge { len: max + 1, max }.into())
    );
    client.send_blocking(&large[1..], Some(LONG)).unwrap();
    let message = server.recv_blocking(Some(LONG)).unwrap().unwrap();
    assert_eq!(message.len() as u64, max);
}

/// Nobody listens: the error says so.
pub(crate) fn connecting_to_nobody_fails(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let nobody = SocketAddr::new(world.address.ip(), 9);
    let error = world
        .client
        .connect(nobody, ChannelOptions::default())
        .wait()
        .unwrap_err();
    assert!(matches!(error, Error::Rdma(_)), "{error}");
    // The reactor is as good as new.
    let _ = world.connect(ChannelOptions::default());
}

/// Idle connections exchange probes and answers only, and live.
pub(crate) fn idle_connections_exchange_probes_only(bed: &Bed) {
    let mut options = ChannelOptions::default();
    options.protocol.keepalive_interval = Duration::from_millis(300);
    let world = bed.world(options.clone());
    let (client, server) = world.connect(options);
    client.send_blocking(b"x", Some(LONG)).unwrap();
    server.recv_blocking(Some(LONG)).unwrap().unwrap();
    let (before, before_server) = (client.stats(), server.stats());
    thread::sleep(Duration::from_millis(1500));
    let (after, after_server) = (client.stats(), server.stats());
    let sends = after.sends - before.sends;
    let probes = after.keepalives_sent - before.keepalives_sent + after.keepalives_answered
        - before.keepalives_answered;
    assert!(probes >= 2, "{after:?}");
    // At most one message besides them may return credits.
    assert!(
        sends <= probes + 1,
        "{sends} sends for {probes} probes and answers"
    );
    assert!(after_server.sends - before_server.sends <= sends + 2);
    client.send_blocking(b"y", Some(LONG)).unwrap();
    assert_eq!(
        &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
        b"y"
    );
}

/// An application that takes nothing holds up its peer's messages, never the connection.
pub(crate) fn a_slow_application_loses_nothing(bed: &Bed) {
    let mut options = ChannelOptions::default();
    options.receive_queue_bytes = 100_000;
    options.protocol.keepalive_interval = Duration::from_millis(500);
    let world = bed.world(options.clone());
    let (client, server) = world.connect(options);
    let messages: Vec<Vec<u8>> = (0..60).map(|n| payload(2, 0, n, 20_000)).collect();
    thread::scope(|scope| {
        let (client, messages) = (&client, &messages);
        scope.spawn(move || {
            for message in messages {
                client.send_blocking(message, Some(LONG)).unwrap();
            }
        });
        thread::sleep(Duration::from_millis(1500));
        for message in messages {
            assert_eq!(
                &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
                &message[..]
            );
        }
    });
}

/// Borrowed pieces, owned bytes and registered buffers arrive alike.
pub(crate) fn every_kind_of_message_arrives(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let (client, server) = world.connect(ChannelOptions::default());
    for len in [5usize, 1340, 5000, 100_000] {
        let whole = payload(3, 0, len as u64, len);
        let (head, tail) = whole.split_at(len / 3);
        let slices = [std::io::IoSlice::new(head), std::io::IoSlice::new(tail)];
        client.start_send(OutMessage::Slices(&slices)).unwrap();
        client
            .start_send(OutMessage::Bytes(whole.clone().into()))
            .unwrap();
        let mut gather = smbdirect::transport::Gather::new();
        for part in whole.chunks(len.div_ceil(7)) {
            let mut buf = client.allocate(part.len()).wait().unwrap();
            buf.copy_from_slice(part);
            gather.push(buf);
        }
        client.start_send(OutMessage::Gather(gather)).unwrap();
        for _ in 0..3 {
            assert_eq!(
                &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
                &whole[..]
            );
        }
    }
}

/// Many connections come and go; nothing is left.
pub(crate) fn connections_come_and_go(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    for _ in 0..3 {
        let channels: Vec<_> = (0..40 / bed.slow)
            .map(|_| world.connect(ChannelOptions::default()))
            .collect();
        for group in [&world.client, &world.server] {
            let counts: Vec<_> = group.reactors().iter().map(Reactor::connections).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            assert!(least.unwrap() + 1 >= *most.unwrap(), "{counts:?}");
        }
        for (client, server) in &channels {
            client.send_blocking(b"hello", Some(LONG)).unwrap();
            assert_eq!(
                &server.recv_blocking(Some(LONG)).unwrap().unwrap()[..],
                b"hello"
            );
        }
        drop(channels);
        let deadline = Instant::now() + LONG;
        while world.client.connections() + world.server.connections() > 0 {
            assert!(Instant::now() < deadline, "connections are left");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A reactor that nobody drives works for one who waits on it.
pub(crate) fn the_caller_may_drive(bed: &Bed) {
    let world = bed.world(ChannelOptions::default());
    let provider = (bed.provider)().unwrap();
    let reactor = Reactor::new(provider, ReactorOptions::default()).unwrap();
    let channel = reactor
        .block_on(reactor.connect(world.address, ChannelOptions::default()))
        .unwrap();
    let server = world.listener.accept_blocking(Some(LONG)).unwrap();
    let answers = thread::spawn(move || {
        while let Some(request) = server.recv_blocking(Some(LONG)).unwrap() {
            server.send_blocking(&request, Some(LONG)).unwrap();
        }
    });
    // A message at a time, or more than that in one wait.
    let answer = reactor.block_on(async {
        channel.send(b"first").await.unwrap();
        channel.recv().await
    });
    assert_eq!(&answer.unwrap().unwrap()[..], b"first");
    channel.start_send(b"second".into()).unwrap();
    let answer = reactor.block_on(channel.recv());
    assert_eq!(&answer.unwrap().unwrap()[..], b"second");
    // Another thread wakes this one, which sleeps for the reactor.
    let beside = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut waker = None;
        reactor.block_on(poll_fn(|cx| {
            let beside = &beside;
            waker.get_or_insert_with(|| {
                let waker = cx.waker().clone();
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    beside.store(true, Ordering::SeqCst);
                    waker.wake();
                })
            });
            match beside.load(Ordering::SeqCst) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        }));
    });
    // The loop of the caller's own.
    channel.start_send(b"third".into()).unwrap();
    let deadline = Instant::now() + LONG;
    let mut cx = Context::from_waker(Waker::noop());
    let answer = loop {
        reactor.poll();
        if let Poll::Ready(message) = channel.poll_recv(&mut cx) {
            break message.unwrap().unwrap();
        }
        assert!(Instant::now() < deadline);
    };
    assert_eq!(&answer[..], b"third");
    // It takes as long as there are connections, and no longer.
    let begin = Instant::now();
    reactor.shutdown(LONG);
    assert!(begin.elapsed() < LONG / 2, "nothing is left to wait for");
    answers.join().unwrap();
}

/// Makes one `#[test]` per test of the suite.
#[macro_export]
macro_rules! suite {
    // What moves so much that a machine should not do it several times at once.
    (@bulk $bed:expr) => {
        $crate::suite!(@direct $bed, probes_are_answered_while_much_is_moved);
    };
    ($bed:expr) => {
        $crate::suite!(@ $bed, graceful_close_delivers_everything, dropping_a_channel_closes_it,
            abort_ends_both_sides, bad_messages_are_refused, connecting_to_nobody_fails,
            idle_connections_exchange_probes_only, a_slow_application_loses_nothing,
            every_kind_of_message_arrives, connections_come_and_go, the_caller_may_drive);
        $crate::suite!(@direct $bed, memory_is_written_and_read, a_response_invalidates_its_token,
            several_buffers_are_written_and_read, transfers_go_beside_messages, many_tiny_descriptors_complete,
            memory_comes_back_from_a_dead_connection);
        $crate::suite!(@forged $bed, bad_descriptors_post_nothing, forged_descriptors_are_not_written_to,
            forged_descriptors_are_not_read_from);
        $crate::suite!(@memory $bed, brought_memory_is_moved, a_mapping_serves_many_connections,
            empty_memory_is_not_registered);

        #[test]
        fn echo_many() {
            $crate::suite::echo_many(&$bed, &smbdirect::engine::ChannelOptions::default());
        }

        #[test]
        fn echo_many_with_few_credits() {
            let mut options = smbdirect::engine::ChannelOptions::default();
            options.protocol.receive_credit_max = 2;
            options.protocol.send_credit_target = 2;
            $crate::suite::echo_many(&$bed, &options);
        }
    };
    (@direct $bed:expr, $($name:ident),*) => { $crate::suite!(@@ $bed, direct, $($name),*); };
    (@forged $bed:expr, $($name:ident),*) => { $crate::suite!(@@ $bed, forged, $($name),*); };
    (@memory $bed:expr, $($name:ident),*) => { $crate::suite!(@@ $bed, memory, $($name),*); };
    (@@ $bed:expr, $module:ident, $($name:ident),*) => {
        $(#[test]
        fn $name() {
            $crate::suite::$module::$name(&$bed);
        })*
    };
    (@ $bed:expr, $($name:ident),*) => {
        $(#[test]
        fn $name() {
            $crate::suite::$name(&$bed);
        })*
    };
}
