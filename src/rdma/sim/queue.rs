//! Executing requests: at the end that posted them, and at the peer.

use super::conn::{End, Outstanding, Phase, operation};
use super::network::ViolationKind;
use super::window::Denied;
use super::world::{Action, World};
use crate::rdma::{
    CompletionStatus, Event, Exposure, Fabric, IoBytes, Operation, Pieces, RdmaError,
    RdmaOperation, RemoteAccess, RemoteAddress,
};

/// What travels from host to host.
#[derive(Debug)]
pub(super) enum Packet {
    Connect {
        request: u64,
    },
    Refused {
        to: End,
        error: RdmaError,
    },
    Accepted {
        to: End,
        depths: (u16, u16),
        private_data: Vec<u8>,
    },
    Ready {
        to: End,
    },
    Close {
        to: End,
        orderly: bool,
    },
    CloseReply {
        to: End,
    },
    Message {
        to: End,
        token: u64,
        bytes: Vec<u8>,
        invalidate: Option<u32>,
    },
    Write {
        to: End,
        token: u64,
        bytes: Vec<u8>,
        at: RemoteAddress,
    },
    Read {
        to: End,
        token: u64,
        len: usize,
        at: RemoteAddress,
    },
    ReadReply {
        to: End,
        token: u64,
        bytes: Vec<u8>,
    },
    Answer {
        to: End,
        token: u64,
        status: CompletionStatus,
    },
    Terminate {
        to: End,
        token: u64,
        status: CompletionStatus,
        fault: WireFault,
    },
}

/// What the peer of a connection did wrong, in iWARP's numbers (RFC 5040 4.8, RFC 5041 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WireFault {
    layer: u8,
    error_type: u8,
    code: u8,
    operation: RdmaOperation,
}

/// A request that this device cannot execute: "local queue pair operation error" of verbs.
const LOCAL_OPERATION: CompletionStatus = CompletionStatus::Other(2);

impl World {
    pub(super) fn handle(&mut self, packet: Packet) {
        match packet {
            Packet::Connect { request } => self.arrived(request),
            Packet::Refused { to, error } => self.refused(to, error),
            Packet::Accepted {
                to,
                depths,
                private_data,
            } => self.accepted(to, depths, private_data),
            Packet::Ready { to } => self.ready(to),
            Packet::Close { to, orderly } => self.peer_closed(to, orderly),
            Packet::CloseReply { to } => self.close_reply(to),
            Packet::Message {
                to,
                token,
                bytes,
                invalidate,
            } => self.message(to, token, &bytes, invalidate),
            Packet::Write {
                to,
                token,
                bytes,
                at,
            } => self.write(to, token, &bytes, at),
            Packet::Read { to, token, len, at } => self.read(to, token, len, at),
            Packet::ReadReply { to, token, bytes } => self.read_reply(to, token, &bytes),
            Packet::Answer { to, token, status } => self.answer(to, token, status),
            Packet::Terminate {
                to,
                token,
                status,
                fault,
            } => self.terminated(to, token, status, fault),
        }
    }

    /// Begins what can be begun, and reports what is over.
    pub(super) fn progress(&mut self, end: End) {
        self.issue(end);
        self.complete(end);
        self.drained(end);
    }

    /// Begins requests in order, until one has to wait or fails.
    fn issue(&mut self, end: End) {
        loop {
            let Some(conn) = self.conns.get_mut(&end) else {
                return;
            };
            let (Phase::Up, Some(qp), Some(to)) = (&conn.phase, &mut conn.qp, conn.peer) else {
                return;
            };
            let failed = |s: &Outstanding| s.status.is_some_and(|s| s != CompletionStatus::Success);
            if qp.unissued == qp.sends.len() || qp.sends.iter().take(qp.unissued).any(failed) {
                return;
            }
            let (reading, depth) = (qp.reads_in_flight, conn.depths.0);
            let next = &mut qp.sends[qp.unissued];
            let token = next.token;
            let packet = match &next.request.operation {
                Operation::Send {
                    message,
                    invalidate,
                    ..
                } => Ok(Packet::Message {
                    to,
                    token,
                    bytes: gather(message),
                    invalidate: *invalidate,
                }),
                Operation::Write { from, to: at } => Ok(Packet::Write {
                    to,
                    token,
                    bytes: gather(from),
                    at: *at,
                }),
                Operation::Read { .. } if depth == 0 => Err(LOCAL_OPERATION),
                Operation::Read { .. } if reading >= depth => return,
                Operation::Read { into, from } => {
                    qp.reads_in_flight += 1;
                    Ok(Packet::Read {
                        to,
                        token,
                        len: into.len(),
                        at: *from,
                    })
                }
                Operation::Bind { window } => match conn.windows.find(*window) {
                    Some(w) => {
                        w.posted -= 1;
                        let bad = w.needs_bind && (w.valid || w.spent);
                        w.valid |= !bad && w.needs_bind;
                        Err(if bad {
                            CompletionStatus::Bind
                        } else {
                            CompletionStatus::Success
                        })
                    }
                    None => Err(CompletionStatus::Bind),
                },
                Operation::Invalidate { window } => {
                    let valid = conn.windows.find(*window).map(|w| {
                        w.posted -= 1;
                        let valid = w.valid;
                        w.invalidate();
                        valid
                    });
                    let host = conn.local.ip();
                    let panics = self.nodes[conn.node].device.quirks.free_invalidation_panics;
                    if valid == Some(false) && panics {
                        let kind = ViolationKind::FreeWindowInvalidated;
                        self.violation(host, kind);
                        Err(LOCAL_OPERATION)
                    } else {
                        Err(CompletionStatus::Success)
                    }
                }
            };
            self.begin(end, token, packet);
        }
    }

    /// Sends a request's packet, or settles what needs none.
    fn begin(&mut self, end: End, token: u64, packet: Result<Packet, CompletionStatus>) {
        let device = self.device(end).map(|d| &d.capabilities);
        let iwarp = device.is_some_and(|c| c.fabric == Fabric::Iwarp);
        let invalidates = device.is_some_and(|c| c.send_with_invalidate);
        let packet = match packet {
            Ok(Packet::Message {
                invalidate: Some(_),
                ..
            }) if !invalidates => Err(LOCAL_OPERATION),
            other => other,
        };
        // On iWARP nobody acknowledges a Send or a Write: it is over when it has left.
        let early = iwarp && matches!(packet, Ok(Packet::Message { .. } | Packet::Write { .. }));
        let status = match packet {
            Ok(packet) => {
                let bytes = packet.bytes();
                let left = self.transmit(end, bytes, Some(end), packet);
                if early {
                    self.schedule(left, Action::Sent { end, token });
                }
                None
            }
            Err(status) => Some(status),
        };
        if let Some(qp) = self.conns.get_mut(&end).and_then(|c| c.qp.as_mut()) {
            if let Some(request) = qp.sends.get_mut(qp.unissued) {
                request.status = status;
            }
            qp.unissued += 1;
        }
    }

    /// Takes what is over from the front of the send queue; the first failure ends the connection.
    fn complete(&mut self, end: End) {
        loop {
            let Some(lazy) = self.device(end).map(|d| d.quirks.lazy_unsignalled) else {
                return;
            };
            let Some(conn) = self.conns.get_mut(&end) else {
                return;
            };
            let (id, Some(qp)) = (conn.id, &mut conn.qp) else {
                return;
            };
            let Some(status) = qp.sends.front().and_then(|s| s.status) else {
                return;
            };
            if status != CompletionStatus::Success {
                let operation = qp.sends.front().map(|s| operation(&s.request));
                let operation = operation.unwrap_or(RdmaOperation::Send);
                return self.fail(end, RdmaError::Completion { operation, status });
            }
            let Some(done) = qp.sends.pop_front() else {
                return;
            };
            qp.unissued -= 1;
            let signalled = done.request.signalled || !lazy;
            qp.quiet.push_back(done.request);
            if signalled {
                for request in std::mem::take(&mut qp.quiet) {
                    let event = Event::Completed {
                        conn: id,
                        request,
                        status,
                    };
                    self.report(end, event);
                }
            }
        }
    }

    pub(super) fn sent(&mut self, end: End, token: u64) {
        self.answer(end, token, CompletionStatus::Success);
    }

    /// A request is over.
    fn answer(&mut self, end: End, token: u64, status: CompletionStatus) {
        let up = |c: &&mut super::conn::Conn| c.phase == Phase::Up;
        let qp = (self.conns.get_mut(&end))
            .filter(up)
            .and_then(|c| c.qp.as_mut());
        let Some(qp) = qp else {
            return;
        };
        if let Some(request) = qp.sends.iter_mut().find(|s| s.token == token) {
            if matches!(request.request.operation, Operation::Read { .. }) {
                qp.reads_in_flight -= 1;
            }
            request.status = Some(status);
        }
        self.progress(end);
    }

    fn read_reply(&mut self, end: End, token: u64, bytes: &[u8]) {
        let qp = self.conns.get(&end).and_then(|c| c.qp.as_ref());
        let request = qp.and_then(|qp| qp.sends.iter().find(|s| s.token == token));
        if let Some(Operation::Read { into, .. }) = request.map(|s| &s.request.operation) {
            into.copy_in(0, bytes);
        }
        self.answer(end, token, CompletionStatus::Success);
    }

    fn message(&mut self, end: End, token: u64, bytes: &[u8], invalidate: Option<u32>) {
        let Some(device) = self.device(end) else {
            return;
        };
        let windows = device.capabilities.exposure != Exposure::Registration;
        let iwarp = device.capabilities.fabric == Fabric::Iwarp;
        let reports = device.capabilities.reports_invalidation;
        let Some(conn) = self.conns.get_mut(&end).filter(|c| c.receives()) else {
            return;
        };
        let (id, host) = (conn.id, conn.local.ip());
        let leaving = conn.draining;
        let Some(qp) = &mut conn.qp else {
            return;
        };
        let Some(posted) = qp.receives.front() else {
            if !leaving {
                self.violation(host, ViolationKind::SendWithoutReceive);
            }
            let fault = WireFault::untagged(0x02);
            return self.refuse_request(end, token, CompletionStatus::ReceiverNotReady, fault);
        };
        if bytes.len() > posted.capacity() {
            let fault = WireFault::untagged(0x05);
            return self.refuse_request(end, token, CompletionStatus::RemoteOperation, fault);
        }
        if let Some(key) = invalidate {
            // A plain registration cannot be invalidated on RoCE; soft-iWARP does so with any key.
            let window = conn.windows.by_key(key).filter(|_| windows || iwarp);
            let Some(window) = window else {
                let fault = WireFault::rdmap(0x00, RdmaOperation::Send);
                return self.refuse_request(end, token, CompletionStatus::RemoteAccess, fault);
            };
            window.invalidate();
        }
        let Some(mut buffer) = qp.receives.pop_front() else {
            return;
        };
        buffer.set_len(bytes.len());
        buffer.copy_from_slice(bytes);
        let event = Event::Received {
            conn: id,
            buffer,
            invalidated: invalidate.filter(|_| reports),
        };
        self.report(end, event);
        self.acknowledge(end, token);
    }

    fn write(&mut self, end: End, token: u64, bytes: &[u8], at: RemoteAddress) {
        let Some(conn) = self.conns.get_mut(&end).filter(|c| c.receives()) else {
            return;
        };
        let (key, address) = (at.key, at.address);
        let checked = match bytes {
            [] => Ok(()),
            _ => (conn.windows)
                .check(key, address, bytes.len(), RemoteAccess::Write)
                .map(|(memory, offset)| memory.copy_in(offset, bytes)),
        };
        match checked {
            Ok(()) => self.acknowledge(end, token),
            Err(denied) => self.deny(end, token, denied, RdmaOperation::Write),
        }
    }

    fn read(&mut self, end: End, token: u64, len: usize, at: RemoteAddress) {
        let Some(conn) = self.conns.get_mut(&end).filter(|c| c.receives()) else {
            return;
        };
        let mut bytes = vec![0; len];
        let checked = match len {
            0 => Ok(()),
            _ => (conn.windows)
                .check(at.key, at.address, len, RemoteAccess::Read)
                .map(|(memory, offset)| memory.copy_out(offset, &mut bytes)),
        };
        match (checked, conn.peer) {
            (Ok(()), Some(to)) => {
                let reply = Packet::ReadReply { to, token, bytes };
                self.transmit(end, len, Some(to), reply);
            }
            (Err(denied), _) => self.deny(end, token, denied, RdmaOperation::Read),
            (Ok(()), None) => {}
        }
    }

    fn deny(&mut self, end: End, token: u64, denied: Denied, operation: RdmaOperation) {
        let code = match denied {
            Denied::Key => 0x00,
            Denied::Bounds => 0x01,
            Denied::Rights => 0x02,
        };
        let fault = WireFault::rdmap(code, operation);
        self.refuse_request(end, token, CompletionStatus::RemoteAccess, fault);
    }

    fn acknowledge(&mut self, end: End, token: u64) {
        let iwarp = (self.device(end)).is_some_and(|d| d.capabilities.fabric == Fabric::Iwarp);
        if let Some(to) = self.conns.get(&end).and_then(|c| c.peer)
            && !iwarp
        {
            let status = CompletionStatus::Success;
            self.transmit(end, 0, Some(to), Packet::Answer { to, token, status });
        }
    }

    /// A request of the peer cannot be executed: tells it, and unless it is only early, ends the connection here.
    fn refuse_request(&mut self, end: End, token: u64, status: CompletionStatus, fault: WireFault) {
        let iwarp = (self.device(end)).is_some_and(|d| d.capabilities.fabric == Fabric::Iwarp);
        let Some(to) = self.conns.get(&end).and_then(|c| c.peer) else {
            return;
        };
        let packet = if iwarp {
            Packet::Terminate {
                to,
                token,
                status,
                fault,
            }
        } else {
            Packet::Answer { to, token, status }
        };
        self.transmit(end, 0, Some(to), packet);
        if iwarp || status != CompletionStatus::ReceiverNotReady {
            let WireFault {
                layer,
                error_type,
                code,
                ..
            } = fault;
            self.fail(
                end,
                RdmaError::FabricViolation {
                    layer,
                    error_type,
                    code,
                },
            );
        }
    }

    fn terminated(&mut self, end: End, token: u64, status: CompletionStatus, fault: WireFault) {
        let silent = (self.device(end)).is_some_and(|d| d.quirks.terminate_without_detail);
        if silent {
            return self.finish(end, RdmaError::ConnectionLost.into());
        }
        let qp = self.conns.get_mut(&end).and_then(|c| c.qp.as_mut());
        if let Some(request) = qp.and_then(|qp| qp.sends.iter_mut().find(|s| s.token == token)) {
            request.status = Some(status);
        }
        let error = RdmaError::Terminated {
            layer: fault.layer,
            error_type: fault.error_type,
            code: fault.code,
            operation: Some(fault.operation),
        };
        self.finish(end, error.into());
    }
}

impl Packet {
    fn bytes(&self) -> usize {
        match self {
            Self::Message { bytes, .. }
            | Self::Write { bytes, .. }
            | Self::ReadReply { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }
}

impl WireFault {
    /// A remote protection error of RDMAP.
    fn rdmap(code: u8, operation: RdmaOperation) -> Self {
        Self {
            layer: 0,
            error_type: 1,
            code,
            operation,
        }
    }

    /// An untagged buffer error of DDP.
    fn untagged(code: u8) -> Self {
        Self {
            layer: 1,
            error_type: 2,
            code,
            operation: RdmaOperation::Send,
        }
    }
}

fn gather(pieces: &Pieces) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|piece: &IoBytes| piece.iter().copied())
        .collect()
}
