//! What a connection's peer may use: exposures, each of one or more windows, from bind to the proof that the right is
//! over.

use std::collections::HashMap;
use std::task::Waker;

use super::retired::Retired;
use crate::rdma::{
    ConnId, IoBuf, IoPin, Operation, Provider, RdmaError, Registration, SendRequest, Window,
    WindowId,
};
use crate::transport::{Completer, Error, List};

/// The mark of requests that bind or invalidate a window in their cookies.
pub(crate) const COOKIE: u64 = 2 << 32;

/// Names an exposure of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExposureId {
    index: u32,
    generation: u32,
}

/// Memory that its owner wants back, and who waits for it. With a completer the response to the request has come;
/// without one it may come at any time.
pub(crate) enum Reclaim {
    One {
        memory: IoPin,
        completer: Option<Completer<IoBuf>>,
    },
    Many {
        memory: Vec<IoPin>,
        completer: Option<Completer<Vec<IoBuf>>>,
    },
}

/// The exposures of a connection.
#[derive(Default)]
pub(crate) struct Exposures {
    places: Vec<Exposure>,
    free: Vec<u32>,
    /// By the place in the provider's table.
    windows: Vec<Option<State>>,
    /// The place in `windows`.
    by_key: HashMap<u32, u32>,
}

/// One exposure.
#[derive(Default)]
struct Exposure {
    generation: u32,
    windows: List<WindowId>,
    /// Windows that the peer may still be able to use.
    open: u32,
    /// What the others stood on.
    rest: List<Registration>,
    /// The owner wants the memory back.
    reclaim: Option<Reclaim>,
}

/// One window.
struct State {
    id: WindowId,
    /// The exposure it belongs to.
    exposure: u32,
    key: u32,
    needs_bind: bool,
    /// The peer was asked to invalidate it.
    offered: bool,
    /// The peer did.
    invalidated: bool,
    /// An invalidation of ours is on its way.
    revoking: bool,
}

/// What closing a window needs.
pub(crate) struct Closing<'a> {
    pub(crate) conn: ConnId,
    pub(crate) provider: &'a mut dyn Provider,
    pub(crate) retired: &'a mut Vec<Retired>,
}

impl Exposures {
    /// A new exposure. The requests that bind its windows are to be posted ahead of everything else.
    pub(crate) fn add(
        &mut self,
        windows: &[Window],
        urgent: &mut impl Extend<SendRequest>,
    ) -> ExposureId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Exposure::default());
            (self.places.len() - 1) as u32
        });
        for window in windows {
            let place = window.id.index as usize;
            if self.windows.len() <= place {
                self.windows.resize_with(place + 1, || None);
            }
            self.windows[place] = Some(State {
                id: window.id,
                exposure: index,
                key: window.key,
                needs_bind: window.needs_bind,
                offered: false,
                invalidated: false,
                revoking: false,
            });
            self.by_key.insert(window.key, window.id.index);
        }
        let binds = windows.iter().filter(|window| window.needs_bind);
        urgent.extend(binds.map(|window| SendRequest {
            cookie: COOKIE,
            signalled: false,
            operation: Operation::Bind { window: window.id },
        }));
        let exposure = &mut self.places[index as usize];
        exposure.windows = windows.iter().map(|window| window.id).collect();
        exposure.open = windows.len() as u32;
        ExposureId {
            index,
            generation: exposure.generation,
        }
    }

    /// The peer is asked to invalidate it: [MS-SMB2] 3.3.4.4 has the server do so with the first descriptor only.
    pub(crate) fn offer(&mut self, id: ExposureId) {
        let first = self
            .exposure(id)
            .and_then(|exposure| exposure.windows.first().copied());
        if let Some(state) = first.and_then(|window| self.window(window)) {
            state.offered = true;
        }
    }

    /// The peer invalidated a key. False if it is none of ours: then it broke the rules.
    pub(crate) fn invalidated(&mut self, key: u32, closing: &mut Closing<'_>) -> bool {
        let Some(place) = self.by_key.get(&key).copied() else {
            return false;
        };
        let Some(state) = self
            .windows
            .get_mut(place as usize)
            .and_then(Option::as_mut)
        else {
            return false;
        };
        state.invalidated = true;
        let (id, settled) = (state.id, !state.revoking);
        let owner = self.places.get(state.exposure as usize);
        // If its owner waits for the memory already, this was the proof.
        if settled && owner.is_some_and(|exposure| exposure.reclaim.is_some()) {
            self.close(id, closing);
        }
        true
    }

    /// The owner wants the memory back. The requests that take the peer's right away are to be posted.
    pub(crate) fn reclaim(
        &mut self,
        id: ExposureId,
        reclaim: Reclaim,
        urgent: &mut impl Extend<SendRequest>,
        closing: &mut Closing<'_>,
    ) {
        let Some(exposure) = self.exposure(id) else {
            closing.retired.push(Retired::Memory(reclaim));
            return;
        };
        let response_has_come = reclaim.is_awaited();
        exposure.reclaim = Some(reclaim);
        let windows = std::mem::take(&mut exposure.windows);
        for window in windows.iter() {
            let Some(state) = self.window(*window) else {
                continue;
            };
            if !state.needs_bind || state.invalidated {
                self.close(*window, closing);
            } else if !state.offered || response_has_come {
                state.revoking = true;
                urgent.extend([SendRequest {
                    cookie: COOKIE,
                    signalled: true,
                    operation: Operation::Invalidate { window: *window },
                }]);
            }
            // Else a response that invalidates it may still come: it stays until then, or until the queue pair is
            // gone.
        }
    }

    /// An invalidation of ours has been executed.
    pub(crate) fn revoked(&mut self, id: WindowId, closing: &mut Closing<'_>) {
        self.close(id, closing);
    }

    /// The connection is gone, and every right goes with what it leaves behind.
    pub(crate) fn end(&mut self, retired: &mut Vec<Retired>) {
        self.by_key.clear();
        self.windows.clear();
        self.free.clear();
        for exposure in self.places.drain(..) {
            if !exposure.rest.is_empty() {
                retired.push(Retired::Prepared(exposure.rest));
            }
            retired.extend(exposure.reclaim.map(Retired::Memory));
        }
    }

    /// The peer has no right to a window any more.
    fn close(&mut self, id: WindowId, closing: &mut Closing<'_>) {
        if self.window(id).is_none() {
            return;
        }
        let Some(state) = self.windows[id.index as usize].take() else {
            return;
        };
        self.by_key.remove(&state.key);
        // The provider's pin goes first, so that the owner's is the last.
        let rest = closing.provider.retire_window(closing.conn, id);
        let rest = rest.and_then(|(_, rest)| rest);
        let Some(exposure) = self.places.get_mut(state.exposure as usize) else {
            return;
        };
        if let Some(rest) = rest {
            exposure.rest.push(rest);
        }
        exposure.open = exposure.open.saturating_sub(1);
        if exposure.open > 0 {
            return;
        }
        exposure.generation = exposure.generation.wrapping_add(1);
        exposure.windows = List::Empty;
        self.free.push(state.exposure);
        let rest = std::mem::take(&mut exposure.rest);
        if !rest.is_empty() {
            closing.retired.push(Retired::Prepared(rest));
        }
        let reclaim = exposure.reclaim.take();
        closing.retired.extend(reclaim.map(Retired::Memory));
    }

    fn exposure(&mut self, id: ExposureId) -> Option<&mut Exposure> {
        let exposure = self.places.get_mut(id.index as usize)?;
        (exposure.generation == id.generation && exposure.open > 0).then_some(exposure)
    }

    fn window(&mut self, id: WindowId) -> Option<&mut State> {
        let state = self.windows.get_mut(id.index as usize)?.as_mut()?;
        (state.id == id).then_some(state)
    }
}

impl Reclaim {
    fn is_awaited(&self) -> bool {
        match self {
            Self::One { completer, .. } => completer.is_some(),
            Self::Many { completer, .. } => completer.is_some(),
        }
    }

    /// The peer's right is over: the memory goes to who waits for it, or to its pool.
    pub(crate) fn give_back(self, wakers: &mut Vec<Waker>) {
        match self {
            Self::One {
                memory,
                completer: Some(completer),
            } => wakers.extend(completer.complete(unpin(memory))),
            Self::Many {
                memory,
                completer: Some(completer),
            } => {
                let memory = memory.into_iter().map(unpin).collect();
                wakers.extend(completer.complete(memory));
            }
            Self::One { .. } | Self::Many { .. } => {}
        }
    }
}

fn unpin(memory: IoPin) -> Result<IoBuf, Error> {
    memory.unpin().map_err(|_| Error::Rdma(RdmaError::Closed))
}
