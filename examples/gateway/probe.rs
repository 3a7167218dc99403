//! Asks the server at the start, once, what it is: who has misspelt `--backend`, or has Samba sign
//! everything, is to learn it from the gateway's first lines and not from clients.
//!
//! The gateway runs whatever comes of it: the server may be started after it.

use std::fmt;
use std::io;
use std::time::Duration;

use smbdirect::transport::tcp::Tcp;
use smbdirect::transport::{Close, DisconnectReason, Error, Transport, TransportExt};

use crate::backend::{Backend, Unreachable};

/// Bytes of the SMB2 header.
const HEADER: usize = 64;
/// The response to NEGOTIATE up to DialectRevision ([MS-SMB2] 2.2.4).
const ANSWER: usize = 70;
const SIGNING_REQUIRED: u16 = 0x0002;
const SMB_3_0: u16 = 0x0300;
/// What servers answer who know none of the dialects that were offered ([MS-SMB2] 3.3.5.4).
const STATUS_NOT_SUPPORTED: u32 = 0xC000_00BB;

/// What the administrator should know of the server.
#[derive(Debug)]
pub(crate) enum Doubt {
    /// There is no connection to it.
    Unreachable(Unreachable),
    /// It accepted the connection, and said nothing in this time.
    Silent(Duration),
    /// It closed the connection without an answer.
    TurnedAway,
    /// The connection failed.
    Failed(Error),
    /// What it said is not SMB.
    NotSmb,
    /// It refused the request.
    Refused(u32),
    /// It knows no dialect that has RDMA.
    TooOld,
    /// It lets nobody in who does not sign.
    SigningRequired,
}

/// What is wrong with the server, if something is. Waits for at most `timeout` twice.
pub(crate) fn probe(backend: &Backend, timeout: Duration) -> Option<Doubt> {
    let connection = match backend.connect() {
        Ok(connection) => connection,
        Err(error) => return Some(Doubt::Unreachable(error)),
    };
    let doubt = ask(&connection, timeout).and_then(|answer| examine(&answer));
    connection.close(Close::Abort);
    doubt.err()
}

fn ask(connection: &Tcp, timeout: Duration) -> Result<Vec<u8>, Doubt> {
    let failed = |error: Error| match error {
        Error::WouldBlock => Doubt::Silent(timeout),
        Error::Closed(DisconnectReason::BadFraming) => Doubt::NotSmb,
        Error::Closed(DisconnectReason::Peer) => Doubt::TurnedAway,
        // Who closes with the request unread resets the connection.
        error => match io::Error::from(error.clone()).kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Doubt::TurnedAway,
            _ => Doubt::Failed(error),
        },
    };
    let sent = connection.send_blocking(&request(), Some(timeout));
    sent.map_err(failed)?;
    match connection.recv_blocking(Some(timeout)).map_err(failed)? {
        Some(answer) => Ok(answer.to_vec()),
        None => Err(Doubt::TurnedAway),
    }
}

fn examine(answer: &[u8]) -> Result<(), Doubt> {
    let number = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
    if answer.len() < ANSWER || !answer.starts_with(b"\xFESMB") {
        return Err(Doubt::NotSmb);
    }
    match u32::from(number(8)) | u32::from(number(10)) << 16 {
        0 => {}
        STATUS_NOT_SUPPORTED => return Err(Doubt::TooOld),
        status => return Err(Doubt::Refused(status)),
    }
    if number(HEADER + 4) < SMB_3_0 {
        return Err(Doubt::TooOld);
    }
    match number(HEADER + 2) & SIGNING_REQUIRED {
        0 => Ok(()),
        _ => Err(Doubt::SigningRequired),
    }
}

/// A NEGOTIATE request for the dialects that have RDMA ([MS-SMB2] 2.2.3).
fn request() -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[..4].copy_from_slice(b"\xFESMB");
    message[4] = 64; // StructureSize
    message[14] = 1; // CreditRequest
    message.extend([36, 0]); // StructureSize
    message.extend([3, 0]); // DialectCount
    message.extend([1, 0, 0, 0]); // SecurityMode: signing enabled; Reserved
    message.extend([0; 4]); // Capabilities
    message.extend(*b"smbdirectgateway"); // ClientGuid
    message.extend([112, 0, 0, 0, 1, 0, 0, 0]); // NegotiateContextOffset and Count, Reserved2
    message.extend([0x00, 0x03, 0x02, 0x03, 0x11, 0x03]);
    message.resize(112, 0);
    // Dialect 3.1.1 wants this context ([MS-SMB2] 2.2.3.1.1): SHA-512, and a salt, which protects
    // nothing here as no session follows.
    message.extend([1, 0, 38, 0, 0, 0, 0, 0, 1, 0, 32, 0, 1, 0]);
    message.extend([0x5A; 32]);
    message
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(error) => write!(
                f,
                "it cannot be reached: {error}; clients are refused until it can be (--backend)"
            ),
            Self::Silent(time) => write!(
                f,
                "it said nothing for {} s: is it an SMB server, and alive?",
                time.as_secs_f32()
            ),
            Self::TurnedAway => f.write_str(
                "it closes connections without a word: does it let this host in (Samba: `hosts \
                 allow`), and is it an SMB server?",
            ),
            Self::Failed(error) => error.fmt(f),
            // So Samba turns away whom `hosts deny` names: with a message of NetBIOS.
            Self::NotSmb => f.write_str(
                "it does not speak SMB over TCP: --backend names another service, or it refuses \
                 this host (Samba: `hosts deny`)",
            ),
            Self::Refused(status) => {
                write!(f, "it answers NEGOTIATE with status {status:#010x}")
            }
            Self::TooOld => f.write_str(
                "it speaks no SMB 3, without which there is no RDMA (Samba: `server max protocol`)",
            ),
            Self::SigningRequired => f.write_str(
                "it requires signing, so that nothing is placed by RDMA: data goes in messages, \
                 slowly (Samba: `server signing`)",
            ),
        }
    }
}
