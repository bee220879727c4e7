//! The hand that goes round the connections and finds those whose timeout has expired.

use std::ops::Range;

/// Most keys of the reactor that are visited in one turn.
pub(super) const SLICE: usize = 1024;

/// Visits every key once a period, a slice at a time: no turn is longer for a million connections than for ten.
///
/// Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    period: u64,
    /// When this round began.
    start: u64,
    /// The next key to visit in this round, and the end of the round.
    next: usize,
    end: usize,
    /// When the next slice is due: slices are spread evenly over the period.
    due: u64,
}

impl Hand {
    /// Begins a round over `keys` keys at `now`.
    pub(super) fn new(period: u64, now: u64, keys: usize) -> Self {
        let mut hand = Self { period, start: now, next: 0, end: keys.max(1), due: 0 };
        hand.schedule();
        hand
    }

    /// Returns when the next slice is due.
    pub(super) fn next_due(&self) -> u64 {
        self.due
    }

    /// Takes the keys of the next slice. After the last one, a round over `keys` keys begins.
    pub(super) fn take_slice(&mut self, now: u64, keys: usize) -> Range<usize> {
        let slice = self.next..self.end_of_slice();
        self.next = slice.end;
        if self.next == self.end {
            *self = Self::new(self.period, now, keys);
        } else {
            self.schedule();
        }
        slice
    }

    fn schedule(&mut self) {
        let share = u128::from(self.period) * self.end_of_slice() as u128 / self.end as u128;
        self.due = self.start + u64::try_from(share).unwrap_or(self.period);
    }

    fn end_of_slice(&self) -> usize {
        self.end.min(self.next + SLICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_keys_are_visited_once_a_period_in_slices() {
        let (keys, period) = (1_000_000, 500_000_000);
        let mut hand = Hand::new(period, 7, keys);
        let (mut visited, mut due) = (0, 7);
        while visited < keys {
            assert!(hand.next_due() > due && hand.next_due() <= 7 + period);
            due = hand.next_due();
            let slice = hand.take_slice(due, keys);
            assert_eq!(slice.start, visited);
            assert!(slice.len() <= SLICE);
            visited = slice.end;
        }
        assert_eq!((due, visited), (7 + period, keys));
        assert_eq!((hand.take_slice(due, keys), hand.next_due() > due), (0..SLICE, true));
    }

    #[test]
    fn a_few_keys_are_one_slice() {
        let mut hand = Hand::new(100, 0, 3);
        assert_eq!((hand.next_due(), hand.take_slice(100, 5)), (100, 0..3));
        assert_eq!((hand.next_due(), hand.take_slice(200, 5)), (200, 0..5));
    }
}
