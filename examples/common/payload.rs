//! Bytes that depend on the seed, the connection and the place in the order, so that nothing can be
//! lost, doubled or swapped unseen. (Messages of a byte or two say less than longer ones.)

/// Fills a message.
pub(crate) fn fill(message: &mut [u8], seed: u64, connection: u64, sequence: u64) {
    let key = key(seed, connection, sequence);
    let (words, rest) = message.as_chunks_mut::<8>();
    let count = words.len() as u64;
    for (i, bytes) in (0..).zip(words) {
        *bytes = word(key, i).to_le_bytes();
    }
    let last = word(key, count).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The first byte that is not what [`fill`] writes.
pub(crate) fn first_difference(
    message: &[u8],
    seed: u64,
    connection: u64,
    sequence: u64,
) -> Option<usize> {
    let key = key(seed, connection, sequence);
    let (words, rest) = message.as_chunks::<8>();
    let wrong = (0..)
        .zip(words)
        .find(|(i, bytes)| u64::from_le_bytes(**bytes) != word(key, *i));
    let (start, bytes, expected) = match wrong {
        Some((i, bytes)) => (i as usize * 8, &bytes[..], word(key, i).to_le_bytes()),
        None => (
            words.len() * 8,
            rest,
            word(key, words.len() as u64).to_le_bytes(),
        ),
    };
    let at = bytes
        .iter()
        .zip(expected)
        .position(|(is, should)| *is != should)?;
    Some(start + at)
}

fn key(seed: u64, connection: u64, sequence: u64) -> u64 {
    mix(mix(mix(seed) ^ connection) ^ sequence)
}

fn word(key: u64, i: u64) -> u64 {
    mix(key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The output function of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
