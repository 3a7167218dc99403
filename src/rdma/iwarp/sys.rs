//! The system calls of the software RNIC: non-blocking TCP sockets, epoll, random bytes.
//!
//! The only module here that calls `libc`; everything it offers is safe.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_void, socklen_t};

/// Iovecs of one call, at most (IOV_MAX is 1024 on Linux).
pub(super) const MAX_VECTORS: usize = 256;

/// A non-blocking TCP socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Listens on `address`.
    pub(super) fn listen(address: SocketAddr, backlog: u32, tos: Option<u8>) -> io::Result<Self> {
        let socket = Self::new(address)?;
        socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        socket.set_type_of_service(address, tos)?;
        socket.bind(address)?;
        let backlog = c_int::try_from(backlog).unwrap_or(c_int::MAX);
        // SAFETY: a plain call on an open descriptor.
        check(unsafe { libc::listen(socket.raw(), backlog) })?;
        Ok(socket)
    }

    /// Begins a connection; the socket becomes writable when it is made or has failed.
    pub(super) fn connect(
        to: SocketAddr,
        local: Option<SocketAddr>,
        tos: Option<u8>,
    ) -> io::Result<Self> {
        let socket = Self::new(to)?;
        socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        socket.set_type_of_service(to, tos)?;
        if let Some(local) = local {
            socket.bind(local)?;
        }
        let (raw, len) = to_raw(to);
        // SAFETY: `raw` is a socket address of `len` bytes, alive during the call.
        match check(unsafe { libc::connect(socket.raw(), (&raw const raw).cast(), len) }) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }

    /// Takes a connection from the system's queue.
    pub(super) fn accept(&self, tos: Option<u8>) -> io::Result<(Self, SocketAddr)> {
        // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
        let mut raw: libc::sockaddr_storage = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as socklen_t;
        // SAFETY: `raw` has room for `len` bytes.
        let fd = check(unsafe {
            libc::accept4(
                self.raw(),
                (&raw mut raw).cast(),
                &raw mut len,
                libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            )
        })?;
        // SAFETY: a new descriptor that nobody else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let peer = from_raw(&raw)?;
        socket.set(libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
        socket.set_type_of_service(peer, tos)?;
        Ok((socket, peer))
    }

    /// The socket's own address.
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
        let mut raw: libc::sockaddr_storage = unsafe { zeroed() };
        let mut len = size_of::<libc::sockaddr_storage>() as socklen_t;
        // SAFETY: `raw` has room for `len` bytes.
        check(unsafe { libc::getsockname(self.raw(), (&raw mut raw).cast(), &raw mut len) })?;
        from_raw(&raw)
    }

    /// The error that an asynchronous connect ended with.
    pub(super) fn take_error(&self) -> io::Result<()> {
        match self.option(libc::SOL_SOCKET, libc::SO_ERROR)? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// TCP's effective maximum segment size in bytes.
    pub(super) fn segment_size(&self) -> io::Result<usize> {
        let mss = self.option(libc::IPPROTO_TCP, libc::TCP_MAXSEG)?;
        Ok(usize::try_from(mss).unwrap_or(0))
    }

    /// Reads into the buffers in turn.
    pub(super) fn read(&self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let count = buffers.len().min(MAX_VECTORS) as c_int;
        // SAFETY: `IoSliceMut` has the layout of `iovec` and each borrows its memory mutably.
        let read = unsafe { libc::readv(self.raw(), buffers.as_mut_ptr().cast(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the buffers in turn. `record` keeps the bytes in TCP segments apart from those of the
    /// next call.
    pub(super) fn write(&self, buffers: &[IoSlice<'_>], record: bool) -> io::Result<usize> {
        // SAFETY: all-zero bytes are a valid `msghdr`.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = buffers.as_ptr().cast_mut().cast();
        message.msg_iovlen = buffers.len().min(MAX_VECTORS) as _;
        let flags = libc::MSG_NOSIGNAL | if record { libc::MSG_EOR } else { 0 };
        // SAFETY: `IoSlice` has the layout of `iovec`; the call reads the buffers only, which are
        // borrowed.
        let written = unsafe { libc::sendmsg(self.raw(), &raw const message, flags) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    /// Ends the sending direction after what was written.
    pub(super) fn finish(&self) {
        // SAFETY: a plain call on an open descriptor. It fails only where the connection is gone
        // already.
        unsafe { libc::shutdown(self.raw(), libc::SHUT_WR) };
    }

    fn new(address: SocketAddr) -> io::Result<Self> {
        let domain = match address {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: a plain call.
        let fd = check(unsafe { libc::socket(domain, kind, 0) })?;
        // SAFETY: a new descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let (raw, len) = to_raw(address);
        // SAFETY: `raw` is a socket address of `len` bytes, alive during the call.
        check(unsafe { libc::bind(self.raw(), (&raw const raw).cast(), len) }).map(drop)
    }

    fn set_type_of_service(&self, address: SocketAddr, tos: Option<u8>) -> io::Result<()> {
        match (tos, address) {
            (None, _) => Ok(()),
            (Some(tos), SocketAddr::V4(_)) => {
                self.set(libc::IPPROTO_IP, libc::IP_TOS, c_int::from(tos))
            }
            (Some(tos), SocketAddr::V6(_)) => {
                self.set(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, c_int::from(tos))?;
                // IPv4 comes over the sockets of `[::]` as well.
                self.set(libc::IPPROTO_IP, libc::IP_TOS, c_int::from(tos))
            }
        }
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        let len = size_of::<c_int>() as socklen_t;
        let value: *const c_void = (&raw const value).cast();
        // SAFETY: `value` points to an integer that lives during the call.
        check(unsafe { libc::setsockopt(self.raw(), level, name, value, len) }).map(drop)
    }

    fn option(&self, level: c_int, name: c_int) -> io::Result<c_int> {
        let mut value: c_int = 0;
        let mut len = size_of::<c_int>() as socklen_t;
        let place: *mut c_void = (&raw mut value).cast();
        // SAFETY: `place` has room for the integer.
        check(unsafe { libc::getsockopt(self.raw(), level, name, place, &raw mut len) })?;
        Ok(value)
    }

    fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An epoll instance, edge triggered.
#[derive(Debug)]
pub(super) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What epoll says about one socket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readiness {
    pub(super) token: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer has ended its direction, or the connection failed.
    pub(super) hangup: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a plain call.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self {
            // SAFETY: a new descriptor that nobody else owns.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: vec![libc::epoll_event { events: 0, u64: 0 }; 256],
        })
    }

    /// Watches a socket for both directions.
    pub(super) fn add(&self, socket: &Socket, token: u64) -> io::Result<()> {
        let wanted = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event {
            events: wanted as u32,
            u64: token,
        };
        self.control(libc::EPOLL_CTL_ADD, socket, &mut event)
    }

    /// Stops watching a socket that lives on elsewhere.
    pub(super) fn remove(&self, socket: &Socket) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        self.control(libc::EPOLL_CTL_DEL, socket, &mut event)
    }

    /// What became ready since the last call, without waiting.
    pub(super) fn ready(&mut self) -> io::Result<impl Iterator<Item = Readiness> + '_> {
        let room = self.events.len() as c_int;
        // SAFETY: `events` has room for `room` events.
        let count = check(unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), room, 0)
        })?;
        let has = |bits: u32, wanted: c_int| bits & wanted as u32 != 0;
        Ok(self.events[..count as usize].iter().map(move |event| {
            let bits = event.events;
            let hangup = has(bits, libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
            Readiness {
                token: event.u64,
                readable: hangup || has(bits, libc::EPOLLIN),
                writable: has(bits, libc::EPOLLOUT | libc::EPOLLHUP | libc::EPOLLERR),
                hangup,
            }
        }))
    }

    fn control(
        &self,
        operation: c_int,
        socket: &Socket,
        event: &mut libc::epoll_event,
    ) -> io::Result<()> {
        // SAFETY: both descriptors are open and `event` lives during the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, socket.raw(), event) })
            .map(drop)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Random bytes of the kernel's generator.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    loop {
        // SAFETY: `bytes` has room for `N` bytes. Requests of up to 256 bytes are never cut short.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), N, 0) };
        if usize::try_from(got) == Ok(N) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn to_raw(address: SocketAddr) -> (libc::sockaddr_storage, socklen_t) {
    // SAFETY: all-zero bytes are a valid `sockaddr_storage`.
    let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
    let len = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` is large enough and aligned for every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as socklen_t)
}

fn from_raw(storage: &libc::sockaddr_storage) -> io::Result<SocketAddr> {
    match c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that it is a `sockaddr_in`; the storage is large enough and
            // aligned.
            let raw = unsafe { (&raw const *storage).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that it is a `sockaddr_in6`; the storage is large enough and
            // aligned.
            let raw = unsafe { (&raw const *storage).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Ok(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_system_form() {
        for address in ["10.1.2.3:445", "[fe80::1%7]:5445", "[::1]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(from_raw(&to_raw(address).0).unwrap(), address);
        }
    }

    #[test]
    fn the_type_of_service_is_that_of_ipv4_on_a_socket_of_ipv6_too() {
        // A host without IPv6 has nothing to test here.
        let Ok(listener) = Socket::listen("[::]:0".parse().unwrap(), 1, Some(0x68)) else {
            return;
        };
        let port = listener.local().unwrap().port();
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        // The connection may take a moment to be in the listener's queue.
        let accepted = loop {
            match listener.accept(Some(0x68)) {
                Ok((accepted, _)) => break accepted,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        };
        assert_eq!(
            accepted.option(libc::IPPROTO_IP, libc::IP_TOS).unwrap(),
            0x68
        );
        let class = accepted.option(libc::IPPROTO_IPV6, libc::IPV6_TCLASS);
        assert_eq!(class.unwrap(), 0x68);
        drop(client);
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<16>().unwrap(), random::<16>().unwrap());
    }
}
