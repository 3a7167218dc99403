//! Setting a connection up: queue pair, slots, negotiation, and the hand-over to whoever waits for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Weak};

use tracing::info;

use super::Channel;
use super::channel::Features;
use super::conn::{Conn, Context};
use super::listener::ListenShared;
use super::pool::Pools;
use super::rdma_header;
use super::reactor::Shared;
use super::shared::ConnShared;
use crate::proto;
use crate::rdma::{
    ConnectParams, Fabric, PeerInfo, QpOptions, RdmaError, RdmaOperation, ResolveOptions,
    SlabOptions,
};
use crate::transport::{Completer, DisconnectReason, Info, TransportKind};

/// Receives beyond the credits that the protocol may post: the one that a last credit needs, and the negotiation's.
const RECEIVE_HEADROOM: u32 = 3;

/// A connection and who waits for it.
pub(crate) struct Entry {
    pub(crate) conn: Conn,
    pub(crate) origin: Origin,
    pub(crate) peer: Option<PeerInfo>,
    /// What the peer asked for in the header of legacy iWARP peers.
    pub(crate) legacy: Option<rdma_header::Header>,
    pub(crate) span: tracing::Span,
}

/// A wish to connect.
pub(crate) struct Attempt {
    pub(crate) completer: Completer<Channel>,
    pub(crate) to: SocketAddr,
    pub(crate) resolve: ResolveOptions,
    /// How often it may begin anew when the device has chosen a port that is taken.
    pub(crate) again: u32,
}

/// Where a connection comes from.
pub(crate) enum Origin {
    /// Connected; who waits, until it is negotiated.
    Connector(Option<Attempt>),
    /// Accepted by a listener.
    Listener {
        shared: Arc<ListenShared>,
        peer: IpAddr,
        negotiating: bool,
    },
}

/// A connection's context together with what its set-up needs.
pub(crate) struct Setup<'a, 'b> {
    pub(crate) cx: Context<'a>,
    pub(crate) pools: &'b mut Vec<Weak<Mutex<Pools>>>,
    pub(crate) huge_pages: bool,
    pub(crate) reactor: &'b Weak<Shared>,
}

impl<'a> std::ops::Deref for Setup<'a, '_> {
    type Target = Context<'a>;

    fn deref(&self) -> &Context<'a> {
        &self.cx
    }
}

impl std::ops::DerefMut for Setup<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.cx
    }
}

impl Entry {
    /// The peer's device and route are known: makes the queue pair and connects.
    pub(crate) fn resolved(&mut self, cx: &mut Setup<'_, '_>) {
        self.peer = cx.provider.peer(self.conn.id);
        let result = self.make_queue_pair(cx).and_then(|fabric| {
            let mut params = self.params();
            if fabric == Fabric::Iwarp {
                // [MS-SMBD] 6.1: for peers whose iWARP does not negotiate the depths itself.
                params.private_data = self.offered_header().encode().to_vec();
            }
            cx.cx.provider.connect(self.conn.id, &params, cx.cx.now)
        });
        if let Err(error) = result {
            self.conn.fail(error.into(), cx);
        }
    }

    /// A peer wants to connect: makes the queue pair and accepts.
    pub(crate) fn accept(&mut self, cx: &mut Setup<'_, '_>) {
        let result = self.make_queue_pair(cx).and_then(|fabric| {
            let mut params = self.params();
            if fabric == Fabric::Iwarp
                && let Some(request) = self.legacy
            {
                // [MS-SMBD] 6.2: a peer that sent the header gets one back, with the depths that fit both.
                let reply = self.offered_header().reply_to(request);
                params.initiator_depth = reply.responder_resources;
                params.responder_resources = reply.initiator_depth;
                params.private_data = reply.encode().to_vec();
            }
            cx.cx.provider.accept(self.conn.id, &params, cx.cx.now)
        });
        if let Err(error) = result {
            self.conn.fail(error.into(), cx);
        }
    }

    fn params(&self) -> ConnectParams {
        let options = &self.conn.options;
        ConnectParams {
            initiator_depth: options.initiator_depth,
            responder_resources: options.responder_resources,
            ack_timeout: options.ack_timeout,
            ..ConnectParams::default()
        }
    }

    fn offered_header(&self) -> rdma_header::Header {
        rdma_header::Header {
            responder_resources: self.conn.options.responder_resources.max(1),
            initiator_depth: self.conn.options.initiator_depth.max(1),
        }
    }

    fn make_queue_pair(&mut self, cx: &mut Setup<'_, '_>) -> Result<Fabric, RdmaError> {
        let id = self.conn.id;
        let capabilities = cx.provider.capabilities(id).ok_or(RdmaError::Closed)?;
        let fabric = capabilities.fabric;
        let options = &self.conn.options;
        let credits = u32::from(options.protocol.receive_credit_max) + RECEIVE_HEADROOM;
        if capabilities.max_receive_depth < credits {
            return Err(RdmaError::Limit {
                operation: RdmaOperation::CreateQueuePair,
                asked: credits.into(),
                limit: capabilities.max_receive_depth.into(),
            });
        }
        let most_pieces = u32::try_from(capabilities.max_gather).unwrap_or(u32::MAX);
        let defaults = QpOptions::default();
        let qp = QpOptions {
            send_depth: options.send_depth.clamp(2, capabilities.max_send_depth),
            receive_depth: credits,
            max_gather: defaults.max_gather.min(most_pieces),
            ..defaults
        };
        let domain = cx.provider.domain(id)?;
        cx.provider.create_qp(id, &qp)?;
        let pools = match cx
            .pools
            .iter()
            .filter_map(Weak::upgrade)
            .find(|pools| Arc::ptr_eq(super::conn::lock(pools).domain(), &domain))
        {
            Some(pools) => pools,
            None => {
                let slab = SlabOptions {
                    huge_pages: cx.huge_pages,
                };
                let pools = Arc::new(Mutex::new(Pools::new(domain, slab)));
                cx.pools.push(Arc::downgrade(&pools));
                pools
            }
        };
        let max_pieces = qp.max_gather as usize;
        self.conn.set_up(pools, qp.send_depth, max_pieces, cx)?;
        Ok(fabric)
    }

    /// Moves what can be moved, and reports what the protocol decided.
    pub(crate) fn settle(&mut self, cx: &mut Setup<'_, '_>) {
        self.conn.pump(cx);
        while let Some(event) = self.conn.proto.poll_event() {
            match event {
                proto::Event::Negotiated(parameters) => {
                    if let Err(error) = self.conn.set_up_data() {
                        self.conn.fail(error.into(), cx);
                        continue;
                    }
                    info!(?parameters, "negotiated");
                    self.hand_over(parameters, cx);
                }
                proto::Event::Disconnect { reason, flush } => {
                    self.conn.disconnect(reason, flush, cx);
                }
            }
            self.conn.pump(cx);
        }
    }

    /// Gives the negotiated connection to whoever waits for it.
    fn hand_over(&mut self, parameters: proto::Parameters, cx: &mut Setup<'_, '_>) {
        let Some(reactor) = cx.reactor.upgrade() else {
            return self.conn.fail(DisconnectReason::ReactorGone, cx);
        };
        // The local end is known only now where the provider chose it while connecting.
        let peer = cx.provider.peer(self.conn.id).or_else(|| self.peer.clone());
        let Some(peer) = peer else {
            return self.conn.fail(RdmaError::Closed.into(), cx);
        };
        let info = Info {
            kind: TransportKind::SmbDirect,
            provider: Some(cx.provider.kind()),
            device: Some(peer.device.clone()),
            local: peer.local,
            peer: peer.remote,
            parameters: Some(parameters),
        };
        let shared: Arc<ConnShared> = self.conn.shared.clone();
        let Some(pools) = self.conn.pools.clone() else {
            return self.conn.fail(RdmaError::Closed.into(), cx);
        };
        let Some(capabilities) = cx.provider.capabilities(self.conn.id) else {
            return self.conn.fail(RdmaError::Closed.into(), cx);
        };
        let features = Features {
            exposure: capabilities.exposure,
            remote_invalidation: capabilities.remote_invalidation(),
            send_with_invalidate: capabilities.send_with_invalidate,
        };
        let options = self.conn.options.clone();
        let channel = Channel::new(reactor, shared, pools, info, features, options);
        match &mut self.origin {
            Origin::Connector(attempt) => {
                if let Some(attempt) = attempt.take() {
                    cx.cx.wakers.extend(attempt.completer.complete(Ok(channel)));
                }
            }
            Origin::Listener {
                shared,
                peer,
                negotiating,
            } => {
                *negotiating = false;
                shared.left(*peer);
                cx.cx.wakers.extend(shared.offer(channel));
            }
        }
    }
}
