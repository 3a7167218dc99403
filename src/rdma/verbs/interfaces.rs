//! The network interfaces of this machine: whose addresses devices serve, and how fast they are.

use std::ffi::CStr;
use std::fs;
use std::net::IpAddr;

use super::sockaddr;

/// One address of one network interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Interface {
    /// The address.
    pub address: IpAddr,
    /// The interface's name.
    pub name: String,
    /// The interface's number, as SMB servers tell it to clients.
    pub index: u32,
    /// Bits per second, where the interface knows: virtual ones often do not.
    pub speed: Option<u64>,
    /// Whether packets can go out.
    pub up: bool,
}

/// All addresses of all interfaces, in order of address. Empty if the system does not tell.
pub fn interfaces() -> Vec<Interface> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    let mut found = Vec::new();
    // SAFETY: `list` is a valid place.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return found;
    }
    let mut entry = list;
    // SAFETY: the system's list, ended by a null pointer and valid until it is freed below.
    unsafe {
        while let Some(current) = entry.as_ref() {
            found.extend(interface(current));
            entry = current.ifa_next;
        }
        libc::freeifaddrs(list);
    }
    found.sort();
    found.dedup();
    found
}

/// # Safety
/// The entry is one of the system's list.
unsafe fn interface(entry: &libc::ifaddrs) -> Option<Interface> {
    // SAFETY: the address is null or points to one that is as long as its family says, and is read as that; the
    // name is null-terminated.
    let (storage, name) = unsafe {
        let address = entry.ifa_addr.as_ref()?;
        let len = match i32::from(address.sa_family) {
            libc::AF_INET => size_of::<libc::sockaddr_in>(),
            libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
            _ => return None,
        };
        let mut storage: libc::sockaddr_storage = std::mem::zeroed();
        std::ptr::copy_nonoverlapping(
            entry.ifa_addr.cast::<u8>(),
            std::ptr::addr_of_mut!(storage).cast::<u8>(),
            len,
        );
        (storage, CStr::from_ptr(entry.ifa_name))
    };
    let name = name.to_string_lossy().into_owned();
    let read = |what: &str| fs::read_to_string(format!("/sys/class/net/{name}/{what}")).ok();
    let number = |what: &str| read(what)?.trim().parse::<u64>().ok();
    let running = (libc::IFF_UP | libc::IFF_RUNNING) as u32;
    Some(Interface {
        address: sockaddr::from_raw(&storage)?.ip(),
        index: number("ifindex").and_then(|index| u32::try_from(index).ok())?,
        // In Mbit/s; -1 where it is not known.
        speed: number("speed").and_then(|speed| speed.checked_mul(1_000_000)),
        up: entry.ifa_flags & running == running,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_among_the_interfaces() {
        let loopback = interfaces()
            .into_iter()
            .find(|interface| interface.address == IpAddr::from([127, 0, 0, 1]));
        let loopback = loopback.expect("a loopback");
        assert_eq!(loopback.name, "lo");
        assert!(loopback.index > 0 && loopback.up);
    }
}
