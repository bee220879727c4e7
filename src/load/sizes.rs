//! The sizes of messages, and where each message begins in the stream of its connection.

use crate::splitmix::splitmix64;

/// Sizes from `min` to `max`, uniform and seeded.
///
/// Two messages in a row are `min + max` bytes together, each of them uniform: so where a message begins is computed, and nothing is
/// stored for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    min: u64,
    max: u64,
    seed: u64,
}

impl Sizes {
    pub(super) fn new(min: u64, max: u64, seed: u64) -> Self {
        Self { min, max, seed }
    }

    /// Returns where message `index` of `connection` begins.
    #[inline]
    pub(super) fn start(&self, connection: u64, index: u64) -> u64 {
        if self.min == self.max {
            return index * self.min;
        }
        let pair = index / 2;
        let first = if index.is_multiple_of(2) { 0 } else { self.first_of_pair(connection, pair) };
        pair * (self.min + self.max) + first
    }

    /// Returns the number of messages of which a byte is among the first `bytes` of `connection`.
    #[inline]
    pub(super) fn begun(&self, connection: u64, bytes: u64) -> u64 {
        if self.min == self.max {
            return bytes.div_ceil(self.min);
        }
        let (pair, rest) = (bytes / (self.min + self.max), bytes % (self.min + self.max));
        let of_pair = match rest {
            0 => 0,
            rest if rest <= self.first_of_pair(connection, pair) => 1,
            _ => 2,
        };
        pair * 2 + of_pair
    }

    /// Returns whether the first `bytes` of `connection` end with a message.
    pub(super) fn is_boundary(&self, connection: u64, bytes: u64) -> bool {
        self.start(connection, self.begun(connection, bytes)) == bytes
    }

    fn first_of_pair(&self, connection: u64, pair: u64) -> u64 {
        let random = splitmix64(self.seed ^ splitmix64(connection ^ splitmix64(pair)));
        self.min + random % (self.max - self.min + 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_belongs_to_the_message_that_begins_before_it(
            min in 1..100_u64, more in 0..100_u64, seed: u64, connection: u64, index in 0..1000_u64,
        ) {
            let sizes = Sizes::new(min, min + more, seed);
            let (start, end) = (sizes.start(connection, index), sizes.start(connection, index + 1));
            prop_assert!((min..=min + more).contains(&(end - start)));
            for bytes in start..=end {
                prop_assert_eq!(sizes.begun(connection, bytes), if bytes == start { index } else { index + 1 });
                prop_assert_eq!(sizes.is_boundary(connection, bytes), bytes == start || bytes == end);
            }
        }
    }

    #[test]
    fn every_size_is_equally_likely() {
        const SIZES: usize = 16;
        const MESSAGES: u64 = 64_000;
        // Numbers with few and with all bits set.
        for (seed, connection) in [(1, 7), (u64::MAX, 7), (1, u64::MAX)] {
            let sizes = Sizes::new(64, 64 + SIZES as u64 - 1, seed);
            for place in 0..2 {
                let mut counts = [0; SIZES];
                for index in (place..MESSAGES).step_by(2) {
                    let size = sizes.start(connection, index + 1) - sizes.start(connection, index);
                    counts[usize::try_from(size - 64).unwrap_or_default()] += 1;
                }
                // The expected count is 2,000, and the bounds are five standard deviations from it.
                assert!(counts.iter().all(|count| (1783..2217).contains(count)), "{counts:?}");
            }
        }
    }

    #[test]
    fn messages_of_one_size_begin_at_its_multiples() {
        let sizes = Sizes::new(64, 64, 1);
        let starts = [0, 64, 128, 192, 256];
        assert_eq!([0, 1, 2, 3, 4].map(|index| sizes.start(7, index)), starts);
        assert_eq!(starts.map(|bytes| sizes.begun(7, bytes)), [0, 1, 2, 3, 4]);
        assert_eq!([1, 63, 65, 257].map(|bytes| sizes.begun(7, bytes)), [1, 1, 2, 5]);
    }

    #[test]
    fn sizes_depend_on_the_seed_and_the_connection() {
        let starts = |seed, connection| {
            (0..10).map(|index| Sizes::new(1, 1000, seed).start(connection, index)).collect::<Vec<_>>()
        };
        assert_eq!(starts(1, 1), starts(1, 1));
        assert!(starts(1, 1) != starts(1, 2) && starts(1, 1) != starts(2, 1));
    }
}
