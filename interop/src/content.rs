//! What the files hold: bytes that depend on the file and on their place in it, so that a piece in
//! a wrong place is noticed.

use sha2::{Digest, Sha256};

/// Bytes made at a time for a checksum.
const STEP: usize = 64 << 10;

/// The content of one file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content {
    pub(crate) seed: u64,
    pub(crate) len: u64,
}

impl Content {
    /// Fills `bytes` with what stands at `offset`.
    pub(crate) fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let word = self.word(at / 8);
            let skip = (at % 8) as usize;
            let count = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(count);
            head.copy_from_slice(&word[skip..skip + count]);
            at += count as u64;
            rest = tail;
        }
    }

    /// Where `bytes`, found at `offset`, are not what should be there.
    pub(crate) fn difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = vec![0; bytes.len()];
        self.fill(offset, &mut expected);
        if expected == bytes {
            return None;
        }
        let at = expected.iter().zip(bytes).position(|(a, b)| a != b)?;
        Some(offset + at as u64)
    }

    /// SHA-256 of the whole file, in hexadecimal.
    pub(crate) fn sum(&self) -> String {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        while at < self.len {
            let count = (self.len - at).min(STEP as u64) as usize;
            self.fill(at, &mut buffer[..count]);
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The eight bytes with this index: SplitMix64.
    fn word(&self, index: u64) -> [u8; 8] {
        let mut z = self
            .seed
            .wrapping_add(index)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_parts_of_the_whole() {
        let content = Content { seed: 7, len: 100 };
        let mut whole = vec![0; 100];
        content.fill(0, &mut whole);
        for (start, end) in [(0, 100), (1, 2), (3, 17), (8, 16), (99, 100), (50, 50)] {
            let mut piece = vec![0; end - start];
            content.fill(start as u64, &mut piece);
            assert_eq!(piece, whole[start..end]);
            assert_eq!(content.difference(start as u64, &piece), None);
        }
        whole[40] ^= 1;
        assert_eq!(content.difference(0, &whole), Some(40));
        assert_eq!(content.difference(30, &whole[30..50]), Some(40));
    }

    #[test]
    fn the_sum_is_sha_256() {
        let empty = Content { seed: 1, len: 0 }.sum();
        assert_eq!(
            empty,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
