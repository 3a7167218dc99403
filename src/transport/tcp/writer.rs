//! The thread that writes: whole messages in order of acceptance, then the close in order.

use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::frame::{self, HEADER};
use super::state::{Frame, Shared};
use crate::transport::DisconnectReason;

/// A blocked write looks so often whether the connection was closed meanwhile.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Bytes that are written together, unless one message alone is larger.
const BATCH: usize = 256 << 10;
/// Messages that are written together; with header and body they stay below the system's limit of a
/// gather list.
const BATCH_MESSAGES: usize = 128;

/// Runs until the connection has ended.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut batch = Vec::with_capacity(BATCH_MESSAGES);
    while next_batch(shared, &mut batch) {
        let result = write_batch(shared, &batch);
        let bytes: usize = batch.drain(..).map(|frame| frame.len()).sum();
        let mut state = shared.lock();
        let wake = match result {
            Ok(()) => {
                state.outgoing_bytes = state.outgoing_bytes.saturating_sub(bytes);
                if state.outgoing_bytes < shared.options.send_queue {
                    state.wake_sender()
                } else {
                    continue;
                }
            }
            // Only sending has ended: the reader goes on, so that a last message which the peer
            // sent before it went away is received.
            Err(error) => state.end(error),
        };
        drop(state);
        shared.reader.ring();
        wake.wake();
    }
    finish(shared);
}

/// Waits for messages; `false` when nothing more is to be written.
fn next_batch(shared: &Shared, batch: &mut Vec<Frame>) -> bool {
    let mut state = shared.lock();
    loop {
        let mut bytes = 0;
        while let Some(frame) = state.outgoing.front() {
            if !batch.is_empty() && bytes + frame.len() > BATCH || batch.len() == BATCH_MESSAGES {
                break;
            }
            bytes += frame.len();
            batch.extend(state.outgoing.pop_front());
        }
        if !batch.is_empty() {
            return true;
        }
        if state.send_closed {
            return false;
        }
        state = shared.writer.wait(state);
    }
}

fn write_batch(shared: &Shared, batch: &[Frame]) -> Result<(), DisconnectReason> {
    let headers: Vec<[u8; HEADER]> = batch.iter().map(|f| frame::encode(f.len())).collect();
    let mut slices = Vec::with_capacity(2 * batch.len());
    for (header, frame) in headers.iter().zip(batch) {
        slices.push(IoSlice::new(header));
        match frame {
            Frame::Bytes(bytes) => slices.push(IoSlice::new(bytes)),
            Frame::Gather(gather) => {
                slices.extend(gather.pieces().iter().map(|piece| IoSlice::new(piece)));
            }
        }
    }
    write_all(shared, &mut slices)
}

fn write_all(shared: &Shared, mut slices: &mut [IoSlice<'_>]) -> Result<(), DisconnectReason> {
    while !slices.is_empty() {
        match (&shared.stream).write_vectored(slices) {
            Ok(0) => return Err(DisconnectReason::Os { errno: libc::EPIPE }),
            Ok(written) => IoSlice::advance_slices(&mut slices, written),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Not the kind: an unanswered keepalive is of another than a blocked write.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                let state = shared.lock();
                let late = state
                    .closing
                    .is_some_and(|deadline| Instant::now() >= deadline);
                if state.aborted || late {
                    return Err(DisconnectReason::Local);
                }
            }
            Err(error) => {
                let reason = reason(&error);
                // The system tells why a connection ended once: this says that the reader knows.
                let known = (error.raw_os_error() == Some(libc::EPIPE))
                    .then(|| shared.reason_of_the_other(&shared.writer));
                return Err(known.flatten().unwrap_or(reason));
            }
        }
    }
    Ok(())
}

/// After the last message: tells the peer, waits for its end, so that no unread byte turns the
/// close into a reset that would destroy what the peer has not read yet.
fn finish(shared: &Shared) {
    let mut state = shared.lock();
    if let Some(deadline) = state.closing.filter(|_| !state.aborted) {
        drop(state);
        // An error means that the connection has ended, which the reader sees too.
        let _ = shared.stream.shutdown(Shutdown::Write);
        state = shared.lock();
        while state.read_end.is_none() && !state.aborted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = shared.writer.wait_for(state, left);
        }
        let wake = state.end(DisconnectReason::Local);
        drop(state);
        shared.shut_down();
        wake.wake();
    }
}

/// What a failed call on the socket says about the connection.
pub(super) fn reason(error: &io::Error) -> DisconnectReason {
    match error.raw_os_error().unwrap_or(libc::EIO) {
        libc::ETIMEDOUT => DisconnectReason::NoAnswer,
        errno => DisconnectReason::Os { errno },
    }
}
