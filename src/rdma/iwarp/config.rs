//! What can be chosen about the software RNIC.

use std::time::Duration;

/// Options of an [`IwarpProvider`](super::IwarpProvider). The defaults suit every peer, Linux siw
/// included.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IwarpConfig {
    /// Ask for a CRC32C over every FPDU. It is used if either side asks; RFC 5044 wants it on
    /// unless an administrator decides otherwise. TCP over a trusted path, or within one host, does
    /// without.
    pub crc: bool,
    /// Ask the peer for markers in what it sends. Slow, and refused by most peers; for tests of
    /// theirs.
    pub markers: bool,
    /// Highest MPA revision: 2 (RFC 6581, negotiates the depths of RDMA reads) or 1. A peer that
    /// knows only revision 1 is answered with that, and as initiator asked once more with it, on a
    /// new TCP connection, where it closes on revision 2 or answers it without the depths; not with
    /// `peer_to_peer`, which revision 1 has not.
    pub revision: u8,
    /// As initiator, use the peer-to-peer model of RFC 6581, in which the responder may send first.
    pub peer_to_peer: bool,
    /// How long a responder waits for an initiator's MPA request after the TCP connection was made.
    pub request_timeout: Duration,
    /// How long an initiator waits for a first sign of the peer after its first message, before it
    /// sends an RDMA Write without content. Linux siw can overlook an FPDU that arrives right
    /// behind its MPA reply until more arrives; any further FPDU wakes it. Repeated a few times at
    /// growing intervals. `None`: never.
    pub nudge: Option<Duration>,
    /// Bytes of a ULPDU, instead of what fits one TCP segment; 128 to 64,768. Larger than a TCP
    /// segment saves work among peers of this crate, and is not what RFC 5044 wants of a sender.
    pub ulpdu: Option<u16>,
}

impl Default for IwarpConfig {
    fn default() -> Self {
        Self {
            crc: true,
            markers: false,
            revision: 2,
            peer_to_peer: false,
            request_timeout: Duration::from_secs(5),
            nudge: Some(Duration::from_millis(50)),
            ulpdu: None,
        }
    }
}
