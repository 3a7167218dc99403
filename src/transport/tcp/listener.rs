//! Accepting connections.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::connection::os_error;
use super::guests::{Guest, Guests};
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
    /// The threads own them.
    sockets: Vec<Weak<std::net::TcpListener>>,
}

struct Shared {
    options: TcpOptions,
    guests: Arc<Guests>,
    state: Mutex<State>,
    /// There is room for another connection, or the listener was closed.
    room: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(TcpStream, Guest)>,
    failure: Option<Error>,
    closed: bool,
    waker: Option<Waker>,
}

impl TcpListener {
    /// Listens on all of the addresses; port 0 takes any free one.
    ///
    /// # Errors
    /// [`Error::Listen`]: an address is in use or not of this machine, or the port needs privileges.
    /// [`Error::Os`]: no descriptors or threads are left.
    pub fn bind(addresses: &[SocketAddr], options: TcpOptions) -> Result<Self, Error> {
        let mut sockets = Vec::with_capacity(addresses.len());
        for address in addresses {
            let socket = std::net::TcpListener::bind(address).map_err(|error| Error::Listen {
                address: *address,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            })?;
            let local = socket.local_addr().map_err(|e| os_error(&e))?;
            sockets.push((Arc::new(socket), local));
        }
        let shared = Arc::new(Shared {
            options,
            guests: Arc::default(),
            state: Mutex::default(),
            room: Condvar::new(),
        });
        let addresses = sockets.iter().map(|(_, local)| *local).collect();
        // From here on a failure drops this, which ends the threads.
        let listener = Self {
            shared: shared.clone(),
            addresses,
            sockets: (sockets.iter())
                .map(|(socket, _)| Arc::downgrade(socket))
                .collect(),
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
            let Some((stream, guest)) = state.waiting.pop_front() else {
                if let Some(failure) = &state.failure {
                    return Poll::Ready(Err(failure.clone()));
                }
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            };
            drop(state);
            self.shared.room.notify_all();
            match Tcp::of_guest(stream, self.shared.options.clone(), Some(guest)) {
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
        for socket in self.sockets.iter().filter_map(Weak::upgrade) {
            // Ends the accept that the thread waits in; an error means that it has ended already.
            let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
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
    fn admit(&self, peer: IpAddr) -> Option<Guest> {
        let options = &self.options;
        if !options.filter.admits(peer) {
            return None;
        }
        let (of_peer, all) = (options.max_connections_per_peer, options.max_connections);
        self.guests.enter(peer, of_peer, all)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn run(shared: &Shared, socket: &std::net::TcpListener) {
    loop {
        let accepted = socket.accept();
        if shared.lock().closed {
            return;
        }
        // The filter is the application's: it runs without the lock.
        let accepted = match accepted {
            Ok((stream, peer)) => match shared.admit(peer.ip()) {
                Some(guest) => Ok((stream, guest)),
                None => {
                    tracing::debug!(%peer, "turned away: not allowed, or too many connections");
                    continue;
                }
            },
            Err(error) => Err(error),
        };
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
            Ok(waiting) => state.waiting.push_back(waiting),
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
