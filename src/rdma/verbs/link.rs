//! What a port's link is: its layer, its state, its speed.

use std::fmt;

use super::sys;

/// What a port's link is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkLayer {
    /// InfiniBand.
    Infiniband,
    /// Ethernet: RoCE or iWARP.
    Ethernet,
    /// The device does not say.
    Unspecified,
}

/// The state of a port's link. Only an active one carries connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkState {
    /// No link: no cable, or the network interface is down.
    Down,
    /// The link is there and waits for its subnet manager.
    Initializing,
    /// The subnet manager has seen it.
    Armed,
    /// Ready.
    Active,
    /// The device does not say, or something newer.
    Other(u32),
}

impl LinkLayer {
    pub(super) fn of(link: &sys::ibv_port_attr) -> Self {
        match link.link_layer {
            sys::LINK_LAYER_INFINIBAND => Self::Infiniband,
            sys::LINK_LAYER_ETHERNET => Self::Ethernet,
            _ => Self::Unspecified,
        }
    }
}

impl LinkState {
    pub(super) fn of(link: &sys::ibv_port_attr) -> Self {
        match link.state {
            1 => Self::Down,
            2 => Self::Initializing,
            3 => Self::Armed,
            sys::PORT_ACTIVE => Self::Active,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Infiniband => "InfiniBand",
            Self::Ethernet => "Ethernet",
            Self::Unspecified => "unspecified",
        })
    }
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("down"),
            Self::Initializing => f.write_str("initializing"),
            Self::Armed => f.write_str("armed"),
            Self::Active => f.write_str("active"),
            Self::Other(state) => write!(f, "state {state}"),
        }
    }
}

/// Bits per second of a port, from its width and the speed of a lane; `None` for numbers that mean nothing here.
pub(super) fn speed(link: &sys::ibv_port_attr) -> Option<u64> {
    let lanes = match link.active_width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return None,
    };
    // In Mbit/s: SDR, DDR, QDR and FDR10, FDR, EDR, HDR, NDR.
    let lane = match link.active_speed {
        1 => 2_500,
        2 => 5_000,
        4 | 8 => 10_000,
        16 => 14_062,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => return None,
    };
    Some(lanes * lane * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_lanes_times_rates() {
        // SAFETY: a structure of numbers.
        let mut link: sys::ibv_port_attr = unsafe { std::mem::zeroed() };
        assert_eq!(speed(&link), None);
        (link.active_width, link.active_speed) = (2, 32);
        assert_eq!(speed(&link), Some(100_000_000_000));
        (link.state, link.link_layer) = (4, 2);
        assert_eq!(LinkState::of(&link), LinkState::Active);
        assert_eq!(LinkLayer::of(&link).to_string(), "Ethernet");
    }
}
