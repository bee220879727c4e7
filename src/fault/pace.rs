//! How fast bytes may leave: `rate` and `chunk`.

use std::time::{Duration, Instant};

use super::stream::Hits;
use super::{Effect, Fault, Kind};

/// How much of a second's bytes leave in one write.
const WRITES_PER_SECOND: u64 = 100;
/// How late the bytes of a `rate` may be without being lost to it.
const LATENESS_MAX: Duration = Duration::from_millis(100);
/// A time without output that does not count: the next bytes are read as soon as the last ones have left.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Limits the writes of a stream.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<Rate>,
    chunk: Option<Chunk>,
}

/// A number of bytes a second. A byte is paid for by waiting before it leaves, and waiting without output pays for nothing.
#[derive(Debug)]
struct Rate {
    bytes_per_second: u64,
    /// From when on the wait is not spent yet.
    paid_until: Option<Instant>,
    /// Since when there is no output.
    pausing_since: Option<Instant>,
}

#[derive(Debug)]
struct Chunk {
    size: usize,
    gap: Duration,
    /// When the next write may be.
    next_at: Option<Instant>,
}

impl Pace {
    pub(super) fn new(faults: &[Fault]) -> Self {
        let mut pace = Self::default();
        for fault in faults {
            match fault.effect {
                Effect::Rate { bytes_per_second } => pace.rate = Some(Rate::new(bytes_per_second)),
                Effect::Chunk { size, gap } => pace.chunk = Some(Chunk { size, gap, next_at: None }),
                _ => {}
            }
        }
        pace
    }

    /// Returns how many of `length` bytes may be written at `now`.
    pub(super) fn allow(&mut self, length: usize, now: Instant, hits: &mut Hits) -> usize {
        let mut allowed = length;
        if let Some(chunk) = &self.chunk {
            allowed = if chunk.next_at.is_some_and(|at| now < at) { 0 } else { allowed.min(chunk.size) };
            if allowed < length {
                hits.add_once(Kind::Chunk);
            }
        }
        let Some(rate) = &mut self.rate else { return allowed };
        // The first bytes of a connection always wait.
        hits.add_once(Kind::Rate);
        // Also while a chunk waits for its gap: output ends the pause of the rate.
        rate.allow(allowed, now)
    }

    /// Returns when the first of `length` bytes may be written, if they must wait.
    pub(super) fn next_at(&self, length: usize) -> Option<Instant> {
        let chunk_size = self.chunk.as_ref().map_or(length, |chunk| chunk.size);
        let gap = self.chunk.as_ref().and_then(|chunk| chunk.next_at);
        let rate = self.rate.as_ref().and_then(|rate| rate.next_at(length.min(chunk_size)));
        gap.into_iter().chain(rate).max()
    }

    /// Notes a write, and whether output is left. `clock` tells when it has returned.
    pub(super) fn wrote(&mut self, length: usize, is_output_left: bool, clock: impl Fn() -> Instant) {
        if let Some(rate) = &mut self.rate {
            rate.paid_until = rate.paid_until.map(|paid| paid + rate.time(length));
            rate.pausing_since = (!is_output_left).then(&clock);
        }
        if let Some(chunk) = self.chunk.as_mut().filter(|chunk| !chunk.gap.is_zero()) {
            chunk.next_at = Some(clock() + chunk.gap);
        }
    }
}

impl Rate {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid_until: None, pausing_since: None }
    }

    fn allow(&mut self, length: usize, now: Instant) -> usize {
        let most = (self.time(2 * self.write_size())).max(LATENESS_MAX);
        if self.pausing_since.take().is_some_and(|since| now.saturating_duration_since(since) > PAUSE_MAX) {
            self.paid_until = None;
        }
        let paid_until = *self.paid_until.get_or_insert(now);
        let wait = now.saturating_duration_since(paid_until);
        if wait > most {
            self.paid_until = now.checked_sub(most);
        }
        let paid = wait.min(most).as_nanos() * u128::from(self.bytes_per_second) / 1_000_000_000;
        let paid = usize::try_from(paid).unwrap_or(usize::MAX).min(length);
        if paid < length.min(self.write_size()) { 0 } else { paid }
    }

    fn next_at(&self, length: usize) -> Option<Instant> {
        self.paid_until.map(|paid| paid + self.time(length.min(self.write_size())))
    }

    /// Returns the bytes of a write, if there are enough.
    fn write_size(&self) -> usize {
        usize::try_from(self.bytes_per_second / WRITES_PER_SECOND).unwrap_or(usize::MAX / 2).max(1)
    }

    /// Returns the time that `length` bytes take, rounded up.
    fn time(&self, length: usize) -> Duration {
        let nanos = (length as u128 * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    /// More output than leaves in a test.
    const PLENTY: usize = 1 << 40;

    /// Returns the pace of a rate whose first bytes wait since `start`.
    fn waiting_since(start: Instant, bytes_per_second: u64) -> (Pace, Hits) {
        let mut pace = Pace::new(&[Fault::new(Effect::Rate { bytes_per_second })]);
        let mut hits = Hits::default();
        assert_eq!(pace.allow(PLENTY, start, &mut hits), 0);
        (pace, hits)
    }

    #[test]
    fn a_rate_leaves_in_a_hundred_writes_a_second_or_byte_by_byte() {
        for (bytes_per_second, writes, bytes) in
            [(2, 2, 2), (125, 125, 125), (1000, 100, 1000), (12_345, 100, 12_300), (100_000_000, 100, 100_000_000)]
        {
            let start = Instant::now();
            let (mut pace, mut hits) = waiting_since(start, bytes_per_second);
            let mut written = Vec::new();
            while let Some(now) = pace.next_at(PLENTY).filter(|&at| at <= start + Duration::from_secs(1)) {
                let allowed = pace.allow(PLENTY, now, &mut hits);
                assert!(allowed > 0, "nothing may leave at the deadline");
                pace.wrote(allowed, true, || now);
                written.push(allowed);
            }
            assert_eq!((written.len(), written.iter().sum()), (writes, bytes), "{bytes_per_second} bytes a second");
        }
    }

    #[test]
    fn a_late_rate_makes_up_for_100_ms_or_two_bytes_and_for_no_more() {
        for (bytes_per_second, made_up) in [(1, 2), (2, 2), (19, 2), (1000, 100), (12_345, 1234)] {
            let start = Instant::now();
            let (mut pace, mut hits) = waiting_since(start, bytes_per_second);
            let late = start + Duration::from_secs(10);
            assert_eq!(pace.allow(PLENTY, late, &mut hits), made_up, "{bytes_per_second} bytes a second");
            pace.wrote(made_up, true, || late);
            assert_eq!(pace.allow(PLENTY, late, &mut hits), 0, "{bytes_per_second} bytes a second");
        }
    }

    #[test]
    fn the_time_of_a_short_pause_is_not_lost_to_a_rate() {
        let millis = Duration::from_millis;
        for (pause, next_after) in
            [(PAUSE_MAX, millis(10)), (PAUSE_MAX + millis(1), PAUSE_MAX + millis(1) + millis(10))]
        {
            let start = Instant::now();
            let (mut pace, mut hits) = waiting_since(start, 1000);
            let written_at = pace.next_at(10).unwrap();
            assert_eq!(pace.allow(10, written_at, &mut hits), 10);
            pace.wrote(10, false, || written_at);
            assert_eq!(pace.allow(10, written_at + pause, &mut hits), 0);
            assert_eq!(pace.next_at(10), Some(written_at + next_after), "after a pause of {pause:?}");
        }
    }
}
