//! Every check of the receiving half, with the Terminate that answers it.

use proptest::prelude::*;

use super::world::{buffer, buffers, framed};
use crate::rdma::iwarp::ddp::{Address, Segment};
use crate::rdma::iwarp::fpdu::frame_len;
use crate::rdma::iwarp::mpa::Rtr;
use crate::rdma::iwarp::rdmap::{Offender, Opcode, ReadRequest, TermCode};
use crate::rdma::iwarp::receive::{Action, PeerRead, ReadSink, Receiver, Violation};
use crate::rdma::iwarp::tags::Tags;
use crate::rdma::iwarp::transmit::Transmitter;
use crate::rdma::{RemoteAccess, WindowId};

const CAPACITY: usize = 256;

/// A receiving half with receives of 256 bytes and a window of 100.
struct Rx {
    receiver: Receiver,
    tags: Tags,
    window: WindowId,
    tag: u32,
}

impl Rx {
    fn new() -> Self {
        let mut receiver = Receiver::new();
        receiver.begin_stream(true, false, Rtr::None);
        for buffer in buffers(CAPACITY, 4) {
            receiver.post(buffer);
        }
        let mut tags = Tags::new().unwrap();
        let mut memory = buffer(300);
        memory.fill(0xEE);
        let (window, tag) = tags
            .open(memory.pin().slice(100..200), RemoteAccess::Write)
            .unwrap();
        assert!(tags.bind(window));
        Self {
            receiver,
            tags,
            window,
            tag,
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Action>, Violation> {
        let mut bytes = bytes;
        let mut actions = Vec::new();
        while let Some(action) = self.receiver.consume(&mut bytes, &mut self.tags)? {
            actions.push(action);
        }
        Ok(actions)
    }

    fn segment(&mut self, segment: Segment, payload: &[u8]) -> Result<Vec<Action>, Violation> {
        self.feed(&framed(&segment, payload, true))
    }

    /// The code that a segment is refused with.
    fn refuses(mut self, segment: Segment, payload: &[u8]) -> TermCode {
        self.segment(segment, payload).unwrap_err().code
    }

    /// The window's bytes, after closing it.
    fn window_bytes(mut self) -> Vec<u8> {
        self.tags.invalidate(self.window);
        let memory = self.tags.close(self.window).unwrap();
        drop(self.tags);
        memory.unpin().unwrap()[..200].to_vec()
    }
}

fn send(msn: u32, offset: u32, last: bool) -> Segment {
    untagged(Opcode::Send, 0, msn, offset, last)
}

fn untagged(opcode: Opcode, queue: u32, msn: u32, offset: u32, last: bool) -> Segment {
    Segment {
        opcode,
        last,
        address: Address::Untagged {
            invalidate: 0,
            queue,
            msn,
            offset,
        },
    }
}

fn tagged(opcode: Opcode, tag: u32, offset: u64, last: bool) -> Segment {
    Segment {
        opcode,
        last,
        address: Address::Tagged { tag, offset },
    }
}

fn write(tag: u32, offset: u64) -> Segment {
    tagged(Opcode::Write, tag, offset, true)
}

fn message(actions: Vec<Action>) -> Vec<u8> {
    match actions.into_iter().next() {
        Some(Action::Received { buffer, .. }) => buffer.to_vec(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn d04_queue_number() {
    for queue in [1, 2, 3, u32::MAX] {
        let segment = untagged(Opcode::Send, queue, 1, 0, true);
        assert_eq!(Rx::new().refuses(segment, b"x"), TermCode::DDP_QUEUE);
    }
    let segment = untagged(Opcode::ReadRequest, 0, 1, 0, true);
    assert_eq!(Rx::new().refuses(segment, &[0; 28]), TermCode::DDP_QUEUE);
}

#[test]
fn d04_no_buffer() {
    let mut rx = Rx::new();
    for msn in 1..=4 {
        message(rx.segment(send(msn, 0, true), b"x").unwrap());
    }
    assert_eq!(rx.refuses(send(5, 0, true), b"x"), TermCode::DDP_NO_BUFFER);
    let mut rx = Rx::new();
    for msn in 1..=4 {
        message(rx.segment(send(msn, 0, true), b"").unwrap());
    }
    let code = rx.refuses(send(5, 0, true), b"");
    assert_eq!(code, TermCode::DDP_NO_BUFFER, "empty messages take one too");
}

#[test]
fn d04_message_number() {
    for msn in [0, 2, u32::MAX] {
        assert_eq!(
            Rx::new().refuses(send(msn, 0, true), b"x"),
            TermCode::DDP_MSN
        );
    }
    let mut rx = Rx::new();
    rx.segment(send(1, 0, false), b"x").unwrap();
    assert_eq!(rx.refuses(send(2, 1, true), b"x"), TermCode::DDP_MSN);
}

#[test]
fn d04_message_offset() {
    assert_eq!(
        Rx::new().refuses(send(1, 1, true), b"x"),
        TermCode::DDP_OFFSET
    );
    for offset in [0, 1, 3, u32::MAX] {
        let mut rx = Rx::new();
        rx.segment(send(1, 0, false), b"xy").unwrap();
        assert_eq!(
            rx.refuses(send(1, offset, true), b"x"),
            TermCode::DDP_OFFSET
        );
    }
}

#[test]
fn r07_message_too_long() {
    let long = [7; CAPACITY + 1];
    assert_eq!(
        Rx::new().refuses(send(1, 0, true), &long),
        TermCode::DDP_TOO_LONG
    );
    let mut rx = Rx::new();
    rx.segment(send(1, 0, false), &long[1..]).unwrap();
    let code = rx.refuses(send(1, CAPACITY as u32, true), b"x");
    assert_eq!(code, TermCode::DDP_TOO_LONG);
    let mut rx = Rx::new();
    rx.segment(send(1, 0, false), &long[1..]).unwrap();
    let actions = rx.segment(send(1, CAPACITY as u32, true), b"").unwrap();
    assert_eq!(message(actions), &long[1..]);
}

#[test]
fn a_message_has_one_opcode() {
    let mut rx = Rx::new();
    rx.segment(send(1, 0, false), b"x").unwrap();
    let other = untagged(Opcode::SendSolicited, 0, 1, 1, true);
    assert_eq!(rx.refuses(other, b"x"), TermCode::RDMAP_OPCODE);
}

#[test]
fn d05_tagged_segments() {
    let rx = Rx::new();
    let tag = rx.tag;
    assert_eq!(
        rx.refuses(write(tag ^ 1, 0), b"x"),
        TermCode::DDP_INVALID_TAG
    );
    assert_eq!(
        Rx::new().refuses(write(0, 0), b"x"),
        TermCode::DDP_INVALID_TAG
    );
    for (offset, code) in [
        (100, TermCode::DDP_BOUNDS),
        (99, TermCode::DDP_BOUNDS),
        (u64::MAX - 1, TermCode::DDP_WRAP),
        (u64::MAX, TermCode::DDP_WRAP),
        (1 << 32, TermCode::DDP_BOUNDS),
    ] {
        let rx = Rx::new();
        let tag = rx.tag;
        assert_eq!(rx.refuses(write(tag, offset), b"xy"), code, "{offset:#x}");
    }
}

#[test]
fn d06_empty_tagged_segments_are_not_looked_at() {
    let mut rx = Rx::new();
    assert!(rx.segment(write(1, u64::MAX), b"").unwrap().is_empty());
    assert_eq!(rx.receiver.frames(), 1);
}

#[test]
fn d07_a_refused_segment_changes_nothing_but_its_terminate_names_it() {
    let mut rx = Rx::new();
    let tag = rx.tag;
    rx.segment(write(tag, 0), &[1; 100]).unwrap();
    let violation = rx.segment(write(tag, 50), &[2; 51]).unwrap_err();
    let offender = violation.offender.unwrap();
    assert_eq!((offender.ulpdu_len, offender.tagged), (14 + 51, true));
    assert_eq!(offender.header[..2], [0xC1, 0x40]);
    assert_eq!(offender.header[2..6], tag.to_be_bytes());
    let bytes = rx.window_bytes();
    assert!(bytes[..100].iter().all(|b| *b == 0xEE));
    assert!(bytes[100..].iter().all(|b| *b == 1));
}

#[test]
fn d08_a_message_is_delivered_once_and_only_whole() {
    let mut rx = Rx::new();
    assert!(rx.segment(send(1, 0, false), b"abc").unwrap().is_empty());
    // A tagged message may come in between.
    let tag = rx.tag;
    assert!(rx.segment(write(tag, 10), b"w").unwrap().is_empty());
    assert!(rx.segment(send(1, 3, false), b"def").unwrap().is_empty());
    assert_eq!(
        message(rx.segment(send(1, 6, true), b"g").unwrap()),
        b"abcdefg"
    );
    assert_eq!(message(rx.segment(send(2, 0, true), b"").unwrap()), b"");
}

#[test]
fn m12_a_damaged_fpdu_is_never_delivered() {
    let good = framed(&send(1, 0, true), b"payload", true);
    for bit in 0..good.len() * 8 {
        // The length field decides where the CRC is looked for.
        if bit < 16 {
            continue;
        }
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A header that is taken for a tagged one is shorter; the frame is the same.
        let error = Rx::new().feed(&bad).unwrap_err();
        assert_eq!(error.code, TermCode::MPA_CRC, "bit {bit}");
    }
}

#[test]
fn m07_without_crc_the_field_is_not_checked() {
    let mut rx = Rx::new();
    rx.receiver.begin_stream(false, false, Rtr::None);
    let mut bytes = framed(&send(1, 0, true), b"payload", false);
    bytes.last_mut().map(|byte| *byte ^= 0x55).unwrap();
    assert_eq!(message(rx.feed(&bytes).unwrap()), b"payload");
}

#[test]
fn lengths_below_the_header() {
    for len in [0u16, 1, 5, 13, 17] {
        let mut bytes = len.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[if len == 13 { 0xC1 } else { 0x41 }, 0x43]);
        bytes.extend_from_slice(&[0; 60]);
        // Nothing behind the frame is waited for: it may be all that ever comes.
        bytes.truncate(frame_len(usize::from(len)));
        let error = Rx::new().feed(&bytes).unwrap_err();
        assert_eq!(error.code, TermCode::MPA_MARKER, "{len}");
    }
}

#[test]
fn e04_a_zero_length_fpdu_is_a_ready_to_receive_message_once() {
    let mut rx = Rx::new();
    rx.receiver.begin_stream(false, false, Rtr::Fpdu);
    assert!(rx.feed(&[0; 8]).unwrap().is_empty());
    assert_eq!(rx.receiver.frames(), 1);
    assert_eq!(rx.feed(&[0; 8]).unwrap_err().code, TermCode::MPA_MARKER);
}

fn read_request() -> ReadRequest {
    ReadRequest {
        sink_tag: 7,
        sink_offset: 0,
        len: 10,
        source_tag: 8,
        source_offset: 0,
    }
}

#[test]
fn r04_read_requests_have_numbers_of_their_own() {
    let mut rx = Rx::new();
    for msn in 1..4 {
        let segment = untagged(Opcode::ReadRequest, 1, msn, 0, true);
        let actions = rx.segment(segment, &read_request().encode()).unwrap();
        match &actions[..] {
            [Action::ReadRequested(read)] => assert_eq!(read.request, read_request()),
            other => panic!("{other:?}"),
        }
    }
    let segment = untagged(Opcode::ReadRequest, 1, 3, 0, true);
    let code = rx
        .segment(segment, &read_request().encode())
        .unwrap_err()
        .code;
    assert_eq!(code, TermCode::DDP_MSN);
    let segment = untagged(Opcode::ReadRequest, 1, 1, 4, true);
    assert_eq!(Rx::new().refuses(segment, &[0; 28]), TermCode::DDP_OFFSET);
    for len in [0, 27, 29, 100] {
        let segment = untagged(Opcode::ReadRequest, 1, 1, 0, true);
        assert_eq!(
            Rx::new().refuses(segment, &[0; 100][..len]),
            TermCode::DDP_TOO_LONG
        );
    }
    let segment = untagged(Opcode::ReadRequest, 1, 1, 0, false);
    assert_eq!(Rx::new().refuses(segment, &[0; 28]), TermCode::DDP_TOO_LONG);
}

#[test]
fn r06_more_reads_than_agreed_end_the_stream() {
    let mut transmitter = Transmitter::new();
    transmitter.ird = 2;
    let read = PeerRead {
        request: read_request(),
        offender: Offender {
            ulpdu_len: 46,
            header: [0; 18],
            tagged: false,
            read_request: None,
        },
    };
    assert!(transmitter.respond(read).is_ok());
    assert!(transmitter.respond(read).is_ok());
    let violation = transmitter.respond(read).unwrap_err();
    assert_eq!(violation.code, TermCode::RDMAP_STREAM);
}

#[test]
fn read_responses_must_be_what_was_asked_for() {
    let expecting = || {
        let mut rx = Rx::new();
        rx.receiver
            .expect_read(ReadSink::new(0x1234, buffer(64).pin().slice(0..50)));
        rx
    };
    let response = |tag, offset, last| tagged(Opcode::ReadResponse, tag, offset, last);
    let mut rx = expecting();
    assert!(
        rx.segment(response(0x1234, 0, false), &[1; 20])
            .unwrap()
            .is_empty()
    );
    let actions = rx.segment(response(0x1234, 20, true), &[2; 30]).unwrap();
    assert!(matches!(&actions[..], [Action::ReadDone]));
    let code = rx.refuses(response(0x1234, 0, true), b"again");
    assert_eq!(code, TermCode::DDP_INVALID_TAG, "unsolicited");
    for (segment, len, code) in [
        (response(0x1235, 0, true), 50, TermCode::DDP_INVALID_TAG),
        (response(0x1234, 1, false), 10, TermCode::DDP_BOUNDS),
        (response(0x1234, 0, true), 51, TermCode::DDP_BOUNDS),
        (response(0x1234, 0, true), 49, TermCode::DDP_BOUNDS),
        (response(0x1234, 0, false), 50, TermCode::DDP_BOUNDS),
        (response(0x1234, 0, true), 0, TermCode::DDP_BOUNDS),
    ] {
        assert_eq!(
            expecting().refuses(segment, &[3; 60][..len]),
            code,
            "{segment:?}"
        );
    }
    // The sink of a read is no window: a Write cannot reach it.
    let code = expecting().refuses(write(0x1234, 0), b"x");
    assert_eq!(code, TermCode::DDP_INVALID_TAG);
}

#[test]
fn r08_invalidation_happens_before_delivery_and_only_once() {
    let mut rx = Rx::new();
    let (tag, window) = (rx.tag, rx.window);
    let invalidating = |msn, opcode| Segment {
        opcode,
        last: true,
        address: Address::Untagged {
            invalidate: tag,
            queue: 0,
            msn,
            offset: 0,
        },
    };
    // R02: the field means nothing in a plain Send.
    message(rx.segment(invalidating(1, Opcode::Send), b"x").unwrap());
    assert!(rx.tags.memory(window).is_some());
    let actions = rx
        .segment(invalidating(2, Opcode::SendInvalidate), b"x")
        .unwrap();
    match &actions[..] {
        [Action::Received { invalidated, .. }] => assert_eq!(*invalidated, Some((window, tag))),
        other => panic!("{other:?}"),
    }
    assert!(rx.tags.memory(window).is_none());
    let again = invalidating(3, Opcode::SendSolicitedInvalidate);
    assert_eq!(rx.refuses(again, b"x"), TermCode::RDMAP_CANNOT_INVALIDATE);
}

#[test]
fn a_window_closed_in_the_middle_of_a_segment_takes_no_more() {
    let mut rx = Rx::new();
    let bytes = framed(&write(rx.tag, 0), &[9; 100], true);
    assert!(rx.feed(&bytes[..16 + 40]).unwrap().is_empty());
    assert!(rx.tags.invalidate(rx.window));
    assert!(rx.receiver.direct(&mut rx.tags).is_none());
    let error = rx.feed(&bytes[16 + 40..]).unwrap_err();
    assert_eq!(error.code, TermCode::DDP_INVALID_TAG);
    let placed = rx.window_bytes();
    assert!(placed[100..140].iter().all(|b| *b == 9));
    assert!(placed[140..].iter().all(|b| *b == 0xEE));
}

#[test]
fn payload_read_into_its_place_counts_for_the_crc() {
    let mut rx = Rx::new();
    let data: Vec<u8> = (0..100).collect();
    for (segment, head, window) in [(write(rx.tag, 0), 16, true), (send(1, 0, true), 20, false)] {
        let bytes = framed(&segment, &data, true);
        rx.feed(&bytes[..head + 10]).unwrap();
        let place = rx.receiver.direct(&mut rx.tags).unwrap();
        assert_eq!(place.len(), 90);
        place[..50].copy_from_slice(&data[10..60]);
        rx.receiver.placed(&mut rx.tags, 50);
        let actions = rx.feed(&bytes[head + 60..]).unwrap();
        if window {
            assert!(actions.is_empty());
        } else {
            assert_eq!(message(actions), data);
        }
        assert!(rx.receiver.direct(&mut rx.tags).is_none());
    }
    assert_eq!(rx.window_bytes()[100..], data);
}

#[test]
fn receives_are_a_stack() {
    let mut receiver = Receiver::new();
    receiver.begin_stream(true, false, Rtr::None);
    let mut tags = Tags::new().unwrap();
    let mut all = buffers(CAPACITY, 3);
    let hot = all[2].address();
    for buffer in all.drain(..) {
        receiver.post(buffer);
    }
    for msn in 1..10 {
        let bytes = framed(&send(msn, 0, true), b"x", true);
        match receiver.consume(&mut &bytes[..], &mut tags) {
            Ok(Some(Action::Received { buffer, .. })) => {
                assert_eq!(buffer.address(), hot);
                receiver.post(buffer);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn any_segment() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let header = (any::<u8>(), 0u8..10, any::<[u8; 16]>(), 0usize..400);
    (header, any::<bool>()).prop_map(|((flags, opcode, rest, len), valid)| {
        let control = if valid { (flags & 0xC0) | 1 } else { flags };
        let head_len = Segment::header_len(control);
        let mut ulpdu = vec![control, 0x40 | opcode];
        ulpdu.extend_from_slice(&rest);
        if valid {
            // Numbers that may be right.
            ulpdu[6..10].copy_from_slice(&u32::from(rest[0] % 3).to_be_bytes());
            ulpdu[10..14].copy_from_slice(&u32::from(rest[1] % 3).to_be_bytes());
            ulpdu[14..18].copy_from_slice(&u32::from(rest[2] % 2).to_be_bytes());
        }
        ulpdu.truncate(head_len);
        ulpdu.resize(head_len + len, rest[3]);
        (ulpdu, valid)
    })
}

proptest! {
    #[test]
    fn any_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        crc: bool,
        markers: bool,
        step in 1usize..200,
    ) {
        let mut rx = Rx::new();
        rx.receiver.begin_stream(crc, markers, Rtr::None);
        for part in bytes.chunks(step) {
            if rx.feed(part).is_err() {
                break;
            }
        }
    }

    #[test]
    fn any_segments_never_panic_and_never_leave_the_window(
        segments in proptest::collection::vec(any_segment(), 1..20),
        tag_right: bool,
        step in 1usize..300,
    ) {
        let mut rx = Rx::new();
        rx.receiver.begin_stream(false, false, Rtr::None);
        rx.receiver.expect_read(ReadSink::new(3, buffer(64).pin()));
        let mut stream = Vec::new();
        for (mut ulpdu, _) in segments {
            if tag_right && ulpdu[0] & 0x80 != 0 {
                ulpdu[2..6].copy_from_slice(&rx.tag.to_be_bytes());
                ulpdu[6..13].fill(0);
            }
            stream.extend_from_slice(&(ulpdu.len() as u16).to_be_bytes());
            let pad = (2 + ulpdu.len()).wrapping_neg() % 4;
            stream.append(&mut ulpdu);
            stream.resize(stream.len() + pad + 4, 0);
        }
        for part in stream.chunks(step) {
            if rx.feed(part).is_err() {
                break;
            }
        }
        prop_assert!(rx.window_bytes()[..100].iter().all(|b| *b == 0xEE));
    }
}
