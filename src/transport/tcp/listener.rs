//! Accepting connections.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::connection::os_error;
use super::{Tcp, TcpOptions};
use crate::transport::{Error, Listener, Transport};

/// Connections that wait for [`Listener::poll_accept`]; more wait in the system's own queue.
const WAITING: usize = 64;
/// Pause after the system ran out of something, so that others may give it back.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts TCP connections on one or several addresses, with a thread for each.
pub struct TcpListener {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
}

struct Shared {
    options: TcpOptions,
    state: Mutex<State>,
    /// There is room for another connection, or the listener was closed.
    room: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<TcpStream>,
    failure: Option<Error>,
    closed: bool,
    waker: Option<Waker>,
}

impl TcpListener {
    /// Listens on all of the addresses; port 0 takes any free one.
    ///
    /// # Errors
    /// [`Error::Os`]: an address is in use or not of this machine, or the port needs privileges.
    pub fn bind(addresses: &[SocketAddr], options: TcpOptions) -> Result<Self, Error> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let socket = std::net::TcpListener::bind(address).map_err(|e| os_error(&e))?;
            let local = socket.local_addr().map_err(|e| os_error(&e))?;
            sockets.push((socket, local));
        }
        let shared = Arc::new(Shared {
            options,
            state: Mutex::default(),
            room: Condvar::new(),
        });
        let addresses = sockets.iter().map(|(_, local)| *local).collect();
        // From here on a failure drops this, which ends the threads.
        let listener = Self {
            shared: shared.clone(),
            addresses,
        };
        for (socket, _) in sockets {
            let shared = shared.clone();
            thread::Builder::new()
                .name("smb-tcp-accept".into())
                .spawn(move || run(&shared, &socket))
                .map_err(|error| os_error(&error))?;
        }
        Ok(listener)
    }
}

impl Listener for TcpListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Arc<dyn Transport>, Error>> {
        loop {
            let mut state = self.shared.lock();
            let Some(stream) = state.waiting.pop_front() else {
                if let Some(failure) = &state.failure {
                    return Poll::Ready(Err(failure.clone()));
                }
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            drop(state);
            self.shared.room.notify_all();
            match Tcp::from_stream(stream, self.shared.options.clone()) {
                Ok(connection) => return Poll::Ready(Ok(Arc::new(connection))),
                Err(error) => tracing::warn!(%error, "a TCP connection could not be set up"),
            }
        }
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }

    fn close(&self) {
        let mut state = self.shared.lock();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        state.waiting.clear();
        state
            .failure
            .get_or_insert(Error::Closed(crate::transport::DisconnectReason::Local));
        let waker = state.waker.take();
        drop(state);
        self.shared.room.notify_all();
        for address in &self.addresses {
            // The standard library cannot interrupt an accept: a connection of our own does.
            let _ = TcpStream::connect_timeout(&reachable(*address), PAUSE);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpListener")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, socket: &std::net::TcpListener) {
    loop {
        let accepted = socket.accept();
        let mut state = shared.lock();
        while state.waiting.len() >= WAITING && !state.closed {
            state = shared
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return;
        }
        match accepted {
            Ok((stream, _)) => state.waiting.push_back(stream),
            Err(error) if passes(&error) => {}
            Err(error) if short_of_something(&error) => {
                tracing::warn!(%error, "cannot accept TCP connections now");
                let waited = shared.room.wait_timeout(state, PAUSE);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            Err(error) => {
                state.failure.get_or_insert(os_error(&error));
            }
        }
        let failed = state.failure.is_some();
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if failed {
            return;
        }
    }
}

/// Errors of the one connection, not of the listener.
fn passes(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    ) || matches!(
        error.raw_os_error(),
        Some(libc::EPROTO | libc::ENETDOWN | libc::EHOSTUNREACH)
    )
}

fn short_of_something(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Where this machine reaches its own listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}
