//! The conditions that make a comparison fail.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{Difference, MetricRatio};
use crate::error::ValueError;
use crate::load::report::{Quantity, Verdict};

/// A condition that makes a comparison fail: `p99>+10%`, `rate<-5%`; of the second stage, `p99[2]>+10%`.
///
/// # Examples
///
/// ```
/// let threshold: ecoloop::load::compare::RelativeThreshold = "p99>+10%".parse()?;
/// # Ok::<(), ecoloop::ValueError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct RelativeThreshold {
    text: String,
    name: String,
    is_above: bool,
    /// The change in percent.
    bound: f64,
}

/// The result of a threshold of a comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RelativeResult {
    /// The condition that makes the comparison fail.
    pub expr: String,
    /// The change of the median, in percent.
    pub value: Option<f64>,
    /// Whether the whole interval is beyond the bound. `None` if that cannot be told.
    pub failed: Option<bool>,
}

impl RelativeThreshold {
    /// Returns the name of the metric, such as `p99`.
    #[must_use]
    pub fn metric(&self) -> &str {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn is_beyond(&self, percent: f64) -> bool {
        if self.is_above { percent > self.bound } else { percent < self.bound }
    }

    pub(super) fn evaluate(&self, metrics: &[MetricRatio]) -> RelativeResult {
        let metric = metrics.iter().find(|metric| metric.metric == self.name);
        let percent = |ratio: f64| (ratio - 1.0) * 100.0;
        let interval = metric.and_then(|metric| metric.interval).map(|interval| interval.map(percent));
        let is_told = metric.is_some_and(|metric| metric.verdict != Difference::CannotTell);
        let failed = interval.and_then(|ends| match ends.map(|end| self.is_beyond(end)) {
            [true, true] => Some(true),
            [false, false] => Some(false),
            _ => is_told.then_some(false),
        });
        RelativeResult { expr: self.text.clone(), value: metric.and_then(|metric| metric.ratio).map(percent), failed }
    }
}

impl RelativeResult {
    /// Returns whether a change in percent is beyond the bound of the condition.
    #[must_use]
    pub fn holds_for(&self, percent: f64) -> bool {
        self.expr.parse::<RelativeThreshold>().is_ok_and(|threshold| threshold.is_beyond(percent))
    }
}

/// Returns the verdict of a comparison with these metrics and thresholds.
pub(super) fn verdict(metrics: &[MetricRatio], thresholds: &[RelativeResult]) -> Verdict {
    if thresholds.iter().any(|threshold| threshold.failed == Some(true)) {
        Verdict::Fail
    } else if metrics.iter().all(|metric| metric.ratio.is_none())
        || thresholds.iter().any(|threshold| threshold.failed.is_none())
    {
        Verdict::Inconclusive
    } else {
        Verdict::Pass
    }
}

impl fmt::Display for RelativeThreshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl FromStr for RelativeThreshold {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const EXPECTED: &str =
            "expected METRIC, < or >, and a change in percent with its sign, such as p99>+10% or rate<-5%";
        let text = text.trim();
        let at = text.find(['<', '>']).ok_or(EXPECTED)?;
        let (name, rest) = (text[..at].trim(), text[at + 1..].trim_start());
        if !Quantity::from_name(name)?.metric.has_ratio() {
            let reason = format!("{name} has no ratio: the metrics are percentiles, mean, max, rate and server_cpu");
            return Err(reason.into());
        }
        let percent = rest.strip_suffix('%').filter(|percent| percent.starts_with(['+', '-'])).ok_or(EXPECTED)?;
        let bound = percent.parse().ok().filter(|bound: &f64| bound.is_finite()).ok_or(EXPECTED)?;
        Ok(Self { text: text.to_owned(), name: name.to_owned(), is_above: text[at..].starts_with('>'), bound })
    }
}
