//! The counts and histograms of a run.

use std::collections::BTreeMap;

use super::error::{ErrorName, Phase};
use super::report::{Finding, Histogram, Messages, Verify};
use super::verify::Corruption;

/// Findings that the report lists; more are only counted.
const FINDINGS_MAX: usize = 1000;

/// Why the outstanding messages of a connection are abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// A reset, a timeout or Ctrl-C: a reply may have been on its way.
    Unanswered,
    /// A finding, or FIN before the reply: no reply will come.
    Failed,
}

#[derive(Debug)]
pub(super) struct Totals {
    /// Messages due and neither verified nor abandoned, over all connections.
    pub(super) in_flight: u64,
    pub(super) messages: Messages,
    pub(super) verified_in_window: u64,
    /// The latencies of the current second, and those before it.
    second: Histogram,
    pub(super) latency: Histogram,
    pub(super) connect: Histogram,
    pub(super) lateness: Histogram,
    errors: BTreeMap<(Phase, ErrorName, Option<i32>), u64>,
    pub(super) verify: Verify,
}

impl Totals {
    pub(super) fn new() -> Self {
        Self {
            in_flight: 0,
            messages: Messages::default(),
            verified_in_window: 0,
            second: Histogram::new(),
            latency: Histogram::new(),
            connect: Histogram::new(),
            lateness: Histogram::new(),
            errors: BTreeMap::new(),
            verify: Verify::default(),
        }
    }

    /// Clears the counts that a report contains, except messages in flight and connect times, which belong to the connections.
    pub(super) fn reset(&mut self) {
        self.messages = Messages::default();
        self.verified_in_window = 0;
        self.latency.clear();
        self.lateness.clear();
        self.errors.clear();
        self.verify = Verify::default();
    }

    /// Counts a message that became due on an open connection.
    pub(super) fn record_due(&mut self, is_reported: bool) {
        self.in_flight += 1;
        self.messages.due += u64::from(is_reported);
    }

    /// Counts a message that became due on a connection that has ended.
    pub(super) fn record_unsent(&mut self) {
        self.messages.due += 1;
        self.messages.unsent += 1;
    }

    /// Counts a verified message and its latency.
    pub(super) fn record_reply(&mut self, latency: u64, is_in_window: bool) {
        self.messages.verified += 1;
        self.verified_in_window += u64::from(is_in_window);
        self.second.record(latency);
    }

    /// Counts an outstanding message of a connection that ends `age` nanoseconds after the message was due.
    pub(super) fn record_abandoned(&mut self, reason: AbandonReason, is_sent: bool, age: u64) {
        if !is_sent {
            self.messages.unsent += 1;
        } else if reason == AbandonReason::Failed {
            self.messages.failed += 1;
        } else {
            self.messages.unanswered += 1;
            self.second.record_censored(age);
        }
    }

    /// Returns the quantile `quantile` of the current second's latencies, in microseconds.
    pub(super) fn second_quantile(&self, quantile: f64) -> Option<u64> {
        self.second.quantile(quantile)
    }

    /// Returns whether the current second has latencies.
    pub(super) fn is_mid_second(&self) -> bool {
        self.second.count() > 0
    }

    /// Adds the current second's latencies to those before it.
    pub(super) fn end_second(&mut self) {
        self.latency.add(&self.second);
        self.second.clear();
    }

    pub(super) fn record_error(&mut self, phase: Phase, error: ErrorName, errno: Option<i32>) {
        self.record_errors(phase, error, errno, 1);
    }

    /// Counts an error of `count` connections.
    pub(super) fn record_errors(&mut self, phase: Phase, error: ErrorName, errno: Option<i32>, count: u64) {
        *self.errors.entry((phase, error, errno)).or_default() += count;
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = ((Phase, ErrorName, Option<i32>), u64)> {
        self.errors.iter().map(|(&error, &count)| (error, count))
    }

    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn record_finding(&mut self, corruption: &Corruption, finding: Finding) {
        self.verify.wrong_bytes += corruption.wrong_bytes;
        self.verify.lost_bytes += corruption.lost_bytes;
        self.verify.extra_bytes += corruption.extra_bytes;
        self.verify.connections_failed += 1;
        if self.verify.findings.len() < FINDINGS_MAX {
            self.verify.findings.push(finding);
        }
    }
}
