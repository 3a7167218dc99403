//! Where promises are tested: three providers and a clock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::rdma::sim::{DeviceOptions, Network, NetworkOptions};
use crate::rdma::{Armed, Provider};

/// Three providers that can reach each other, and a way to let time pass.
pub trait Bed {
    /// The provider of a side: 0 connects; 1 listens; 2 is a sibling of 1, of the same host.
    fn provider(&mut self, side: usize) -> &mut dyn Provider;

    /// Ends a side's provider.
    fn drop_provider(&mut self, side: usize);

    /// The address of the connecting side, if it must be given.
    fn local(&self) -> Option<IpAddr>;

    /// The address of the listening side.
    fn remote(&self) -> IpAddr;

    /// The time.
    fn now(&self) -> Instant;

    /// Lets time pass until one of these sides may have something to poll, at most until `until`. `false`: nothing
    /// will ever happen.
    fn pass(&mut self, sides: &[usize], until: Instant) -> bool;

    /// How long anything may take.
    fn patience(&self) -> Duration;
}

/// A bed on the simulated network.
#[derive(Debug)]
pub struct SimBed {
    // Providers end before the network, which then judges the violations.
    providers: [Option<crate::rdma::sim::SimProvider>; 3],
    pub(super) network: Network,
}

impl SimBed {
    /// The two hosts' devices.
    pub fn new(seed: u64, client: DeviceOptions, server: DeviceOptions) -> Self {
        let network = Network::new(seed, NetworkOptions::default());
        let [ours, theirs] = [1, 2].map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        Self {
            providers: [
                Some(network.provider_with(ours, client)),
                Some(network.provider_with(theirs, server.clone())),
                Some(network.provider_with(theirs, server)),
            ],
            network,
        }
    }
}

impl Bed for SimBed {
    fn provider(&mut self, side: usize) -> &mut dyn Provider {
        self.providers[side].as_mut().expect("not dropped")
    }

    fn drop_provider(&mut self, side: usize) {
        self.providers[side] = None;
    }

    fn local(&self) -> Option<IpAddr> {
        None
    }

    fn remote(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))
    }

    fn now(&self) -> Instant {
        self.network.now()
    }

    fn pass(&mut self, _sides: &[usize], until: Instant) -> bool {
        match self.network.next_event() {
            Some(at) => {
                self.network.advance_to(at.min(until));
                true
            }
            None => false,
        }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// A bed in real time, on providers with descriptors.
pub struct RealBed {
    providers: [Option<Box<dyn Provider>>; 3],
    local: Option<IpAddr>,
    remote: IpAddr,
    patience: Duration,
}

impl RealBed {
    /// Three providers as in [`Bed::provider`], the address of the first if it must be given, and that of the
    /// others.
    pub fn new(
        providers: [Box<dyn Provider>; 3],
        local: Option<IpAddr>,
        remote: IpAddr,
        patience: Duration,
    ) -> Self {
        Self {
            providers: providers.map(Some),
            local,
            remote,
            patience,
        }
    }
}

impl std::fmt::Debug for RealBed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RealBed({:?}, {})",
            self.local,
            SocketAddr::new(self.remote, 0)
        )
    }
}

impl Bed for RealBed {
    fn provider(&mut self, side: usize) -> &mut dyn Provider {
        &mut **self.providers[side].as_mut().expect("not dropped")
    }

    fn drop_provider(&mut self, side: usize) {
        self.providers[side] = None;
    }

    fn local(&self) -> Option<IpAddr> {
        self.local
    }

    fn remote(&self) -> IpAddr {
        self.remote
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn pass(&mut self, sides: &[usize], until: Instant) -> bool {
        let mut until = until;
        for side in sides {
            if let Some(provider) = &mut self.providers[*side] {
                if provider.arm().expect("a provider can be armed") == Armed::Ready {
                    return true;
                }
                until = provider.next_deadline().map_or(until, |at| at.min(until));
            }
        }
        let fds: Vec<BorrowedFd<'_>> = (sides.iter())
            .filter_map(|side| self.providers[*side].as_ref()?.fd())
            .collect();
        let mut fds: Vec<PollFd<'_>> = (fds.into_iter())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        // An interrupted wait is a short one.
        let _ = rustix::event::poll(&mut fds, Some(&time));
        true
    }

    fn patience(&self) -> Duration {
        self.patience
    }
}
