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
    /// When the current second began.
    since: u64,
    /// The counts at the last sample.
    arrived: u64,
    errors: u64,
}

impl Timeline {
    pub(super) fn new() -> Self {
        Self { samples: Vec::new(), next: u64::MAX, since: 0, arrived: 0, errors: 0 }
    }

    /// Clears the samples.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Begins the first second, at the window's start. The run has had `errors` until then.
    pub(super) fn start(&mut self, start: u64, errors: u64) {
        (self.since, self.next, self.errors) = (start, start + SECOND, errors);
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
        let end = now.min(window.end);
        let length = end - window.start;
        let t = if end >= self.next { length / SECOND } else { length.div_ceil(SECOND) };
        if self.samples.last().is_some_and(|sample| sample.t >= t) {
            return None;
        }
        let (arrived, errors) = (totals.arrived_in_window, totals.error_count());
        self.samples.push(Sample {
            t,
            rate: rate(arrived - self.arrived, end.saturating_sub(self.since)),
            open,
            errors: errors - self.errors,
            p50: totals.second_quantile(0.5),
            p99: totals.second_quantile(0.99),
        });
        totals.end_second();
        (self.since, self.arrived, self.errors) = (end, arrived, errors);
        self.next = window.start + (t + 1) * SECOND;
        self.samples.last()
    }
}

/// Returns `count` in `nanoseconds` as a rate per second.
fn rate(count: u64, nanoseconds: u64) -> u64 {
    let nanoseconds = u128::from(nanoseconds.max(1));
    u64::try_from((u128::from(count) * u128::from(SECOND) + nanoseconds / 2) / nanoseconds).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::error::{ErrorName, Phase};

    const WINDOW: Window = Window { start: SECOND, end: 3 * SECOND + SECOND / 2 };

    #[test]
    fn each_second_has_one_sample_whose_rate_is_per_second_even_if_it_is_cut_short() {
        let (mut timeline, mut totals) = (Timeline::new(), Totals::new(SECOND));
        timeline.start(WINDOW.start, 0);
        assert_eq!(timeline.next(), 2 * SECOND);
        for (now, replies) in [(2 * SECOND + 5, 1000), (3 * SECOND + 7, 1000), (WINDOW.end, 500)] {
            totals.arrived_in_window += replies;
            assert!(timeline.end_second(now, WINDOW, &mut totals, 1).is_some());
        }
        assert!(timeline.end_second(WINDOW.end, WINDOW, &mut totals, 1).is_none());
        // A turn that is late by seconds belongs to the last one of the window.
        assert!(timeline.end_second(WINDOW.end + 3 * SECOND, WINDOW, &mut totals, 1).is_none());
        let seconds: Vec<_> = timeline.samples().iter().map(|sample| (sample.t, sample.rate)).collect();
        assert_eq!(seconds, [(1, 1000), (2, 1000), (3, 1000)]);
    }

    #[test]
    fn a_sample_has_the_latencies_and_the_errors_of_its_second_alone() {
        let (mut timeline, mut totals) = (Timeline::new(), Totals::new(SECOND));
        timeline.start(WINDOW.start, 0);
        let mut end_second = |now, latencies_us: &[(u64, usize)], errors: u64| {
            for &(latency_us, count) in latencies_us {
                (0..count).for_each(|_| totals.record_reply(now, latency_us * 1000, false));
            }
            totals.record_errors(Phase::Connect, ErrorName::Refused, None, errors, now);
            let sample = timeline.end_second(now, WINDOW, &mut totals, 1).copied();
            sample.map(|sample| (sample.p50, sample.p99, sample.errors))
        };
        // The 99th of 100 is the first slow one.
        assert_eq!(end_second(2 * SECOND, &[(1000, 98), (2000, 2)], 2), Some((Some(1000), Some(2000), 2)));
        assert_eq!(end_second(3 * SECOND, &[(500, 1)], 3), Some((Some(500), Some(500), 3)));
        assert_eq!(end_second(WINDOW.end, &[], 0), Some((None, None, 0)));
        assert_eq!((totals.latency.count(), totals.latency.max()), (101, Some(2000)));
    }

    #[test]
    fn the_samples_of_a_window_begin_anew_after_a_report() {
        let (mut timeline, mut totals) = (Timeline::new(), Totals::new(SECOND));
        for replies in [700, 300] {
            timeline.start(WINDOW.start, 0);
            totals.arrived_in_window = replies;
            assert!(timeline.end_second(2 * SECOND, WINDOW, &mut totals, 1).is_some());
            timeline.stop();
            assert_eq!(timeline.next(), u64::MAX);
            assert_eq!(timeline.samples().iter().map(|sample| sample.rate).collect::<Vec<_>>(), [replies]);
            timeline.reset();
            assert!(timeline.samples().is_empty());
        }
    }
}
