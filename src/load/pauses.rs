//! The times in which the generator itself was stopped or too slow, which do not count towards a timeout.

use std::collections::VecDeque;

use super::timer::SECOND;

/// A shorter gap is not a pause.
const PAUSE_MIN: u64 = SECOND / 10;

/// The recent pauses: no timeout that has not expired began before the first one.
///
/// Times are nanoseconds of the run.
#[derive(Debug)]
pub(super) struct Pauses {
    /// The longest timeout.
    timeout_max: u64,
    pauses: VecDeque<Pause>,
}

/// A pause, or several with less than [`PAUSE_MIN`] between them, so that their number is bounded.
#[derive(Clone, Copy, Debug)]
struct Pause {
    start: u64,
    end: u64,
    length: u64,
    /// The length of all pauses of the run until its end.
    total: u64,
}

impl Pauses {
    pub(super) fn new(timeout_max: u64) -> Self {
        Self { timeout_max, pauses: VecDeque::new() }
    }

    /// Records that the generator was late from `start` to `end`, if that was long enough for a pause.
    pub(super) fn record(&mut self, start: u64, end: u64) {
        let length = end.saturating_sub(start);
        if length < PAUSE_MIN {
            return;
        }
        let total = self.pauses.back().map_or(0, |last| last.total) + length;
        match self.pauses.back_mut() {
            Some(last) if start < last.end + PAUSE_MIN => {
                *last = Pause { start: last.start, end, length: last.length + length, total };
            }
            _ => self.pauses.push_back(Pause { start, end, length, total }),
        }
        // A timeout that began before its end has expired without it too.
        while let Some(first) = self.pauses.front()
            && end - first.end >= self.timeout_max.saturating_add(total - first.total)
        {
            self.pauses.pop_front();
        }
    }

    /// Returns how long the pauses since `time` were.
    pub(super) fn since(&self, time: u64) -> u64 {
        let next = self.pauses.partition_point(|pause| pause.end <= time);
        let (Some(first), Some(last)) = (self.pauses.get(next), self.pauses.back()) else { return 0 };
        last.total - first.total + first.length.min(first.end - time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_add_up_from_any_time_on() {
        let mut pauses = Pauses::new(10 * SECOND);
        assert_eq!(pauses.since(0), 0);
        pauses.record(2 * SECOND, 5 * SECOND);
        pauses.record(6 * SECOND, 7 * SECOND);
        // No pause, and one that never was.
        pauses.record(8 * SECOND, 8 * SECOND + PAUSE_MIN - 1);
        pauses.record(9 * SECOND, 8 * SECOND);
        let since = [0, 2, 4, 5, 6, 7, 8].map(|second| pauses.since(second * SECOND) / SECOND);
        assert_eq!(since, [4, 4, 2, 1, 1, 0, 0]);
    }

    #[test]
    fn the_time_between_two_pauses_is_no_pause() {
        let mut pauses = Pauses::new(10 * SECOND);
        pauses.record(SECOND, 2 * SECOND);
        pauses.record(2 * SECOND + PAUSE_MIN / 2, 3 * SECOND + PAUSE_MIN / 2);
        assert_eq!((pauses.pauses.len(), pauses.since(0)), (1, 2 * SECOND));
    }

    #[test]
    fn only_pauses_within_a_timeout_are_kept() {
        let timeout = SECOND;
        let mut pauses = Pauses::new(timeout);
        // The generator runs for as long as it is stopped.
        for step in (0..1000).step_by(2) {
            pauses.record(step * PAUSE_MIN, (step + 1) * PAUSE_MIN);
            let end = (step + 1) * PAUSE_MIN;
            let began = end.saturating_sub(2 * timeout - PAUSE_MIN);
            let running = end - began - pauses.since(began);
            assert!(step < 20 || running.abs_diff(timeout) <= PAUSE_MIN, "{running} at {end}");
            assert!(pauses.pauses.len() <= 11, "{}", pauses.pauses.len());
        }
    }
}
