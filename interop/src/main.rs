//! An SMB client over SMB Direct: the crate `smb2` (a client in Rust that knows nothing of RDMA)
//! on top of a [`Channel`](smbdirect::engine::Channel).
//!
//! Writes files onto a share, lists them, reads them back and checks them, once with the data in
//! messages and once per kind of direct placement.
//!
//! - [`link`]: a connection, and `smb2`'s two transport traits over it.
//! - [`request`]: READ and WRITE requests that `smb2` has no types for, through its trait `Pack`.
//! - [`share`]: files on a share, piece by piece, many pieces in flight.
//! - [`scenario`]: what is done and what must come of it.
//! - [`content`]: what the files hold.

mod args;
mod content;
mod failure;
mod link;
mod report;
mod request;
mod scenario;
mod share;

use std::env;
use std::process::ExitCode;

use args::Args;

fn main() -> ExitCode {
    let args = match Args::parse(env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("smb-client: {problem} (--help tells more)");
            return ExitCode::from(2);
        }
    };
    // One thread: the reactor and the TCP transport have threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("smb-client: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(scenario::run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("smb-client: {failure}");
            ExitCode::FAILURE
        }
    }
}
