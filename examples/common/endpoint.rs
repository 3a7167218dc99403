//! From `--provider` to something that connects or listens.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use smbdirect::engine::{ListenAt, Reactor, ReactorGroup, ReactorOptions};
use smbdirect::rdma::{self, Provider, ProviderKind, RdmaError};
use smbdirect::transport::{Error, tcp};

use crate::args::{Common, Wanted};

/// What messages will travel over.
pub(crate) struct Endpoint {
    /// Its name and why it was taken.
    pub(crate) choice: String,
    /// The port that such servers use at the address; 0 where it is not this machine's.
    #[allow(dead_code)] // Not every example has one.
    pub(crate) default_port: u16,
    /// Drive the RDMA provider; none on TCP.
    pub(crate) reactors: Option<ReactorGroup>,
}

impl Endpoint {
    pub(crate) fn open(common: &Common) -> Result<Self, String> {
        let asked = "as --provider says";
        match common.provider {
            Wanted::Tcp => Ok(Self {
                choice: format!("tcp, {asked}"),
                default_port: tcp::PORT,
                reactors: None,
            }),
            Wanted::Verbs => Self::direct(common, ProviderKind::Verbs, asked),
            Wanted::Iwarp => Self::direct(common, ProviderKind::Iwarp, asked),
            Wanted::Auto => {
                let choice = rdma::choose(local_end(common.address));
                Self::direct(common, choice.kind, &choice.why.to_string())
            }
        }
    }

    /// The address to connect to or to listen on.
    #[allow(dead_code)]
    pub(crate) fn address(&self, common: &Common) -> SocketAddr {
        (common.address, common.port.unwrap_or(self.default_port)).into()
    }

    /// Lets what was accepted be sent, then ends the driving thread.
    pub(crate) fn shut_down(&self) {
        if let Some(reactors) = &self.reactors {
            reactors.shutdown(Duration::from_secs(5));
        }
    }

    fn direct(common: &Common, kind: ProviderKind, why: &str) -> Result<Self, String> {
        let reactor = |_| Reactor::new(open(kind, common)?, ReactorOptions::default());
        let reactors = (0..common.reactors)
            .map(reactor)
            .collect::<Result<_, _>>()
            .and_then(ReactorGroup::new)
            .and_then(|group| group.spawn().map(|()| group))
            .map_err(|error| format!("provider {kind}: {error}"))?;
        let number = match common.reactors {
            1 => String::new(),
            number => format!(", {number} reactors"),
        };
        Ok(Self {
            choice: format!("{kind}, {why}{number}"),
            // A server that has the address listens there, and a client tries both ports if it is not told one.
            default_port: ListenAt::usual(kind, common.address).map_or(0, |at| at.address.port()),
            reactors: Some(reactors),
        })
    }
}

fn open(kind: ProviderKind, common: &Common) -> Result<Box<dyn Provider>, RdmaError> {
    match kind {
        ProviderKind::Iwarp => iwarp(common.crc),
        ProviderKind::Verbs => verbs(common.soft_roce_windows),
        _ => rdma::open(kind),
    }
}

#[cfg(feature = "iwarp")]
fn iwarp(crc: Option<bool>) -> Result<Box<dyn Provider>, RdmaError> {
    let mut config = rdma::iwarp::IwarpConfig::default();
    config.crc = crc.unwrap_or(config.crc);
    Ok(Box::new(rdma::iwarp::IwarpProvider::new(config)?))
}

#[cfg(not(feature = "iwarp"))]
fn iwarp(_: Option<bool>) -> Result<Box<dyn Provider>, RdmaError> {
    rdma::open(ProviderKind::Iwarp)
}

#[cfg(feature = "verbs")]
fn verbs(soft_roce_windows: bool) -> Result<Box<dyn Provider>, RdmaError> {
    let mut options = rdma::verbs::VerbsOptions::default();
    options.soft_roce_windows = soft_roce_windows;
    Ok(Box::new(rdma::verbs::Verbs::open_with(options)?))
}

#[cfg(not(feature = "verbs"))]
fn verbs(_: bool) -> Result<Box<dyn Provider>, RdmaError> {
    rdma::open(ProviderKind::Verbs)
}

/// The address of this machine that serves `address`: itself, or the one on the way to it. Sends
/// nothing: connecting a datagram socket only looks up the route.
fn local_end(address: IpAddr) -> IpAddr {
    let from = |from: IpAddr| UdpSocket::bind((from, 0));
    let any = match address {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    from(address)
        .or_else(|_| from(any).and_then(|socket| socket.connect((address, 9)).map(|()| socket)))
        .and_then(|socket| socket.local_addr())
        .map_or(address, |local| local.ip())
}

/// An error on an address, with what can be done about it.
pub(crate) fn explain(what: &str, address: SocketAddr, error: &Error) -> String {
    let hint = match io::Error::from(error.clone()).kind() {
        ErrorKind::PermissionDenied if address.port() < 1024 => {
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE: take another with --port"
        }
        ErrorKind::AddrInUse => "; something listens there already: take another with --port",
        ErrorKind::AddrNotAvailable => "; --address must be one of this machine's (`ip address`)",
        ErrorKind::ConnectionRefused => "; is the server running, with this --provider and --port?",
        _ => "",
    };
    format!("{what} {address}: {error}{hint}")
}
