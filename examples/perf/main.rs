//! Measures SMB Direct and TCP in turn, in one run, and prints ratios: the same work over both of the crate's transports.

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use smbdirect::engine::ChannelOptions;
use smbdirect::transport::tcp::{Tcp, TcpListener, TcpOptions};
use smbdirect::transport::{Close, Error, Listener, ListenerExt, Transport, TransportExt};

use args::{Arguments, COMMON_HELP, Common, Wanted};
use client::Work;
use endpoint::Endpoint;
use protocol::Kind;
use usage::Usage;

#[path = "../common/args.rs"]
mod args;
mod client;
#[path = "../common/endpoint.rs"]
mod endpoint;
mod protocol;
mod server;
#[path = "../common/units.rs"]
mod units;
mod usage;

const HELP: &str = "\
Measures the same work over SMB Direct and over TCP, in turn, and prints both and the ratio. Both
ends are in this process, so that processor time is that of client and server together. What the
kernel's threads do for a software device (soft-RoCE, soft-iWARP) is not in it.

Usage: perf [OPTIONS]

  --address A        an address of this machine, which decides the provider (default 127.0.0.1)
  --rounds N         how often each measurement is repeated; the median counts (default 5)
  --in-flight N      requests under way where throughput is measured (default 32)
  --only WHAT,...    only those: echo, read, write (default all)
  --sizes S,...      only those sizes: 64, 4KiB, 64KiB, 1MiB (default all)
  --connections N    idle connections whose memory is measured (default 100)
  --quick            a hundredth of the work: shows that it runs, the numbers say little";

/// The sizes of all measurements.
const SIZES: [usize; 4] = [64, 4 << 10, 64 << 10, 1 << 20];

struct Options {
    common: Common,
    rounds: usize,
    in_flight: usize,
    connections: usize,
    only: Option<Vec<Kind>>,
    sizes: Option<Vec<usize>>,
    quick: bool,
}

fn main() -> ExitCode {
    let help = format!("{HELP}\n{COMMON_HELP}");
    let options = match args::or_status("perf", &help, options()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("perf: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let works = works(&options);
    let largest = works.iter().map(|work| work.size).max().unwrap_or(0);
    // As two machines have: a reactor for either end.
    let (serving, asking) = (
        Endpoint::open(&options.common)?,
        Endpoint::open(&options.common)?,
    );
    println!(
        "SMB Direct: provider {}; TCP: the same address; both ends in this process, {} rounds in turn\n",
        serving.choice, options.rounds
    );
    let direct = Pair::direct(&serving, &asking, &options, largest)?;
    let tcp = Pair::tcp(&options, largest)?;
    println!(
        "{:<7} {:>8} {:>9} {:>14} {:>14} {:>7}  {:>22}",
        "what", "size", "in flight", "SMB Direct", "TCP", "ratio", "processor time, ratio"
    );
    for work in works {
        let mut both = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            both.0.push(measure(&*direct.client, work)?);
            both.1.push(measure(&*tcp.client, work)?);
        }
        let (direct, tcp) = (median(both.0), median(both.1));
        print_row(work, direct, tcp);
        if work.kind == Kind::Echo {
            print_slow(work, direct, tcp);
        }
    }
    println!(
        "\nechoes: mean time of a round trip, and what 99 of 100 stay below, a smaller ratio is better; others: \
         throughput, larger is better"
    );
    idle(&direct, &asking, &options)?;
    direct.close()?;
    tcp.close()?;
    asking.shut_down();
    serving.shut_down();
    Ok(())
}

/// The measurements, in order.
fn works(options: &Options) -> Vec<Work> {
    let less = if options.quick { 100 } else { 1 };
    let echo = |size| Work {
        kind: Kind::Echo,
        size,
        in_flight: 1,
        count: 20_000 / less,
    };
    let mut works = vec![echo(64), echo(4 << 10)];
    for kind in [Kind::Read, Kind::Write] {
        for (size, count) in [(4 << 10, 40_000), (64 << 10, 10_000), (1 << 20, 1000)] {
            works.push(Work {
                kind,
                size,
                in_flight: options.in_flight,
                count: count / less,
            });
        }
    }
    let wanted = |work: &Work| {
        let size = options.sizes.as_ref();
        let kind = options.only.as_ref();
        size.is_none_or(|sizes| sizes.contains(&work.size))
            && kind.is_none_or(|kinds| kinds.contains(&work.kind))
    };
    works.retain(wanted);
    works
}

/// A connection with both of its ends.
struct Pair {
    client: Arc<dyn Transport>,
    listener: Arc<dyn Listener>,
    server: thread::JoinHandle<Result<(), String>>,
}

impl Pair {
    fn direct(
        serving: &Endpoint,
        asking: &Endpoint,
        options: &Options,
        largest: usize,
    ) -> Result<Self, String> {
        let (Some(serving), Some(asking)) = (&serving.reactors, &asking.reactors) else {
            return Err("no provider of RDMA".into());
        };
        let text = |error: Error| error.to_string();
        let address = (options.common.address, options.common.port.unwrap_or(0)).into();
        let listener = serving
            .listen(&[address], ChannelOptions::default())
            .map_err(|error| endpoint::explain("cannot listen on", address, &error))?;
        let address = listener.local_addresses().first().copied();
        let address = address.ok_or("a listener without address")?;
        let client = asking.connect(address, ChannelOptions::default()).wait();
        Self::new(Arc::new(client.map_err(text)?), Arc::new(listener), largest)
    }

    fn tcp(options: &Options, largest: usize) -> Result<Self, String> {
        let text = |error: Error| error.to_string();
        let address = (options.common.address, 0).into();
        let listener = TcpListener::bind(&[address], TcpOptions::default()).map_err(text)?;
        let address = listener.local_addresses().first().copied();
        let address = address.ok_or("a listener without address")?;
        let client = Tcp::connect(address, TcpOptions::default()).wait();
        Self::new(Arc::new(client.map_err(text)?), Arc::new(listener), largest)
    }

    fn new(
        client: Arc<dyn Transport>,
        listener: Arc<dyn Listener>,
        largest: usize,
    ) -> Result<Self, String> {
        let accepted = listener
            .accept_blocking(Some(Duration::from_secs(30)))
            .map_err(|error| error.to_string())?;
        let server = thread::spawn(move || server::serve(&accepted, largest));
        Ok(Self {
            client,
            listener,
            server,
        })
    }

    fn close(self) -> Result<(), String> {
        self.client.close(Close::Graceful(Duration::from_secs(10)));
        self.client.closed_blocking(Some(Duration::from_secs(20)));
        self.listener.close();
        self.server
            .join()
            .map_err(|_| "the server's thread panicked".to_owned())?
    }
}

/// What one round gave.
#[derive(Debug, Clone, Copy)]
struct Measured {
    time: Duration,
    most: Duration,
    processor: Duration,
}

fn measure(transport: &dyn Transport, work: Work) -> Result<Measured, String> {
    let before = Usage::now()?;
    let ran = client::run(transport, work)?;
    let processor = Usage::now()?.processor.saturating_sub(before.processor);
    Ok(Measured {
        time: ran.time,
        most: ran.most,
        processor,
    })
}

fn median(mut rounds: Vec<Measured>) -> Measured {
    rounds.sort_by_key(|measured| measured.time);
    rounds[rounds.len() / 2]
}

fn print_row(work: Work, direct: Measured, tcp: Measured) {
    let show = |measured: Measured| match work.kind {
        Kind::Echo => {
            let each = measured.time.as_secs_f64() * 1e6 / work.count as f64;
            format!("{each:.1} µs")
        }
        Kind::Read | Kind::Write => {
            let bytes = work.count as f64 * work.size as f64;
            format!("{:.0} MB/s", bytes / 1e6 / measured.time.as_secs_f64())
        }
    };
    let (ours, theirs) = (direct.time.as_secs_f64(), tcp.time.as_secs_f64());
    let ratio = match work.kind {
        Kind::Echo => ours / theirs,
        Kind::Read | Kind::Write => theirs / ours,
    };
    let processor = direct.processor.as_secs_f64() / tcp.processor.as_secs_f64().max(1e-9);
    println!(
        "{:<7} {:>8} {:>9} {:>14} {:>14} {ratio:>7.2}  {processor:>22.2}",
        format!("{:?}", work.kind).to_lowercase(),
        units::bytes(work.size as u64),
        work.in_flight,
        show(direct),
        show(tcp),
    );
}

/// The time within which 99 of 100 round trips were done.
fn print_slow(work: Work, direct: Measured, tcp: Measured) {
    let show = |time: Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6);
    let ratio = direct.most.as_secs_f64() / tcp.most.as_secs_f64().max(1e-9);
    println!(
        "{:<7} {:>8} {:>9} {:>14} {:>14} {ratio:>7.2}",
        "  99 %",
        units::bytes(work.size as u64),
        work.in_flight,
        show(direct.most),
        show(tcp.most),
    );
}

/// The memory of connections on which nothing happens.
fn idle(direct: &Pair, asking: &Endpoint, options: &Options) -> Result<(), String> {
    let (Some(reactors), Some(address)) = (
        &asking.reactors,
        direct.listener.local_addresses().first().copied(),
    ) else {
        return Ok(());
    };
    if options.connections == 0 {
        return Ok(());
    }
    let before = Usage::now()?.resident;
    let mut ends: Vec<Arc<dyn Transport>> = Vec::new();
    for _ in 0..options.connections {
        let client = reactors.connect(address, ChannelOptions::default()).wait();
        let client = client.map_err(|error| error.to_string())?;
        ends.push(Arc::new(client));
        let server = direct
            .listener
            .accept_blocking(Some(Duration::from_secs(30)));
        ends.push(server.map_err(|error| error.to_string())?);
    }
    let more = Usage::now()?.resident.saturating_sub(before);
    println!(
        "{} idle connections, both ends: {} each",
        units::count(options.connections as u64),
        units::bytes(more / options.connections as u64 / 1024 * 1024)
    );
    for end in &ends {
        end.close(Close::Abort);
    }
    Ok(())
}

/// The options; `None` if help is wanted.
fn options() -> Result<Option<Options>, String> {
    let mut args = Arguments::of_this_process();
    let mut options = Options {
        common: Common::new(),
        rounds: 5,
        in_flight: 32,
        connections: 100,
        only: None,
        sizes: None,
        quick: false,
    };
    while let Some(name) = args.option()? {
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--rounds" => options.rounds = args.at_least_one()?,
            "--in-flight" => options.in_flight = args.at_least_one()?,
            "--connections" => options.connections = args.value()?,
            "--only" => options.only = Some(args.list(Kind::parse)?),
            "--sizes" => options.sizes = Some(args.list(size)?),
            "--quick" => options.quick = true,
            "--json" | "--port-file" => return Err(format!("{name} is not for this program")),
            name if options.common.take(name, &mut args)? => {}
            name => return Err(format!("{name} is unknown; --help lists the options")),
        }
    }
    if options.common.provider == Wanted::Tcp {
        return Err(
            "--provider tcp: TCP is what SMB Direct is compared with; iwarp, verbs or auto".into(),
        );
    }
    if works(&options).is_empty() {
        return Err(
            "nothing is left to measure: echo has the sizes 64 and 4KiB, the others 4KiB and above"
                .into(),
        );
    }
    Ok(Some(options))
}

/// One of the sizes that are measured.
fn size(text: &str) -> Result<usize, String> {
    match units::parse(text)? {
        size if SIZES.contains(&size) => Ok(size),
        _ => Err(format!("{text}: 64, 4KiB, 64KiB or 1MiB")),
    }
}
