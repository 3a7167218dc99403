//! MPA start-up over a socket: the pieces that read and write whole frames.

use std::io::{self, IoSlice, IoSliceMut};

use super::mpa::{self, Frame, Kind, MAX_FRAME, MpaError};
use super::sys::Socket;

/// A frame that comes in, in any segmentation.
#[derive(Debug)]
pub(super) struct Incomplete {
    kind: Kind,
    bytes: Vec<u8>,
}

/// Why no frame will come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HandshakeError {
    /// The peer closed the connection.
    Closed,
    /// The network failed.
    Lost,
    /// Not a valid frame.
    Invalid(MpaError),
}

impl Incomplete {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            bytes: Vec::new(),
        }
    }

    /// Whether not a byte of it has come.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads what is there. `Ok(None)`: more has to come.
    pub(super) fn read(&mut self, socket: &Socket) -> Result<Option<Frame>, HandshakeError> {
        loop {
            // One byte more than a frame can have: bytes behind the frame must not have come yet.
            let mut chunk = [0; MAX_FRAME + 1];
            let read = match socket.read(&mut [IoSliceMut::new(&mut chunk)]) {
                Ok(0) => return Err(HandshakeError::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(HandshakeError::Lost),
            };
            self.bytes.extend_from_slice(&chunk[..read]);
            match Frame::parse(self.kind, &self.bytes).map_err(HandshakeError::Invalid)? {
                None => {}
                // M09: neither side may have sent an FPDU yet.
                Some((_, used)) if used < self.bytes.len() => {
                    return Err(HandshakeError::Invalid(MpaError::ExtraBytes));
                }
                Some((frame, _)) => return Ok(Some(frame)),
            }
        }
    }
}

/// Writes a frame whole, which a socket that has sent nothing else always takes.
pub(super) fn write(socket: &Socket, frame: &Frame) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(MAX_FRAME);
    frame.encode(&mut bytes);
    if socket.write(&[IoSlice::new(&bytes)], false)? == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// A valid Request that awaits its answer. Dropping it refuses.
#[derive(Debug)]
pub(super) struct Request {
    socket: Option<Socket>,
    frame: Frame,
}

impl Request {
    pub(super) fn new(socket: Socket, frame: Frame) -> Self {
        Self {
            socket: Some(socket),
            frame,
        }
    }

    pub(super) fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The socket, to be answered by the caller.
    pub(super) fn into_socket(mut self) -> Option<Socket> {
        self.socket.take()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            // Where it cannot be told, the closed connection tells as much.
            let _ = write(&socket, &mpa::reject(&self.frame, Vec::new()));
            socket.finish();
        }
    }
}
