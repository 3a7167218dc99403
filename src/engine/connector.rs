//! Connecting where the kind of transport is not known.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{ChannelOptions, ReactorGroup};
use crate::rdma::ResolveOptions;
use crate::transport::{Connector, Op, Transport};

/// Connects by SMB Direct on a reactor or a group of them, with the same options each time.
#[derive(Debug, Clone)]
pub struct DirectConnector {
    reactors: ReactorGroup,
    resolve: ResolveOptions,
    options: ChannelOptions,
}

impl DirectConnector {
    /// Connects on a [`Reactor`](super::Reactor) or a [`ReactorGroup`] with these options.
    pub fn new(reactors: impl Into<ReactorGroup>, options: ChannelOptions) -> Self {
        Self {
            reactors: reactors.into(),
            resolve: ResolveOptions::default(),
            options,
        }
    }

    /// With the choice of local address and fabric.
    pub fn resolving(self, resolve: ResolveOptions) -> Self {
        Self { resolve, ..self }
    }
}

impl Connector for DirectConnector {
    fn connect(&self, to: SocketAddr) -> Op<Arc<dyn Transport>> {
        self.reactors
            .next()
            .connect_transport(to, &self.resolve, self.options.clone())
    }
}
