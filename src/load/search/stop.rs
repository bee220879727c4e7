//! When a window of a search can no longer pass.

use std::time::Duration;

use crate::load::arrivals::ArrivalProcess;
use crate::load::report::Threshold;
use crate::load::timer::SECOND;
use crate::load::totals::Totals;

/// Ends a window early.
#[derive(Debug)]
pub(in crate::load) struct StopRule {
    rate: f64,
    arrivals: ArrivalProcess,
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
    /// Creates the rule of a window of `rate` messages a second, which follow each other as `arrivals`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of a window are below 2^53")]
    pub(super) fn new(goal: &[Threshold], rate: f64, arrivals: ArrivalProcess, window: Duration) -> Self {
        let due = most(rate * window.as_secs_f64(), arrivals);
        let limits = goal.iter().filter_map(Threshold::latency_limit).map(|(share, latency)| {
            // One more, for the rounding of the window's edges.
            Limit { latency, slow_max: ((due * share) as u64).saturating_add(1) }
        });
        Self { rate, arrivals, limits: limits.collect(), stops_at_errors: !goal.iter().any(Threshold::is_on_errors) }
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
        let younger = most(self.rate * age as f64 / SECOND as f64, self.arrivals) as u64;
        in_flight.saturating_sub(younger).saturating_sub(1)
    }
}

/// Returns how many messages are due at most where `expected` are: a Poisson process stays within five standard deviations.
fn most(expected: f64, arrivals: ArrivalProcess) -> f64 {
    match arrivals {
        ArrivalProcess::Even => expected,
        ArrivalProcess::Poisson => expected + 5.0 * expected.sqrt() + 5.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::error::{ErrorName, Phase};

    fn rule(goal: &str) -> StopRule {
        let goal = [goal.parse().unwrap_or_else(|reason| unreachable!("{reason}"))];
        StopRule::new(&goal, 1000.0, ArrivalProcess::Even, Duration::from_secs(10))
    }

    #[test]
    fn a_window_cannot_pass_once_slow_and_overdue_messages_are_more_than_its_share() {
        let rule = rule("p99<5ms");
        // 101 messages may be slow. In 5 ms 5 messages become due, or 6.
        for (slow, in_flight, expected) in [
            (101, 6, false),
            (102, 0, true),
            (0, 101 + 6, false),
            (0, 102 + 6, true),
            (1, 100 + 6, false),
            (1, 101 + 6, true),
            (100, 1 + 6, false),
            (100, 2 + 6, true),
        ] {
            let mut totals = Totals::new(SECOND);
            totals.in_flight = in_flight;
            for _ in 0..slow {
                totals.latency.record(SECOND / 100);
            }
            assert_eq!(rule.cannot_pass(&totals), expected, "{slow} slow, {in_flight} in flight");
        }
    }

    #[test]
    fn an_error_ends_a_window_unless_the_goal_is_on_errors() {
        let mut totals = Totals::new(SECOND);
        assert!(!rule("p99<5ms").cannot_pass(&totals));
        totals.record_errors(Phase::Connect, ErrorName::Refused, None, 1, 0);
        assert!(rule("p99<5ms").cannot_pass(&totals));
        assert!(!rule("errors<=5").cannot_pass(&totals));
    }

    #[test]
    fn a_window_and_a_latency_of_centuries_are_not_too_long() {
        let goal = ["p99<10000000h".parse().unwrap_or_else(|reason| unreachable!("{reason}"))];
        let window = Duration::from_secs(4_000_000_000_000);
        let mut rule = StopRule::new(&goal, 1e9, ArrivalProcess::Even, window);
        assert_eq!(rule.limits[0].slow_max, u64::MAX);
        rule.limits[0].slow_max = 0;
        assert!(!rule.cannot_pass(&Totals::new(SECOND)));
    }

    #[test]
    fn a_window_with_random_arrivals_may_have_more_messages() {
        let window = Duration::from_secs(10);
        let slow_max = |arrivals| {
            let goal = ["p99<5ms".parse().unwrap_or_else(|reason| unreachable!("{reason}"))];
            StopRule::new(&goal, 1000.0, arrivals, window).limits.iter().map(|limit| limit.slow_max).collect::<Vec<_>>()
        };
        // A hundredth of 10,000, and of 10,505.
        assert_eq!(slow_max(ArrivalProcess::Even), [101]);
        assert_eq!(slow_max(ArrivalProcess::Poisson), [106]);
    }
}
