//! The way to a server, one line per step.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
use smbdirect::rdma::{self, ProviderKind};
use smbdirect::transport::{
    Close, Error, IWARP_PORT, Info, PORT, Transport, TransportExt, port_for, tcp,
};

use crate::remedy;
use crate::report::{Mark, Report};
use crate::units;

const PATIENCE: Duration = Duration::from_secs(5);

/// How one port answered.
struct Tried {
    port: u16,
    took: Duration,
    result: Result<Info, Error>,
}

/// Reports on the way to the server. Returns whether SMB Direct can be used with it.
pub(crate) fn examine(
    report: &mut Report,
    server: &str,
    port: Option<u16>,
    wanted: Option<ProviderKind>,
) -> bool {
    report.section("The way to the server");
    let Some(address) = resolve(report, server) else {
        report.conclude(false, format!("{server} cannot be found"));
        return false;
    };
    let Some(local) = route(report, address) else {
        report.conclude(false, format!("there is no way to {server}"));
        return false;
    };
    let Some((kind, own_port)) = provider(report, local, wanted) else {
        report.conclude(false, "RDMA cannot be used on this machine");
        return false;
    };
    let ports = match (port, own_port) {
        (Some(port), _) => vec![port],
        (None, PORT) => vec![PORT, IWARP_PORT],
        (None, _) => vec![IWARP_PORT, PORT],
    };
    let tried = match attempts(kind, address, &ports) {
        Ok(tried) => tried,
        Err(error) => {
            report.remark(Mark::Fail, "open", error.to_string(), "");
            report.conclude(false, format!("{kind} cannot be used on this machine"));
            return false;
        }
    };
    let usable = tried
        .iter()
        .find_map(|tried| Some((tried.port, tried.result.as_ref().ok()?)));
    for tried in &tried {
        connection(report, tried, usable.is_some());
    }
    // An RDMA listener of the kernel's soft-iWARP does not survive a TCP connection that says nothing.
    let iwarp_has_it = own_port == IWARP_PORT && usable.is_some_and(|(port, _)| port == tcp::PORT);
    let smb = !iwarp_has_it && over_tcp(report, address);
    let conclusion = match usable {
        Some((port, info)) => format!(
            "SMB Direct works with {server}: port {port}, {kind}, device {}",
            info.device.as_deref().unwrap_or("not known")
        ),
        None if smb => format!(
            "SMB Direct cannot be used with {server}, which has TCP port 445 open: SMB over TCP may work"
        ),
        None => format!("SMB Direct cannot be used with {server}"),
    };
    report.conclude(usable.is_some(), conclusion);
    usable.is_some()
}

fn resolve(report: &mut Report, server: &str) -> Option<IpAddr> {
    let found: Vec<IpAddr> = match (server, 0).to_socket_addrs() {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => {
            let remedy = "check the name: `getent hosts NAME`";
            report.remark(Mark::Fail, "resolve", error.to_string(), remedy);
            return None;
        }
    };
    let address = *found.first()?;
    let more = match found.len() {
        1 => String::new(),
        n => format!(", the first of {n} addresses"),
    };
    report.pass("resolve", format!("{address}{more}"));
    Some(address)
}

/// Finds the address of this machine on the way to the server. Sends nothing: connecting a datagram socket only
/// looks up the route.
fn route(report: &mut Report, to: IpAddr) -> Option<IpAddr> {
    let any = match to {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let local = UdpSocket::bind((any, 0))
        .and_then(|socket| socket.connect((to, 9)).map(|()| socket))
        .and_then(|socket| socket.local_addr());
    match local {
        Ok(local) => {
            report.pass("route", format!("from {}", local.ip()));
            Some(local.ip())
        }
        Err(error) => {
            let remedy = format!("`ip route get {to}` shows what is missing");
            report.remark(Mark::Fail, "route", error.to_string(), &remedy);
            None
        }
    }
}

/// Chooses what to connect with, and the port that goes with it.
fn provider(
    report: &mut Report,
    local: IpAddr,
    wanted: Option<ProviderKind>,
) -> Option<(ProviderKind, u16)> {
    let choice = rdma::choose(local);
    let kind = wanted.unwrap_or(choice.kind);
    match kind {
        ProviderKind::Verbs if choice.kind == ProviderKind::Verbs => {
            report.pass("device", format!("{}: {kind}", choice.why));
        }
        ProviderKind::Verbs => {
            let remedy = "give an RDMA device an address on the way to the server, or see above why it cannot be used";
            report.remark(Mark::Fail, "device", choice.why.to_string(), remedy);
            return None;
        }
        _ if choice.kind == ProviderKind::Verbs => {
            let text = format!("{}, and the software iWARP is asked for", choice.why);
            report.remark(Mark::Note, "device", text, "");
        }
        _ if cfg!(feature = "iwarp") => {
            let text = format!("{}: the software iWARP is used", choice.why);
            let remedy =
                "it reaches servers that speak iWARP only; RoCE and InfiniBand need a device here";
            report.remark(Mark::Note, "device", text, remedy);
        }
        _ => {
            let remedy = "build with the feature iwarp, which needs no device";
            report.remark(Mark::Fail, "device", choice.why.to_string(), remedy);
            return None;
        }
    }
    Some((kind, own_port(kind, local)))
}

#[cfg(feature = "verbs")]
fn own_port(kind: ProviderKind, local: IpAddr) -> u16 {
    let devices = match kind {
        ProviderKind::Verbs => rdma::verbs::devices().unwrap_or_default(),
        _ => Vec::new(),
    };
    devices
        .iter()
        .find(|device| device.addresses.contains(&local))
        .map_or(IWARP_PORT, |device| port_for(device.capabilities.fabric))
}

#[cfg(not(feature = "verbs"))]
fn own_port(_: ProviderKind, _: IpAddr) -> u16 {
    port_for(rdma::Fabric::Iwarp)
}

/// Connects to each port, negotiates, and closes again.
fn attempts(kind: ProviderKind, address: IpAddr, ports: &[u16]) -> Result<Vec<Tried>, Error> {
    let reactor = Reactor::new(rdma::open(kind)?, ReactorOptions::default())?;
    reactor.spawn()?;
    let attempt = |port: &u16| {
        let started = Instant::now();
        let to = SocketAddr::new(address, *port);
        let result = reactor.connect(to, ChannelOptions::default()).wait();
        let took = started.elapsed();
        let result = result.map(|channel| {
            let info = channel.info().clone();
            channel.close(Close::Graceful(PATIENCE));
            channel.closed_blocking(Some(PATIENCE));
            info
        });
        Tried {
            port: *port,
            took,
            result,
        }
    };
    let tried = ports.iter().map(attempt).collect();
    reactor.shutdown(PATIENCE);
    Ok(tried)
}

/// A port that failed is no matter if another one is usable.
fn connection(report: &mut Report, tried: &Tried, usable: bool) {
    let (connect, negotiate) = (
        format!("connect {}", tried.port),
        format!("negotiate {}", tried.port),
    );
    let bad = if usable { Mark::Note } else { Mark::Fail };
    let ms = tried.took.as_secs_f64() * 1e3;
    match &tried.result {
        Ok(info) => {
            report.pass(&connect, format!("{ms:.1} ms, from {}", info.local));
            match &info.parameters {
                Some(parameters) => {
                    let version = parameters.version;
                    let text = format!("SMB Direct {}.{}", version >> 8, version & 0xff);
                    report.pass(&negotiate, text);
                }
                None => report.pass(&negotiate, "done"),
            }
            values(report, info);
        }
        Err(error) if remedy::was_connected(error) => {
            report.pass(&connect, "connected");
            let remedy = if usable { "" } else { remedy::of(error) };
            report.remark(bad, &negotiate, format!("{error} ({ms:.0} ms)"), remedy);
        }
        Err(error) => {
            let remedy = if usable { "" } else { remedy::of(error) };
            report.remark(bad, &connect, format!("{error} ({ms:.0} ms)"), remedy);
        }
    }
}

fn values(report: &mut Report, info: &Info) {
    let Some(p) = &info.parameters else { return };
    for (name, value) in [
        (
            "  send",
            format!(
                "{} B at a time, messages up to {}",
                units::count(p.max_send_size.into()),
                units::bytes(p.max_fragmented_send_size.into())
            ),
        ),
        (
            "  receive",
            format!(
                "{} B at a time, messages up to {}",
                units::count(p.max_receive_size.into()),
                units::bytes(p.max_fragmented_receive_size.into())
            ),
        ),
        (
            "  credits",
            format!(
                "{} granted, the server asks for {}",
                p.initial_send_credits, p.peer_credit_target
            ),
        ),
        (
            "  RDMA",
            format!(
                "up to {} for one request",
                units::bytes(p.max_read_write_size.into())
            ),
        ),
    ] {
        report.fact(name, value);
    }
}

/// Whether the server can be reached at the port of SMB over TCP, where every client begins.
fn over_tcp(report: &mut Report, address: IpAddr) -> bool {
    let to = SocketAddr::new(address, tcp::PORT);
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => {
            report.pass(
                "TCP 445",
                "open: clients begin here, and learn of RDMA from the server",
            );
            true
        }
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    "no SMB server there: clients begin on TCP, and find RDMA only then"
                }
                _ => "a firewall? Clients begin on TCP, and find RDMA only then",
            };
            report.remark(Mark::Note, "TCP 445", error.to_string(), remedy);
            false
        }
    }
}
