//! Socket addresses to and from C.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A C socket address with room for both families.
pub(super) struct RawAddress(libc::sockaddr_storage);

impl RawAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        // SAFETY: all zeroes is a valid `sockaddr_storage`.
        let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let place = std::ptr::addr_of_mut!(storage);
        match address {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage is larger than, and aligned for, either address.
                unsafe { place.cast::<libc::sockaddr_in>().write(raw) };
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast::<libc::sockaddr_in6>().write(raw) };
            }
        }
        Self(storage)
    }

    /// For a call that reads it.
    pub(super) fn as_ptr(&mut self) -> *mut libc::sockaddr {
        std::ptr::addr_of_mut!(self.0).cast()
    }
}

/// What is in a C socket address; `None` for another family.
pub(super) fn from_raw(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger than, and aligned for, an IPv4 address, whose every pattern is valid.
            let raw = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let raw = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["10.0.1.2:5445", "0.0.0.0:0", "[fe80::1]:445", "[::]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::new(address);
            assert_eq!(from_raw(&raw.0), Some(address));
        }
        let scoped = SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 0, 7));
        assert_eq!(from_raw(&RawAddress::new(scoped).0), Some(scoped));
    }

    #[test]
    fn the_bytes_are_in_network_order() {
        let mut raw = RawAddress::new("1.2.3.4:258".parse().unwrap());
        // SAFETY: an IPv4 address was written there.
        let bytes = unsafe { std::slice::from_raw_parts(raw.as_ptr().cast::<u8>(), 8) };
        assert_eq!(&bytes[2..], [1, 2, 1, 2, 3, 4]);
    }

    #[test]
    fn other_families_are_not_understood() {
        // SAFETY: all zeroes is a valid `sockaddr_storage`.
        let storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        assert_eq!(from_raw(&storage), None);
    }
}
