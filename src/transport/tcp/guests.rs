//! How many connections of a listener there are, of each peer and in total.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of one listener.
#[derive(Debug, Default)]
pub(super) struct Guests {
    by_peer: Mutex<ByPeer>,
}

#[derive(Debug, Default)]
struct ByPeer {
    counts: HashMap<IpAddr, usize>,
    total: usize,
}

/// One connection, as long as it lives.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    peer: IpAddr,
}

impl Guests {
    /// Counts a connection, unless there are as many as may be.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: IpAddr,
        of_peer: usize,
        all: usize,
    ) -> Option<Guest> {
        // An IPv4 peer is the same one on a listener of IPv6.
        let peer = peer.to_canonical();
        let mut by_peer = self.lock();
        let count = by_peer.counts.get(&peer).copied().unwrap_or(0);
        if by_peer.total >= all || count >= of_peer {
            return None;
        }
        by_peer.total += 1;
        by_peer.counts.insert(peer, count + 1);
        let guests = self.clone();
        Some(Guest { guests, peer })
    }

    fn lock(&self) -> MutexGuard<'_, ByPeer> {
        // Nothing panics under this lock.
        self.by_peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut by_peer = self.guests.lock();
        by_peer.total -= 1;
        if let Some(count) = by_peer.counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.counts.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_and_given_back() {
        let guests = Arc::new(Guests::default());
        let [one, same, other] = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"]
            .map(|text| text.parse::<IpAddr>().unwrap());
        let first = guests.enter(one, 1, 2).unwrap();
        assert!(guests.enter(same, 1, 2).is_none(), "the same peer");
        let second = guests.enter(other, 1, 2).unwrap();
        assert!(guests.enter(same, 2, 2).is_none(), "two in all");
        drop(first);
        let third = guests.enter(same, 1, 2).unwrap();
        drop((second, third));
        let left = guests.lock();
        assert_eq!((left.total, left.counts.len()), (0, 0));
    }
}
