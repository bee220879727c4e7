//! `hold`: each connection sends one message at its opening, none in the window, and one after it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::workload::{Reaction, Status, Traffic, Workload};
use crate::load::client::{Message, MessageCounts};
use crate::load::config::Config;
use crate::load::error::ErrorName;
use crate::load::report::{ClosedAfter, Histogram, Hold};
use crate::load::schedule::Window;
use crate::load::stage::Counts;

#[derive(Debug)]
pub(super) struct HoldMode {
    rate: f64,
    /// The outcomes of connections that have ended.
    ended: Hold,
    /// Number of closed and reset connections by how long nothing had arrived on them, in whole milliseconds: with reconnecting there
    /// is no limit of their number.
    closed_after: BTreeMap<u64, u64>,
}

impl HoldMode {
    pub(super) fn new(config: &Config) -> Self {
        Self { rate: config.rate_of_last_messages(), ended: Hold::default(), closed_after: BTreeMap::new() }
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
            *self.closed_after.entry(idle / 1_000_000).or_default() += 1;
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
            closed_after_s: closed_after(&self.closed_after),
            first_us: first.summary(),
            ..self.ended.clone()
        })
    }
}

/// Summarizes times in milliseconds, each with its number.
fn closed_after(times: &BTreeMap<u64, u64>) -> Option<ClosedAfter> {
    let seconds = |(&milliseconds, _): (&u64, &u64)| Duration::from_millis(milliseconds).as_secs_f64();
    let half = times.values().sum::<u64>().div_ceil(2);
    let mut passed = 0;
    let median = times.iter().find(|&(_, count)| {
        passed += count;
        passed >= half
    });
    Some(ClosedAfter {
        min: times.first_key_value().map(seconds)?,
        p50: median.map(seconds),
        max: times.last_key_value().map(seconds)?,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::socket_address::AnyAddress;

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
    fn a_million_connections_that_were_closed_after_the_same_time_take_one_place() {
        let mut hold = HoldMode::new(&Config::new(Vec::<AnyAddress>::new()));
        (0..1_000_000).for_each(|_| hold.record_end(ErrorName::Reset, 60_000_000_000));
        assert_eq!((hold.closed_after.len(), hold.ended.reset), (1, 1_000_000));
    }

    #[test]
    fn the_median_idle_time_is_that_of_the_connection_in_the_middle() {
        for (milliseconds, p50) in [
            (&[1000, 1500, 1500, 2000, 60_000, 60_000, 60_000][..], 2.0),
            // Of two in the middle, the lower one.
            (&[1000, 1500, 1500, 2000, 2000, 60_000], 1.5),
            (&[2000, 60_000, 60_000], 60.0),
        ] {
            let mut hold = HoldMode::new(&Config::new(Vec::<AnyAddress>::new()));
            for time in milliseconds {
                hold.record_end(ErrorName::Reset, time * 1_000_000 + 999_999);
            }
            let after = hold.outcomes(&Counts::new(9), &Histogram::new()).unwrap().closed_after_s;
            let [min, max] = [milliseconds[0], *milliseconds.last().unwrap()];
            let seconds = |milliseconds| Duration::from_millis(milliseconds).as_secs_f64();
            assert_eq!(after, Some(ClosedAfter { min: seconds(min), p50: Some(p50), max: seconds(max) }));
        }
    }

    #[test]
    fn the_last_messages_are_paced_and_one_for_each_connection() {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        for (rate, paced) in [(None, 10_000.0), (Some(7.0), 7.0)] {
            config.rate = rate;
            let expected = Traffic::Scheduled { rate: paced, messages: Some(1) };
            assert_eq!(HoldMode::new(&config).last_traffic(), expected);
        }
    }
}
