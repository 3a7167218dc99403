//! A client against the Linux kernel's SMB server: `ksmbd verbs|iwarp ADDRESS:PORT`. The guest's
//! `ksmbd.sh` starts both; without arguments there is no server, and nothing to test.

use std::env;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use smbdirect::engine::{ChannelOptions, Reactor, ReactorOptions};
use smbdirect::rdma::{self, ProviderKind};
use smbdirect::transport::{Close, Message, Transport, TransportExt};

/// More than anything here takes on an emulated machine.
const LONG: Duration = Duration::from_secs(30);

const SMB2_NEGOTIATE: u16 = 0;
const DIALECT: u16 = 0x0302;
const MESSAGE_ID: u64 = 0;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [provider, server] = &words[..] else {
        println!("not run: no server given (ksmbd verbs|iwarp ADDRESS:PORT)");
        return ExitCode::SUCCESS;
    };
    let kind = match provider.as_str() {
        "verbs" => ProviderKind::Verbs,
        "iwarp" => ProviderKind::Iwarp,
        _ => {
            println!("not run: no provider is called {provider}");
            return ExitCode::SUCCESS;
        }
    };
    let server = server.parse().expect("ADDRESS:PORT");
    // Once more after an orderly close: the server must be none the worse for it.
    for _ in 0..3 {
        negotiate(kind, server);
    }
    println!("ksmbd answered over {kind} three times");
    ExitCode::SUCCESS
}

/// Connects, asks, checks the answer, closes.
fn negotiate(kind: ProviderKind, server: SocketAddr) {
    let provider = rdma::open(kind).expect("a provider");
    let reactor = Reactor::new(provider, ReactorOptions::default()).expect("a reactor");
    reactor.spawn().expect("a thread");
    let channel = reactor
        .connect(server, ChannelOptions::default())
        .wait()
        .expect("a channel");

    let info = channel.info();
    println!("connected: {info:?}");
    let parameters = info.parameters.as_ref().expect("negotiated parameters");
    // What ksmbd offers by default, and we by ours.
    assert_eq!(parameters.max_send_size, 1364);
    assert_eq!(parameters.max_receive_size, 1364);
    assert!(parameters.max_fragmented_send_size >= 131_072);
    assert!(parameters.initial_send_credits > 0);
    assert!(parameters.max_read_write_size >= 512 << 10);

    channel
        .send_blocking(&request(), Some(LONG))
        .expect("a sent request");
    let answer = channel
        .recv_blocking(Some(LONG))
        .expect("an answer")
        .expect("an answer before the end");
    check(&answer);
    println!("answer: {} bytes, dialect {DIALECT:#06x}", answer.len());

    channel.close(Close::Graceful(LONG));
    channel
        .closed_blocking(Some(LONG))
        .expect("the end of the connection");
    reactor.shutdown(LONG);
}

/// SMB2 NEGOTIATE with one dialect ([MS-SMB2] 2.2.1.2, 2.2.3).
fn request() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(b"\xFESMB");
    message.extend_from_slice(&64u16.to_le_bytes());
    message.extend_from_slice(&[0; 6]); // credit charge, status
    message.extend_from_slice(&SMB2_NEGOTIATE.to_le_bytes());
    message.extend_from_slice(&31u16.to_le_bytes()); // credits
    message.extend_from_slice(&[0; 8]); // flags, next command
    message.extend_from_slice(&MESSAGE_ID.to_le_bytes());
    message.extend_from_slice(&[0; 32]); // reserved, tree, session, signature
    assert_eq!(message.len(), 64);
    for word in [36u16, 1, 1, 0] {
        // structure size, dialects, signing enabled, reserved
        message.extend_from_slice(&word.to_le_bytes());
    }
    message.extend_from_slice(&[0; 4]); // capabilities
    message.extend_from_slice(&[0x11; 16]); // client GUID
    message.extend_from_slice(&[0; 8]); // start time
    message.extend_from_slice(&DIALECT.to_le_bytes());
    message
}

/// The response's header and dialect ([MS-SMB2] 2.2.1.2, 2.2.4).
fn check(answer: &Message) {
    let u16_at = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
    let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
    assert!(answer.len() >= 64 + 64, "{} bytes", answer.len());
    assert_eq!(answer[..4], *b"\xFESMB");
    assert_eq!(u32_at(8), 0, "status");
    assert_eq!(u16_at(12), SMB2_NEGOTIATE, "command");
    assert_eq!(u32_at(16) & 1, 1, "a response");
    assert_eq!(u64::from(u32_at(24)), MESSAGE_ID);
    assert_eq!(u16_at(64), 65, "structure size");
    assert_eq!(u16_at(68), DIALECT, "dialect");
}
