//! Access to memory that is exposed to the peer: the one place where the software RNIC, in the part
//! of a device, looks into an [`IoPin`].
//!
//! The engine's contract for pins is that of a device: nobody holds a slice of the memory while it
//! is pinned, the memory lives as long as the pin, and the peer's writes into one buffer come
//! through one provider. Slices made here live for one copy, checksum or system call.
#![allow(unsafe_code)]

use std::ops::Range;

use crate::rdma::IoPin;

/// The bytes of a part of a pin.
///
/// # Panics
/// If the range is not within the pin.
pub(super) fn bytes(pin: &IoPin, range: Range<usize>) -> &[u8] {
    check(pin, &range);
    // SAFETY: the range is within the pin (checked), whose memory is initialised and lives as long
    // as the pin; the caller drops the slice before the provider places anything (module
    // documentation).
    unsafe { std::slice::from_raw_parts(pin.address().as_ptr().add(range.start), range.len()) }
}

/// The bytes of a part of a pin, to be written as a device would. The pin is borrowed mutably, so
/// that the provider itself makes no second slice.
///
/// # Panics
/// If the range is not within the pin.
pub(super) fn bytes_mut(pin: &mut IoPin, range: Range<usize>) -> &mut [u8] {
    check(pin, &range);
    // SAFETY: as in `bytes`; a pin excludes other slices of its memory, and `&mut` other accesses
    // through it.
    unsafe { std::slice::from_raw_parts_mut(pin.address().as_ptr().add(range.start), range.len()) }
}

fn check(pin: &IoPin, range: &Range<usize>) {
    assert!(
        range.start <= range.end && range.end <= pin.len(),
        "{range:?} of {} pinned bytes",
        pin.len()
    );
}
