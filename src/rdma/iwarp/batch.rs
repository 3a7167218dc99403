//! FPDUs that are on their way into the socket: one gathered write, and its rest when the socket
//! takes only a part.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use super::crc::Crc;
use super::ddp::Segment;
use super::fpdu::{CRC_LEN, MarkerWriter, frame_len, padding};
use super::pinned;
use super::sys;
use crate::rdma::{IoBytes, IoPin, WindowId};

/// Bytes after which a batch is written.
const FULL_BYTES: usize = 512 * 1024;
/// Payload up to this many bytes is copied next to its header instead of being gathered.
const COPIED: usize = 256;

/// One or more whole FPDUs.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Headers, padding, checksums and short payloads.
    bytes: Vec<u8>,
    parts: VecDeque<Part>,
    /// Bytes of all parts left.
    len: usize,
    /// Bytes since the batch began, for the alignment to TCP segments.
    begun: usize,
}

#[derive(Debug)]
enum Part {
    /// A range of the batch's own bytes.
    Own(Range<usize>),
    /// Payload of a request.
    Shared(IoBytes, Range<usize>),
    /// Payload of a read response, out of a window.
    Window(WindowId, IoPin),
    /// What was such, after the window was closed.
    Copied(Box<[u8]>, Range<usize>),
}

/// How FPDUs are made.
#[derive(Debug, Default)]
pub(super) struct Framing {
    pub(super) crc: bool,
    pub(super) markers: Option<MarkerWriter>,
    /// TCP segment size in bytes to align to; 0 for no alignment.
    pub(super) segment_size: usize,
}

/// The payload of one segment.
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Parts of a request's pieces.
    Pieces(&'a [Option<(&'a IoBytes, Range<usize>)>]),
    Window(WindowId, &'a IoPin, Range<usize>),
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Pieces(pieces) => pieces.iter().flatten().map(|(_, range)| range.len()).sum(),
            Self::Window(_, _, range) => range.len(),
        }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it should be written before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.len >= FULL_BYTES || self.parts.len() + 16 > sys::MAX_VECTORS
    }

    /// Whether the FPDU of a ULPDU of `len` bytes, added now, would have a TCP segment boundary
    /// inside its padding and CRC field, or between them. Linux siw takes such an FPDU for damaged.
    /// At the start of a batch it never has.
    pub(super) fn splits_crc(&self, framing: &Framing, len: usize) -> bool {
        if !framing.crc || framing.segment_size == 0 || self.begun == 0 {
            return false;
        }
        let end = self.begun + frame_len(len);
        let boundary = (end - 1) / framing.segment_size * framing.segment_size;
        boundary > end - CRC_LEN - padding(len)
    }

    /// Adds the FPDU of one segment. Returns its length in the stream.
    pub(super) fn push(
        &mut self,
        framing: &mut Framing,
        segment: &Segment,
        payload: &Payload<'_>,
    ) -> usize {
        let before = self.len;
        match &mut framing.markers {
            None => self.push_plain(framing.crc, segment, payload),
            Some(markers) => {
                let mut header = Vec::with_capacity(segment.len());
                segment.encode(&mut header);
                let start = self.bytes.len();
                let mut ulpdu: Vec<&[u8]> = vec![&header];
                match payload {
                    Payload::Bytes(bytes) => ulpdu.push(bytes),
                    Payload::Pieces(pieces) => {
                        ulpdu.extend(
                            pieces
                                .iter()
                                .flatten()
                                .map(|(piece, range)| &piece[range.clone()]),
                        );
                    }
                    Payload::Window(_, pin, range) => ulpdu.push(pinned::bytes(pin, range.clone())),
                }
                markers.frame(&ulpdu, framing.crc, &mut self.bytes);
                self.own(start);
            }
        }
        let added = self.len - before;
        self.begun += added;
        added
    }

    fn push_plain(&mut self, crc: bool, segment: &Segment, payload: &Payload<'_>) {
        let ulpdu_len = segment.len() + payload.len();
        let start = self.bytes.len();
        self.bytes
            .extend_from_slice(&(ulpdu_len as u16).to_be_bytes());
        segment.encode(&mut self.bytes);
        let mut sum = Crc::default();
        if crc {
            sum.update(&self.bytes[start..]);
        }
        self.own(start);
        match payload {
            Payload::Bytes(bytes) => self.payload(crc, &mut sum, bytes, None),
            Payload::Pieces(pieces) => {
                for (piece, range) in pieces.iter().flatten() {
                    let part = Part::Shared((*piece).clone(), range.clone());
                    self.payload(crc, &mut sum, &piece[range.clone()], Some(part));
                }
            }
            Payload::Window(id, pin, range) => {
                let part = Part::Window(*id, pin.slice(range.clone()));
                self.payload(crc, &mut sum, pinned::bytes(pin, range.clone()), Some(part));
            }
        }
        let start = self.bytes.len();
        let pad = padding(ulpdu_len);
        self.bytes.extend_from_slice(&[0; 3][..pad]);
        if crc {
            sum.update(&[0; 3][..pad]);
        }
        self.bytes.extend_from_slice(&sum.field());
        self.own(start);
    }

    fn payload(&mut self, crc: bool, sum: &mut Crc, bytes: &[u8], part: Option<Part>) {
        if crc {
            sum.update(bytes);
        }
        match part {
            Some(part) if bytes.len() > COPIED => {
                self.len += bytes.len();
                self.parts.push_back(part);
            }
            _ => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                self.own(start);
            }
        }
    }

    /// Makes the own bytes from `start` part of the batch.
    fn own(&mut self, start: usize) {
        let end = self.bytes.len();
        self.len += end - start;
        match self.parts.back_mut() {
            Some(Part::Own(last)) if last.end == start => last.end = end,
            _ => self.parts.push_back(Part::Own(start..end)),
        }
    }

    /// How many pieces the gather list has.
    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Writes the bytes left to `out` as a gather list, as far as there is room, and returns its
    /// length.
    pub(super) fn slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, part) in out.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(match part {
                Part::Own(range) => &self.bytes[range.clone()],
                Part::Shared(bytes, range) => &bytes[range.clone()],
                Part::Window(_, pin) => pinned::bytes(pin, 0..pin.len()),
                Part::Copied(bytes, range) => &bytes[range.clone()],
            });
            count += 1;
        }
        count
    }

    /// Takes `len` written bytes off the front.
    pub(super) fn advance(&mut self, mut len: usize) {
        self.len -= len;
        while len > 0 {
            let Some(part) = self.parts.front_mut() else {
                break;
            };
            let (Part::Own(range) | Part::Shared(_, range) | Part::Copied(_, range)) = part else {
                if let Part::Window(_, pin) = part {
                    if len < pin.len() {
                        *pin = pin.slice(len..pin.len());
                        return;
                    }
                    len -= pin.len();
                }
                self.parts.pop_front();
                continue;
            };
            if len < range.len() {
                range.start += len;
                return;
            }
            len -= range.len();
            self.parts.pop_front();
        }
        if self.len == 0 {
            self.clear();
        }
    }

    /// Copies what is left of a window's memory, which goes back to its owner. `None`: of every
    /// window's.
    pub(super) fn detach(&mut self, window: Option<WindowId>) {
        for part in &mut self.parts {
            if let Part::Window(id, pin) = part
                && window.is_none_or(|window| window == *id)
            {
                let bytes: Box<[u8]> = pinned::bytes(pin, 0..pin.len()).into();
                let range = 0..bytes.len();
                *part = Part::Copied(bytes, range);
            }
        }
    }

    /// Empties it and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
        self.len = 0;
        self.begun = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rdma::iwarp::ddp::{Address, TAGGED_LEN};
    use crate::rdma::iwarp::fpdu::{MIN_MULPDU, mulpdu};
    use crate::rdma::iwarp::rdmap::Opcode;

    const WRITE: Segment = Segment {
        opcode: Opcode::Write,
        last: true,
        address: Address::Tagged { tag: 1, offset: 0 },
    };

    proptest! {
        /// Linux siw takes an FPDU for damaged of which a TCP segment ends between the first and the
        /// last byte of padding and CRC.
        #[test]
        fn no_segment_ends_within_padding_or_crc(
            segment_size in prop_oneof![Just(536_usize), Just(1448), Just(1460), 200..3000_usize],
            lens in prop::collection::vec(0..3000_usize, 1..60),
        ) {
            let mut framing = Framing { crc: true, markers: None, segment_size };
            let most = mulpdu(segment_size, false).max(MIN_MULPDU);
            let mut batch = Batch::default();
            for len in lens {
                let ulpdu = (TAGGED_LEN + len).min(most);
                if batch.splits_crc(&framing, ulpdu) {
                    batch.clear();
                }
                let payload = vec![0; ulpdu - TAGGED_LEN];
                batch.push(&mut framing, &WRITE, &Payload::Bytes(&payload));
                let end = batch.begun;
                let inside = (end - CRC_LEN - padding(ulpdu) + 1)..end;
                prop_assert!(
                    inside.clone().all(|at| !at.is_multiple_of(segment_size)),
                    "{inside:?} of segments of {segment_size}"
                );
            }
        }
    }
}
