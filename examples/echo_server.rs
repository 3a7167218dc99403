//! Sends every message back. The counterpart of `echo_client`; any number of clients at a time.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::engine::ChannelOptions;
use smbdirect::transport::tcp::{TcpListener, TcpOptions};
use smbdirect::transport::{
    Close, Error, Listener, ListenerExt, Message, OutMessage, Transport, TransportExt, TrySendError,
};

use args::{Arguments, COMMON_HELP, Common};
use control::{Control, Counts};
use endpoint::Endpoint;
use json::Object;

#[path = "common/args.rs"]
mod args;
#[path = "common/control.rs"]
mod control;
#[path = "common/endpoint.rs"]
mod endpoint;
#[path = "common/json.rs"]
mod json;
#[path = "common/port_file.rs"]
mod port_file;
#[path = "common/units.rs"]
mod units;

const USAGE: &str = "\
Sends every message back to the echo_client that sent it.

Usage: echo_server [OPTIONS]
";

const OPTIONS: &str = "
  --address A        listen on this address (default 127.0.0.1)
  --port N           and this port; 0: any free one (default 445, on iWARP 5445)
  --port-file FILE   write the port there once clients can connect
  --accept N         end after N connections, with status 0 if all of them went well
  --once             the same as --accept 1
  --json             print JSON instead of text";

fn main() -> ExitCode {
    let help = format!("{USAGE}{OPTIONS}\n{COMMON_HELP}");
    let options = match args::or_status("echo_server", &help, options()) {
        Ok(options) => options,
        Err(status) => return status,
    };
    match run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("echo_server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all connections went well.
fn run((common, accept): (Common, Option<u64>)) -> Result<bool, String> {
    let endpoint = Endpoint::open(&common)?;
    let address = endpoint.address(&common);
    let listener = listen(&endpoint, address)
        .map_err(|error| endpoint::explain("cannot listen on", address, &error))?;
    let local = listener
        .local_addresses()
        .first()
        .copied()
        .unwrap_or(address);
    if !common.json {
        println!("echo server on {local}");
        println!("provider {}", endpoint.choice);
    }
    if let Some(path) = &common.port_file {
        port_file::write(path, local.port())?;
    }

    let mut connections = Vec::new();
    for index in (1..).take_while(|index| accept.is_none_or(|accept| *index <= accept)) {
        let transport = listener
            .accept_blocking(None)
            .map_err(|error| format!("cannot accept connections any more: {error}"))?;
        let json = common.json;
        let connection = thread::spawn(move || serve(index, &*transport, json));
        if accept.is_some() {
            connections.push(connection);
        }
    }
    let all = connections
        .into_iter()
        .all(|connection| connection.join().unwrap_or(false));
    listener.close();
    endpoint.shut_down();
    Ok(all)
}

/// The options; `None` if help is wanted.
fn options() -> Result<Option<(Common, Option<u64>)>, String> {
    let mut args = Arguments::of_this_process();
    let mut common = Common::new();
    let mut accept = None;
    while let Some(name) = args.option()? {
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--accept" => accept = Some(args.at_least_one()?),
            "--once" => accept = Some(1),
            name if common.take(name, &mut args)? => {}
            name => return Err(format!("{name} is unknown; --help lists the options")),
        }
    }
    Ok(Some((common, accept)))
}

fn listen(endpoint: &Endpoint, address: SocketAddr) -> Result<Box<dyn Listener>, Error> {
    Ok(match &endpoint.reactors {
        Some(reactors) => Box::new(reactors.listen(&[address], ChannelOptions::default())?),
        None => Box::new(TcpListener::bind(&[address], TcpOptions::default())?),
    })
}

/// One connection from its first message to its end; whether it went well.
fn serve(index: u64, transport: &dyn Transport, json: bool) -> bool {
    let start = Instant::now();
    let mut counts = Counts::default();
    let result = echo(transport, &mut counts);
    if result.is_err() {
        transport.close(Close::Abort);
    }
    let (peer, seconds) = (transport.info().peer, start.elapsed().as_secs_f64());
    let end = match &result {
        Ok(()) => "closed by the client in order",
        Err(error) => error,
    };
    if json {
        let line = Object::new()
            .value("connection", index)
            .text("peer", &peer.to_string())
            .value("messages", counts.messages)
            .value("bytes", counts.bytes)
            .value("seconds", format_args!("{seconds:.3}"))
            .value("ok", result.is_ok())
            .text("end", end);
        println!("{}", line.end());
    } else {
        println!(
            "connection {index} from {peer}: {} messages, {} echoed in {seconds:.2} s; {end}",
            units::count(counts.messages),
            units::bytes(counts.bytes)
        );
    }
    result.is_ok()
}

fn echo(transport: &dyn Transport, counts: &mut Counts) -> Result<(), String> {
    let hello = receive(transport)?;
    let Some(Control::Hello { messages }) = Control::decode(&hello) else {
        return Err("the client is not an echo_client: it did not begin with its hello".into());
    };
    while counts.messages < messages {
        let message = receive(transport)?;
        counts.messages += 1;
        counts.bytes += message.len() as u64;
        // The bytes go back from where they were received.
        send(transport, message).map_err(|error| error.to_string())?;
    }
    if Control::decode(&receive(transport)?) != Some(Control::Done) {
        return Err("the client sent more messages than it had said".into());
    }
    *counts = Counts::new(counts.messages, counts.bytes, &transport.stats());
    let report = Control::Report(*counts).encode();
    transport
        .send_blocking(&report, None)
        .map_err(|error| error.to_string())?;
    match transport.recv_blocking(Some(Duration::from_secs(60))) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("the client sent a message after the last one".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn receive(transport: &dyn Transport) -> Result<Message, String> {
    match transport.recv_blocking(None) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err("the client closed before it was done".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn send(transport: &dyn Transport, message: Message) -> Result<(), Error> {
    let bytes = message.into_bytes();
    loop {
        match transport.start_send(OutMessage::Bytes(bytes.clone())) {
            Err(TrySendError::Full) => transport.ready_blocking(None)?,
            sent => return Ok(sent?),
        }
    }
}
