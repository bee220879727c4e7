//! The decisions in which the modes differ, and what they depend on.

use std::fmt;

use crate::load::client::{Message, MessageCounts};
use crate::load::error::ErrorName;
use crate::load::progress::Step;
use crate::load::report::{Histogram, Hold};
use crate::load::schedule::Window;
use crate::load::stage::{Counts, Stage};

/// The decisions of a mode. They depend only on the configuration and on their arguments.
pub(in crate::load) trait Workload: fmt::Debug + Send + Sync {
    /// Returns whether another connect may begin.
    fn may_connect(&self, status: &Status<'_>) -> bool {
        status.step == Step::Connect && !status.counts.all_opened()
    }

    /// Returns how many nanoseconds the next connect waits after a failed one, or 0 if connects are not repeated.
    fn retry_pause(&self) -> u64 {
        0
    }

    /// Returns whether a window may begin.
    fn is_connected(&self, status: &Status<'_>) -> bool {
        let counts = status.counts;
        counts.all_opened() && counts.at(Stage::Connecting) + counts.at(Stage::Opening) == 0
    }

    /// Returns what makes messages due from the beginning of the warm-up on.
    fn traffic(&self) -> Traffic;

    /// Returns what makes messages due after the window.
    fn last_traffic(&self) -> Traffic {
        Traffic::Nothing
    }

    /// Returns what a steady connection does next, after a reply or at the beginning of the warm-up.
    fn reaction(&self, messages: MessageCounts, status: &Status<'_>) -> Reaction;

    /// Returns whether a message belongs to the report.
    fn is_reported(&self, message: Message, window: Window) -> bool;

    /// Returns whether a message only verifies its connection. It is in no figure.
    fn only_verifies(&self, _: Message) -> bool {
        false
    }

    /// Returns whether a message is the first of its connection and its latency is reported apart.
    fn is_first(&self, _: Message) -> bool {
        false
    }

    /// Returns whether the window has a fixed duration.
    fn is_timed(&self) -> bool {
        true
    }

    /// Returns whether the window is over.
    fn is_over(&self, status: &Status<'_>) -> bool {
        status.is_at_end()
    }

    /// Returns whether the run has nothing to wait for after the window.
    fn is_drained(&self, status: &Status<'_>) -> bool {
        status.is_idle()
    }

    /// Returns the first step that closes connections. Held connections are counted before it.
    fn closes_from(&self) -> Step {
        Step::Close
    }

    /// Records that a connection ended with `error` before the run closed it, `idle` nanoseconds after bytes last arrived on it.
    fn record_end(&mut self, _error: ErrorName, _idle: u64) {}

    /// Returns the outcomes that only mode hold reports, with the latencies of the first messages.
    fn outcomes(&self, _counts: &Counts, _first: &Histogram) -> Option<Hold> {
        None
    }
}

/// What a decision depends on. Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(in crate::load) struct Status<'a> {
    pub(in crate::load) step: Step,
    pub(in crate::load) now: u64,
    pub(in crate::load) window: Window,
    pub(in crate::load) counts: &'a Counts,
    /// Messages due and neither verified nor abandoned.
    pub(in crate::load) in_flight: u64,
    /// Whether the send schedule has more messages.
    pub(in crate::load) has_due: bool,
}

impl Status<'_> {
    /// Returns whether the duration of the window is over, or nothing is left to send and to receive.
    pub(super) fn is_at_end(&self) -> bool {
        // Messages of ended connections still become due, and are counted as unsent.
        self.now >= self.window.end || self.counts.open() == 0 && !self.has_due
    }

    /// Returns whether no reply is awaited and no message will be due.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && !self.has_due
    }
}

/// What makes messages due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) enum Traffic {
    Nothing,
    /// Each reply makes the next one due.
    OnReply,
    /// A send schedule of `rate` messages a second: `messages` on each connection, or until the window's end.
    Scheduled {
        rate: f64,
        messages: Option<u64>,
    },
    /// `rate` connections a second, until the window's end.
    Connections {
        rate: f64,
    },
}

/// What a connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Reaction {
    /// Nothing: a reply or the schedule makes it continue.
    Wait,
    /// This number of messages is due now.
    Send(u64),
    /// The run closes it.
    Close,
}

#[cfg(test)]
impl<'a> Status<'a> {
    /// Returns the status half-way through a window from 100 to 200, with nothing in flight.
    pub(super) fn measuring(counts: &'a Counts) -> Self {
        let window = Window { start: 100, end: 200 };
        Self { step: Step::Measure, now: 150, window, counts, in_flight: 0, has_due: false }
    }
}
