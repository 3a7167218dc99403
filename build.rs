//! Says on which systems the crate builds, before the compiler has a hundred other things to say.
//!
//! Nothing is generated or linked here: the RDMA libraries are loaded at run time by the FFI crate, which needs cmake
//! and libclang for its own build.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    // The target's, which need not be the system that compiles.
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if system != "linux" {
        println!(
            "cargo::error=smbdirect is for Linux (it is being built for {system}): it uses epoll, eventfd and timerfd, \
             and RDMA devices through rdma-core"
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
