#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

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

#[test]
fn the_owner_of_brought_memory_lives_as_long_as_its_buffers() {
    struct Owner(Arc<AtomicUsize>, Box<[u8]>);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let mut owner = Box::new(Owner(dropped.clone(), vec![7; 300].into()));
    let base = NonNull::new(owner.1.as_mut_ptr()).unwrap();
    // SAFETY: the boxed bytes live in `owner`, which nobody touches any more.
    let slab = unsafe { Slab::from_owner(&PlainDomain::shared(), base, 300, owner) }.unwrap();
    let buf = slab.take().unwrap();
    drop(slab);
    assert_eq!(
        (buf.len(), buf[299], dropped.load(Ordering::SeqCst)),
        (300, 7, 0)
    );
    drop(buf);
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
