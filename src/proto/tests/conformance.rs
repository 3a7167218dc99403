//! The cases of the public test suite for SMB Direct servers that need no SMB2 server, by their
//! names. The tester is written out byte by byte; the server is an [`End`].

use std::time::{Duration, Instant};

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

/// Our server, and what the tester knows of the connection.
struct Server {
    end: End,
    now: Instant,
    /// Messages the tester may send.
    credits: u32,
    /// Receives the tester has posted and granted.
    granted: u32,
}

impl Server {
    fn arrive(config: &Config) -> Self {
        let now = Instant::now();
        let mut end = End::new(Role::Acceptor, config, now);
        end.connection.handle_established(now);
        Self {
            end,
            now,
            credits: 0,
            granted: 0,
        }
    }

    /// A server with Windows' settings, negotiated with this request.
    fn negotiated(request: &NegotiateRequest) -> (Self, NegotiateResponse) {
        let mut server = Self::arrive(&Config::default());
        let response = server.negotiate(&request.encode()).expect("a response");
        check_response(request, &response);
        server.credits = u32::from(response.credits_granted);
        (server, response)
    }

    fn negotiate(&mut self, bytes: &[u8]) -> Option<NegotiateResponse> {
        assert_eq!(self.end.feed(self.now, bytes), Delivery::Nothing);
        let packets = self.end.pump(self.now);
        assert!(packets.len() <= 1);
        packets.first().map(|packet| {
            assert_eq!(packet.bytes.len(), NegotiateResponse::LEN);
            NegotiateResponse::parse(&packet.bytes).unwrap()
        })
    }

    fn is_disconnected(&mut self) -> bool {
        let packets = self.end.pump(self.now);
        assert!(packets.is_empty(), "no word after the fault");
        !self.end.ended.is_empty()
    }

    /// The tester sends; what the server sends back is checked and counted.
    fn send(&mut self, bytes: &[u8]) -> Vec<DataTransfer> {
        assert!(self.credits > 0);
        self.credits -= 1;
        if let Ok(header) = DataTransfer::parse(bytes) {
            self.granted += u32::from(header.credits_granted);
        }
        self.end.feed(self.now, bytes);
        self.collect()
    }

    fn collect(&mut self) -> Vec<DataTransfer> {
        let mut headers = Vec::new();
        for packet in self.end.pump(self.now) {
            self.granted = self
                .granted
                .checked_sub(1)
                .expect("the server had a credit");
            let header = DataTransfer::parse(&packet.bytes).unwrap();
            assert!(header.credits_requested > 0);
            assert_eq!(packet.bytes[6..8], [0, 0]);
            if header.data_length == 0 {
                assert_eq!(packet.bytes.len(), 20, "no padding");
                assert_eq!((header.data_offset, header.remaining_data_length), (0, 0));
            } else {
                assert!(header.data_offset.is_multiple_of(8));
            }
            self.credits += u32::from(header.credits_granted);
            headers.push(header);
        }
        headers
    }
}

fn check_response(request: &NegotiateRequest, response: &NegotiateResponse) {
    assert_eq!(
        (
            response.min_version,
            response.max_version,
            response.negotiated_version
        ),
        (0x0100, 0x0100, 0x0100)
    );
    assert!((1..=request.credits_requested).contains(&response.credits_granted));
    assert!(response.credits_requested > 0);
    assert_eq!(response.status, STATUS_SUCCESS);
    assert!(response.max_read_write_size >= 1 << 20);
    assert!(response.max_receive_size >= 128);
    if request.preferred_send_size >= 128 {
        assert!(response.max_receive_size <= request.preferred_send_size);
    }
    assert!((128..=request.max_receive_size).contains(&response.preferred_send_size));
    assert!(response.max_fragmented_size >= 131_072);
}

/// `bytes` with zeros behind, up to `len`.
fn padded(mut bytes: Vec<u8>, len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes
}

#[test]
fn bvt_smbd_negotiate_basic() {
    let (server, _) = Server::negotiated(&request());
    assert_eq!(server.end.negotiated, 1);
}

#[test]
fn smbd_negotiate_preferred_send_size_with_zero() {
    for preferred_send_size in [0, 1, 127, 128] {
        let (_, response) = Server::negotiated(&NegotiateRequest {
            preferred_send_size,
            ..request()
        });
        assert_eq!(response.max_receive_size, 128);
    }
}

#[test]
fn smbd_negotiate_preferred_send_size_max_value() {
    for preferred_send_size in [8136, u32::MAX] {
        let (_, response) = Server::negotiated(&NegotiateRequest {
            preferred_send_size,
            ..request()
        });
        assert_eq!(response.max_receive_size, preferred_send_size.min(8192));
    }
}

#[test]
fn smbd_negotiate_redundancy() {
    let mut server = Server::arrive(&Config::default());
    let bytes = padded(request().encode().to_vec(), 512);
    let response = server.negotiate(&bytes).unwrap();
    check_response(&request(), &response);
}

#[test]
fn smbd_negotiate_uncompleted_message() {
    let mut server = Server::arrive(&Config::default());
    assert_eq!(server.negotiate(&request().encode()[..19]), None);
    assert!(server.is_disconnected());
    assert_eq!(
        server.end.reason(),
        Some(&InvalidMessage::NegotiateRequestTooShort { len: 19 }.into())
    );
    Server::negotiated(&request());
}

#[test]
fn smbd_negotiate_version_range_not_cover0x0100_less_than_min_version() {
    for (min_version, max_version) in [(0x0101, 0xFFFF), (0, 0x00FF), (0xFFFF, 0), (0x0100, 0)] {
        let mut server = Server::arrive(&Config::default());
        let bytes = NegotiateRequest {
            min_version,
            max_version,
            ..request()
        }
        .encode();
        let response = server.negotiate(&bytes).unwrap();
        assert_eq!(response, NegotiateResponse::failure(STATUS_NOT_SUPPORTED));
        assert_eq!(server.end.negotiated, 0);
        let reason = PeerIncompatible::NoCommonVersion {
            min: min_version,
            max: max_version,
        };
        assert_eq!(
            server.end.ended,
            [(reason.into(), true)],
            "after the response has left"
        );
        assert_eq!(server.end.connection.send(10, None), Err(SendError::Closed));
    }
}

fn accepts_versions(min_version: u16, max_version: u16) {
    Server::negotiated(&NegotiateRequest {
        min_version,
        max_version,
        ..request()
    });
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
    accepts_versions(0x00FF, 0x0101);
}

#[test]
fn smbd_negotiate_negative_parameter_credits_requested() {
    let mut server = Server::arrive(&Config::default());
    let bytes = NegotiateRequest {
        credits_requested: 0,
        ..request()
    }
    .encode();
    assert_eq!(server.negotiate(&bytes), None);
    assert!(server.is_disconnected());
    assert_eq!(
        server.end.reason(),
        Some(&PeerMisbehaved::NoCreditsRequested.into())
    );
    for credits_requested in [1, 65535] {
        Server::negotiated(&NegotiateRequest {
            credits_requested,
            ..request()
        });
    }
}

#[test]
fn smbd_negotiate_negative_parameter_max_receive_size() {
    let mut server = Server::arrive(&Config::default());
    let bytes = NegotiateRequest {
        max_receive_size: 127,
        ..request()
    }
    .encode();
    assert_eq!(server.negotiate(&bytes), None);
    assert!(server.is_disconnected());
    assert_eq!(
        server.end.reason(),
        Some(&PeerMisbehaved::MaxReceiveSizeTooSmall(127).into())
    );
    for max_receive_size in [128, u32::MAX] {
        Server::negotiated(&NegotiateRequest {
            max_receive_size,
            ..request()
        });
    }
}

#[test]
fn smbd_negotiate_negative_parameter_max_fragmented_size() {
    let mut server = Server::arrive(&Config::default());
    let bytes = NegotiateRequest {
        max_fragmented_size: 131_071,
        ..request()
    }
    .encode();
    assert_eq!(server.negotiate(&bytes), None);
    assert!(server.is_disconnected());
    assert_eq!(
        server.end.reason(),
        Some(&PeerMisbehaved::MaxFragmentedSizeTooSmall(131_071).into())
    );
    for max_fragmented_size in [131_072, u32::MAX] {
        Server::negotiated(&NegotiateRequest {
            max_fragmented_size,
            ..request()
        });
    }
}

#[test]
fn smbd_negotiate_negotiation_timer() {
    let mut server = Server::arrive(&Config::default());
    server.now += Duration::from_secs(4);
    server.end.connection.handle_timeout(server.now);
    let request = NegotiateRequest {
        preferred_send_size: 1364,
        max_receive_size: 8192,
        ..request()
    };
    assert_eq!(
        server.negotiate(&request.encode()).unwrap().status,
        STATUS_SUCCESS
    );

    let mut server = Server::arrive(&Config::default());
    server.now += Duration::from_secs(5);
    server.end.connection.handle_timeout(server.now);
    assert!(server.is_disconnected());
    assert_eq!(server.end.reason(), Some(&Timeout::Negotiation.into()));
}

/// A request that is answered: the tester's WRITE, our 80 bytes of response.
fn exchange(server: &mut Server, messages: impl Iterator<Item = Vec<u8>>, expected: &[u8]) {
    for message in messages {
        assert!(server.credits > 0, "the server granted no credit");
        for header in server.send(&message) {
            assert_eq!((header.data_length, header.flags), (0, 0));
            assert!(header.credits_granted > 0);
        }
    }
    assert_eq!(server.end.received.len(), 1);
    assert_eq!(server.end.received[0].0, expected);
    server.end.send(&pattern(9, 80));
    let headers = server.collect();
    let answer = headers.last().unwrap();
    assert_eq!((answer.remaining_data_length, answer.data_length), (0, 80));
    assert!(server.end.ended.is_empty());
}

/// The payload cut into messages that grant one credit each.
fn cut(data: &[u8], size: usize) -> impl Iterator<Item = Vec<u8>> {
    let chunks = data.chunks(size);
    let mut remaining = data.len();
    chunks.map(move |chunk| {
        remaining -= chunk.len();
        data_message(1, remaining as u32, chunk)
    })
}

#[test]
fn bvt_smbd_data_transfer_basic_send_small_bytes_of_data() {
    let (mut server, _) = Server::negotiated(&request());
    let data = pattern(1, 500);
    exchange(&mut server, cut(&data, 1000), &data);
}

#[test]
fn bvt_smbd_data_transfer_basic_send_moderate_bytes_data() {
    let (mut server, response) = Server::negotiated(&request());
    assert_eq!(response.max_receive_size, 1024);
    let data = pattern(2, 65536);
    assert_eq!(cut(&data, 1000).count(), 66);
    exchange(&mut server, cut(&data, 1000), &data);
}

#[test]
fn smbd_data_transfer_small_length_segment() {
    let (mut server, _) = Server::negotiated(&request());
    let data = pattern(3, 65536);
    exchange(
        &mut server,
        cut(&data, 1).map(|message| padded(message, 1024)),
        &data,
    );
}

#[test]
fn smbd_data_transfer_redundancy() {
    let (mut server, _) = Server::negotiated(&request());
    let data = pattern(4, 500);
    exchange(
        &mut server,
        cut(&data, 1000).map(|message| padded(message, 1024)),
        &data,
    );
}

/// The server must end the connection over the last of these, and deliver nothing.
fn refuses(messages: &[Vec<u8>], reason: impl Into<DisconnectReason>) {
    let request = NegotiateRequest {
        credits_requested: 255,
        ..request()
    };
    let (mut server, _) = Server::negotiated(&request);
    for (index, message) in messages.iter().enumerate() {
        assert!(server.end.ended.is_empty(), "too early, at message {index}");
        server.send(message);
    }
    assert!(server.is_disconnected());
    assert_eq!(server.end.reason(), Some(&reason.into()));
    assert!(server.end.received.is_empty());
    assert!(!server.end.ended[0].1, "at once");
}

#[test]
fn smbd_data_transfer_uncompleted_message() {
    refuses(
        &[control(1, 0)[..19].to_vec()],
        InvalidMessage::DataTransferTooShort { len: 19 },
    );
}

#[test]
fn smbd_data_transfer_negative_parameter_credits_requested() {
    let mut message = data_message(1, 0, &pattern(5, 500));
    message[..2].copy_from_slice(&[0, 0]);
    refuses(&[message], PeerMisbehaved::NoCreditsRequested);
}

#[test]
fn smbd_data_transfer_negative_parameter_data_offset_against8_byte_aligned() {
    for offset in [23u32, 25] {
        let mut message = data_message(1, 0, &pattern(6, 500));
        message[12..16].copy_from_slice(&offset.to_le_bytes());
        refuses(&[message], InvalidMessage::UnalignedDataOffset { offset });
    }
}

#[test]
fn smbd_data_transfer_negative_parameter_data_offset_against_message_length() {
    let mut message = data_message(1, 0, &pattern(7, 500));
    message[12] = 32;
    refuses(
        &[message],
        InvalidMessage::DataBeyondMessage {
            offset: 32,
            length: 500,
            message_len: 524,
        },
    );
    let mut message = data_message(1, 0, &pattern(7, 500));
    message[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    refuses(
        &[message],
        InvalidMessage::UnalignedDataOffset { offset: u32::MAX },
    );
}

#[test]
fn smbd_data_transfer_negative_parameter_data_length_against_message_length() {
    for (size, length) in [(500, 501), (1000, 1001), (500, u32::MAX)] {
        let mut message = data_message(1, 0, &pattern(8, size));
        message[16..20].copy_from_slice(&length.to_le_bytes());
        let message_len = message.len();
        refuses(
            &[message],
            InvalidMessage::DataBeyondMessage {
                offset: 24,
                length,
                message_len,
            },
        );
    }
}

#[test]
fn smbd_data_transfer_negative_parameter_data_length_against_max_receive_size() {
    let request = NegotiateRequest {
        preferred_send_size: u32::MAX,
        max_receive_size: u32::MAX,
        max_fragmented_size: u32::MAX,
        ..request()
    };
    let (mut server, response) = Server::negotiated(&request);
    let max = response.max_receive_size;
    let data = pattern(9, max as usize - 24);
    exchange(&mut server, [data_message(1, 0, &data)].into_iter(), &data);

    let (mut server, _) = Server::negotiated(&request);
    server.send(&data_message(1, 0, &pattern(9, max as usize - 23)));
    assert!(server.is_disconnected());
    let reason = PeerMisbehaved::MessageTooLarge {
        len: max as usize + 1,
        max,
    };
    assert_eq!(server.end.reason(), Some(&reason.into()));
}

#[test]
fn smbd_data_transfer_negative_parameter_remaining_data_length_against_max_fragmented_size() {
    let max = Config::default().max_fragmented_size;
    for remaining in [max + 1, u32::MAX] {
        let mut message = control(1, 0);
        message[8..12].copy_from_slice(&remaining.to_le_bytes());
        let total = u64::from(remaining);
        refuses(
            &[message],
            PeerMisbehaved::FragmentedSizeExceeded { total, max },
        );
    }
    // The sum counts, not only the part still to come; and it does not wrap.
    refuses(
        &[data_message(1, max - 9, &[0; 10])],
        PeerMisbehaved::FragmentedSizeExceeded {
            total: u64::from(max) + 1,
            max,
        },
    );
}

#[test]
fn smbd_data_transfer_negative_parameter_remaining_data_length_zero() {
    let data = pattern(10, 65536);
    for early in [1, 64] {
        let mut messages: Vec<_> = cut(&data, 1000).take(early + 1).collect();
        messages[early][8..12].fill(0);
        let expected = 65536 - 1000 * early as u64;
        refuses(
            &messages,
            PeerMisbehaved::RemainingLengthMismatch {
                expected,
                data_length: 1000,
                remaining: 0,
            },
        );
    }
}

#[test]
fn smbd_data_transfer_idle_connection_client() {
    let (mut server, _) = Server::negotiated(&request());
    let data = pattern(11, 100);
    exchange(&mut server, cut(&data, 1000), &data);
    // The tester leaves the server with a credit.
    server.send(&control(1, 0));
    server.now += Duration::from_secs(119);
    server.end.connection.handle_timeout(server.now);
    let answers = server.send(&control(0, FLAG_RESPONSE_REQUESTED));
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].flags, 0);
    assert_eq!((answers[0].data_length, answers[0].data_offset), (0, 0));
    assert!(answers[0].credits_granted > 0);
}

#[test]
fn smbd_data_transfer_idle_connection_server() {
    let (mut server, _) = Server::negotiated(&request());
    let data = pattern(12, 100);
    exchange(&mut server, cut(&data, 1000), &data);
    server.send(&control(2, 0));
    for _ in 0..3 {
        server.now += Duration::from_secs(120);
        server.end.connection.handle_timeout(server.now);
        let probe = server.collect();
        assert_eq!(probe.len(), 1);
        assert_eq!(probe[0].flags, FLAG_RESPONSE_REQUESTED);
        assert_eq!(
            (probe[0].data_length, probe[0].remaining_data_length),
            (0, 0)
        );
        // The tester answers late, with a probe of its own; our answer has no flag.
        server.now += Duration::from_secs(4);
        server.end.connection.handle_timeout(server.now);
        let answer = server.send(&control(2, FLAG_RESPONSE_REQUESTED));
        assert_eq!(answer.len(), 1);
        assert_eq!(answer[0].flags, 0);
    }
    // No answer to the last one.
    server.now += Duration::from_secs(120);
    server.end.connection.handle_timeout(server.now);
    assert_eq!(server.collect().len(), 1);
    server.now += Duration::from_secs(5);
    server.end.connection.handle_timeout(server.now);
    assert!(server.is_disconnected());
    assert_eq!(server.end.reason(), Some(&Timeout::Keepalive.into()));
}

/// A tester as in these cases: it grants every receive up to `max` and never more, keeps its last
/// credit when it has nothing to grant, and answers what leaves it without receives with a grant.
fn write_with_credits(max: u32) {
    let request = NegotiateRequest {
        credits_requested: max as u16,
        preferred_send_size: 1364,
        max_receive_size: 8192,
        ..request()
    };
    let (mut server, response) = Server::negotiated(&request);
    let size = (response.max_receive_size - 24) as usize;
    let send = |server: &mut Server, mut message: Vec<u8>| {
        let grant = (max - server.granted) as u16;
        assert!(
            server.credits > 1 || grant > 0,
            "stuck with {} credits",
            server.credits
        );
        message[..2].copy_from_slice(&(max as u16).to_le_bytes());
        message[2..4].copy_from_slice(&grant.to_le_bytes());
        server.send(&message);
    };
    let respond = |server: &mut Server| {
        let mut bounces = 0;
        while server.granted == 0 {
            send(server, control(0, 0));
            bounces += 1;
            assert!(bounces < 3, "it never falls silent");
        }
    };
    for round in 1..4 {
        let data = pattern(round, 65536);
        for message in cut(&data, size) {
            send(&mut server, message);
            respond(&mut server);
        }
        assert_eq!(server.end.received.pop().unwrap().0, data);
        server.end.send(&pattern(14, 80));
        assert_eq!(server.collect().last().unwrap().data_length, 80);
        respond(&mut server);
    }
}

#[test]
fn bvt_smbd_credit_mgmt_operation_with_minimum_credits() {
    write_with_credits(1);
}

#[test]
fn smbd_credit_mgmt_operation_with_limited_credits() {
    write_with_credits(10);
}

#[test]
fn smbd_credit_mgmt_consume_all_receive_credits() {
    let (mut server, _) = Server::negotiated(&request());
    server.send(&data_message(10, 0, &pattern(15, 112)));
    let mut left = 65536;
    server.end.send(&pattern(16, left));
    let mut bursts = 0;
    while left > 0 {
        let held = server.granted;
        let segments = server.collect();
        // It uses all it has, the last only with a grant, and then stops.
        assert!(segments.len() as u32 == held || left < 1000 * held as usize);
        for segment in &segments {
            let bytes = segment.data_length as usize;
            assert_eq!(bytes + segment.remaining_data_length as usize, left);
            left -= bytes;
        }
        if server.granted == 0 {
            assert!(segments.last().unwrap().credits_granted > 0);
        }
        assert!(server.collect().is_empty());
        let grant = (10 - server.granted) as u16;
        // `send` collects as well, so hand the message over by hand.
        server.credits -= 1;
        server.granted += u32::from(grant);
        server.end.feed(server.now, &control(grant, 0));
        bursts += 1;
    }
    assert!(bursts >= 7);
    assert!(server.end.ended.is_empty());
}

#[test]
fn smbd_credit_mgmt_consume_all_credit_server_timeout() {
    let (mut server, _) = Server::negotiated(&request());
    server.credits -= 1;
    server.granted = 10;
    server
        .end
        .feed(server.now, &data_message(10, 0, &pattern(17, 112)));
    server.end.send(&pattern(18, 65536));
    assert_eq!(server.collect().len(), 10);
    assert_eq!(server.granted, 0);
    // Silence. The probe cannot leave for want of a credit, and the connection ends all the same.
    server.now += Duration::from_secs(120);
    server.end.connection.handle_timeout(server.now);
    assert!(server.collect().is_empty());
    server.now += Duration::from_secs(5);
    server.end.connection.handle_timeout(server.now);
    assert!(server.is_disconnected());
    assert_eq!(server.end.reason(), Some(&Timeout::Keepalive.into()));
}
