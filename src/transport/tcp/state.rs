//! What the application's calls, the reader and the writer share.

use std::collections::VecDeque;
use std::net::{Shutdown, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::TcpOptions;
use super::bell::Bell;
use super::choice::Choice;
use super::guests::Guest;
use crate::rdma::IoBuf;
use crate::transport::{DisconnectReason, Gather, Info, Stats, Waiting};

/// How long one thread waits for what the other one knows.
const MOMENT: Duration = Duration::from_millis(100);

/// One connection.
pub(super) struct Shared {
    pub(super) stream: TcpStream,
    pub(super) info: Info,
    pub(super) options: TcpOptions,
    /// Its place among the connections of a listener.
    _guest: Option<Guest>,
    state: Mutex<State>,
    /// The reader may go on: room in the queue, a decision, the end.
    pub(super) reader: Bell,
    /// The writer may go on: something to send, a close, the reader's end.
    pub(super) writer: Bell,
}

#[derive(Default)]
pub(super) struct State {
    /// Messages that wait to be sent.
    pub(super) outgoing: VecDeque<Frame>,
    /// Bytes accepted and not yet written.
    pub(super) outgoing_bytes: usize,
    /// Messages that wait to be received.
    pub(super) incoming: VecDeque<Incoming>,
    /// What `incoming` holds: [`Incoming::cost`].
    pub(super) incoming_bytes: usize,
    /// Prefix of the messages whose payload waits for a decision; `None` while nobody asked.
    pub(super) prefix_len: Option<usize>,
    /// For the message after all of `incoming`, whose payload is still in the socket.
    pub(super) choice: Choice,
    /// Nothing more is received.
    pub(super) read_end: Option<ReadEnd>,
    /// Nothing more is accepted for sending.
    pub(super) send_closed: bool,
    /// This side closes in order, until then.
    pub(super) closing: Option<Instant>,
    /// This side gave up.
    pub(super) aborted: bool,
    /// Why the connection ended.
    pub(super) reason: Option<DisconnectReason>,
    pub(super) stats: Stats,
    pub(super) recv_waker: Option<Waker>,
    /// Who waits for room, or for the end.
    pub(super) ready: Waiting,
    pub(super) closed: Waiting,
}

/// A message to send.
#[derive(Debug)]
pub(super) enum Frame {
    Bytes(Bytes),
    Gather(Gather),
}

/// A message that arrived whole.
#[derive(Debug)]
pub(super) enum Incoming {
    Whole(Bytes),
    /// Whole because it was not wanted otherwise: nobody is asked again.
    Refused(Bytes),
    Placed {
        prefix: Bytes,
        payload: IoBuf,
    },
}

/// How receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadEnd {
    /// The peer ended its side after a whole message.
    InOrder,
    /// Anything else; the reason says what.
    Failed,
}

/// Who is to be woken once the lock is released.
#[derive(Default)]
#[must_use]
pub(super) struct Wake {
    receiver: Option<Waker>,
    ready: Waiting,
    closed: Waiting,
}

impl Wake {
    pub(super) fn wake(self) {
        let Self {
            receiver,
            mut ready,
            mut closed,
        } = self;
        let all = receiver.into_iter();
        all.chain(ready.drain())
            .chain(closed.drain())
            .for_each(Waker::wake);
    }
}

impl Shared {
    pub(super) fn new(
        stream: TcpStream,
        info: Info,
        options: TcpOptions,
        guest: Option<Guest>,
    ) -> Self {
        Self {
            stream,
            info,
            options,
            _guest: guest,
            state: Mutex::default(),
            reader: Bell::default(),
            writer: Bell::default(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid at every moment, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection ended, as the other thread was told or is about to be. `None`: it does
    /// not know either, or this side is closing.
    pub(super) fn reason_of_the_other(&self, told: &Bell) -> Option<DisconnectReason> {
        let until = Instant::now() + MOMENT;
        let mut state = self.lock();
        while state.reason.is_none() && state.closing.is_none() && !state.aborted {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = told.wait_for(state, left);
        }
        state.reason.clone()
    }

    /// Ends both directions of the socket, which wakes whoever is blocked on it.
    pub(super) fn shut_down(&self) {
        // An error means that it has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl State {
    /// Latches the reason, if there is none yet; nothing more can be sent.
    pub(super) fn end(&mut self, reason: DisconnectReason) -> Wake {
        self.reason.get_or_insert(reason);
        self.send_closed = true;
        self.outgoing.clear();
        self.outgoing_bytes = 0;
        self.wake_all()
    }

    pub(super) fn wake_all(&mut self) -> Wake {
        Wake {
            receiver: self.recv_waker.take(),
            ready: std::mem::take(&mut self.ready),
            closed: std::mem::take(&mut self.closed),
        }
    }

    pub(super) fn wake_receiver(&mut self) -> Wake {
        Wake {
            receiver: self.recv_waker.take(),
            ..Wake::default()
        }
    }

    pub(super) fn wake_sender(&mut self) -> Wake {
        Wake {
            ready: std::mem::take(&mut self.ready),
            ..Wake::default()
        }
    }

    /// The reason, or what it will be while a close in order is still at work.
    pub(super) fn reason(&self) -> DisconnectReason {
        self.reason.clone().unwrap_or(DisconnectReason::Local)
    }
}

impl Frame {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Gather(gather) => gather.len(),
        }
    }
}

impl Incoming {
    /// Bytes of memory that it holds while it waits: the queue is bounded by these, so that a peer with many small messages
    /// cannot fill more than one with large ones.
    pub(super) fn cost(&self) -> usize {
        let bytes = match self {
            Self::Whole(bytes) | Self::Refused(bytes) => bytes.len(),
            Self::Placed { prefix, payload } => prefix.len() + payload.len(),
        };
        // Its place in the queue, and what allocating the bytes costs.
        bytes + size_of::<Self>() + 64
    }
}
