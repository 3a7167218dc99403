//! Connecting where the kind of transport is not known.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{PORT, Tcp, TcpOptions};
use crate::transport::{Connector, Op, Transport};

/// Connects by TCP, with the same options each time.
#[derive(Debug, Clone, Default)]
pub struct TcpConnector {
    options: TcpOptions,
}

impl TcpConnector {
    /// Connects with these options.
    pub fn new(options: TcpOptions) -> Self {
        Self { options }
    }
}

impl Connector for TcpConnector {
    fn connect(&self, mut to: SocketAddr) -> Op<Arc<dyn Transport>> {
        if to.port() == 0 {
            to.set_port(PORT);
        }
        Tcp::connect_as(to, self.options.clone(), |connection| Arc::new(connection))
    }
}
