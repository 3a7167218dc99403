//! A connection's windows: exact range, one right, valid from bind to invalidation.

use crate::rdma::{IoPin, Registration, RemoteAccess, WindowId};

#[derive(Debug, Default)]
pub(super) struct Windows {
    places: Vec<(u32, Option<Exposed>)>,
}

#[derive(Debug)]
pub(super) struct Exposed {
    // Dropped before the memory that it describes.
    registration: Option<Registration>,
    pub(super) memory: IoPin,
    pub(super) access: RemoteAccess,
    pub(super) key: u32,
    pub(super) address: u64,
    /// Whether the peer's key is good.
    pub(super) valid: bool,
    /// Whether it was invalidated: its key never becomes good again.
    pub(super) spent: bool,
    /// Whether it is valid from the start and may be closed at any time.
    pub(super) needs_bind: bool,
    /// Binds and invalidations of it that are posted and not executed.
    pub(super) posted: u32,
}

/// Why a remote key does not serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    Key,
    Bounds,
    Rights,
}

impl Exposed {
    pub(super) fn new(
        memory: IoPin,
        access: RemoteAccess,
        registration: Option<Registration>,
        (key, address): (u32, u64),
        needs_bind: bool,
    ) -> Self {
        Self {
            registration,
            memory,
            access,
            key,
            address,
            valid: !needs_bind,
            spent: false,
            needs_bind,
            posted: 0,
        }
    }
}

impl Exposed {
    pub(super) fn invalidate(&mut self) {
        self.valid = false;
        self.spent = true;
    }
}

impl Windows {
    pub(super) fn count(&self) -> usize {
        self.places.iter().filter(|(_, w)| w.is_some()).count()
    }

    pub(super) fn insert(&mut self, window: Exposed) -> WindowId {
        let index = match self.places.iter().position(|(_, w)| w.is_none()) {
            Some(index) => index,
            None => {
                self.places.push((0, None));
                self.places.len() - 1
            }
        };
        let place = &mut self.places[index];
        place.0 += 1;
        place.1 = Some(window);
        WindowId {
            index: index as u32,
            generation: place.0,
        }
    }

    pub(super) fn find(&mut self, id: WindowId) -> Option<&mut Exposed> {
        let (generation, window) = self.places.get_mut(id.index as usize)?;
        window.as_mut().filter(|_| *generation == id.generation)
    }

    pub(super) fn close(&mut self, id: WindowId) -> Option<(IoPin, Option<Registration>)> {
        let window = self.find(id)?;
        if window.posted > 0 || (window.needs_bind && window.valid) {
            return None;
        }
        let place = &mut self.places[id.index as usize].1;
        place
            .take()
            .map(|window| (window.memory, window.registration))
    }

    /// The valid window with this key.
    pub(super) fn by_key(&mut self, key: u32) -> Option<&mut Exposed> {
        self.places
            .iter_mut()
            .filter_map(|(_, w)| w.as_mut())
            .find(|w| w.valid && w.key == key)
    }

    /// The memory that a request of the peer means, and the offset in it.
    pub(super) fn check(
        &mut self,
        key: u32,
        address: u64,
        len: usize,
        access: RemoteAccess,
    ) -> Result<(&IoPin, usize), Denied> {
        let window = self.by_key(key).ok_or(Denied::Key)?;
        if window.access != access {
            return Err(Denied::Rights);
        }
        let room = window.memory.len() as u64;
        let offset = address.checked_sub(window.address).ok_or(Denied::Bounds)?;
        if offset > room || len as u64 > room - offset {
            return Err(Denied::Bounds);
        }
        Ok((&window.memory, offset as usize))
    }
}
