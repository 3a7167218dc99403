//! The thread that reads: frames into messages, no further ahead than the application allows.

use std::io::{ErrorKind, Read};
use std::sync::Arc;

use bytes::Bytes;

use super::choice::Decision;
use super::frame::{self, HEADER};
use super::state::{Incoming, ReadEnd, Shared};
use super::writer::reason;
use super::{Heap, MAX_PREFIX};
use crate::rdma::IoBuf;
use crate::transport::DisconnectReason;

/// Bytes read at once while messages are small.
const STAGE: usize = 64 << 10;
/// Bytes read ahead after a large message, whose payload is better read to where it belongs.
const STAGE_AFTER_LARGE: usize = HEADER + MAX_PREFIX;
/// Messages up to this are copied from the stage; larger ones get a buffer of their own.
const SMALL: usize = 4 << 10;

/// Runs until nothing more can be received.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut stage = Stage {
        shared,
        bytes: vec![0; STAGE],
        start: 0,
        end: 0,
        ahead: STAGE,
    };
    let failure = loop {
        match next(shared, &mut stage) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(failure) => break Some(failure),
        }
    };
    let mut state = shared.lock();
    // A stream that this side shut down ends too.
    let ours = state.aborted || state.reason == Some(DisconnectReason::Local);
    let failure = failure.or(ours.then_some(DisconnectReason::Local));
    let wake = match failure {
        None => {
            state.read_end = Some(ReadEnd::InOrder);
            // The answer to our own end is not the peer's wish. Sending stays possible: the peer
            // has ended its own side only, and may wait for answers.
            if state.closing.is_none() {
                state.reason.get_or_insert(DisconnectReason::Peer);
            }
            state.wake_all()
        }
        Some(failure) => {
            state.read_end = Some(ReadEnd::Failed);
            state.end(failure)
        }
    };
    let in_order = state.read_end == Some(ReadEnd::InOrder);
    drop(state);
    if !in_order {
        shared.shut_down();
    }
    shared.writer.ring();
    wake.wake();
}

/// Receives one message; `false` at the end of the stream.
fn next(shared: &Arc<Shared>, stage: &mut Stage<'_>) -> Result<bool, DisconnectReason> {
    if !stage.fill(HEADER)? {
        return Ok(false);
    }
    let mut header = [0; HEADER];
    header.copy_from_slice(stage.peek(HEADER));
    stage.take(HEADER);
    let len = frame::decode(header, shared.options.max_receive)?;
    let message = match wait_for_room(shared)? {
        Some(prefix_len) if len > prefix_len && stage.len() < len => {
            receive_placed(shared, stage, prefix_len, len)?
        }
        _ => Incoming::Whole(receive_whole(&shared.options.heap, stage, len)?),
    };
    stage.ahead = if len > STAGE / 4 {
        STAGE_AFTER_LARGE
    } else {
        STAGE
    };
    let mut state = shared.lock();
    if state.closing.is_some() && state.incoming_bytes >= shared.options.receive_queue {
        // Nobody takes it any more, and the peer must be able to go on to its end.
        return Ok(true);
    }
    state.stats.messages_received += 1;
    state.stats.receives += 1;
    state.stats.bytes_received += len as u64;
    match len <= SMALL {
        true => state.stats.copied_bytes += len as u64,
        false => state.stats.zero_copy_bytes += len as u64,
    }
    state.incoming_bytes += message.cost();
    state.incoming.push_back(message);
    let wake = state.wake_receiver();
    drop(state);
    wake.wake();
    Ok(true)
}

/// Waits until the application has taken enough; the length of the prefix if payloads are to be
/// placed.
fn wait_for_room(shared: &Shared) -> Result<Option<usize>, DisconnectReason> {
    let mut state = shared.lock();
    loop {
        if state.aborted {
            return Err(DisconnectReason::Local);
        }
        if state.incoming_bytes < shared.options.receive_queue || state.closing.is_some() {
            return Ok(state.prefix_len);
        }
        state = shared.reader.wait(state);
    }
}

fn receive_whole(
    heap: &Heap,
    stage: &mut Stage<'_>,
    len: usize,
) -> Result<Bytes, DisconnectReason> {
    if len <= SMALL {
        stage.fill_inside(len)?;
        let message = Bytes::copy_from_slice(stage.peek(len));
        stage.take(len);
        return Ok(message);
    }
    let mut buf = heap.take(len)?;
    stage.read_into(&mut buf)?;
    Ok(buf.freeze().into_bytes())
}

/// Shows the prefix to the application, which says where the rest goes.
fn receive_placed(
    shared: &Shared,
    stage: &mut Stage<'_>,
    prefix_len: usize,
    len: usize,
) -> Result<Incoming, DisconnectReason> {
    stage.fill_inside(prefix_len)?;
    let prefix = Bytes::copy_from_slice(stage.peek(prefix_len));
    match decide(shared, prefix.clone())? {
        Decision::Into(mut payload) if payload.capacity() >= len - prefix_len => {
            stage.take(prefix_len);
            payload.set_len(len - prefix_len);
            stage.read_into(&mut payload)?;
            Ok(Incoming::Placed { prefix, payload })
        }
        _ => Ok(Incoming::Refused(receive_whole(
            &shared.options.heap,
            stage,
            len,
        )?)),
    }
}

fn decide(shared: &Shared, prefix: Bytes) -> Result<Decision, DisconnectReason> {
    let mut state = shared.lock();
    state.choice.put(prefix);
    let wake = state.wake_receiver();
    drop(state);
    wake.wake();
    let mut state = shared.lock();
    let decision = loop {
        let decision = state.choice.take();
        if decision.is_some() || state.aborted || state.closing.is_some() {
            state.choice.take_back();
            break decision;
        }
        state = shared.reader.wait(state);
    };
    let aborted = state.aborted;
    // What owns a buffer's memory is the application's, and goes without the lock.
    drop(state);
    if aborted {
        return Err(DisconnectReason::Local);
    }
    Ok(decision.unwrap_or(Decision::Heap))
}

/// Bytes that were read and not used yet.
struct Stage<'a> {
    shared: &'a Shared,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// How far to read ahead.
    ahead: usize,
}

impl Stage<'_> {
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn peek(&self, len: usize) -> &[u8] {
        &self.bytes[self.start..self.start + len]
    }

    fn take(&mut self, len: usize) {
        self.start += len;
    }

    /// Reads until `len` bytes are here; `false` if the stream ended before the first of them.
    fn fill(&mut self, len: usize) -> Result<bool, DisconnectReason> {
        if self.start + len > self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        } else if self.len() == 0 {
            (self.start, self.end) = (0, 0);
        }
        while self.len() < len {
            let upto = (self.start + self.ahead.max(len)).min(self.bytes.len());
            let read = read(self.shared, &mut self.bytes[self.end..upto])?;
            self.end += read;
            if read == 0 {
                return if self.len() == 0 {
                    Ok(false)
                } else {
                    Err(cut_off(self.shared))
                };
            }
        }
        Ok(true)
    }

    /// As `fill`, where the end of the stream is an error.
    fn fill_inside(&mut self, len: usize) -> Result<(), DisconnectReason> {
        if self.fill(len)? {
            Ok(())
        } else {
            Err(cut_off(self.shared))
        }
    }

    /// Fills all of a buffer, straight from the socket but for what is here already.
    fn read_into(&mut self, buf: &mut IoBuf) -> Result<(), DisconnectReason> {
        let mut filled = self.len().min(buf.len());
        buf[..filled].copy_from_slice(self.peek(filled));
        self.take(filled);
        while filled < buf.len() {
            match read(self.shared, &mut buf[filled..])? {
                0 => return Err(cut_off(self.shared)),
                read => filled += read,
            }
        }
        Ok(())
    }
}

fn read(shared: &Shared, into: &mut [u8]) -> Result<usize, DisconnectReason> {
    loop {
        match (&shared.stream).read(into) {
            // Without a peer this is no end in order: the system tells why a connection ended once,
            // and the writer was told.
            Ok(0) if shared.stream.peer_addr().is_err() => {
                return match shared.reason_of_the_other(&shared.reader) {
                    Some(reason) => Err(reason),
                    None => Ok(0),
                };
            }
            Ok(read) => return Ok(read),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(reason(&error)),
        }
    }
}

/// The stream ended within a message, by the peer unless this side shut the socket down.
fn cut_off(shared: &Shared) -> DisconnectReason {
    if shared.lock().aborted {
        DisconnectReason::Local
    } else {
        DisconnectReason::CutOff
    }
}
