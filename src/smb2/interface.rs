//! The interfaces of a server, as it tells them to clients ([MS-SMB2] 2.2.32.5).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::InterfaceError;
use super::fields::{put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};

/// The control code of the IOCTL request; its `FileId` is all ones and it has no input.
pub const FSCTL_QUERY_NETWORK_INTERFACE_INFO: u32 = 0x0014_01FC;

const RSS_CAPABLE: u32 = 0x0000_0001;
const RDMA_CAPABLE: u32 = 0x0000_0002;

/// `SOCKADDR_STORAGE` of an entry, and where its fields are ([MS-SMB2] 2.2.32.5.1).
const SOCKADDR: usize = 24;
const IPV4_ADDRESS: usize = SOCKADDR + 4;
const IPV6_ADDRESS: usize = SOCKADDR + 8;
const FAMILY_INET: u16 = 0x0002;
const FAMILY_INET6: u16 = 0x0017;

/// `NETWORK_INTERFACE_INFO`: one address of one interface. An interface with several addresses has
/// several entries with the same `if_index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkInterface {
    /// The interface; clients pass over 0.
    pub if_index: u32,
    /// Whether it spreads receive processing over processors.
    pub rss_capable: bool,
    /// Whether SMB Direct is served at this address. Without it clients never try.
    pub rdma_capable: bool,
    /// Bits per second.
    pub link_speed: u64,
    /// The address.
    pub address: IpAddr,
}

impl NetworkInterface {
    /// Bytes of one entry.
    pub const LEN: usize = 152;

    /// Reads the output of the IOCTL. Entries of other address families than IPv4 and IPv6 are
    /// passed over; ports, flow information and scopes are ignored.
    ///
    /// # Errors
    /// See [`InterfaceError`].
    pub fn parse_list(output: &[u8]) -> Result<Vec<Self>, InterfaceError> {
        let mut interfaces = Vec::new();
        let mut at = 0;
        if output.is_empty() {
            return Ok(interfaces);
        }
        loop {
            // `at` is inside the output: 0, or checked below.
            let rest = &output[at..];
            let entry: &[u8; Self::LEN] = rest.first_chunk().ok_or(InterfaceError::TooShort {
                at,
                len: rest.len(),
            })?;
            interfaces.extend(Self::parse_entry(entry));
            let next = u32_at(entry, 0);
            if next == 0 {
                return Ok(interfaces);
            }
            // Every step goes forward by an entry or more, so this ends.
            if (next as usize) < Self::LEN {
                return Err(InterfaceError::NextInsideEntry { next });
            }
            if !next.is_multiple_of(8) {
                return Err(InterfaceError::NextUnaligned { next });
            }
            if u64::from(next) > rest.len() as u64 {
                return Err(InterfaceError::NextBeyondList { next });
            }
            at += next as usize;
        }
    }

    /// The output of the IOCTL; empty without interfaces.
    pub fn encode_list(interfaces: &[Self]) -> Vec<u8> {
        let mut output = vec![0; interfaces.len() * Self::LEN];
        let mut entries = output
            .chunks_exact_mut(Self::LEN)
            .zip(interfaces)
            .peekable();
        while let Some((entry, interface)) = entries.next() {
            interface.encode_entry(entry);
            if entries.peek().is_some() {
                put_u32(entry, 0, Self::LEN as u32);
            }
        }
        output
    }

    fn parse_entry(entry: &[u8; Self::LEN]) -> Option<Self> {
        // The family is little-endian, the address in network order.
        let address = match u16_at(entry, SOCKADDR) {
            FAMILY_INET => {
                let octets: &[u8; 4] = entry[IPV4_ADDRESS..].first_chunk()?;
                IpAddr::V4(Ipv4Addr::from(*octets))
            }
            FAMILY_INET6 => {
                let octets: &[u8; 16] = entry[IPV6_ADDRESS..].first_chunk()?;
                IpAddr::V6(Ipv6Addr::from(*octets))
            }
            _ => return None,
        };
        let capability = u32_at(entry, 8);
        Some(Self {
            if_index: u32_at(entry, 4),
            rss_capable: capability & RSS_CAPABLE != 0,
            rdma_capable: capability & RDMA_CAPABLE != 0,
            link_speed: u64_at(entry, 16),
            address,
        })
    }

    /// Fills an entry of zeros, all but `Next`.
    fn encode_entry(&self, entry: &mut [u8]) {
        let mut capability = 0;
        if self.rss_capable {
            capability |= RSS_CAPABLE;
        }
        if self.rdma_capable {
            capability |= RDMA_CAPABLE;
        }
        put_u32(entry, 4, self.if_index);
        put_u32(entry, 8, capability);
        put_u64(entry, 16, self.link_speed);
        match self.address {
            IpAddr::V4(address) => {
                put_u16(entry, SOCKADDR, FAMILY_INET);
                entry[IPV4_ADDRESS..][..4].copy_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                put_u16(entry, SOCKADDR, FAMILY_INET6);
                entry[IPV6_ADDRESS..][..16].copy_from_slice(&address.octets());
            }
        }
    }
}
