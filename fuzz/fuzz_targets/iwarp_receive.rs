//! The receive path of the software iWARP.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| smbdirect::rdma::iwarp::fuzzing::receive(bytes));
