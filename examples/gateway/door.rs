//! Who may come in: decided by the address, before a connection is one. Who is connected first and
//! then sent away may hang ([`parting`](crate::parting)).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use smbdirect::rdma::AcceptFilter;

use crate::allow::Network;
use crate::connections::{Connections, NoPlace};
use crate::report::Log;
use crate::sparing::Sparing;
use crate::watch::Watch;

/// What the log tells of who was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NotAllowed,
    NoPlace(NoPlace),
}

/// The rules, and how many did not keep them.
pub(crate) struct Door {
    allow: Vec<Network>,
    watch: Arc<Watch>,
    connections: Arc<Connections>,
    /// Who is told of as refused.
    refused: SyncSender<(IpAddr, Refusal)>,
    not_allowed: AtomicU64,
    backend_away: AtomicU64,
}

impl Door {
    /// `allow`: the networks from which clients may come; none for all.
    ///
    /// # Errors
    /// There is no thread for telling of who was refused; in words.
    pub(crate) fn new(
        allow: Vec<Network>,
        watch: Arc<Watch>,
        connections: Arc<Connections>,
        log: Log,
    ) -> Result<Arc<Self>, String> {
        let (refused, told) = sync_channel(16);
        tell_refused(told, log)?;
        Ok(Arc::new(Self {
            allow,
            watch,
            connections,
            refused,
            not_allowed: AtomicU64::new(0),
            backend_away: AtomicU64::new(0),
        }))
    }

    /// The rules, for a listener.
    pub(crate) fn filter(self: &Arc<Self>) -> AcceptFilter {
        let door = self.clone();
        AcceptFilter::new(move |peer| door.admits(peer))
    }

    /// Who was refused as being in no network of `--allow`.
    pub(crate) fn not_allowed(&self) -> u64 {
        self.not_allowed.load(Ordering::Relaxed)
    }

    /// Who was refused as the server was not there.
    pub(crate) fn backend_away(&self) -> u64 {
        self.backend_away.load(Ordering::Relaxed)
    }

    /// Must not block: it runs where all connections are served.
    fn admits(&self, peer: IpAddr) -> bool {
        let allowed =
            self.allow.is_empty() || self.allow.iter().any(|network| network.contains(peer));
        if !allowed {
            self.not_allowed.fetch_add(1, Ordering::Relaxed);
            return self.refuse(peer, Refusal::NotAllowed);
        }
        if self.watch.is_away() {
            self.backend_away.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        match self.connections.place_for(peer) {
            Ok(()) => true,
            Err(why) => self.refuse(peer, Refusal::NoPlace(why)),
        }
    }

    fn refuse(&self, peer: IpAddr, why: Refusal) -> bool {
        // Who is not told of is counted.
        let _ = self.refused.try_send((peer, why));
        false
    }
}

/// Prints who was refused.
fn tell_refused(refused: Receiver<(IpAddr, Refusal)>, log: Log) -> Result<(), String> {
    let tell = move || {
        let mut sparing = Sparing::new();
        for what in refused {
            sparing.tell(what, |(client, why)| match why {
                Refusal::NotAllowed => log.not_allowed(*client),
                Refusal::NoPlace(why) => log.refused(*client, *why),
            });
        }
    };
    let thread = thread::Builder::new().name("refusals".into());
    thread
        .spawn(tell)
        .map(drop)
        .map_err(|error| format!("no thread for telling of refused clients: {error}"))
}
