//! One of two guests on a link that is cut and restored, the other of which is killed in the end: `pair a` or `pair b`
//! in the guests, `xtask/guest/pairs/loss.sh` on the host beside them. Without arguments there is no other guest, and
//! nothing to test.
//!
//! Each guest serves the other and is its client, with 32 transfers in flight both ways.
//!
//! 1. The link is cut for 5 s: everything goes on, and every byte is right.
//! 2. The link is cut for good: each connection ends with one clear reason, within the time that the keepalive or the
//!    device's retries give, and everything that it had is released. The link comes back: so do connections.
//! 3. The guest `a` is killed: the same for `b`, which then takes a connection of its own.

mod load;

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use load::{LONG, Load, Outcome, TRANSFERS};
use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
use smbdirect::proto;
use smbdirect::rdma::{self, CompletionStatus, ProviderKind, RdmaError};
use smbdirect::transport::{
    Close, DisconnectReason, Error, Listener, ListenerExt, Transport, TransportExt,
};

/// Bytes of each transfer.
const LEN: usize = 128 << 10;
/// A probe after this silence, and the time for its answer.
const PROBE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(3));
/// The same where the device is to tell first: probes are retried as well, which ends after 7.5 s.
const RETRIED: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));
/// The same where nothing must end.
const PATIENT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(60));
/// What a machine that is emulated on a busy host may need beyond that.
const SLACK: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let Some(me) = env::args().nth(1).filter(|name| name == "a" || name == "b") else {
        println!("not run: this is no guest of a pair (pair a|b)");
        return ExitCode::SUCCESS;
    };
    // What RUST_LOG asks for; the guests take it over from the host.
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    // Whichever thread fails, the other guest and the host need not wait for the rest.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::exit(101);
    }));
    let guest = Guest::new(&me);
    guest.a_short_cut_is_survived();
    guest.a_long_cut_ends_connections();
    guest.a_killed_peer_ends_connections();
    ExitCode::SUCCESS
}

struct Guest {
    me: String,
    peer: String,
    iwarp: bool,
    shared: PathBuf,
    local: SocketAddr,
    remote: SocketAddr,
    reactor: Reactor,
    load: Load,
}

impl Guest {
    fn new(me: &str) -> Self {
        let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let port = variable("PORT").parse().expect("a port");
        let address = |name: &str| {
            let address: IpAddr = variable(name).parse().expect("an address");
            SocketAddr::new(address, port)
        };
        let provider = rdma::open(ProviderKind::Verbs).expect("a provider");
        let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
        reactor.spawn().expect("a thread");
        Self {
            me: me.to_owned(),
            peer: if me == "a" { "b" } else { "a" }.to_owned(),
            iwarp: variable("DEVICE") == "siw",
            shared: variable("SHARED").into(),
            local: address("LOCAL"),
            remote: address("REMOTE"),
            reactor,
            load: Load::new(LEN),
        }
    }

    fn a_short_cut_is_survived(&self) {
        let mut left = 3;
        let (ends, _) = self.run(
            "1",
            self.remote,
            PATIENT,
            "flag-restored-1",
            |restored, _| {
                left -= u32::from(restored);
                left > 0
            },
        );
        for end in &ends {
            assert_eq!((&end.outcome.error, end.outcome.cut_short), (&None, 0));
        }
        let [client, server] = ends.map(|end| end.outcome.rounds);
        println!(
            "{}: a cut of 5 s: {client} and {server} rounds of {TRANSFERS} transfers, all right",
            self.me
        );
    }

    fn a_long_cut_ends_connections(&self) {
        let before = resources();
        // RoCE retries and tells; iWARP has TCP, which goes on for many minutes: there the keepalive has to end it.
        let (probe, by): (_, &[By]) = if self.iwarp {
            (PROBE, &[By::Probe])
        } else {
            (RETRIED, &[By::Retries])
        };
        let run = self.run("2", self.remote, probe, "flag-cut-2", |_, _| true);
        self.judge("the link is cut", run, by);
        self.released(before);
        self.flag("ended-2");
        self.wait("flag-restored-2");
        self.goes_on("again", self.remote);
    }

    fn a_killed_peer_ends_connections(&self) {
        let before = resources();
        let run = self.run("3", self.remote, PROBE, "killed-a", |_, _| true);
        let by: &[By] = if self.iwarp {
            &[By::Probe]
        } else {
            // After 6 s or, if a transfer was under way, after 7.5 s.
            &[By::Probe, By::Retries]
        };
        self.judge("the peer is killed", run, by);
        self.released(before);
        // Nobody else is there.
        self.goes_on("alone", self.local);
    }

    /// A connection to `to`, and one from there, both busy until `go_on` says no, or until they end. It is asked before
    /// each round, and told whether the file `event` is there, and how many rounds there were. Also returns when that
    /// file was first seen.
    fn run(
        &self,
        phase: &str,
        to: SocketAddr,
        probe: (Duration, Duration),
        event: &str,
        mut go_on: impl FnMut(bool, u64) -> bool,
    ) -> ([Ended; 2], Option<Instant>) {
        let options = options(probe);
        let listener = self.reactor.listen(&[self.local], options.clone());
        let listener = listener.expect("a listener");
        if to == self.remote {
            self.meet(&format!("listens-{phase}"));
        }
        let seen = Mutex::new(None);
        let over = AtomicBool::new(false);
        let ends = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) && !self.shared.join(event).exists() {
                    thread::sleep(Duration::from_millis(50));
                }
                *seen.lock().unwrap() = Some(Instant::now());
            });
            let server = scope.spawn(|| {
                let channel = listener.accept_blocking(Some(LONG)).expect("a client");
                let outcome = self.load.serve(&*channel, |round| {
                    if round == 2 {
                        self.flag(&format!("busy-{phase}"));
                    }
                });
                Ended::of(&*channel, outcome)
            });
            let channel = self.reactor.connect(to, options).wait();
            let channel = channel.expect("a channel");
            let outcome = self.load.request(&channel, |round| {
                go_on(seen.lock().unwrap().is_some(), round)
            });
            if outcome.error.is_none() {
                channel.close(Close::Graceful(LONG));
            }
            let client = Ended::of(&channel, outcome);
            let server = server.join().expect("the server's thread");
            over.store(true, Ordering::Relaxed);
            [client, server]
        });
        listener.close();
        (ends, seen.into_inner().unwrap())
    }

    /// One clear reason, one of those that are expected, in time.
    fn judge(&self, what: &str, (ends, since): ([Ended; 2], Option<Instant>), by: &[By]) {
        let since = since.expect("the host has said that it happened");
        for (role, end) in ["client", "server"].into_iter().zip(&ends) {
            let took = end.at.saturating_duration_since(since);
            println!(
                "{}: {what}: {role} after {} rounds: \"{}\" within {:.1} s, {} transfers cut short",
                self.me,
                end.outcome.rounds,
                end.reason,
                took.as_secs_f32(),
                end.outcome.cut_short,
            );
            assert!(took < PROBE.0 + PROBE.1 + SLACK, "{took:?}");
            let found = match &end.reason {
                DisconnectReason::Protocol(reason) => {
                    let timeout = proto::Timeout::Keepalive;
                    (*reason == timeout.into()).then_some(By::Probe)
                }
                DisconnectReason::Rdma(RdmaError::Completion {
                    status: CompletionStatus::RetriesExceeded,
                    ..
                }) => Some(By::Retries),
                _ => None,
            };
            assert!(found.is_some_and(|found| by.contains(&found)), "{role}");
            match &end.outcome.error {
                Some(Error::Closed(reason)) => assert_eq!(*reason, end.reason, "{role}"),
                // The operation that failed says so itself.
                Some(Error::Rdma(RdmaError::Completion { .. })) => {}
                other => panic!("{role}: {other:?}"),
            }
        }
    }

    /// What the connections had is released, as the kernel counts.
    fn released(&self, before: [u32; 4]) {
        let end = Instant::now() + SLACK;
        while resources() != before {
            assert!(
                Instant::now() < end,
                "qp, mr, cm_id, pd: {before:?} before, {:?} after",
                resources()
            );
            thread::sleep(Duration::from_millis(100));
        }
        println!("{}: qp, mr, cm_id, pd as before: {before:?}", self.me);
    }

    /// New connections work.
    fn goes_on(&self, phase: &str, to: SocketAddr) {
        let (ends, _) = self.run(phase, to, PATIENT, "nothing", |_, rounds| rounds < 4);
        for end in &ends {
            assert_eq!(end.outcome.error, None);
        }
        let rounds = ends[1].outcome.rounds;
        println!("{}: a new connection: {rounds} rounds, all right", self.me);
    }

    /// Both guests come to this point.
    fn meet(&self, what: &str) {
        self.flag(what);
        self.wait(&format!("flag-{what}-{}", self.peer));
    }

    fn flag(&self, what: &str) {
        let name = format!("flag-{what}-{}", self.me);
        fs::write(self.shared.join(name), "").expect("a flag");
    }

    fn wait(&self, name: &str) {
        let end = Instant::now() + 2 * LONG;
        while !self.shared.join(name).exists() {
            assert!(Instant::now() < end, "waited in vain for {name}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Who finds that nobody is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Probe,
    Retries,
}

/// One end of a connection, when it is over.
struct Ended {
    outcome: Outcome,
    reason: DisconnectReason,
    at: Instant,
}

impl Ended {
    fn of(channel: &dyn Transport, outcome: Outcome) -> Self {
        let at = Instant::now();
        let reason = channel.closed_blocking(Some(LONG)).expect("its end");
        // It never changes.
        assert_eq!(channel.closed_blocking(Some(LONG)).as_ref(), Some(&reason));
        Self {
            outcome,
            reason,
            at,
        }
    }
}

fn options(probe: (Duration, Duration)) -> ChannelOptions {
    let mut options = ChannelOptions::default();
    (
        options.protocol.keepalive_interval,
        options.protocol.keepalive_timeout,
    ) = probe;
    options.protocol.acceptor_timeout = LONG;
    options
}

/// Queue pairs, regions, ids and domains of all devices, as the kernel counts.
fn resources() -> [u32; 4] {
    let output = Command::new("rdma").args(["resource", "show"]).output();
    let text = String::from_utf8(output.expect("iproute2").stdout).expect("text");
    let words: Vec<&str> = text.split_whitespace().collect();
    ["qp", "mr", "cm_id", "pd"].map(|kind| {
        (words.windows(2))
            .filter(|pair| pair[0] == kind)
            .map(|pair| pair[1].parse::<u32>().expect("a number"))
            .sum()
    })
}
