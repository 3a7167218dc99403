//! The rewriting between arbitrary clients and servers.

use proptest::prelude::*;

use crate::model;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Every request reaches the server once and unharmed, every answer the client; data, tokens
    /// and credits are where they belong; nothing is left over.
    #[test]
    fn nothing_is_lost_and_nothing_is_done_twice(
        decisions in proptest::collection::vec(any::<u8>(), 0..800)
    ) {
        model::run(&decisions, false);
    }

    /// Whatever messages say, nothing panics and what goes out is well-formed.
    #[test]
    fn spoiled_messages_do_no_harm(
        decisions in proptest::collection::vec(any::<u8>(), 0..800)
    ) {
        model::run(&decisions, true);
    }
}

/// Those of the fuzz target, which makes the same of its input.
#[test]
fn the_seeds_of_the_fuzz_target_run() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/gateway");
    let mut count = 0;
    for entry in std::fs::read_dir(seeds).expect("seeds") {
        let seed = std::fs::read(entry.expect("a seed").path()).expect("a seed");
        let (first, decisions) = seed.split_first().expect("a byte at least");
        model::run(decisions, first % 2 == 1);
        count += 1;
    }
    assert!(count > 0);
}
