//! One connection, from resolution to its end.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::IwarpConfig;
use super::handshake::{self, HandshakeError, Incomplete, Request};
use super::mpa::{self, Kind, Local, MAX_ULP_PRIVATE_DATA, MpaError, Rtr, Settings};
use super::provider::{DEVICE, MAX_DEPTH};
use super::stream::{QueuePair, Shared, Stream};
use super::sys::{Readiness, Socket};
use crate::rdma::{
    Close, ConnId, ConnectParams, Event, LossReason, PeerInfo, RdmaError, RdmaOperation,
    ResolveOptions, after,
};

/// A connection in any state.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) peer: PeerInfo,
    pub(super) qp: Option<QueuePair>,
    /// Whether it is in the list of those that want a turn.
    pub(super) queued: bool,
    /// The earliest timer that is set for it.
    pub(super) timer: Option<Instant>,
    /// We have closed it: that is the reason, whatever happens until it is gone.
    closed: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Resolved(ResolveOptions),
    Adopted(Request),
    Connecting(Connecting),
    Open(Box<Stream>),
    Gone,
}

/// An initiator's handshake.
#[derive(Debug)]
struct Connecting {
    socket: Socket,
    options: ResolveOptions,
    local: Local,
    private_data: Vec<u8>,
    /// `Some` once the Request is sent.
    reply: Option<Incomplete>,
    deadline: Instant,
    writable: bool,
    hangup: bool,
}

impl Conn {
    pub(super) fn resolved(id: ConnId, to: SocketAddr, options: &ResolveOptions) -> Self {
        let local = options.local.unwrap_or_else(|| match to {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        });
        Self::new(
            id,
            PeerInfo::new(local, to, DEVICE),
            Stage::Resolved(options.clone()),
        )
    }

    pub(super) fn adopted(id: ConnId, peer: PeerInfo, request: Request) -> Self {
        Self::new(id, peer, Stage::Adopted(request))
    }

    fn new(id: ConnId, peer: PeerInfo, stage: Stage) -> Self {
        Self {
            id,
            peer,
            qp: None,
            queued: false,
            timer: None,
            closed: false,
            stage,
        }
    }

    /// Whether queue pairs can be made and memory posted: before or while it is up.
    pub(super) fn is_alive(&self) -> bool {
        match &self.stage {
            Stage::Open(stream) => stream.is_open(),
            stage => !matches!(stage, Stage::Gone),
        }
    }

    /// Whether a queue pair may be made now.
    pub(super) fn may_create_qp(&self) -> bool {
        self.qp.is_none() && matches!(self.stage, Stage::Resolved(_) | Stage::Adopted(_))
    }

    /// Begins to connect. The caller watches the socket.
    pub(super) fn connect(
        &mut self,
        params: &ConnectParams,
        config: &IwarpConfig,
        now: Instant,
    ) -> Result<&Socket, RdmaError> {
        let operation = RdmaOperation::Connect;
        let Stage::Resolved(options) = &self.stage else {
            return Err(RdmaError::State(operation));
        };
        if self.qp.is_none() {
            return Err(RdmaError::State(operation));
        }
        check_private_data(operation, params)?;
        let socket =
            dial(self.peer.remote, options).map_err(|error| RdmaError::os(operation, &error))?;
        self.stage = Stage::Connecting(Connecting {
            socket,
            options: options.clone(),
            local: local(params, config),
            private_data: params.private_data.clone(),
            reply: None,
            deadline: after(now, params.timeout),
            writable: false,
            hangup: false,
        });
        match &self.stage {
            Stage::Connecting(connecting) => Ok(&connecting.socket),
            _ => Err(RdmaError::State(operation)),
        }
    }

    /// Accepts an adopted connection. `watch` begins to watch the socket.
    pub(super) fn accept(
        &mut self,
        params: &ConnectParams,
        config: &IwarpConfig,
        shared: &mut Shared,
        watch: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> Result<(), RdmaError> {
        let operation = RdmaOperation::Accept;
        check_private_data(operation, params)?;
        let (Stage::Adopted(_), Some(qp)) = (&self.stage, &mut self.qp) else {
            return Err(RdmaError::State(operation));
        };
        let Stage::Adopted(request) = std::mem::replace(&mut self.stage, Stage::Gone) else {
            return Err(RdmaError::State(operation));
        };
        let local = local(params, config);
        let (reply, settings) = mpa::accept(&local, request.frame(), params.private_data.clone());
        let established = Event::Established {
            conn: self.id,
            private_data: request.frame().private_data.clone(),
            initiator_depth: settings.ord,
            responder_resources: settings.ird,
        };
        let Some(socket) = request.into_socket() else {
            return Err(RdmaError::Closed);
        };
        handshake::write(&socket, &reply).map_err(|error| RdmaError::os(operation, &error))?;
        watch(&socket).map_err(|error| RdmaError::os(operation, &error))?;
        let mut stream = Stream::new(socket, qp, &settings, config.ulpdu);
        // RFC 6581: in the peer-to-peer model the connection is up with the ready-to-receive
        // message.
        let held = if settings.rtr == Rtr::None {
            shared.events.push_back(established);
            None
        } else {
            Some(established)
        };
        stream.respond(held);
        self.stage = Stage::Open(Box::new(stream));
        Ok(())
    }

    /// Takes in what epoll says.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        match &mut self.stage {
            Stage::Connecting(connecting) => {
                connecting.writable |= readiness.writable;
                connecting.hangup |= readiness.hangup;
            }
            Stage::Open(stream) => {
                stream.readable |= readiness.readable;
                stream.writable |= readiness.writable;
                stream.hangup |= readiness.hangup;
            }
            _ => {}
        }
    }

    /// Whether there is something to do without waiting for the socket.
    pub(super) fn wants_turn(&self) -> bool {
        matches!(&self.stage, Stage::Open(stream) if stream.wants_turn())
    }

    /// When a turn is due at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Connecting(connecting) => Some(connecting.deadline),
            Stage::Open(stream) => stream.deadline(),
            _ => None,
        }
    }

    /// Moves what can be moved. Returns why the connection is gone, when it is. `watch` begins to
    /// watch a socket.
    pub(super) fn turn(
        &mut self,
        config: &IwarpConfig,
        shared: &mut Shared,
        now: Instant,
        watch: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> Option<LossReason> {
        if let Stage::Connecting(_) = self.stage
            && let Err(error) = self.advance_handshake(config, shared, now, watch)
        {
            return Some(error.into());
        }
        match (&mut self.stage, &mut self.qp) {
            (Stage::Open(stream), Some(qp)) => stream.turn(self.id, qp, shared, now),
            _ => None,
        }
    }

    /// Sends what was just posted. Returns whether a turn has to follow.
    pub(super) fn send(&mut self, shared: &mut Shared) -> bool {
        match (&mut self.stage, &mut self.qp) {
            (Stage::Open(stream), Some(qp)) => stream.send(self.id, qp, shared),
            _ => false,
        }
    }

    /// Ends the connection. Returns the reason if it is gone with that.
    pub(super) fn close(&mut self, how: Close, now: Instant) -> Option<LossReason> {
        self.closed = true;
        match (&mut self.stage, how) {
            (Stage::Open(stream), Close::Drain(deadline)) if deadline > now => {
                stream.drain(deadline);
                None
            }
            _ => Some(LossReason::Local),
        }
    }

    /// Reports everything that is posted and why it ended.
    pub(super) fn finish(mut self, reason: LossReason, events: &mut VecDeque<Event>) {
        let conn = self.id;
        let reason = if self.closed {
            LossReason::Local
        } else {
            reason
        };
        tracing::debug!(?conn, peer = %self.peer.remote, %reason, "disconnected");
        // Parts of batches that are not written go before the requests they belong to.
        self.stage = Stage::Gone;
        if let Some(mut qp) = self.qp.take() {
            qp.flush(conn, events);
        }
        events.push_back(Event::Disconnected { conn, reason });
    }

    fn advance_handshake(
        &mut self,
        config: &IwarpConfig,
        shared: &mut Shared,
        now: Instant,
        watch: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> Result<(), RdmaError> {
        let operation = RdmaOperation::Connect;
        let Stage::Connecting(connecting) = &mut self.stage else {
            return Ok(());
        };
        // Looked at only where nothing can be done: a process that was suspended finds the peer's
        // answer first.
        let wait = if now < connecting.deadline {
            Ok(())
        } else {
            Err(RdmaError::Timeout(operation))
        };
        let reply = match &mut connecting.reply {
            Some(reply) => reply,
            None => {
                if !connecting.writable {
                    return wait;
                }
                let failed = |error| RdmaError::os(operation, &error);
                connecting.socket.take_error().map_err(failed)?;
                self.peer.local = connecting.socket.local().map_err(failed)?;
                // Right behind the TCP handshake: a connection without it can end Linux siw's
                // listener.
                let request = mpa::request(&connecting.local, connecting.private_data.clone());
                handshake::write(&connecting.socket, &request).map_err(failed)?;
                connecting.reply.insert(Incomplete::new(Kind::Reply))
            }
        };
        let answer = match reply.read(&connecting.socket) {
            Ok(None) => return wait,
            Ok(Some(frame)) => Ok(frame),
            Err(error) => Err(error),
        };
        let plainly = match &answer {
            Ok(frame) => mpa::wants_revision_1(&connecting.local, Some(frame)),
            // Revision 1 has it that a responder closes on a revision that it does not know.
            Err(HandshakeError::Closed | HandshakeError::Lost) => {
                reply.is_empty() && mpa::wants_revision_1(&connecting.local, None)
            }
            Err(HandshakeError::Invalid(_)) => false,
        };
        if plainly {
            match connecting.ask_plainly(self.peer.remote, watch) {
                Ok(()) => return Ok(()),
                // What came of the first attempt is the reason.
                Err(error) => tracing::debug!(peer = %self.peer.remote, %error, "no second try"),
            }
        }
        let frame = match answer {
            Ok(frame) => frame,
            // A listener without RDMA closes as soon as it sees the request.
            Err(HandshakeError::Closed) => return Err(RdmaError::Refused),
            Err(HandshakeError::Lost) => return Err(RdmaError::ConnectionLost),
            Err(HandshakeError::Invalid(error)) => {
                tracing::debug!(peer = %self.peer.remote, %error, "bad MPA reply");
                return Err(RdmaError::BadHandshake);
            }
        };
        if frame.reject {
            return Err(RdmaError::Rejected {
                private_data: frame.private_data,
            });
        }
        let local = connecting.local;
        let (Stage::Connecting(connecting), Some(qp)) = (
            std::mem::replace(&mut self.stage, Stage::Gone),
            &mut self.qp,
        ) else {
            return Err(RdmaError::State(operation));
        };
        let bad = |error: MpaError| {
            tracing::debug!(peer = %self.peer.remote, %error, "bad MPA reply");
            error.terminate().ok_or(RdmaError::BadHandshake)
        };
        let mut stream;
        match mpa::conclude(&local, &frame).map_err(bad) {
            Ok(settings) => {
                shared.events.push_back(Event::Established {
                    conn: self.id,
                    private_data: frame.private_data,
                    initiator_depth: settings.ord,
                    responder_resources: settings.ird,
                });
                stream = Stream::new(connecting.socket, qp, &settings, config.ulpdu);
                stream.initiate(qp, shared, settings.rtr, config.nudge);
            }
            Err(code) => {
                let code = code?;
                // Enough to tell the peer.
                let settings = Settings {
                    crc: local.crc || frame.crc,
                    send_markers: frame.markers,
                    ..Settings::default()
                };
                let reason = RdmaError::FabricViolation {
                    layer: code.layer,
                    error_type: code.error_type,
                    code: code.code,
                };
                stream = Stream::new(connecting.socket, qp, &settings, config.ulpdu);
                stream.terminate(now, code.into(), reason.into());
            }
        }
        stream.hangup = connecting.hangup;
        self.stage = Stage::Open(Box::new(stream));
        Ok(())
    }
}

impl Connecting {
    /// Begins again with MPA revision 1, on a new TCP connection and within the same deadline: the
    /// peer takes us for what RFC 5044 knows (RFC 6581 leaves that to the initiator).
    fn ask_plainly(
        &mut self,
        to: SocketAddr,
        watch: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<()> {
        let socket = dial(to, &self.options)?;
        watch(&socket)?;
        tracing::debug!(peer = %to, "not a peer of MPA revision 2: once more with revision 1");
        self.socket = socket;
        self.local.revision = 1;
        self.reply = None;
        self.writable = false;
        self.hangup = false;
        Ok(())
    }
}

fn dial(to: SocketAddr, options: &ResolveOptions) -> io::Result<Socket> {
    Socket::connect(to, options.local, options.type_of_service)
}

fn check_private_data(operation: RdmaOperation, params: &ConnectParams) -> Result<(), RdmaError> {
    if params.private_data.len() > MAX_ULP_PRIVATE_DATA {
        return Err(RdmaError::Limit {
            operation,
            asked: params.private_data.len() as u64,
            limit: MAX_ULP_PRIVATE_DATA as u64,
        });
    }
    Ok(())
}

fn local(params: &ConnectParams, config: &IwarpConfig) -> Local {
    Local {
        revision: config.revision,
        crc: config.crc,
        markers: config.markers,
        peer_to_peer: config.peer_to_peer,
        ird: params.responder_resources.min(MAX_DEPTH),
        ord: params.initiator_depth.min(MAX_DEPTH),
        max_ird: MAX_DEPTH,
    }
}
