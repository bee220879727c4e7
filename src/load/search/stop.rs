//! When a window of a search can no longer pass.

use std::time::Duration;

use crate::load::report::Threshold;
use crate::load::timer::SECOND;
use crate::load::totals::Totals;

/// Ends a window early.
#[derive(Debug)]
pub(in crate::load) struct StopRule {
    rate: f64,
    limits: Vec<Limit>,
    /// The goal does not allow any error.
    stops_at_errors: bool,
}

/// A latency that at most `slow_max` messages may exceed.
#[derive(Debug)]
struct Limit {
    latency: u64,
    slow_max: u64,
}

impl StopRule {
    /// Creates the rule of a window of `rate` messages a second.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a window are below 2^53")]
    pub(super) fn new(goal: &[Threshold], rate: f64, window: Duration) -> Self {
        let due = rate * window.as_secs_f64();
        let limits = goal.iter().filter_map(Threshold::latency_limit).map(|(share, latency)| {
            // One more, for the rounding of the window's edges.
            Limit { latency, slow_max: (due * share) as u64 + 1 }
        });
        Self { rate, limits: limits.collect(), stops_at_errors: !goal.iter().any(Threshold::is_on_errors) }
    }

    /// Returns whether the window fails, whatever is still to come.
    pub(in crate::load) fn cannot_pass(&self, totals: &Totals) -> bool {
        self.stops_at_errors && totals.error_count() > 0
            || self.limits.iter().any(|limit| {
                totals.count_above(limit.latency) + self.overdue(totals.in_flight, limit.latency) > limit.slow_max
            })
    }

    /// Returns how many messages in flight are older than `age`, at least: of the others no more were due since.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of a window are below 2^53"
    )]
    fn overdue(&self, in_flight: u64, age: u64) -> u64 {
        let younger = (self.rate * age as f64 / SECOND as f64) as u64 + 1;
        in_flight.saturating_sub(younger)
    }
}
