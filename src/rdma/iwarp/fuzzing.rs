//! Doors into the parsers for the fuzz targets in `fuzz/`; they exist with `--cfg fuzzing` and in tests only, and no
//! version promises anything about them.

use std::collections::HashSet;

use super::crc::Crc;
use super::fpdu::{CRC_LEN, LENGTH_LEN, MarkerWriter, frame_len};
use super::mpa::{self, Frame, HEADER_LEN, Kind, Local, Rtr};
use super::rdmap::Terminate;
use super::receive::{Action, ReadSink, Receiver};
use super::tags::Tags;
use crate::rdma::{PlainDomain, RemoteAccess, Slab, SlabOptions};

/// Bytes of each posted receive, window and read.
const SLOT: usize = 1024;
/// Windows, of which every other one may be written.
const WINDOWS: u32 = 4;
/// Tags that the input may use by number: those of the windows, then those of the reads.
const NUMBERS: u32 = WINDOWS + 2;

/// Reads `input` as both kinds of MPA frame, and does with a frame what both ends do.
///
/// # Panics
/// A frame is not what its own bytes say, or an end concludes what it must not.
pub fn mpa(input: &[u8]) {
    for kind in [Kind::Request, Kind::Reply] {
        let Ok(Some((frame, used))) = Frame::parse(kind, input) else {
            continue;
        };
        assert!(used <= input.len() && used >= HEADER_LEN + frame.private_data.len());
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let again = Frame::parse(kind, &bytes).expect("own bytes are valid");
        assert_eq!(again, Some((frame.clone(), bytes.len())));
        // Any part of a frame is waited for, and never taken for a whole one.
        for len in 0..used {
            assert_eq!(Frame::parse(kind, &input[..len]), Ok(None));
        }
        for revision in [1, 2] {
            shake_hands(&frame, revision);
        }
    }
    let _ = Terminate::decode(input);
}

fn shake_hands(frame: &Frame, revision: u8) {
    let local = Local {
        revision,
        crc: true,
        markers: false,
        peer_to_peer: revision == 2,
        ird: 16,
        ord: 16,
        max_ird: 128,
    };
    let depth = |settings: &mpa::Settings| {
        assert!(settings.ird <= 128 && settings.ord <= 16, "{settings:?}");
    };
    match frame.kind {
        Kind::Request => {
            if mpa::acceptable(revision, frame).is_err() {
                return;
            }
            let (reply, settings) = mpa::accept(&local, frame, Vec::new());
            depth(&settings);
            for reply in [reply, mpa::reject(frame, vec![0; 8])] {
                let mut bytes = Vec::new();
                reply.encode(&mut bytes);
                assert!(matches!(Frame::parse(Kind::Reply, &bytes), Ok(Some(_))));
            }
        }
        Kind::Reply => {
            let mut bytes = Vec::new();
            mpa::request(&local, Vec::new()).encode(&mut bytes);
            assert!(matches!(Frame::parse(Kind::Request, &bytes), Ok(Some(_))));
            if let Ok(settings) = mpa::conclude(&local, frame) {
                depth(&settings);
            }
        }
    }
}

/// Feeds `input` to the receiving half of a stream. The first two bytes choose CRC, markers, direct placement and
/// the size of the pieces in which the rest, a sequence of FPDUs, arrives.
///
/// Tags are secret, so those below [`NUMBERS`] stand for real ones; checksums are made right on request.
///
/// # Panics
/// Something was delivered or placed that no rule allows.
pub fn receive(input: &[u8]) {
    let Some((&[flags, piece], mut rest)) = input.split_first_chunk() else {
        return;
    };
    let flag = |bit: u8| flags & 1 << bit != 0;
    let mut bed = Bed::new(flag(0), flag(1), flag(2));
    let mut writer = MarkerWriter::default();
    let mut bytes = Vec::new();
    while let Some(len) = rest.first_chunk::<LENGTH_LEN>() {
        let len = usize::from(u16::from_be_bytes(*len));
        let (frame, behind) = rest.split_at(frame_len(len).min(rest.len()));
        rest = behind;
        let mut frame = frame.to_vec();
        bed.name_tags(&mut frame);
        let whole = frame.len() == frame_len(len);
        if whole && flag(3) && !flag(1) {
            let (covered, field) = frame.split_at_mut(frame_len(len) - CRC_LEN);
            let mut sum = Crc::default();
            sum.update(covered);
            field.copy_from_slice(&sum.field());
        }
        if whole && flag(1) && !flag(4) {
            writer.frame(&[&frame[LENGTH_LEN..LENGTH_LEN + len]], flag(0), &mut bytes);
        } else {
            bytes.extend_from_slice(&frame);
        }
    }
    for piece in bytes.chunks(usize::from(piece) + 1) {
        if !bed.feed(piece, flag(5)) {
            return;
        }
    }
}

/// A stream with receives, windows and reads.
struct Bed {
    receiver: Receiver,
    tags: Tags,
    names: Vec<u32>,
    invalidated: HashSet<u32>,
    reads: usize,
}

impl Bed {
    fn new(crc: bool, markers: bool, rtr: bool) -> Self {
        let mut receiver = Receiver::new();
        let rtr = if rtr { Rtr::Fpdu } else { Rtr::None };
        receiver.begin_stream(crc, markers, rtr);
        let mut tags = Tags::new().expect("random numbers");
        let slab = Slab::new(&PlainDomain::shared(), SLOT, 16, SlabOptions::default())
            .expect("some memory");
        let take = || slab.take().expect("a slot");
        let mut names = Vec::new();
        for window in 0..WINDOWS {
            let access = match window % 2 {
                0 => RemoteAccess::Write,
                _ => RemoteAccess::Read,
            };
            let (id, tag) = tags.open(take().pin(), access).expect("a tag");
            // The last one is never bound.
            assert!(window + 1 == WINDOWS || tags.bind(id));
            names.push(tag);
        }
        for len in [SLOT, 100] {
            let tag = tags.fresh().expect("a tag");
            receiver.expect_read(ReadSink::new(tag, take().pin().slice(0..len)));
            names.push(tag);
        }
        for len in [SLOT, 20, SLOT, 0, SLOT, SLOT] {
            let mut buffer = take();
            buffer.set_len(len);
            receiver.post(buffer);
        }
        Self {
            receiver,
            tags,
            names,
            invalidated: HashSet::new(),
            reads: 2,
        }
    }

    /// Numbers become tags, in the place that both kinds of header have for one.
    fn name_tags(&self, frame: &mut [u8]) {
        const TAG: std::ops::Range<usize> = LENGTH_LEN + 2..LENGTH_LEN + 6;
        if let Some(place) = frame.get_mut(TAG)
            && let [0, 0, 0, number] = *place
            && u32::from(number) < NUMBERS
        {
            place.copy_from_slice(&self.names[usize::from(number)].to_be_bytes());
        }
    }

    /// Returns whether the stream goes on.
    fn feed(&mut self, mut bytes: &[u8], direct: bool) -> bool {
        while !bytes.is_empty() {
            if direct && let Some(memory) = self.receiver.direct(&mut self.tags) {
                assert!(!memory.is_empty() && memory.len() <= SLOT);
                let len = memory.len().min(bytes.len());
                memory[..len].copy_from_slice(&bytes[..len]);
                self.receiver.placed(&mut self.tags, len);
                bytes = &bytes[len..];
                continue;
            }
            match self.receiver.consume(&mut bytes, &mut self.tags) {
                Ok(Some(action)) => {
                    if !self.check(action) {
                        return false;
                    }
                }
                Ok(None) => assert!(bytes.is_empty()),
                Err(violation) => {
                    assert!(violation.code.is_defined(), "{violation:?}");
                    return false;
                }
            }
        }
        true
    }

    fn check(&mut self, action: Action) -> bool {
        match action {
            Action::Received {
                buffer,
                invalidated,
            } => {
                assert!(buffer.len() <= SLOT);
                if let Some((_, tag)) = invalidated {
                    // Once, and only what was valid.
                    assert!(self.names[..WINDOWS as usize - 1].contains(&tag));
                    assert!(self.invalidated.insert(tag));
                }
                true
            }
            Action::ReadRequested(read) => {
                assert!(read.offender.read_request.is_some());
                true
            }
            Action::ReadDone => {
                self.reads -= 1;
                true
            }
            Action::Terminated(terminate) => {
                let mut bytes = [0; super::rdmap::MAX_TERMINATE];
                if let Some(terminate) = terminate {
                    terminate.encode(&mut bytes);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seeds of the fuzz targets, and what they have found, stay right.
    #[test]
    fn the_seeds_pass() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds");
        for (target, run) in [
            ("mpa", mpa as fn(&[u8])),
            ("iwarp_receive", receive as fn(&[u8])),
        ] {
            let mut count = 0;
            for seed in std::fs::read_dir(format!("{root}/{target}")).expect("seeds") {
                run(&std::fs::read(seed.expect("a file").path()).expect("a seed"));
                count += 1;
            }
            assert!(count > 0, "{target}");
        }
    }
}
