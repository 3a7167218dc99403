//! Choosing and opening a provider by name or by address.

use std::fmt;
use std::net::IpAddr;

use super::{Provider, ProviderKind, RdmaError};

/// Opens a provider with its defaults.
///
/// # Errors
/// The crate was built without it, the RDMA libraries or devices are missing, or they may not be used.
pub fn open(kind: ProviderKind) -> Result<Box<dyn Provider>, RdmaError> {
    match kind {
        #[cfg(feature = "iwarp")]
        ProviderKind::Iwarp => {
            let provider = super::iwarp::IwarpProvider::new(super::iwarp::IwarpConfig::default())?;
            Ok(Box::new(provider))
        }
        #[cfg(not(feature = "iwarp"))]
        ProviderKind::Iwarp => Err(RdmaError::IwarpNotBuilt),
        #[cfg(feature = "verbs")]
        ProviderKind::Verbs => Ok(Box::new(super::verbs::Verbs::open()?)),
        #[cfg(not(feature = "verbs"))]
        ProviderKind::Verbs => Err(RdmaError::VerbsNotBuilt),
        // A simulated network is made by the test that owns it.
        ProviderKind::Sim => Err(RdmaError::Unsupported(super::RdmaOperation::Open)),
    }
}

/// Which provider fits a local address: verbs if an RDMA device has it, else the software iWARP.
pub fn choose(local: IpAddr) -> Choice {
    #[cfg(feature = "verbs")]
    {
        match super::verbs::device_for(local) {
            Ok((device, _port)) => Choice {
                kind: ProviderKind::Verbs,
                why: Why::Device(device),
            },
            Err(RdmaError::NoDevice(_) | RdmaError::NoDevices) => Choice {
                kind: ProviderKind::Iwarp,
                why: Why::NoDevice(local),
            },
            Err(error) => Choice {
                kind: ProviderKind::Iwarp,
                why: Why::Unusable(error),
            },
        }
    }
    #[cfg(not(feature = "verbs"))]
    {
        let _ = local;
        Choice {
            kind: ProviderKind::Iwarp,
            why: Why::NotBuilt,
        }
    }
}

/// A provider, and why it is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Choice {
    /// The provider.
    pub kind: ProviderKind,
    /// Why.
    pub why: Why,
}

/// Why a provider was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// This RDMA device has the address.
    Device(String),
    /// No RDMA device has it.
    NoDevice(IpAddr),
    /// RDMA devices cannot be looked at.
    Unusable(RdmaError),
    /// The crate was built without verbs.
    NotBuilt,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(device) => write!(f, "RDMA device {device} has the address"),
            Self::NoDevice(address) => write!(f, "no RDMA device has the address {address}"),
            Self::Unusable(error) => write!(f, "RDMA devices cannot be used: {error}"),
            Self::NotBuilt => f.write_str("built without the feature `verbs`"),
        }
    }
}
