//! The conditions that make a run fail.

use std::str::FromStr;
use std::{fmt, io};

use super::document::{Ended, Hold, Loop, Mode, Report, Summary, ThresholdResult, Verdict};
use super::histogram::Histogram;
use super::stages::StageFigures;
use crate::error::ValueError;
use crate::units::{parse_count, parse_rate};

/// The metrics, in the words of a message.
const METRICS: &str = "p50 (any percentile: p99.99), mean and max, each also with connect_ or lateness_ before it, rate, \
                       connections, errors, unanswered, unsent, deferred, schedule, server_cpu, found_rate, outages, longest_outage, hold_alive, hold_late, hold_reset, \
                       hold_closed, hold_silent, hold_unasked";
/// Fails a run whose schedule is not kept. It has no comparison.
const SCHEDULE: &str = "schedule";

/// A condition that makes a run fail: `p99>5ms`, `rate<99%`, `schedule`; of the second stage, `p99[2]>5ms`.
///
/// # Examples
///
/// ```
/// let threshold: ecoloop::load::Threshold = "p99>5ms".parse()?;
/// # Ok::<(), ecoloop::ValueError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    quantity: Quantity,
    comparison: Comparison,
    bound: Bound,
}

impl Threshold {
    fn new(name: &str, metric: Metric, comparison: Comparison, bound: u64) -> Self {
        let text = format!("{name}{}{bound}", comparison.sign());
        Self { text, quantity: Quantity { metric, stage: None }, comparison, bound: Bound::Value(float(bound)) }
    }

    /// Returns whether the condition can be the goal of a search: it is on what a window of an open loop measures.
    pub(in crate::load) fn is_goal(&self) -> bool {
        let Quantity { metric, stage } = self.quantity;
        stage.is_none()
            && !matches!(
                metric,
                Metric::Schedule | Metric::FoundRate | Metric::Outages | Metric::LongestOutage | Metric::Hold(_)
            )
    }

    pub(in crate::load) fn is_on_found_rate(&self) -> bool {
        self.quantity.metric == Metric::FoundRate
    }

    /// Returns whether errors are allowed, to some number.
    pub(in crate::load) fn is_on_errors(&self) -> bool {
        matches!(self.quantity.metric, Metric::Errors | Metric::Connections)
    }

    /// Returns the share of the messages, from 0 to 1, whose latency may exceed some nanoseconds, if the condition is that.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive duration; it saturates")]
    pub(in crate::load) fn latency_limit(&self) -> Option<(f64, u64)> {
        let share = match self.quantity.metric {
            Metric::Duration(Distribution::Latency, Statistic::Quantile(quantile)) => 1.0 - quantile,
            Metric::Duration(Distribution::Latency, Statistic::Max) => 0.0,
            _ => return None,
        };
        match (self.comparison, self.bound) {
            (Comparison::Less | Comparison::AtMost, Bound::Value(bound)) => Some((share, (bound * 1000.0) as u64)),
            _ => None,
        }
    }

    fn evaluate(&self, report: &Report, default: bool) -> ThresholdResult {
        let (value, bound) = match self.bound {
            Bound::Value(bound) => (self.quantity.value(report), bound),
            Bound::Percent(bound) => (self.quantity.percent(report), bound),
        };
        // A quantity without a value fails: it may be beyond the bound.
        let failed = value.is_none_or(|value| self.comparison.holds(value, bound));
        ThresholdResult { expr: self.text.clone(), default, value, failed }
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for Threshold {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const EXPECTED: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
        let text = text.trim();
        if text == SCHEDULE {
            return Ok(Self::new(SCHEDULE, Metric::Schedule, Comparison::Less, 1))
                .map(|threshold| Self { text: SCHEDULE.to_owned(), ..threshold });
        }
        let start = text.find(['<', '>']).ok_or(EXPECTED)?;
        let (name, rest) = text.split_at(start);
        let signs = [Comparison::AtMost, Comparison::AtLeast, Comparison::Less, Comparison::More];
        let found = signs.into_iter().find_map(|sign| Some((sign, rest.strip_prefix(sign.sign())?)));
        let (comparison, value) = found.ok_or(EXPECTED)?;
        let (name, value) = (name.trim(), value.trim());
        let quantity = Quantity::from_name(name)?;
        let metric = quantity.metric;
        if metric == Metric::Schedule {
            return Err("schedule takes no comparison: it fails if the schedule was not kept".into());
        }
        let unit = metric.unit();
        let bound = match value.strip_suffix('%') {
            Some(percent) if metric.has_percentage() => parse_count(percent.trim_end()).map(Bound::Percent),
            _ => unit.parse(value).map(Bound::Value),
        };
        let or_percentage = if metric.has_percentage() { ", or a percentage such as 0.1%" } else { "" };
        let bound = bound.ok_or_else(|| format!("{name} requires {}{or_percentage}", unit.expected()))?;
        Ok(Self { text: text.to_owned(), quantity, comparison, bound })
    }
}

/// What a metric is compared to: in microseconds if it is a duration.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Value(f64),
    Percent(f64),
}

/// Evaluates the default thresholds and those `requested`, and sets `thresholds` and `verdict` of the report.
///
/// A requested threshold replaces the default one on the same quantity. An interrupted run has no thresholds.
pub(in crate::load) fn evaluate(report: &mut Report, requested: &[Threshold]) {
    if report.ended == Ended::Interrupted {
        (report.thresholds, report.verdict) = (Vec::new(), Verdict::Interrupted);
        return;
    }
    let defaults = [
        Threshold::new("connections", Metric::Connections, Comparison::Less, report.connections.requested),
        Threshold::new("errors", Metric::Errors, Comparison::More, 0),
        Threshold::new("unanswered", Metric::Unanswered, Comparison::More, 0),
        Threshold::new("findings", Metric::Findings, Comparison::More, 0),
        Threshold::new("verified", Metric::Verified, Comparison::Less, 1),
    ];
    // An error and an unanswered message end a connection, which is an outage where it is opened anew.
    let limits_outages = report.outages.is_some()
        && requested
            .iter()
            .any(|threshold| matches!(threshold.quantity.metric, Metric::Outages | Metric::LongestOutage));
    let is_replaced = |default: &Threshold| {
        limits_outages && matches!(default.quantity.metric, Metric::Errors | Metric::Unanswered)
            || requested.iter().any(|threshold| threshold.quantity == default.quantity)
    };
    // In churn a connection that is closed is replaced a moment later, which is no failure.
    let applies = |default: &Threshold| report.mode != Mode::Churn || default.quantity.metric != Metric::Connections;
    let defaults = defaults.iter().filter(|default| applies(default) && !is_replaced(default));
    let defaults = defaults.map(|threshold| threshold.evaluate(report, true));
    let requested = requested.iter().map(|threshold| threshold.evaluate(report, false));
    let thresholds: Vec<_> = defaults.chain(requested).collect();
    report.verdict = if thresholds.iter().any(|threshold| threshold.failed) {
        Verdict::Fail
    } else if report.schedule.kept == Some(false) || report.generator.saturated == Some(true) {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
    };
    report.thresholds = thresholds;
}

/// Checks that each threshold on a stage is on one of `count` stages.
///
/// # Errors
///
/// - `InvalidInput`: there is no such stage.
pub(in crate::load) fn check_stages(thresholds: &[Threshold], count: usize) -> io::Result<()> {
    thresholds.iter().try_for_each(|threshold| threshold.quantity.check_stage(&threshold.text, count))
}

/// A metric of a run, or of one of its stages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) struct Quantity {
    pub(in crate::load) metric: Metric,
    /// The number of the stage, from 1.
    stage: Option<usize>,
}

impl Quantity {
    /// Parses a metric: `p99`, or of the second stage, `p99[2]`.
    pub(in crate::load) fn from_name(name: &str) -> Result<Self, String> {
        let Some((name, stage)) = name.strip_suffix(']').and_then(|name| name.split_once('[')) else {
            return Ok(Self { metric: Metric::from_name(name)?, stage: None });
        };
        let metric = Metric::from_name(name.trim_end())?;
        if !metric.has_stages() {
            return Err(format!(
                "{name} is of the whole run: stages have latencies, lateness_, rate, errors, unanswered, unsent and deferred"
            ));
        }
        let stage = stage.trim().parse().ok().filter(|&stage| stage > 0);
        let stage = stage.ok_or_else(|| format!("expected the number of a stage, from 1: {name}[2]"))?;
        Ok(Self { metric, stage: Some(stage) })
    }

    /// Checks that the stage exists. The error names the threshold, whose text is `text`.
    pub(in crate::load) fn check_stage(self, text: &str, count: usize) -> io::Result<()> {
        let Some(stage) = self.stage.filter(|&stage| stage > count) else { return Ok(()) };
        let stages = match count {
            0 => "no stages".to_owned(),
            1 => "only one".to_owned(),
            count => format!("only {count}"),
        };
        let reason = format!("{text} is on stage {stage}, and the rate has {stages}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }

    pub(in crate::load) fn value(self, report: &Report) -> Option<f64> {
        match self.stage {
            None => self.metric.value(report),
            Some(stage) => self.metric.value_of_stage(report.stages.get(stage - 1)?),
        }
    }

    /// Returns the value in percent of what was asked of the run or of the stage, opened, or due.
    fn percent(self, report: &Report) -> Option<f64> {
        let whole = match self.stage {
            None => self.metric.whole(report)?,
            Some(stage) => self.metric.whole_of_stage(report.stages.get(stage - 1)?, report),
        };
        let value = self.value(report)?;
        (whole > 0.0).then(|| value * 100.0 / whole)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) enum Metric {
    Duration(Distribution, Statistic),
    Rate,
    Connections,
    Errors,
    Unanswered,
    Unsent,
    Deferred,
    /// 1 if the schedule was kept, or 0.
    Schedule,
    /// CPU time of the server's process a message, in microseconds.
    ServerCpu,
    /// What a search found.
    FoundRate,
    Outages,
    LongestOutage,
    Hold(HoldOutcome),
    /// Has no name on the command line, so that its default cannot be replaced.
    Findings,
    /// Has no name on the command line either.
    Verified,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Distribution {
    Latency,
    Connect,
    Lateness,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) enum Statistic {
    /// A share of the values, from 0 to 1.
    Quantile(f64),
    Max,
    Mean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum HoldOutcome {
    Alive,
    Late,
    Reset,
    Closed,
    Silent,
    Unasked,
}

impl Metric {
    fn from_name(name: &str) -> Result<Self, String> {
        let metric = match name {
            "rate" => Self::Rate,
            "connections" => Self::Connections,
            "errors" => Self::Errors,
            "unanswered" => Self::Unanswered,
            "unsent" => Self::Unsent,
            "deferred" => Self::Deferred,
            SCHEDULE => Self::Schedule,
            "server_cpu" => Self::ServerCpu,
            "found_rate" => Self::FoundRate,
            "outages" => Self::Outages,
            "longest_outage" => Self::LongestOutage,
            "hold_alive" => Self::Hold(HoldOutcome::Alive),
            "hold_late" => Self::Hold(HoldOutcome::Late),
            "hold_reset" => Self::Hold(HoldOutcome::Reset),
            "hold_closed" => Self::Hold(HoldOutcome::Closed),
            "hold_silent" => Self::Hold(HoldOutcome::Silent),
            "hold_unasked" => Self::Hold(HoldOutcome::Unasked),
            _ => {
                let (distribution, statistic) = match name.split_once('_') {
                    Some(("connect", statistic)) => (Distribution::Connect, statistic),
                    Some(("lateness", statistic)) => (Distribution::Lateness, statistic),
                    _ => (Distribution::Latency, name),
                };
                let statistic = Statistic::from_name(statistic);
                let unknown = || format!("unknown metric {name:?}; the metrics are {METRICS}");
                Self::Duration(distribution, statistic.ok_or_else(unknown)?)
            }
        };
        Ok(metric)
    }

    fn unit(self) -> Unit {
        match self {
            Self::Duration(..) | Self::ServerCpu | Self::LongestOutage => Unit::Duration,
            Self::Rate | Self::FoundRate => Unit::Rate,
            _ => Unit::Count,
        }
    }

    /// Returns whether the metric is part of a whole.
    fn has_percentage(self) -> bool {
        !matches!(
            self,
            Self::Duration(..)
                | Self::Schedule
                | Self::ServerCpu
                | Self::FoundRate
                | Self::LongestOutage
                | Self::Findings
                | Self::Verified
        )
    }

    /// Returns whether a stage has the metric too.
    fn has_stages(self) -> bool {
        matches!(
            self,
            Self::Duration(Distribution::Latency | Distribution::Lateness, _)
                | Self::Rate
                | Self::Errors
                | Self::Unanswered
                | Self::Unsent
                | Self::Deferred
        )
    }

    fn value(self, report: &Report) -> Option<f64> {
        let whole = match self {
            Self::Duration(distribution, statistic) => return statistic.of(distribution.of(report)),
            Self::Rate => return report.rate_per_s,
            Self::FoundRate => return report.search.as_ref()?.found_rate,
            Self::ServerCpu => return report.server?.cpu_us_per_message,
            Self::Connections => report.connections.held,
            Self::Errors => report.errors.iter().fold(0, |sum, error| error.count.saturating_add(sum)),
            Self::Unanswered => report.messages.unanswered,
            Self::Unsent => report.messages.unsent,
            Self::Deferred => report.messages.deferred,
            Self::Schedule => report.schedule.kept?.into(),
            Self::Outages => report.outages.as_ref()?.count,
            Self::LongestOutage => report.outages.as_ref()?.longest_us,
            Self::Hold(outcome) => outcome.of(report.hold.as_ref()?),
            Self::Findings => report.verify.connections_failed.max(report.verify.findings.len() as u64),
            Self::Verified => report.messages.verified,
        };
        Some(float(whole))
    }

    fn value_of_stage(self, stage: &StageFigures) -> Option<f64> {
        match self {
            Self::Duration(Distribution::Latency, statistic) => statistic.of(&stage.latency_us),
            Self::Duration(Distribution::Lateness, statistic) => statistic.of(&stage.lateness_us),
            Self::Rate => stage.rate_per_s,
            Self::Errors => Some(float(stage.errors)),
            Self::Unanswered => Some(float(stage.messages.unanswered)),
            Self::Unsent => Some(float(stage.messages.unsent)),
            Self::Deferred => Some(float(stage.messages.deferred)),
            _ => None,
        }
    }

    /// Returns whether the metric is of whole microseconds.
    pub(in crate::load) fn is_whole(self) -> bool {
        matches!(self, Self::Duration(_, Statistic::Quantile(_) | Statistic::Max))
    }

    /// Returns whether a higher value is a better one.
    pub(in crate::load) fn is_better_higher(self) -> bool {
        self == Self::Rate
    }

    /// Returns whether the ratio of two values says how much faster one of two servers is.
    pub(in crate::load) fn has_ratio(self) -> bool {
        matches!(self, Self::Duration(..) | Self::Rate | Self::ServerCpu)
    }

    /// Returns what a percentage is of: what was asked of the run, opened, or due.
    fn whole(self, report: &Report) -> Option<f64> {
        let whole = match self {
            Self::Rate => report.config.rate.filter(|_| report.r#loop == Loop::Open)?,
            Self::Errors => float(report.connections.opened_total),
            Self::Unanswered | Self::Unsent | Self::Deferred => float(report.messages.due),
            _ => float(report.connections.requested),
        };
        Some(whole)
    }

    fn whole_of_stage(self, stage: &StageFigures, report: &Report) -> f64 {
        match self {
            Self::Rate => f64::midpoint(stage.from, stage.to),
            Self::Errors => float(report.connections.opened_total),
            _ => float(stage.messages.due),
        }
    }
}

impl Distribution {
    fn of(self, report: &Report) -> &Summary {
        match self {
            Self::Latency => &report.latency_us,
            Self::Connect => &report.connect_us,
            Self::Lateness => &report.lateness_us,
        }
    }
}

impl Statistic {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "max" => return Some(Self::Max),
            "mean" => return Some(Self::Mean),
            _ => {}
        }
        let percentile = name.strip_prefix('p')?;
        let (whole, fraction) = percentile.split_once('.').unwrap_or((percentile, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        // The point is moved in the text: 99.9 divided by 100 is more than 0.999.
        let quantile = format!("0.{whole:0>2}{fraction}").parse().ok();
        quantile
            .filter(|&quantile| whole.len() <= 2 && is_number(whole) && is_number(fraction) && quantile > 0.0)
            .map(Self::Quantile)
    }

    /// Returns the statistic in microseconds.
    fn of(self, summary: &Summary) -> Option<f64> {
        let quantile = match self {
            Self::Mean => return summary.mean,
            Self::Max => return summary.max.map(float),
            Self::Quantile(quantile) => quantile,
        };
        let known = summary.percentiles().into_iter().find(|known| known.0.to_bits() == quantile.to_bits());
        let value = match known {
            Some((.., value)) => value,
            None => Histogram::from_summary(summary).ok()?.quantile(quantile),
        };
        value.map(float)
    }
}

impl HoldOutcome {
    fn of(self, hold: &Hold) -> u64 {
        match self {
            Self::Alive => hold.alive,
            Self::Late => hold.late,
            Self::Reset => hold.reset,
            Self::Closed => hold.closed,
            Self::Silent => hold.silent,
            Self::Unasked => hold.unasked,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Comparison {
    Less,
    More,
    AtMost,
    AtLeast,
}

impl Comparison {
    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::More => ">",
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
        }
    }

    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::More => value > bound,
            Self::AtMost => value <= bound,
            Self::AtLeast => value >= bound,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Duration,
    Rate,
    Count,
}

impl Unit {
    fn expected(self) -> &'static str {
        match self {
            Self::Duration => "a duration such as 300us, 5ms or 1.5s",
            Self::Rate => "a rate such as 2000, 10k or 10k/s",
            Self::Count => "a count such as 0, 100 or 10k",
        }
    }

    /// Returns durations in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "exact below a hundred days")]
    fn parse(self, text: &str) -> Option<f64> {
        match self {
            Self::Duration => Some(humantime::parse_duration(text).ok()?.as_nanos() as f64 / 1000.0),
            Self::Rate => parse_rate(text),
            Self::Count => parse_count(text),
        }
    }
}

#[cfg(test)]
mod tests;
