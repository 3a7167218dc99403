//! For the fuzz target: a connection whose reader is at its end when the target is.

use std::net::TcpStream;
use std::thread;

use super::{Tcp, TcpOptions, reader};
use crate::transport::{Close, Error, Transport};

/// Gives `work` a connection that only receives, and ends it afterwards.
///
/// # Errors
/// The stream is not connected.
pub fn receive(
    stream: TcpStream,
    options: TcpOptions,
    work: impl FnOnce(&Tcp),
) -> Result<(), Error> {
    let connection = Tcp::at_rest(stream, options, None)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| reader::run(&connection.shared));
        work(&connection);
        connection.close(Close::Abort);
        // A scope waits for the thread's work only: what the thread itself holds would be a leak.
        let _ = reader.join();
    });
    Ok(())
}
