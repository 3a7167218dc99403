//! A table whose places are used again under a new generation.

/// Values with stable places.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Puts in the value that `make` makes for its place and generation.
    pub(super) fn insert(&mut self, make: impl FnOnce(u32, u32) -> T) -> (u32, u32) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.1 = Some(make(index, slot.0));
        (index, slot.0)
    }

    pub(super) fn find(&self, index: u32, generation: u32) -> Option<&T> {
        match self.slots.get(index as usize)? {
            (current, value) if *current == generation => value.as_ref(),
            _ => None,
        }
    }

    pub(super) fn find_mut(&mut self, index: u32, generation: u32) -> Option<&mut T> {
        match self.slots.get_mut(index as usize)? {
            (current, value) if *current == generation => value.as_mut(),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, index: u32, generation: u32) -> Option<T> {
        let slot = self.slots.get_mut(index as usize)?;
        if slot.0 != generation {
            return None;
        }
        let value = slot.1.take()?;
        slot.0 = next_generation(generation);
        self.free.push(index);
        Some(value)
    }
}

/// Generations fit into the 30 bits that an epoll token has for them.
fn next_generation(generation: u32) -> u32 {
    (generation + 1) & GENERATION_MASK
}

const GENERATION_MASK: u32 = (1 << 30) - 1;

/// What an epoll token or a timer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    Listener(u32, u32),
    HalfOpen(u32, u32),
    Conn(u32, u32),
}

impl Token {
    pub(super) fn to_bits(self) -> u64 {
        let (kind, index, generation) = match self {
            Self::Listener(index, generation) => (0, index, generation),
            Self::HalfOpen(index, generation) => (1, index, generation),
            Self::Conn(index, generation) => (2, index, generation),
        };
        kind << 62 | u64::from(generation) << 32 | u64::from(index)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        let index = bits as u32;
        let generation = (bits >> 32) as u32 & GENERATION_MASK;
        match bits >> 62 {
            0 => Self::Listener(index, generation),
            1 => Self::HalfOpen(index, generation),
            _ => Self::Conn(index, generation),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_name_means_nothing_new() {
        let mut slots = Slots::new();
        let (index, generation) = slots.insert(|index, _| index);
        assert_eq!(slots.remove(index, generation), Some(0));
        let (again, next) = slots.insert(|index, _| index);
        assert_eq!(again, index);
        assert!(slots.find(index, generation).is_none());
        assert!(slots.find_mut(index, next).is_some());
        assert!(slots.remove(index, generation).is_none());
    }

    #[test]
    fn tokens_survive_epoll() {
        for token in [
            Token::Listener(1, 2),
            Token::HalfOpen(u32::MAX, GENERATION_MASK),
            Token::Conn(7, 0),
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
        assert_eq!(next_generation(GENERATION_MASK), 0);
    }
}
