//! The file by which a server tells its port to a client.
#![allow(dead_code)] // An example uses the one end or the other.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Whole or not at all: whoever waits for the file never reads half of it.
pub(crate) fn write(path: &Path, port: u16) -> Result<(), String> {
    let unfinished = path.with_extension("unfinished");
    std::fs::write(&unfinished, format!("{port}\n"))
        .and_then(|()| std::fs::rename(&unfinished, path))
        .map_err(|error| format!("--port-file {}: {error}", path.display()))
}

/// Waits for the file and reads it.
pub(crate) fn read(path: &Path) -> Result<u16, String> {
    let start = Instant::now();
    loop {
        match std::fs::read_to_string(path) {
            Ok(text) => {
                return text
                    .trim()
                    .parse()
                    .map_err(|error| format!("--port-file {}: {error}", path.display()));
            }
            Err(error) if start.elapsed() > Duration::from_secs(20) => {
                return Err(format!("--port-file {}: {error}", path.display()));
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
