//! A small block store over direct placement: the client exposes memory, and the server writes a file's content into
//! it, or reads it out of it into the file. File data never travels in messages.
//!
//! Alone it is both sides over the loopback; `serve` and `client` are the two sides on two machines.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use smbdirect::engine::ChannelOptions;
use smbdirect::transport::{Listener, ListenerExt};

use args::{Arguments, COMMON_HELP, Common, Wanted};
use endpoint::Endpoint;

#[path = "../common/args.rs"]
mod args;
mod client;
#[path = "../common/endpoint.rs"]
mod endpoint;
#[path = "../common/payload.rs"]
mod payload;
#[path = "../common/port_file.rs"]
mod port_file;
mod protocol;
mod server;
#[path = "../common/units.rs"]
mod units;

const HELP: &str = "\
Moves a file's content between a server's file and a client's memory by RDMA, in both
directions, many operations in flight, and compares checksums of both sides.

Usage: direct [serve | client] [OPTIONS]

Without `serve` or `client` it is both, over the loopback.

  --address A        the server's address (default 127.0.0.1)
  --port N           and port (default: any when it is both; else 5445 for iwarp, 445 for
                     verbs)
  --port-file FILE   the server writes its port there, the client takes it from there
  --sizes S,...      sizes of the content in bytes, KiB or MiB (default 1,4KiB,1MiB,64MiB);
                     larger ones than the negotiated maximum are split
  --total BYTES      bytes per size and direction at least (default 64MiB)
  --in-flight N      operations under way (default 32)
  --buffers N        buffers that the client exposes for one operation (default 1)
  --seed N           other content (default 1)
  --store FILE       serve: the file (default: a temporary one, removed at the end)
  --once             serve: end after one client";

const NEEDS_RDMA: &str = "direct placement needs RDMA: --provider iwarp works everywhere";

/// What the command line says.
pub(crate) struct Options {
    common: Common,
    role: Role,
    pub(crate) sizes: Vec<usize>,
    pub(crate) total: usize,
    pub(crate) in_flight: usize,
    pub(crate) buffers: usize,
    pub(crate) seed: u64,
    store: Option<PathBuf>,
    once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Both,
    Serve,
    Client,
}

fn main() -> ExitCode {
    let help = format!("{HELP}\n{COMMON_HELP}");
    let options = match args::or_status("direct", &help, options()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("direct: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let endpoint = Endpoint::open(&options.common)?;
    let Some(reactors) = &endpoint.reactors else {
        return Err(NEEDS_RDMA.into());
    };
    println!("provider {}", endpoint.choice);
    let mut address = endpoint.address(&options.common);
    if options.role == Role::Both && options.common.port.is_none() {
        address.set_port(0);
    }
    if options.role == Role::Client
        && let Some(path) = &options.common.port_file
    {
        address.set_port(port_file::read(path)?);
    }
    let mut serving = None;
    if options.role != Role::Client {
        let listener = reactors
            .listen(&[address], ChannelOptions::default())
            .map_err(|error| endpoint::explain("cannot listen on", address, &error))?;
        address = listener
            .local_addresses()
            .first()
            .copied()
            .unwrap_or(address);
        println!("block store on {address}");
        if let Some(path) = &options.common.port_file {
            port_file::write(path, address.port())?;
        }
        let store = server::Store::open(options.store.as_deref())?;
        let once = options.once || options.role == Role::Both;
        serving = Some(thread::spawn(move || serve(&listener, &store, once)));
    }
    let result = match options.role {
        Role::Serve => Ok(()),
        Role::Both | Role::Client => {
            // Two ends in one process want two reactors, as two machines have.
            let own = Endpoint::open(&options.common)?;
            let result = match &own.reactors {
                Some(reactors) => client::run(reactors, address, &options),
                None => Ok(()),
            };
            own.shut_down();
            result
        }
    };
    let served = match serving {
        Some(thread) if result.is_ok() => thread
            .join()
            .unwrap_or_else(|_| Err("the server's thread panicked".into())),
        _ => Ok(()),
    };
    endpoint.shut_down();
    result.and(served)
}

fn serve(listener: &dyn Listener, store: &server::Store, once: bool) -> Result<(), String> {
    loop {
        let transport = listener
            .accept_blocking(None)
            .map_err(|error| format!("cannot accept connections any more: {error}"))?;
        let peer = transport.info().peer;
        let result = server::serve(&transport, store);
        match &result {
            Ok(served) => println!(
                "client {peer}: {} read and {} written by RDMA, in {} operations",
                units::bytes(served.bytes_read),
                units::bytes(served.bytes_written),
                units::count(served.operations)
            ),
            Err(error) => println!("client {peer}: {error}"),
        }
        if once {
            return result.map(|_| ());
        }
    }
}

/// The options; `None` if help is wanted.
fn options() -> Result<Option<Options>, String> {
    let mut args = Arguments::of_this_process();
    let mut options = Options {
        common: Common::new(),
        role: Role::Both,
        sizes: vec![1, 4 << 10, 1 << 20, 64 << 20],
        total: 64 << 20,
        in_flight: 32,
        buffers: 1,
        seed: 1,
        store: None,
        once: false,
    };
    while let Some(name) = args.option()? {
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "serve" => options.role = Role::Serve,
            "client" => options.role = Role::Client,
            "--sizes" => options.sizes = args.list(units::parse)?,
            "--total" => options.total = args.parsed(units::parse)?,
            "--in-flight" => options.in_flight = args.at_least_one()?,
            "--buffers" => options.buffers = args.at_least_one()?,
            "--seed" => options.seed = args.value()?,
            "--store" => options.store = Some(args.text()?.into()),
            "--once" => options.once = true,
            "--json" => return Err(format!("{name} is not for this program")),
            name if options.common.take(name, &mut args)? => {}
            name => return Err(format!("{name} is unknown; --help lists the options")),
        }
    }
    if options.common.provider == Wanted::Tcp {
        return Err(format!("--provider tcp: {NEEDS_RDMA}"));
    }
    Ok(Some(options))
}
