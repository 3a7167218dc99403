//! Which devices there are, and which of them serves which address.

use std::net::{IpAddr, SocketAddr};
use std::ptr::NonNull;

use super::VerbsOptions;
use super::cm::{CmId, EventChannel};
use super::device::{name, probe};
use super::errors;
use super::gids::{Gid, gids};
use super::interfaces::interfaces;
use super::link::{LinkLayer, LinkState, speed};
use super::sys;
use crate::rdma::{Capabilities, RdmaError, RdmaOperation};

/// One port of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The device's name, as `rdma link` shows it.
    pub name: String,
    /// The port's number.
    pub port: u8,
    /// What it can do.
    pub capabilities: Capabilities,
    /// The local addresses that it serves.
    pub addresses: Vec<IpAddr>,
    /// Whether the link is up.
    pub active: bool,
    /// The state of the link.
    pub state: LinkState,
    /// What the link is made of.
    pub link_layer: LinkLayer,
    /// Bits per second, where the device says; see [`interfaces`](super::interfaces()) for the interface's.
    pub speed: Option<u64>,
    /// The GIDs of the port.
    pub gids: Vec<Gid>,
}

/// All ports of all devices, each with the local addresses it serves. Empty on a machine without a device.
///
/// # Errors
/// The libraries cannot be loaded, or there is no permission.
pub fn devices() -> Result<Vec<DeviceInfo>, RdmaError> {
    let mut found = ports()?;
    // Addresses are the connection manager's knowledge; without it the devices are listed all the same.
    if found.is_empty() {
        return Ok(found);
    }
    let channel = EventChannel::open()?;
    let mut addresses: Vec<IpAddr> = interfaces().into_iter().map(|i| i.address).collect();
    addresses.dedup();
    for address in addresses {
        if let Ok((device, port)) = serving(&channel, address)
            && let Some(info) = found
                .iter_mut()
                .find(|info| info.name == device && info.port == port)
        {
            info.addresses.push(address);
        }
    }
    Ok(found)
}

/// The name and the port of the device that serves a local address.
///
/// # Errors
/// [`RdmaError::NoDevice`] if none does; the libraries cannot be loaded, or there is no permission.
pub fn device_for(address: IpAddr) -> Result<(String, u8), RdmaError> {
    serving(&EventChannel::open()?, address)
}

fn serving(
    channel: &std::sync::Arc<EventChannel>,
    address: IpAddr,
) -> Result<(String, u8), RdmaError> {
    let none =
        || errors::hidden_device().unwrap_or(RdmaError::NoDevice(SocketAddr::new(address, 0)));
    let id = CmId::new(channel).map_err(|e| RdmaError::os(RdmaOperation::Open, &e))?;
    // An address without a device of its own, such as the loopback, is not bound, or bound to none.
    id.bind(SocketAddr::new(address, 0)).map_err(|_| none())?;
    let context = id.verbs().ok_or_else(none)?;
    Ok((name(context.as_ptr()), id.port()))
}

/// The ports of all devices, without addresses.
fn ports() -> Result<Vec<DeviceInfo>, RdmaError> {
    if !sys::library_present() {
        return Err(RdmaError::LibraryMissing);
    }
    let mut count = 0;
    // SAFETY: `count` is a valid place; the result is checked.
    let list = unsafe { sys::ibv_get_device_list(&mut count) };
    let mut found = Vec::new();
    let Some(list) = NonNull::new(list) else {
        return Ok(found);
    };
    for place in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices, which are valid until it is freed below; the context is closed
        // before that.
        unsafe {
            let context = sys::ibv_open_device(*list.as_ptr().add(place));
            if !context.is_null() {
                found.extend(ports_of(context));
                sys::ibv_close_device(context);
            }
        }
    }
    // SAFETY: freed once, after the last use.
    unsafe { sys::ibv_free_device_list(list.as_ptr()) };
    if found.is_empty()
        && count > 0
        && let Some(error) = errors::hidden_device()
    {
        return Err(error);
    }
    Ok(found)
}

/// # Safety
/// `context` is open.
unsafe fn ports_of(context: *mut sys::ibv_context) -> Vec<DeviceInfo> {
    // SAFETY: structures of numbers; the caller's context is open.
    let count = unsafe {
        let mut device: sys::ibv_device_attr = std::mem::zeroed();
        sys::ibv_query_device(context, &mut device);
        device.phys_port_cnt
    };
    let port = |port: u8| {
        let (capabilities, _, _) = probe(context, port, &VerbsOptions::default()).ok()?;
        // SAFETY: as above; the port was asked for the same before.
        let link = unsafe {
            let mut link: sys::ibv_port_attr = std::mem::zeroed();
            sys::ibv_query_port(context, port, &mut link);
            link
        };
        let state = LinkState::of(&link);
        Some(DeviceInfo {
            name: capabilities.device.clone(),
            port,
            addresses: Vec::new(),
            active: state == LinkState::Active,
            state,
            link_layer: LinkLayer::of(&link),
            speed: speed(&link),
            gids: gids(&capabilities.device, port),
            capabilities,
        })
    };
    (1..=count).filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_devices_says_so_and_lives() {
        // With devices, or without: neither may crash, and the loopback never has one.
        match devices() {
            Ok(found) => assert!(found.iter().all(|device| !device.name.is_empty())),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert!(device_for(IpAddr::from([127, 0, 0, 1])).is_err());
    }
}
