//! The gateway's rewriting between a client and a server that do what the input says; with an odd
//! first byte some of their messages are spoiled.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/gateway/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../examples/gateway/rewrite/mod.rs"]
mod rewrite;
#[allow(dead_code)]
#[path = "../../tests/gateway/smb2.rs"]
mod smb2;

fuzz_target!(|data: &[u8]| {
    if let Some((first, decisions)) = data.split_first() {
        model::run(decisions, first % 2 == 1);
    }
});
