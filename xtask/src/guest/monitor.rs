//! QEMU's human monitor: how the host cuts and restores a link.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::cli::{Arguments, Outcome};
use crate::error::{Context, Error, Result};

pub(crate) const HELP: &str = "
Usage: cargo xtask monitor SOCKET COMMAND...

Sends COMMAND, for example `set_link n0 off`, to a guest's monitor and prints the answer. The host
script of `cargo xtask guest --pair` finds the sockets in $MONITOR_A and $MONITOR_B.";

const PROMPT: &[u8] = b"(qemu) ";

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    let socket = arguments
        .next()
        .ok_or_else(|| Error::usage("no socket given"))?;
    let mut words = Vec::new();
    while let Some(word) = arguments.next() {
        words.push(word);
    }
    let answer = ask(Path::new(&socket), &words.join(" "))?;
    print!("{answer}");
    Ok(Outcome::Success)
}

/// Sends one command and returns what the monitor prints, its echo included.
pub(crate) fn ask(socket: &Path, command: &str) -> Result<String> {
    let doing = || format!("monitor {}", socket.display());
    let mut stream = UnixStream::connect(socket).context(doing())?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .context(doing())?;
    until_prompt(&mut stream).context(doing())?;
    stream
        .write_all(format!("{command}\n").as_bytes())
        .context(doing())?;
    until_prompt(&mut stream).context(doing())
}

fn until_prompt(stream: &mut impl Read) -> std::io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(PROMPT) {
        if stream.read(&mut byte)? == 0 {
            break;
        }
        text.extend(byte);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_prompt() {
        let mut stream: &[u8] = b"QEMU 7.2\r\n(qemu) rest";
        assert_eq!(until_prompt(&mut stream).unwrap(), "QEMU 7.2\r\n(qemu) ");
        assert_eq!(until_prompt(&mut stream).unwrap(), "rest");
    }
}
