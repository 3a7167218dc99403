//! How connections end, and what is told of it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use super::{LONG, framed, pair, payload, received, streams, with_bare_peer};
use crate::transport::tcp::{Tcp, TcpOptions, connection};
use crate::transport::{Close, DisconnectReason, Error, Transport, TransportExt, TrySendError};

/// Half of a connection would keep a thread, a socket and a place among the listener's connections for as long as the peer
/// likes.
#[test]
fn a_connection_whose_second_thread_the_system_refuses_is_closed() {
    for refused in ["smb-tcp-read", "smb-tcp-write"] {
        let (ours, mut theirs) = streams();
        theirs.set_read_timeout(LONG).unwrap();
        let connection = Tcp::at_rest(ours, TcpOptions::default(), None).unwrap();
        let no_threads = Error::Os {
            errno: libc::EAGAIN,
        };
        let result = connection.begin(|name, shared, run| {
            if name == refused {
                return Err(no_threads.clone());
            }
            connection::spawn(name, shared, run)
        });
        assert_eq!(result.err(), Some(no_threads));
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn close_in_order_sends_everything_first() {
    let (a, b) = pair(TcpOptions::default());
    for seed in 0..20 {
        a.send_blocking(&payload(seed, 200_000), LONG).unwrap();
    }
    a.close(Close::Graceful(Duration::from_secs(20)));
    assert!(matches!(
        a.start_send(b"x".into()),
        Err(TrySendError::Closed(_))
    ));
    for seed in 0..20 {
        assert!(received(&b) == payload(seed, 200_000));
    }
    assert!(b.recv_blocking(LONG).unwrap().is_none());
    assert_eq!(b.closed_blocking(LONG), Some(DisconnectReason::Peer));
    drop(b);
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert!(a.recv_blocking(LONG).unwrap().is_none());
}

#[test]
fn close_in_order_ends_at_its_deadline_when_the_peer_takes_nothing() {
    let options = TcpOptions {
        send_queue: 64 << 20,
        ..TcpOptions::default()
    };
    let (a, _peer) = with_bare_peer(options);
    for _ in 0..8 {
        a.start_send((&vec![1; 4 << 20]).into()).unwrap();
    }
    let start = Instant::now();
    a.close(Close::Graceful(Duration::from_millis(300)));
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn abort_ends_both_ends_at_once() {
    let (a, b) = pair(TcpOptions::default());
    a.close(Close::Graceful(Duration::from_secs(600)));
    a.close(Close::Abort);
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Local));
    assert_eq!(
        a.recv_blocking(LONG).unwrap_err(),
        Error::Closed(DisconnectReason::Local)
    );
    assert!(b.closed_blocking(LONG).is_some());
    a.close(Close::Abort);
    a.close(Close::Graceful(Duration::from_secs(1)));
}

#[test]
fn a_peer_that_ended_its_side_still_gets_answers() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    peer.write_all(&framed(b"question")).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(received(&a), b"question");
    assert!(a.recv_blocking(LONG).unwrap().is_none());
    assert_eq!(a.closed_blocking(LONG), Some(DisconnectReason::Peer));
    a.send_blocking(b"answer", LONG).unwrap();
    drop(a);
    let mut wire = Vec::new();
    peer.read_to_end(&mut wire).unwrap();
    assert_eq!(wire, framed(b"answer"));
}

#[test]
fn a_reset_is_told_as_what_it_is() {
    let (a, mut peer) = with_bare_peer(TcpOptions::default());
    a.send_blocking(b"never read", LONG).unwrap();
    // Closing with unread bytes resets the connection.
    peer.peek(&mut [0]).unwrap();
    peer.write_all(&framed(b"last words")).unwrap();
    drop(peer);
    let first = a.recv_blocking(LONG);
    let error = match first {
        Ok(Some(message)) => {
            assert_eq!(&message[..], b"last words");
            a.recv_blocking(LONG).unwrap_err()
        }
        other => other.unwrap_err(),
    };
    let reset = DisconnectReason::Os {
        errno: libc::ECONNRESET,
    };
    assert_eq!(error, Error::Closed(reset.clone()));
    assert_eq!(a.closed_blocking(LONG), Some(reset));
}

/// A second each for keepalive interval and timeout, the least there is.
fn short_keepalive() -> TcpOptions {
    TcpOptions {
        keepalive_interval: Duration::from_secs(1),
        keepalive_timeout: Duration::from_secs(1),
        send_queue: 64 << 20,
        ..TcpOptions::default()
    }
}

#[test]
fn a_peer_that_takes_nothing_is_gone_in_interval_and_timeout() {
    let (a, _peer) = with_bare_peer(short_keepalive());
    let start = Instant::now();
    for _ in 0..8 {
        a.start_send((&vec![1; 4 << 20]).into()).unwrap();
    }
    let why = DisconnectReason::NoAnswer;
    // Whichever of the two threads the system tells it.
    assert_eq!(a.closed_blocking(LONG), Some(why.clone()));
    assert!(start.elapsed() >= Duration::from_millis(1500));
    assert_eq!(a.recv_blocking(LONG).unwrap_err(), Error::Closed(why));
}

#[test]
fn a_silent_peer_that_lives_is_kept() {
    let (a, mut peer) = with_bare_peer(short_keepalive());
    assert_eq!(a.closed_blocking(Some(Duration::from_secs(4))), None);
    peer.write_all(&framed(b"here I am")).unwrap();
    assert_eq!(received(&a), b"here I am");
}

/// A server may wait for the end in every request's task.
#[test]
fn tasks_that_wait_no_longer_are_forgotten() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let (a, _peer) = with_bare_peer(TcpOptions {
        send_queue: 1,
        ..TcpOptions::default()
    });
    while a.start_send(vec![1; 1 << 20][..].into()).is_ok() {}
    let tasks: Vec<Arc<Task>> = (0..10_000).map(|_| Arc::new(Task)).collect();
    for task in &tasks {
        let waker = Waker::from(task.clone());
        let cx = &mut Context::from_waker(&waker);
        assert!(a.poll_closed(cx).is_pending());
    }
    let kept = |task: &&Arc<Task>| Arc::strong_count(task) > 1;
    let kept = tasks.iter().filter(kept).count();
    assert!(kept < 1000, "{kept} tasks are kept");
}
