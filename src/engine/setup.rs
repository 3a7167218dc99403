//! Setting a connection up: queue pair, slots, negotiation, and the hand-over to whoever waits for it.

use std::sync::{Arc, Weak};

use tracing::info;

use super::Channel;
use super::attempt::Attempt;
use super::channel::Features;
use super::conn::{Conn, Context, Missing};
use super::group::Place;
use super::helper::Helper;
use super::listener::{Admitted, ListenShared};
use super::pool::{Registry, Reserved};
use super::rdma_header;
use super::reactor::Shared;
use super::retired::Retired;
use super::shared::ConnShared;
use crate::proto;
use crate::rdma::{ConnectParams, Fabric, PeerInfo, QpMade, QpOptions, RdmaError, RdmaOperation};
use crate::transport::{DisconnectReason, Info, TransportKind};

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
    /// Events taken in since the connection last moved on.
    pub(crate) unsettled: u32,
    /// It counts as one of the reactor's.
    pub(crate) _place: Place,
}

/// Where a connection comes from.
pub(crate) enum Origin {
    /// Connected; who waits, until it is negotiated.
    Connector(Option<Attempt>),
    /// Accepted by a listener.
    Listener {
        shared: Arc<ListenShared>,
        /// Its place among those that negotiate, until it has.
        admitted: Option<Admitted>,
    },
}

/// What came of work off the lock.
pub(crate) enum Done {
    /// The queue pair, where it was not made under the lock, and slots for the negotiation.
    QueuePair(Result<(Option<QpMade>, Reserved), RdmaError>),
    /// Slots for data, after the negotiation.
    Data(Result<Reserved, RdmaError>),
    /// More slots.
    Growth(Result<Reserved, RdmaError>),
}

/// A connection's context together with what its set-up needs.
pub(crate) struct Setup<'a, 'b> {
    pub(crate) cx: Context<'a>,
    pub(crate) registry: &'b Arc<Registry>,
    pub(crate) helper: &'b Helper,
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
    /// The peer's device and route are known, or a peer wants to connect: makes the queue pair.
    pub(crate) fn begin(&mut self, cx: &mut Setup<'_, '_>) {
        if self.peer.is_none() {
            self.peer = cx.provider.peer(self.conn.id);
        }
        if let Err(error) = self.make_queue_pair(cx) {
            self.conn.fail(error.into(), cx);
        }
    }

    /// Work that was done off the lock has ended.
    pub(crate) fn done(&mut self, done: Done, cx: &mut Setup<'_, '_>) {
        let result = match done {
            Done::QueuePair(result) => result.and_then(|(made, slots)| self.join(made, slots, cx)),
            Done::Data(result) => result.map(|slots| {
                self.conn.set_up_data(slots);
                self.hand_over(cx);
            }),
            Done::Growth(result) => {
                self.conn.grown(result, cx.now);
                Ok(())
            }
        };
        if let Err(error) = result {
            self.conn.fail(error.into(), cx);
        }
    }

    /// The queue pair is there: connects or accepts.
    fn join(
        &mut self,
        made: Option<QpMade>,
        slots: Reserved,
        cx: &mut Setup<'_, '_>,
    ) -> Result<(), RdmaError> {
        let id = self.conn.id;
        if let Some(made) = made
            && let Err(error) = cx.provider.finish_qp(id, made)
        {
            cx.retired.push(Retired::remains(slots));
            return Err(error);
        }
        self.conn.set_up(slots, cx)?;
        let capabilities = cx.provider.capabilities(id).ok_or(RdmaError::Closed)?;
        let iwarp = capabilities.fabric == Fabric::Iwarp;
        let mut params = self.params();
        if matches!(self.origin, Origin::Connector(_)) {
            if iwarp {
                // [MS-SMBD] 6.1: for peers whose iWARP does not negotiate the depths itself.
                params.private_data = self.offered_header().encode().to_vec();
            }
            return cx.cx.provider.connect(id, &params, cx.cx.now);
        }
        if let Some(request) = self.legacy.filter(|_| iwarp) {
            // [MS-SMBD] 6.2: a peer that sent the header gets one back, with the depths that fit both.
            let reply = self.offered_header().reply_to(request);
            params.initiator_depth = reply.responder_resources;
            params.responder_resources = reply.initiator_depth;
            params.private_data = reply.encode().to_vec();
        }
        cx.cx.provider.accept(id, &params, cx.cx.now)
    }

    /// How many RDMA reads the peer serves at a time: what the set-up agreed on, and no more than an acceptor says in its
    /// private data, which is all that it can do where its iWARP does not negotiate the depths ([MS-SMBD] 6.2).
    pub(crate) fn read_depth(&self, agreed: u16, private_data: &[u8], cx: &Setup<'_, '_>) -> u16 {
        let iwarp = cx
            .provider
            .capabilities(self.conn.id)
            .is_some_and(|capabilities| capabilities.fabric == Fabric::Iwarp);
        match rdma_header::Header::parse(private_data) {
            Some(answer) if iwarp && matches!(self.origin, Origin::Connector(_)) => {
                agreed.min(answer.initiator_depth)
            }
            _ => agreed,
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

    fn make_queue_pair(&mut self, cx: &mut Setup<'_, '_>) -> Result<(), RdmaError> {
        let id = self.conn.id;
        let capabilities = cx.provider.capabilities(id).ok_or(RdmaError::Closed)?;
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
        self.conn.set_depth(qp.send_depth, qp.max_gather as usize);
        let (registry, slots) = (cx.registry.clone(), self.conn.first_slots());
        match cx.cx.provider.begin_qp(id, &qp)? {
            Some(work) => self.off(true, cx, move || {
                Done::QueuePair(work.run().and_then(|made| {
                    let slots = registry.of(made.domain()).reserve(&slots)?;
                    Ok((Some(made), slots))
                }))
            }),
            None => {
                let pools = registry.of(&cx.cx.provider.domain(id)?);
                self.off(pools.domain().may_block(), cx, move || {
                    Done::QueuePair(pools.reserve(&slots).map(|slots| (None, slots)))
                })
            }
        }
    }

    /// Does work that blocks off the lock, and other work at once.
    fn off(
        &mut self,
        blocks: bool,
        cx: &mut Setup<'_, '_>,
        work: impl FnOnce() -> Done + Send + 'static,
    ) -> Result<(), RdmaError> {
        if !blocks {
            self.done(work(), cx);
            return Ok(());
        }
        let (reactor, id) = (cx.reactor.clone(), self.conn.id);
        cx.helper.submit(Box::new(move || {
            let done = work();
            // Else everything goes back where it came from.
            if let Some(reactor) = reactor.upgrade() {
                reactor.finished(id, done);
            }
        }))
    }

    /// Moves what can be moved, and reports what the protocol decided.
    pub(crate) fn settle(&mut self, cx: &mut Setup<'_, '_>) {
        self.conn.pump(cx);
        while let Some(event) = self.conn.proto.poll_event() {
            match event {
                proto::Event::Negotiated(parameters) => {
                    info!(?parameters, "negotiated");
                    if let Err(error) = self.prepare_data(cx) {
                        self.conn.fail(error.into(), cx);
                    }
                }
                proto::Event::Disconnect { reason, flush } => {
                    self.conn.disconnect(reason, flush, cx);
                }
            }
            self.conn.pump(cx);
        }
        if let Some(Missing { len, count, leave }) = self.conn.missing_slots()
            && let Some(pools) = self.conn.pools().cloned()
        {
            let work = move || Done::Growth(pools.grow(len, count, leave));
            if let Err(error) = self.off(true, cx, work) {
                self.conn.grown(Err(error), cx.now);
            }
        }
    }

    /// Makes slots for data. The connection is handed over when they are there.
    fn prepare_data(&mut self, cx: &mut Setup<'_, '_>) -> Result<(), RdmaError> {
        let pools = self.conn.pools().cloned().ok_or(RdmaError::Closed)?;
        let slots = self.conn.data_slots();
        self.off(pools.domain().may_block(), cx, move || {
            Done::Data(pools.reserve(&[slots]))
        })
    }

    /// Gives the negotiated connection to whoever waits for it.
    fn hand_over(&mut self, cx: &mut Setup<'_, '_>) {
        if self.conn.is_closed() {
            return;
        }
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
            parameters: self.conn.proto.parameters().cloned(),
        };
        let shared: Arc<ConnShared> = self.conn.shared.clone();
        let Some(pools) = self.conn.pools().cloned() else {
            return self.conn.fail(RdmaError::Closed.into(), cx);
        };
        let Some(capabilities) = cx.provider.capabilities(self.conn.id) else {
            return self.conn.fail(RdmaError::Closed.into(), cx);
        };
        let features = Features {
            exposure: capabilities.exposure,
            remote_invalidation: capabilities.remote_invalidation(),
            send_with_invalidate: capabilities.send_with_invalidate,
            // A descriptor's length has 32 bits.
            max_exposure: capabilities.max_exposure.clamp(1, u32::MAX.into()) as usize,
        };
        let options = self.conn.options.clone();
        let channel = Channel::new(reactor, shared, pools, info, features, options);
        match &mut self.origin {
            Origin::Connector(attempt) => {
                if let Some(attempt) = attempt.take() {
                    cx.cx.wakers.extend(attempt.waiter.complete(Ok(channel)));
                }
            }
            Origin::Listener { shared, admitted } => match shared.offer(channel) {
                Ok(waker) => {
                    *admitted = None;
                    cx.cx.wakers.extend(waker);
                }
                // It gives its place back, and is counted as failed, when it is gone.
                Err(limit) => self.conn.fail(DisconnectReason::NotAccepted { limit }, cx),
            },
        }
    }
}
