//! Sends messages of several sizes to `echo_server`, verifies what comes back, and measures.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use smbdirect::engine::ChannelOptions;
use smbdirect::transport::tcp::{Tcp, TcpOptions};
use smbdirect::transport::{Close, Error, Transport, TransportExt};

use args::{Arguments, COMMON_HELP, Common};
use control::{Control, Counts};
use endpoint::Endpoint;
use measure::{Load, Measured};

#[path = "common/args.rs"]
mod args;
#[path = "common/control.rs"]
mod control;
#[path = "common/endpoint.rs"]
mod endpoint;
#[path = "common/json.rs"]
mod json;
#[path = "common/measure.rs"]
mod measure;
#[path = "common/payload.rs"]
mod payload;
#[path = "common/port_file.rs"]
mod port_file;
#[path = "common/report.rs"]
mod report;
#[path = "common/units.rs"]
mod units;

const USAGE: &str = "\
Sends messages to echo_server, verifies every byte and the order of what comes back, and
prints what was negotiated and measured. Status 0 only if all is right and both ends
counted the same.

Usage: echo_client [OPTIONS]
";

const OPTIONS: &str = "
  --address A        the server's address or name (default 127.0.0.1)
  --port N           and port (default 445, on iWARP 5445)
  --port-file FILE   take the port from this file; waits up to 20 s for it
  --connections N    connections at a time (default 1)
  --sizes S,...      message sizes in bytes, KiB or MiB (default 1,64,4KiB,64KiB,1MiB)
  --count N          messages per size and connection (default 1000, and at most 256 MiB)
  --in-flight N      messages under way on each connection (default 16)
  --seed N           other payload (default 1)
  --timeout SECS     give up when nothing comes back for so long (default 30)
  --json             print JSON instead of text";

/// What the command line says.
struct Options {
    common: Common,
    connections: u64,
    sizes: Vec<usize>,
    count: Option<u64>,
    in_flight: usize,
    seed: u64,
    timeout: Duration,
}

fn main() -> ExitCode {
    let help = format!("{USAGE}{OPTIONS}\n{COMMON_HELP}");
    let options = match args::or_status("echo_client", &help, options()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut options: Options) -> Result<(), String> {
    if let Some(path) = &options.common.port_file {
        options.common.port = Some(port_file::read(path)?);
    }
    let endpoint = Endpoint::open(&options.common)?;
    let address = endpoint.address(&options.common);
    let connections = (0..options.connections)
        .map(|_| connect(&endpoint, address))
        .collect::<Result<Vec<_>, Error>>()
        .map_err(|error| endpoint::explain("cannot connect to", address, &error))?;
    // The command line asks for at least one.
    let first = &connections[0];
    let max = first.limits().max_send.min(first.limits().max_receive);
    if let Some(size) = options.sizes.iter().find(|size| **size as u64 > max) {
        return Err(format!(
            "--sizes: {size} bytes are above the negotiated limit of {max}"
        ));
    }

    let (measured, counted) = exchange(&options, &connections)?;
    let (client, server) = finish(&options, &connections, counted)?;
    let result = report::Report {
        choice: &endpoint.choice,
        info: first.info(),
        limits: first.limits(),
        in_flight: options.in_flight,
        seed: options.seed,
        measured: &measured,
        client: &client,
        server: &server,
    };
    if options.common.json {
        println!("{}", result.json());
    } else {
        print!("{}", result.text());
    }
    close(&connections)?;
    endpoint.shut_down();
    if !result.agree() {
        return Err("the two ends counted different messages".into());
    }
    Ok(())
}

/// The options; `None` if help is wanted.
fn options() -> Result<Option<Options>, String> {
    let mut args = Arguments::of_this_process();
    let mut options = Options {
        common: Common::new(),
        connections: 1,
        sizes: vec![1, 64, 4 << 10, 64 << 10, 1 << 20],
        count: None,
        in_flight: 16,
        seed: 1,
        timeout: Duration::from_secs(30),
    };
    while let Some(name) = args.option()? {
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--connections" => options.connections = args.at_least_one()?,
            "--sizes" => options.sizes = args.list(units::parse)?,
            "--count" => options.count = Some(args.at_least_one()?),
            "--in-flight" => options.in_flight = args.at_least_one()?,
            "--seed" => options.seed = args.value()?,
            "--timeout" => options.timeout = args.seconds(1)?,
            name if options.common.take(name, &mut args)? => {}
            name => return Err(format!("{name} is unknown; --help lists the options")),
        }
    }
    if options.common.port == Some(0) && options.common.port_file.is_none() {
        return Err("--port 0 is for the server; say which port it listens on".into());
    }
    Ok(Some(options))
}

fn connect(endpoint: &Endpoint, to: SocketAddr) -> Result<Arc<dyn Transport>, Error> {
    Ok(match &endpoint.reactors {
        Some(reactors) => Arc::new(reactors.connect(to, ChannelOptions::default()).wait()?),
        None => Arc::new(Tcp::connect(to, TcpOptions::default()).wait()?),
    })
}

/// All sizes one after the other, each on all connections at once.
fn exchange(
    options: &Options,
    connections: &[Arc<dyn Transport>],
) -> Result<(Vec<Measured>, Counted), String> {
    let loads: Vec<Load> = options
        .sizes
        .iter()
        .map(|size| load(options, *size))
        .collect();
    let per_connection = loads.iter().map(|load| load.count).sum();
    for transport in connections {
        let hello = Control::Hello {
            messages: per_connection,
        };
        transport
            .send_blocking(&hello.encode(), Some(options.timeout))
            .map_err(|error| format!("cannot send: {error}"))?;
    }
    let mut measured = Vec::new();
    let mut counted = Counted {
        messages: 0,
        bytes: 0,
    };
    for load in loads {
        measured.push(measure::run(
            load,
            connections,
            options.seed,
            counted.messages,
        )?);
        counted.messages += load.count;
        counted.bytes += load.count * load.size as u64;
    }
    Ok((measured, counted))
}

/// What came back on each connection.
#[derive(Clone, Copy)]
struct Counted {
    messages: u64,
    bytes: u64,
}

fn load(options: &Options, size: usize) -> Load {
    let default = (256u64 << 20).div_ceil(size as u64).clamp(1, 1000);
    Load {
        size,
        count: options.count.unwrap_or(default),
        in_flight: options.in_flight,
        timeout: options.timeout,
    }
}

/// The counts of this end and of the server on every connection.
fn finish(
    options: &Options,
    connections: &[Arc<dyn Transport>],
    counted: Counted,
) -> Result<(Vec<Counts>, Vec<Counts>), String> {
    let mut client = Vec::new();
    let mut server = Vec::new();
    for transport in connections {
        let done = Control::Done.encode();
        let answer = transport
            .send_blocking(&done, Some(options.timeout))
            .and_then(|()| transport.recv_blocking(Some(options.timeout)))
            .map_err(|error| format!("the server's counts did not come: {error}"))?;
        let Some(Control::Report(counts)) = answer.as_deref().and_then(Control::decode) else {
            return Err("the server did not answer with its counts".into());
        };
        client.push(Counts::new(
            counted.messages,
            counted.bytes,
            &transport.stats(),
        ));
        server.push(counts);
    }
    Ok((client, server))
}

fn close(connections: &[Arc<dyn Transport>]) -> Result<(), String> {
    let limit = Duration::from_secs(5);
    for transport in connections {
        transport.close(Close::Graceful(limit));
    }
    for transport in connections {
        if transport.closed_blocking(Some(2 * limit)).is_none() {
            return Err("a connection did not end in time".into());
        }
    }
    Ok(())
}
