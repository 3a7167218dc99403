//! The last credit: who keeps it, and for how long.

use std::time::{Duration, Instant};

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

const MINUTE: Duration = Duration::from_secs(60);

/// An acceptor that holds `ours` credits and has granted all it may.
fn acceptor(ours: u16, theirs: u16) -> (End, Instant) {
    let config = Config {
        receive_credit_max: theirs,
        credit_profile: CreditProfile::Full,
        ..config(255)
    };
    let now = Instant::now();
    let mut end = End::new(Role::Acceptor, &config, now);
    end.slots = 1000;
    end.connection.handle_established(now);
    let request = NegotiateRequest {
        credits_requested: 255,
        ..request()
    };
    end.feed(now, &request.encode());
    end.pump(now);
    end.feed(now, &control(ours, 0));
    (end, now)
}

/// An acceptor that has used all but one of its 200 credits and has more to send; the peer has 100.
fn with_one_left() -> (End, Instant) {
    let (mut end, now) = acceptor(200, 100);
    end.send(&pattern(1, 131_072));
    end.send(&pattern(2, 131_072));
    assert_eq!(end.pump(now).len(), 199, "all but the last credit");
    (end, now)
}

fn grants(packets: &[Packet]) -> Vec<u16> {
    let grant = |packet: &Packet| DataTransfer::parse(&packet.bytes).unwrap().credits_granted;
    packets.iter().map(grant).collect()
}

/// Linux before 7.0 spends its last credit without a grant while we send as much as we can: both
/// had none left, and stood still (seen with its server, in one of four runs with 64 requests in
/// flight).
#[test]
fn a_peer_that_spends_its_last_credit_without_a_grant_can_speak_again() {
    let (mut end, now) = with_one_left();
    // All that the peer may send, in one go, and none of it grants.
    for _ in 0..end.connection.credits().granted {
        end.feed(now, &data_message(0, 0, b"data"));
    }
    assert_eq!(end.connection.credits().granted, 0);
    assert_eq!(grants(&end.pump(now)), [100]);
    assert_eq!(end.connection.credits().send, 0);
    end.feed(now, &control(5, 0));
    assert_eq!(end.pump(now).len(), 4);
}

#[test]
fn a_peer_that_grants_when_it_is_low_is_not_waited_for() {
    let (mut end, now) = with_one_left();
    end.feed(now, &control(150, 0));
    end.pump(now);
    assert_eq!(end.connection.queued_messages(), 0);
    assert!(end.connection.poll_timeout() > Some(now + MINUTE));
}

/// As the specification has it, the last credit goes with any message that grants.
#[test]
fn a_peer_that_waits_for_the_last_credit_gets_it() {
    let (mut end, now) = with_one_left();
    let later = end.connection.poll_timeout().unwrap();
    assert!(later < now + Duration::from_secs(1));
    end.connection.handle_timeout(now);
    assert!(end.pump(now).is_empty());
    end.connection.handle_timeout(later);
    assert_eq!(grants(&end.pump(later)), [1]);
    assert!(end.connection.poll_timeout() > Some(now + MINUTE), "once");
}

#[test]
fn an_answer_to_a_probe_does_not_wait() {
    let (mut end, now) = with_one_left();
    end.feed(now, &control(0, FLAG_RESPONSE_REQUESTED));
    assert_eq!(grants(&end.pump(now)), [1]);
}

#[test]
fn of_few_credits_the_last_is_not_kept() {
    let (mut end, now) = acceptor(3, 100);
    end.send(&pattern(1, 131_072));
    assert_eq!(grants(&end.pump(now)), [1, 0, 1]);
}

/// Nobody will need it.
#[test]
fn the_last_fragment_before_a_close_does_not_wait() {
    let (mut end, now) = acceptor(200, 100);
    end.send(&pattern(1, 131_000));
    end.send(&pattern(2, 69_000));
    assert_eq!(end.pump(now).len(), 199);
    end.connection.close();
    assert_eq!(grants(&end.pump(now)), [1]);
    assert_eq!(end.ended, [(DisconnectReason::LocalClose, true)]);
}

/// The peer may need it for what is left.
#[test]
fn a_close_with_more_to_send_keeps_it() {
    let (mut end, now) = acceptor(200, 100);
    end.send(&pattern(1, 131_000));
    end.send(&pattern(2, 70_000));
    assert_eq!(end.pump(now).len(), 199);
    end.connection.close();
    assert!(end.pump(now).is_empty());
    end.feed(now, &control(1, 0));
    assert_eq!(grants(&end.pump(now)).len(), 2);
    assert_eq!(end.ended, [(DisconnectReason::LocalClose, true)]);
}

/// A peer that can post two receives only grants when both are used: the pause is for those with many.
#[test]
fn a_peer_that_has_few_receives_left_is_waited_for_once() {
    let mut pair = Pair::connected(&config(32), &config(32));
    pair.ends[1].most_posted = 2;
    for index in 0..300 {
        pair.ends[0].send(&pattern(index, 1000));
    }
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.ends[1].received.len(), 300);
}
