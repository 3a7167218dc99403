//! Both sides of negotiation, beyond the cases of the public test suite.

use std::time::{Duration, Instant};

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

fn initiator(config: &Config) -> (End, Instant) {
    let now = Instant::now();
    let mut end = End::new(Role::Initiator, config, now);
    assert!(
        end.pump(now).is_empty(),
        "nothing before the connection is up"
    );
    end.connection.handle_established(now);
    let packets = end.pump(now);
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].bytes, negotiate::request(config).encode());
    assert!(end.pump(now).is_empty());
    (end, now)
}

fn response() -> NegotiateResponse {
    NegotiateResponse {
        min_version: 0x0100,
        max_version: 0x0100,
        negotiated_version: 0x0100,
        credits_requested: 10,
        credits_granted: 10,
        status: 0,
        max_read_write_size: 1 << 20,
        preferred_send_size: 1024,
        max_receive_size: 1024,
        max_fragmented_size: 131_072,
    }
}

fn refused_response(response: &NegotiateResponse, reason: impl Into<DisconnectReason>) {
    let (mut end, now) = initiator(&Config::default());
    end.feed(now, &response.encode());
    assert!(end.pump(now).is_empty());
    assert_eq!(end.ended, [(reason.into(), false)]);
    assert_eq!(end.negotiated, 0);
    assert_eq!(end.connection.poll_timeout(), None);
}

#[test]
fn the_request_and_response_of_the_specification() {
    // Vectors V1, V2 and V3 of [MS-SMBD] section 4, between two endpoints.
    let config = Config {
        max_read_write_size: 1 << 20,
        ..config(10)
    };
    let mut pair = Pair::new(&config, &config);
    pair.settle();
    assert_eq!(pair.ends[0].sent[0].bytes, request().encode());
    assert_eq!(pair.ends[1].sent[0].bytes, response().encode());

    let (mut end, now) = initiator(&config);
    end.feed(now, &response().encode());
    end.post();
    end.send(&pattern(1, 500));
    let first = &end.pump(now)[0].bytes;
    assert_eq!(first[..20], data_message_header(10, 10, 500));
}

fn data_message_header(requested: u16, granted: u16, length: u32) -> [u8; 20] {
    DataTransfer {
        credits_requested: requested,
        credits_granted: granted,
        flags: 0,
        remaining_data_length: 0,
        data_offset: 24,
        data_length: length,
    }
    .encode()
}

#[test]
fn a_good_response_is_accepted() {
    let (mut end, now) = initiator(&Config::default());
    end.feed(now, &response().encode());
    assert_eq!(end.connection.receive_size(), 1024);
    assert_eq!(
        end.connection.parameters(),
        None,
        "not before the receives are posted"
    );
    assert_eq!(end.connection.send(1, None), Err(SendError::NotEstablished));
    end.pump(now);
    assert_eq!(end.negotiated, 1);
    let parameters = end.connection.parameters().unwrap();
    assert_eq!(parameters.max_send_size, 1024);
    assert_eq!(parameters.max_receive_size, 1024);
    assert_eq!(parameters.max_fragmented_send_size, 131_072);
    assert_eq!(parameters.max_fragmented_receive_size, 1 << 20);
    assert_eq!(parameters.max_read_write_size, 1 << 20);
    assert_eq!(parameters.initial_send_credits, 10);
    assert_eq!(parameters.peer_credit_target, 10);
    // Without anything to send, the acceptor still gets its first credits.
    assert_eq!(end.sent.len(), 2);
    assert_eq!(
        DataTransfer::parse(&end.sent[1].bytes)
            .unwrap()
            .credits_granted,
        10
    );
}

#[test]
fn limits_of_a_response_are_legal() {
    for good in [
        NegotiateResponse {
            max_receive_size: 128,
            ..response()
        },
        NegotiateResponse {
            max_receive_size: u32::MAX,
            ..response()
        },
        NegotiateResponse {
            max_fragmented_size: u32::MAX,
            ..response()
        },
        NegotiateResponse {
            preferred_send_size: 0,
            ..response()
        },
        NegotiateResponse {
            preferred_send_size: 8192,
            ..response()
        },
        NegotiateResponse {
            max_read_write_size: 0,
            ..response()
        },
        NegotiateResponse {
            credits_granted: 1,
            credits_requested: 1,
            ..response()
        },
        NegotiateResponse {
            credits_granted: u16::MAX,
            ..response()
        },
        NegotiateResponse {
            credits_requested: u16::MAX,
            ..response()
        },
        NegotiateResponse {
            min_version: 0,
            max_version: 0,
            ..response()
        },
    ] {
        let (mut end, now) = initiator(&Config::default());
        end.feed(now, &good.encode());
        end.pump(now);
        assert_eq!(end.negotiated, 1, "{good:?}");
        assert!(end.connection.receive_size() >= 128);
        assert!(end.connection.parameters().unwrap().max_send_payload() >= 104);
    }
}

#[test]
fn every_check_of_a_response_has_its_reason() {
    let good = response();
    refused_response(
        &NegotiateResponse {
            negotiated_version: 0x0200,
            ..good
        },
        PeerIncompatible::VersionNotSupported(0x0200),
    );
    refused_response(
        &NegotiateResponse {
            max_receive_size: 127,
            ..good
        },
        PeerMisbehaved::MaxReceiveSizeTooSmall(127),
    );
    refused_response(
        &NegotiateResponse {
            max_fragmented_size: 131_071,
            ..good
        },
        PeerMisbehaved::MaxFragmentedSizeTooSmall(131_071),
    );
    refused_response(
        &NegotiateResponse {
            credits_granted: 0,
            ..good
        },
        PeerMisbehaved::NoCreditsGranted,
    );
    refused_response(
        &NegotiateResponse {
            credits_requested: 0,
            ..good
        },
        PeerMisbehaved::NoCreditsRequested,
    );
    refused_response(
        &NegotiateResponse {
            preferred_send_size: 8193,
            ..good
        },
        PeerMisbehaved::PreferredSendSizeTooLarge {
            preferred: 8193,
            offered: 8192,
        },
    );
    for status in [
        STATUS_NOT_SUPPORTED,
        STATUS_INSUFFICIENT_RESOURCES,
        0xC000_0001,
        1,
    ] {
        refused_response(
            &NegotiateResponse::failure(status),
            PeerIncompatible::Refused { status },
        );
        refused_response(
            &NegotiateResponse { status, ..good },
            PeerIncompatible::Refused { status },
        );
    }
    let (mut end, now) = initiator(&Config::default());
    end.feed(now, &good.encode()[..31]);
    end.events();
    assert_eq!(
        end.reason(),
        Some(&InvalidMessage::NegotiateResponseTooShort { len: 31 }.into())
    );
}

#[test]
fn sizes_follow_the_peer() {
    let windows = Config::default();
    let pair = Pair::connected(&windows, &windows);
    for end in &pair.ends {
        let parameters = end.connection.parameters().unwrap();
        assert_eq!(
            (parameters.max_send_size, parameters.max_receive_size),
            (1364, 1364)
        );
        assert_eq!(parameters.max_read_write_size, 8 << 20);
    }
    let small = Config {
        max_receive_size: 128,
        max_read_write_size: 1 << 20,
        ..windows.clone()
    };
    let pair = Pair::connected(&small, &windows);
    let [client, server] = pair
        .ends
        .each_ref()
        .map(|end| end.connection.parameters().unwrap());
    assert_eq!((client.max_receive_size, server.max_send_size), (128, 128));
    assert_eq!(
        (client.max_read_write_size, server.max_read_write_size),
        (1 << 20, 8 << 20)
    );
}

#[test]
fn the_negotiate_message_may_come_before_established() {
    let now = Instant::now();
    let mut end = End::new(Role::Acceptor, &Config::default(), now);
    end.feed(now, &request().encode());
    assert!(end.pump(now).is_empty(), "nothing may be sent yet");
    end.connection.handle_established(now);
    let packets = end.pump(now);
    assert_eq!(packets.len(), 1, "I8: the response is the first message");
    assert_eq!(
        NegotiateResponse::parse(&packets[0].bytes).unwrap().status,
        0
    );
    assert_eq!(end.negotiated, 1);
}

#[test]
fn a_response_waits_for_a_slot_and_for_receives() {
    let now = Instant::now();
    let mut end = End::new(Role::Acceptor, &Config::default(), now);
    end.connection.handle_established(now);
    end.feed(now, &request().encode());
    assert_eq!(
        end.connection.poll_transmit(now, 64),
        None,
        "no receive is posted"
    );
    end.connection.handle_receives_posted(3);
    assert_eq!(end.connection.poll_transmit(now, 0), None);
    let transmit = end.connection.poll_transmit(now, 1).unwrap();
    let response = NegotiateResponse::parse(transmit.header()).unwrap();
    assert_eq!(response.credits_granted, 3, "only what is posted");
    let Some(Event::Negotiated(parameters)) = end.connection.poll_event() else {
        panic!()
    };
    assert_eq!(parameters.initial_receive_credits, 3);
}

#[test]
fn without_a_receive_the_request_is_refused() {
    let now = Instant::now();
    let mut end = End::new(Role::Acceptor, &Config::default(), now);
    end.connection.handle_established(now);
    end.feed(now, &request().encode());
    end.connection.handle_receives_unavailable();
    let packets = end.pump(now);
    assert_eq!(
        packets[0].bytes,
        NegotiateResponse::failure(STATUS_INSUFFICIENT_RESOURCES).encode()
    );
    assert_eq!(end.ended, [(DisconnectReason::NoReceives, true)]);

    let (mut end, now) = initiator(&Config::default());
    end.feed(now, &response().encode());
    end.connection.handle_receives_unavailable();
    end.events();
    assert_eq!(end.ended, [(DisconnectReason::NoReceives, false)]);

    let mut connection = Connection::new(Role::Initiator, &Config::default(), now).unwrap();
    connection.handle_receives_unavailable();
    assert_eq!(
        connection.disconnect_reason(),
        Some(&DisconnectReason::NoReceives)
    );
}

#[test]
fn a_message_out_of_turn_ends_the_connection() {
    let now = Instant::now();
    let mut end = End::new(Role::Initiator, &Config::default(), now);
    end.feed(now, &response().encode());
    end.events();
    assert_eq!(
        end.reason(),
        Some(&PeerMisbehaved::MessageBeforeRequest.into())
    );

    let mut end = End::new(Role::Acceptor, &Config::default(), now);
    end.feed(now, &request().encode());
    end.post();
    end.feed(now, &request().encode());
    end.events();
    assert_eq!(
        end.reason(),
        Some(&PeerMisbehaved::SentWithoutCredit.into())
    );
}

#[test]
fn a_refusal_that_cannot_leave_is_still_the_reason() {
    for lost in [true, false] {
        let now = Instant::now();
        let mut end = End::new(Role::Acceptor, &Config::default(), now);
        end.feed(
            now,
            &NegotiateRequest {
                min_version: 0x0200,
                max_version: 0x0200,
                ..request()
            }
            .encode(),
        );
        end.connection.close();
        end.events();
        assert!(end.ended.is_empty(), "the response is still to leave");
        if lost {
            end.connection.handle_lost(now, Loss::PeerDisconnected);
        } else {
            end.connection.handle_timeout(now + Duration::from_secs(5));
        }
        end.events();
        let reason = PeerIncompatible::NoCommonVersion {
            min: 0x0200,
            max: 0x0200,
        };
        assert_eq!(end.ended, [(reason.into(), false)]);
    }
}

#[test]
fn the_initiator_waits_two_minutes() {
    let (mut end, now) = initiator(&Config::default());
    assert_eq!(
        end.connection.poll_timeout(),
        Some(now + Duration::from_secs(120))
    );
    end.connection
        .handle_timeout(now + Duration::from_secs(119));
    end.events();
    assert!(end.ended.is_empty());
    end.connection
        .handle_timeout(now + Duration::from_secs(120));
    end.events();
    assert_eq!(end.ended, [(Timeout::Negotiation.into(), false)]);
    assert_eq!(
        end.feed(now, &response().encode()),
        Delivery::Nothing,
        "too late"
    );
    assert_eq!(end.connection.receives_wanted(), 0);
}

#[test]
fn closing_during_negotiation_is_immediate() {
    let (mut end, _) = initiator(&Config::default());
    end.connection.close();
    end.events();
    assert_eq!(end.ended, [(DisconnectReason::LocalClose, false)]);
}

#[test]
fn values_that_cannot_work_are_refused() {
    let good = Config::default();
    for (config, error) in [
        (
            Config {
                send_credit_target: 0,
                ..good.clone()
            },
            ConfigError::SendCreditTargetZero,
        ),
        (
            Config {
                receive_credit_max: 0,
                ..good.clone()
            },
            ConfigError::ReceiveCreditMaxZero,
        ),
        (
            Config {
                max_send_size: 127,
                ..good.clone()
            },
            ConfigError::MaxSendSizeTooSmall(127),
        ),
        (
            Config {
                max_receive_size: 127,
                ..good.clone()
            },
            ConfigError::MaxReceiveSizeTooSmall(127),
        ),
        (
            Config {
                max_fragmented_size: 131_071,
                ..good.clone()
            },
            ConfigError::MaxFragmentedSizeTooSmall(131_071),
        ),
        (
            Config {
                keepalive_timeout: Duration::ZERO,
                ..good.clone()
            },
            ConfigError::TimerZero,
        ),
    ] {
        let error_of = |role| Connection::new(role, &config, Instant::now()).err();
        assert_eq!(error_of(Role::Initiator), Some(error.clone()));
        assert_eq!(error_of(Role::Acceptor), Some(error));
    }
    let longest = Config {
        keepalive_interval: Duration::MAX,
        initiator_timeout: Duration::MAX,
        acceptor_timeout: Duration::MAX,
        ..good
    };
    let pair = Pair::connected(&longest, &longest);
    assert_eq!(pair.ends[0].connection.poll_timeout(), None, "never");
}
