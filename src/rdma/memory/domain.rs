//! Registration domains: where memory is made known to a device.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

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
}

/// What a registration allows besides reading by the local device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Access {
    /// The local device may write: receives, and sinks of RDMA reads.
    pub local_write: bool,
    /// The peer may read.
    pub remote_read: bool,
    /// The peer may write.
    pub remote_write: bool,
    /// Memory windows may be bound to it.
    pub bind: bool,
}

impl Access {
    /// Memory for messages and for local ends of RDMA operations, to which windows may be bound.
    pub const LOCAL: Self = Self {
        local_write: true,
        remote_read: false,
        remote_write: false,
        bind: true,
    };

    /// Memory that the peer may use in the given way through the registration's own key.
    pub const fn remote(access: RemoteAccess) -> Self {
        Self {
            // Only what the direction needs: on iWARP the right to write locally may carry the remote one.
            local_write: matches!(access, RemoteAccess::Write),
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
    _guard: Option<Box<dyn Any + Send + Sync>>,
}

impl Registration {
    /// A registration with the device's keys; `guard` undoes it when dropped.
    pub fn new(local_key: u32, remote_key: u32, guard: Option<Box<dyn Any + Send + Sync>>) -> Self {
        Self {
            local_key,
            remote_key,
            _guard: guard,
        }
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
}
