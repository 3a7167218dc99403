//! Every quirk by what people are told of it, with its test.

/// One way in which a device differs from what the specifications say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Quirk {
    /// For people.
    pub(super) note: &'static str,
    /// The test that shows that it is dealt with, or that it is there: a function below `src/rdma`.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) test: &'static str,
}

macro_rules! quirks {
    ($($name:ident: $note:literal, $test:ident;)*) => {
        $(pub(super) const $name: Quirk = Quirk {
            note: $note,
            test: stringify!($test),
        };)*

        /// All of them.
        #[cfg(test)]
        const ALL: &[Quirk] = &[$($name),*];
    };
}

quirks! {
    IWARP_DEPTHS: "iWARP answers with the depths of RDMA reads from the peer's side",
        depths_are_seen_from_our_side_on_every_fabric;
    IWARP_SLEEPS: "iWARP: calls on an id whose connect is not answered sleep: put aside until it is",
        giving_up_an_unanswered_connect_sleeps_nowhere;
    SIW_OVERLOOKS: "soft-iWARP as peer can overlook the first message: nudged while it is silent",
        a_silent_acceptor_is_nudged_and_none_the_worse;
    RXE_NO_WINDOWS: "soft-RoCE crashes on invalidating a window that is free: memory is registered for each exposure",
        invalidations_that_nobody_asked_for_hurt_nobody;
    RXE_FREE_WINDOW: "soft-RoCE crashes on invalidating a window that is free: peers are trusted not to do that",
        the_peer_invalidates_a_window;
    RXE_RANGE: "soft-RoCE does not check a window's range: bound to a region of its own",
        access_outside_of_an_exposure_ends_the_connection;
    RXE_BIT: "soft-RoCE reports remote invalidation with bit 0x4",
        soft_roce_tells_of_invalidation_with_another_bit;
    RXE_REPEATED_BIND: "soft-RoCE repeats a bind when it sends again what came before: a lost packet can end a connection that exposes memory",
        exposing_goes_on_while_messages_are_sent_again;
    SIW_OVERLOOKS_FIRST: "soft-iWARP can overlook an accepted peer's first message: a Read without content brings it up",
        a_first_message_that_soft_iwarp_overlooked_is_found;
    SIW_CLOSING: "soft-iWARP keeps the Reads of a connection that was closed: they are flushed before",
        reads_under_way_come_back_when_their_connection_is_closed;
    SIW_LATE: "soft-iWARP keeps what is posted when the peer has just left: not waited for",
        what_is_posted_after_the_peer_has_left_comes_back;
    SIW_SIGNALLED: "soft-iWARP sends memory of unsignalled requests after their end: all large ones are signalled",
        memory_of_a_finished_write_is_used_again_at_once;
    SIW_ORDER: "soft-iWARP completes Sends and Writes before elder Reads: put in order",
        a_read_is_over_when_its_bytes_are_there;
    SIW_READS: "soft-iWARP serves more RDMA reads than were accepted, if the peer asks",
        depths_are_those_both_sides_allow;
    SIW_RIGHTS: "soft-iWARP lets the peer read what is exposed for writing",
        soft_iwarp_answers_reads_of_what_is_exposed_for_writing;
    SIW_NO_WINDOWS: "soft-iWARP has no windows and does not report remote invalidation",
        soft_iwarp_never_tells_and_has_no_windows;
    SIW_CONNECT: "soft-iWARP connects TCP inside the call: done on a helper thread",
        an_unfinished_connect_outlives_its_provider;
    BNXT_INVALIDATE: "bnxt_re loses the queue pair on a Send with invalidate: not used",
        devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them;
    CXGB4_BIND: "cxgb4 cannot bind windows from user space: not used",
        devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them;
    QEDR_BIND: "qedr cannot bind windows: not used",
        devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them;
    HNS_WINDOWS: "hns has lost its windows: not used",
        devices_whose_send_with_invalidate_or_windows_fail_do_not_use_them;
}

#[cfg(test)]
mod tests {
    use super::super::VerbsOptions;
    use super::super::quirks::*;
    use super::*;
    use crate::rdma::Fabric;
    use std::fs;
    use std::path::Path;

    /// The source below a directory.
    fn source(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                source(&path, text);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_quirk_has_its_test() {
        let mut text = String::new();
        source(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rdma"),
            &mut text,
        );
        for quirk in ALL {
            let function = format!("fn {}(", quirk.test);
            assert!(text.contains(&function), "no test: {quirk:?}");
        }
    }

    #[test]
    fn every_quirk_is_some_device_s_and_has_words_of_its_own() {
        let mut told = Vec::new();
        for soft_roce_windows in [false, true] {
            for vendor in [
                VENDOR_RXE,
                VENDOR_SIW,
                VENDOR_BROADCOM,
                VENDOR_CHELSIO,
                VENDOR_QLOGIC,
                VENDOR_HISILICON,
            ] {
                for fabric in [Fabric::Iwarp, Fabric::Roce] {
                    told.extend(
                        Quirks::of(vendor, fabric, &VerbsOptions { soft_roce_windows }).notes,
                    );
                }
            }
        }
        for (i, quirk) in ALL.iter().enumerate() {
            assert!(told.contains(&quirk.note), "nobody's: {quirk:?}");
            assert!(
                ALL[..i].iter().all(|other| other.note != quirk.note),
                "{quirk:?}"
            );
        }
    }
}
