//! A listening id.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::cm::{CmId, EventChannel};
use super::context::Presence;
use super::device::name;
use super::errors;
use crate::rdma::{ListenOptions, RdmaError, RdmaOperation};

/// A listening id.
pub(super) struct Listener {
    pub(super) cm: CmId,
    pub(super) address: SocketAddr,
    /// That of its device, where it is on one.
    presence: Option<Presence>,
}

impl Listener {
    pub(super) fn open(
        channel: &Arc<EventChannel>,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Result<Self, RdmaError> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => RdmaError::AddressInUse(address),
            Some(libc::EACCES) => RdmaError::PrivilegedPort(address),
            Some(libc::ENODEV | libc::EADDRNOTAVAIL | libc::ENOENT) => {
                errors::hidden_device().unwrap_or(RdmaError::NoDevice(address))
            }
            _ => RdmaError::os(RdmaOperation::Listen, &error),
        };
        let cm = CmId::new(channel).map_err(failed)?;
        if address.is_ipv6() {
            cm.set_one_family().map_err(failed)?;
        }
        if let Some(value) = options.type_of_service {
            cm.set_type_of_service(value).map_err(failed)?;
        }
        cm.bind(address)
            .map_err(|error| match is_taken(channel, address, &error) {
                true => RdmaError::AddressInUse(address),
                false => failed(error),
            })?;
        // The loopback can be bound to, and listened on in vain.
        if !address.ip().is_unspecified() && cm.verbs().is_none() {
            return Err(errors::hidden_device().unwrap_or(RdmaError::NoDevice(address)));
        }
        if let Some(wanted) = &options.device
            && cm
                .verbs()
                .is_none_or(|verbs| name(verbs.as_ptr()) != *wanted)
        {
            let wanted = wanted.clone();
            return Err(RdmaError::WrongDevice { address, wanted });
        }
        // SAFETY: the device of an id is open as long as the id.
        let presence = cm.verbs().map(|verbs| unsafe { Presence::of(verbs) });
        if presence.as_ref().is_some_and(Presence::is_over) {
            return Err(RdmaError::DeviceRemoved);
        }
        cm.listen(options.backlog).map_err(failed)?;
        Ok(Self {
            presence,
            address: cm.local().unwrap_or(address),
            cm,
        })
    }

    /// Whether its device is gone, or about to go.
    pub(super) fn is_removed(&self) -> bool {
        self.presence.as_ref().is_some_and(Presence::is_over)
    }
}

/// Whether an address could not be bound to because a listener has its port. Where one of the two is
/// on every address, Linux says EADDRNOTAVAIL, as of an address that is nobody's.
fn is_taken(channel: &Arc<EventChannel>, address: SocketAddr, error: &io::Error) -> bool {
    let mut any_port = address;
    any_port.set_port(0);
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
        && CmId::new(channel).is_ok_and(|cm| cm.bind(any_port).is_ok())
}
