//! System errors as what went wrong and what to do about it.

use std::io;
use std::path::Path;

use super::sys::wc_status;
use crate::rdma::{CompletionStatus, RdmaError, RdmaOperation};

/// The device node of the connection manager.
pub(super) const CM_NODE: &str = "/dev/infiniband/rdma_cm";

/// Why the connection manager cannot be used at all, after it has failed with `error`.
pub(super) fn open_error(error: &io::Error) -> RdmaError {
    if !super::sys::library_present() {
        return RdmaError::LibraryMissing;
    }
    if let Some(forbidden) = forbidden(Path::new(CM_NODE)) {
        return forbidden;
    }
    // librdmacm looks for devices before it opens the node, and the kernel has no node before it has a device.
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENOENT) => RdmaError::NoDevices,
        _ => RdmaError::os(RdmaOperation::Open, error),
    }
}

/// Why no device was found: one may be there without permission to use it.
pub(super) fn hidden_device() -> Option<RdmaError> {
    let nodes = std::fs::read_dir("/dev/infiniband").ok()?;
    nodes
        .flatten()
        .filter(|node| node.file_name().to_string_lossy().starts_with("uverbs"))
        .find_map(|node| forbidden(&node.path()))
}

fn forbidden(node: &Path) -> Option<RdmaError> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(node);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Some(RdmaError::Permission(node.display().to_string()))
        }
        _ => None,
    }
}

/// Why memory was not registered.
pub(super) fn registration_error(error: &io::Error, len: usize) -> RdmaError {
    let exhausted = matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN));
    match locked_memory_limit() {
        Some(limit) if exhausted => RdmaError::LockedMemory {
            limit,
            needed: len as u64,
        },
        _ => RdmaError::os(RdmaOperation::Register, error),
    }
}

/// The limit on locked memory in bytes; `None` if there is none.
pub(super) fn locked_memory_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the answer.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (asked == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// How a request ended, from the device's number.
pub(super) fn status(number: u32) -> CompletionStatus {
    match number {
        wc_status::IBV_WC_SUCCESS => CompletionStatus::Success,
        wc_status::IBV_WC_WR_FLUSH_ERR => CompletionStatus::Flushed,
        wc_status::IBV_WC_LOC_PROT_ERR | wc_status::IBV_WC_LOC_ACCESS_ERR => {
            CompletionStatus::LocalAccess
        }
        wc_status::IBV_WC_LOC_LEN_ERR => CompletionStatus::LocalLength,
        wc_status::IBV_WC_REM_ACCESS_ERR => CompletionStatus::RemoteAccess,
        wc_status::IBV_WC_REM_OP_ERR
        | wc_status::IBV_WC_REM_INV_REQ_ERR
        | wc_status::IBV_WC_REM_ABORT_ERR => CompletionStatus::RemoteOperation,
        wc_status::IBV_WC_RNR_RETRY_EXC_ERR => CompletionStatus::ReceiverNotReady,
        wc_status::IBV_WC_RETRY_EXC_ERR | wc_status::IBV_WC_RESP_TIMEOUT_ERR => {
            CompletionStatus::RetriesExceeded
        }
        wc_status::IBV_WC_MW_BIND_ERR => CompletionStatus::Bind,
        other => CompletionStatus::Other(other),
    }
}

/// A connection manager event's status, which is a negative error number.
pub(super) fn event_error(operation: RdmaOperation, status: i32) -> RdmaError {
    let error = io::Error::from_raw_os_error(match status.saturating_abs() {
        0 => libc::EIO,
        error => error,
    });
    RdmaError::os(operation, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_cause() {
        assert_eq!(status(0), CompletionStatus::Success);
        assert_eq!(status(5), CompletionStatus::Flushed);
        assert_eq!(status(10), CompletionStatus::RemoteAccess);
        assert_eq!(status(12), CompletionStatus::RetriesExceeded);
        assert_eq!(status(13), CompletionStatus::ReceiverNotReady);
        assert_eq!(status(6), CompletionStatus::Bind);
        assert_eq!(status(99), CompletionStatus::Other(99));
    }

    #[test]
    fn a_low_limit_on_locked_memory_says_what_to_raise() {
        let error = registration_error(&io::Error::from_raw_os_error(libc::ENOMEM), 1 << 20);
        match locked_memory_limit() {
            Some(limit) => assert_eq!(
                error,
                RdmaError::LockedMemory {
                    limit,
                    needed: 1 << 20
                }
            ),
            None => assert!(matches!(error, RdmaError::Os { .. })),
        }
    }

    #[test]
    fn a_connection_that_failed_without_a_number_failed_all_the_same() {
        assert_eq!(
            event_error(RdmaOperation::Connect, 0),
            RdmaError::Os {
                operation: RdmaOperation::Connect,
                errno: libc::EIO
            }
        );
        assert_eq!(
            event_error(RdmaOperation::Connect, -libc::ETIMEDOUT),
            RdmaError::Timeout(RdmaOperation::Connect)
        );
    }
}
