//! Client and server on the two devices, and what they wait for.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::end::End;
use crate::rdma::verbs::{Verbs, VerbsOptions};
use crate::rdma::{
    Close, CompletionStatus, ConnId, ConnectParams, Event, Incoming, IoBuf, ListenOptions,
    ListenerId, LossReason, Operation, Provider, ResolveOptions, SendRequest,
};

/// No step takes longer, however slow the guest.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The two addresses, or `None` outside of the guest.
pub(super) fn addresses() -> Option<(IpAddr, IpAddr)> {
    if std::env::var_os("SMBDIRECT_GUEST").is_none() {
        eprintln!("not run: this is no guest with RDMA devices");
        return None;
    }
    let address = |name: &str, default: &str| {
        let value = std::env::var(name).unwrap_or(default.into());
        value.parse().unwrap()
    };
    Some((address("LOCAL", "10.0.1.1"), address("REMOTE", "10.0.1.2")))
}

/// Whether the devices are soft-RoCE's.
pub(super) fn soft_roce() -> bool {
    std::env::var("DEVICE").is_ok_and(|device| device == "rxe")
}

pub(super) struct Side {
    pub(super) verbs: Verbs,
    pub(super) events: VecDeque<Event>,
}

impl Side {
    pub(super) fn new() -> Self {
        Self::with(VerbsOptions::default())
    }

    pub(super) fn with(options: VerbsOptions) -> Self {
        Self {
            verbs: Verbs::open_with(options).unwrap(),
            events: VecDeque::new(),
        }
    }

    pub(super) fn poll(&mut self) {
        self.verbs.poll(Instant::now(), &mut self.events, 16);
    }

    /// Polls until a connection is gone, without any time going by for the provider.
    pub(super) fn disconnected_without_time(&mut self) {
        let now = Instant::now();
        let gone = |event: &Event| matches!(event, Event::Disconnected { .. });
        while !self.events.iter().any(gone) {
            // Else the descriptors are looked at from time to time only.
            let _ = self.verbs.arm();
            self.verbs.poll(now, &mut self.events, 16);
            assert!(now.elapsed() < PATIENCE, "{:?}", self.events);
        }
    }

    pub(super) fn take<T>(
        &mut self,
        wanted: &mut impl FnMut(&Event) -> Option<T>,
    ) -> Option<(T, Event)> {
        let place = self
            .events
            .iter()
            .position(|event| wanted(event).is_some())?;
        let event = self.events.remove(place)?;
        Some((wanted(&event)?, event))
    }
}

/// Client and server, polled in turn.
pub(super) struct World {
    pub(super) client: Side,
    pub(super) server: Side,
    pub(super) local: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) listener: ListenerId,
    pub(super) port: u16,
    /// What the client resolves with.
    pub(super) type_of_service: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Who {
    Client,
    Server,
}

impl World {
    pub(super) fn new() -> Option<Self> {
        addresses().map(Self::between)
    }

    /// One after the other: as devices are used by default, and with windows also on soft-RoCE. The latter is not tried on
    /// a device to which it makes no difference.
    pub(super) fn with_and_without_windows() -> impl Iterator<Item = Self> {
        let trusting = VerbsOptions {
            soft_roce_windows: true,
        };
        [VerbsOptions::default(), trusting]
            .into_iter()
            .filter(|options| !options.soft_roce_windows || soft_roce())
            .filter_map(|options| Some(Self::with(addresses()?, &options)))
    }

    pub(super) fn between(addresses: (IpAddr, IpAddr)) -> Self {
        Self::with(addresses, &VerbsOptions::default())
    }

    fn with((local, remote): (IpAddr, IpAddr), options: &VerbsOptions) -> Self {
        let (client, mut server) = (Side::with(options.clone()), Side::with(options.clone()));
        let address = SocketAddr::new(remote, 0);
        let listener = server
            .verbs
            .listen(address, &ListenOptions::default())
            .unwrap();
        let port = server.verbs.listener_address(listener).unwrap().port();
        assert_ne!(port, 0);
        Self {
            client,
            server,
            local,
            remote,
            listener,
            port,
            type_of_service: None,
        }
    }

    pub(super) fn side(&mut self, who: Who) -> &mut Side {
        match who {
            Who::Client => &mut self.client,
            Who::Server => &mut self.server,
        }
    }

    /// The first event of one side that is wanted; others are kept.
    pub(super) fn wait<T>(
        &mut self,
        who: Who,
        mut wanted: impl FnMut(&Event) -> Option<T>,
    ) -> (T, Event) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.side(who).take(&mut wanted) {
                return found;
            }
            self.client.poll();
            self.server.poll();
            assert!(
                Instant::now() < end,
                "nothing came; client {:?}, server {:?}",
                self.client.events,
                self.server.events
            );
        }
    }

    pub(super) fn target(&self) -> SocketAddr {
        SocketAddr::new(self.remote, self.port)
    }

    pub(super) fn resolve(&mut self) -> ConnId {
        let options = ResolveOptions {
            local: Some(SocketAddr::new(self.local, 0)),
            type_of_service: self.type_of_service,
            ..ResolveOptions::default()
        };
        let target = self.target();
        let conn = self
            .client
            .verbs
            .resolve(target, &options, Instant::now())
            .unwrap();
        self.wait(Who::Client, |event| match event {
            Event::Resolved { conn } => Some(*conn),
            Event::Disconnected { reason, .. } => panic!("{reason:?}"),
            _ => None,
        });
        conn
    }

    pub(super) fn incoming(&mut self) -> Incoming {
        let found = self.wait(Who::Server, |event| {
            matches!(event, Event::Incoming { .. }).then_some(())
        });
        match found.1 {
            Event::Incoming { incoming, listener } => {
                assert_eq!(listener, self.listener);
                incoming
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn connect(&mut self) -> (End, End) {
        self.connect_with(&ConnectParams::default(), &ConnectParams::default())
            .0
    }

    /// Connects, and returns what each side was told: private data and depths.
    pub(super) fn connect_with(
        &mut self,
        c: &ConnectParams,
        s: &ConnectParams,
    ) -> ((End, End), [Told; 2]) {
        let conn = self.resolve();
        let client = End::new(Who::Client, self, conn);
        self.client.verbs.connect(conn, c, Instant::now()).unwrap();
        let incoming = self.incoming();
        assert_eq!(incoming.peer().remote.ip(), self.local);
        let conn = self.server.verbs.adopt(incoming, Instant::now()).unwrap();
        let server = End::new(Who::Server, self, conn);
        self.server.verbs.accept(conn, s, Instant::now()).unwrap();
        let told = [Who::Client, Who::Server].map(|who| {
            let found = self.wait(who, |event| match event {
                Event::Established { .. } => Some(()),
                Event::Disconnected { reason, .. } => panic!("{reason:?}"),
                _ => None,
            });
            match found.1 {
                Event::Established {
                    private_data,
                    initiator_depth,
                    responder_resources,
                    ..
                } => (private_data, initiator_depth, responder_resources),
                other => panic!("{other:?}"),
            }
        });
        ((client, server), told)
    }

    /// Posts requests and waits for the status of the last.
    pub(super) fn execute(&mut self, end: &End, chain: Vec<Operation>) -> CompletionStatus {
        let count = chain.len();
        let mut chain: VecDeque<SendRequest> = chain
            .into_iter()
            .enumerate()
            .map(|(i, operation)| SendRequest {
                cookie: i as u64,
                signalled: i + 1 == count,
                operation,
            })
            .collect();
        self.side(end.who)
            .verbs
            .post_send(end.conn, &mut chain)
            .unwrap();
        assert!(chain.is_empty());
        let conn = end.conn;
        let mut last = CompletionStatus::Success;
        for i in 0..count {
            let found = self.wait(end.who, |event| match event {
                Event::Completed {
                    conn: c, status, ..
                } if *c == conn => Some(*status),
                Event::Disconnected { conn: c, reason } if *c == conn => panic!("{reason:?}"),
                _ => None,
            });
            match found {
                (status, Event::Completed { request, .. }) => {
                    assert_eq!(request.cookie, i as u64);
                    last = status;
                }
                other => panic!("{other:?}"),
            }
        }
        last
    }

    pub(super) fn received(&mut self, end: &End) -> (IoBuf, Option<u32>) {
        let conn = end.conn;
        let found = self.wait(end.who, |event| match event {
            Event::Received { conn: c, .. } if *c == conn => Some(()),
            Event::Disconnected { conn: c, reason } if *c == conn => panic!("{reason:?}"),
            _ => None,
        });
        match found.1 {
            Event::Received {
                buffer,
                invalidated,
                ..
            } => (buffer, invalidated),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn disconnected(&mut self, end: &End) -> LossReason {
        let conn = end.conn;
        let (reason, _) = self.wait(end.who, |event| match event {
            Event::Disconnected { conn: c, reason } if *c == conn => Some(reason.clone()),
            _ => None,
        });
        // Nothing comes after it.
        let side = self.side(end.who);
        assert!(side.verbs.peer(conn).is_none());
        side.poll();
        reason
    }

    pub(super) fn close(&mut self, end: &End, how: Close) {
        self.side(end.who)
            .verbs
            .close(end.conn, how, Instant::now());
    }

    pub(super) fn end(&mut self, ends: (End, End)) {
        self.close(&ends.0, Close::Abort);
        assert_eq!(self.disconnected(&ends.0), LossReason::Local);
        self.disconnected(&ends.1);
        self.balanced(&ends.0);
        self.balanced(&ends.1);
    }

    /// Every buffer has come back, once.
    pub(super) fn balanced(&mut self, end: &End) {
        let conn = end.conn;
        let side = self.side(end.who);
        while side
            .take(&mut |event| match event {
                Event::Flushed { conn: c, .. } | Event::Received { conn: c, .. } if *c == conn => {
                    Some(())
                }
                _ => None,
            })
            .is_some()
        {}
        assert_eq!(end.messages.free(), end.messages.count(), "{:?}", end.who);
    }
}

/// Private data, initiator depth, responder resources.
pub(super) type Told = (Vec<u8>, u16, u16);
