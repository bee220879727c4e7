//! The bytes that the connections of a run send. A word identifies its connection and its place there.

use crate::splitmix::{mix, splitmix64};

/// Size of a word in bytes.
pub(crate) const WORD: u64 = size_of::<Word>() as u64;

pub(crate) type Word = [u8; 8];

/// Bits of the index of a word; the bits above are the connection's number.
const INDEX_BITS: u32 = 38;
/// Bits of a connection's number.
const CONNECTION_BITS: u32 = u64::BITS - INDEX_BITS;
/// Bytes of a stream that have the same key.
const BLOCK: u64 = WORD << INDEX_BITS;

/// The byte streams of a run, one for each connection, generated from a seed.
///
/// Word i of connection c is an invertible mix of (seed, c, i), in little-endian order. So every word of a run is different, and a
/// word alone identifies its connection and its index. Beyond 2^26 connections, or 2^38 words (2 TiB) of one, other keys follow: a word
/// is then different from all words but a few of far away, and has an identity for each key.
#[derive(Debug)]
pub(crate) struct Pattern {
    key: u64,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        // Mixed, because a small seed would only permute neighboring words.
        Self { key: splitmix64(seed) }
    }

    /// Writes the bytes of a stream from byte `offset` on.
    pub(crate) fn fill(&self, connection: u64, offset: u64, out: &mut [u8]) {
        if let Some(left) = left_in_block(offset, out.len()) {
            let (out, rest) = out.split_at_mut(left);
            self.fill(connection, offset, out);
            return self.fill(connection, offset + left as u64, rest);
        }
        let stream = self.stream(connection, offset);
        let (head, skipped) = split_at_word(offset, out.len());
        let (head, out) = out.split_at_mut(head);
        // A message is mostly whole words, and copying no bytes is still a call.
        if !head.is_empty() {
            head.copy_from_slice(&stream.bytes(offset / WORD)[skipped..][..head.len()]);
        }
        let mut index = offset.div_ceil(WORD);
        let (words, tail) = out.as_chunks_mut();
        for word in words {
            *word = stream.bytes(index);
            index += 1;
        }
        if !tail.is_empty() {
            tail.copy_from_slice(&stream.bytes(index)[..tail.len()]);
        }
    }

    /// Returns the number of leading bytes of `data` that equal the stream from byte `offset` on.
    ///
    /// Generates the words while it compares them, which is faster than filling a buffer for `memcmp`.
    pub(crate) fn count_right(&self, connection: u64, offset: u64, data: &[u8]) -> usize {
        if let Some(left) = left_in_block(offset, data.len()) {
            let (data, rest) = data.split_at(left);
            return match self.count_right(connection, offset, data) {
                right if right < left => right,
                _ => left + self.count_right(connection, offset + left as u64, rest),
            };
        }
        let stream = self.stream(connection, offset);
        let (head, skipped) = split_at_word(offset, data.len());
        let (head, data) = data.split_at(head);
        if !head.is_empty() {
            let right = common_prefix(head, &stream.bytes(offset / WORD)[skipped..]);
            if right < head.len() {
                return right;
            }
        }
        let mut index = offset.div_ceil(WORD);
        let mut right = head.len();
        let (words, tail) = data.as_chunks();
        for word in words {
            let bytes = stream.bytes(index);
            if *word != bytes {
                return right + common_prefix(word, &bytes);
            }
            index += 1;
            right += bytes.len();
        }
        if tail.is_empty() { right } else { right + common_prefix(tail, &stream.bytes(index)) }
    }

    /// Returns the connection of a word and its index there: one possibility for each key of a run with `connections` connections that
    /// have sent `bytes` bytes each.
    pub(crate) fn locate(&self, word: u64, connections: u64, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
        let mixed = unmix(word);
        let highs = (0..=connections >> CONNECTION_BITS)
            .flat_map(move |connection| (0..=bytes / BLOCK).map(move |index| (connection, index)));
        highs.map(move |(connection, index)| {
            let place = mixed ^ self.key(connection, index);
            let connection = connection << CONNECTION_BITS | place >> INDEX_BITS;
            (connection, index << INDEX_BITS | place & ((1 << INDEX_BITS) - 1))
        })
    }

    /// Returns the key for these high bits of a connection's number and of an index.
    fn key(&self, connection: u64, index: u64) -> u64 {
        if connection | index == 0 { self.key } else { self.key ^ splitmix64(connection << CONNECTION_BITS | index) }
    }

    /// Returns the part of a stream that has the key of byte `offset`.
    fn stream(&self, connection: u64, offset: u64) -> Stream {
        let key = self.key(connection >> CONNECTION_BITS, offset / BLOCK);
        Stream { mask: connection << INDEX_BITS ^ key }
    }
}

/// The words of a stream that have the same key.
struct Stream {
    mask: u64,
}

impl Stream {
    fn bytes(&self, index: u64) -> Word {
        mix(index & ((1 << INDEX_BITS) - 1) ^ self.mask).to_le_bytes()
    }
}

/// Returns how many of `length` bytes from byte `offset` on are in its block, if there are more.
fn left_in_block(offset: u64, length: usize) -> Option<usize> {
    usize::try_from(BLOCK - offset % BLOCK).ok().filter(|&left| left < length)
}

/// Returns how many of `length` bytes from byte `offset` on are before the first whole word, and the offset within their word.
fn split_at_word(offset: u64, length: usize) -> (usize, usize) {
    let within = (offset % WORD) as usize;
    if within == 0 { (0, 0) } else { (length.min(size_of::<Word>() - within), within) }
}

fn common_prefix(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

/// Inverts [`mix`], with the inverses of its multipliers modulo 2^64.
fn unmix(mut z: u64) -> u64 {
    z = (z ^ (z >> 31) ^ (z >> 62)).wrapping_mul(0x3196_42b2_d24d_8ec3);
    z = (z ^ (z >> 27) ^ (z >> 54)).wrapping_mul(0x96de_1b17_3f11_9089);
    z ^ (z >> 30) ^ (z >> 60)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Offsets of every size, and those around a change of the key.
    fn offset() -> impl Strategy<Value = u64> {
        prop_oneof![0..1_u64 << 40, BLOCK - 100..BLOCK + 100]
    }

    proptest! {
        #[test]
        fn a_word_identifies_its_connection_and_index(seed: u64, connection in 0..1_u64 << 26, index in 0..1_u64 << INDEX_BITS) {
            let pattern = Pattern::new(seed);
            let mut word = [0; 8];
            pattern.fill(connection, index * WORD, &mut word);
            prop_assert_eq!(pattern.locate(u64::from_le_bytes(word), 1 << 20, 1 << 40).collect::<Vec<_>>(), [(connection, index)]);
        }

        #[test]
        fn a_word_beyond_the_first_key_identifies_them_too(seed: u64, connection in 0..1_u64 << 28, index in 0..1_u64 << 40) {
            let pattern = Pattern::new(seed);
            let mut word = [0; 8];
            pattern.fill(connection, index * WORD, &mut word);
            let mut places = pattern.locate(u64::from_le_bytes(word), 1 << 28, WORD << 40);
            prop_assert!(places.any(|place| place == (connection, index)));
        }

        #[test]
        fn a_stream_is_the_same_from_any_offset(
            seed: u64,
            connection in 0..1_u64 << 26,
            start in offset(),
            skip in 0..40_usize,
            length in 0..100_usize,
        ) {
            let pattern = Pattern::new(seed);
            let mut whole = [0; 140];
            pattern.fill(connection, start / WORD * WORD, &mut whole);
            let mut part = vec![0; length];
            pattern.fill(connection, start / WORD * WORD + skip as u64, &mut part);
            prop_assert_eq!(&part[..], &whole[skip..][..length]);
        }

        #[test]
        fn the_first_wrong_byte_is_found(
            seed: u64,
            connection in 0..1_u64 << 26,
            offset in offset(),
            length in 0..100_usize,
            wrong in 0..100_usize,
            difference in 1..=u8::MAX,
        ) {
            let pattern = Pattern::new(seed);
            let mut data = vec![0; length];
            pattern.fill(connection, offset, &mut data);
            prop_assert_eq!(pattern.count_right(connection, offset, &data), length);
            if let Some(byte) = data.get_mut(wrong) {
                *byte ^= difference;
                prop_assert_eq!(pattern.count_right(connection, offset, &data), wrong);
            }
        }
    }

    #[test]
    fn streams_differ_by_seed_and_connection() {
        let first_words = |seed, connection| {
            let mut words = [0; 64];
            Pattern::new(seed).fill(connection, 0, &mut words);
            words
        };
        assert_eq!(first_words(1, 2), first_words(1, 2));
        assert_ne!(first_words(1, 2), first_words(2, 2));
        assert_ne!(first_words(1, 2), first_words(1, 3));
    }

    #[test]
    fn no_word_is_sent_again_after_2_tib_or_on_connection_number_2_to_the_26() {
        let pattern = Pattern::new(1);
        let words = |connection, offset| {
            let mut words = [0; 64];
            pattern.fill(connection, offset, &mut words);
            words
        };
        // The first words of two neighbors under each of nine keys.
        let connections = (0..3).flat_map(|high| [high << CONNECTION_BITS, (high << CONNECTION_BITS) + 1]);
        let places = connections.flat_map(|connection| (0..3).map(move |block| (connection, block * BLOCK)));
        let sent: Vec<Word> =
            places.flat_map(|(connection, offset)| words(connection, offset).as_chunks().0.to_vec()).collect();
        assert_eq!(sent.iter().collect::<HashSet<_>>().len(), 6 * 3 * 8);
        assert_eq!(pattern.count_right(0, BLOCK - 32, &[words(0, BLOCK - 64), words(0, BLOCK)].concat()[32..]), 96);
    }
}
