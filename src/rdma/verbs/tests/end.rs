//! One end of a connection with its memory, and the requests that it makes.

use std::collections::VecDeque;
use std::sync::Arc;

use super::world::{Who, World};
use crate::rdma::{
    Capabilities, CompletionStatus, ConnId, Domain, IoBuf, IoBytes, IoPin, Operation, Pieces,
    Provider, QpOptions, RemoteAccess, RemoteAddress, Slab, SlabOptions, Window, WindowId,
};

/// Bytes of an exposure.
pub(super) const EXPOSED: usize = 40_000;

/// One end of a connection with its memory.
pub(super) struct End {
    pub(super) who: Who,
    pub(super) conn: ConnId,
    pub(super) capabilities: Capabilities,
    pub(super) domain: Arc<dyn Domain>,
    pub(super) messages: Slab,
    pub(super) bulk: Slab,
}

impl End {
    pub(super) fn new(who: Who, world: &mut World, conn: ConnId) -> Self {
        let verbs = &mut world.side(who).verbs;
        let capabilities = verbs.capabilities(conn).unwrap().clone();
        let domain = verbs.domain(conn).unwrap();
        let options = QpOptions {
            send_depth: 64,
            receive_depth: 64,
            ..QpOptions::default()
        };
        verbs.create_qp(conn, &options).unwrap();
        let messages = Slab::new(&domain, 2048, 32, SlabOptions::default()).unwrap();
        let bulk = Slab::new(&domain, 64 << 10, 4, SlabOptions::default()).unwrap();
        let mut buffers: VecDeque<IoBuf> = (0..16).map(|_| messages.take().unwrap()).collect();
        verbs.post_receive(conn, &mut buffers).unwrap();
        assert!(buffers.is_empty());
        Self {
            who,
            conn,
            capabilities,
            domain,
            messages,
            bulk,
        }
    }

    pub(super) fn bytes(&self, len: usize, seed: u8) -> IoBytes {
        let slab = if len <= 2048 {
            &self.messages
        } else {
            &self.bulk
        };
        let mut buf = slab.take().unwrap();
        buf.set_len(len);
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = pattern(i, seed);
        }
        buf.freeze()
    }

    pub(super) fn send(&self, len: usize, seed: u8) -> Operation {
        Operation::Send {
            message: Pieces::one(self.bytes(len, seed)),
            invalidate: None,
            solicited: false,
        }
    }

    pub(super) fn send_invalidate(&self, key: u32) -> Operation {
        Operation::Send {
            message: Pieces::one(self.bytes(16, 0)),
            invalidate: Some(key),
            solicited: false,
        }
    }

    pub(super) fn write(&self, len: usize, seed: u8, window: &Window, offset: u64) -> Operation {
        Operation::Write {
            from: Pieces::one(self.bytes(len, seed)),
            to: RemoteAddress {
                address: window.address.wrapping_add(offset),
                key: window.key,
            },
        }
    }

    pub(super) fn read(&self, len: usize, window: &Window) -> Operation {
        let mut buf = self.bulk.take().unwrap();
        buf.fill(0);
        buf.set_len(len);
        Operation::Read {
            into: buf.pin(),
            from: RemoteAddress {
                address: window.address,
                key: window.key,
            },
        }
    }

    /// Exposes `range` of a fresh buffer to the peer; bound already where need be.
    pub(super) fn expose(&self, world: &mut World, access: RemoteAccess, seed: u8) -> Window {
        let mut buf = self.bulk.take().unwrap();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = pattern(i, seed);
        }
        // Not from the first byte, and not to the last.
        let pin = buf.pin().slice(100..100 + EXPOSED);
        let mut prepared = pin.prepare(self.capabilities.exposure, access).unwrap();
        let verbs = &mut world.side(self.who).verbs;
        let window = verbs
            .open_window(self.conn, pin, access, &mut prepared)
            .unwrap();
        assert_eq!(window.len as usize, EXPOSED);
        if window.needs_bind {
            let bind = Operation::Bind { window: window.id };
            assert_eq!(world.execute(self, vec![bind]), CompletionStatus::Success);
        }
        window
    }

    pub(super) fn close_window(&self, world: &mut World, id: WindowId) -> Option<IoPin> {
        world.side(self.who).verbs.close_window(self.conn, id)
    }
}

pub(super) fn pattern(i: usize, seed: u8) -> u8 {
    (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed
}

pub(super) fn check(bytes: &[u8], seed: u8) {
    assert!(
        bytes
            .iter()
            .enumerate()
            .all(|(i, b)| *b == pattern(i, seed))
    );
}
