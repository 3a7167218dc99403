//! No case of the suite is forgotten: the list of names against the tests that there are.

use std::collections::HashSet;

const CASES: &str = include_str!("../data/conformance-cases.txt");
const OVER_IWARP: &str = include_str!("../conformance.rs");
const IN_THE_WORLD: &str = include_str!("../../src/proto/tests/conformance.rs");

/// The name of a case as Rust has it.
fn snake(case: &str) -> String {
    let mut name = String::new();
    let mut before = None;
    for letter in case.chars() {
        let word = before.is_some_and(|b: char| b.is_ascii_lowercase() || b.is_ascii_digit());
        if letter.is_ascii_uppercase() && word {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
        before = Some(letter);
    }
    name
}

/// The names of the functions that are tests.
fn tests(source: &str) -> HashSet<&str> {
    let mut lines = source.lines();
    let mut names = HashSet::new();
    while lines.any(|line| line == "#[test]") {
        let line = lines.next().unwrap_or_default();
        let name = line
            .strip_prefix("fn ")
            .and_then(|rest| rest.split('(').next());
        names.insert(name.expect("a function after #[test]"));
    }
    names
}

#[test]
fn names_are_converted() {
    for (case, name) in [
        ("BVT_SmbdNegotiate_Basic", "bvt_smbd_negotiate_basic"),
        ("A_Against8ByteAligned", "a_against8_byte_aligned"),
        ("Range0x0100_Less", "range0x0100_less"),
    ] {
        assert_eq!(snake(case), name);
    }
}

#[test]
fn every_case_is_a_test_in_both_places() {
    let places = [
        ("src/proto/tests/conformance.rs", tests(IN_THE_WORLD)),
        ("tests/conformance.rs", tests(OVER_IWARP)),
    ];
    let mut count = 0;
    let cases = CASES.lines().filter(|line| !line.starts_with('#'));
    for case in cases.filter(|line| !line.ends_with(" smb2")) {
        count += 1;
        for (place, tests) in &places {
            assert!(
                tests.contains(&*snake(case)),
                "{place} has no test of {case}"
            );
        }
    }
    assert_eq!(count, 28);
}
