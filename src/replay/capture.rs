//! Reads captures: pcapng files, and in them the bytes of a TCP connection and the Sends of a RoCE
//! connection.
//!
//! As simple as one connection of a local test bed allows: little-endian files, IPv4 without
//! fragments, packets that come in order. What is not so panics, since it would make the tests say
//! nothing.

use std::io::Read as _;

use flate2::read::GzDecoder;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who connected.
    Client,
    /// Who accepted.
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// Bytes of a TCP connection that arrived together.
#[cfg(feature = "iwarp")]
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) from: Side,
    pub(crate) bytes: Vec<u8>,
}

/// One RDMA Send.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) from: Side,
    pub(crate) message: Vec<u8>,
    /// The receiver's steering tag that was invalidated with it.
    pub(crate) invalidated: Option<u32>,
}

/// The packets of a capture, from the IP header on. Other protocols are left out.
pub(crate) fn packets(compressed: &[u8]) -> Vec<Packet> {
    let mut file = Vec::new();
    GzDecoder::new(compressed)
        .read_to_end(&mut file)
        .expect("a gzip file");
    assert_eq!(file[8..12], [0x4D, 0x3C, 0x2B, 0x1A], "little-endian");
    let mut packets = Vec::new();
    let mut rest = &file[..];
    while !rest.is_empty() {
        let block = &rest[..u32_le(rest, 4)];
        rest = &rest[block.len()..];
        const ENHANCED_PACKET: usize = 6;
        if u32_le(block, 0) == ENHANCED_PACKET {
            let captured = u32_le(block, 20);
            assert_eq!(captured, u32_le(block, 24), "whole packets");
            packets.extend(Packet::of_frame(&block[28..][..captured]));
        }
    }
    packets
}

/// An IPv4 packet of TCP or UDP.
#[derive(Debug)]
pub(crate) struct Packet {
    source: [u8; 4],
    protocol: u8,
    /// What the IP header is in front of.
    payload: Vec<u8>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Packet {
    fn of_frame(frame: &[u8]) -> Option<Self> {
        let (ethernet, ip) = frame.split_at(14);
        if ethernet[12..] != [0x08, 0x00] || ![TCP, UDP].contains(&ip[9]) {
            return None;
        }
        let header = usize::from(ip[0] & 0x0F) * 4;
        let total = u16_be(ip, 2);
        Some(Self {
            source: ip[12..16].try_into().ok()?,
            protocol: ip[9],
            payload: ip[header..total].to_vec(),
        })
    }
}

/// The bytes of the capture's one TCP connection, in the order in which they came.
#[cfg(feature = "iwarp")]
pub(crate) fn tcp(packets: &[Packet]) -> Vec<Chunk> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let mut client = None;
    let mut next = [None::<u32>; 2];
    let mut chunks = Vec::new();
    for packet in packets.iter().filter(|packet| packet.protocol == TCP) {
        let segment = &packet.payload;
        let header = usize::from(segment[12] >> 4) * 4;
        let sequence = u32_be(segment, 4);
        let sender = (packet.source, u16_be(segment, 0));
        if segment[13] & (SYN | ACK) == SYN {
            assert!(client.is_none_or(|client| client == sender), "one client");
            client = Some(sender);
        }
        let from = match client.expect("the handshake") == sender {
            true => Side::Client,
            false => Side::Server,
        };
        let next = &mut next[from as usize];
        if segment[13] & SYN != 0 {
            *next = Some(sequence.wrapping_add(1));
            continue;
        }
        let expected = next.expect("the handshake");
        let bytes = &segment[header..];
        let ahead = sequence.wrapping_sub(expected).cast_signed();
        assert!(ahead <= 0, "a segment is missing in the capture");
        // What was there before was sent again.
        let known = ahead.unsigned_abs() as usize;
        if let Some(new) = bytes.get(known..)
            && !new.is_empty()
        {
            *next = Some(expected.wrapping_add(new.len() as u32));
            let bytes = new.to_vec();
            chunks.push(Chunk { from, bytes });
        }
    }
    chunks
}

/// The Sends of the capture's one reliable connection of RoCE v2. The first one comes from the
/// client.
pub(crate) fn roce(packets: &[Packet]) -> Vec<Send> {
    const PORT: usize = 4791;
    const SEND_OPCODES: [u8; 5] = [0x00, 0x01, 0x02, 0x03, 0x16];
    const SEND_ONLY: u8 = 0x04;
    const SEND_ONLY_WITH_INVALIDATE: u8 = 0x17;
    let mut client = None;
    let mut last = [None; 2];
    let mut sends = Vec::new();
    for packet in packets.iter().filter(|packet| packet.protocol == UDP) {
        if u16_be(&packet.payload, 2) != PORT {
            continue;
        }
        let transport = &packet.payload[8..];
        let opcode = transport[0];
        assert!(!SEND_OPCODES.contains(&opcode), "messages fit the path MTU");
        let header = match opcode {
            SEND_ONLY => 12,
            SEND_ONLY_WITH_INVALIDATE => 16,
            _ => continue,
        };
        let from = match *client.get_or_insert(packet.source) == packet.source {
            true => Side::Client,
            false => Side::Server,
        };
        let sequence = Some(u32_be(transport, 8) & 0x00FF_FFFF);
        if std::mem::replace(&mut last[from as usize], sequence) == sequence {
            continue;
        }
        let padding = usize::from(transport[1] >> 4 & 3);
        let end = transport.len() - 4 - padding;
        sends.push(Send {
            from,
            message: transport[header..end].to_vec(),
            invalidated: (header == 16).then(|| u32_be(transport, 12)),
        });
    }
    sends
}

/// The client's address: the handshakes of TCP and of the RDMA connection manager begin with a
/// packet of its.
pub(crate) fn client_address(packets: &[Packet]) -> [u8; 4] {
    packets.first().expect("a packet").source
}

fn u16_be(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn u32_be(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u32_le(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}
