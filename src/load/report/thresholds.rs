//! The conditions that make a run fail.

mod metric;

use std::str::FromStr;
use std::{fmt, io};

use self::metric::{Distribution, Metric, Statistic, Unit};
use super::document::{Ended, Mode, Report, ThresholdResult, Verdict};
use super::search::{LimitedBy, SearchReport};
use crate::error::ValueError;
use crate::units::parse_count;

/// Fails a run whose schedule is not kept. It has no comparison.
const SCHEDULE: &str = "schedule";

/// A condition that makes a run fail: `p99>5ms`, `rate<99%`, `schedule`; of the second stage, `p99[2]>5ms`.
///
/// It is a metric, one of `>` `<` `>=` `<=`, and a value. `schedule` stands alone: it fails a run whose schedule was not kept.
///
/// | metric | value | percentage |
/// |---|---|---|
/// | a percentile above 0 and below 100 (`p50`, `p99.99`), `max`, `mean` | latency: `300us`, `5ms`, `1.5s` | |
/// | one of these after `connect_` or `lateness_` | time | |
/// | `rate` | replies per second: `2000`, `10k/s` | of the rate that was asked for: `rate<99%` |
/// | `connections` | connections that were held | of those requested |
/// | `errors` | errors of every phase | of the connects (`opened_total`) |
/// | `unanswered`, `unsent`, `deferred` | messages | of the messages due |
/// | `hold_alive`, `hold_late`, `hold_reset`, `hold_closed`, `hold_silent`, `hold_unasked` | connections of `hold` | of those requested |
/// | `outages`, `longest_outage` | outages and time, if lost connections are opened again | `outages`: of the connections requested |
/// | `server_cpu` | CPU time of the server a message: `5us` | |
/// | `found_rate` | messages per second that a search has found | |
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

    /// Returns the name of the metric, such as `p99`, without the number of a stage.
    #[must_use]
    pub fn metric(&self) -> &str {
        self.text.split(['<', '>', '[']).next().unwrap_or_default().trim_end()
    }

    /// Returns the opposite condition if this one, as the goal of a search, would hold where a server is worse.
    pub(in crate::load) fn meant_goal(&self) -> Option<String> {
        let is_above = matches!(self.comparison, Comparison::More | Comparison::AtLeast);
        if is_above == self.quantity.metric.is_better_higher() {
            return None;
        }
        let (name, bound) = self.text.split_once(self.comparison.sign())?;
        Some(format!("{}{}{}", name.trim_end(), self.comparison.opposite().sign(), bound.trim_start()))
    }

    /// Returns whether the condition can be the goal of a search: it is on what a window of an open loop measures.
    pub(in crate::load) fn is_goal(&self) -> bool {
        let Quantity { metric, stage } = self.quantity;
        stage.is_none()
            && !metric.is_of_connects()
            && !matches!(
                metric,
                Metric::Schedule | Metric::FoundRate | Metric::Outages | Metric::LongestOutage | Metric::Hold(_)
            )
    }

    fn is_on_found_rate(&self) -> bool {
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

impl ThresholdResult {
    /// Returns whether the value is a time, in microseconds.
    #[must_use]
    pub fn is_time(&self) -> bool {
        let name = self.expr.split(['<', '>']).next().unwrap_or_default();
        Quantity::from_name(name.trim()).is_ok_and(|quantity| quantity.metric.unit() == Unit::Duration)
    }

    /// Returns whether the condition holds for a value, in the unit of [`ThresholdResult::value`].
    #[must_use]
    pub fn holds_for(&self, value: f64) -> bool {
        self.expr.parse::<Threshold>().is_ok_and(|Threshold { comparison, bound, .. }| {
            let (Bound::Value(bound) | Bound::Percent(bound)) = bound;
            comparison.holds(value, bound)
        })
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
/// A requested threshold replaces the default one on the same quantity, and so does the goal of a search. An interrupted run has no
/// thresholds.
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
    // The goal itself was evaluated in each window.
    let goal = report.search.iter().flat_map(|search| &search.goal).filter_map(|expr| expr.parse::<Threshold>().ok());
    let goal: Vec<_> = goal.map(|threshold| threshold.quantity).collect();
    let is_replaced = |default: &Threshold| {
        limits_outages && matches!(default.quantity.metric, Metric::Errors | Metric::Unanswered)
            || requested.iter().any(|threshold| threshold.quantity == default.quantity)
            || goal.contains(&default.quantity)
    };
    // In churn a connection that is closed is replaced a moment later, which is no failure.
    let applies = |default: &Threshold| report.mode != Mode::Churn || default.quantity.metric != Metric::Connections;
    let defaults = defaults.iter().filter(|default| applies(default) && !is_replaced(default));
    let defaults = defaults.map(|threshold| threshold.evaluate(report, true));
    let results = requested.iter().map(|threshold| threshold.evaluate(report, false));
    let thresholds: Vec<_> = defaults.chain(results).collect();
    report.verdict = if thresholds.iter().any(|threshold| threshold.failed) {
        Verdict::Fail
    } else if let Some(search) = &report.search {
        verdict_of_search(search, requested)
    } else if report.schedule.kept == Some(false) || report.generator.saturated == Some(true) {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
    };
    report.thresholds = thresholds;
}

/// Returns the verdict of a search of which no threshold failed.
fn verdict_of_search(search: &SearchReport, requested: &[Threshold]) -> Verdict {
    match search.limited_by {
        // What was asked of the rate was found, though the server may take more.
        Some(LimitedBy::Generator) if !requested.iter().any(Threshold::is_on_found_rate) => Verdict::Inconclusive,
        _ if search.found_rate.is_none() => Verdict::Fail,
        _ => Verdict::Pass,
    }
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

    /// Returns the value in percent of what was asked of the run or of the stage, of the connects, or of what was due.
    fn percent(self, report: &Report) -> Option<f64> {
        let whole = match self.stage {
            None => self.metric.whole(report)?,
            Some(stage) => self.metric.whole_of_stage(report.stages.get(stage - 1)?, report),
        };
        let value = self.value(report)?;
        (whole > 0.0).then(|| value * 100.0 / whole)
    }
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

    fn opposite(self) -> Self {
        match self {
            Self::Less => Self::AtLeast,
            Self::More => Self::AtMost,
            Self::AtMost => Self::More,
            Self::AtLeast => Self::Less,
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

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests;
