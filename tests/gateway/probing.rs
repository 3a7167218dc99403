//! What the gateway learns of the server at its start.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use smbdirect::transport::TransportExt;
use smbdirect::transport::tcp::{Tcp, TcpOptions};

use crate::backend::Backend;
use crate::probe::probe;
use crate::smb2::*;
use crate::world::LONG;

/// What is said of a server that does this with the connection.
fn said_of(server: impl FnOnce(TcpStream) + Send + 'static) -> Option<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || server(listener.accept().unwrap().0));
    let said = said(address, LONG);
    server.join().unwrap();
    said
}

fn said(address: SocketAddr, timeout: Duration) -> Option<String> {
    let backend = Backend::new(&address.to_string(), timeout);
    probe(&backend, timeout).map(|doubt| doubt.to_string())
}

/// What is said of a server that answers NEGOTIATE so.
fn said_of_answer(answer: Vec<u8>) -> Option<String> {
    said_of(move |stream| {
        let tcp = Tcp::from_stream(stream, TcpOptions::default()).unwrap();
        let request = tcp.recv_blocking(Some(LONG)).unwrap().unwrap();
        assert_eq!((command(&request), request.len()), (NEGOTIATE, 158));
        tcp.send_blocking(&answer, Some(LONG)).unwrap();
        // The gateway ends the connection.
        assert!(!matches!(tcp.recv_blocking(Some(LONG)), Ok(Some(_))));
    })
}

#[test]
fn a_server_as_it_should_be_is_not_spoken_of() {
    for dialect in [0x0300, 0x0302, 0x0311] {
        let answer = negotiate_answer(dialect, 1 << 20, 1 << 20);
        assert_eq!(said_of_answer(answer), None);
    }
}

#[test]
fn what_its_answer_says_against_it_is_told() {
    let with = |change: fn(&mut Vec<u8>)| {
        let mut answer = negotiate_answer(0x0311, 1 << 20, 1 << 20);
        change(&mut answer);
        said_of_answer(answer).expect("a doubt")
    };
    let said = with(|answer| put16(answer, 66, 3));
    assert!(said.contains("`server signing`"), "{said}");
    let said = with(|answer| put16(answer, 68, 0x0210));
    assert!(said.contains("`server max protocol`"), "{said}");
    let said = with(|answer| put32(answer, 8, 0xC000_00BB));
    assert!(said.contains("`server max protocol`"), "{said}");
    let said = with(|answer| put32(answer, 8, 0xC000_0022));
    assert!(said.contains("status 0xc0000022"), "{said}");
    let said = with(|answer| answer.truncate(69));
    assert!(said.contains("does not speak SMB"), "{said}");
    let said = with(|answer| answer[0] = 0xFF);
    assert!(said.contains("does not speak SMB"), "{said}");
}

#[test]
fn a_server_that_is_none_is_told_of() {
    // Closed before the request comes, and with the request unread: a reset.
    let unread = |stream: TcpStream| {
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    };
    for said_ in [said_of(drop), said_of(unread)] {
        let said_ = said_.expect("a doubt");
        assert!(said_.contains("`hosts allow`"), "{said_}");
    }
    let said_ = said_of(|mut stream| {
        // Nothing is left unread, so that the answer is not lost in a reset.
        stream.read_exact(&mut [0; 4 + 158]).unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .unwrap();
    });
    let said_ = said_.expect("a doubt");
    assert!(said_.contains("--backend names another service"), "{said_}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let said_ = said(address, Duration::from_millis(300)).expect("a doubt");
    assert!(said_.contains("said nothing for 0.3 s"), "{said_}");
    drop(listener);
    let said_ = said(address, LONG).expect("a doubt");
    assert!(said_.contains("cannot be reached"), "{said_}");
}
