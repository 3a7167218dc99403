//! Gives an SMB server on TCP (Samba, for example) RDMA.
//!
//! Accepts SMB Direct, connects each client to the server over TCP, and forwards messages both
//! ways. READ and WRITE requests with an RDMA channel become ordinary ones ([`rewrite`]): their
//! data moves by RDMA between the client's memory and the gateway, and in messages between the
//! gateway and the server.
//!
//! Each connection has a thread ([`connection`]), which moves messages; RDMA has as many as
//! `--threads` says for all.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use smbdirect::engine::DirectListener;
use smbdirect::transport::Listener;

use backend::Backend;
use connections::Connections;
use door::Door;
use listen::Listening;
use options::{HELP, Options};
use report::Log;
use serve::{LINGER, Settings};
use sparing::Sparing;
use watch::Watch;

mod allow;
#[allow(dead_code)] // The options that other examples have in common.
#[path = "../common/args.rs"]
mod args;
mod backend;
mod connection;
mod connections;
mod door;
mod ending;
#[path = "../common/json.rs"]
mod json;
mod listen;
mod ops;
mod options;
mod parting;
#[path = "../common/port_file.rs"]
mod port_file;
mod probe;
mod report;
mod rewrite;
mod serve;
mod sparing;
#[allow(dead_code)]
#[path = "../common/units.rs"]
mod units;
mod wake;
mod watch;

/// How often connections are looked for that failed before they were one.
const LOOK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let help = HELP;
    let options = match args::or_status("gateway", help, Options::of_this_process()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    // Before anything can connect: a signal that comes early must not be lost.
    let signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    // Whoever read the lines may be gone: clients are not to suffer for it.
    let log = Log::new(options.json, |line| {
        let _ = writeln!(io::stdout(), "{line}");
    });
    let backend = Backend::new(&options.backend, options.backend_timeout);
    let watch = Arc::new(Watch::default());
    let connections = Arc::new(Connections::new(
        options.max_connections,
        options.max_per_client,
    ));
    let door = Door::new(
        options.allow.clone(),
        watch.clone(),
        connections.clone(),
        log.clone(),
    )?;
    let Listening { reactors, listener } = listen::listen(&options, door.filter())?;
    let local = listener.local_addresses();
    let listener = Arc::new(listener);
    log.listening(&local, options.provider, &options.backend);
    if let (Some(path), Some(local)) = (&options.port_file, local.first()) {
        port_file::write(path, local.port())?;
    }
    obey(
        signals,
        listener.clone(),
        connections.clone(),
        options.drain,
    )?;
    if let Some(period) = options.stats {
        report_totals(period, door.clone(), connections.clone(), log.clone())?;
    }
    watch.start(backend.clone(), options.backend_timeout, log.clone())?;
    tell_failures(listener.clone(), log.clone())?;

    let settings = Settings {
        backend,
        watch,
        backend_timeout: options.backend_timeout,
        max_memory: options.max_memory,
        log: log.clone(),
    };
    let accepted = serve::accept(&listener, &connections, &settings);
    // Their own deadlines end them.
    connections.wait_until_empty(options.drain + LINGER);
    reactors.shutdown(Duration::from_secs(1));
    log.totals(&connections.totals(), &door);
    accepted
}

/// The first signal ends the gateway in order, the second one at once.
fn obey(
    mut signals: Signals,
    listener: Arc<DirectListener>,
    connections: Arc<Connections>,
    drain: Duration,
) -> Result<(), String> {
    let obey = move || {
        for (count, _) in signals.forever().enumerate() {
            match count {
                0 => {
                    connections.stop(Instant::now() + drain);
                    listener.close();
                }
                _ => connections.stop_at_once(),
            }
        }
    };
    let thread = thread::Builder::new().name("signals".into());
    thread
        .spawn(obey)
        .map(drop)
        .map_err(|error| format!("no thread for signals: {error}"))
}

/// Tells of connections that never became one: the client learns nothing of the reason, which may be
/// this host's (too little memory that may be locked).
fn tell_failures(listener: Arc<DirectListener>, log: Log) -> Result<(), String> {
    let tell = move || {
        let (mut sparing, mut told) = (Sparing::new(), 0);
        loop {
            thread::sleep(LOOK);
            let failed = listener.failed_handshakes();
            if failed == told {
                continue;
            }
            told = failed;
            if let Some((client, error)) = listener.last_failed_handshake() {
                let what = (client.ip(), error.to_string());
                sparing.tell(what, |(client, error)| log.failed(*client, error));
            }
        }
    };
    let thread = thread::Builder::new().name("failures".into());
    thread
        .spawn(tell)
        .map(drop)
        .map_err(|error| format!("no thread for telling of failed connections: {error}"))
}

fn report_totals(
    period: Duration,
    door: Arc<Door>,
    connections: Arc<Connections>,
    log: Log,
) -> Result<(), String> {
    let report = move || loop {
        thread::sleep(period);
        log.totals(&connections.totals(), &door);
    };
    let thread = thread::Builder::new().name("stats".into());
    thread
        .spawn(report)
        .map(drop)
        .map_err(|error| format!("no thread for statistics: {error}"))
}
