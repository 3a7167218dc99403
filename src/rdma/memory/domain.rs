//! Registration domains: where memory is made known to a device.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::IoPin;
use crate::rdma::RdmaError;

/// A registration domain (for verbs: a protection domain). Memory registered in one domain can be used by the
/// connections of that domain only.
pub trait Domain: Send + Sync + fmt::Debug {
    /// Registers `len` bytes at `base`. May block.
    ///
    /// # Safety
    /// The range stays mapped, readable and writable until the returned [`Registration`] is dropped.
    ///
    /// # Errors
    /// The device or the system refuses; [`RdmaError::LockedMemory`] where the limit on locked memory is the cause.
    unsafe fn register(
        &self,
        base: NonNull<u8>,
        len: usize,
        access: Access,
    ) -> Result<Registration, RdmaError>;

    /// What a window over `memory` needs besides, where making that may block: the window itself. `None`: nothing.
    ///
    /// # Errors
    /// As for [`Domain::register`].
    fn prepare_window(&self, memory: &IoPin) -> Result<Option<Registration>, RdmaError> {
        let _ = memory;
        Ok(None)
    }

    /// Whether [`Domain::register`] may block.
    fn may_block(&self) -> bool {
        true
    }
}

/// What a registration allows besides reading by the local device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Access {
    /// The local device may write: receives.
    pub local_write: bool,
    /// RDMA reads of the local device may go into it. On iWARP this carries the peer's right to write.
    pub read_sink: bool,
    /// The peer may read.
    pub remote_read: bool,
    /// The peer may write.
    pub remote_write: bool,
    /// Memory windows may be bound to it.
    pub bind: bool,
}

impl Access {
    /// Memory for messages and for windows, and for what is written by RDMA.
    pub const LOCAL: Self = Self {
        local_write: true,
        read_sink: false,
        remote_read: false,
        remote_write: false,
        bind: true,
    };

    /// Memory for local ends of RDMA operations of both directions, to which windows may be bound.
    pub const DATA: Self = Self {
        read_sink: true,
        ..Self::LOCAL
    };

    /// Memory that nobody writes to, for messages and for what is written by RDMA.
    pub const READ_ONLY: Self = Self {
        local_write: false,
        read_sink: false,
        remote_read: false,
        remote_write: false,
        // It would ask for memory that can be written to.
        bind: false,
    };

    /// Memory that the peer may use in the given way through the registration's own key.
    pub const fn remote(access: RemoteAccess) -> Self {
        Self {
            // Only what the direction needs: no more is checked by every device than what is not given.
            local_write: matches!(access, RemoteAccess::Write),
            read_sink: false,
            remote_read: matches!(access, RemoteAccess::Read),
            remote_write: matches!(access, RemoteAccess::Write),
            bind: false,
        }
    }
}

/// What the peer may do with exposed memory: one direction, never both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RemoteAccess {
    /// The peer may read it (the client's side of an SMB WRITE).
    Read,
    /// The peer may write it (the client's side of an SMB READ).
    Write,
}

/// Memory known to a device. Dropping it takes the memory back from the device.
pub struct Registration {
    local_key: u32,
    remote_key: u32,
    guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Registration {
    /// A registration with the device's keys; `guard` undoes it when dropped.
    pub fn new(local_key: u32, remote_key: u32, guard: Option<Box<dyn Any + Send + Sync>>) -> Self {
        Self {
            local_key,
            remote_key,
            guard,
        }
    }

    /// What undoes it, for the provider that has made it.
    pub fn into_guard(self) -> Option<Box<dyn Any + Send + Sync>> {
        self.guard
    }

    /// The key that local requests carry.
    pub fn local_key(&self) -> u32 {
        self.local_key
    }

    /// The key that the peer's requests carry, where remote rights were given.
    pub fn remote_key(&self) -> u32 {
        self.remote_key
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Registration({:#010x}, {:#010x})",
            self.local_key, self.remote_key
        )
    }
}

/// The domain of transports that need no registration: memory of the process as it is.
#[derive(Debug, Default)]
pub struct PlainDomain(());

impl PlainDomain {
    /// A new domain of its own.
    pub fn shared() -> Arc<dyn Domain> {
        Arc::new(Self(()))
    }
}

impl Domain for PlainDomain {
    unsafe fn register(
        &self,
        _base: NonNull<u8>,
        _len: usize,
        _access: Access,
    ) -> Result<Registration, RdmaError> {
        Ok(Registration::new(0, 0, None))
    }

    fn may_block(&self) -> bool {
        false
    }
}
