//! `hold`: each connection sends one message at its opening, none in the window, and one after it.

use super::workload::{Reaction, Status, Traffic, Workload};
use crate::load::client::{Message, MessageCounts};
use crate::load::config::Config;
use crate::load::error::ErrorName;
use crate::load::report::Hold;
use crate::load::schedule::Window;
use crate::load::stage::Counts;

/// The rate of the last messages, unless one is configured.
const DEFAULT_RATE: f64 = 10_000.0;

#[derive(Debug)]
pub(super) struct HoldMode {
    rate: f64,
    /// The outcomes of connections that have ended.
    ended: Hold,
}

impl HoldMode {
    pub(super) fn new(config: &Config) -> Self {
        Self { rate: config.rate.unwrap_or(DEFAULT_RATE), ended: Hold::default() }
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

    fn record_end(&mut self, error: ErrorName) {
        match error {
            ErrorName::Reset => self.ended.reset += 1,
            ErrorName::ClosedEarly => self.ended.closed += 1,
            ErrorName::Timeout => self.ended.silent += 1,
            _ => {}
        }
    }

    fn outcomes(&self, counts: &Counts) -> Option<Hold> {
        Some(Hold { alive: counts.held - counts.late, late: counts.late, ..self.ended })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_counted_once() {
        let mut hold = HoldMode::new(&Config::new(Vec::new()));
        for error in [ErrorName::Reset, ErrorName::ClosedEarly, ErrorName::Timeout, ErrorName::BadBytes] {
            hold.record_end(error);
        }
        let mut counts = Counts::new(9);
        (counts.held, counts.late) = (5, 2);
        let outcomes = hold.outcomes(&counts).map(|of| [of.alive, of.late, of.reset, of.closed, of.silent]);
        assert_eq!(outcomes, Some([3, 2, 1, 1, 1]));
    }

    #[test]
    fn the_last_messages_are_paced_and_one_for_each_connection() {
        let mut config = Config::new(Vec::new());
        for (rate, paced) in [(None, DEFAULT_RATE), (Some(7.0), 7.0)] {
            config.rate = rate;
            let expected = Traffic::Scheduled { rate: paced, messages: Some(1) };
            assert_eq!(HoldMode::new(&config).last_traffic(), expected);
        }
    }
}
