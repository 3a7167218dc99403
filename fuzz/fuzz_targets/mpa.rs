//! MPA start-up frames and Terminate messages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| smbdirect::rdma::iwarp::fuzzing::mpa(bytes));
