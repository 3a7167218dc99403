//! Connected ends, and the ledger that every event goes through.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Bed;
use crate::rdma::{
    Capabilities, Close, CompletionStatus, ConnId, ConnectParams, Domain, Event, Incoming, IoBuf,
    IoPin, ListenOptions, ListenerId, LossReason, Operation, Pieces, PostError, Provider,
    QpOptions, RdmaError, RdmaOperation, RemoteAccess, RemoteAddress, ResolveOptions, SendRequest,
    Slab, SlabOptions, Window,
};

/// The connecting side.
pub(super) const CLIENT: usize = 0;
/// The listening side.
pub(super) const SERVER: usize = 1;
/// Another provider of the listening host.
pub(super) const SIBLING: usize = 2;

/// Bytes of the slots that [`Ends::prepare`] makes: more than any message of SMB Direct.
pub(super) const SLOT: usize = 8192;

/// How many connects of a promise may begin anew because the device has chosen a port that is taken.
const PORT_CHOICES: u32 = 8;

/// One end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Tip {
    pub(super) side: usize,
    pub(super) conn: ConnId,
    pub(super) slab: Slab,
}

/// Both ends.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) client: Tip,
    pub(super) server: Tip,
}

/// What a connection is to be like.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) qp: QpOptions,
    pub(super) receives: usize,
    pub(super) slots: u32,
    pub(super) client: ConnectParams,
    pub(super) server: ConnectParams,
    pub(super) adopter: usize,
}

impl Default for Setup {
    fn default() -> Self {
        let params = ConnectParams {
            timeout: Duration::from_secs(30),
            ..ConnectParams::default()
        };
        Self {
            qp: QpOptions {
                send_depth: 64,
                receive_depth: 64,
                ..QpOptions::default()
            },
            receives: 8,
            slots: 48,
            client: params.clone(),
            server: params,
            adopter: SERVER,
        }
    }
}

/// What is owed to one connection.
#[derive(Debug, Default)]
struct Ledger {
    receives: usize,
    cookies: VecDeque<u64>,
    established: bool,
    gone: bool,
}

/// The bed with everything that was reported and not asked for yet.
pub(super) struct Ends<'b> {
    pub(super) bed: &'b mut dyn Bed,
    events: [VecDeque<Event>; 3],
    ledgers: HashMap<(usize, ConnId), Ledger>,
    active: Vec<usize>,
    cookie: u64,
    port_choices: u32,
}

impl<'b> Ends<'b> {
    pub(super) fn new(bed: &'b mut dyn Bed) -> Self {
        Self {
            bed,
            events: Default::default(),
            ledgers: HashMap::new(),
            active: vec![CLIENT, SERVER, SIBLING],
            cookie: 0,
            port_choices: PORT_CHOICES,
        }
    }

    /// From now on only these sides are polled.
    pub(super) fn only(&mut self, sides: &[usize]) {
        self.active = sides.to_vec();
    }

    pub(super) fn provider(&mut self, side: usize) -> &mut dyn Provider {
        self.bed.provider(side)
    }

    /// Waits until `found` finds something.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut found: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let end = self.bed.now() + self.bed.patience();
        let mut alive = true;
        loop {
            let more = self.poll();
            if let Some(found) = found(self) {
                return found;
            }
            if !more && (!alive || self.bed.now() >= end) {
                panic!(
                    "waited in vain for {what}; reported meanwhile: {:?}",
                    self.events
                );
            }
            alive = more || self.bed.pass(&self.active.clone(), end);
        }
    }

    /// Lets a little time pass, for what should not happen.
    pub(super) fn linger(&mut self) {
        let end = self.bed.now() + Duration::from_millis(100);
        while self.bed.now() < end {
            self.poll();
            if !self.bed.pass(&self.active.clone(), end) {
                break;
            }
        }
        self.poll();
    }

    /// Polls all active sides until they have nothing more; whether anything was reported.
    fn poll(&mut self) -> bool {
        let now = self.bed.now();
        let mut any = false;
        for side in self.active.clone() {
            loop {
                let mut out = VecDeque::new();
                let more = self.bed.provider(side).poll(now, &mut out, 16);
                any |= !out.is_empty();
                for event in out {
                    self.note(side, &event);
                    self.events[side].push_back(event);
                }
                if !more {
                    break;
                }
            }
        }
        any
    }

    /// Every event pays a debt, and none comes after the last.
    fn note(&mut self, side: usize, event: &Event) {
        let conn = match event {
            Event::Incoming { .. } | Event::ListenerFailed { .. } => return,
            Event::Resolved { conn }
            | Event::Established { conn, .. }
            | Event::Received { conn, .. }
            | Event::Flushed { conn, .. }
            | Event::Completed { conn, .. }
            | Event::Disconnected { conn, .. } => *conn,
        };
        let ledger = self.ledgers.entry((side, conn)).or_default();
        assert!(!ledger.gone, "side {side}: {event:?} after Disconnected");
        match event {
            Event::Received { .. } | Event::Flushed { .. } => {
                assert!(ledger.receives > 0, "{event:?}, but no receive is posted");
                ledger.receives -= 1;
            }
            Event::Completed { request, .. } => {
                let next = ledger.cookies.pop_front();
                assert_eq!(next, Some(request.cookie), "completions come in order");
            }
            Event::Established { .. } => {
                assert!(!ledger.established, "established twice");
                ledger.established = true;
            }
            Event::Disconnected { .. } => {
                assert_eq!(ledger.receives, 0, "receives that never came back");
                assert!(ledger.cookies.is_empty(), "requests that never came back");
                ledger.gone = true;
            }
            _ => {}
        }
    }

    /// The first event of a side that fits, if it was reported.
    pub(super) fn take(&mut self, side: usize, fits: impl Fn(&Event) -> bool) -> Option<Event> {
        let events = &mut self.events[side];
        let index = events.iter().position(fits)?;
        events.remove(index)
    }

    /// Waits for the first event of a side that fits.
    pub(super) fn wait(
        &mut self,
        side: usize,
        what: &str,
        fits: impl Fn(&Event) -> bool + Copy,
    ) -> Event {
        self.until(what, |ends| ends.take(side, fits))
    }

    pub(super) fn listen(&mut self) -> (ListenerId, SocketAddr) {
        let address = SocketAddr::new(self.bed.remote(), 0);
        let options = ListenOptions::default();
        let listener = self.provider(SERVER).listen(address, &options).unwrap();
        let address = self.provider(SERVER).listener_address(listener).unwrap();
        assert_ne!(address.port(), 0);
        (listener, address)
    }

    /// A connection to an address, not resolved yet.
    pub(super) fn resolving(&mut self, to: SocketAddr) -> ConnId {
        let options = ResolveOptions {
            local: self.bed.local().map(|ip| SocketAddr::new(ip, 0)),
            timeout: Duration::from_secs(20),
            ..ResolveOptions::default()
        };
        let now = self.bed.now();
        self.provider(CLIENT).resolve(to, &options, now).unwrap()
    }

    pub(super) fn resolve(&mut self, to: SocketAddr) -> ConnId {
        let id = self.resolving(to);
        self.wait(
            CLIENT,
            "Resolved",
            |e| matches!(e, Event::Resolved { conn } if *conn == id),
        );
        id
    }

    /// Waits for the next wish to connect. Instead it may be found that the wish of the connecting side that is
    /// returned has met a port that is taken, and is to begin anew: soft-iWARP binds what the connection manager chose
    /// from a space of its own, and a TCP connection may have it.
    pub(super) fn arrival(&mut self, listener: ListenerId) -> Result<Incoming, ConnId> {
        let arrived =
            |e: &Event| matches!(e, Event::Incoming { listener: l, .. } if *l == listener);
        let event = self.until("Incoming", |ends| {
            let arrived = ends.take(SERVER, arrived);
            arrived.or_else(|| ends.take(CLIENT, is_taken_port))
        });
        match event {
            Event::Incoming { incoming, .. } => Ok(incoming),
            Event::Disconnected { conn, .. } => {
                self.forget(CLIENT, conn);
                let left = self.port_choices.checked_sub(1);
                self.port_choices = left.expect("a free port, sooner or later");
                Err(conn)
            }
            other => panic!("{other:?}"),
        }
    }

    /// A wish to connect that has arrived, and the client whose it is.
    pub(super) fn request(
        &mut self,
        listener: ListenerId,
        to: SocketAddr,
        setup: &Setup,
    ) -> (Tip, Incoming) {
        loop {
            let conn = self.resolve(to);
            let client = self.prepare(CLIENT, conn, setup);
            self.connect(&client, &setup.client);
            match self.arrival(listener) {
                Ok(incoming) => return (client, incoming),
                Err(taken) => assert_eq!(taken, client.conn),
            }
        }
    }

    pub(super) fn adopt(&mut self, side: usize, incoming: Incoming) -> ConnId {
        let now = self.bed.now();
        self.provider(side).adopt(incoming, now).unwrap()
    }

    /// Domain, memory, queue pair and receives of a resolved or adopted connection.
    pub(super) fn prepare(&mut self, side: usize, conn: ConnId, setup: &Setup) -> Tip {
        self.try_prepare(side, conn, setup).unwrap()
    }

    /// The same where it may be found that the peer has gone.
    pub(super) fn try_prepare(
        &mut self,
        side: usize,
        conn: ConnId,
        setup: &Setup,
    ) -> Result<Tip, RdmaError> {
        let domain = self.provider(side).domain(conn)?;
        let options = SlabOptions::default();
        let slab = Slab::new(&domain, SLOT, setup.slots, options)?;
        let provider = self.provider(side);
        if let Some(work) = provider.begin_qp(conn, &setup.qp)? {
            provider.finish_qp(conn, work.run()?)?;
        }
        let tip = Tip { side, conn, slab };
        self.receives(&tip, setup.receives);
        Ok(tip)
    }

    pub(super) fn connect(&mut self, tip: &Tip, params: &ConnectParams) {
        let now = self.bed.now();
        let provider = self.bed.provider(tip.side);
        provider.connect(tip.conn, params, now).unwrap();
    }

    pub(super) fn accept(&mut self, tip: &Tip, params: &ConnectParams) {
        let now = self.bed.now();
        let provider = self.bed.provider(tip.side);
        provider.accept(tip.conn, params, now).unwrap();
    }

    /// Waits for `Established`; its private data and depths.
    pub(super) fn established(&mut self, tip: &Tip) -> (Vec<u8>, u16, u16) {
        let id = tip.conn;
        let event = self.wait(tip.side, "Established", |e| match e {
            Event::Established { conn, .. } | Event::Disconnected { conn, .. } => *conn == id,
            _ => false,
        });
        match event {
            Event::Established {
                private_data,
                initiator_depth,
                responder_resources,
                ..
            } => (private_data, initiator_depth, responder_resources),
            other => panic!("side {}: not connected: {other:?}", tip.side),
        }
    }

    /// Two connected ends.
    pub(super) fn link(&mut self, setup: &Setup) -> Link {
        let (listener, address) = self.listen();
        let link = self.link_to(listener, address, setup);
        self.provider(SERVER).unlisten(listener);
        link
    }

    pub(super) fn link_to(
        &mut self,
        listener: ListenerId,
        address: SocketAddr,
        setup: &Setup,
    ) -> Link {
        let (client, incoming) = self.request(listener, address, setup);
        let conn = self.adopt(setup.adopter, incoming);
        let server = self.prepare(setup.adopter, conn, setup);
        self.accept(&server, &setup.server);
        self.established(&client);
        self.established(&server);
        // RFC 5044: the accepting side of an iWARP connection sends nothing before the first message of the
        // connecting side.
        self.post(&client, [say(&client.slab, b"hello")]);
        assert_eq!(self.message(&server).0, b"hello");
        self.receives(&server, 1);
        self.completions(&client, 1);
        Link { client, server }
    }

    pub(super) fn capabilities(&mut self, tip: &Tip) -> Capabilities {
        let provider = self.bed.provider(tip.side);
        provider
            .capabilities(tip.conn)
            .expect("of a living connection")
            .clone()
    }

    /// Posts so many receives of whole slots.
    pub(super) fn receives(&mut self, tip: &Tip, count: usize) {
        let slots = (0..count).map(|_| tip.slab.take().expect("slots enough"));
        let mut buffers: VecDeque<IoBuf> = slots.collect();
        let posted = self
            .bed
            .provider(tip.side)
            .post_receive(tip.conn, &mut buffers);
        let taken = count - buffers.len();
        self.ledgers
            .entry((tip.side, tip.conn))
            .or_default()
            .receives += taken;
        assert_eq!((posted, taken), (Ok(()), count));
    }

    /// Posts a chain; what was not taken comes back with the error.
    pub(super) fn try_post(
        &mut self,
        tip: &Tip,
        operations: impl IntoIterator<Item = (bool, Operation)>,
    ) -> (Result<(), PostError>, VecDeque<SendRequest>) {
        let first = self.cookie;
        let mut chain: VecDeque<SendRequest> = (operations.into_iter())
            .zip(first..)
            .map(|((signalled, operation), cookie)| SendRequest {
                cookie,
                signalled,
                operation,
            })
            .collect();
        let count = chain.len() as u64;
        let posted = self.bed.provider(tip.side).post_send(tip.conn, &mut chain);
        let taken = count - chain.len() as u64;
        let ledger = self.ledgers.entry((tip.side, tip.conn)).or_default();
        ledger.cookies.extend(first..first + taken);
        self.cookie += taken;
        (posted, chain)
    }

    /// Posts signalled requests, all of which must be taken.
    pub(super) fn post(&mut self, tip: &Tip, operations: impl IntoIterator<Item = Operation>) {
        let signalled = operations.into_iter().map(|operation| (true, operation));
        let (posted, rest) = self.try_post(tip, signalled);
        assert_eq!((posted, rest.len()), (Ok(()), 0));
    }

    /// Waits for the next completion.
    pub(super) fn completion(&mut self, tip: &Tip) -> (SendRequest, CompletionStatus) {
        let id = tip.conn;
        let event = self.wait(
            tip.side,
            "Completed",
            |e| matches!(e, Event::Completed { conn, .. } if *conn == id),
        );
        match event {
            Event::Completed {
                request, status, ..
            } => (request, status),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for so many completions, all of them successful.
    pub(super) fn completions(&mut self, tip: &Tip, count: usize) {
        for n in 0..count {
            let (request, status) = self.completion(tip);
            assert_eq!(status, CompletionStatus::Success, "{n}: {request:?}");
        }
    }

    /// Waits for the next message; the key that it invalidated.
    pub(super) fn message(&mut self, tip: &Tip) -> (Vec<u8>, Option<u32>) {
        let id = tip.conn;
        let event = self.wait(
            tip.side,
            "Received",
            |e| matches!(e, Event::Received { conn, .. } if *conn == id),
        );
        match event {
            Event::Received {
                buffer,
                invalidated,
                ..
            } => (buffer.to_vec(), invalidated),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of a connection; its completions and receives are forgotten.
    pub(super) fn loss(&mut self, tip: &Tip) -> LossReason {
        self.loss_of(tip.side, tip.conn)
    }

    pub(super) fn loss_of(&mut self, side: usize, id: ConnId) -> LossReason {
        let event = self.wait(
            side,
            "Disconnected",
            |e| matches!(e, Event::Disconnected { conn, .. } if *conn == id),
        );
        self.forget(side, id);
        match event {
            Event::Disconnected { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// Lets go of what a connection has given back.
    fn forget(&mut self, side: usize, id: ConnId) {
        self.events[side].retain(|e| match e {
            Event::Received { conn, .. }
            | Event::Flushed { conn, .. }
            | Event::Completed { conn, .. } => *conn != id,
            _ => true,
        });
    }

    /// How often this was reported for the connection and is still here.
    pub(super) fn count(&self, tip: &Tip, fits: impl Fn(&Event) -> bool) -> usize {
        self.events[tip.side].iter().filter(|e| fits(e)).count()
    }

    pub(super) fn close(&mut self, tip: &Tip, how: Close) {
        let now = self.bed.now();
        self.bed.provider(tip.side).close(tip.conn, how, now);
    }

    /// Aborts both ends; everything must come back, down to the last slot.
    pub(super) fn end(&mut self, link: Link) {
        self.close(&link.client, Close::Abort);
        assert_eq!(self.loss(&link.client), LossReason::Local);
        // The server may have heard of it, or be closed by us.
        self.close(&link.server, Close::Abort);
        self.loss(&link.server);
        self.no_leak(&link);
    }

    /// All slots are back.
    pub(super) fn no_leak(&mut self, link: &Link) {
        for tip in [&link.client, &link.server] {
            assert_eq!(
                tip.slab.free(),
                tip.slab.count(),
                "slots of side {}",
                tip.side
            );
        }
    }

    /// Exposes memory, and makes it valid.
    pub(super) fn expose(&mut self, tip: &Tip, memory: IoPin, access: RemoteAccess) -> Window {
        let window = self.open_window(tip, memory, access).unwrap();
        if window.needs_bind {
            self.post(tip, [Operation::Bind { window: window.id }]);
            self.completions(tip, 1);
        }
        window
    }

    pub(super) fn open_window(
        &mut self,
        tip: &Tip,
        memory: IoPin,
        access: RemoteAccess,
    ) -> Result<Window, RdmaError> {
        let exposure = self.capabilities(tip).exposure;
        let mut prepared = memory.prepare(exposure, access).unwrap();
        let provider = self.bed.provider(tip.side);
        provider.open_window(tip.conn, memory, access, &mut prepared)
    }
}

/// Bytes that follow from a seed, none of them zero.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8 | 1
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Whether the device had chosen a port for the connection that is taken.
fn is_taken_port(event: &Event) -> bool {
    let taken = |error: &RdmaError| {
        *error
            == RdmaError::Os {
                operation: RdmaOperation::Connect,
                errno: libc::EADDRINUSE,
            }
    };
    matches!(
        event,
        Event::Disconnected { reason: LossReason::Failed(error), .. } if taken(error)
    )
}

/// A buffer with these bytes.
pub(super) fn filled(slab: &Slab, bytes: &[u8]) -> IoBuf {
    let mut buf = slab.take().expect("slots enough");
    buf.set_len(bytes.len());
    buf.copy_from_slice(bytes);
    buf
}

/// A plain Send.
pub(super) fn send(message: Pieces) -> Operation {
    Operation::Send {
        message,
        invalidate: None,
        solicited: true,
    }
}

/// A plain Send of these bytes.
pub(super) fn say(slab: &Slab, bytes: &[u8]) -> Operation {
    send(Pieces::one(filled(slab, bytes)))
}

/// A place in a window.
pub(super) fn at(window: &Window, offset: u64) -> RemoteAddress {
    RemoteAddress {
        address: window.address + offset,
        key: window.key,
    }
}

/// Slots of another size in a connection's domain.
pub(super) fn slab(domain: &Arc<dyn Domain>, size: usize, count: u32) -> Slab {
    Slab::new(domain, size, count, SlabOptions::default()).unwrap()
}
