//! `hold`: each connection sends one message at its opening, none in the window, and one after it.

use std::time::Duration;

use super::workload::{Reaction, Status, Traffic, Workload};
use crate::load::client::{Message, MessageCounts};
use crate::load::config::Config;
use crate::load::error::ErrorName;
use crate::load::report::{ClosedAfter, Histogram, Hold};
use crate::load::schedule::Window;
use crate::load::stage::Counts;

/// The rate of the last messages, unless one is configured.
const DEFAULT_RATE: f64 = 10_000.0;

#[derive(Debug)]
pub(super) struct HoldMode {
    rate: f64,
    /// The outcomes of connections that have ended.
    ended: Hold,
    /// How long nothing had arrived on the closed and reset connections, in nanoseconds.
    closed_after: Vec<u64>,
}

impl HoldMode {
    pub(super) fn new(config: &Config) -> Self {
        Self { rate: config.rate.unwrap_or(DEFAULT_RATE), ended: Hold::default(), closed_after: Vec::new() }
    }
}

impl Workload for HoldMode {
    fn traffic(&self) -> Traffic {
        Traffic::Nothing
    }

    fn last_traffic(&self) -> Traffic {
        Traffic::Scheduled { rate: self.rate, messages: Some(1) }
    }

    fn reaction(&self, _: MessageCounts, _: &Status<'_>) -> Reaction {
        Reaction::Wait
    }

    fn is_reported(&self, _: Message, _: Window) -> bool {
        true
    }

    fn is_first(&self, message: Message) -> bool {
        message.index == 0
    }

    fn record_end(&mut self, error: ErrorName, idle: u64) {
        if matches!(error, ErrorName::Reset | ErrorName::ClosedEarly) {
            self.closed_after.push(idle);
        }
        match error {
            ErrorName::Reset => self.ended.reset += 1,
            ErrorName::ClosedEarly => self.ended.closed += 1,
            ErrorName::Timeout => self.ended.silent += 1,
            _ => self.ended.failed += 1,
        }
    }

    fn outcomes(&self, counts: &Counts, first: &Histogram) -> Option<Hold> {
        Some(Hold {
            alive: counts.held - counts.late - counts.unasked,
            late: counts.late,
            unasked: counts.unasked,
            closed_after_s: closed_after(self.closed_after.clone()),
            first_us: first.summary(),
            ..self.ended.clone()
        })
    }
}

/// Summarizes times in nanoseconds.
fn closed_after(mut times: Vec<u64>) -> Option<ClosedAfter> {
    times.sort_unstable();
    let seconds = |nanoseconds: u64| Duration::from_millis(nanoseconds / 1_000_000).as_secs_f64();
    let p50 = times.get(times.len().div_ceil(2).saturating_sub(1)).copied().map(seconds);
    Some(ClosedAfter { min: seconds(*times.first()?), p50, max: seconds(*times.last()?) })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::transport::AnyAddress;

    #[test]
    fn each_outcome_is_counted_once() {
        let mut hold = HoldMode::new(&Config::new(Vec::<AnyAddress>::new()));
        let errors =
            [ErrorName::Reset, ErrorName::ClosedEarly, ErrorName::Timeout, ErrorName::BadBytes, ErrorName::Unreachable];
        for error in errors {
            hold.record_end(error, 0);
        }
        let mut counts = Counts::new(9);
        (counts.held, counts.late, counts.unasked) = (6, 2, 1);
        let of = hold.outcomes(&counts, &Histogram::new()).unwrap();
        assert_eq!([of.alive, of.late, of.reset, of.closed, of.silent, of.unasked, of.failed], [3, 2, 1, 1, 1, 1, 2]);
    }

    #[test]
    fn the_latencies_of_the_first_messages_are_summarized() {
        let hold = HoldMode::new(&Config::new(Vec::<AnyAddress>::new()));
        let mut first = Histogram::new();
        for milliseconds in [2, 1, 2] {
            first.record(milliseconds * 1_000_000);
        }
        let of = hold.outcomes(&Counts::new(3), &first).unwrap().first_us;
        assert_eq!((of.count, of.mean, of.p50, of.max), (3, Some(1666.7), Some(2000), Some(2000)));
    }

    #[test]
    fn the_idle_times_of_closed_and_reset_connections_are_summarized() {
        let mut hold = HoldMode::new(&Config::new(Vec::<AnyAddress>::new()));
        let outcomes = |hold: &HoldMode| hold.outcomes(&Counts::new(9), &Histogram::new()).unwrap().closed_after_s;
        assert_eq!(outcomes(&hold), None);
        for (error, seconds) in
            [(ErrorName::Reset, 7200), (ErrorName::ClosedEarly, 60), (ErrorName::Timeout, 1), (ErrorName::Reset, 350)]
        {
            hold.record_end(error, seconds * 1_000_000_000);
        }
        assert_eq!(outcomes(&hold), Some(ClosedAfter { min: 60.0, p50: Some(350.0), max: 7200.0 }));
    }

    #[test]
    fn the_last_messages_are_paced_and_one_for_each_connection() {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        for (rate, paced) in [(None, DEFAULT_RATE), (Some(7.0), 7.0)] {
            config.rate = rate;
            let expected = Traffic::Scheduled { rate: paced, messages: Some(1) };
            assert_eq!(HoldMode::new(&config).last_traffic(), expected);
        }
    }
}
