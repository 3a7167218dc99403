//! Where to listen: a set of (device, address, port).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::rdma::{Fabric, ProviderKind, RdmaError, RdmaOperation};
use crate::transport::port_for;

/// One place to listen at. A server's set of places comes from [`ListenAt::everywhere`], or address by address from
/// [`ListenAt::usual`]; a plain address is a place, too, with exactly the port that it says.
///
/// The set is by address and never by the wildcard where there are devices: a wildcard would take the same port on
/// all of them, and an iWARP device's port is one of TCP, so that port 445 would be taken from the host's SMB server
/// on TCP, or not to be had.
///
/// ```no_run
/// use smbdirect::engine::{ChannelOptions, ListenAt, Reactor};
/// # fn listen(reactor: &Reactor) -> Result<(), smbdirect::transport::Error> {
/// let places = ListenAt::everywhere(reactor.kind())?;
/// let listener = reactor.listen(&places, ChannelOptions::default())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ListenAt {
    /// The device that must have the address; `None`: whichever has it.
    pub device: Option<String>,
    /// The address and the port; port 0 lets the system choose.
    pub address: SocketAddr,
}

impl ListenAt {
    /// An address on whichever device has it.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            device: None,
            address,
        }
    }

    /// An address on this device and no other.
    pub fn on_device(device: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            device: Some(device.into()),
            address,
        }
    }

    /// An address of this host with the usual port of the device that has it: 445 on InfiniBand and RoCE, 5445 on
    /// iWARP and with the software iWARP.
    ///
    /// # Errors
    /// [`RdmaError::NoDevice`] if no device has the address; devices cannot be looked at.
    pub fn usual(kind: ProviderKind, address: IpAddr) -> Result<Self, RdmaError> {
        if kind == ProviderKind::Iwarp {
            return Ok(Self::new((address, port_for(Fabric::Iwarp)).into()));
        }
        Self::of_devices(kind)?
            .into_iter()
            .find(|place| place.address.ip() == address)
            .ok_or(RdmaError::NoDevice((address, 0).into()))
    }

    /// Every RDMA address of this host with its usual port: those of all devices whose link is up, or with the
    /// software iWARP all addresses. IPv6 link-local addresses are left out: they need a scope.
    ///
    /// # Errors
    /// [`RdmaError::NoDevices`] if there is none; devices cannot be looked at.
    pub fn everywhere(kind: ProviderKind) -> Result<Vec<Self>, RdmaError> {
        if kind == ProviderKind::Iwarp {
            // A socket on the IPv6 wildcard takes IPv4, too.
            let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
            let any = match v6 {
                true => IpAddr::from(Ipv6Addr::UNSPECIFIED),
                false => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            };
            return Self::usual(kind, any).map(|place| vec![place]);
        }
        let places = Self::of_devices(kind)?;
        if places.is_empty() {
            return Err(RdmaError::NoDevices);
        }
        Ok(places)
    }

    #[cfg(feature = "verbs")]
    fn of_devices(kind: ProviderKind) -> Result<Vec<Self>, RdmaError> {
        if kind != ProviderKind::Verbs {
            return Err(RdmaError::Unsupported(RdmaOperation::Open));
        }
        let mut places = Vec::new();
        for device in crate::rdma::verbs::devices()? {
            let port = port_for(device.capabilities.fabric);
            let addresses = device.addresses.iter().filter(|_| device.active);
            places.extend(addresses.map(|ip| Self::on_device(&device.name, (*ip, port).into())));
        }
        Ok(places)
    }

    #[cfg(not(feature = "verbs"))]
    fn of_devices(kind: ProviderKind) -> Result<Vec<Self>, RdmaError> {
        match kind {
            ProviderKind::Verbs => Err(RdmaError::VerbsNotBuilt),
            _ => Err(RdmaError::Unsupported(RdmaOperation::Open)),
        }
    }
}

impl From<SocketAddr> for ListenAt {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}
