//! The exposures of one connection: type-2B windows and per-operation registrations.
//!
//! A window's state follows what was posted, not what has completed: the queue executes in order, and a failed bind
//! ends the connection. What is known to be free is never invalidated again (soft-RoCE would crash the kernel).

use std::collections::HashMap;

use super::domain::{MemoryWindow, RegionPtr, WindowParts};
use super::sys;
use crate::rdma::{IoPin, Registration, RemoteAccess, Window, WindowId};

/// The table of one connection: [`Windows::free_all`] before the queue pair is destroyed, dropped after.
#[derive(Default)]
pub(super) struct Windows {
    places: Vec<Place>,
    /// Free places.
    free: Vec<u32>,
    /// Bound windows by key.
    keys: HashMap<u32, u32>,
}

struct Place {
    generation: u32,
    state: State,
    // Dropped in this order: a window before the memory it may be bound to.
    window: Option<MemoryWindow>,
    /// Of the memory alone.
    registration: Option<Registration>,
    memory: Option<IoPin>,
    region: Option<RegionPtr>,
    access: RemoteAccess,
    /// The key while open or bound.
    key: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Names nothing.
    Vacant,
    /// Has memory, the peer has no access.
    Open,
    /// The bind was posted.
    Bound,
    /// The invalidation was posted.
    Invalidating,
    /// Was bound, and is free again.
    Free,
    /// A registration: needs no bind.
    Registered,
}

/// How an invalidation is to be posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalidation {
    /// As such, of this key.
    Needed(u32),
    /// The window is free already: keep the order, touch nothing.
    Done,
}

impl Windows {
    /// Opens a window over memory of `region`, with what was made for it.
    pub(super) fn open(
        &mut self,
        memory: IoPin,
        region: RegionPtr,
        access: RemoteAccess,
        parts: WindowParts,
    ) -> Window {
        let index = self.vacate();
        let place = &mut self.places[index as usize];
        place.key = sys::next_key(parts.window.key());
        place.window = Some(parts.window);
        place.region = Some(region);
        place.registration = parts.alone;
        place.access = access;
        place.state = State::Open;
        place.take_in(index, memory)
    }

    /// Takes a registration of the memory in, whose key the peer may use at once.
    pub(super) fn open_registered(
        &mut self,
        memory: IoPin,
        registration: Registration,
        access: RemoteAccess,
    ) -> Window {
        let index = self.vacate();
        let place = &mut self.places[index as usize];
        place.key = registration.remote_key();
        place.registration = Some(registration);
        place.access = access;
        place.state = State::Registered;
        place.take_in(index, memory)
    }

    /// Ends an exposure without access, and gives the memory back together with what must be dropped before it is used.
    pub(super) fn retire(&mut self, id: WindowId) -> Option<(IoPin, Option<Registration>)> {
        let place = self.place(id)?;
        if !matches!(place.state, State::Open | State::Free | State::Registered) {
            return None;
        }
        place.state = State::Vacant;
        place.generation = place.generation.wrapping_add(1);
        place.region = None;
        let (memory, mut rest) = (place.memory.take(), place.registration.take());
        if let Some(surplus) = place.window.take().and_then(MemoryWindow::spare) {
            rest = Some(Registration::new(0, 0, Some(Box::new((surplus, rest)))));
        }
        self.free.push(id.index);
        Some((memory?, rest))
    }

    /// What a bind request says. The window counts as bound from now on.
    pub(super) fn bind(&mut self, id: WindowId) -> Option<sys::bind_mw_t> {
        let place = self.place(id)?;
        let (State::Open, Some(window), Some(region), Some(memory)) =
            (place.state, &place.window, place.region, &place.memory)
        else {
            return None;
        };
        place.state = State::Bound;
        let bind = sys::bind_mw_t {
            mw: window.raw(),
            rkey: place.key,
            bind_info: sys::ibv_mw_bind_info {
                mr: region.raw(),
                addr: memory.address().as_ptr() as u64,
                length: memory.len() as u64,
                mw_access_flags: match place.access {
                    RemoteAccess::Read => sys::ACCESS_REMOTE_READ,
                    RemoteAccess::Write => sys::ACCESS_REMOTE_WRITE,
                },
            },
        };
        self.keys.insert(bind.rkey, id.index);
        Some(bind)
    }

    /// The device has taken the bind: the window's key is the new one, with which the next bind is compared.
    pub(super) fn bind_posted(&mut self, id: WindowId) {
        if let Some(place) = self.place(id) {
            let key = place.key;
            if let Some(window) = &mut place.window {
                window.set_key(key);
            }
        }
    }

    /// The device has not taken the bind.
    pub(super) fn bind_refused(&mut self, id: WindowId) {
        if let Some(place) = self.place(id) {
            place.state = State::Open;
            let key = place.key;
            self.keys.remove(&key);
        }
    }

    /// How to invalidate; `None` for what was never bound or is being invalidated already.
    pub(super) fn invalidation(&self, id: WindowId) -> Option<Invalidation> {
        let place = self.peek(id)?;
        match place.state {
            State::Bound => Some(Invalidation::Needed(place.key)),
            State::Free => Some(Invalidation::Done),
            _ => None,
        }
    }

    /// The invalidation is part of a chain (`true`), or the device has not taken it (`false`).
    pub(super) fn set_invalidating(&mut self, id: WindowId, posted: bool) {
        if let Some(place) = self.place(id) {
            match place.state {
                State::Bound if posted => place.state = State::Invalidating,
                State::Invalidating if !posted => place.state = State::Bound,
                _ => {}
            }
        }
    }

    /// An invalidation has completed.
    pub(super) fn invalidated(&mut self, id: WindowId) {
        if let Some(place) = self.place(id)
            && place.state == State::Invalidating
        {
            place.state = State::Free;
            let key = place.key;
            self.keys.remove(&key);
        }
    }

    /// The peer has invalidated a key.
    pub(super) fn invalidated_by_peer(&mut self, key: u32) {
        if let Some(index) = self.keys.remove(&key) {
            self.places[index as usize].state = State::Free;
        }
    }

    /// Frees all windows, bound or not; the memory stays until the table is dropped. To be called before the queue
    /// pair is destroyed: soft-RoCE's windows hold on to it.
    pub(super) fn free_all(&mut self) {
        for place in &mut self.places {
            place.window = None;
        }
    }

    fn peek(&self, id: WindowId) -> Option<&Place> {
        let place = self.places.get(id.index as usize)?;
        (place.generation == id.generation && place.state != State::Vacant).then_some(place)
    }

    fn place(&mut self, id: WindowId) -> Option<&mut Place> {
        let place = self.places.get_mut(id.index as usize)?;
        (place.generation == id.generation && place.state != State::Vacant).then_some(place)
    }

    /// A free place.
    fn vacate(&mut self) -> u32 {
        if let Some(index) = self.free.pop() {
            return index;
        }
        self.places.push(Place {
            generation: 0,
            state: State::Vacant,
            window: None,
            registration: None,
            memory: None,
            region: None,
            access: RemoteAccess::Read,
            key: 0,
        });
        (self.places.len() - 1) as u32
    }
}

impl Place {
    fn take_in(&mut self, index: u32, memory: IoPin) -> Window {
        let window = Window {
            id: WindowId {
                index,
                generation: self.generation,
            },
            key: self.key,
            address: memory.address().as_ptr() as u64,
            len: u32::try_from(memory.len()).unwrap_or(u32::MAX),
            needs_bind: self.state == State::Open,
        };
        self.memory = Some(memory);
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rdma::{PlainDomain, Slab, SlabOptions};

    fn pin() -> IoPin {
        let slab = Slab::new(&PlainDomain::shared(), 64, 1, SlabOptions::default()).unwrap();
        slab.take().unwrap().pin()
    }

    #[test]
    fn a_registration_is_exposed_until_it_is_closed() {
        let mut windows = Windows::default();
        let registration = Registration::new(1, 2, None);
        let window = windows.open_registered(pin(), registration, RemoteAccess::Write);
        assert_eq!((window.key, window.len, window.needs_bind), (2, 64, false));
        assert!(windows.bind(window.id).is_none() && windows.invalidation(window.id).is_none());
        assert!(windows.retire(window.id).is_some());
        assert!(windows.retire(window.id).is_none());
        let again =
            windows.open_registered(pin(), Registration::new(1, 3, None), RemoteAccess::Read);
        assert_eq!(again.id.index, window.id.index);
        assert_ne!(again.id, window.id);
    }

    #[test]
    fn keys_of_others_free_nothing() {
        let mut windows = Windows::default();
        let registration = Registration::new(1, 2, None);
        let window = windows.open_registered(pin(), registration, RemoteAccess::Write);
        windows.invalidated_by_peer(2);
        assert_eq!(windows.invalidation(window.id), None);
    }
}
