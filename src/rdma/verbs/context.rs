//! An open device: kept open while anything stands on it, closed when the last of that is gone.
//!
//! librdmacm opens a device once per process, for all providers, and closes it never, unless the device was removed:
//! then with the last id on it, if somebody has made it look which devices there are ([`look_for_devices`]). The kernel
//! lets a device without means to take itself away from programs (soft-RoCE and soft-iWARP are such) be removed only
//! when all have closed it: `rdma link del` waits until then.

use std::ffi::CStr;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::cm::{CmId, EventChannel, set_nonblocking};
use super::domain::DomainInner;
use super::sys;
use crate::rdma::{RdmaError, RdmaOperation};

/// An open device. The process has one per device, kept by librdmacm and shared by all providers.
pub(super) struct Context {
    verbs: NonNull<sys::ibv_context>,
    keeper: Keeper,
    presence: Presence,
    removed: AtomicBool,
    /// The domains on it.
    domains: Mutex<Vec<Weak<DomainInner>>>,
}

/// What keeps librdmacm from closing the device while there is something of ours on it.
enum Keeper {
    /// An id bound to the device's address.
    Id(CmId),
    /// All devices, where no id can be bound: the address of the connection may be incomplete (link-local).
    Devices { _open: OpenDevices },
}

// SAFETY: verbs are thread safe (libibverbs locks or leaves it to the kernel), and what keeps it open is only dropped.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context on which a resolved id lives, kept open from now on. Events of what keeps it open come to `channel`.
    pub(super) fn of(id: &CmId, channel: &Arc<EventChannel>) -> Result<Arc<Self>, RdmaError> {
        let verbs = id.verbs().ok_or(RdmaError::Closed)?;
        let failed = |error: io::Error| RdmaError::os(RdmaOperation::Open, &error);
        // SAFETY: the id is alive, and its device open as long.
        let presence = unsafe { Presence::of(verbs) };
        let keeper = match bound_beside(id, channel) {
            Some(id) => Keeper::Id(id),
            None => {
                let open = OpenDevices::open().map_err(failed)?;
                if !open.contains(verbs) {
                    return Err(RdmaError::DeviceRemoved);
                }
                Keeper::Devices { _open: open }
            }
        };
        if presence.is_over() {
            return Err(RdmaError::DeviceRemoved);
        }
        let context = Self {
            verbs,
            keeper,
            presence,
            removed: AtomicBool::new(false),
            domains: Mutex::default(),
        };
        set_nonblocking(context.async_fd()).map_err(failed)?;
        Ok(Arc::new(context))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_context {
        self.verbs.as_ptr()
    }

    /// Names the id that keeps it open, to which the connection manager tells that the device is removed.
    pub(super) fn key(&self) -> Option<usize> {
        match &self.keeper {
            Keeper::Id(id) => Some(id.key()),
            Keeper::Devices { .. } => None,
        }
    }

    /// Where async events arrive.
    pub(super) fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context.
        unsafe { BorrowedFd::borrow_raw(self.verbs.as_ref().async_fd) }
    }

    /// The number of the next async event, acknowledged already.
    pub(super) fn next_async_event(&self) -> Option<u32> {
        let mut event = std::mem::MaybeUninit::<sys::ibv_async_event>::uninit();
        // SAFETY: the context is open; the event is read only where the call says that it was filled in.
        unsafe {
            if sys::ibv_get_async_event(self.raw(), event.as_mut_ptr()) != 0 {
                return None;
            }
            let number = sys::event_number(event.as_ptr());
            sys::ibv_ack_async_event(event.as_mut_ptr());
            Some(number)
        }
    }

    /// Whether the device is gone, or about to go.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire) || self.presence.is_over()
    }

    /// The device is gone: no more is made on it. What was made there stays. Whether that is new.
    pub(super) fn set_removed(&self) -> bool {
        !self.removed.swap(true, Ordering::AcqRel)
    }

    /// Ends the domains on it with all their registrations, those with queue pairs when the last of these is gone.
    /// The memory stays with its owners, who may keep it as long as they like.
    pub(super) fn end_domains(&self) {
        let domains = std::mem::take(&mut *self.domains());
        for domain in domains.iter().filter_map(Weak::upgrade) {
            domain.revoke();
        }
    }

    /// Remembers a domain.
    pub(super) fn add_domain(&self, domain: &Arc<DomainInner>) {
        let mut domains = self.domains();
        domains.retain(|domain| domain.strong_count() > 0);
        domains.push(Arc::downgrade(domain));
    }

    /// Whether something has been destroyed, of which the verbs call `returned` this: the kernel destroys all on a
    /// removed device itself, and says EIO to all calls from then on.
    pub(super) fn destroyed(&self, returned: i32) -> io::Result<()> {
        match sys::verbs_result(returned) {
            Err(error) if error.raw_os_error() == Some(libc::EIO) && self.is_removed() => Ok(()),
            other => other,
        }
    }

    fn domains(&self) -> MutexGuard<'_, Vec<Weak<DomainInner>>> {
        // The list is whole whatever happened to another holder of the lock.
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Another id on the same device.
fn bound_beside(id: &CmId, channel: &Arc<EventChannel>) -> Option<CmId> {
    let beside = CmId::new(channel).ok()?;
    beside.bind(SocketAddr::new(id.local()?.ip(), 0)).ok()?;
    (beside.verbs() == id.verbs()).then_some(beside)
}

/// Whether a device is still there: a device that is to be removed loses its entry in sysfs before the kernel waits for
/// those who use it. Another device may take the name, but has an entry of its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Presence {
    entry: PathBuf,
    /// `None` where there was no entry even then.
    inode: Option<u64>,
}

impl Presence {
    /// That of an open device.
    ///
    /// # Safety
    /// `verbs` is open.
    pub(super) unsafe fn of(verbs: NonNull<sys::ibv_context>) -> Self {
        // SAFETY: the caller's context is open; libibverbs ends the name with a zero byte.
        let name = unsafe { CStr::from_ptr((*verbs.as_ref().device).dev_name.as_ptr()) };
        let class = PathBuf::from("/sys/class/infiniband_verbs");
        Self::at(class.join(name.to_string_lossy().as_ref()))
    }

    fn at(entry: PathBuf) -> Self {
        let inode = inode(&entry);
        Self { entry, inode }
    }

    pub(super) fn is_over(&self) -> bool {
        match self.inode {
            Some(_) => inode(&self.entry) != self.inode,
            // It was about to go; or there is no sysfs, and nobody knows.
            None => self.entry.parent().is_some_and(Path::is_dir),
        }
    }
}

fn inode(entry: &Path) -> Option<u64> {
    std::fs::metadata(entry).ok().map(|entry| entry.ino())
}

/// Makes librdmacm look which devices there are, and close those that were removed, once nobody has an id there. Fails
/// where there is none left: then it closes nothing.
pub(super) fn look_for_devices() -> io::Result<()> {
    OpenDevices::open().map(drop)
}

/// The devices of the system, which stay open as long as this lives.
struct OpenDevices(NonNull<*mut sys::ibv_context>);

impl OpenDevices {
    fn open() -> io::Result<Self> {
        let mut count = 0;
        // SAFETY: the count is a valid place; the result is checked.
        let raw = unsafe { sys::rdma_get_devices(&mut count) };
        NonNull::new(raw)
            .map(Self)
            .ok_or_else(io::Error::last_os_error)
    }

    fn contains(&self, verbs: NonNull<sys::ibv_context>) -> bool {
        let mut place = self.0.as_ptr();
        // SAFETY: the array ends with a null pointer and lives as long as `self`.
        unsafe {
            while !(*place).is_null() {
                if *place == verbs.as_ptr() {
                    return true;
                }
                place = place.add(1);
            }
        }
        false
    }
}

impl Drop for OpenDevices {
    fn drop(&mut self) {
        // SAFETY: from `rdma_get_devices`, given back once.
        unsafe { sys::rdma_free_devices(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_whose_entry_is_gone_or_another_s_is_over() {
        let entry = std::env::temp_dir().join(format!("smbdirect-entry-{}", std::process::id()));
        let never = Presence::at(entry.clone());
        let unknown = Presence::at(entry.join("none/none"));
        std::fs::create_dir(&entry).unwrap();
        let known = Presence::at(entry.clone());
        assert!(!known.is_over() && !unknown.is_over() && never.is_over());
        let other = entry.with_extension("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::remove_dir(&entry).unwrap();
        assert!(known.is_over());
        std::fs::rename(&other, &entry).unwrap();
        assert!(known.is_over());
        std::fs::remove_dir(&entry).unwrap();
    }
}
