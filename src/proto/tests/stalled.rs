//! An application that does not take its messages: bounded memory, working keepalives, the right
//! reason.

use std::time::Duration;

use super::world::*;
use crate::proto::*;

#[test]
fn a_stalled_application_receives_no_more_than_was_posted() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[1].connection.set_application_ready(false);
    for index in 0..50 {
        pair.ends[0].send(&pattern(index, 1000));
    }
    pair.settle();
    assert!(pair.ends[1].received.len() <= 11);
    assert!(pair.ends[1].connection.receives_wanted() <= 1);

    pair.ends[1].connection.set_application_ready(true);
    pair.settle();
    assert_eq!(pair.ends[1].received.len(), 50);
}

#[test]
fn keepalives_go_on_for_a_while_and_then_the_reason_is_the_application() {
    for credits in [1, 2, 3, 10, 255] {
        let mut pair = Pair::connected(&config(credits), &config(credits));
        pair.ends[1].connection.set_application_ready(false);
        for index in 0..1000 {
            pair.ends[0].send(&pattern(index, 1000));
        }
        pair.settle();
        let before = pair.ends[1].received.len();
        pair.run(Duration::from_secs(120 * 10));
        for end in &pair.ends {
            assert!(end.ended.is_empty(), "{credits} credits: {:?}", end.ended);
        }
        pair.run(Duration::from_secs(120 * 100));
        let taken = pair.ends[1].received.len() - before;
        assert!(
            taken <= 2 * STALL_RESERVE as usize,
            "{credits} credits: {taken} messages"
        );
        assert_eq!(
            pair.ends[1].ended,
            [(DisconnectReason::ApplicationStalled, false)]
        );
    }
}

#[test]
fn a_stalled_but_quiet_connection_lives_for_ever() {
    for (first, second) in [(true, false), (false, true), (true, true)] {
        for credits in [1, 2, 3, 10] {
            let mut pair = Pair::connected(&config(credits), &config(credits));
            pair.ends[0].connection.set_application_ready(!first);
            pair.ends[1].connection.set_application_ready(!second);
            pair.run(Duration::from_secs(120 * 100));
            for end in &pair.ends {
                assert!(end.ended.is_empty(), "{credits} credits: {:?}", end.ended);
            }
            // And works when it is taken up again.
            for end in &mut pair.ends {
                end.connection.set_application_ready(true);
                end.send(&pattern(1, 50_000));
            }
            pair.settle();
            assert!(pair.ends.iter().all(|end| end.received.len() == 1));
        }
    }
}

#[test]
fn a_stalled_application_can_still_send() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[1].connection.set_application_ready(false);
    for index in 0..20 {
        pair.ends[1].send(&pattern(index, 10_000));
    }
    pair.settle();
    assert_eq!(pair.ends[0].received.len(), 20);
}

#[test]
fn a_peer_that_flags_everything_gains_no_memory() {
    let now = std::time::Instant::now();
    let mut end = End::new(Role::Acceptor, &config(10), now);
    end.connection.handle_established(now);
    end.feed(now, &request().encode());
    end.pump(now);
    end.connection.set_application_ready(false);
    let mut taken = 0;
    let mut bytes = data_message(1, 0, &[1; 100]);
    bytes[4] = 1;
    while end.connection.credits().granted > 0 && !end.connection.is_closed() {
        end.feed(now, &bytes);
        end.pump(now);
        taken += 1;
        assert!(taken <= 11 + STALL_RESERVE);
    }
}

#[test]
fn a_stalled_application_that_waits_for_its_sends_is_not_stuck() {
    // A server that takes no request before its responses have left, and a client that floods it.
    for credits in [2, 3, 10] {
        let mut pair = Pair::connected(&config(credits), &config(credits));
        pair.ends[1].connection.set_application_ready(false);
        for index in 0..100 {
            pair.ends[0].send(&pattern(index, 1000));
        }
        pair.settle();
        for index in 0..5 {
            pair.ends[1].send(&pattern(index, 1000));
        }
        pair.settle();
        assert_eq!(pair.ends[0].received.len(), 5, "{credits} credits");
        assert!(pair.ends[1].received.len() < 100);
    }
}

#[test]
fn a_stalled_application_sends_any_amount_to_a_peer_that_floods_it() {
    // As above, with responses that need the peer's credits over and over. What is taken meanwhile
    // is a small part of what is sent.
    for credits in [10, 32, 255] {
        let mut pair = Pair::connected(&config(credits), &config(credits));
        pair.ends[1].connection.set_application_ready(false);
        for index in 0..5000 {
            pair.ends[0].send(&pattern(index, 1000));
        }
        pair.settle();
        let before = pair.ends[1].received.len();
        for index in 0..50 {
            pair.ends[1].send(&pattern(index, 100_000));
        }
        pair.settle();
        assert_eq!(pair.ends[0].received.len(), 50, "{credits} credits");
        let fragments = 50 * 100_000 / 1000;
        let taken = pair.ends[1].received.len() - before;
        assert!(
            taken <= fragments / 8 + STALL_RESERVE as usize,
            "{credits} credits: {taken}"
        );
    }
}
