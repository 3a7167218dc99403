//! Direct placement: file data goes from one machine's memory to the other's without passing through messages.

use std::fmt;
use std::ops::{Deref, Range};

use super::list::List;
use super::{Error, Gather, Op, OutMessage, SteeringTag, TrySendError};
use crate::engine::{Exposed, ExposedList};
use crate::proto::wire::BufferDescriptorV1;
use crate::rdma::{IoBuf, RemoteAccess};

/// Descriptors in one array, at most: SMB2 gives their length in 16 bits.
pub const MAX_DESCRIPTORS: usize = 4095;

/// RDMA on behalf of READ and WRITE requests. Buffers go in owned and come back owned; nobody waits inside a call,
/// and any number may be in flight.
pub trait DirectPlacement: Send + Sync {
    /// Whether a client may ask for `SMB2_CHANNEL_RDMA_V1_INVALIDATE`: the device's exposures can be invalidated by
    /// the peer, and that it happened can be verified.
    fn remote_invalidation(&self) -> bool;

    /// Client: gives the peer the right to read or to write exactly this memory, until it is reclaimed. The
    /// descriptors go into the request that is sent after this call.
    ///
    /// # Errors
    /// The memory is empty or of another domain, the device has no window left, or the connection has ended.
    fn expose(&self, memory: IoBuf, access: RemoteAccess) -> Result<Exposed, Error>;

    /// Client: as [`expose`](DirectPlacement::expose), for several buffers that are one piece of memory to the peer, with
    /// one descriptor each, in order.
    ///
    /// # Errors
    /// As for one buffer; or there are none, or they need more descriptors than [`MAX_DESCRIPTORS`]. Then none of
    /// them is exposed.
    fn expose_list(&self, memory: Vec<IoBuf>, access: RemoteAccess) -> Result<ExposedList, Error>;

    /// Server: writes `data` into the peer's memory. Done means that the buffers are reusable, not that the peer
    /// has the data: a message sent afterwards tells it.
    fn write(&self, data: Gather, to: Target) -> Op<Gather>;

    /// Server: reads the peer's memory into `range` of the buffer.
    fn read(&self, into: IoBuf, range: Range<usize>, from: Target) -> Op<IoBuf>;

    /// Server: writes `data` into the peer's memory and then sends the response that tells it, as one flow: nothing
    /// waits for the write's completion, the queue pair keeps the order. `invalidate`: the token of the request's
    /// first descriptor, if the client asked for its invalidation.
    ///
    /// The operation's end says that the buffers are reusable. A server that does not use them again may drop it: an
    /// error that is the caller's or the peer's ([`Error::ApiMisuse`], [`Error::BadDescriptors`]) is there at once
    /// ([`Op::try_take`]), then nothing was written and the response was **not** sent; any other ends the connection,
    /// and is seen there. The response does not wait for room in the send queue: what a server has under way at a time
    /// is limited by the credits that it gives its client.
    fn write_then_send(
        &self,
        data: Gather,
        to: Target,
        response: OutMessage<'_>,
        invalidate: Option<SteeringTag>,
    ) -> Op<Gather>;

    /// Server: as [`Transport::start_send`](super::Transport::start_send), for the final response of a request, and
    /// invalidates the token of its first descriptor with it. Where the device cannot, the message is sent without.
    /// [`TransportExt::respond`](super::TransportExt::respond) waits for room.
    ///
    /// # Errors
    /// As for `start_send`.
    fn send_invalidate(
        &self,
        message: OutMessage<'_>,
        token: SteeringTag,
    ) -> Result<(), TrySendError>;
}

/// A place in memory that the peer exposed: its descriptors, and how far into them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// The descriptors, in the order of the request; together they are one piece of memory.
    pub descriptors: Descriptors,
    /// Bytes from the start of that piece.
    pub offset: u64,
}

impl Target {
    /// All of what the descriptors describe.
    pub fn new(descriptors: impl Into<Descriptors>) -> Self {
        Self {
            descriptors: descriptors.into(),
            offset: 0,
        }
    }

    /// Bytes that the descriptors describe.
    pub fn len(&self) -> u64 {
        self.descriptors
            .iter()
            .map(|descriptor| u64::from(descriptor.length))
            .sum()
    }

    /// Whether they describe none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks a transfer of `len` bytes, of which `max` are allowed, as [`DirectPlacement`] does before anything is
    /// posted: for servers that refuse a request before they act on it. A transfer of 0 bytes checks the descriptors
    /// alone.
    ///
    /// # Errors
    /// The rule that the descriptors or the length break.
    pub fn check(&self, len: usize, max: u32) -> Result<(), BadDescriptors> {
        if self.descriptors.is_empty() {
            return Err(BadDescriptors::None);
        }
        if self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(BadDescriptors::TooMany(self.descriptors.len()));
        }
        for descriptor in self.descriptors.iter() {
            if descriptor.length == 0 {
                return Err(BadDescriptors::ZeroLength);
            }
            if descriptor
                .offset
                .checked_add(descriptor.length.into())
                .is_none()
            {
                return Err(BadDescriptors::AddressWraps);
            }
        }
        let len = len as u64;
        if len > u64::from(max) {
            return Err(BadDescriptors::TooLarge { len, max });
        }
        // At most 4,095 lengths of 32 bits: the sum cannot overflow.
        let available = self.len();
        if self
            .offset
            .checked_add(len)
            .is_none_or(|end| end > available)
        {
            return Err(BadDescriptors::BeyondEnd {
                offset: self.offset,
                len,
                available,
            });
        }
        Ok(())
    }
}

/// Descriptors in order. One of them allocates nothing.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Descriptors(List<BufferDescriptorV1>);

impl Deref for Descriptors {
    type Target = [BufferDescriptorV1];

    fn deref(&self) -> &[BufferDescriptorV1] {
        &self.0
    }
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<BufferDescriptorV1> for Descriptors {
    fn from_iter<I: IntoIterator<Item = BufferDescriptorV1>>(descriptors: I) -> Self {
        Self(descriptors.into_iter().collect())
    }
}

impl From<BufferDescriptorV1> for Descriptors {
    fn from(descriptor: BufferDescriptorV1) -> Self {
        [descriptor].into()
    }
}

impl<const N: usize> From<[BufferDescriptorV1; N]> for Descriptors {
    fn from(descriptors: [BufferDescriptorV1; N]) -> Self {
        descriptors.into_iter().collect()
    }
}

impl From<&[BufferDescriptorV1]> for Descriptors {
    fn from(descriptors: &[BufferDescriptorV1]) -> Self {
        descriptors.iter().copied().collect()
    }
}

impl From<Vec<BufferDescriptorV1>> for Descriptors {
    fn from(descriptors: Vec<BufferDescriptorV1>) -> Self {
        Self(descriptors.into())
    }
}

/// What is wrong with the peer's descriptors. Nothing was posted and the connection lives: the SMB layer answers
/// STATUS_INVALID_PARAMETER.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadDescriptors {
    /// There are none.
    #[error("there are no descriptors")]
    None,
    /// There are more than [`MAX_DESCRIPTORS`].
    #[error("{0} descriptors are more than {MAX_DESCRIPTORS}")]
    TooMany(usize),
    /// One describes no bytes.
    #[error("a descriptor has length 0")]
    ZeroLength,
    /// One reaches beyond the end of the address space.
    #[error("a descriptor's offset and length wrap around")]
    AddressWraps,
    /// The transfer is above the negotiated limit.
    #[error("a transfer of {len} bytes is above the negotiated {max}")]
    TooLarge {
        /// Bytes of the transfer.
        len: u64,
        /// The limit in bytes.
        max: u32,
    },
    /// The transfer does not fit what they describe.
    #[error("{len} bytes at {offset} are not within the {available} bytes described")]
    BeyondEnd {
        /// Bytes from the start.
        offset: u64,
        /// Bytes of the transfer.
        len: u64,
        /// Bytes described.
        available: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(parts: &[(u64, u32)], offset: u64) -> Target {
        let descriptors = parts
            .iter()
            .map(|(offset, length)| BufferDescriptorV1 {
                offset: *offset,
                token: 1,
                length: *length,
            })
            .collect();
        Target {
            descriptors,
            offset,
        }
    }

    #[test]
    fn bad_descriptors_are_told_apart() {
        let max = 1 << 20;
        assert_eq!(target(&[], 0).check(0, max), Err(BadDescriptors::None));
        assert_eq!(
            target(&[(0, 1); 4096], 0).check(1, max),
            Err(BadDescriptors::TooMany(4096))
        );
        assert_eq!(
            target(&[(0, 8), (9, 0)], 0).check(1, max),
            Err(BadDescriptors::ZeroLength)
        );
        assert_eq!(
            target(&[(u64::MAX - 3, 8)], 0).check(1, max),
            Err(BadDescriptors::AddressWraps)
        );
        assert_eq!(
            target(&[(0, u32::MAX)], 0).check(max as usize + 1, max),
            Err(BadDescriptors::TooLarge {
                len: max as u64 + 1,
                max
            })
        );
        for (offset, len) in [(0, 17), (16, 1), (17, 0), (u64::MAX, 1)] {
            assert_eq!(
                target(&[(0, 8), (100, 8)], offset).check(len, max),
                Err(BadDescriptors::BeyondEnd {
                    offset,
                    len: len as u64,
                    available: 16
                })
            );
        }
        assert_eq!(target(&[(0, 8), (100, 8)], 16).check(0, max), Ok(()));
        assert_eq!(target(&[(0, u32::MAX); 4095], 0).check(1, max), Ok(()));
    }
}
