#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::rdma::{RdmaError, RdmaOperation};

fn slab(slot_size: usize, count: u32) -> Slab {
    Slab::new(
        &PlainDomain::shared(),
        slot_size,
        count,
        SlabOptions::default(),
    )
    .unwrap()
}

#[test]
fn slots_are_disjoint_and_come_back() {
    let slab = slab(100, 3);
    let mut all: Vec<IoBuf> = std::iter::from_fn(|| slab.take()).collect();
    assert_eq!((all.len(), slab.free(), slab.slot_size()), (3, 0, 128));
    for (i, buf) in all.iter_mut().enumerate() {
        buf.fill(i as u8 + 1);
    }
    for (i, buf) in all.iter().enumerate() {
        assert!(buf.iter().all(|b| *b == i as u8 + 1));
    }
    drop(all);
    assert_eq!(slab.free(), 3);
}

#[test]
fn frozen_bytes_keep_their_slot_until_the_last_clone() {
    let slab = slab(64, 1);
    let mut buf = slab.take().unwrap();
    buf[..5].copy_from_slice(b"hello");
    buf.set_len(5);
    let bytes = buf.freeze();
    let part = bytes.slice(1..3);
    let whole = bytes.clone().into_bytes();
    drop(bytes);
    assert_eq!(
        (&part[..], &whole[..], slab.free()),
        (&b"el"[..], &b"hello"[..], 0)
    );
    drop((part, whole));
    assert_eq!(slab.free(), 1);
}

#[test]
fn only_the_last_holder_gets_the_buffer_back() {
    let slab = slab(64, 1);
    let bytes = slab.take().unwrap().freeze();
    let other = bytes.clone();
    let bytes = bytes.try_into_buf().unwrap_err();
    drop(other);
    let pin = bytes.try_into_buf().unwrap().pin();
    let piece = pin.slice(8..16);
    assert_eq!(
        piece.address().as_ptr() as usize,
        pin.address().as_ptr() as usize + 8
    );
    let pin = pin.unpin().unwrap_err();
    drop(piece);
    assert_eq!(pin.unpin().unwrap().len(), 64);
}

#[test]
fn a_pin_is_copied_to_and_from_within_its_range() {
    let slab = slab(64, 1);
    let mut buf = slab.take().unwrap();
    buf.fill(0);
    let pin = buf.pin();
    let part = pin.slice(8..16);
    part.copy_in(2, b"abc");
    let mut seen = [9; 5];
    pin.copy_out(9, &mut seen);
    assert_eq!(&seen, b"\0abc\0");
    let outside =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part.copy_in(6, b"abc")));
    assert!(outside.is_err());
}

#[test]
fn a_registration_of_its_own_keeps_the_memory() {
    let slab = slab(64, 1);
    let pin = slab.take().unwrap().pin();
    let registration = pin.register(RemoteAccess::Write).unwrap();
    let pin = pin.unpin().unwrap_err();
    drop(pin);
    assert_eq!(slab.free(), 0);
    drop(registration);
    assert_eq!(slab.free(), 1);
}

#[test]
fn slots_outlive_the_slab() {
    let slab = slab(64, 2);
    let mut buf = slab.take().unwrap();
    drop(slab);
    buf.fill(9);
    assert!(buf.iter().all(|b| *b == 9));
}

/// Bytes that tell when they are gone.
struct Owner(Arc<AtomicUsize>, Box<[u8]>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn owned(dropped: &Arc<AtomicUsize>) -> (NonNull<u8>, Box<Owner>) {
    let mut owner = Box::new(Owner(dropped.clone(), vec![7; 300].into()));
    (NonNull::new(owner.1.as_mut_ptr()).unwrap(), owner)
}

#[test]
fn the_owner_of_brought_memory_lives_as_long_as_its_buffers() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let budget = MemoryBudget::new(500);
    let domain = PlainDomain::shared();
    let memory = || {
        let (base, owner) = owned(&dropped);
        // SAFETY: the boxed bytes live in `owner`, which nobody touches any more.
        unsafe { UserMemory::new(base, 300, owner) }
    };
    let mut buf = memory().register(&domain, Some(&budget)).unwrap();
    buf[0] = 1;
    assert_eq!((buf.len(), buf[299], budget.used()), (300, 7, 300));
    let pin = buf.pin();
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    // What the budget refuses is let go.
    let refused = memory().register(&domain, Some(&budget)).unwrap_err();
    let (limit, used, needed) = (500, 300, 300);
    assert_eq!(
        refused,
        RdmaError::MemoryBudget {
            limit,
            used,
            needed
        }
    );
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    drop(pin);
    assert_eq!((dropped.load(Ordering::SeqCst), budget.used()), (2, 0));
}

#[test]
fn memory_that_is_only_read_is_shared_and_never_becomes_a_buffer() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let (base, owner) = owned(&dropped);
    let owner: Arc<Owner> = owner.into();
    let both: Vec<IoBytes> = (0..2)
        .map(|_| {
            // SAFETY: the boxed bytes live in the shared owner, and nobody changes them.
            let memory = unsafe { ReadOnlyMemory::new(base, 300, Box::new(owner.clone())) };
            memory.register(&PlainDomain::shared(), None).unwrap()
        })
        .collect();
    drop(owner);
    let [first, second] = <[IoBytes; 2]>::try_from(both).unwrap();
    let part = first.slice(1..3);
    drop(first);
    let part = part.try_into_buf().unwrap_err();
    assert_eq!((&part[..], second.len()), (&[7, 7][..], 300));
    drop(part);
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    drop(second);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
}

#[test]
fn threads_take_and_give_back() {
    let slab = slab(64, 8);
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let slab = &slab;
            scope.spawn(move || {
                for _ in 0..10_000 {
                    if let Some(mut buf) = slab.take() {
                        buf.fill(t);
                        assert!(buf.iter().all(|b| *b == t));
                    }
                }
            });
        }
    });
    assert_eq!(slab.free(), 8);
}

#[test]
fn more_than_there_are_addresses_is_refused() {
    let domain = PlainDomain::shared();
    for (size, count) in [
        (usize::MAX, 1),
        (1 << 62, 8),
        (usize::MAX / 2, 3),
        (1 << 60, 1),
    ] {
        for huge_pages in [false, true] {
            let options = SlabOptions {
                huge_pages,
                ..SlabOptions::default()
            };
            let error = Slab::new(&domain, size, count, options).unwrap_err();
            let expected = RdmaError::Os {
                operation: RdmaOperation::AllocateMemory,
                errno: libc::ENOMEM,
            };
            assert_eq!(error, expected);
        }
    }
}
