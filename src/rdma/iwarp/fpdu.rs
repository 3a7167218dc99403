//! FPDU framing of RFC 5044: sizes, padding, and the slow path with markers.
//!
//! Without markers, receiver and transmitter frame in place; with them, whole FPDUs go through a
//! buffer.

use super::crc::Crc;
use super::rdmap::TermCode;

/// The ULPDU length field in front.
pub(super) const LENGTH_LEN: usize = 2;
/// The CRC field at the end; there also where CRC is off.
pub(super) const CRC_LEN: usize = 4;
/// The smallest and the largest MULPDU (RFC 5044 section 4.5).
pub(super) const MIN_MULPDU: usize = 128;
pub(super) const MAX_MULPDU: usize = 64768;

const MARKER_INTERVAL: u64 = 512;
const MARKER_LEN: usize = 4;

/// The largest ULPDU so that its FPDU fits one TCP segment of `emss` bytes (RFC 5044 section 4.5).
pub(super) fn mulpdu(emss: usize, markers: bool) -> usize {
    let markers = if markers {
        MARKER_LEN * emss.div_ceil(MARKER_INTERVAL as usize)
    } else {
        0
    };
    emss.saturating_sub(LENGTH_LEN + CRC_LEN + markers + emss % 4)
        .clamp(MIN_MULPDU, MAX_MULPDU)
}

/// Zero bytes between the ULPDU and the CRC.
pub(super) fn padding(ulpdu: usize) -> usize {
    (LENGTH_LEN + ulpdu).wrapping_neg() % 4
}

/// Bytes of the FPDU of a ULPDU, without markers.
pub(super) fn frame_len(ulpdu: usize) -> usize {
    LENGTH_LEN + ulpdu + padding(ulpdu) + CRC_LEN
}

/// Frames ULPDUs into a stream with markers.
#[derive(Debug, Default)]
pub(super) struct MarkerWriter {
    /// Bytes of the stream so far, markers included. M08: the first octet after start-up has number
    /// 0.
    position: u64,
}

impl MarkerWriter {
    /// Appends the FPDU of `ulpdu` to `out`.
    pub(super) fn frame(&mut self, ulpdu: &[&[u8]], crc: bool, out: &mut Vec<u8>) {
        let start = out.len();
        let len: usize = ulpdu.iter().map(|part| part.len()).sum();
        let mut head = None;
        self.put(&(len as u16).to_be_bytes(), &mut head, out);
        for part in ulpdu {
            self.put(part, &mut head, out);
        }
        self.put(&[0; 3][..padding(len)], &mut head, out);
        // A marker in front of the CRC field belongs to this FPDU and its CRC.
        self.marker_if_due(head, out);
        let mut sum = Crc::default();
        if crc {
            sum.update(&out[start..]);
        }
        out.extend_from_slice(&sum.field());
        self.position += CRC_LEN as u64;
    }

    fn put(&mut self, mut bytes: &[u8], head: &mut Option<u64>, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            self.marker_if_due(*head, out);
            head.get_or_insert(self.position);
            let room = MARKER_INTERVAL - self.position % MARKER_INTERVAL;
            let take = bytes.len().min(room as usize);
            out.extend_from_slice(&bytes[..take]);
            self.position += take as u64;
            bytes = &bytes[take..];
        }
    }

    /// `head` is the place of the length field, if it was written.
    fn marker_if_due(&mut self, head: Option<u64>, out: &mut Vec<u8>) {
        if self.position.is_multiple_of(MARKER_INTERVAL) {
            out.extend_from_slice(&[0, 0]);
            let back = head.map_or(0, |head| self.position - head) as u16;
            out.extend_from_slice(&back.to_be_bytes());
            self.position += MARKER_LEN as u64;
        }
    }
}

/// Takes markers out of a stream, with any segmentation, and checks them and the CRC, which covers
/// them.
#[derive(Debug, Default)]
pub(super) struct MarkerReader {
    position: u64,
    /// Place of the current FPDU's length field.
    head: Option<u64>,
    marker: Vec<u8>,
    /// The FPDU as it came, for the CRC.
    raw: Vec<u8>,
    /// The FPDU without markers.
    clean: Vec<u8>,
}

impl MarkerReader {
    /// Takes bytes from the front of `bytes`. Returns the FPDU without markers when one is
    /// complete; its CRC field is checked already, and not right for the bytes without markers.
    pub(super) fn next(
        &mut self,
        bytes: &mut &[u8],
        crc: bool,
    ) -> Result<Option<Vec<u8>>, TermCode> {
        while !bytes.is_empty() {
            let in_interval = (self.position % MARKER_INTERVAL) as usize;
            if in_interval < MARKER_LEN {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                self.marker.push(byte);
                self.raw.push(byte);
                self.position += 1;
                if self.marker.len() == MARKER_LEN {
                    let start = self.position - MARKER_LEN as u64;
                    let back = self.head.map_or(0, |head| start - head);
                    let pointer = u16::from_be_bytes([self.marker[2], self.marker[3]]);
                    if u64::from(pointer) != back {
                        return Err(TermCode::MPA_MARKER);
                    }
                    self.marker.clear();
                }
                continue;
            }
            self.head.get_or_insert(self.position);
            let room = MARKER_INTERVAL as usize - in_interval;
            let missing = self.total().unwrap_or(LENGTH_LEN) - self.clean.len();
            let take = bytes.len().min(room).min(missing);
            let (part, rest) = bytes.split_at(take);
            *bytes = rest;
            self.raw.extend_from_slice(part);
            self.clean.extend_from_slice(part);
            self.position += take as u64;
            if self.total() == Some(self.clean.len()) {
                return self.finish(crc).map(Some);
            }
        }
        Ok(None)
    }

    fn total(&self) -> Option<usize> {
        let length = self.clean.first_chunk::<LENGTH_LEN>()?;
        Some(frame_len(usize::from(u16::from_be_bytes(*length))))
    }

    fn finish(&mut self, crc: bool) -> Result<Vec<u8>, TermCode> {
        let covered = self.raw.len() - CRC_LEN;
        let mut sum = Crc::default();
        sum.update(&self.raw[..covered]);
        if crc && sum.field() != self.raw[covered..] {
            return Err(TermCode::MPA_CRC);
        }
        self.raw.clear();
        self.head = None;
        Ok(std::mem::take(&mut self.clean))
    }
}

#[cfg(test)]
#[path = "fpdu_tests.rs"]
mod tests;
