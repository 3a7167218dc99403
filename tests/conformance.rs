//! The cases of the public conformance suite for SMB Direct servers that need no SMB2 server, by
//! their names, against a listening server over the software iWARP on loopback. The tester is an
//! RDMA peer driven by hand, which sends exactly the bytes of the case. Where the suite sends an
//! SMB2 WRITE, it sends a message of the same size, which is answered as a WRITE is, with 80 bytes,
//! or echoed.
#![cfg(feature = "iwarp")]

#[path = "conformance/names.rs"]
mod names;
mod raw;
#[path = "conformance/tester.rs"]
mod tester;

use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use raw::{LONG, Peer, Server};
use smbdirect::engine::ChannelOptions;
use smbdirect::proto::wire::{
    DataTransfer, FLAG_RESPONSE_REQUESTED, NegotiateRequest, NegotiateResponse,
    STATUS_NOT_SUPPORTED, STATUS_SUCCESS,
};
use smbdirect::proto::{Config, CreditProfile, InvalidMessage, PeerMisbehaved, Timeout};
use smbdirect::rdma::{ProviderKind, open};
use smbdirect::transport::DisconnectReason;
use tester::*;

/// What the tester waits for a disconnect.
const DISCONNECT: Duration = Duration::from_secs(12);
/// How long silence is listened to.
const QUIET: Duration = Duration::from_millis(200);
/// Bytes of an answer to an SMB2 WRITE.
const ANSWER: usize = 80;
/// Bytes of a moderate WRITE, and of a READ's answer.
const MODERATE: usize = 65_536;

#[test]
fn bvt_smbd_negotiate_basic() {
    Tester::negotiated(&echo(Config::default()), &request());
}

#[test]
fn smbd_negotiate_preferred_send_size_with_zero() {
    let request = NegotiateRequest {
        preferred_send_size: 0,
        ..request()
    };
    let (_, response) = Tester::negotiated(&echo(Config::default()), &request);
    assert_eq!(response.max_receive_size, 128);
}

#[test]
fn smbd_negotiate_preferred_send_size_max_value() {
    let server = echo(Config::default());
    for preferred_send_size in [8136, u32::MAX] {
        let request = NegotiateRequest {
            preferred_send_size,
            ..request()
        };
        let (_, response) = Tester::negotiated(&server, &request);
        assert_eq!(response.max_receive_size, preferred_send_size.min(8192));
    }
}

#[test]
fn smbd_negotiate_redundancy() {
    let server = echo(Config::default());
    let mut tester = Tester::connect(&server);
    let bytes = padded(request().encode().to_vec(), 512);
    let response = tester.negotiate(&bytes).expect("a response");
    check_response(&request(), &response);
}

#[test]
fn smbd_negotiate_uncompleted_message() {
    negotiate_refused(&request().encode()[..19]);
}

#[test]
fn smbd_negotiate_version_range_not_cover0x0100_less_than_min_version() {
    let server = echo(Config::default());
    let mut tester = Tester::connect(&server);
    let request = NegotiateRequest {
        min_version: 0x0101,
        max_version: 0xFFFF,
        ..request()
    };
    let response = tester.negotiate(&request.encode());
    assert_eq!(
        response,
        Some(NegotiateResponse::failure(STATUS_NOT_SUPPORTED))
    );
    // Nothing gets through afterwards.
    tester.peer.send(&data_message(1, 0, &pattern(100)));
    assert!(tester.peer.ends(DISCONNECT), "still connected");
    assert_eq!(tester.peer.message(Duration::ZERO), None);
}

/// A request with this range of versions is answered with success, and messages get through.
fn accepts_versions(min_version: u16, max_version: u16) {
    let (server, stored) = store(Config::default());
    let request = NegotiateRequest {
        min_version,
        max_version,
        ..request()
    };
    let (mut tester, _) = Tester::negotiated(&server, &request);
    let content = pattern(100);
    write(&mut tester, &stored, cut(&content, 1000), &content);
}

#[test]
fn smbd_negotiate_version_range_cover0x0100_equal_min_version() {
    accepts_versions(0x0100, 0xFFFF);
}

#[test]
fn smbd_negotiate_version_range_cover0x0100_equal_max_version() {
    accepts_versions(0x0000, 0x0100);
}

#[test]
fn smbd_negotiate_version_range_cover0x0100_equal_min_version_and_max_version() {
    accepts_versions(0x0100, 0x0100);
}

#[test]
fn smbd_negotiate_negative_parameter_credits_requested() {
    let with = |credits_requested| NegotiateRequest {
        credits_requested,
        ..request()
    };
    negotiate_refused(&with(0).encode());
    let server = echo(Config::default());
    Tester::negotiated(&server, &with(1));
    Tester::negotiated(&server, &with(65_535));
}

#[test]
fn smbd_negotiate_negative_parameter_max_fragmented_size() {
    let with = |max_fragmented_size| NegotiateRequest {
        max_fragmented_size,
        ..request()
    };
    negotiate_refused(&with(131_071).encode());
    let server = echo(Config::default());
    Tester::negotiated(&server, &with(131_072));
    Tester::negotiated(&server, &with(u32::MAX));
}

#[test]
fn smbd_negotiate_negotiation_timer() {
    let request = NegotiateRequest {
        preferred_send_size: 1364,
        max_receive_size: 8192,
        ..request_255()
    };
    let server = echo(Config::default());
    // A busy machine may oversleep what is left of the five seconds: that attempt says nothing.
    let judged = (0..3).any(|_| {
        let arrival = Instant::now();
        let mut tester = Tester::connect(&server);
        thread::sleep(Duration::from_secs(4));
        let response = tester.negotiate(&request.encode());
        if arrival.elapsed() > Duration::from_millis(4800) {
            return false;
        }
        check_response(&request, &response.expect("a response"));
        true
    });
    assert!(judged, "the machine is too busy to tell");

    // And who says nothing for longer than the server waits, here a fifth of a second, is
    // disconnected.
    let server = echo(Config {
        acceptor_timeout: Duration::from_millis(200),
        ..Config::default()
    });
    let mut tester = Tester::connect(&server);
    assert!(tester.peer.ends(DISCONNECT), "still connected");
}

#[test]
fn bvt_smbd_data_transfer_basic_send_small_bytes_of_data() {
    let (server, stored) = store(Config::default());
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    let content = pattern(500);
    write(&mut tester, &stored, cut(&content, 1000), &content);
}

#[test]
fn bvt_smbd_data_transfer_basic_send_moderate_bytes_data() {
    let (server, stored) = store(Config::default());
    let (mut tester, response) = Tester::negotiated(&server, &request_255());
    assert_eq!(response.max_receive_size, 1024);
    let content = pattern(MODERATE);
    assert_eq!(cut(&content, 1000).count(), 66);
    write(&mut tester, &stored, cut(&content, 1000), &content);
}

#[test]
fn smbd_data_transfer_small_length_segment() {
    let (server, stored) = store(Config::default());
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    let content = pattern(MODERATE);
    let segments = cut(&content, 1).map(|message| padded(message, 1024));
    write(&mut tester, &stored, segments, &content);
}

#[test]
fn smbd_data_transfer_redundancy() {
    let (server, stored) = store(Config::default());
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    let content = pattern(500);
    let segments = cut(&content, 1000).map(|message| padded(message, 1024));
    write(&mut tester, &stored, segments, &content);
}

#[test]
fn smbd_data_transfer_uncompleted_message() {
    refused(
        &[control(1, 0)[..19].to_vec()],
        InvalidMessage::DataTransferTooShort { len: 19 },
    );
}

#[test]
fn smbd_data_transfer_negative_parameter_data_offset_against8_byte_aligned() {
    for (offset, padding) in [(23u32, 3), (25, 5)] {
        let content = pattern(500);
        let mut message = data_message(1, 0, &content)[..20].to_vec();
        message[12..16].copy_from_slice(&offset.to_le_bytes());
        message.extend(vec![0; padding]);
        message.extend(content);
        refused(&[message], InvalidMessage::UnalignedDataOffset { offset });
    }
}

#[test]
fn smbd_data_transfer_negative_parameter_data_length_against_message_length() {
    for (size, length) in [(500, 501), (1000, 1001), (500, u32::MAX)] {
        let mut message = data_message(1, 0, &pattern(size));
        message[16..20].copy_from_slice(&length.to_le_bytes());
        let reason = InvalidMessage::DataBeyondMessage {
            offset: 24,
            length,
            message_len: message.len(),
        };
        refused(&[message], reason);
    }
}

#[test]
fn smbd_data_transfer_negative_parameter_data_length_against_max_receive_size() {
    let (server, stored) = store(Config::default());
    let request = NegotiateRequest {
        preferred_send_size: u32::MAX,
        max_receive_size: u32::MAX,
        max_fragmented_size: u32::MAX,
        ..request_255()
    };
    let (mut tester, response) = Tester::negotiated(&server, &request);
    let max = response.max_receive_size as usize;
    // One byte too many ends it, in the RNIC or behind it.
    tester.send(&data_message(1, 0, &pattern(max - 23)));
    assert!(tester.peer.ends(DISCONNECT), "still connected");
    let reason = server.end();
    assert!(!matches!(
        reason,
        DisconnectReason::Local | DisconnectReason::Peer
    ));
    assert!(stored.try_recv().is_err(), "something was delivered");

    let (mut tester, _) = Tester::negotiated(&server, &request);
    let content = pattern(max - 24);
    write(&mut tester, &stored, cut(&content, max - 24), &content);
}

#[test]
fn smbd_data_transfer_negative_parameter_remaining_data_length_against_max_fragmented_size() {
    let max = Config::default().max_fragmented_size;
    for remaining in [max + 1, u32::MAX] {
        let mut message = control(1, 0);
        message[8..12].copy_from_slice(&remaining.to_le_bytes());
        let total = remaining.into();
        refused(
            &[message],
            PeerMisbehaved::FragmentedSizeExceeded { total, max },
        );
    }
}

#[test]
fn smbd_data_transfer_negative_parameter_remaining_data_length_zero() {
    let content = pattern(MODERATE);
    for correct in [1, 64] {
        let mut messages: Vec<_> = cut(&content, 1000).take(correct + 1).collect();
        messages[correct][8..12].fill(0);
        let reason = PeerMisbehaved::RemainingLengthMismatch {
            expected: (MODERATE - 1000 * correct) as u64,
            data_length: 1000,
            remaining: 0,
        };
        refused(&messages, reason);
    }
}

/// The tester wakes a server that has been idle for most of its keepalive interval: three of five
/// seconds here, 119 of 120 in the suite.
#[test]
fn smbd_data_transfer_idle_connection_client() {
    let (server, stored) = store(Config {
        keepalive_interval: Duration::from_secs(5),
        ..Config::default()
    });
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    let content = pattern(100);
    write(&mut tester, &stored, cut(&content, 1000), &content);
    tester.send(&control(2, 0));
    thread::sleep(Duration::from_secs(3));
    tester.send(&control(0, FLAG_RESPONSE_REQUESTED));
    let answer = loop {
        let (header, _) = tester.receive(LONG).expect("an answer");
        // A probe of the server's own only where this machine has overslept.
        if header.flags == 0 {
            break header;
        }
    };
    assert_eq!(answer.data_length, 0);
    assert!(answer.credits_granted > 0);
}

/// The server probes after half a second here, 120 seconds in the suite.
#[test]
fn smbd_data_transfer_idle_connection_server() {
    let (server, stored) = store(Config {
        keepalive_interval: Duration::from_millis(500),
        keepalive_timeout: Duration::from_secs(10),
        ..Config::default()
    });
    let (mut tester, _) = Tester::negotiated(&server, &request_255());
    let content = pattern(100);
    write(&mut tester, &stored, cut(&content, 1000), &content);
    tester.send(&control(2, 0));
    let probe = |tester: &mut Tester| {
        let (header, _) = tester.receive(LONG).expect("a probe");
        assert_eq!(header.flags, FLAG_RESPONSE_REQUESTED);
        assert_eq!(header.data_length, 0);
    };
    probe(&mut tester);
    // Late, but in time, and with a question of its own.
    thread::sleep(Duration::from_millis(600));
    tester.send(&control(2, FLAG_RESPONSE_REQUESTED));
    let (answer, _) = tester.receive(LONG).expect("an answer");
    assert_eq!((answer.flags, answer.data_length), (0, 0));
    probe(&mut tester);
}

/// A tester as in these cases: it grants every receive up to `max` and never more, keeps its last
/// credit when it has nothing to grant, and answers what leaves it without receives with a grant.
fn write_with_credits(max: u16) {
    let server = echo(Config::default());
    let request = NegotiateRequest {
        credits_requested: max,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        ..request()
    };
    let mut tester = Tester::connect(&server);
    let response = tester.negotiate(&request.encode()).expect("a response");
    assert_eq!(response.status, STATUS_SUCCESS);
    assert!(response.max_fragmented_size >= 131_072);
    tester.credits = response.credits_granted.into();

    let mut echoed = Vec::new();
    let content = pattern(MODERATE);
    let segments = cut(&content, response.max_receive_size as usize - 24);
    let may_send = |tester: &Tester| {
        tester.credits > 1 || (tester.credits == 1 && tester.granted < u32::from(max))
    };
    let granting = |tester: &Tester, mut message: Vec<u8>| {
        let grant = (u32::from(max) - tester.granted) as u16;
        message[..2].copy_from_slice(&max.to_le_bytes());
        message[2..4].copy_from_slice(&grant.to_le_bytes());
        message
    };
    for segment in segments {
        while !may_send(&tester) {
            let (header, _) = tester.receive(LONG).expect("a credit");
            assert_eq!(header.data_length, 0, "an echo of half a message");
        }
        let segment = granting(&tester, segment);
        tester.send(&segment);
    }
    while echoed.len() < content.len() {
        if tester.granted == 0 && may_send(&tester) {
            let grant = granting(&tester, control(0, 0));
            tester.send(&grant);
        }
        let (header, payload) = tester.receive(LONG).expect("a part of the echo");
        echoed.extend(payload);
        if header.data_length > 0 {
            let whole = echoed.len() + header.remaining_data_length as usize;
            assert_eq!(whole, content.len());
        }
    }
    assert!(echoed == content);
}

#[test]
fn bvt_smbd_credit_mgmt_operation_with_minimum_credits() {
    write_with_credits(1);
}

#[test]
fn smbd_credit_mgmt_operation_with_limited_credits() {
    write_with_credits(10);
}

/// A server that answers a READ, and a tester that asked for one with ten credits.
fn read(config: Config) -> (Server, Tester) {
    let server = serve(config, |_| pattern(MODERATE));
    let request = NegotiateRequest {
        preferred_send_size: 1364,
        max_receive_size: 8192,
        ..request()
    };
    let (mut tester, _) = Tester::negotiated(&server, &request);
    let mut message = data_message(10, 0, &pattern(112));
    message[..2].copy_from_slice(&10u16.to_le_bytes());
    tester.send(&message);
    (server, tester)
}

#[test]
fn smbd_credit_mgmt_consume_all_receive_credits() {
    let (_server, mut tester) = read(Config::default());
    let mut content = Vec::new();
    let mut bursts = 0;
    while content.len() < MODERATE {
        // It uses all the credits it has, the last one only together with a grant, and then stops.
        while tester.granted > 0 && content.len() < MODERATE {
            let (header, payload) = tester.receive(LONG).expect("a segment");
            assert!(header.data_length > 0);
            content.extend(payload);
            let whole = content.len() + header.remaining_data_length as usize;
            assert_eq!(whole, MODERATE);
            assert!(tester.granted > 0 || header.credits_granted > 0);
        }
        assert_eq!(tester.receive(QUIET), None, "sent without a credit");
        let mut grant = control((10 - tester.granted) as u16, 0);
        grant[..2].copy_from_slice(&10u16.to_le_bytes());
        tester.send(&grant);
        bursts += 1;
    }
    assert!(bursts >= 5);
    assert!(content == pattern(MODERATE));
}

/// Silence while the server has more to send: it gives up after 120 seconds and five in the suite,
/// after one here.
#[test]
fn smbd_credit_mgmt_consume_all_credit_server_timeout() {
    let (server, mut tester) = read(Config {
        keepalive_interval: Duration::from_millis(700),
        keepalive_timeout: Duration::from_millis(300),
        ..Config::default()
    });
    while tester.granted > 0 {
        let (header, _) = tester.receive(LONG).expect("a segment");
        assert!(header.data_length > 0);
    }
    assert_eq!(tester.receive(LONG), None, "sent without a credit");
    assert!(tester.peer.ends(DISCONNECT), "still connected");
    let reason: smbdirect::proto::DisconnectReason = Timeout::Keepalive.into();
    assert_eq!(server.end(), DisconnectReason::Protocol(reason));
}
