//! The conditions that make a run fail.

use std::str::FromStr;

use super::document::{Ended, Mode, Report, ThresholdResult, Verdict};
use crate::units::{parse_count, parse_rate};

/// A condition that makes a run fail: `p99>5ms`.
///
/// # Examples
///
/// ```
/// let threshold: ecoloop::load::Threshold = "p99>5ms".parse()?;
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    metric: Metric,
    comparison: Comparison,
    /// In microseconds if the metric is a duration.
    bound: f64,
}

impl Threshold {
    fn new(name: &str, metric: Metric, comparison: Comparison, bound: u64) -> Self {
        let text = format!("{name}{}{bound}", comparison.sign());
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        Self { text, metric, comparison, bound: bound as f64 }
    }

    fn evaluate(&self, report: &Report, default: bool) -> ThresholdResult {
        let value = self.metric.value(report);
        // A quantity without a value fails: it may be beyond the bound.
        let failed = value.is_none_or(|value| self.comparison.holds(value, self.bound));
        ThresholdResult { expr: self.text.clone(), default, value, failed }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
        let text = text.trim();
        let start = text.find(['<', '>']).ok_or(EXPECTED)?;
        let (name, rest) = text.split_at(start);
        let signs = [Comparison::AtMost, Comparison::AtLeast, Comparison::Less, Comparison::More];
        let found = signs.into_iter().find_map(|sign| Some((sign, rest.strip_prefix(sign.sign())?)));
        let (comparison, value) = found.ok_or(EXPECTED)?;
        let (metric, unit) = Metric::from_name(name.trim())?;
        let bound = unit.parse(value.trim()).ok_or_else(|| format!("{} requires {}", name.trim(), unit.expected()))?;
        Ok(Self { text: text.to_owned(), metric, comparison, bound })
    }
}

/// Evaluates the default thresholds and those `requested`, and sets `thresholds` and `verdict` of the report.
///
/// A requested threshold replaces the default one on the same quantity. An interrupted run has no thresholds.
pub(super) fn evaluate(report: &mut Report, requested: &[Threshold]) {
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
    let is_replaced = |default: &Threshold| requested.iter().any(|threshold| threshold.metric == default.metric);
    // In churn a connection that is closed is replaced a moment later, which is no failure.
    let applies = |default: &Threshold| report.mode != Mode::Churn || default.metric != Metric::Connections;
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    P50,
    P90,
    P99,
    P99_9,
    P99_99,
    Max,
    Mean,
    ConnectP99,
    LatenessP99,
    Rate,
    Connections,
    Errors,
    Unanswered,
    /// Has no name on the command line, so that its default cannot be replaced.
    Findings,
    /// Has no name on the command line either.
    Verified,
}

impl Metric {
    fn from_name(name: &str) -> Result<(Self, Unit), String> {
        const NAMES: [(&str, Metric, Unit); 13] = [
            ("p50", Metric::P50, Unit::Duration),
            ("p90", Metric::P90, Unit::Duration),
            ("p99", Metric::P99, Unit::Duration),
            ("p99.9", Metric::P99_9, Unit::Duration),
            ("p99.99", Metric::P99_99, Unit::Duration),
            ("max", Metric::Max, Unit::Duration),
            ("mean", Metric::Mean, Unit::Duration),
            ("connect_p99", Metric::ConnectP99, Unit::Duration),
            ("lateness_p99", Metric::LatenessP99, Unit::Duration),
            ("rate", Metric::Rate, Unit::Rate),
            ("connections", Metric::Connections, Unit::Count),
            ("errors", Metric::Errors, Unit::Count),
            ("unanswered", Metric::Unanswered, Unit::Count),
        ];
        let found = NAMES.iter().find(|(known, ..)| *known == name);
        found.map(|&(_, metric, unit)| (metric, unit)).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
            format!("unknown metric {name:?}; the metrics are {}", names.join(" "))
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    fn value(self, report: &Report) -> Option<f64> {
        let latency = &report.latency_us;
        let whole = match self {
            Self::Mean => return latency.mean,
            Self::Rate => return report.rate_per_s,
            Self::P50 => latency.p50?,
            Self::P90 => latency.p90?,
            Self::P99 => latency.p99?,
            Self::P99_9 => latency.p99_9?,
            Self::P99_99 => latency.p99_99?,
            Self::Max => latency.max?,
            Self::ConnectP99 => report.connect_us.p99?,
            Self::LatenessP99 => report.lateness_us.p99?,
            Self::Connections => report.connections.held,
            Self::Errors => report.errors.iter().fold(0, |sum, error| error.count.saturating_add(sum)),
            Self::Unanswered => report.messages.unanswered,
            Self::Findings => report.verify.connections_failed.max(report.verify.findings.len() as u64),
            Self::Verified => report.messages.verified,
        };
        Some(whole as f64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
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
