//! What a device hands out, each destroyed when its last owner lets go, children before parents by `Arc`.

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cm::{CmId, set_nonblocking};
use super::errors::registration_error;
use super::sys;
use crate::rdma::{Access, Domain, IoPin, RdmaError, RdmaOperation, Registration};

/// The devices that librdmacm has opened, which stay open as long as this lives.
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

/// An open device. The process has one per device, kept by librdmacm and shared by all providers.
pub(super) struct Context {
    verbs: NonNull<sys::ibv_context>,
    _open: OpenDevices,
}

// SAFETY: verbs are thread safe (libibverbs locks or leaves it to the kernel), and the array is only read.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// The context on which a resolved id lives, kept open from now on.
    pub(super) fn of(id: &CmId) -> Result<Arc<Self>, RdmaError> {
        let verbs = id.verbs().ok_or(RdmaError::Closed)?;
        let failed = |error: io::Error| RdmaError::os(RdmaOperation::Open, &error);
        let open = OpenDevices::open().map_err(failed)?;
        if !open.contains(verbs) {
            // It was removed since.
            return Err(RdmaError::DeviceRemoved);
        }
        let context = Self { verbs, _open: open };
        set_nonblocking(context.async_fd()).map_err(failed)?;
        Ok(Arc::new(context))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_context {
        self.verbs.as_ptr()
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
}

/// A protection domain.
pub(super) struct ProtectionDomain {
    inner: Arc<PdInner>,
    rights: Rights,
}

/// What a device needs in access rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rights {
    /// Windows are bound to memory.
    pub(super) windows: bool,
    /// Memory into which the device reads needs remote write access.
    pub(super) read_sink_is_remote: bool,
}

impl Rights {
    /// The verbs access flags for what is asked for.
    pub(super) fn flags(self, access: Access) -> u32 {
        let mut flags = 0;
        if access.local_write {
            flags |= sys::ACCESS_LOCAL_WRITE;
            if self.read_sink_is_remote {
                flags |= sys::ACCESS_REMOTE_WRITE;
            }
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

struct PdInner {
    raw: NonNull<sys::ibv_pd>,
    /// Regions by local key, for binding windows to them. An entry lives as long as its region.
    regions: Mutex<HashMap<u32, RegionPtr>>,
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

// SAFETY: verbs on a protection domain are thread safe; the pointer is freed once, by the last owner.
unsafe impl Send for PdInner {}
// SAFETY: as above.
unsafe impl Sync for PdInner {}

impl ProtectionDomain {
    pub(super) fn new(context: &Arc<Context>, rights: Rights) -> Result<Arc<Self>, RdmaError> {
        // SAFETY: the context is open; the result is checked.
        let raw = unsafe { sys::ibv_alloc_pd(context.raw()) };
        let raw =
            NonNull::new(raw).ok_or_else(|| RdmaError::last_os(RdmaOperation::CreateDomain))?;
        let inner = PdInner {
            raw,
            regions: Mutex::new(HashMap::new()),
            context: context.clone(),
        };
        Ok(Arc::new(Self {
            inner: Arc::new(inner),
            rights,
        }))
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_pd {
        self.inner.raw.as_ptr()
    }

    /// Registers memory alone, for a window to be bound to it.
    ///
    /// # Safety
    /// The memory stays pinned until the registration is dropped.
    pub(super) unsafe fn register_for_window(
        &self,
        memory: &IoPin,
    ) -> Result<Registration, RdmaError> {
        // SAFETY: the caller's promise: a pin keeps its memory mapped.
        unsafe { self.register(memory.address(), memory.len(), Access::LOCAL) }
    }

    /// The region with this local key.
    pub(super) fn region(&self, local_key: u32) -> Option<RegionPtr> {
        self.inner.regions().get(&local_key).copied()
    }

    /// A type-2 window, bound to nothing.
    pub(super) fn window(&self) -> Result<MemoryWindow, RdmaError> {
        // SAFETY: the domain is alive; the result is checked.
        let raw = unsafe { sys::ibv_alloc_mw(self.raw(), sys::MW_TYPE_2) };
        let raw = NonNull::new(raw).ok_or_else(|| RdmaError::last_os(RdmaOperation::Bind))?;
        Ok(MemoryWindow {
            raw,
            _domain: self.inner.clone(),
        })
    }
}

impl std::fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProtectionDomain({:p})", self.inner.raw)
    }
}

impl Domain for ProtectionDomain {
    unsafe fn register(
        &self,
        base: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Registration, RdmaError> {
        let flags = self.rights.flags(access);
        // SAFETY: the caller keeps the range mapped until the registration is dropped, which deregisters it.
        let raw =
            unsafe { sys::ibv_reg_mr(self.raw(), base.as_ptr().cast(), len, flags.cast_signed()) };
        let Some(raw) = NonNull::new(raw) else {
            return Err(registration_error(&io::Error::last_os_error(), len));
        };
        // SAFETY: just made.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        self.inner.regions().insert(lkey, RegionPtr(raw));
        let guard: Box<dyn Any + Send + Sync> = Box::new(MemoryRegion {
            raw,
            domain: self.inner.clone(),
        });
        Ok(Registration::new(lkey, rkey, Some(guard)))
    }
}

impl PdInner {
    fn regions(&self) -> MutexGuard<'_, HashMap<u32, RegionPtr>> {
        // The map is whole whatever happened to another holder of the lock.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PdInner {
    fn drop(&mut self) {
        // SAFETY: regions, windows and queue pairs hold an `Arc` of this: none is left; freed once.
        let freed = unsafe { sys::ibv_dealloc_pd(self.raw.as_ptr()) };
        if freed != 0 {
            tracing::warn!(error = freed, "a protection domain could not be freed");
        }
        let _ = &self.context;
    }
}

struct MemoryRegion {
    raw: NonNull<sys::ibv_mr>,
    domain: Arc<PdInner>,
}

// SAFETY: deregistration may happen on any thread, once.
unsafe impl Send for MemoryRegion {}
// SAFETY: there is nothing to do through `&MemoryRegion`.
unsafe impl Sync for MemoryRegion {}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        // SAFETY: the region is alive until the next call.
        let lkey = unsafe { self.raw.as_ref().lkey };
        self.domain.regions().remove(&lkey);
        // SAFETY: deregistered once; windows bound to it are gone, since they keep its memory (`IoPin`).
        let done = unsafe { sys::ibv_dereg_mr(self.raw.as_ptr()) };
        if done != 0 {
            // The memory will be unmapped; the kernel keeps its pages pinned, so that nothing else is touched.
            tracing::error!(error = done, "a memory region could not be deregistered");
        }
    }
}

/// A type-2 memory window.
pub(super) struct MemoryWindow {
    raw: NonNull<sys::ibv_mw>,
    _domain: Arc<PdInner>,
}

// SAFETY: used by one owner at a time, freed once.
unsafe impl Send for MemoryWindow {}

impl MemoryWindow {
    pub(super) fn raw(&self) -> *mut sys::ibv_mw {
        self.raw.as_ptr()
    }

    /// Its current key.
    pub(super) fn key(&self) -> u32 {
        // SAFETY: the window is alive.
        unsafe { self.raw.as_ref().rkey }
    }

    /// Follows a bind: device libraries compare the next bind with it.
    pub(super) fn set_key(&mut self, key: u32) {
        // SAFETY: the window is alive, and `&mut self` excludes other users.
        unsafe { self.raw.as_mut().rkey = key };
    }
}

impl Drop for MemoryWindow {
    fn drop(&mut self) {
        // SAFETY: freed once; that it may be bound ends with it.
        let done = unsafe { sys::ibv_dealloc_mw(self.raw.as_ptr()) };
        if done != 0 {
            tracing::error!(error = done, "a memory window could not be freed");
        }
    }
}

/// Where completion queues announce completions. Its descriptor never blocks.
pub(super) struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
    _context: Arc<Context>,
}

// SAFETY: used by one owner at a time, destroyed once.
unsafe impl Send for CompletionChannel {}
// SAFETY: through `&CompletionChannel` only the descriptor is read, and queues are made on it.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    pub(super) fn new(context: &Arc<Context>) -> Result<Arc<Self>, RdmaError> {
        // SAFETY: the context is open; the result is checked.
        let raw = unsafe { sys::ibv_create_comp_channel(context.raw()) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| RdmaError::last_os(RdmaOperation::CreateCompletionQueue))?;
        let channel = Self {
            raw,
            _context: context.clone(),
        };
        set_nonblocking(channel.as_fd())
            .map_err(|error| RdmaError::os(RdmaOperation::CreateCompletionQueue, &error))?;
        Ok(Arc::new(channel))
    }

    /// The mark of the next queue that announced something, acknowledged already.
    pub(super) fn next(&self) -> Option<usize> {
        let mut queue = std::ptr::null_mut();
        let mut mark = std::ptr::null_mut();
        // SAFETY: the channel is open; the places are read only where the call says that they were filled in. The
        // event is acknowledged before anyone can destroy the queue, which waits for that.
        unsafe {
            if sys::ibv_get_cq_event(self.raw.as_ptr(), &mut queue, &mut mark) != 0 {
                return None;
            }
            sys::ibv_ack_cq_events(queue, 1);
        }
        Some(mark as usize)
    }
}

impl AsFd for CompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: queues hold an `Arc` of their channel: none is left; destroyed once.
        unsafe { sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

/// A completion queue.
pub(super) struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    /// Entries it really has.
    pub(super) entries: u32,
    _channel: Arc<CompletionChannel>,
}

// SAFETY: used by one owner at a time, destroyed once.
unsafe impl Send for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `entries`, which announces itself on `channel` with `mark`.
    pub(super) fn new(
        context: &Arc<Context>,
        channel: &Arc<CompletionChannel>,
        entries: u32,
        mark: usize,
    ) -> Result<Self, RdmaError> {
        // SAFETY: context and channel are alive; the mark is never followed as a pointer; the result is checked.
        let raw = unsafe {
            sys::ibv_create_cq(
                context.raw(),
                i32::try_from(entries).unwrap_or(i32::MAX),
                mark as *mut _,
                channel.raw.as_ptr(),
                0,
            )
        };
        let raw = NonNull::new(raw)
            .ok_or_else(|| RdmaError::last_os(RdmaOperation::CreateCompletionQueue))?;
        // SAFETY: just made.
        let entries = unsafe { raw.as_ref().cqe }.max(0) as u32;
        Ok(Self {
            raw,
            entries,
            _channel: channel.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// Appends completions, as many as there are and as fit without growing.
    pub(super) fn poll(&self, into: &mut Vec<sys::ibv_wc>) -> Result<usize, RdmaError> {
        let room = into.spare_capacity_mut();
        let count = i32::try_from(room.len()).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive; there is room for `count` entries.
        let got = unsafe { sys::ibv_poll_cq(self.raw(), count, room.as_mut_ptr().cast()) };
        let got = usize::try_from(got)
            .map_err(|_| RdmaError::last_os(RdmaOperation::CreateCompletionQueue))?;
        // SAFETY: the device library has filled in `got` entries, at most `count`.
        unsafe { into.set_len(into.len() + got) };
        Ok(got)
    }

    /// Asks for an announcement of the next completion.
    pub(super) fn request_notification(&self) -> io::Result<()> {
        // SAFETY: the queue is alive.
        sys::verbs_result(unsafe { sys::ibv_req_notify_cq(self.raw(), 0) })
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: destroyed once, after the queue pairs on it; its events are acknowledged when they are read.
        let done = unsafe { sys::ibv_destroy_cq(self.raw()) };
        if done != 0 {
            tracing::error!(error = done, "a completion queue could not be destroyed");
        }
    }
}

/// A queue pair, made through the connection manager's id, which moves it through its states.
pub(super) struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    id: NonNull<sys::rdma_cm_id>,
    /// What the device really gives.
    pub(super) inline: usize,
    pub(super) send_depth: usize,
    pub(super) receive_depth: usize,
    pub(super) max_gather: usize,
    _domain: Arc<ProtectionDomain>,
}

// SAFETY: used by one owner at a time.
unsafe impl Send for QueuePair {}

impl QueuePair {
    /// A queue pair of `id`. The caller drops it before the id and before the completion queue.
    pub(super) fn new(
        id: &CmId,
        domain: &Arc<ProtectionDomain>,
        queue: &CompletionQueue,
        cap: sys::ibv_qp_cap,
    ) -> io::Result<Self> {
        let mut init = sys::ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: queue.raw(),
            recv_cq: queue.raw(),
            srq: std::ptr::null_mut(),
            cap,
            qp_type: sys::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: id, domain and queue are alive and of one device; the attributes are valid for the call.
        let made = unsafe { sys::rdma_create_qp(id.raw(), domain.raw(), &mut init) };
        sys::cm_result(made)?;
        // SAFETY: the call succeeded, so the id is alive and has its queue pair.
        let (raw, id) = unsafe {
            (
                NonNull::new((*id.raw()).qp),
                NonNull::new_unchecked(id.raw()),
            )
        };
        let raw = raw.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok(Self {
            raw,
            id,
            inline: init.cap.max_inline_data as usize,
            send_depth: cap.max_send_wr as usize,
            receive_depth: cap.max_recv_wr as usize,
            max_gather: cap.max_send_sge as usize,
            _domain: domain.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_qp {
        self.raw.as_ptr()
    }

    /// Ends all work: what is posted comes back flushed. No matter if it has ended already.
    pub(super) fn flush(&self) {
        // SAFETY: all zeroes is valid for this structure of numbers.
        let mut attributes: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = sys::QPS_ERR;
        // SAFETY: the queue pair is alive, the attributes valid for the call.
        unsafe { sys::ibv_modify_qp(self.raw(), &mut attributes, sys::QP_STATE) };
    }

    /// Destroys it. From then on the device touches nothing that was posted. On failure nobody knows: what was
    /// posted must never be freed.
    pub(super) fn destroy(self) -> Result<(), RdmaError> {
        // SAFETY: destroyed once (`self` is taken); the id, which is alive, forgets it.
        let done = unsafe {
            let done = sys::ibv_destroy_qp(self.raw());
            (*self.id.as_ptr()).qp = std::ptr::null_mut();
            done
        };
        sys::verbs_result(done).map_err(|error| RdmaError::os(RdmaOperation::Close, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::RemoteAccess;

    const PLAIN: Rights = Rights {
        windows: false,
        read_sink_is_remote: false,
    };

    #[test]
    fn rights_are_no_more_than_needed() {
        assert_eq!(PLAIN.flags(Access::LOCAL), sys::ACCESS_LOCAL_WRITE);
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
            iwarp.flags(Access::LOCAL),
            sys::ACCESS_LOCAL_WRITE | sys::ACCESS_REMOTE_WRITE
        );
        // What the peer may read it must not be able to write.
        assert_eq!(
            iwarp.flags(Access::remote(RemoteAccess::Read)),
            sys::ACCESS_REMOTE_READ
        );
    }
}
