//! From `--provider` to something that connects or listens.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use smbdirect::engine::{Reactor, ReactorOptions};
use smbdirect::rdma::{self, Provider, ProviderKind, RdmaError};
use smbdirect::transport::{Error, tcp};

use crate::args::{Common, Wanted};

/// What messages will travel over.
pub(crate) struct Endpoint {
    /// Its name and why it was taken.
    pub(crate) choice: String,
    /// The port that such servers use.
    pub(crate) default_port: u16,
    /// Drives the RDMA provider; none on TCP.
    pub(crate) reactor: Option<Reactor>,
}

impl Endpoint {
    pub(crate) fn open(common: &Common) -> Result<Self, String> {
        let asked = "as --provider says";
        match common.provider {
            Wanted::Tcp => Ok(Self {
                choice: format!("tcp, {asked}"),
                default_port: tcp::PORT,
                reactor: None,
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
    pub(crate) fn address(&self, common: &Common) -> SocketAddr {
        (common.address, common.port.unwrap_or(self.default_port)).into()
    }

    /// Lets what was accepted be sent, then ends the driving thread.
    pub(crate) fn shut_down(&self) {
        if let Some(reactor) = &self.reactor {
            reactor.shutdown(Duration::from_secs(5));
        }
    }

    fn direct(common: &Common, kind: ProviderKind, why: &str) -> Result<Self, String> {
        let provider = open(kind, common.crc).map_err(|e| format!("provider {kind}: {e}"))?;
        let reactor = Reactor::new(provider, ReactorOptions::default())
            .and_then(|reactor| reactor.spawn().map(|()| reactor))
            .map_err(|error| format!("provider {kind}: {error}"))?;
        Ok(Self {
            choice: format!("{kind}, {why}"),
            default_port: match kind {
                ProviderKind::Iwarp => 5445,
                _ => 445,
            },
            reactor: Some(reactor),
        })
    }
}

#[cfg(feature = "iwarp")]
fn open(kind: ProviderKind, crc: Option<bool>) -> Result<Box<dyn Provider>, RdmaError> {
    use rdma::iwarp::{IwarpConfig, IwarpProvider};
    match (kind, crc) {
        (ProviderKind::Iwarp, Some(crc)) => {
            let mut config = IwarpConfig::default();
            config.crc = crc;
            Ok(Box::new(IwarpProvider::new(config)?))
        }
        _ => rdma::open(kind),
    }
}

#[cfg(not(feature = "iwarp"))]
fn open(kind: ProviderKind, _: Option<bool>) -> Result<Box<dyn Provider>, RdmaError> {
    rdma::open(kind)
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
