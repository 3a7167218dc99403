//! A connection, and `smb2`'s two transport traits over it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use smb2::transport::{TransportReceive, TransportSend};
use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
use smbdirect::rdma::verbs::{Verbs, VerbsOptions};
use smbdirect::rdma::{self, Provider, ProviderKind};
use smbdirect::transport::tcp::{Tcp, TcpOptions};
use smbdirect::transport::{ApiMisuse, Close, Error, Transport, TransportExt};

use crate::args::Carrier;
use crate::failure::Result;

/// More than an orderly end takes.
const LINGER: Duration = Duration::from_secs(10);

/// A connection to a server.
pub(crate) struct Link {
    pub(crate) transport: Arc<dyn Transport>,
    /// Drives it; none on TCP.
    reactor: Option<Reactor>,
}

impl Link {
    pub(crate) async fn connect(carrier: Carrier, server: std::net::SocketAddr) -> Result<Self> {
        let provider = match carrier {
            Carrier::Verbs => rdma::open(ProviderKind::Verbs),
            Carrier::Windows => {
                let mut options = VerbsOptions::default();
                options.soft_roce_windows = true;
                Verbs::open_with(options).map(|verbs| -> Box<dyn Provider> { Box::new(verbs) })
            }
            Carrier::Iwarp => rdma::open(ProviderKind::Iwarp),
            Carrier::Tcp => {
                let tcp = Tcp::connect(server, TcpOptions::default()).await?;
                return Ok(Self {
                    transport: Arc::new(tcp),
                    reactor: None,
                });
            }
        };
        let reactor = Reactor::new(provider.map_err(Error::from)?, ReactorOptions::default())?;
        reactor.spawn()?;
        let channel = reactor.connect(server, ChannelOptions::default()).await?;
        Ok(Self {
            transport: Arc::new(channel),
            reactor: Some(reactor),
        })
    }

    /// The two halves that `smb2` wants.
    pub(crate) fn halves(&self) -> (Box<dyn TransportSend>, Box<dyn TransportReceive>) {
        (
            Box::new(Half(self.transport.clone())),
            Box::new(Half(self.transport.clone())),
        )
    }

    /// Sends what was accepted and ends.
    pub(crate) async fn close(self) {
        self.transport.close(Close::Graceful(LINGER));
        self.transport.closed().await;
        if let Some(reactor) = self.reactor {
            reactor.shutdown(LINGER);
        }
    }
}

/// One direction of a connection; both share it.
struct Half(Arc<dyn Transport>);

#[async_trait]
impl TransportSend for Half {
    async fn send(&self, data: &[u8]) -> smb2::Result<()> {
        TransportExt::send(&*self.0, data).await.map_err(lost)
    }
}

#[async_trait]
impl TransportReceive for Half {
    async fn receive(&self) -> smb2::Result<Vec<u8>> {
        match self.0.recv().await.map_err(lost)? {
            Some(message) => Ok(message.to_vec()),
            None => Err(smb2::Error::Disconnected),
        }
    }
}

/// In the words of `smb2`. A message that is too large is the caller's mistake; the connection
/// lives.
fn lost(error: Error) -> smb2::Error {
    match error {
        Error::ApiMisuse(rule @ ApiMisuse::MessageTooLarge { .. }) => {
            smb2::Error::invalid_data(rule.to_string())
        }
        _ => smb2::Error::Disconnected,
    }
}
