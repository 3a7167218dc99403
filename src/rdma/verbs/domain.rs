//! Protection domains with what is registered in them, and memory windows.
//!
//! A domain may be ended before its owners let go of it: when its device was removed, the device is not to stay open
//! because somebody still has memory that was registered there.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::context::Context;
use super::errors::registration_error;
use super::sys;
use crate::rdma::{Access, Domain, IoPin, RdmaError, RdmaOperation, Registration, may_block};

/// A protection domain.
pub(super) struct ProtectionDomain {
    inner: Arc<DomainInner>,
    rights: Rights,
}

/// What a device needs in access rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// Windows are bound to memory.
    pub(super) windows: bool,
    /// Each to a region that is no larger than what it exposes.
    pub(super) window_alone: bool,
    /// Memory into which the device reads needs remote write access.
    pub(super) read_sink_is_remote: bool,
}

impl Rights {
    /// The verbs access flags for what is asked for.
    pub(super) fn flags(self, access: Access) -> u32 {
        let mut flags = 0;
        if access.local_write {
            flags |= sys::ACCESS_LOCAL_WRITE;
        }
        if access.read_sink && self.read_sink_is_remote {
            flags |= sys::ACCESS_REMOTE_WRITE;
        }
        if access.remote_write {
            flags |= sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_WRITE;
        }
        if access.remote_read {
            flags |= sys::ACCESS_REMOTE_READ;
        }
        if access.bind && self.windows {
            flags |= sys::ACCESS_MW_BIND;
        }
        flags
    }
}

/// What registrations, windows and queue pairs of a domain share.
pub(super) struct DomainInner {
    /// The domain itself; `None` when it was ended. Whoever makes something in it has the lock for reading.
    alive: RwLock<Option<Alive>>,
    /// Regions by local key, for binding windows to them. An entry lives as long as its region.
    regions: Mutex<HashMap<u32, RegionPtr>>,
    /// Nothing more is made in it, and it ends with its last user.
    revoked: AtomicBool,
    /// Queue pairs and windows in it: devices may use its registrations as long as there are queue pairs.
    users: AtomicUsize,
    /// Windows that are free, to be bound again.
    windows: Mutex<Vec<SpareWindow>>,
}

/// Windows that a domain keeps for later, at most.
const SPARE_WINDOWS: usize = 1024;

/// A window that is nobody's and bound to nothing.
struct SpareWindow(NonNull<sys::ibv_mw>);

// SAFETY: only an address; whoever takes it out is its owner.
unsafe impl Send for SpareWindow {}

struct Alive {
    raw: NonNull<sys::ibv_pd>,
    context: Arc<Context>,
}

#[derive(Clone, Copy)]
pub(super) struct RegionPtr(NonNull<sys::ibv_mr>);

// SAFETY: only an address; whoever uses it keeps the region alive.
unsafe impl Send for RegionPtr {}

impl RegionPtr {
    pub(super) fn raw(self) -> *mut sys::ibv_mr {
        self.0.as_ptr()
    }
}

// SAFETY: verbs on a protection domain are thread safe; it is freed once, by who takes it out of its place.
unsafe impl Send for Alive {}
// SAFETY: as above.
unsafe impl Sync for Alive {}

impl ProtectionDomain {
    pub(super) fn new(context: &Arc<Context>, rights: Rights) -> Result<Arc<Self>, RdmaError> {
        may_block("making a protection domain");
        // SAFETY: the context is open; the result is checked.
        let raw = unsafe { sys::ibv_alloc_pd(context.raw()) };
        let raw =
            NonNull::new(raw).ok_or_else(|| RdmaError::last_os(RdmaOperation::CreateDomain))?;
        let alive = Alive {
            raw,
            context: context.clone(),
        };
        let inner = Arc::new(DomainInner {
            alive: RwLock::new(Some(alive)),
            regions: Mutex::new(HashMap::new()),
            revoked: AtomicBool::new(false),
            users: AtomicUsize::new(0),
            windows: Mutex::new(Vec::new()),
        });
        context.add_domain(&inner);
        if context.is_removed() {
            // It may have been made while the others were ended.
            inner.revoke();
            return Err(RdmaError::DeviceRemoved);
        }
        Ok(Arc::new(Self { inner, rights }))
    }

    /// The region with this local key.
    pub(super) fn region(&self, local_key: u32) -> Option<RegionPtr> {
        self.inner.regions().get(&local_key).copied()
    }

    /// A type-2 window, bound to nothing: one that was used before, or a new one.
    fn window(&self) -> Result<MemoryWindow, RdmaError> {
        let alive = self.inner.read();
        let domain = self.inner.usable(&alive)?.raw.as_ptr();
        let spare = self.inner.spare_windows().pop();
        let raw = match spare {
            Some(SpareWindow(raw)) => raw,
            None => {
                may_block("making a memory window");
                // SAFETY: the domain is alive as long as the lock is held; the result is checked.
                let raw = unsafe { sys::ibv_alloc_mw(domain, sys::MW_TYPE_2) };
                NonNull::new(raw).ok_or_else(|| RdmaError::last_os(RdmaOperation::Bind))?
            }
        };
        self.inner.users.fetch_add(1, Ordering::SeqCst);
        Ok(MemoryWindow {
            raw,
            domain: self.inner.clone(),
        })
    }

    /// Makes a queue pair in it: `make` gets the domain and says whether it did. It is to be counted off again with
    /// [`ProtectionDomain::lose_user`].
    pub(super) fn for_queue_pair(
        &self,
        make: impl FnOnce(*mut sys::ibv_pd) -> io::Result<()>,
    ) -> io::Result<()> {
        let alive = self.inner.read();
        let gone = |_| io::Error::from_raw_os_error(libc::ENODEV);
        let domain = self.inner.usable(&alive).map_err(gone)?;
        make(domain.raw.as_ptr())?;
        self.inner.users.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// A queue pair in it was destroyed.
    pub(super) fn lose_user(&self) {
        self.inner.lose_user();
    }

    /// As [`Context::destroyed`].
    pub(super) fn destroyed(&self, returned: i32) -> io::Result<()> {
        match self.inner.read().as_ref() {
            Some(domain) => domain.context.destroyed(returned),
            None => sys::verbs_result(returned),
        }
    }
}

impl std::fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProtectionDomain({:p})", Arc::as_ptr(&self.inner))
    }
}

impl Domain for ProtectionDomain {
    unsafe fn register(
        &self,
        base: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Registration, RdmaError> {
        may_block("registering memory");
        let flags = self.rights.flags(access);
        let alive = self.inner.read();
        let domain = self.inner.usable(&alive)?.raw.as_ptr();
        // SAFETY: the domain is alive as long as the lock is held. The caller keeps the range mapped until the
        // registration is dropped, which deregisters it, unless the domain was ended before with all that is in it.
        let raw =
            unsafe { sys::ibv_reg_mr(domain, base.as_ptr().cast(), len, flags.cast_signed()) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(registration_error(&io::Error::last_os_error(), len));
        };
        // SAFETY: just made.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        self.inner.regions().insert(lkey, RegionPtr(raw));
        let guard: Box<dyn Any + Send + Sync> = Box::new(MemoryRegion {
            raw,
            lkey,
            domain: self.inner.clone(),
        });
        Ok(Registration::new(lkey, rkey, Some(guard)))
    }

    fn prepare_window(&self, memory: &IoPin) -> Result<Option<Registration>, RdmaError> {
        let alone = if self.rights.window_alone {
            // SAFETY: a pin keeps its memory mapped; one is dropped after the registration.
            let region = unsafe { self.register(memory.address(), memory.len(), Access::LOCAL) }?;
            let (key, kept) = (
                region.local_key(),
                Box::new((region, memory.slice(0..memory.len()))),
            );
            Some(Registration::new(key, 0, Some(kept)))
        } else {
            None
        };
        let window = self.window()?;
        let region = (alone.as_ref()).map_or(memory.local_key(), Registration::local_key);
        let key = window.key();
        let parts = WindowParts { window, alone };
        Ok(Some(Registration::new(region, key, Some(Box::new(parts)))))
    }
}

/// What a window needs besides the memory, made ahead: in the guard of the registration that
/// [`Domain::prepare_window`] gives, whose local key is that of the region to bind to.
pub(super) struct WindowParts {
    // The window goes before the region that it is bound to.
    pub(super) window: MemoryWindow,
    /// A region for it alone, which keeps the memory.
    pub(super) alone: Option<Registration>,
}

impl DomainInner {
    /// Makes nothing more in it, deregisters all that is registered there, and frees it: at once, or when its last
    /// queue pair and its last window are gone. May block.
    pub(super) fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
        self.end_unused();
    }

    fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    fn lose_user(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
        self.end_unused();
    }

    fn end_unused(&self) {
        if !self.is_revoked() {
            return;
        }
        let mut alive = self.write();
        if self.users.load(Ordering::SeqCst) == 0
            && let Some(domain) = alive.take()
        {
            may_block("ending a protection domain");
            let regions = std::mem::take(&mut *self.regions());
            for region in regions.into_values() {
                // SAFETY: it was in the table, so that its owner has not deregistered it, and will not.
                unsafe { deregister(&domain.context, region.0) };
            }
            drop(alive);
            self.free(domain);
        }
    }

    /// Frees the domain with the windows that are nobody's.
    fn free(&self, domain: Alive) {
        for SpareWindow(raw) in self.spare_windows().drain(..) {
            // SAFETY: nobody else has it; freed once.
            unsafe { free_window(&domain.context, raw) };
        }
        domain.free();
    }

    /// The domain, if something can be made in it.
    fn usable<'a>(
        &self,
        alive: &'a RwLockReadGuard<'_, Option<Alive>>,
    ) -> Result<&'a Alive, RdmaError> {
        let usable = alive.as_ref();
        usable
            .filter(|_| !self.is_revoked())
            .ok_or(RdmaError::DeviceRemoved)
    }

    // What the locks protect is whole whatever happened to another holder of them.

    fn read(&self) -> RwLockReadGuard<'_, Option<Alive>> {
        self.alive.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<Alive>> {
        self.alive.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn regions(&self) -> MutexGuard<'_, HashMap<u32, RegionPtr>> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare_windows(&self) -> MutexGuard<'_, Vec<SpareWindow>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DomainInner {
    fn drop(&mut self) {
        let domain = self.write().take();
        if let Some(domain) = domain {
            may_block("freeing a protection domain");
            self.free(domain);
        }
    }
}

impl Alive {
    fn free(self) {
        // SAFETY: regions, windows and queue pairs are gone: they hold an `Arc` of the domain's place, or it was ended
        // when there were no queue pairs and windows, and its regions were deregistered. Freed once, since `self` is
        // taken.
        let freed = unsafe { sys::ibv_dealloc_pd(self.raw.as_ptr()) };
        if let Err(error) = self.context.destroyed(freed) {
            tracing::warn!(%error, "a protection domain could not be freed");
        }
    }
}

/// # Safety
/// The region is alive, of a domain on `context`, and not used after this.
unsafe fn deregister(context: &Context, region: NonNull<sys::ibv_mr>) {
    // SAFETY: the caller's promise. Windows bound to it are gone, since they keep its memory (`IoPin`), or keep it from
    // nothing more where no queue pair is left.
    let done = unsafe { sys::ibv_dereg_mr(region.as_ptr()) };
    if let Err(error) = context.destroyed(done) {
        // The memory will be unmapped; the kernel keeps its pages pinned, so that nothing else is touched.
        tracing::error!(%error, "a memory region could not be deregistered");
    }
}

struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    lkey: u32,
    domain: Arc<DomainInner>,
}

// SAFETY: deregistration may happen on any thread, once.
unsafe impl Send for MemoryRegion {}
// SAFETY: there is nothing to do through `&MemoryRegion`.
unsafe impl Sync for MemoryRegion {}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        may_block("deregistering memory");
        let alive = self.domain.read();
        let known = self.domain.regions().remove(&self.lkey).is_some();
        // Else it was deregistered when the domain was ended.
        if let Some(domain) = alive.as_ref().filter(|_| known) {
            // SAFETY: in the table until now, so alive; deregistered once, since it is there no more.
            unsafe { deregister(&domain.context, self.raw) };
        }
    }
}

/// A type-2 memory window.
pub(super) struct MemoryWindow {
    raw: NonNull<sys::ibv_mw>,
    domain: Arc<DomainInner>,
}

// SAFETY: used by one owner at a time, freed once.
unsafe impl Send for MemoryWindow {}
// SAFETY: through `&MemoryWindow` its key is read only, which changes through `&mut`.
unsafe impl Sync for MemoryWindow {}

impl MemoryWindow {
    pub(super) fn raw(&self) -> *mut sys::ibv_mw {
        self.raw.as_ptr()
    }

    /// Its current key.
    pub(super) fn key(&self) -> u32 {
        // SAFETY: the window is alive.
        unsafe { self.raw.as_ref().rkey }
    }

    /// Leaves a window that is free to whoever needs one next, of the same domain. It comes back if enough are left, or
    /// nobody will need one.
    pub(super) fn spare(self) -> Option<Self> {
        let mut spare = self.domain.spare_windows();
        if spare.len() >= SPARE_WINDOWS || self.domain.is_revoked() {
            drop(spare);
            return Some(self);
        }
        spare.push(SpareWindow(self.raw));
        drop(spare);
        let mut this = std::mem::ManuallyDrop::new(self);
        this.domain.lose_user();
        // SAFETY: `this` is not used again, nor dropped: the window has its new owner, and the domain is let go once.
        unsafe { std::ptr::drop_in_place(&mut this.domain) };
        None
    }

    /// Follows a bind: device libraries compare the next bind with it.
    pub(super) fn set_key(&mut self, key: u32) {
        // SAFETY: the window is alive, and `&mut self` excludes other users.
        unsafe { self.raw.as_mut().rkey = key };
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        may_block("freeing a memory window");
        if let Some(domain) = self.domain.read().as_ref() {
            // SAFETY: freed once; that it may be bound ends with it.
            unsafe { free_window(&domain.context, self.raw) };
        }
        self.domain.lose_user();
    }
}

/// # Safety
/// The window is alive, of a domain on `context`, and not used after this.
unsafe fn free_window(context: &Context, window: NonNull<sys::ibv_mw>) {
    // SAFETY: the caller's promise.
    let done = unsafe { sys::ibv_dealloc_mw(window.as_ptr()) };
    if let Err(error) = context.destroyed(done) {
        tracing::error!(%error, "a memory window could not be freed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::RemoteAccess;

    const PLAIN: Rights = Rights {
        windows: false,
        window_alone: false,
        read_sink_is_remote: false,
    };

    #[test]
    fn rights_are_no_more_than_needed() {
        assert_eq!(PLAIN.flags(Access::LOCAL), sys::ACCESS_LOCAL_WRITE);
        assert_eq!(PLAIN.flags(Access::DATA), sys::ACCESS_LOCAL_WRITE);
        assert_eq!(PLAIN.flags(Access::READ_ONLY), 0);
        assert_eq!(
            PLAIN.flags(Access::remote(RemoteAccess::Read)),
            sys::ACCESS_REMOTE_READ
        );
        assert_eq!(
            PLAIN.flags(Access::remote(RemoteAccess::Write)),
            sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_WRITE
        );
        let windows = Rights {
            windows: true,
            ..PLAIN
        };
        assert_eq!(
            windows.flags(Access::LOCAL),
            sys::ACCESS_LOCAL_WRITE | sys::ACCESS_MW_BIND
        );
    }

    #[test]
    fn iwarp_cards_read_into_memory_with_remote_write_access() {
        let iwarp = Rights {
            read_sink_is_remote: true,
            ..PLAIN
        };
        assert_eq!(
            iwarp.flags(Access::DATA),
            sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_WRITE
        );
        // The slots of messages are never theirs.
        assert_eq!(iwarp.flags(Access::LOCAL), sys::ACCESS_LOCAL_WRITE);
        assert_eq!(iwarp.flags(Access::READ_ONLY), 0);
        // What the peer may read it must not be able to write.
        assert_eq!(
            iwarp.flags(Access::remote(RemoteAccess::Read)),
            sys::ACCESS_REMOTE_READ
        );
    }
}
