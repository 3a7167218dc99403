//! What only the simulated network does: time, faults, quirks, violations. The promises that all providers keep are
//! tested by the contract suite.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::*;
use crate::rdma::{
    Close, CompletionStatus, ConnId, ConnectParams, Event, IoBuf, ListenOptions, LossReason,
    Operation, Pieces, PostError, Provider, QpOptions, RdmaError, RdmaOperation, RemoteAccess,
    ResolveOptions, SendRequest, Slab, SlabOptions,
};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

/// Two connected ends.
struct Pair {
    network: Network,
    ends: [End; 2],
}

struct End {
    provider: SimProvider,
    conn: ConnId,
    slab: Slab,
    events: VecDeque<Event>,
}

impl End {
    fn poll(&mut self, network: &Network) {
        self.provider
            .poll(network.now(), &mut self.events, usize::MAX);
    }

    fn receives(&mut self, count: usize) {
        let mut buffers: VecDeque<IoBuf> = (0..count).filter_map(|_| self.slab.take()).collect();
        self.provider.post_receive(self.conn, &mut buffers).unwrap();
    }

    fn request(&self, cookie: u64) -> SendRequest {
        SendRequest {
            cookie,
            signalled: true,
            operation: Operation::Send {
                message: Pieces::one(self.slab.take().unwrap()),
                invalidate: None,
                solicited: false,
            },
        }
    }

    fn send(&mut self, cookies: impl IntoIterator<Item = u64>) -> Result<(), PostError> {
        let mut chain = cookies.into_iter().map(|c| self.request(c)).collect();
        self.provider.post_send(self.conn, &mut chain)
    }

    /// Cookies and states of what is completed, in order.
    fn completed(&self) -> Vec<(u64, CompletionStatus)> {
        let completed = |e: &Event| match e {
            Event::Completed {
                request, status, ..
            } => Some((request.cookie, *status)),
            _ => None,
        };
        self.events.iter().filter_map(completed).collect()
    }

    fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|e| which(e)).count()
    }

    fn loss(&self) -> Option<&LossReason> {
        self.events.iter().find_map(|e| match e {
            Event::Disconnected { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

impl Pair {
    fn new(seed: u64, options: NetworkOptions, devices: [DeviceOptions; 2]) -> Self {
        let network = Network::new(seed, options);
        let [ours, theirs] = devices;
        let mut client = network.provider_with(CLIENT, ours);
        let mut server = network.provider_with(SERVER, theirs);
        let now = network.now();
        let listener = server
            .listen((SERVER, 445).into(), &ListenOptions::default())
            .unwrap();
        assert_eq!(
            server.listener_address(listener),
            Some((SERVER, 445).into())
        );
        let conn = client
            .resolve((SERVER, 445).into(), &ResolveOptions::default(), now)
            .unwrap();
        network.advance(Duration::from_millis(1));
        let mut client = ready(client, conn);
        client
            .provider
            .connect(conn, &ConnectParams::default(), now)
            .unwrap();
        network.advance(Duration::from_millis(1));
        let mut events = VecDeque::new();
        server.poll(now, &mut events, 1);
        let Some(Event::Incoming { incoming, .. }) = events.pop_front() else {
            panic!("no connection request");
        };
        let conn = server.adopt(incoming, now).unwrap();
        let mut server = ready(server, conn);
        server
            .provider
            .accept(conn, &ConnectParams::default(), now)
            .unwrap();
        network.advance(Duration::from_millis(1));
        client.poll(&network);
        server.poll(&network);
        Self {
            network,
            ends: [client, server],
        }
    }

    fn plain() -> Self {
        Self::new(7, NetworkOptions::default(), Default::default())
    }

    fn pass(&mut self, time: Duration) {
        self.network.advance(time);
        for end in &mut self.ends {
            end.poll(&self.network);
        }
    }
}

/// An end with a queue pair and four receives.
fn ready(mut provider: SimProvider, conn: ConnId) -> End {
    let domain = provider.domain(conn).unwrap();
    let slab = Slab::new(&domain, 256, 64, SlabOptions::default()).unwrap();
    provider.create_qp(conn, &QpOptions::default()).unwrap();
    let mut end = End {
        provider,
        conn,
        slab,
        events: VecDeque::new(),
    };
    end.receives(4);
    end
}

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn received(event: &Event) -> bool {
    matches!(event, Event::Received { .. })
}

fn flushed(event: &Event) -> bool {
    matches!(event, Event::Flushed { .. })
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let run = |seed| {
        let mut pair = Pair::new(seed, NetworkOptions::default(), Default::default());
        for cookie in 0..4 {
            pair.ends[0].send([cookie]).unwrap();
        }
        let mut times = Vec::new();
        while pair.network.step() {
            times.push(pair.network.elapsed());
        }
        times
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn bandwidth_and_latency_take_virtual_time() {
    let options = NetworkOptions {
        latency: SECOND,
        jitter: Duration::ZERO,
        bandwidth: Some(256),
        ..NetworkOptions::default()
    };
    let network = Network::new(0, options);
    let start = network.now();
    let mut client = network.provider(CLIENT);
    let _server = network.provider(SERVER);
    let conn = client
        .resolve((SERVER, 1).into(), &ResolveOptions::default(), start)
        .unwrap();
    assert_eq!(client.next_deadline(), Some(start + SECOND));
    assert!(network.step() && network.elapsed() >= SECOND);
    network.advance(MILLI);
    let mut client = ready(client, conn);
    client
        .provider
        .connect(conn, &ConnectParams::default(), start)
        .unwrap();
    network.advance(3 * SECOND);
    client.poll(&network);
    assert_eq!(
        client.loss(),
        Some(&LossReason::Failed(RdmaError::Refused)),
        "one second there, one back"
    );
}

#[test]
fn a_send_without_a_receive_is_a_violation() {
    let mut pair = Pair::plain();
    pair.ends[0].send(0..5).unwrap();
    pair.pass(MILLI);
    let violations = pair.network.take_violations();
    assert_eq!(violations.len(), 1);
    assert_eq!(
        (violations[0].host, violations[0].kind),
        (SERVER, ViolationKind::SendWithoutReceive)
    );
    assert_eq!(
        pair.ends[0].completed()[4],
        (4, CompletionStatus::ReceiverNotReady)
    );
    assert_eq!(pair.ends[1].count(received), 4);
}

#[test]
#[should_panic(expected = "SendWithoutReceive")]
fn violations_fail_the_test() {
    let mut pair = Pair::plain();
    pair.ends[1].send(0..5).unwrap();
    pair.pass(MILLI);
}

#[test]
fn a_post_fails_at_the_given_request_and_keeps_the_rest() {
    let mut pair = Pair::plain();
    pair.network
        .fail_post(CLIENT, Posted::Send, 2, PostError::Full);
    let end = &mut pair.ends[0];
    let mut chain: VecDeque<SendRequest> = (0..4).map(|c| end.request(c)).collect();
    let posted = end.provider.post_send(end.conn, &mut chain);
    assert_eq!((posted, chain.len()), (Err(PostError::Full), 2));
    end.provider.post_send(end.conn, &mut chain).unwrap();
    pair.pass(MILLI);
    let cookies: Vec<u64> = pair.ends[0].completed().iter().map(|c| c.0).collect();
    assert_eq!(cookies, [0, 1, 2, 3]);
}

#[test]
fn a_mended_link_delivers_what_was_sent_meanwhile() {
    let mut pair = Pair::plain();
    pair.network.set_link(CLIENT, SERVER, false);
    pair.ends[0].send(0..3).unwrap();
    pair.pass(SECOND);
    assert_eq!(pair.ends[1].count(received), 0);
    pair.network.set_link(CLIENT, SERVER, true);
    pair.pass(SECOND);
    assert_eq!(pair.ends[1].count(received), 3);
    assert_eq!(pair.ends[0].completed().len(), 3);
}

#[test]
fn a_silent_peer_is_noticed_by_whoever_waits_for_it() {
    let mut pair = Pair::plain();
    pair.network.silence(SERVER);
    pair.ends[0].send([0]).unwrap();
    pair.pass(10 * SECOND);
    let status = CompletionStatus::RetriesExceeded;
    assert_eq!(pair.ends[0].completed(), [(0, status)]);
    let operation = RdmaOperation::Send;
    let reason = RdmaError::Completion { operation, status };
    assert_eq!(pair.ends[0].loss(), Some(&LossReason::Failed(reason)));
    assert_eq!(pair.ends[1].loss(), None, "it has nothing to wait for");
}

#[test]
fn soft_iwarp_never_notices_a_silent_peer() {
    let siw = DeviceOptions::siw;
    let mut pair = Pair::new(3, NetworkOptions::default(), [siw(), siw()]);
    pair.network.silence(SERVER);
    pair.ends[0].send([0]).unwrap();
    pair.pass(600 * SECOND);
    assert_eq!(
        pair.ends[0].completed(),
        [(0, CompletionStatus::Success)],
        "over when it has left"
    );
    assert_eq!(pair.ends[0].loss(), None);
    assert_eq!(pair.network.next_event(), None);
}

#[test]
fn a_cut_ends_both_sides_with_an_event() {
    let mut pair = Pair::plain();
    pair.network.cut(SERVER, CLIENT);
    pair.pass(MILLI);
    for end in &pair.ends {
        let lost = LossReason::Failed(RdmaError::ConnectionLost);
        assert_eq!((end.count(flushed), end.loss()), (4, Some(&lost)));
        assert_eq!(end.slab.count() - end.slab.free(), 4, "events hold them");
    }
}

#[test]
fn a_removed_device_takes_listeners_and_connections_along() {
    let mut pair = Pair::plain();
    pair.network.remove_device(SERVER);
    pair.pass(MILLI);
    let server = &pair.ends[1];
    let failed = |e: &Event| matches!(e, Event::ListenerFailed { .. });
    assert_eq!((server.count(failed), server.count(flushed)), (1, 4));
    assert_eq!(
        server.loss(),
        Some(&LossReason::Failed(RdmaError::DeviceRemoved))
    );
    assert_eq!(pair.ends[0].loss(), None);
}

#[test]
fn a_receive_may_come_before_established() {
    let mut late = DeviceOptions::rxe();
    late.quirks.established_delay = 5 * SECOND;
    let mut pair = Pair::new(5, NetworkOptions::default(), [DeviceOptions::rxe(), late]);
    let established = |e: &Event| matches!(e, Event::Established { .. });
    pair.ends[0].send([0]).unwrap();
    pair.pass(SECOND);
    let server = &pair.ends[1];
    assert_eq!((server.count(received), server.count(established)), (1, 0));
    pair.pass(5 * SECOND);
    assert_eq!(pair.ends[1].count(established), 1);
}

#[test]
fn a_slow_flush_gives_everything_back_before_the_end() {
    let mut slow = DeviceOptions::rxe();
    slow.quirks.flush_delay = 5 * SECOND;
    let mut pair = Pair::new(5, NetworkOptions::default(), [slow.clone(), slow]);
    pair.ends[0].send([0]).unwrap();
    let (conn, now) = (pair.ends[0].conn, pair.network.now());
    pair.ends[0].provider.close(conn, Close::Abort, now);
    pair.pass(SECOND);
    assert_eq!(pair.ends[0].count(flushed), 0);
    assert_eq!(pair.ends[0].send([1]), Err(PostError::Closed));
    pair.pass(5 * SECOND);
    assert_eq!(
        pair.ends[0].completed(),
        [(0, CompletionStatus::Flushed)],
        "nobody waited for its acknowledgement"
    );
    assert!(matches!(
        pair.ends[0].events.back(),
        Some(Event::Disconnected { .. })
    ));
    assert_eq!(pair.ends[0].count(flushed), 4);
}

#[test]
fn a_dropped_provider_ends_its_connections() {
    let Pair { network, ends } = Pair::plain();
    let [client, mut server] = ends;
    drop(client);
    network.advance(MILLI);
    server.poll(&network);
    assert_eq!(server.loss(), Some(&LossReason::Peer));
}

#[test]
fn a_send_with_invalidate_kills_a_device_that_lacks_it() {
    let bnxt = DeviceOptions::bnxt;
    let mut pair = Pair::new(5, NetworkOptions::default(), [bnxt(), bnxt()]);
    let end = &mut pair.ends[0];
    let mut request = end.request(9);
    if let Operation::Send { invalidate, .. } = &mut request.operation {
        *invalidate = Some(1);
    }
    end.provider
        .post_send(end.conn, &mut [request].into())
        .unwrap();
    pair.pass(MILLI);
    assert_eq!(pair.ends[0].completed(), [(9, CompletionStatus::Other(2))]);
    assert_eq!(pair.ends[1].loss(), Some(&LossReason::Peer));
}

#[test]
fn invalidating_what_the_peer_invalidated_panics_soft_roce() {
    let rxe = DeviceOptions::rxe;
    let mut pair = Pair::new(5, NetworkOptions::default(), [rxe(), rxe()]);
    let [client, server] = &mut pair.ends;
    let memory = client.slab.take().unwrap().pin();
    let window = (client.provider)
        .open_window(client.conn, memory, RemoteAccess::Write, &mut None)
        .unwrap();
    let request = |operation| SendRequest {
        cookie: 0,
        signalled: true,
        operation,
    };
    let bind = request(Operation::Bind { window: window.id });
    client
        .provider
        .post_send(client.conn, &mut [bind].into())
        .unwrap();
    let mut answer = server.request(0);
    if let Operation::Send { invalidate, .. } = &mut answer.operation {
        *invalidate = Some(window.key);
    }
    server
        .provider
        .post_send(server.conn, &mut [answer].into())
        .unwrap();
    pair.pass(MILLI);
    assert!(pair.network.violations().is_empty());
    let client = &mut pair.ends[0];
    let invalidate = request(Operation::Invalidate { window: window.id });
    client
        .provider
        .post_send(client.conn, &mut [invalidate].into())
        .unwrap();
    pair.pass(MILLI);
    let violations = pair.network.take_violations();
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].kind, ViolationKind::FreeWindowInvalidated);
    assert!(pair.ends[0].loss().is_some());
}

#[test]
fn connecting_without_a_receive_is_a_violation() {
    let network = Network::new(0, NetworkOptions::default());
    let now = network.now();
    let mut client = network.provider(CLIENT);
    let _server = network.provider(SERVER);
    let conn = client
        .resolve((SERVER, 1).into(), &ResolveOptions::default(), now)
        .unwrap();
    network.advance(MILLI);
    client.create_qp(conn, &QpOptions::default()).unwrap();
    client
        .connect(conn, &ConnectParams::default(), now)
        .unwrap();
    let violations = network.take_violations();
    assert_eq!(violations[0].kind, ViolationKind::NoReceiveAtConnect);
}

#[test]
fn events_of_several_connections_are_reordered_those_of_one_never() {
    let options = NetworkOptions {
        report_jitter: SECOND,
        ..NetworkOptions::default()
    };
    let network = Network::new(9, options);
    let now = network.now();
    let mut client = network.provider(CLIENT);
    let _server = network.provider(SERVER);
    let resolve = |client: &mut SimProvider| {
        client
            .resolve((SERVER, 1).into(), &ResolveOptions::default(), now)
            .unwrap()
    };
    let conns: Vec<ConnId> = (0..16).map(|_| resolve(&mut client)).collect();
    network.advance(MILLI);
    for conn in &conns {
        client.close(*conn, Close::Abort, now);
    }
    network.advance(60 * SECOND);
    let mut events = VecDeque::new();
    client.poll(now, &mut events, usize::MAX);
    let of = |conn: &ConnId| {
        let kinds = events.iter().filter_map(|e| match e {
            Event::Resolved { conn: c } if c == conn => Some("resolved"),
            Event::Disconnected { conn: c, .. } if c == conn => Some("gone"),
            _ => None,
        });
        kinds.collect::<Vec<_>>()
    };
    for conn in &conns {
        assert_eq!(of(conn), ["resolved", "gone"]);
    }
    let resolved = events.iter().filter_map(|e| match e {
        Event::Resolved { conn } => Some(*conn),
        _ => None,
    });
    assert_ne!(resolved.collect::<Vec<_>>(), conns);
}
