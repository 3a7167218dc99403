//! The idle timer, probes and answers.

use std::time::Duration;

use super::world::*;
use crate::proto::wire::*;
use crate::proto::*;

const MINUTES: Duration = Duration::from_secs(60);

fn totals(pair: &Pair) -> [u64; 2] {
    pair.ends.each_ref().map(|end| {
        let stats = end.connection.stats();
        stats.control_sent + stats.fragments_sent
    })
}

#[test]
fn two_idle_endpoints_exchange_nothing_but_keepalives() {
    for credits in [1, 2, 3, 4, 5, 10, 255] {
        for profile in [
            CreditProfile::Full,
            CreditProfile::Adaptive,
            CreditProfile::Small,
        ] {
            let config = Config {
                credit_profile: profile,
                ..config(credits)
            };
            let mut pair = Pair::connected(&config, &config);
            pair.ends[0].send(&pattern(1, 5000));
            pair.ends[1].send(&pattern(2, 5000));
            pair.settle();
            let before = totals(&pair);
            let stats = pair.ends.each_ref().map(|end| *end.connection.stats());
            pair.run(60 * MINUTES);
            let after = totals(&pair);
            for index in 0..2 {
                let now = pair.ends[index].connection.stats();
                let messages = after[index] - before[index];
                let probes = now.probes_sent - stats[index].probes_sent;
                let answers = now.probes_answered - stats[index].probes_answered;
                assert!(
                    messages <= probes + answers,
                    "{credits} credits: {messages} messages, {probes} probes, {answers} answers"
                );
                assert!(pair.ends[index].ended.is_empty());
            }
            assert!(
                after[0] + after[1] - before[0] - before[1] >= 2 * 29,
                "it is probed"
            );
        }
    }
}

#[test]
fn a_dead_peer_is_gone_in_interval_and_timeout() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.ends[0].send(&[1]);
    pair.settle();
    // Both hear nothing from now on.
    pair.mute = [true, true];
    let start = pair.now;
    pair.run(Duration::from_secs(124));
    assert!(pair.ends.iter().all(|end| end.ended.is_empty()));
    pair.run(Duration::from_secs(1));
    assert!(pair.now <= start + Duration::from_secs(125));
    for end in &pair.ends {
        assert_eq!(end.ended, [(Timeout::Keepalive.into(), false)]);
    }
}

#[test]
fn a_probe_rides_on_data_and_so_does_its_answer() {
    let mut pair = Pair::connected(&config(10), &config(10));
    pair.settle();
    let now = pair.now + 2 * MINUTES + Duration::from_secs(1);
    pair.ends[0].connection.handle_timeout(now);
    pair.ends[0].send(&pattern(1, 2500));
    let packets = pair.ends[0].pump(now);
    let flags: Vec<_> = packets
        .iter()
        .map(|packet| DataTransfer::parse(&packet.bytes).unwrap().flags)
        .collect();
    assert_eq!(flags, [1, 0, 0]);
    for packet in &packets {
        pair.ends[1].receive(now, packet);
    }
    pair.ends[1].send(&pattern(2, 2500));
    let packets = pair.ends[1].pump(now);
    assert_eq!(packets.len(), 3, "the data is the answer");
    for packet in &packets {
        assert_eq!(DataTransfer::parse(&packet.bytes).unwrap().flags, 0);
        pair.ends[0].receive(now, packet);
    }
    assert_eq!(pair.ends[1].connection.stats().probes_answered, 1);
    assert!(pair.ends[0].connection.poll_timeout().unwrap() >= now + 2 * MINUTES);
}

#[test]
fn only_what_is_received_restarts_the_timer() {
    let mut pair = Pair::connected(&config(255), &config(255));
    let deadline = pair.ends[0].connection.poll_timeout();
    assert!(deadline.is_some());
    pair.mute[1] = true;
    for index in 0..50 {
        pair.ends[0].send(&pattern(index, 10));
        pair.run(Duration::from_secs(1));
    }
    assert_eq!(pair.ends[0].connection.poll_timeout(), deadline);
    pair.run(2 * MINUTES);
    assert_eq!(pair.ends[0].reason(), Some(&Timeout::Keepalive.into()));
}

#[test]
fn a_late_probe_starts_its_own_timeout() {
    let mut pair = Pair::connected(&config(10), &config(10));
    let expiry = pair.ends[0].connection.poll_timeout().unwrap();
    let connection = &mut pair.ends[0].connection;
    connection.handle_timeout(expiry);
    assert_eq!(
        connection.poll_timeout(),
        Some(expiry + Duration::from_secs(5))
    );
    assert_eq!(
        connection.poll_transmit(expiry, 0),
        None,
        "the send queue is full"
    );
    let later = expiry + Duration::from_secs(4);
    assert!(connection.poll_transmit(later, 1).is_some());
    assert_eq!(
        connection.poll_timeout(),
        Some(later + Duration::from_secs(5))
    );
}

#[test]
fn a_probe_amid_a_large_message_is_answered_on_a_fragment() {
    // The driver asserts that nothing comes between fragments.
    let mut pair = Pair::connected(&config(4), &config(4));
    pair.ends[1].send(&pattern(1, 100_000));
    pair.pump();
    let now = pair.now + 2 * MINUTES;
    pair.ends[0].connection.handle_timeout(now);
    pair.settle();
    assert_eq!(pair.ends[0].received.len(), 1);
    assert_eq!(pair.ends[1].connection.stats().probes_answered, 1);
}
