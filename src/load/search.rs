//! Finds the highest rate at which a goal holds.

mod plan;
mod stop;

use std::io;
use std::time::Duration;

use self::plan::{Next, Plan, Window};
pub(super) use self::stop::StopRule;
use super::config::Config;
use super::interrupt::Interrupt;
use super::progress::ProgressCell;
use super::report::{Ended, LimitedBy, Probe, Report, SearchReport, Threshold, evaluate, merge_errors, merge_verify};
use super::session::Session;

/// A confirming window is this number of times longer than one of the search.
const CONFIRM_FACTOR: u32 = 2;

/// What a search looks for, and where.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Search {
    /// The conditions that hold at the rate that is found.
    pub goal: Vec<Threshold>,
    /// The first rate that is tried, in messages a second over all connections.
    pub low: f64,
    /// The highest rate that is tried.
    pub high: f64,
    /// The search ends once the lowest rate that failed is at most this share above the highest that passed. 0.05.
    pub tolerance: f64,
    /// Duration of the window at each rate. 5 s.
    pub window: Duration,
}

impl Search {
    /// Returns a search from `low` to `high`.
    #[must_use]
    pub fn new(goal: Vec<Threshold>, low: f64, high: f64) -> Self {
        Self { goal, low, high, tolerance: 0.05, window: Duration::from_secs(5) }
    }

    /// Checks the settings, as [`find_rate`] does.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a setting is out of its range, or one of `config` does not apply.
    pub fn validate(&self, config: &Config) -> io::Result<()> {
        let reason: String = if self.goal.is_empty() || !self.goal.iter().all(Threshold::is_goal) {
            "a search needs a goal, on latency, lateness, rate, connections, errors, unanswered, unsent or deferred"
                .into()
        } else if let Some(meant) = self.goal.iter().find_map(Threshold::meant_goal) {
            format!("a goal states what must hold: did you mean {meant}?")
        } else if !(self.low > 0.0 && self.low <= self.high) {
            "the lowest rate must be above 0, and at most the highest".into()
        } else if !(self.tolerance >= 0.001 && self.tolerance <= 1.0) {
            "the tolerance must be from 0.1 % to 100 %".into()
        } else if self.window.is_zero() {
            "the window must be above 0".into()
        } else if !config.warmup.is_zero() || config.messages_per_connection.is_some() || config.rank.is_some() {
            "a search has no warm-up, no number of messages per connection, and no ranks".into()
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
}

/// Finds the highest rate at which a goal holds, and returns the report of the last window, with the search in it.
///
/// Measures windows over the same connections: doubles the rate until one fails, bisects between the highest that passed and the
/// lowest that failed, and confirms the result in three longer windows. A rate passes if every condition of the goal holds and no
/// default threshold fails. Nothing is in flight when a window begins, and connections that have ended are opened anew. If none can be
/// opened, the server is gone, and the search stops without a rate. Calls `take` after each window.
///
/// # Errors
///
/// - The errors of [`Session::connect`].
/// - `InvalidInput`: a setting of the search is out of its range, or one of `config` does not apply.
pub fn find_rate(
    mut config: Config,
    search: &Search,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    mut take: impl FnMut(&Probe),
) -> io::Result<Report> {
    search.validate(&config)?;
    config.rate = Some(search.low);
    let arrivals = config.arrivals;
    let requested = std::mem::replace(&mut config.thresholds, search.goal.clone());
    let mut session = Session::connect(config, interrupt, progress)?;
    let mut plan = Plan::new(search.low, search.high, search.tolerance);
    let mut result = SearchReport::new(search.goal.iter().map(ToString::to_string).collect());
    let (mut last, mut has_passed) = (None, false);
    let (found_rate, limited_by) = loop {
        let (rate, is_confirming) = match plan.next() {
            Next::Probe(rate) => (rate, false),
            Next::Confirm(rate) => (rate, true),
            Next::Done { found_rate, limited_by } => break (found_rate, Some(limited_by)),
        };
        let window = search.window.saturating_mul(if is_confirming { CONFIRM_FACTOR } else { 1 });
        result.reopened += session.reopen()?;
        if !session.has_connection() && !interrupt.is_set() {
            result.server_gone = true;
            break (None, Some(LimitedBy::Server));
        }
        let report = session.measure_at(rate, window, StopRule::new(&search.goal, rate, arrivals, window))?;
        let is_interrupted = report.ended == Ended::Interrupted;
        if !is_interrupted {
            let probe = Probe::new(rate, is_confirming, &report);
            take(&probe);
            has_passed |= probe.passed && probe.schedule_kept;
            plan.record(Window { is_valid: probe.schedule_kept, passed: probe.passed });
            result.probes.push(probe);
        }
        // The report of the search is that of the last window that passed, or if none did of the last one.
        if !has_passed
            || is_interrupted
            || result.probes.last().is_some_and(|probe| probe.passed && probe.schedule_kept)
        {
            last = Some(report);
        }
        if is_interrupted {
            break (None, None);
        }
    };
    (result.found_rate, result.limited_by) = (found_rate, limited_by);
    let rest = session.close()?;
    let mut report = match last {
        Some(last) => {
            let both = [&last, &rest];
            Report { errors: merge_errors(&both), verify: merge_verify(&both), ..last }
        }
        None => rest,
    };
    report.search = Some(result);
    evaluate(&mut report, &requested);
    Ok(report)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::rank::Rank;
    use super::*;
    use crate::socket_address::AnyAddress;

    fn config() -> Config {
        Config::new(Vec::<AnyAddress>::new())
    }

    /// Returns why a search with `change` is refused, or an empty text if it is not.
    fn refusal(change: impl FnOnce(&mut Search)) -> String {
        let mut search = Search::new(vec!["p99<5ms".parse().unwrap()], 10.0, 20.0);
        change(&mut search);
        search.validate(&config()).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_search_has_a_range_of_rates_above_0_and_a_tolerance_within_its_bounds() {
        let range = "the lowest rate must be above 0, and at most the highest";
        for (low, high, reason) in [
            (20.0, 20.0, ""),
            (0.0, 20.0, range),
            (20.1, 20.0, range),
            (f64::NAN, 20.0, range),
            (10.0, f64::NAN, range),
        ] {
            assert_eq!(refusal(|search| (search.low, search.high) = (low, high)), reason, "{low} to {high}");
        }
        let bounds = "the tolerance must be from 0.1 % to 100 %";
        for (tolerance, reason) in [(0.001, ""), (1.0, ""), (0.0009, bounds), (1.1, bounds), (f64::NAN, bounds)] {
            assert_eq!(refusal(|search| search.tolerance = tolerance), reason, "{tolerance}");
        }
        assert_eq!(refusal(|search| search.window = Duration::ZERO), "the window must be above 0");
    }

    #[test]
    fn each_setting_that_a_search_does_not_have_is_refused_alone() {
        let search = Search::new(vec!["p99<5ms".parse().unwrap()], 10.0, 20.0);
        let one_second = Duration::from_secs(1);
        for config in [
            Config { warmup: one_second, ..config() },
            Config { messages_per_connection: Some(1), ..config() },
            Config { rank: Some(Rank::ALONE), ..config() },
        ] {
            let error = search.validate(&config).unwrap_err();
            assert_eq!(
                error.to_string(),
                "a search has no warm-up, no number of messages per connection, and no ranks"
            );
        }
    }
}
