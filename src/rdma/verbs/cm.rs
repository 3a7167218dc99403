//! The connection manager: event channel, ids, events. Events are copied and acknowledged at once, so that an id
//! can be destroyed at any time without waiting.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::errors::open_error;
use super::sockaddr::{self, RawAddress};
use super::sys;
use crate::rdma::RdmaError;

/// Where the events of ids arrive. Its descriptor never blocks.
pub(super) struct EventChannel(NonNull<sys::rdma_event_channel>);

// SAFETY: librdmacm locks its own state; the channel is destroyed once, by the last owner.
unsafe impl Send for EventChannel {}
// SAFETY: as above; reading events is one system call on the descriptor.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub(super) fn open() -> Result<Arc<Self>, RdmaError> {
        // SAFETY: no arguments; the result is checked.
        let raw = unsafe { sys::rdma_create_event_channel() };
        let channel = NonNull::new(raw).map(Self);
        let channel = channel.ok_or_else(|| open_error(&io::Error::last_os_error()))?;
        set_nonblocking(channel.as_fd()).map_err(|error| open_error(&error))?;
        Ok(Arc::new(channel))
    }

    /// The next event, acknowledged already.
    pub(super) fn next(self: &Arc<Self>) -> io::Result<Option<CmEvent>> {
        let mut event: *mut sys::rdma_cm_event = std::ptr::null_mut();
        // SAFETY: the channel is open and `event` a valid place.
        let got = unsafe { sys::rdma_get_cm_event(self.0.as_ptr(), &mut event) };
        if let Err(error) = sys::cm_result(got) {
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // SAFETY: librdmacm returned success, so `event` points to an event that lives until it is acknowledged,
        // which happens here only and after the last use. Its union is of the connected kind for port space TCP.
        let copy = unsafe {
            let raw = &*event;
            let copy = self.copy(raw);
            sys::rdma_ack_cm_event(event);
            copy
        };
        Ok(Some(copy))
    }

    /// # Safety
    /// `raw` is an event of this channel that is not acknowledged yet.
    unsafe fn copy(self: &Arc<Self>, raw: &sys::rdma_cm_event) -> CmEvent {
        // SAFETY: the port space is TCP, for which this arm of the union is filled in.
        let param = unsafe { raw.param.conn };
        let private_data = if param.private_data.is_null() {
            Vec::new()
        } else {
            let len = usize::from(param.private_data_len);
            // SAFETY: librdmacm points to that many bytes within the event.
            unsafe { std::slice::from_raw_parts(param.private_data.cast::<u8>(), len) }.to_vec()
        };
        let request = if raw.event == sys::cm_event::RDMA_CM_EVENT_CONNECT_REQUEST {
            // A connection request brings an id that is ours from now on.
            NonNull::new(raw.id).map(|id| CmId {
                raw: id,
                channel: self.clone(),
            })
        } else {
            None
        };
        CmEvent {
            key: if request.is_some() {
                raw.listen_id as usize
            } else {
                raw.id as usize
            },
            kind: raw.event,
            status: raw.status,
            private_data,
            initiator_depth: param.initiator_depth,
            responder_resources: param.responder_resources,
            request,
        }
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.0.as_ref().fd) }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: every id holds an `Arc` of its channel, so none is left; destroyed once.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// A copy of an event.
pub(super) struct CmEvent {
    /// Names the id it is for: the listener's for a connection request.
    pub(super) key: usize,
    pub(super) kind: u32,
    pub(super) status: i32,
    pub(super) private_data: Vec<u8>,
    pub(super) initiator_depth: u8,
    pub(super) responder_resources: u8,
    /// The new connection of a connection request.
    pub(super) request: Option<CmId>,
}

/// An id of the connection manager: a connection or a listener.
pub(super) struct CmId {
    raw: NonNull<sys::rdma_cm_id>,
    channel: Arc<EventChannel>,
}

// SAFETY: librdmacm locks its own state; an id may be used by any one thread at a time.
unsafe impl Send for CmId {}
// SAFETY: shared with the one helper thread that sleeps in `connect`, during which the provider calls nothing on the
// id but what reads events (librdmacm locks these) and the addresses, which no longer change.
unsafe impl Sync for CmId {}

impl CmId {
    pub(super) fn new(channel: &Arc<EventChannel>) -> io::Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the channel is open, and outlives the id, which holds an `Arc` of it.
        let made = unsafe {
            sys::rdma_create_id(
                channel.0.as_ptr(),
                &mut raw,
                std::ptr::null_mut(),
                sys::PS_TCP,
            )
        };
        sys::cm_result(made)?;
        let raw = NonNull::new(raw).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        Ok(Self {
            raw,
            channel: channel.clone(),
        })
    }

    /// Names it in events.
    pub(super) fn key(&self) -> usize {
        self.raw.as_ptr() as usize
    }

    pub(super) fn raw(&self) -> *mut sys::rdma_cm_id {
        self.raw.as_ptr()
    }

    /// The device's context, once the device is known.
    pub(super) fn verbs(&self) -> Option<NonNull<sys::ibv_context>> {
        // SAFETY: the id is alive.
        NonNull::new(unsafe { self.raw.as_ref().verbs })
    }

    pub(super) fn port(&self) -> u8 {
        // SAFETY: the id is alive.
        unsafe { self.raw.as_ref().port_num }
    }

    pub(super) fn local(&self) -> Option<SocketAddr> {
        // SAFETY: the id is alive, and the union's largest arm covers whichever was written.
        sockaddr::from_raw(unsafe { &self.raw.as_ref().route.addr.src_addr_union.src_storage })
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        // SAFETY: as in `local`.
        sockaddr::from_raw(unsafe { &self.raw.as_ref().route.addr.dst_addr_union.dst_storage })
    }

    pub(super) fn bind(&self, address: SocketAddr) -> io::Result<()> {
        let mut raw = RawAddress::new(address);
        // SAFETY: the id is alive and the address valid for the call.
        sys::cm_result(unsafe { sys::rdma_bind_addr(self.raw(), raw.as_ptr()) })
    }

    pub(super) fn listen(&self, backlog: u32) -> io::Result<()> {
        let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
        // SAFETY: the id is alive.
        sys::cm_result(unsafe { sys::rdma_listen(self.raw(), backlog) })
    }

    pub(super) fn resolve_address(
        &self,
        from: Option<SocketAddr>,
        to: SocketAddr,
        timeout: Duration,
    ) -> io::Result<()> {
        let mut from = from.map(RawAddress::new);
        let from = from
            .as_mut()
            .map_or(std::ptr::null_mut(), RawAddress::as_ptr);
        let mut to = RawAddress::new(to);
        // SAFETY: the id is alive and both addresses valid for the call; a null source is "any".
        sys::cm_result(unsafe {
            sys::rdma_resolve_addr(self.raw(), from, to.as_ptr(), milliseconds(timeout))
        })
    }

    pub(super) fn resolve_route(&self, timeout: Duration) -> io::Result<()> {
        // SAFETY: the id is alive.
        sys::cm_result(unsafe { sys::rdma_resolve_route(self.raw(), milliseconds(timeout)) })
    }

    /// Sets an option of one byte, or of an `int`.
    fn set_option<T>(&self, option: i32, mut value: T) -> io::Result<()> {
        // SAFETY: the id is alive, and the value is read within the call.
        sys::cm_result(unsafe {
            sys::rdma_set_option(
                self.raw(),
                sys::OPTION_ID,
                option,
                std::ptr::addr_of_mut!(value).cast(),
                size_of::<T>(),
            )
        })
    }

    pub(super) fn set_type_of_service(&self, value: u8) -> io::Result<()> {
        self.set_option(sys::OPTION_ID_TOS, value)
    }

    pub(super) fn set_ack_timeout(&self, exponent: u8) -> io::Result<()> {
        self.set_option(sys::OPTION_ID_ACK_TIMEOUT, exponent)
    }

    /// An IPv6 listener takes no IPv4.
    pub(super) fn set_one_family(&self) -> io::Result<()> {
        self.set_option(sys::OPTION_ID_AFONLY, 1i32)
    }

    pub(super) fn connect(&self, param: &Handshake<'_>) -> io::Result<()> {
        let mut raw = param.raw();
        // SAFETY: the id is alive, and the parameters with the private data are read within the call.
        sys::cm_result(unsafe { sys::rdma_connect(self.raw(), &mut raw) })
    }

    pub(super) fn accept(&self, param: &Handshake<'_>) -> io::Result<()> {
        let mut raw = param.raw();
        // SAFETY: as in `connect`.
        sys::cm_result(unsafe { sys::rdma_accept(self.raw(), &mut raw) })
    }

    /// Refuses a connection request.
    pub(super) fn reject(&self) {
        // SAFETY: the id is alive; no private data. That the peer is gone already is no matter.
        unsafe { sys::rdma_reject(self.raw(), std::ptr::null(), 0) };
    }

    /// Tells the peer that we leave. Fails where the peer has left before, which is no matter.
    pub(super) fn disconnect(&self) {
        // SAFETY: the id is alive.
        unsafe { sys::rdma_disconnect(self.raw()) };
    }

    /// The same, while the queue pair goes on and acknowledges what the peer has under way: on InfiniBand and RoCE
    /// librdmacm's call would end it first, and the peer's Sends with it.
    ///
    /// No other thread may use the id's queue pair meanwhile; it is the connection's own.
    pub(super) fn leave(&self) {
        // SAFETY: the id is alive. It has its queue pair again, or still none, when anybody looks: until it is destroyed,
        // which its connection does, only calls on the id look there.
        unsafe {
            let queue_pair = std::mem::replace(&mut (*self.raw()).qp, std::ptr::null_mut());
            sys::rdma_disconnect(self.raw());
            (*self.raw()).qp = queue_pair;
        }
    }

    /// Moves it, with its events, to another channel.
    pub(super) fn migrate(&mut self, channel: &Arc<EventChannel>) -> io::Result<()> {
        if Arc::ptr_eq(&self.channel, channel) {
            return Ok(());
        }
        // SAFETY: the id is alive, and the new channel open; the `Arc` of it is taken over below.
        sys::cm_result(unsafe { sys::rdma_migrate_id(self.raw(), channel.0.as_ptr()) })?;
        self.channel = channel.clone();
        Ok(())
    }
}

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: destroyed once. Its queue pair was destroyed before (`QueuePair` is dropped first), and all its
        // events are acknowledged when they are read.
        unsafe { sys::rdma_destroy_id(self.raw()) };
    }
}

/// What goes into connect and accept.
pub(super) struct Handshake<'a> {
    pub(super) private_data: &'a [u8],
    pub(super) initiator_depth: u8,
    pub(super) responder_resources: u8,
}

impl Handshake<'_> {
    fn raw(&self) -> sys::rdma_conn_param {
        sys::rdma_conn_param {
            private_data: if self.private_data.is_empty() {
                std::ptr::null()
            } else {
                self.private_data.as_ptr().cast()
            },
            private_data_len: self.private_data.len() as u8,
            responder_resources: self.responder_resources,
            initiator_depth: self.initiator_depth,
            flow_control: 0,
            // 7 means "for ever" to soft-RoCE: a peer that is gone would never be noticed.
            retry_count: 6,
            // [MS-SMBD] 3.1.5.9: credits stand for posted receives, so that none is ever missing.
            rnr_retry_count: 0,
            srq: 0,
            qp_num: 0,
        }
    }
}

/// Makes reads of a descriptor return at once.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open; only its flags are changed.
    let done = unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis())
        .unwrap_or(i32::MAX)
        .max(1)
}
