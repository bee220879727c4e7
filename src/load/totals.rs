//! The counts and histograms of a run.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::error::{ErrorName, Phase};
use super::report::{Finding, Histogram, Messages, Verify};
use super::schedule::TICK;
use super::timer::SECOND;
use super::verify::Corruption;

/// Findings that the report lists; more are only counted.
const FINDINGS_MAX: usize = 1000;
/// Longest age of a lost message in nanoseconds, the maximum of a histogram.
const LOST_AGE_MAX: u64 = 3600 * SECOND;

/// Why the outstanding messages of a connection are abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// A reset, a timeout or Ctrl-C: a reply may have been on its way.
    Unanswered,
    /// A finding, or FIN before the reply: no reply will come.
    Failed,
}

/// The errors of one kind.
#[derive(Debug, Default)]
pub(super) struct ErrorTotals {
    pub(super) count: u64,
    /// When the first one occurred.
    pub(super) first: u64,
    /// Their number by target. A connect that could not begin has none.
    pub(super) targets: BTreeMap<SocketAddr, u64>,
}

/// An outstanding message of a connection that ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abandoned {
    pub(super) reason: AbandonReason,
    pub(super) is_sent: bool,
    /// Its latency is recorded apart.
    pub(super) is_first: bool,
    pub(super) due: u64,
}

#[derive(Debug)]
pub(super) struct Totals {
    /// Messages due and neither verified nor abandoned, over all connections.
    pub(super) in_flight: u64,
    pub(super) messages: Messages,
    /// Verified replies that arrived in the window, to messages of the warm-up too.
    pub(super) arrived_in_window: u64,
    /// The age at which a lost message is recorded, unless the measurement ends before.
    lost_age_max: u64,
    /// Number of messages that will never come back, by due time in ticks. Their latency is recorded when the measurement ends.
    lost: BTreeMap<u64, u64>,
    /// The latencies of the current second, and those before it.
    second: Histogram,
    pub(super) latency: Histogram,
    /// Latencies of the first messages, in a mode that reports them apart.
    pub(super) first: Histogram,
    pub(super) connect: Histogram,
    pub(super) lateness: Histogram,
    errors: BTreeMap<(Phase, ErrorName, Option<i32>), ErrorTotals>,
    pub(super) verify: Verify,
    /// When each listed finding occurred.
    pub(super) finding_times: Vec<u64>,
}

impl Totals {
    /// Creates empty totals of a run whose replies have a timeout of `timeout` nanoseconds.
    pub(super) fn new(timeout: u64) -> Self {
        Self {
            in_flight: 0,
            messages: Messages::default(),
            arrived_in_window: 0,
            lost_age_max: timeout.min(LOST_AGE_MAX),
            lost: BTreeMap::new(),
            second: Histogram::new(),
            latency: Histogram::new(),
            first: Histogram::new(),
            connect: Histogram::new(),
            lateness: Histogram::new(),
            errors: BTreeMap::new(),
            verify: Verify::default(),
            finding_times: Vec::new(),
        }
    }

    /// Clears the counts that a report contains, except messages in flight and connect times, which belong to the connections.
    pub(super) fn reset(&mut self) {
        self.messages = Messages::default();
        self.arrived_in_window = 0;
        self.lost.clear();
        self.latency.clear();
        self.first.clear();
        self.lateness.clear();
        self.errors.clear();
        self.verify = Verify::default();
        self.finding_times.clear();
    }

    /// Counts a message that became due on an open connection.
    pub(super) fn record_due(&mut self, is_reported: bool) {
        self.in_flight += 1;
        self.messages.due += u64::from(is_reported);
    }

    /// Counts `count` messages that became due from `due` on, within a tick, on connections that have ended.
    pub(super) fn record_unsent(&mut self, due: u64, count: u64) {
        self.messages.due += count;
        self.messages.unsent += count;
        self.record_lost(due, count);
    }

    /// Counts a verified message and its latency, which `is_first` records apart.
    pub(super) fn record_reply(&mut self, latency: u64, is_first: bool) {
        self.messages.verified += 1;
        if is_first { &mut self.first } else { &mut self.second }.record(latency);
    }

    /// Counts an outstanding message of a connection that ends at `now`. The measurement ends at `end`.
    pub(super) fn record_abandoned(&mut self, abandoned: Abandoned, now: u64, end: u64) {
        let Abandoned { reason, is_sent, is_first, due } = abandoned;
        if !is_sent {
            self.messages.unsent += 1;
        } else if reason == AbandonReason::Failed {
            self.messages.failed += 1;
        } else {
            self.messages.unanswered += 1;
        }
        let age = now.saturating_sub(due);
        if is_first {
            self.first.record_censored(age);
        } else if now >= end || age >= self.lost_age_max {
            self.second.record_censored(age);
        } else {
            self.record_lost(due, 1);
        }
    }

    fn record_lost(&mut self, due: u64, count: u64) {
        *self.lost.entry(due / TICK).or_default() += count;
    }

    /// Records the lost messages whose timeout has expired by `now`.
    pub(super) fn expire_lost(&mut self, now: u64) {
        while let Some(first) = self.lost.first_entry()
            && first.key() * TICK + self.lost_age_max <= now
        {
            self.second.record_censored_times(self.lost_age_max, first.remove());
        }
    }

    /// Records every lost message with its age at `end`, when the measurement ends.
    pub(super) fn end_measurement(&mut self, end: u64) {
        for (tick, count) in std::mem::take(&mut self.lost) {
            let age = end.saturating_sub(tick * TICK).min(self.lost_age_max);
            self.second.record_censored_times(age, count);
        }
    }

    /// Returns the quantile `quantile` of the current second's latencies, in microseconds.
    pub(super) fn second_quantile(&self, quantile: f64) -> Option<u64> {
        self.second.quantile(quantile)
    }

    /// Returns how many messages had a latency above `latency` nanoseconds, at least.
    pub(super) fn count_above(&self, latency: u64) -> u64 {
        self.latency.count_above(latency) + self.second.count_above(latency)
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

    /// Counts an error at `now` of a connection to `target`.
    pub(super) fn record_error(
        &mut self,
        phase: Phase,
        error: ErrorName,
        errno: Option<i32>,
        target: SocketAddr,
        now: u64,
    ) {
        self.record_errors(phase, error, errno, 1, now);
        let totals = self.errors.entry((phase, error, errno)).or_default();
        *totals.targets.entry(target).or_default() += 1;
    }

    /// Counts an error at `now` of `count` connections that have no target.
    pub(super) fn record_errors(&mut self, phase: Phase, error: ErrorName, errno: Option<i32>, count: u64, now: u64) {
        let totals = self.errors.entry((phase, error, errno)).or_default();
        if totals.count == 0 {
            totals.first = now;
        }
        totals.count += count;
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = ((Phase, ErrorName, Option<i32>), &ErrorTotals)> {
        self.errors.iter().map(|(&error, totals)| (error, totals))
    }

    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().map(|totals| totals.count).sum()
    }

    pub(super) fn record_finding(&mut self, corruption: &Corruption, now: u64, finding: Finding) {
        self.verify.wrong_bytes += corruption.wrong_bytes;
        self.verify.lost_bytes += corruption.lost_bytes;
        self.verify.extra_bytes += corruption.extra_bytes;
        self.verify.connections_failed += 1;
        if self.verify.findings.len() < FINDINGS_MAX {
            self.verify.findings.push(finding);
            self.finding_times.push(now);
        }
    }
}
