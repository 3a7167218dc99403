//! What devices do other than the specifications say, by vendor number. `quirk_list` has what people are told, and the tests.

use super::VerbsOptions;
use super::quirk_list::{self as list, Quirk};
use super::sys;
use crate::rdma::Fabric;

/// Soft-RoCE. Kernels before 5.12 report vendor 0.
pub(super) const VENDOR_RXE: u32 = 0xff_ffff;
/// Soft-iWARP.
pub(super) const VENDOR_SIW: u32 = 0x62_6d74;
/// Broadcom NetXtreme (bnxt_re).
pub(super) const VENDOR_BROADCOM: u32 = 0x14e4;
/// Chelsio (cxgb4).
pub(super) const VENDOR_CHELSIO: u32 = 0x1425;
/// QLogic and Marvell (qedr).
pub(super) const VENDOR_QLOGIC: u32 = 0x1077;
/// HiSilicon (hns).
pub(super) const VENDOR_HISILICON: u32 = 0x19e5;

/// How a device differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quirks {
    /// Bits of `wc_flags` of which any says that the message invalidated a key; 0: never told.
    pub(super) invalidation_bits: u32,
    /// Whether type-2B windows may be used when the device says that it has them.
    pub(super) windows: bool,
    /// Whether it may send with invalidate when the device says that it can.
    pub(super) send_with_invalidate: bool,
    /// Whether the local end of an RDMA read must allow remote writing.
    pub(super) read_sink_is_remote: bool,
    /// Whether a window lets the peer at all of the region that it is bound to.
    pub(super) window_ignores_range: bool,
    /// Whether `rdma_connect` sleeps until the peer has answered.
    pub(super) connect_sleeps: bool,
    /// Bytes of payload from which a request must be signalled: without, its memory is still read after a younger
    /// request's completion has said that it was done.
    pub(super) signalled_from: usize,
    /// Whether an acceptor's first message may lie unread until more arrives.
    pub(super) overlooks_first: bool,
    /// Whether what a queue pair has under way does not come back once its connection was closed.
    pub(super) closing_keeps_reads: bool,
    /// Whether all that a flush brings is in the completion queue when it returns, and the rest never comes.
    pub(super) flushes_at_once: bool,
    /// For people.
    pub(super) notes: Vec<&'static str>,
}

impl Quirks {
    /// Those of a device, used with these options.
    pub(super) fn of(vendor: u32, fabric: Fabric, options: &VerbsOptions) -> Self {
        let iwarp = fabric == Fabric::Iwarp;
        let mut quirks = Self {
            invalidation_bits: sys::WC_WITH_INV,
            windows: true,
            send_with_invalidate: true,
            // The read's sink tag goes over the wire and the answer comes as tagged segments: RFC 5040 5.2.1
            // asks for write access. Memory of such devices is registered per connection for this reason.
            read_sink_is_remote: iwarp,
            window_ignores_range: false,
            connect_sleeps: false,
            signalled_from: usize::MAX,
            overlooks_first: false,
            closing_keeps_reads: false,
            flushes_at_once: false,
            notes: Vec::new(),
        };
        if iwarp {
            quirks.has(&list::IWARP_DEPTHS);
            quirks.has(&list::IWARP_SLEEPS);
            quirks.has(&list::SIW_OVERLOOKS);
        }
        match (vendor, iwarp) {
            (VENDOR_RXE | 0, false) => {
                // The driver copies the kernel's flag (1 << 2) to user space, where it has another meaning.
                quirks.invalidation_bits |= 1 << 2;
                // It looks the window up for the direction, and then checks the range of the region only.
                quirks.window_ignores_range = true;
                // A peer's invalidation is not checked against the window's connection, nor against its state, and one
                // that is free already has the kernel follow a null pointer. Its rkey is the peer's to know or to guess.
                quirks.windows = options.soft_roce_windows;
                if !quirks.windows {
                    quirks.has(&list::RXE_NO_WINDOWS);
                    return quirks;
                }
                quirks.has(&list::RXE_FREE_WINDOW);
                quirks.has(&list::RXE_RANGE);
                quirks.has(&list::RXE_BIT);
                // Its requester goes back to the oldest request that is not acknowledged, and does not step over local
                // ones that are done. An invalidation waits for its elders there, a bind does not.
                quirks.has(&list::RXE_REPEATED_BIND);
            }
            (VENDOR_SIW, true) => {
                quirks.invalidation_bits = 0;
                quirks.windows = false;
                // Its check of the sink is for local write access only, so that remote rights are not given.
                quirks.read_sink_is_remote = false;
                quirks.connect_sleeps = true;
                quirks.overlooks_first = true;
                quirks.has(&list::SIW_OVERLOOKS_FIRST);
                // Its state between closing and closed flushes the send queue only if a request is being sent: a Read that
                // waits for its answer is none.
                quirks.closing_keeps_reads = true;
                quirks.has(&list::SIW_CLOSING);
                // Its queues are memory of the process, too: it looks into them at the connection's end, and not again.
                quirks.flushes_at_once = true;
                quirks.has(&list::SIW_LATE);
                // What is not signalled it gives to TCP by reference, from one page on, and TCP sends and repeats it
                // when it likes. The payload of a signalled request is copied.
                quirks.signalled_from = 4096;
                quirks.has(&list::SIW_SIGNALLED);
                quirks.has(&list::SIW_ORDER);
                quirks.has(&list::SIW_READS);
                quirks.has(&list::SIW_RIGHTS);
                quirks.has(&list::SIW_NO_WINDOWS);
                quirks.has(&list::SIW_CONNECT);
            }
            (VENDOR_BROADCOM, _) => {
                quirks.invalidation_bits = 0;
                quirks.windows = false;
                quirks.send_with_invalidate = false;
                quirks.has(&list::BNXT_INVALIDATE);
            }
            (VENDOR_CHELSIO, _) => {
                quirks.windows = false;
                quirks.has(&list::CXGB4_BIND);
            }
            (VENDOR_QLOGIC, _) => {
                quirks.windows = false;
                quirks.has(&list::QEDR_BIND);
            }
            (VENDOR_HISILICON, _) => {
                quirks.windows = false;
                quirks.has(&list::HNS_WINDOWS);
            }
            _ => {}
        }
        quirks
    }

    fn has(&mut self, quirk: &Quirk) {
        self.notes.push(quirk.note);
    }

    /// The key that a received message invalidated.
    pub(super) fn invalidated(&self, wc_flags: u32, key: u32) -> Option<u32> {
        (wc_flags & self.invalidation_bits != 0).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: VerbsOptions = VerbsOptions {
        soft_roce_windows: false,
    };
    const WITH_WINDOWS: VerbsOptions = VerbsOptions {
        soft_roce_windows: true,
    };

    #[test]
    fn soft_roce_tells_of_invalidation_with_another_bit() {
        let quirks = Quirks::of(VENDOR_RXE, Fabric::Roce, &WITH_WINDOWS);
        // Seen in the completion of a Send with invalidate: 0x5, with the right key.
        assert_eq!(quirks.invalidated(0x5, 7), Some(7));
        assert_eq!(quirks.invalidated(0x8, 7), Some(7));
        assert_eq!(quirks.invalidated(0x1, 7), None);
        assert!(quirks.windows && quirks.send_with_invalidate && !quirks.connect_sleeps);
        assert!(quirks.window_ignores_range);
    }

    #[test]
    fn soft_roce_has_windows_only_where_they_are_asked_for() {
        let quirks = Quirks::of(VENDOR_RXE, Fabric::Roce, &PLAIN);
        assert!(!quirks.windows && quirks.send_with_invalidate);
        // It is no matter of others.
        for options in [&PLAIN, &WITH_WINDOWS] {
            assert!(Quirks::of(0x02c9, Fabric::Roce, options).windows);
            assert!(!Quirks::of(VENDOR_SIW, Fabric::Iwarp, options).windows);
        }
    }

    #[test]
    fn others_mean_a_checksum_with_that_bit() {
        let quirks = Quirks::of(0x02c9, Fabric::Roce, &PLAIN);
        assert_eq!(quirks.invalidated(0x4, 7), None);
        assert_eq!(quirks.invalidated(0x8, 7), Some(7));
        assert!(quirks.notes.is_empty());
    }

    #[test]
    fn soft_iwarp_never_tells_and_has_no_windows() {
        let quirks = Quirks::of(VENDOR_SIW, Fabric::Iwarp, &PLAIN);
        assert_eq!(quirks.invalidated(u32::MAX, 7), None);
        assert!(!quirks.windows && quirks.connect_sleeps && !quirks.read_sink_is_remote);
    }

    #[test]
    fn soft_iwarp_must_signal_what_it_would_send_by_reference() {
        assert_eq!(
            Quirks::of(VENDOR_SIW, Fabric::Iwarp, &PLAIN).signalled_from,
            4096
        );
        for (vendor, fabric) in [(VENDOR_RXE, Fabric::Roce), (0x8086, Fabric::Iwarp)] {
            assert_eq!(
                Quirks::of(vendor, fabric, &PLAIN).signalled_from,
                usize::MAX
            );
        }
    }

    #[test]
    fn soft_iwarp_alone_overlooks_what_follows_its_answer() {
        assert!(Quirks::of(VENDOR_SIW, Fabric::Iwarp, &PLAIN).overlooks_first);
        for (vendor, fabric) in [(VENDOR_RXE, Fabric::Roce), (0x8086, Fabric::Iwarp)] {
            assert!(!Quirks::of(vendor, fabric, &PLAIN).overlooks_first);
        }
    }

    #[test]
    fn iwarp_cards_need_remote_write_on_read_sinks() {
        assert!(Quirks::of(0x8086, Fabric::Iwarp, &PLAIN).read_sink_is_remote);
        assert!(!Quirks::of(0x8086, Fabric::Roce, &PLAIN).read_sink_is_remote);
    }

    #[test]
    fn devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them() {
        let bnxt = Quirks::of(VENDOR_BROADCOM, Fabric::Roce, &PLAIN);
        assert!(!bnxt.send_with_invalidate && !bnxt.windows && bnxt.invalidation_bits == 0);
        for vendor in [VENDOR_CHELSIO, VENDOR_QLOGIC, VENDOR_HISILICON] {
            let quirks = Quirks::of(vendor, Fabric::Roce, &PLAIN);
            assert!(!quirks.windows && quirks.send_with_invalidate);
        }
    }
}
