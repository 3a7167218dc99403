//! Listening sockets and the connections on them whose MPA request is not complete yet.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::handshake::Incomplete;
use super::mpa::Kind;
use super::sys::Socket;
use crate::rdma::{ListenOptions, ListenerId, after};

/// Connections accepted before others have their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// How long accepting rests when the process or the system is out of descriptors or memory.
const REST: Duration = Duration::from_millis(200);

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) id: ListenerId,
    pub(super) address: SocketAddr,
    pub(super) queued: bool,
    socket: Socket,
    options: ListenOptions,
    half_open: usize,
    half_open_per_peer: HashMap<IpAddr, usize>,
    resting_until: Option<Instant>,
    resting_reported: bool,
}

/// A connection that waits for its MPA request.
#[derive(Debug)]
pub(super) struct HalfOpen {
    pub(super) listener: ListenerId,
    pub(super) socket: Socket,
    pub(super) peer: SocketAddr,
    pub(super) request: Incomplete,
    pub(super) deadline: Instant,
    pub(super) queued: bool,
}

/// How a turn of accepting ended.
#[derive(Debug)]
pub(super) enum Accepted {
    /// Nobody is waiting, or nobody may be let in now.
    All,
    /// There may be more.
    More,
    /// It is tried again then.
    Rests(Instant),
    /// The listening socket is broken.
    Failed(io::Error),
}

impl Listener {
    pub(super) fn new(
        id: ListenerId,
        socket: Socket,
        address: SocketAddr,
        options: &ListenOptions,
    ) -> Self {
        Self {
            id,
            address,
            queued: false,
            socket,
            options: options.clone(),
            half_open: 0,
            half_open_per_peer: HashMap::new(),
            resting_until: None,
            resting_reported: false,
        }
    }

    /// Accepts what is waiting, within the caps.
    pub(super) fn accept(
        &mut self,
        now: Instant,
        request_timeout: Duration,
        mut take: impl FnMut(HalfOpen),
    ) -> Accepted {
        if let Some(until) = self.resting_until {
            if now < until {
                return Accepted::Rests(until);
            }
            self.resting_until = None;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            // In total: the others wait in the system's queue until one is done or has timed out.
            if self.half_open >= self.options.max_half_open {
                return Accepted::All;
            }
            let (socket, peer) = match self.socket.accept(self.options.type_of_service) {
                Ok(accepted) => accepted,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Accepted::All,
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                        return self.rest(now, &error);
                    }
                    Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => {
                        return Accepted::Failed(error);
                    }
                    // The connection failed while it waited (accept(2) lists the errors): the next
                    // one may be well.
                    _ => continue,
                },
            };
            self.resting_reported = false;
            if !self.options.filter.admits(peer.ip()) {
                tracing::debug!(%peer, "refused by the listener's filter");
                continue;
            }
            let of_peer = self
                .half_open_per_peer
                .entry(peer.ip().to_canonical())
                .or_default();
            if *of_peer >= self.options.max_half_open_per_peer {
                tracing::debug!(%peer, "too many unfinished handshakes of this address");
                continue;
            }
            *of_peer += 1;
            self.half_open += 1;
            take(HalfOpen {
                listener: self.id,
                socket,
                peer,
                request: Incomplete::new(Kind::Request),
                deadline: after(now, request_timeout),
                queued: false,
            });
        }
        Accepted::More
    }

    /// A handshake is over. Returns whether accepting was waiting for that.
    pub(super) fn done(&mut self, peer: SocketAddr) -> bool {
        let peer = peer.ip().to_canonical();
        if let Some(count) = self.half_open_per_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.half_open_per_peer.remove(&peer);
            }
        }
        self.half_open -= 1;
        self.half_open + 1 >= self.options.max_half_open
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    fn rest(&mut self, now: Instant, error: &io::Error) -> Accepted {
        if !self.resting_reported {
            self.resting_reported = true;
            tracing::warn!(address = %self.address, %error, "cannot accept connections for now");
        }
        let until = now + REST;
        self.resting_until = Some(until);
        Accepted::Rests(until)
    }
}
