//! The counts and histograms of a run.

use std::collections::BTreeMap;

use super::breakdown::Breakdown;
use super::error::{ErrorName, Phase};
use super::report::{Finding, Histogram, Messages, Verify};
use super::schedule::TICK;
use super::stage_totals::StageTotals;
use super::timer::SECOND;
use super::verify::Corruption;
use crate::socket_address::AnyAddress;

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
#[derive(Clone, Debug, Default)]
pub(super) struct ErrorTotals {
    pub(super) count: u64,
    /// When the first one occurred.
    pub(super) first: u64,
    /// Their number by target. A connect that could not begin has none.
    pub(super) targets: BTreeMap<AnyAddress, u64>,
}

/// An outstanding message of a connection that ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abandoned {
    pub(super) reason: AbandonReason,
    pub(super) is_sent: bool,
    /// Its latency is recorded apart.
    pub(super) is_first: bool,
    pub(super) due: u64,
    /// The pair of its connection.
    pub(super) pair: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Totals {
    /// Messages due and neither verified nor abandoned, over all connections.
    pub(super) in_flight: u64,
    pub(super) messages: Messages,
    /// Verified replies that arrived in the window, to messages of the warm-up too.
    pub(super) arrived_in_window: u64,
    /// The age at which a lost message is recorded, unless the measurement ends before.
    lost_age_max: u64,
    /// Number of messages that will never come back, by due time in ticks, by stage, and by pair if pairs have figures and the message
    /// had a connection. Their latency is recorded when the measurement ends.
    lost: BTreeMap<(u64, usize, Option<u32>), u64>,
    pub(super) stages: StageTotals,
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
            stages: StageTotals::default(),
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
        self.stages.clear();
        self.latency.clear();
        self.first.clear();
        self.lateness.clear();
        self.errors.clear();
        self.verify = Verify::default();
        self.finding_times.clear();
    }

    /// Counts a message that became due at `due` on an open connection.
    pub(super) fn record_due(&mut self, due: u64, is_reported: bool) {
        self.in_flight += 1;
        self.messages.due += u64::from(is_reported);
        if is_reported && let Some(stage) = self.stages.at(due) {
            stage.messages.due += 1;
        }
    }

    /// Counts a message due at `due` that waits because the pipeline or the socket is full, or the maximum of connections open.
    pub(super) fn record_deferred(&mut self, due: u64) {
        for messages in self.messages_at(due) {
            messages.deferred += 1;
        }
    }

    /// Records how late `count` messages that were due from `due` on, within a tick and a stage, are at `now`.
    pub(super) fn record_lateness(&mut self, due: u64, now: u64, count: u64) {
        let lateness = now.saturating_sub(due);
        self.lateness.record_times(lateness, count);
        if let Some(stage) = self.stages.at(due) {
            stage.lateness.record_times(lateness, count);
        }
    }

    /// Counts a reply that arrived in the window, at `now`.
    pub(super) fn record_arrival(&mut self, now: u64) {
        self.arrived_in_window += 1;
        if let Some(stage) = self.stages.at(now) {
            stage.arrived += 1;
        }
    }

    /// Counts `count` messages that became due from `due` on, within a tick and a stage, on connections that have ended.
    pub(super) fn record_unsent(&mut self, due: u64, count: u64) {
        for messages in self.messages_at(due) {
            messages.due += count;
            messages.unsent += count;
        }
        self.record_lost(due, None, count);
    }

    /// Returns the counts of the window, and those of the stage in which a message was due at `due`.
    fn messages_at(&mut self, due: u64) -> impl Iterator<Item = &mut Messages> {
        let of_stage = self.stages.at(due).map(|stage| &mut stage.messages);
        std::iter::once(&mut self.messages).chain(of_stage)
    }

    /// Counts a verified message that was due at `due`, and its latency, which `is_first` records apart.
    pub(super) fn record_reply(&mut self, due: u64, latency: u64, is_first: bool) {
        self.messages.verified += 1;
        if is_first { &mut self.first } else { &mut self.second }.record(latency);
        if let Some(stage) = self.stages.at(due) {
            stage.messages.verified += 1;
            stage.latency.record(latency);
        }
    }

    /// Counts an outstanding message of a connection that ends at `now`. The measurement ends at `end`.
    pub(super) fn record_abandoned(&mut self, abandoned: Abandoned, now: u64, end: u64, breakdown: &mut Breakdown) {
        let Abandoned { reason, is_sent, is_first, due, pair } = abandoned;
        for messages in self.messages_at(due) {
            if !is_sent {
                messages.unsent += 1;
            } else if reason == AbandonReason::Failed {
                messages.failed += 1;
            } else {
                messages.unanswered += 1;
            }
        }
        let age = now.saturating_sub(due);
        if is_first {
            self.first.record_censored(age);
        } else if now >= end || age >= self.lost_age_max {
            self.second.record_censored(age);
            if let Some(stage) = self.stages.at(due) {
                stage.latency.record_censored(age);
            }
            breakdown.record_censored(pair, age, 1);
        } else {
            self.record_lost(due, breakdown.has_figures(pair).then_some(pair), 1);
        }
    }

    fn record_lost(&mut self, due: u64, pair: Option<u32>, count: u64) {
        *self.lost.entry((due / TICK, self.stages.index_at(due), pair)).or_default() += count;
    }

    /// Returns whether the latency of a lost message is still to be recorded.
    pub(super) fn has_lost(&self) -> bool {
        !self.lost.is_empty()
    }

    /// Records the lost messages whose timeout has expired by `now`.
    pub(super) fn expire_lost(&mut self, now: u64, breakdown: &mut Breakdown) {
        while let Some(first) = self.lost.first_entry()
            && first.key().0 * TICK + self.lost_age_max <= now
        {
            let ((_, stage, pair), count) = first.remove_entry();
            self.record_censored(self.lost_age_max, stage, count);
            if let Some(pair) = pair {
                breakdown.record_censored(pair, self.lost_age_max, count);
            }
        }
    }

    fn record_censored(&mut self, age: u64, stage: usize, count: u64) {
        self.second.record_censored_times(age, count);
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.latency.record_censored_times(age, count);
        }
    }

    /// Records every lost message with its age at `end`, when the measurement ends.
    pub(super) fn end_measurement(&mut self, end: u64, breakdown: &mut Breakdown) {
        for ((tick, stage, pair), count) in std::mem::take(&mut self.lost) {
            let age = end.saturating_sub(tick * TICK).min(self.lost_age_max);
            self.record_censored(age, stage, count);
            if let Some(pair) = pair {
                breakdown.record_censored(pair, age, count);
            }
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
        target: &AnyAddress,
        now: u64,
    ) {
        self.record_errors(phase, error, errno, 1, now);
        let totals = self.errors.entry((phase, error, errno)).or_default();
        *totals.targets.entry(target.clone()).or_default() += 1;
    }

    /// Counts an error at `now` of `count` connections that have no target.
    pub(super) fn record_errors(&mut self, phase: Phase, error: ErrorName, errno: Option<i32>, count: u64, now: u64) {
        let totals = self.errors.entry((phase, error, errno)).or_default();
        if totals.count == 0 {
            totals.first = now;
        }
        totals.count += count;
        if let Some(stage) = self.stages.at(now) {
            stage.errors += count;
        }
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::time::Duration;

    use super::*;
    use crate::load::profile::RateStage;
    use crate::load::report::{Excerpt, FindingKind};
    use crate::load::sources::Sources;

    const TIMEOUT: u64 = 2 * SECOND;

    fn breakdown() -> Breakdown {
        Breakdown::new(&Sources::default())
    }

    #[test]
    fn messages_that_wait_are_counted_in_their_stage_too() {
        let mut totals = Totals::new(TIMEOUT);
        totals.stages = StageTotals::new(&[RateStage { from: 1.0, to: 1.0, duration: Duration::from_secs(1) }]);
        totals.stages.begin(0);
        (0..3).for_each(|due| totals.record_deferred(due));
        assert_eq!((totals.messages.deferred, totals.stages.at(0).unwrap().messages.deferred), (3, 3));
    }

    #[test]
    fn lost_messages_have_the_age_of_their_timeout_once_it_has_expired() {
        let mut totals = Totals::new(TIMEOUT);
        for tick in [5, 7] {
            totals.record_unsent(tick * TICK, 3);
        }
        let mut expire = |now| {
            totals.expire_lost(now, &mut breakdown());
            totals.end_second();
            (totals.latency.count(), totals.latency.max())
        };
        assert_eq!(expire(5 * TICK + TIMEOUT - 1).0, 0);
        assert_eq!(expire(5 * TICK + TIMEOUT), (3, Some(2_000_895)));
        assert_eq!(expire(7 * TICK + TIMEOUT - 1).0, 3);
        assert_eq!(expire(7 * TICK + TIMEOUT), (6, Some(2_000_895)));
    }

    #[test]
    fn the_age_of_a_lost_message_is_final_after_its_timeout_or_the_end_of_the_measurement() {
        let end = SECOND;
        for (now, is_final) in [(end - 1, false), (end, true), (TIMEOUT - 1, true)] {
            assert_eq!(is_recorded(now, end), is_final, "at {now}");
        }
        assert!(!is_recorded(TIMEOUT - 1, u64::MAX));
        assert!(is_recorded(TIMEOUT, u64::MAX));
    }

    /// Returns whether a message that was due at 0 and is lost at `now` has a latency at once.
    fn is_recorded(now: u64, end: u64) -> bool {
        let mut totals = Totals::new(TIMEOUT);
        let reason = AbandonReason::Unanswered;
        let abandoned = Abandoned { reason, is_sent: true, is_first: false, due: 0, pair: 0 };
        totals.record_abandoned(abandoned, now, end, &mut breakdown());
        totals.is_mid_second()
    }

    #[test]
    fn latencies_count_before_and_after_the_end_of_their_second() {
        let mut totals = Totals::new(TIMEOUT);
        assert!(!totals.is_mid_second());
        for seconds in 1..=3 {
            totals.record_reply(0, 1_000_000, false);
            totals.record_reply(0, 3_000_000, false);
            totals.record_reply(0, 4_000_000, false);
            assert!(totals.is_mid_second());
            assert_eq!(totals.count_above(2_000_000), 2 * seconds);
            if seconds < 3 {
                totals.end_second();
                assert!(!totals.is_mid_second());
            }
        }
        assert_eq!((totals.count_above(0), totals.latency.count()), (9, 6));
    }

    #[test]
    fn findings_beyond_the_list_are_only_counted() {
        let mut totals = Totals::new(TIMEOUT);
        let (kind, offset) = (FindingKind::Extra, 0);
        let corruption = Corruption { kind, offset, wrong_bytes: 1, lost_bytes: 2, extra_bytes: 3 };
        let peer: AnyAddress = "127.0.0.1:9".parse().unwrap();
        for connection in 0..1005 {
            let (expected, received) = (Excerpt::default(), Excerpt::default());
            let peer = peer.clone();
            let finding = Finding { kind, connection, local: None, peer, offset, at_s: 0.0, expected, received };
            totals.record_finding(&corruption, connection, finding);
        }
        let verify = &totals.verify;
        assert_eq!((verify.connections_failed, verify.findings.len(), totals.finding_times.len()), (1005, 1000, 1000));
        assert_eq!((verify.wrong_bytes, verify.lost_bytes, verify.extra_bytes), (1005, 2010, 3015));
        assert_eq!((verify.findings[999].connection, totals.finding_times[999]), (999, 999));
    }
}
