//! MPA start-up: the Request and Reply frames of RFC 5044 section 7.1 with the enhanced set-up of
//! RFC 6581, and what both ends conclude from them. Pure functions; imports nothing but std and the
//! error codes.

use super::rdmap::TermCode;

/// Bytes of a frame before the private data.
pub(super) const HEADER_LEN: usize = 20;
/// Private data of one frame at most, the enhanced word included (RFC 5044 7.1.1).
pub(super) const MAX_PRIVATE_DATA: usize = 512;
/// Private data that the caller may give: what the enhanced word leaves.
pub(super) const MAX_ULP_PRIVATE_DATA: usize = MAX_PRIVATE_DATA - ENHANCED_LEN;
/// A whole frame at most.
pub(super) const MAX_FRAME: usize = HEADER_LEN + MAX_PRIVATE_DATA;

const ENHANCED_LEN: usize = 4;
const REQUEST_KEY: &[u8; 16] = b"MPA ID Req Frame";
const REPLY_KEY: &[u8; 16] = b"MPA ID Rep Frame";
const FLAG_MARKERS: u8 = 0x80;
const FLAG_CRC: u8 = 0x40;
const FLAG_REJECT: u8 = 0x20;
const FLAG_ENHANCED: u8 = 0x10;
const DEPTH_MASK: u16 = 0x3FFF;
/// "Do not negotiate this depth" (RFC 6581 section 9).
const NOT_NEGOTIATED: u16 = 0x3FFF;
const WORD_A: u16 = 0x8000;
const WORD_B: u16 = 0x4000;

/// Which of the two frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Reply,
}

/// The enhanced word of RFC 6581.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Enhanced {
    /// A: the initiator sends a ready-to-receive message first.
    pub(super) peer_to_peer: bool,
    /// B: as a zero-length FPDU.
    pub(super) rtr_send: bool,
    /// C: as a zero-length RDMA Write.
    pub(super) rtr_write: bool,
    /// D: as a zero-length RDMA Read.
    pub(super) rtr_read: bool,
    /// Inbound RDMA reads the sender serves.
    pub(super) ird: u16,
    /// Outbound RDMA reads the sender issues.
    pub(super) ord: u16,
}

/// A Request or Reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    /// M: the sender wants markers in what it receives.
    pub(super) markers: bool,
    /// C: the sender wants CRC.
    pub(super) crc: bool,
    /// R: refused.
    pub(super) reject: bool,
    pub(super) revision: u8,
    /// S, with its word.
    pub(super) enhanced: Option<Enhanced>,
    pub(super) private_data: Vec<u8>,
}

/// What is wrong with the peer's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum MpaError {
    #[error("not an MPA frame of the expected kind")]
    Key,
    #[error("unknown MPA revision {0}")]
    Revision(u8),
    #[error("private data of {0} bytes")]
    PrivateData(usize),
    #[error("bytes behind the frame before they may come")]
    ExtraBytes,
    #[error("an enhanced request answered by a plain reply")]
    NotEnhanced,
    #[error("a plain request answered by an enhanced reply")]
    UnexpectedEnhanced,
    #[error("the peer wants more RDMA reads served than can be")]
    InsufficientIrd,
    #[error("no ready-to-receive message in common")]
    NoMatchingRtr,
}

impl MpaError {
    /// The Terminate that tells the peer, where the RFCs define one.
    pub(super) fn terminate(self) -> Option<TermCode> {
        match self {
            Self::InsufficientIrd => Some(TermCode::MPA_INSUFFICIENT_IRD),
            Self::NoMatchingRtr => Some(TermCode::MPA_NO_MATCHING_RTR),
            _ => None,
        }
    }
}

/// The message that ends a peer-to-peer set-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Rtr {
    /// Client-server model: none.
    #[default]
    None,
    /// A zero-length FPDU.
    Fpdu,
    /// A zero-length RDMA Write.
    Write,
    /// A zero-length RDMA Read.
    Read,
}

/// What this end wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local {
    /// 1, or 2 for the enhanced set-up.
    pub(super) revision: u8,
    pub(super) crc: bool,
    /// Markers in what we receive.
    pub(super) markers: bool,
    /// Initiator: use the peer-to-peer model.
    pub(super) peer_to_peer: bool,
    pub(super) ird: u16,
    pub(super) ord: u16,
    /// The most `ird` may be raised to when the peer asks.
    pub(super) max_ird: u16,
}

/// What both ends agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) crc: bool,
    pub(super) send_markers: bool,
    pub(super) receive_markers: bool,
    pub(super) ird: u16,
    pub(super) ord: u16,
    pub(super) rtr: Rtr,
}

impl Frame {
    /// Appends the frame's bytes.
    ///
    /// The caller keeps the private data within [`MAX_ULP_PRIVATE_DATA`].
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self.kind {
            Kind::Request => REQUEST_KEY,
            Kind::Reply => REPLY_KEY,
        });
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(
            flag(self.markers, FLAG_MARKERS)
                | flag(self.crc, FLAG_CRC)
                | flag(self.reject, FLAG_REJECT)
                | flag(self.enhanced.is_some(), FLAG_ENHANCED),
        );
        out.push(self.revision);
        let enhanced_len = if self.enhanced.is_some() {
            ENHANCED_LEN
        } else {
            0
        };
        let len = (self.private_data.len() + enhanced_len) as u16;
        out.extend_from_slice(&len.to_be_bytes());
        if let Some(word) = &self.enhanced {
            out.extend_from_slice(&word.encode());
        }
        out.extend_from_slice(&self.private_data);
    }

    /// Reads a frame of the expected kind from the start of `bytes`. `Ok(None)`: more bytes are
    /// needed. Bytes that can no longer become a valid frame fail as soon as they are seen, so that
    /// a peer of another protocol does not hold a connection until the timeout.
    pub(super) fn parse(kind: Kind, bytes: &[u8]) -> Result<Option<(Self, usize)>, MpaError> {
        let key = match kind {
            Kind::Request => REQUEST_KEY,
            Kind::Reply => REPLY_KEY,
        };
        let seen = bytes.len().min(key.len());
        // M02: the wrong key ends the connection, also a Request where a Reply should be.
        if bytes[..seen] != key[..seen] {
            return Err(MpaError::Key);
        }
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        // M05: reserved bits are not looked at.
        let flags = header[16];
        let revision = header[17];
        if !(1..=2).contains(&revision) {
            return Err(MpaError::Revision(revision));
        }
        let data_len = usize::from(u16::from_be_bytes([header[18], header[19]]));
        // The bit S was reserved in revision 1.
        let enhanced = revision >= 2 && flags & FLAG_ENHANCED != 0;
        // M04.
        if data_len > MAX_PRIVATE_DATA || (enhanced && data_len < ENHANCED_LEN) {
            return Err(MpaError::PrivateData(data_len));
        }
        let Some(data) = bytes.get(HEADER_LEN..HEADER_LEN + data_len) else {
            return Ok(None);
        };
        let (word, private_data) = match data.split_first_chunk::<ENHANCED_LEN>() {
            Some((word, rest)) if enhanced => (Some(Enhanced::decode(*word)), rest),
            _ => (None, data),
        };
        let frame = Self {
            kind,
            markers: flags & FLAG_MARKERS != 0,
            crc: flags & FLAG_CRC != 0,
            reject: kind == Kind::Reply && flags & FLAG_REJECT != 0,
            revision,
            enhanced: word,
            private_data: private_data.to_vec(),
        };
        Ok(Some((frame, HEADER_LEN + data_len)))
    }
}

impl Enhanced {
    fn encode(&self) -> [u8; ENHANCED_LEN] {
        let bit = |set: bool, bit: u16| if set { bit } else { 0 };
        // RFC 6581 section 9: without A the other three are zero.
        let a = self.peer_to_peer;
        let first = bit(a, WORD_A) | bit(a && self.rtr_send, WORD_B) | (self.ird & DEPTH_MASK);
        let second = bit(a && self.rtr_write, WORD_A)
            | bit(a && self.rtr_read, WORD_B)
            | (self.ord & DEPTH_MASK);
        let ([i, j], [k, l]) = (first.to_be_bytes(), second.to_be_bytes());
        [i, j, k, l]
    }

    fn decode(word: [u8; ENHANCED_LEN]) -> Self {
        let first = u16::from_be_bytes([word[0], word[1]]);
        let second = u16::from_be_bytes([word[2], word[3]]);
        let a = first & WORD_A != 0;
        Self {
            peer_to_peer: a,
            rtr_send: a && first & WORD_B != 0,
            rtr_write: a && second & WORD_A != 0,
            rtr_read: a && second & WORD_B != 0,
            ird: first & DEPTH_MASK,
            ord: second & DEPTH_MASK,
        }
    }
}

/// The initiator's Request.
pub(super) fn request(local: &Local, private_data: Vec<u8>) -> Frame {
    Frame {
        kind: Kind::Request,
        markers: local.markers,
        crc: local.crc,
        reject: false,
        revision: local.revision,
        enhanced: (local.revision >= 2).then_some(Enhanced {
            peer_to_peer: local.peer_to_peer,
            rtr_send: false,
            rtr_write: local.peer_to_peer,
            rtr_read: false,
            ird: local.ird.min(DEPTH_MASK - 1),
            ord: local.ord.min(DEPTH_MASK - 1),
        }),
        private_data,
    }
}

/// The responder's Reply that accepts, and what follows from it.
pub(super) fn accept(local: &Local, request: &Frame, private_data: Vec<u8>) -> (Frame, Settings) {
    let mut settings = Settings {
        // M07: CRC is on in both directions if either side wants it.
        crc: local.crc || request.crc,
        // M08: markers are for each direction what its receiver wants.
        send_markers: request.markers,
        receive_markers: local.markers,
        ird: local.ird,
        ord: local.ord,
        rtr: Rtr::None,
    };
    // E01: an enhanced request gets an enhanced reply, a plain one a plain reply.
    let enhanced = request.enhanced.map(|theirs| {
        // E02: our ORD within the initiator's IRD; E03: unless it does not negotiate.
        let ord = if theirs.ird == NOT_NEGOTIATED {
            NOT_NEGOTIATED
        } else {
            settings.ord = settings.ord.min(theirs.ird);
            settings.ord
        };
        if theirs.peer_to_peer {
            // E04: at least one way to be ready. Where the initiator offered none it must end the
            // set-up.
            settings.rtr = choose_rtr(&theirs).unwrap_or(Rtr::Write);
        }
        // Serve what the initiator asks for, as far as we do; it lowers its ORD to the rest. The
        // read by which it may say that it is ready is served in any case.
        let least = u16::from(settings.rtr == Rtr::Read);
        let ird = if theirs.ord == NOT_NEGOTIATED {
            settings.ird = settings.ird.max(least);
            NOT_NEGOTIATED
        } else {
            settings.ird = settings.ird.min(theirs.ord).max(least);
            settings.ird
        };
        let mut word = Enhanced {
            ird,
            ord,
            ..Enhanced::default()
        };
        if theirs.peer_to_peer {
            word.peer_to_peer = true;
            word.rtr_write = settings.rtr == Rtr::Write;
            word.rtr_read = settings.rtr == Rtr::Read;
            word.rtr_send = settings.rtr == Rtr::Fpdu;
        }
        word
    });
    let reply = Frame {
        kind: Kind::Reply,
        markers: local.markers,
        crc: settings.crc,
        reject: false,
        revision: request.revision,
        enhanced,
        private_data,
    };
    (reply, settings)
}

/// The responder's Reply that refuses.
pub(super) fn reject(request: &Frame, private_data: Vec<u8>) -> Frame {
    Frame {
        kind: Kind::Reply,
        markers: false,
        crc: request.crc,
        reject: true,
        revision: request.revision,
        // E05: the depths go to the peer also when it is refused.
        enhanced: request.enhanced.map(|theirs| Enhanced {
            ird: theirs.ord,
            ord: theirs.ird,
            ..Enhanced::default()
        }),
        private_data,
    }
}

/// Whether a responder that speaks up to `revision` can answer `request`.
pub(super) fn acceptable(revision: u8, request: &Frame) -> Result<(), MpaError> {
    if request.revision > revision {
        return Err(MpaError::Revision(request.revision));
    }
    Ok(())
}

/// Whether an initiator that asked as `local` says, and was answered by `reply` or by the end of the
/// TCP connection (`None`), has to do with a host that knows revision 1 only (E01). A refusal counts
/// as well: such a host takes the enhanced word for private data that its application does not know.
/// Where the peer-to-peer model was asked for, which revision 1 has not, there is no going back.
pub(super) fn wants_revision_1(local: &Local, reply: Option<&Frame>) -> bool {
    local.revision >= 2 && !local.peer_to_peer && reply.is_none_or(|reply| reply.enhanced.is_none())
}

/// What the initiator concludes from an accepting Reply.
pub(super) fn conclude(local: &Local, reply: &Frame) -> Result<Settings, MpaError> {
    if reply.revision > local.revision {
        return Err(MpaError::Revision(reply.revision));
    }
    let mut settings = Settings {
        crc: local.crc || reply.crc,
        send_markers: reply.markers,
        receive_markers: local.markers,
        ird: local.ird,
        ord: local.ord,
        rtr: Rtr::None,
    };
    // E01.
    match (local.revision >= 2, &reply.enhanced) {
        (true, None) => return Err(MpaError::NotEnhanced),
        (false, Some(_)) => return Err(MpaError::UnexpectedEnhanced),
        (false, None) => {}
        (true, Some(theirs)) => {
            if theirs.ird != NOT_NEGOTIATED {
                settings.ord = settings.ord.min(theirs.ird);
            }
            if theirs.ord != NOT_NEGOTIATED {
                // E02: we serve at least what the responder will ask for.
                if theirs.ord > local.max_ird.max(local.ird) {
                    return Err(MpaError::InsufficientIrd);
                }
                settings.ird = settings.ird.max(theirs.ord);
            }
            if local.peer_to_peer {
                // The only one we offer.
                if !theirs.rtr_write {
                    return Err(MpaError::NoMatchingRtr);
                }
                settings.rtr = Rtr::Write;
            }
        }
    }
    Ok(settings)
}

fn choose_rtr(word: &Enhanced) -> Option<Rtr> {
    match word {
        Enhanced {
            rtr_write: true, ..
        } => Some(Rtr::Write),
        Enhanced { rtr_read: true, .. } => Some(Rtr::Read),
        Enhanced { rtr_send: true, .. } => Some(Rtr::Fpdu),
        _ => None,
    }
}

#[cfg(test)]
#[path = "mpa_tests.rs"]
mod tests;
