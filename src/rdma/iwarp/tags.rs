//! Steering tags and the windows they open onto memory.
//!
//! A tag is valid on its own connection only, gives exactly one range and one direction, and is
//! never used again on that connection.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;

use super::sys;
use crate::rdma::{IoPin, RemoteAccess, WindowId};

/// Why the peer may not use a tag as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is no such tag (any more).
    Tag,
    /// Not within the window.
    Bounds,
    /// Offset and length go beyond 64 bits.
    Wrap,
    /// The other direction.
    Access,
}

/// A connection's windows.
#[derive(Debug)]
pub(super) struct Tags {
    allocator: TagAllocator,
    by_tag: HashMap<u32, u32, BuildHasherDefault<TagHasher>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    window: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    memory: IoPin,
    access: RemoteAccess,
    tag: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not valid yet.
    Reserved,
    /// Valid.
    Bound,
    /// Not valid any more.
    Invalid,
}

impl Tags {
    /// No windows, and a secret order of tags.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            allocator: TagAllocator::new(sys::random()?),
            by_tag: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
        })
    }

    /// A tag that nothing was ever named by on this connection; `None` when all 2^32 have been.
    pub(super) fn fresh(&mut self) -> Option<u32> {
        self.allocator.next()
    }

    /// Reserves a tag for `memory`.
    pub(super) fn open(&mut self, memory: IoPin, access: RemoteAccess) -> Option<(WindowId, u32)> {
        let tag = self.fresh()?;
        let entry = Entry {
            memory,
            access,
            tag,
            state: State::Reserved,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                window: None,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.window = Some(entry);
        let generation = slot.generation;
        Some((WindowId { index, generation }, tag))
    }

    /// Whether the window exists.
    pub(super) fn exists(&self, id: WindowId) -> bool {
        self.entry(id).is_some()
    }

    /// Makes a reserved window valid; whether it was reserved.
    pub(super) fn bind(&mut self, id: WindowId) -> bool {
        let Some(entry) = self.entry_mut(id).filter(|e| e.state == State::Reserved) else {
            return false;
        };
        entry.state = State::Bound;
        let tag = entry.tag;
        self.by_tag.insert(tag, id.index);
        true
    }

    /// Makes a window invalid; whether there is one. One that the peer has invalidated already
    /// stays so.
    pub(super) fn invalidate(&mut self, id: WindowId) -> bool {
        let Some(entry) = self.entry_mut(id) else {
            return false;
        };
        entry.state = State::Invalid;
        let tag = entry.tag;
        self.by_tag.remove(&tag);
        true
    }

    /// The peer's invalidation of a valid tag; the window it was.
    pub(super) fn invalidate_tag(&mut self, tag: u32) -> Option<WindowId> {
        let index = self.by_tag.remove(&tag)?;
        let slot = &mut self.slots[index as usize];
        if let Some(entry) = &mut slot.window {
            entry.state = State::Invalid;
        }
        Some(WindowId {
            index,
            generation: slot.generation,
        })
    }

    /// Gives the memory of a window back that is not valid.
    pub(super) fn close(&mut self, id: WindowId) -> Option<IoPin> {
        self.entry(id).filter(|e| e.state != State::Bound)?;
        let slot = &mut self.slots[id.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.index);
        slot.window.take().map(|entry| entry.memory)
    }

    /// Checks the peer's access to `len` bytes at `offset` of a tag.
    pub(super) fn find(
        &self,
        tag: u32,
        offset: u64,
        len: u64,
        access: RemoteAccess,
    ) -> Result<WindowId, Denied> {
        let index = *self.by_tag.get(&tag).ok_or(Denied::Tag)?;
        let slot = &self.slots[index as usize];
        let entry = slot.window.as_ref().ok_or(Denied::Tag)?;
        if entry.access != access {
            return Err(Denied::Access);
        }
        let end = offset.checked_add(len).ok_or(Denied::Wrap)?;
        if end > entry.memory.len() as u64 {
            return Err(Denied::Bounds);
        }
        Ok(WindowId {
            index,
            generation: slot.generation,
        })
    }

    /// The memory of a window that is still valid.
    pub(super) fn memory(&self, id: WindowId) -> Option<&IoPin> {
        self.entry(id)
            .filter(|e| e.state == State::Bound)
            .map(|e| &e.memory)
    }

    /// The memory of a window that is still valid, to place into.
    pub(super) fn memory_mut(&mut self, id: WindowId) -> Option<&mut IoPin> {
        self.entry_mut(id)
            .filter(|e| e.state == State::Bound)
            .map(|e| &mut e.memory)
    }

    /// Ends every window.
    pub(super) fn clear(&mut self) {
        self.by_tag.clear();
        self.slots.clear();
        self.free.clear();
    }

    fn entry(&self, id: WindowId) -> Option<&Entry> {
        let slot = self.slots.get(id.index as usize)?;
        slot.window
            .as_ref()
            .filter(|_| slot.generation == id.generation)
    }

    fn entry_mut(&mut self, id: WindowId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.index as usize)?;
        slot.window
            .as_mut()
            .filter(|_| slot.generation == id.generation)
    }
}

/// Hands out the 32-bit numbers in an order that only the key's holder can foretell, each once: a
/// counter through a Feistel network with a keyed round function, which is a permutation.
#[derive(Debug)]
struct TagAllocator {
    key: [u64; 2],
    counter: Option<u32>,
}

impl TagAllocator {
    fn new(random: [u8; 16]) -> Self {
        let key = u128::from_ne_bytes(random);
        Self {
            key: [key as u64, (key >> 64) as u64],
            counter: Some(0),
        }
    }

    fn next(&mut self) -> Option<u32> {
        loop {
            let counter = self.counter?;
            self.counter = counter.checked_add(1);
            let tag = self.permute(counter);
            // Tag 0 is what "no tag" looks like in the reserved fields of headers.
            if tag != 0 {
                return Some(tag);
            }
        }
    }

    fn permute(&self, value: u32) -> u32 {
        let (mut left, mut right) = ((value >> 16) as u16, value as u16);
        for round in 0..8u64 {
            let mixed = sip_hash(self.key, round << 16 | u64::from(right)) as u16;
            (left, right) = (right, left ^ mixed);
        }
        u32::from(left) << 16 | u32::from(right)
    }
}

/// SipHash-2-4 of one 64-bit word.
fn sip_hash(key: [u64; 2], word: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for block in [word, 8 << 56] {
        v[3] ^= block;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= block;
    }
    v[2] ^= 0xFF;
    for _ in 0..4 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

/// Tags are random already, and chosen by us.
#[derive(Debug, Default)]
struct TagHasher(u64);

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, tag: u32) {
        // The table takes its buckets from the low bits and its marks from the high ones.
        self.0 = u64::from(tag) << 32 | u64::from(tag);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::rdma::{PlainDomain, Slab, SlabOptions};

    fn pin() -> IoPin {
        let slab = Slab::new(&PlainDomain::shared(), 4096, 1, SlabOptions::default()).unwrap();
        slab.take().unwrap().pin()
    }

    #[test]
    fn sip_hash_reference_vector() {
        // The first eight bytes 0..8 under the key 0..16: from the function's reference
        // implementation.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(sip_hash(key, 0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn tags_never_repeat_and_differ_between_connections() {
        let mut tags = Tags::new().unwrap();
        let seen: HashSet<u32> = (0..100_000).filter_map(|_| tags.fresh()).collect();
        assert_eq!(seen.len(), 100_000);
        assert!(!seen.contains(&0));
        let mut others = Tags::new().unwrap();
        let first: Vec<u32> = (0..4).filter_map(|_| others.fresh()).collect();
        assert!(!first.iter().all(|tag| seen.contains(tag)));
    }

    #[test]
    fn all_tags_used_means_no_more() {
        let mut allocator = TagAllocator::new([7; 16]);
        allocator.counter = Some(u32::MAX);
        allocator.next();
        assert_eq!(allocator.next(), None);
    }

    #[test]
    fn a_tag_is_valid_from_bind_to_invalidation() {
        let mut tags = Tags::new().unwrap();
        let (id, tag) = tags.open(pin(), RemoteAccess::Write).unwrap();
        let find = |tags: &Tags| tags.find(tag, 0, 1, RemoteAccess::Write);
        assert_eq!(find(&tags), Err(Denied::Tag));
        assert_eq!(tags.invalidate_tag(tag), None);
        assert!(tags.bind(id));
        assert!(!tags.bind(id), "once");
        assert_eq!(find(&tags), Ok(id));
        assert!(tags.close(id).is_none(), "still bound");
        assert!(tags.invalidate(id));
        assert_eq!(find(&tags), Err(Denied::Tag));
        assert!(tags.memory(id).is_none());
        assert!(!tags.bind(id), "not again");
        assert!(tags.close(id).is_some());
        assert!(tags.close(id).is_none());
        assert!(!tags.invalidate(id));
        let (next, _) = tags.open(pin(), RemoteAccess::Write).unwrap();
        assert_eq!(next.index, id.index);
        assert_ne!(next, id);
    }

    #[test]
    fn the_peer_invalidates_once() {
        let mut tags = Tags::new().unwrap();
        let (id, tag) = tags.open(pin(), RemoteAccess::Read).unwrap();
        tags.bind(id);
        assert_eq!(tags.invalidate_tag(tag ^ 1), None);
        assert_eq!(tags.invalidate_tag(tag), Some(id));
        assert_eq!(tags.invalidate_tag(tag), None);
        assert!(tags.invalidate(id), "a local one afterwards is harmless");
        assert!(tags.close(id).is_some());
    }

    #[test]
    fn range_and_direction_are_exact() {
        let mut tags = Tags::new().unwrap();
        let (id, tag) = tags
            .open(pin().slice(100..200), RemoteAccess::Read)
            .unwrap();
        tags.bind(id);
        let find = |offset, len| tags.find(tag, offset, len, RemoteAccess::Read);
        assert_eq!(find(0, 100), Ok(id));
        assert_eq!(find(99, 1), Ok(id));
        assert_eq!(find(99, 2), Err(Denied::Bounds));
        assert_eq!(find(101, 0), Err(Denied::Bounds));
        assert_eq!(find(u64::MAX, 1), Err(Denied::Wrap));
        assert_eq!(
            tags.find(tag, 0, 1, RemoteAccess::Write),
            Err(Denied::Access)
        );
    }
}
