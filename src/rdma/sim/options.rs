//! What the network and its devices are like.

use std::time::Duration;

use crate::rdma::{Capabilities, Exposure, Fabric};

/// The network between the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkOptions {
    /// The time that everything takes from host to host.
    pub latency: Duration,
    /// The most that is added to it at random. One connection's messages stay in order.
    pub jitter: Duration,
    /// Bytes per second from one host to another, shared by all connections; `None`: no limit.
    pub bandwidth: Option<u64>,
    /// The most by which the report of an event is late, at random: events of several connections are reordered,
    /// those of one never.
    pub report_jitter: Duration,
    /// How long a device tries to reach a silent peer before a request fails.
    pub retry_timeout: Duration,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        Self {
            latency: Duration::from_micros(10),
            jitter: Duration::from_micros(5),
            bandwidth: None,
            report_jitter: Duration::from_micros(5),
            retry_timeout: Duration::from_secs(4),
        }
    }
}

/// A device: what it says that it can do, and how it behaves beyond that.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceOptions {
    /// What the provider reports. Without `send_with_invalidate`, such a Send kills the queue pair; without
    /// `reports_invalidation`, a receive never says which key was invalidated; with [`Exposure::Registration`]
    /// there are no windows.
    pub capabilities: Capabilities,
    /// How it behaves.
    pub quirks: Quirks,
}

impl DeviceOptions {
    /// A device with the given name, fabric and exposure, without quirks.
    pub fn new(device: &str, fabric: Fabric, exposure: Exposure) -> Self {
        Self {
            capabilities: Capabilities::new(device, fabric, exposure),
            quirks: Quirks::default(),
        }
    }

    /// A RoCE device with type-2B windows that can everything: the default.
    pub fn roce() -> Self {
        Self::new("sim_roce", Fabric::Roce, Exposure::Window)
    }

    /// A software iWARP: windows need no bind, and a write completes when it is sent.
    pub fn iwarp() -> Self {
        Self::new("sim_iwarp", Fabric::Iwarp, Exposure::SoftwareWindow)
    }

    /// Like soft-RoCE of Linux: invalidating a free window panics the kernel, which is a violation.
    pub fn rxe() -> Self {
        let mut device = Self::new("sim_rxe", Fabric::Roce, Exposure::Window);
        device.capabilities.max_message = 8 << 20;
        device.quirks.free_invalidation_panics = true;
        device
    }

    /// Like soft-iWARP of Linux: no windows, no report of invalidation, Terminates without detail, and a dead peer
    /// is never noticed.
    pub fn siw() -> Self {
        let mut device = Self::new("sim_siw", Fabric::Iwarp, Exposure::Registration);
        device.capabilities.reports_invalidation = false;
        device.quirks.terminate_without_detail = true;
        device.quirks.silent_peer_death = true;
        device
    }

    /// Like a card whose Send with invalidate kills the queue pair, without windows for user space.
    pub fn bnxt() -> Self {
        let mut device = Self::new("sim_bnxt", Fabric::Roce, Exposure::Registration);
        device.capabilities.send_with_invalidate = false;
        device.capabilities.reports_invalidation = false;
        device
    }
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self::roce()
    }
}

/// Behaviour of a device that its capabilities do not show.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quirks {
    /// The initiator of a refused iWARP operation sees only the end of the connection.
    pub terminate_without_detail: bool,
    /// The accepting side hears of `Established` this much later than the connection is up: receives come before.
    pub established_delay: Duration,
    /// Posted requests and receives come back this much later than the connection has ended.
    pub flush_delay: Duration,
    /// A peer that is not reachable any more is never noticed, whatever is posted.
    pub silent_peer_death: bool,
    /// Successful unsignalled requests wait for the next completion that is reported. Else each is reported.
    pub lazy_unsignalled: bool,
    /// Invalidating a window that is free is a [`ViolationKind`](super::ViolationKind) and kills the connection.
    /// Else it does nothing.
    pub free_invalidation_panics: bool,
    /// Making queue pairs and registering memory may block, so that it must not be done under a lock. Without it
    /// both happen at once.
    pub creation_blocks: bool,
    /// Windows of one connection, at most.
    pub max_windows: usize,
}

impl Default for Quirks {
    fn default() -> Self {
        Self {
            terminate_without_detail: false,
            established_delay: Duration::ZERO,
            flush_delay: Duration::ZERO,
            silent_peer_death: false,
            lazy_unsignalled: true,
            free_invalidation_panics: false,
            creation_blocks: false,
            max_windows: 4096,
        }
    }
}

/// What was being posted when a post is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// A receive.
    Receive,
    /// A send request.
    Send,
}
