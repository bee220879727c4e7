//! The counts and histograms of each stage of the rate.

use super::profile::RateStage;
use super::report::{Histogram, Messages};
use super::timer::nanoseconds;

/// The figures of each stage. Without stages, or before the window, there are none.
#[derive(Clone, Debug, Default)]
pub(super) struct StageTotals {
    /// When the first stage begins, in nanoseconds of the run.
    start: u64,
    /// When each stage ends, in nanoseconds from there.
    ends: Vec<u64>,
    totals: Vec<StageTotal>,
}

#[derive(Clone, Debug)]
pub(super) struct StageTotal {
    pub(super) messages: Messages,
    /// Verified replies that arrived in it.
    pub(super) arrived: u64,
    pub(super) errors: u64,
    pub(super) latency: Histogram,
    pub(super) lateness: Histogram,
}

impl StageTotal {
    fn new() -> Self {
        Self {
            messages: Messages::default(),
            arrived: 0,
            errors: 0,
            latency: Histogram::new(),
            lateness: Histogram::new(),
        }
    }
}

impl StageTotals {
    /// Allocates the figures of `stages`, of which none has begun.
    pub(super) fn new(stages: &[RateStage]) -> Self {
        let mut end = 0;
        let next_end = |stage: &RateStage| {
            end += nanoseconds(stage.duration);
            end
        };
        Self {
            start: u64::MAX,
            ends: stages.iter().map(next_end).collect(),
            totals: stages.iter().map(|_| StageTotal::new()).collect(),
        }
    }

    /// Begins the first stage at `start`.
    pub(super) fn begin(&mut self, start: u64) {
        self.start = start;
    }

    /// Returns the number of the stage that `time` is in, from 0, or 0 without stages. What follows the last stage is the last one's.
    pub(super) fn index_at(&self, time: u64) -> usize {
        let elapsed = time.saturating_sub(self.start);
        self.ends.partition_point(|&end| end <= elapsed).min(self.ends.len().saturating_sub(1))
    }

    /// Returns the stage under a number.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut StageTotal> {
        self.totals.get_mut(index)
    }

    /// Returns the stage that `time` is in; `None` before the first one.
    #[inline]
    pub(super) fn at(&mut self, time: u64) -> Option<&mut StageTotal> {
        if self.ends.is_empty() || time < self.start {
            return None;
        }
        let index = self.index_at(time);
        self.totals.get_mut(index)
    }

    /// Returns each stage with the nanoseconds of it that have passed at `now`.
    pub(super) fn until(&self, now: u64) -> impl Iterator<Item = (&StageTotal, u64)> {
        let elapsed = now.saturating_sub(self.start);
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        let passed = begins.zip(&self.ends).map(move |(begin, &end)| end.min(elapsed).saturating_sub(begin));
        self.totals.iter().zip(passed)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_before_the_first_stage_or_without_stages_is_in_none() {
        let stage = RateStage { from: 1.0, to: 1.0, duration: Duration::from_nanos(50) };
        let mut totals = StageTotals::new(&[stage, stage]);
        assert!(totals.at(0).is_none());
        totals.begin(100);
        for (time, arrived) in [(100, 1), (149, 2), (150, 1), (1000, 2)] {
            let stage = totals.at(time).unwrap_or_else(|| unreachable!("no stage at {time}"));
            stage.arrived += 1;
            assert_eq!(stage.arrived, arrived, "{time}");
        }
        assert!(totals.at(99).is_none());
        assert_eq!(totals.until(170).map(|(_, passed)| passed).collect::<Vec<_>>(), [50, 20]);
        totals.clear();
        assert!(totals.at(100).is_none());
        assert_eq!(totals.until(170).count(), 0);
    }
}
