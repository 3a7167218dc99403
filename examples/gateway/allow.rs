//! Who may connect: networks in CIDR notation.

use std::net::IpAddr;
use std::str::FromStr;

/// A network: an address and how many of its leading bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether the address is in it. IPv4 addresses are never in networks of IPv6.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.prefix.into()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.prefix.into()
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| "an address, or a network such as 192.0.2.0/24 or 2001:db8::/32")?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = match prefix {
            None => bits,
            Some(text) => text
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or(format!("the number after the slash is 0 to {bits}"))?,
        };
        // Clients come with their IPv4 addresses, also to places of IPv6.
        match (address.to_canonical(), prefix.checked_sub(96)) {
            (IpAddr::V4(address), Some(prefix)) if bits == 128 => Ok(Self {
                address: address.into(),
                prefix,
            }),
            _ => Ok(Self { address, prefix }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        let network: Network = network.parse().unwrap();
        network.contains(address.parse().unwrap())
    }

    #[test]
    fn leading_bits_decide() {
        assert!(contains("192.0.2.0/24", "192.0.2.255"));
        assert!(!contains("192.0.2.0/24", "192.0.3.0"));
        assert!(contains("192.0.2.129/25", "192.0.2.200"));
        assert!(!contains("192.0.2.129/25", "192.0.2.127"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::1"));
        assert!(!contains("::/0", "192.0.2.7"));
        assert!(contains("::ffff:192.0.2.0/120", "192.0.2.7"));
        assert!(contains("::ffff:0:0/96", "192.0.2.7"));
        assert!(contains("::ffff:192.0.2.7", "192.0.2.7"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "nas",
            "192.0.2.0/33",
            "192.0.2.0/",
            "::/129",
            "192.0.2.0/-1",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
