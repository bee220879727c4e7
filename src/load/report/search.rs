//! What a search for the highest rate found.

use serde::{Deserialize, Serialize};

use super::document::Report;
use super::fields::number;

/// A search for the highest rate at which a goal holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SearchReport {
    /// The conditions that must hold.
    pub goal: Vec<String>,
    /// The highest rate at which they held, in messages a second; `None` if there is none.
    #[serde(serialize_with = "number")]
    pub found_rate: Option<f64>,
    /// What kept the search from a higher rate; `None` if it was interrupted.
    pub limited_by: Option<LimitedBy>,
    /// Whether the search stopped because no connection could be opened before a window. Then no rate was found.
    #[serde(default)]
    pub server_gone: bool,
    /// Number of connections that were opened anew, because others had ended.
    pub reopened: u64,
    /// The windows, in their order.
    pub probes: Vec<Probe>,
}

/// What limits a rate that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitedBy {
    /// At a higher rate the goal does not hold.
    Server,
    /// At a higher rate the generator does not keep its schedule, or is saturated: the server may take more.
    Generator,
    /// The highest rate of the range was reached.
    Range,
}

/// A window at one rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Probe {
    /// Messages due per second.
    pub rate: f64,
    /// Whether the goal held.
    pub passed: bool,
    /// Whether it confirms a rate that was found.
    pub confirming: bool,
    /// Whether the generator kept its schedule and was not saturated; if not, the window does not count.
    pub schedule_kept: bool,
    /// Length of the window, in seconds: it ends early once it cannot pass.
    pub seconds: f64,
    /// Verified replies per second.
    pub rate_per_s: Option<f64>,
    /// The median latency, in microseconds.
    pub p50_us: Option<u64>,
    /// The 99th percentile of latency, in microseconds.
    pub p99_us: Option<u64>,
    /// Number of errors.
    pub errors: u64,
    /// The conditions that did not hold, and the default thresholds that failed.
    pub failed: Vec<String>,
}

impl SearchReport {
    pub(in crate::load) fn new(goal: Vec<String>) -> Self {
        Self { goal, found_rate: None, limited_by: None, server_gone: false, reopened: 0, probes: Vec::new() }
    }
}

impl Probe {
    /// Creates the probe of a window whose requested thresholds are the goal: each of them must be met.
    pub(in crate::load) fn new(rate: f64, confirming: bool, report: &Report) -> Self {
        let failed = report.thresholds.iter().filter(|threshold| {
            if threshold.default { threshold.failed } else { threshold.value.is_none() || !threshold.failed }
        });
        let failed: Vec<_> = failed.map(|threshold| threshold.expr.clone()).collect();
        Self {
            rate,
            passed: failed.is_empty(),
            confirming,
            schedule_kept: report.schedule.kept != Some(false) && report.generator.saturated != Some(true),
            seconds: report.phases_s.measure,
            rate_per_s: report.rate_per_s,
            p50_us: report.latency_us.p50,
            p99_us: report.latency_us.p99,
            errors: report.errors.iter().fold(0, |sum, error| error.count.saturating_add(sum)),
            failed,
        }
    }
}
