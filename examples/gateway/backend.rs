//! The SMB server that connections are forwarded to.

use std::fmt;
use std::io;
use std::net::ToSocketAddrs;
use std::time::Duration;

use smbdirect::transport::Error;
use smbdirect::transport::tcp::{Tcp, TcpOptions};

/// Where the server is, and how to connect to it.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// `HOST:PORT`.
    host: String,
    options: TcpOptions,
}

/// Why there is no connection to the server.
#[derive(Debug)]
pub(crate) enum Unreachable {
    /// The name means nothing.
    Resolve(io::Error),
    /// No address of it can be connected to; the last one's error.
    Connect(Error),
}

impl Backend {
    pub(crate) fn new(host: &str, timeout: Duration) -> Self {
        let mut options = TcpOptions::default();
        options.connect_timeout = timeout;
        Self {
            host: host.to_owned(),
            options,
        }
    }

    /// Connects to the first of its addresses that answers. The name is looked up each time.
    pub(crate) fn connect(&self) -> Result<Tcp, Unreachable> {
        let addresses = self.host.to_socket_addrs().map_err(Unreachable::Resolve)?;
        let none = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        let mut last = Unreachable::Resolve(none);
        for address in addresses {
            match Tcp::connect(address, self.options.clone()).wait() {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Unreachable::Connect(error),
            }
        }
        Err(last)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)
    }
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(error) => write!(f, "its name cannot be resolved: {error}"),
            Self::Connect(error) => error.fmt(f),
        }
    }
}
