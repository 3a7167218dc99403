//! What a device hands out, each destroyed when its last owner lets go, children before parents by `Arc`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use super::cm::{CmId, set_nonblocking};
use super::context::Context;
use super::domain::ProtectionDomain;
use super::sys;
use crate::rdma::{RdmaError, RdmaOperation, may_block};

/// Where completion queues announce completions. Its descriptor never blocks.
pub(super) struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
    context: Arc<Context>,
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
            context: context.clone(),
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
        // SAFETY: the channel is alive.
        let fd = unsafe { self.raw.as_ref().fd };
        // SAFETY: queues hold an `Arc` of their channel: none is left; destroyed once.
        let done = unsafe { sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
        if done != 0 && self.context.is_removed() {
            // Device libraries keep their records of what the kernel has destroyed with the device, and libibverbs
            // counts queues by these. At least the descriptor is not left behind.
            // SAFETY: the channel was not destroyed, so the descriptor is still its own; nobody uses it any more.
            unsafe { libc::close(fd) };
        }
    }
}

/// A completion queue.
pub(super) struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    channel: Arc<CompletionChannel>,
}

// SAFETY: destroyed once, by the last owner.
unsafe impl Send for CompletionQueue {}
// SAFETY: polling it, asking it for announcements and making queue pairs on it are thread safe.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `entries`, which announces itself on `channel` with `mark`.
    pub(super) fn new(
        context: &Arc<Context>,
        channel: &Arc<CompletionChannel>,
        entries: u32,
        mark: usize,
    ) -> Result<Self, RdmaError> {
        may_block("making a completion queue");
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
        Ok(Self {
            raw,
            channel: channel.clone(),
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
        if let Err(error) = self.channel.context.destroyed(done) {
            tracing::error!(%error, "a completion queue could not be destroyed");
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
    domain: Arc<ProtectionDomain>,
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
        may_block("making a queue pair");
        let mut init = sys::ibv_qp_init_attr {
            qp_context: std::ptr::null_mut(),
            send_cq: queue.raw(),
            recv_cq: queue.raw(),
            srq: std::ptr::null_mut(),
            cap,
            qp_type: sys::QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: id, domain (while it is asked for, and then for the count's sake) and queue are alive and of one
        // device; the attributes are valid for the call.
        domain.for_queue_pair(|domain| unsafe {
            sys::cm_result(sys::rdma_create_qp(id.raw(), domain, &mut init))
        })?;
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
            domain: domain.clone(),
        })
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_qp {
        self.raw.as_ptr()
    }

    /// Ends all work: what is posted comes back flushed. No matter if it has ended already. Whether something may come
    /// back: nothing does where the kernel has destroyed the queue pair, with the device.
    pub(super) fn flush(&self) -> bool {
        // SAFETY: all zeroes is valid for this structure of numbers.
        let mut attributes: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = sys::QPS_ERR;
        // SAFETY: the queue pair is alive, the attributes valid for the call.
        let done = unsafe { sys::ibv_modify_qp(self.raw(), &mut attributes, sys::QP_STATE) };
        !matches!(sys::verbs_result(done), Err(error) if error.raw_os_error() == Some(libc::EIO))
    }

    /// Its address vector and timers.
    #[cfg(test)]
    pub(super) fn attributes(&self) -> io::Result<sys::ibv_qp_attr> {
        let mask = sys::QP_AV | sys::QP_TIMEOUT;
        // SAFETY: all zeroes is valid for these structures of numbers.
        let (mut attributes, mut made): (sys::ibv_qp_attr, sys::ibv_qp_init_attr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: the queue pair is alive, both places valid for the call.
        sys::verbs_result(unsafe {
            sys::ibv_query_qp(self.raw(), &mut attributes, mask, &mut made)
        })?;
        Ok(attributes)
    }

    /// Destroys it. From then on the device touches nothing that was posted. On failure nobody knows: what was
    /// posted must never be freed.
    pub(super) fn destroy(self) -> Result<(), RdmaError> {
        may_block("destroying a queue pair");
        // SAFETY: destroyed once (`self` is taken); the id, which is alive, forgets it.
        let done = unsafe {
            let done = sys::ibv_destroy_qp(self.raw());
            (*self.id.as_ptr()).qp = std::ptr::null_mut();
            done
        };
        let destroyed = self.domain.destroyed(done);
        destroyed.map_err(|error| RdmaError::os(RdmaOperation::Close, &error))?;
        // Only now: the domain, and with it the memory's registrations, must outlive what may still use them.
        self.domain.lose_user();
        Ok(())
    }
}

/// A queue pair that was made away from its connection. Dropped before it is taken, it is destroyed again.
pub(super) struct MadePair {
    // The pair goes before what it stands on.
    queue_pair: Option<QueuePair>,
    domain: Arc<ProtectionDomain>,
    _queue: Arc<OnceLock<CompletionQueue>>,
    _id: Arc<CmId>,
}

impl MadePair {
    /// A queue pair of `id`, whose connection may be gone meanwhile. So many of its sends are kept for the provider's own.
    pub(super) fn new(
        id: Arc<CmId>,
        domain: Arc<ProtectionDomain>,
        queue: Arc<OnceLock<CompletionQueue>>,
        mut cap: sys::ibv_qp_cap,
        kept: u32,
    ) -> io::Result<Self> {
        let completions = queue
            .get()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut made = QueuePair::new(&id, &domain, completions, cap).or_else(|error| {
            // No device says how much fits inline: without.
            if cap.max_inline_data == 0 {
                return Err(error);
            }
            cap.max_inline_data = 0;
            QueuePair::new(&id, &domain, completions, cap)
        })?;
        made.send_depth -= kept as usize;
        Ok(Self {
            queue_pair: Some(made),
            domain,
            _queue: queue,
            _id: id,
        })
    }

    pub(super) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// The queue pair. Its connection keeps what it stands on.
    pub(super) fn take(&mut self) -> Option<QueuePair> {
        self.queue_pair.take()
    }
}

impl Drop for MadePair {
    fn drop(&mut self) {
        if let Some(queue_pair) = self.queue_pair.take()
            && let Err(error) = queue_pair.destroy()
        {
            // Nothing was posted to it: only the device's own record of it is left.
            tracing::error!(%error, "a queue pair could not be destroyed");
        }
    }
}
