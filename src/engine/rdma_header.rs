//! The 8-byte header in the private data of iWARP connections whose set-up does not negotiate the read depths.

/// [MS-SMBD] 6.1: how many RDMA reads the sender serves, and how many it wants to have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// IRD of the sender.
    pub(crate) responder_resources: u16,
    /// ORD of the sender.
    pub(crate) initiator_depth: u16,
}

/// Depths above this are taken for the other byte order: the specification does not name one, and old Linux clients
/// send the host's.
const PLAUSIBLE: u32 = 0xffff;

impl Header {
    /// From the private data of a request: exactly 8 bytes of plausible depths, in either byte order. Anything else
    /// is somebody else's data and ignored.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let data: &[u8; 8] = data.try_into().ok()?;
        let (ird, ord) = data.split_at(4);
        let word = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().ok()?;
            let big = u32::from_be_bytes(bytes);
            let value = if big > PLAUSIBLE {
                u32::from_le_bytes(bytes)
            } else {
                big
            };
            u16::try_from(value).ok()
        };
        Some(Self {
            responder_resources: word(ird)?,
            initiator_depth: word(ord)?,
        })
    }

    pub(crate) fn encode(self) -> [u8; 8] {
        let mut data = [0; 8];
        data[..4].copy_from_slice(&u32::from(self.responder_resources).to_be_bytes());
        data[4..].copy_from_slice(&u32::from(self.initiator_depth).to_be_bytes());
        data
    }

    /// [MS-SMBD] 6.2: what the acceptor answers, `self` being its own limits: neither side reads more than the other
    /// serves.
    pub(crate) fn reply_to(self, request: Self) -> Self {
        Self {
            responder_resources: self.initiator_depth.min(request.responder_resources),
            initiator_depth: self.responder_resources.min(request.initiator_depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_orders_are_understood_and_other_data_is_ignored() {
        let header = Header {
            responder_resources: 32,
            initiator_depth: 1,
        };
        assert_eq!(Header::parse(&header.encode()), Some(header));
        assert_eq!(Header::parse(&[32, 0, 0, 0, 1, 0, 0, 0]), Some(header));
        assert_eq!(Header::parse(&[1, 2, 3, 4, 5, 6, 7, 8]), None);
        assert_eq!(Header::parse(&[]), None);
        assert_eq!(Header::parse(&[0; 9]), None);
    }

    #[test]
    fn the_reply_fits_both_sides() {
        let ours = Header {
            responder_resources: 16,
            initiator_depth: 8,
        };
        let theirs = Header {
            responder_resources: 32,
            initiator_depth: 1,
        };
        let reply = ours.reply_to(theirs);
        assert_eq!(
            reply,
            Header {
                responder_resources: 8,
                initiator_depth: 1
            }
        );
    }
}
