//! The seconds of the measured window, one sample each.

use super::report::Sample;
use super::schedule::Window;
use super::timer::SECOND;
use super::totals::Totals;

#[derive(Debug)]
pub(super) struct Timeline {
    samples: Vec<Sample>,
    /// When the current second ends, or `u64::MAX` outside the window.
    next: u64,
    /// The counts at the last sample.
    verified: u64,
    errors: u64,
}

impl Timeline {
    pub(super) fn new() -> Self {
        Self { samples: Vec::new(), next: u64::MAX, verified: 0, errors: 0 }
    }

    /// Clears the samples.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Begins the first second.
    pub(super) fn start(&mut self, now: u64) {
        self.next = now + SECOND;
    }

    /// Ends the last second.
    pub(super) fn stop(&mut self) {
        self.next = u64::MAX;
    }

    /// Returns when the current second ends.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// Adds a sample of the current second and begins the next one. Returns `None` if that second has a sample.
    pub(super) fn end_second(&mut self, now: u64, window: Window, totals: &mut Totals, open: u64) -> Option<&Sample> {
        // A whole second ends at the first turn after it. A second that the window cuts short is rounded up.
        let t = if now >= self.next {
            (now - window.start) / SECOND
        } else {
            (now.min(window.end) - window.start).div_ceil(SECOND)
        };
        if self.samples.last().is_some_and(|sample| sample.t >= t) {
            return None;
        }
        let (verified, errors) = (totals.messages.verified, totals.error_count());
        self.samples.push(Sample {
            t,
            rate: verified - self.verified,
            open,
            errors: errors - self.errors,
            p50: totals.second_quantile(0.5),
            p99: totals.second_quantile(0.99),
        });
        totals.end_second();
        (self.verified, self.errors) = (verified, errors);
        self.next = window.start + (t + 1) * SECOND;
        self.samples.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start: SECOND, end: 3 * SECOND + SECOND / 2 };

    #[test]
    fn each_second_has_one_sample_and_the_last_one_is_cut_short() {
        let (mut timeline, mut totals) = (Timeline::new(), Totals::new(SECOND));
        timeline.start(WINDOW.start);
        for now in [2 * SECOND + 5, 3 * SECOND + 7, WINDOW.end] {
            totals.record_due(true);
            totals.record_reply(1000, true);
            assert!(timeline.end_second(now, WINDOW, &mut totals, 1).is_some());
        }
        assert!(timeline.end_second(WINDOW.end, WINDOW, &mut totals, 1).is_none());
        let seconds: Vec<_> = timeline.samples().iter().map(|sample| (sample.t, sample.rate)).collect();
        assert_eq!(seconds, [(1, 1), (2, 1), (3, 1)]);
    }
}
