//! A reactor that is never done: its clock goes on.
#![cfg(feature = "iwarp")]

use std::collections::VecDeque;
use std::net::TcpStream;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::rdma::iwarp::{IwarpConfig, IwarpProvider};
use crate::rdma::{
    Armed, Capabilities, Close as RdmaClose, ConnId, ConnectParams, Domain, Event, Incoming, IoPin,
    ListenOptions, ListenerId, PeerInfo, Provider, ProviderKind, QpOptions, RdmaError,
    Registration, ResolveOptions, SendRequest, Window, WindowId,
};

/// Software iWARP that always says that there is more, as one does whose peers send faster than it reads.
struct Restless(IwarpProvider);

impl Provider for Restless {
    fn kind(&self) -> ProviderKind {
        self.0.kind()
    }

    fn listen(&mut self, at: SocketAddr, options: &ListenOptions) -> Result<ListenerId, RdmaError> {
        self.0.listen(at, options)
    }

    fn listener_address(&self, listener: ListenerId) -> Option<SocketAddr> {
        self.0.listener_address(listener)
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.0.unlisten(listener);
    }

    fn resolve(
        &mut self,
        to: SocketAddr,
        options: &ResolveOptions,
        now: Instant,
    ) -> Result<ConnId, RdmaError> {
        self.0.resolve(to, options, now)
    }

    fn adopt(&mut self, incoming: Incoming, now: Instant) -> Result<ConnId, RdmaError> {
        self.0.adopt(incoming, now)
    }

    fn reject(&mut self, incoming: Incoming) {
        self.0.reject(incoming);
    }

    fn peer(&self, conn: ConnId) -> Option<PeerInfo> {
        self.0.peer(conn)
    }

    fn capabilities(&self, conn: ConnId) -> Option<&Capabilities> {
        self.0.capabilities(conn)
    }

    fn domain(&mut self, conn: ConnId) -> Result<Arc<dyn Domain>, RdmaError> {
        self.0.domain(conn)
    }

    fn create_qp(&mut self, conn: ConnId, options: &QpOptions) -> Result<(), RdmaError> {
        self.0.create_qp(conn, options)
    }

    fn connect(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError> {
        self.0.connect(conn, params, now)
    }

    fn accept(
        &mut self,
        conn: ConnId,
        params: &ConnectParams,
        now: Instant,
    ) -> Result<(), RdmaError> {
        self.0.accept(conn, params, now)
    }

    fn post_receive(
        &mut self,
        conn: ConnId,
        buffers: &mut VecDeque<IoBuf>,
    ) -> Result<(), PostError> {
        self.0.post_receive(conn, buffers)
    }

    fn post_send(
        &mut self,
        conn: ConnId,
        chain: &mut VecDeque<SendRequest>,
    ) -> Result<(), PostError> {
        self.0.post_send(conn, chain)
    }

    fn open_window(
        &mut self,
        conn: ConnId,
        memory: IoPin,
        access: RemoteAccess,
        prepared: &mut Option<Registration>,
    ) -> Result<Window, RdmaError> {
        self.0.open_window(conn, memory, access, prepared)
    }

    fn retire_window(
        &mut self,
        conn: ConnId,
        window: WindowId,
    ) -> Option<(IoPin, Option<Registration>)> {
        self.0.retire_window(conn, window)
    }

    fn defer_remains(&mut self) {
        self.0.defer_remains();
    }

    fn take_remains(&mut self) -> Option<Box<dyn std::any::Any + Send>> {
        self.0.take_remains()
    }

    fn poll(&mut self, now: Instant, out: &mut VecDeque<Event>, budget: usize) -> bool {
        self.0.poll(now, out, budget);
        true
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.0.next_deadline()
    }

    fn arm(&mut self) -> Result<Armed, RdmaError> {
        self.0.arm()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.fd()
    }

    fn close(&mut self, conn: ConnId, how: RdmaClose, now: Instant) {
        self.0.close(conn, how, now);
    }
}

#[test]
fn who_never_negotiates_is_dropped_also_by_a_reactor_that_is_always_busy() {
    let provider = Restless(IwarpProvider::new(IwarpConfig::default()).unwrap());
    let reactor = Reactor::new(Box::new(provider), ReactorOptions::default()).unwrap();
    let mut options = ChannelOptions::default();
    options.protocol.acceptor_timeout = Duration::from_millis(50);
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = reactor.listen(&[loopback], options).unwrap();
    let mut peer = TcpStream::connect(listener.local_addresses()[0]).unwrap();
    // MPA's part is done, and nothing follows.
    std::io::Write::write_all(&mut peer, b"MPA ID Req Frame\x40\x01\0\0").unwrap();
    let start = Instant::now();
    while listener.failed_handshakes() == 0 {
        reactor.poll();
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it waits for ever"
        );
    }
    assert_eq!(listener.negotiating(), 0);
    assert_eq!(reactor.connections(), 0);
}
