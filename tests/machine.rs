//! What the machine refuses: descriptors and memory. Errors name the cause and the remedy, nothing
//! spins, and everything goes on once there is enough again. One test only: the limit on
//! descriptors is the process's.
#![cfg(feature = "iwarp")]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use smbdirect::engine::{Channel, ChannelOptions, Reactor, ReactorOptions};
use smbdirect::rdma::iwarp::{IwarpConfig, IwarpProvider};
use smbdirect::rdma::{ProviderKind, RdmaError, open};
use smbdirect::transport::tcp::{Tcp, TcpListener, TcpOptions};
use smbdirect::transport::{Error, Listener, ListenerExt, Transport, TransportExt};

/// Nothing takes this long, even under load.
const LONG: Option<Duration> = Some(Duration::from_secs(40));

const LOOPBACK: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 0);

fn reactor() -> Reactor {
    let provider = open(ProviderKind::Iwarp).expect("the software RNIC");
    let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
    reactor.spawn().expect("a thread");
    reactor
}

/// A connection and both of its ends.
fn connect(from: &Reactor, listener: &dyn Listener) -> (Channel, Arc<dyn Transport>) {
    let attempt = from.connect(listener.local_addresses()[0], ChannelOptions::default());
    let server = listener.accept_blocking(LONG).expect("accepted");
    (attempt.wait().expect("connected"), server)
}

fn exchange(client: &dyn Transport, server: &dyn Transport) {
    client.send_blocking(b"are you there?", LONG).expect("sent");
    let message = server.recv_blocking(LONG).expect("no failure");
    assert_eq!(&message.expect("a message")[..], b"are you there?");
}

/// Opens files until there are no descriptors left.
fn hoard() -> Vec<File> {
    let used = std::fs::read_dir("/proc/self/fd").expect("a list").count() as u64;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(used + 50);
    setrlimit(Resource::Nofile, limit).expect("a lower limit");
    let files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!((1..=60).contains(&files.len()), "{} files", files.len());
    files
}

/// The processor time of the process so far, out of its counters.
fn processor_time(counters: &File) -> Duration {
    let mut bytes = [0; 1024];
    let len = counters.read_at(&mut bytes, 0).expect("its counters");
    let stat = String::from_utf8_lossy(&bytes[..len]);
    let after = stat.rsplit(')').next().expect("fields");
    let ticks = |n: usize| -> u64 {
        let field = after.split_whitespace().nth(n).expect("a field");
        field.parse().expect("a number")
    };
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

fn assert_names_descriptors(error: &Error) {
    let text = error.to_string();
    assert!(text.contains("ulimit -n"), "{text}");
}

#[test]
fn without_descriptors_or_memory() {
    let (serving, asking) = (reactor(), reactor());
    let anywhere = SocketAddr::from(LOOPBACK);
    let direct = serving
        .listen(&[anywhere], ChannelOptions::default())
        .expect("a listener");
    let tcp = TcpListener::bind(&[anywhere], TcpOptions::default()).expect("a listener");
    let (direct_at, tcp_at) = (direct.local_addresses()[0], tcp.local_addresses()[0]);
    let (client, server) = connect(&asking, &direct);
    exchange(&client, &*server);

    // More memory than any machine maps: the connection does not mind.
    for len in [1 << 60, usize::MAX] {
        let error = client.allocate(len).wait().expect_err("no such machine");
        assert!(error.to_string().contains("short of memory"), "{error}");
        assert!(!error.ends_connection());
    }
    exchange(&client, &*server);

    let counters = File::open("/proc/self/stat").expect("its counters");
    let mut files = hoard();
    let error = IwarpProvider::new(IwarpConfig::default()).expect_err("no descriptors");
    assert_eq!(error, RdmaError::NoDescriptors);
    assert_names_descriptors(&error.into());
    let refused = asking.connect(direct_at, ChannelOptions::default()).wait();
    assert_names_descriptors(&refused.expect_err("no descriptors"));
    let refused = Tcp::connect(tcp_at, TcpOptions::default()).wait();
    assert_names_descriptors(&refused.expect_err("no descriptors"));
    let refused = TcpListener::bind(&[anywhere], TcpOptions::default());
    assert_names_descriptors(&refused.expect_err("no descriptors"));
    exchange(&client, &*server);

    // Two connections come that cannot be accepted. The listeners wait, and do not spin.
    let mut come = |to| {
        drop(files.pop());
        TcpStream::connect(to).expect("in the system's queue")
    };
    let (nobody, mut somebody) = (come(direct_at), come(tcp_at));
    assert!(File::open("/dev/null").is_err(), "all are in use");
    let (start, before) = (Instant::now(), processor_time(&counters));
    thread::sleep(Duration::from_secs(1));
    let used = processor_time(&counters).saturating_sub(before);
    assert!(
        used < start.elapsed() / 2,
        "{used:?} in {:?}",
        start.elapsed()
    );
    exchange(&client, &*server);

    // Enough again: who waited is served, and so are others.
    files.clear();
    somebody.write_all(b"\0\0\0\x05hello").expect("sent");
    let waited = tcp.accept_blocking(LONG).expect("accepted");
    let message = waited.recv_blocking(LONG).expect("no failure");
    assert_eq!(&message.expect("a message")[..], b"hello");
    waited.send_blocking(b"welcome", LONG).expect("sent");
    let mut answer = [0; 11];
    somebody.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"\0\0\0\x07welcome");
    drop(nobody);
    let (another, its_server) = connect(&asking, &direct);
    exchange(&another, &*its_server);
    asking.shutdown(Duration::from_secs(1));
    serving.shutdown(Duration::from_secs(1));
}
