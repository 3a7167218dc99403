//! The codecs against captured sessions: two synthetic ones with and one without CRC, made by
//! another implementation and dissected by Wireshark, and one between two Linux kernels with
//! soft-iWARP.

use crate::rdma::iwarp::ddp::Segment;
use crate::rdma::iwarp::fpdu::{LENGTH_LEN, frame_len};
use crate::rdma::iwarp::mpa::{Frame, Kind};
use crate::rdma::iwarp::rdmap::{Opcode, TermCode, Terminate};
use crate::rdma::iwarp::receive::{Action, Receiver};
use crate::rdma::iwarp::tags::Tags;
use crate::rdma::iwarp::{
    mpa::Rtr,
    tests::world::{buffers, framed},
};

/// The two directions of the only TCP connection in a capture, the initiator's first.
fn streams(capture: &[u8]) -> [Vec<u8>; 2] {
    let swapped = capture[..4] == [0xA1, 0xB2, 0xC3, 0xD4];
    assert!(swapped || capture[..4] == [0xD4, 0xC3, 0xB2, 0xA1]);
    let u32_of = |bytes: &[u8]| {
        let bytes = bytes.try_into().unwrap();
        if swapped {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        }
    };
    let mut streams = [Vec::new(), Vec::new()];
    let mut next = [None::<u32>; 2];
    let mut initiator_port = None;
    let mut rest = &capture[24..];
    while rest.len() >= 16 {
        let len = u32_of(&rest[8..12]) as usize;
        let (packet, after) = rest[16..].split_at(len);
        rest = after;
        if packet[12..14] != [8, 0] || packet[23] != 6 {
            continue;
        }
        let ip = &packet[14..];
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let tcp = &ip[usize::from(ip[0] & 15) * 4..total];
        let data = &tcp[usize::from(tcp[12] >> 4) * 4..];
        let port = u16::from_be_bytes([tcp[0], tcp[1]]);
        let way = usize::from(*initiator_port.get_or_insert(port) != port);
        let seq = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let syn = u32::from(tcp[13] >> 1 & 1);
        let expected = *next[way].get_or_insert(seq);
        if seq == expected {
            streams[way].extend_from_slice(data);
            next[way] = Some(seq.wrapping_add(syn + data.len() as u32));
        }
    }
    streams
}

/// Takes the MPA frame off and checks that it encodes to the same bytes.
fn start_up(kind: Kind, stream: &[u8]) -> (Frame, &[u8]) {
    let (frame, used) = Frame::parse(kind, stream).unwrap().unwrap();
    let mut again = Vec::new();
    frame.encode(&mut again);
    assert_eq!(again, &stream[..used]);
    (frame, &stream[used..])
}

/// Decodes every FPDU, encodes it again and compares.
fn segments(mut stream: &[u8], crc: bool) -> Vec<(Segment, Vec<u8>)> {
    let mut out = Vec::new();
    while !stream.is_empty() {
        let len = usize::from(u16::from_be_bytes([stream[0], stream[1]]));
        let (fpdu, rest) = stream.split_at(frame_len(len));
        stream = rest;
        let segment = Segment::decode(&fpdu[LENGTH_LEN..]).unwrap();
        let payload = &fpdu[LENGTH_LEN + segment.len()..LENGTH_LEN + len];
        assert_eq!(framed(&segment, payload, crc), fpdu);
        out.push((segment, payload.to_vec()));
    }
    out
}

/// Messages that a receiver delivers from the Sends of a stream, fed in parts of `step` bytes.
fn deliveries(segments: &[(Segment, Vec<u8>)], crc: bool, step: usize) -> Vec<Vec<u8>> {
    let mut receiver = Receiver::new();
    receiver.begin_stream(crc, false, Rtr::None);
    for buffer in buffers(4096, 32) {
        receiver.post(buffer);
    }
    let mut tags = Tags::new().unwrap();
    let mut stream = Vec::new();
    for (segment, payload) in segments {
        if matches!(segment.opcode, Opcode::Send | Opcode::SendSolicited) {
            stream.extend(framed(segment, payload, crc));
        }
    }
    let mut out = Vec::new();
    for mut part in stream.chunks(step) {
        while let Some(action) = receiver.consume(&mut part, &mut tags).unwrap() {
            match action {
                Action::Received { buffer, .. } => out.push(buffer.to_vec()),
                other => panic!("{other:?}"),
            }
        }
    }
    out
}

fn session(capture: &[u8], crc: bool) -> [Vec<(Segment, Vec<u8>)>; 2] {
    let [initiator, responder] = streams(capture);
    let (request, initiator) = start_up(Kind::Request, &initiator);
    let (reply, responder) = start_up(Kind::Reply, &responder);
    assert_eq!((request.crc || reply.crc, reply.reject), (crc, false));
    let both = [segments(initiator, crc), segments(responder, crc)];
    for way in &both {
        let whole: Vec<Vec<u8>> = way
            .iter()
            .filter(|(segment, _)| segment.opcode == Opcode::Send)
            .map(|(_, payload)| payload.clone())
            .collect();
        for step in [1, 7, 100_000] {
            assert_eq!(deliveries(way, crc, step), whole);
        }
    }
    both
}

#[test]
fn synthetic_sessions() {
    let captures: [(&[u8], bool); 3] = [
        (
            include_bytes!("../testdata/synth-smbd-iwarp-mpa1-crc.pcap"),
            true,
        ),
        (
            include_bytes!("../testdata/synth-smbd-iwarp-mpa2-crc.pcap"),
            true,
        ),
        (
            include_bytes!("../testdata/synth-smbd-iwarp-mpa2-nocrc.pcap"),
            false,
        ),
    ];
    for (capture, crc) in captures {
        let [client, server] = session(capture, crc);
        let opcodes =
            |way: &[(Segment, Vec<u8>)]| way.iter().map(|(s, _)| s.opcode).collect::<Vec<_>>();
        use Opcode::{ReadRequest, ReadResponse, Send, SendInvalidate, Write};
        assert_eq!(
            opcodes(&client),
            [
                Send,
                Send,
                Send,
                Send,
                Send,
                ReadResponse,
                Opcode::Terminate
            ]
        );
        assert_eq!(
            opcodes(&server),
            [Send, Send, Send, Send, Write, ReadRequest, SendInvalidate]
        );
        let terminate = Terminate::decode(&client[6].1).unwrap();
        assert_eq!(terminate.code, TermCode::DDP_INVALID_TAG);
        assert_eq!(terminate.offender.unwrap().opcode(), Some(Write));
    }
}

#[test]
fn a_session_of_two_kernels() {
    let [client, server] = session(include_bytes!("../testdata/kernel-siw-rping.pcap"), false);
    assert!(client.len() > 10 && server.len() > 10);
    for opcode in [Opcode::Send, Opcode::ReadRequest, Opcode::Write] {
        assert!(server.iter().any(|(segment, _)| segment.opcode == opcode));
    }
    assert!(
        client
            .iter()
            .any(|(segment, _)| segment.opcode == Opcode::ReadResponse)
    );
}
