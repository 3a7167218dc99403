//! What devices do other than the specifications say, by vendor number; each entry has its test.

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
    /// For people.
    pub(super) notes: Vec<&'static str>,
}

impl Quirks {
    /// Those of a device.
    pub(super) fn of(vendor: u32, fabric: Fabric) -> Self {
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
            notes: Vec::new(),
        };
        if iwarp {
            quirks
                .notes
                .push("iWARP answers with the depths of RDMA reads from the peer's side");
        }
        match (vendor, iwarp) {
            (VENDOR_RXE | 0, false) => {
                // The driver copies the kernel's flag (1 << 2) to user space, where it has another meaning.
                quirks.invalidation_bits |= 1 << 2;
                // It looks the window up for the direction, and then checks the range of the region only.
                quirks.window_ignores_range = true;
                quirks.notes.push(
                    "soft-RoCE does not check a window's range: bound to a region of its own",
                );
                quirks
                    .notes
                    .push("soft-RoCE reports remote invalidation with bit 0x4");
                quirks
                    .notes
                    .push("soft-RoCE crashes on invalidating a window that is free: never done");
            }
            (VENDOR_SIW, true) => {
                quirks.invalidation_bits = 0;
                quirks.windows = false;
                // Its check of the sink is for local write access only, so that remote rights are not given.
                quirks.read_sink_is_remote = false;
                quirks.connect_sleeps = true;
                quirks
                    .notes
                    .push("soft-iWARP completes Sends and Writes before elder Reads: put in order");
                quirks
                    .notes
                    .push("soft-iWARP serves more RDMA reads than were accepted, if the peer asks");
                quirks
                    .notes
                    .push("soft-iWARP lets the peer read what is exposed for writing");
                quirks
                    .notes
                    .push("soft-iWARP has no windows and does not report remote invalidation");
                quirks
                    .notes
                    .push("soft-iWARP connects TCP inside the call: done on a helper thread");
            }
            (VENDOR_BROADCOM, _) => {
                quirks.invalidation_bits = 0;
                quirks.windows = false;
                quirks.send_with_invalidate = false;
                quirks
                    .notes
                    .push("bnxt_re loses the queue pair on a Send with invalidate: not used");
            }
            (VENDOR_CHELSIO, _) => {
                quirks.windows = false;
                quirks
                    .notes
                    .push("cxgb4 cannot bind windows from user space: not used");
            }
            (VENDOR_QLOGIC, _) => {
                quirks.windows = false;
                quirks.notes.push("qedr cannot bind windows: not used");
            }
            (VENDOR_HISILICON, _) => {
                quirks.windows = false;
                quirks.notes.push("hns has lost its windows: not used");
            }
            _ => {}
        }
        quirks
    }

    /// The key that a received message invalidated.
    pub(super) fn invalidated(&self, wc_flags: u32, key: u32) -> Option<u32> {
        (wc_flags & self.invalidation_bits != 0).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_roce_tells_of_invalidation_with_another_bit() {
        let quirks = Quirks::of(VENDOR_RXE, Fabric::Roce);
        // Seen in the completion of a Send with invalidate: 0x5, with the right key.
        assert_eq!(quirks.invalidated(0x5, 7), Some(7));
        assert_eq!(quirks.invalidated(0x8, 7), Some(7));
        assert_eq!(quirks.invalidated(0x1, 7), None);
        assert!(quirks.windows && quirks.send_with_invalidate && !quirks.connect_sleeps);
        assert!(quirks.window_ignores_range);
    }

    #[test]
    fn others_mean_a_checksum_with_that_bit() {
        let quirks = Quirks::of(0x02c9, Fabric::Roce);
        assert_eq!(quirks.invalidated(0x4, 7), None);
        assert_eq!(quirks.invalidated(0x8, 7), Some(7));
        assert!(quirks.notes.is_empty());
    }

    #[test]
    fn soft_iwarp_never_tells_and_has_no_windows() {
        let quirks = Quirks::of(VENDOR_SIW, Fabric::Iwarp);
        assert_eq!(quirks.invalidated(u32::MAX, 7), None);
        assert!(!quirks.windows && quirks.connect_sleeps && !quirks.read_sink_is_remote);
    }

    #[test]
    fn iwarp_cards_need_remote_write_on_read_sinks() {
        assert!(Quirks::of(0x8086, Fabric::Iwarp).read_sink_is_remote);
        assert!(!Quirks::of(0x8086, Fabric::Roce).read_sink_is_remote);
    }

    #[test]
    fn devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them() {
        let bnxt = Quirks::of(VENDOR_BROADCOM, Fabric::Roce);
        assert!(!bnxt.send_with_invalidate && !bnxt.windows && bnxt.invalidation_bits == 0);
        for vendor in [VENDOR_CHELSIO, VENDOR_QLOGIC, VENDOR_HISILICON] {
            let quirks = Quirks::of(vendor, Fabric::Roce);
            assert!(!quirks.windows && quirks.send_with_invalidate);
        }
    }
}
