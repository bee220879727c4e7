//! Compares the windows of two servers, or of two versions of one.

mod threshold;

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;
use serde_json::{Map, Value, json};

pub use self::threshold::{RelativeResult, RelativeThreshold};
use super::report::{Ended, Loop, Mode, Quantity, Report, Verdict, shape};
use super::statistics::{Ratio, SAMPLES_MIN, median};
use crate::socket_address::AnyAddress;

/// The schema of the JSON document of a comparison.
const SCHEMA: &str = "ecoloop.compare/1";
/// The intervals of all metrics hold together with this confidence.
const CONFIDENCE: f64 = 0.95;
/// Two sides that differ by less are no different: two sessions of the same server differ by up to this share, which no interval over
/// their windows covers.
const MARGIN: f64 = 0.01;
/// There is no difference if the whole interval is within this share of 1.
const DIFFERENCE: f64 = 0.05;
/// With an interval of this share to either side, a difference of [`DIFFERENCE`] is found in nearly every comparison.
const RESOLUTION: f64 = 0.015;
/// Percentiles and maxima are whole microseconds.
const STEP_US: f64 = 1.0;

/// The comparison of two sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// `ecoloop.compare/1`
    pub schema: &'static str,
    /// The version of this crate.
    pub version: &'static str,
    /// Whether a threshold failed. Inconclusive if one could not be evaluated, or if no metric has a value on both sides.
    pub verdict: Verdict,
    /// The windows that the others are compared with.
    pub old: Side,
    /// The windows that are compared.
    pub new: Side,
    /// The ratio of each metric.
    pub metrics: Vec<MetricRatio>,
    /// The thresholds, and whether each failed.
    pub thresholds: Vec<RelativeResult>,
}

/// The windows of one side.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Side {
    /// The servers.
    pub targets: Vec<AnyAddress>,
    /// Number of windows that were compared.
    pub windows: usize,
    /// Number of windows that were not, because they were interrupted, or in an open loop not sent on schedule.
    pub left_out: usize,
    /// Number of errors of every window. A finding is one.
    pub errors: u64,
}

/// The ratio of the medians of one metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MetricRatio {
    /// The name that thresholds use.
    pub metric: String,
    /// The median over the old windows: a duration in microseconds. `None` if no window has a value.
    pub old: Option<f64>,
    /// The median over the new windows.
    pub new: Option<f64>,
    /// `new` divided by `old`.
    pub ratio: Option<f64>,
    /// The interval of the ratio: the intervals of all metrics hold together with 95% confidence. `None` with fewer than six windows on a side.
    pub interval: Option<[f64; 2]>,
    /// Whether there is a difference.
    pub verdict: Difference,
    /// Number of windows on each side with which a difference of 5% is found, if it cannot be told.
    pub windows_needed: Option<u64>,
}

/// Whether one side differs from the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// The new side is faster: of a rate the ratio is above 1, of a duration below.
    Faster,
    /// The new side is slower.
    Slower,
    /// There is none of 5% or more.
    NoDifference,
    /// The interval is too wide.
    CannotTell,
}

/// Compares the windows `new` with the windows `old`, each with the name of its file.
///
/// Compares the rate of a closed loop, the mean, the median and the 99th percentile of latency, the server's CPU time a message if it is
/// known, and the metrics of `thresholds`. The connect times of a session, which all of its windows have, are one sample.
///
/// # Errors
///
/// - `InvalidInput`: a side has no report, two reports have different settings, or a threshold is on a stage that they do not have.
///   The message names the files.
pub fn compare(
    old: &[(String, Report)],
    new: &[(String, Report)],
    thresholds: &[RelativeThreshold],
) -> io::Result<Comparison> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let first = old.first().filter(|_| !new.is_empty()).ok_or_else(|| invalid("there is no report".to_owned()))?;
    for run in old.iter().chain(new) {
        check_settings(run, first).map_err(invalid)?;
    }
    for threshold in thresholds {
        let quantity = Quantity::from_name(threshold.metric()).map_err(invalid)?;
        quantity.check_stage(threshold.text(), first.1.stages.len())?;
    }
    let windows = [old, new].map(|side| side.iter().map(|(_, run)| run).filter(|run| counts(run)).collect::<Vec<_>>());
    let names = metric_names(&first.1, thresholds);
    let samples = names.iter().filter_map(|name| {
        let metric = Quantity::from_name(name).ok()?;
        let [old, new] = windows.each_ref().map(|side| values(side, metric));
        let is_requested = thresholds.iter().any(|threshold| threshold.metric() == *name);
        (is_requested || !(old.is_empty() && new.is_empty())).then_some((*name, metric, old, new))
    });
    let samples: Vec<_> = samples.collect();
    #[expect(clippy::cast_precision_loss, reason = "a few metrics")]
    let confidence = 1.0 - (1.0 - CONFIDENCE) / samples.len().max(1) as f64;
    let metrics = samples.iter().map(|(name, metric, old, new)| MetricRatio::new(name, *metric, old, new, confidence));
    let metrics: Vec<_> = metrics.collect();
    let thresholds: Vec<_> = thresholds.iter().map(|threshold| threshold.evaluate(&metrics)).collect();
    Ok(Comparison {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        verdict: threshold::verdict(&metrics, &thresholds),
        old: Side::new(old, windows[0].len()),
        new: Side::new(new, windows[1].len()),
        metrics,
        thresholds,
    })
}

/// Returns whether a window says something about the server.
fn counts(run: &Report) -> bool {
    // In a closed loop a saturated generator is the normal case.
    run.ended == Ended::Complete && !(run.r#loop == Loop::Open && is_late(run))
}

fn is_late(run: &Report) -> bool {
    run.schedule.kept == Some(false) || run.generator.saturated == Some(true)
}

/// Returns the values of a quantity, one of each window. Of the connects, the windows of one session have one together.
fn values(windows: &[&Report], quantity: Quantity) -> Vec<f64> {
    let is_of_connects = quantity.metric.is_of_connects();
    // A window of a session has no connect phase.
    let samples = windows.chunk_by(|before, window| {
        is_of_connects && window.phases_s.connect <= 0.0 && window.connect_us == before.connect_us
    });
    samples.filter_map(|sample| quantity.value(sample.first()?)).collect()
}

fn metric_names<'a>(run: &Report, thresholds: &'a [RelativeThreshold]) -> Vec<&'a str> {
    let rate = (run.r#loop == Loop::Closed && run.mode != Mode::Hold).then_some("rate");
    let names = rate.into_iter().chain(["mean", "p50", "p99", "server_cpu"]);
    let mut seen = BTreeSet::new();
    names.chain(thresholds.iter().map(RelativeThreshold::metric)).filter(|&name| seen.insert(name)).collect()
}

impl Side {
    fn new(runs: &[(String, Report)], windows: usize) -> Self {
        let targets: BTreeSet<_> = runs.iter().flat_map(|(_, run)| run.config.targets.iter().cloned()).collect();
        let errors = runs.iter().flat_map(|(_, run)| run.errors.iter().map(|error| error.count));
        Self {
            targets: targets.into_iter().collect(),
            windows,
            left_out: runs.len() - windows,
            errors: errors.fold(0, u64::saturating_add),
        }
    }
}

impl MetricRatio {
    fn new(name: &str, quantity: Quantity, old: &[f64], new: &[f64], confidence: f64) -> Self {
        let metric = quantity.metric;
        let ratio = Ratio::of_medians(old, new, confidence);
        let step = if metric.is_whole() { median(old).map_or(0.0, |median| STEP_US / median) } else { 0.0 };
        let mut result = Self {
            metric: name.to_owned(),
            old: median(old),
            new: median(new),
            ratio: ratio.map(|ratio| ratio.value),
            interval: ratio.and_then(|ratio| ratio.interval),
            verdict: Difference::CannotTell,
            windows_needed: None,
        };
        let Some([low, high]) = result.interval else {
            // Of enough windows it has none if too many values are 0.
            let windows = old.len().min(new.len());
            result.windows_needed = Some((windows + 1).max(SAMPLES_MIN) as u64);
            return result;
        };
        let (margin, difference) = (MARGIN.max(step), DIFFERENCE.max(step));
        result.verdict = if low > 1.0 + margin || high < 1.0 / (1.0 + margin) {
            if (low > 1.0) == metric.is_better_higher() { Difference::Faster } else { Difference::Slower }
        } else if low >= 1.0 / (1.0 + difference) && high <= 1.0 + difference {
            Difference::NoDifference
        } else {
            result.windows_needed = Some(windows_needed(old.len().min(new.len()), [low, high]));
            Difference::CannotTell
        };
        result
    }
}

/// Returns the number of windows on each side after which an interval that `windows` windows have is narrow enough: its width is in
/// inverse proportion to the square root of the number.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate; it saturates"
)]
fn windows_needed(windows: usize, [low, high]: [f64; 2]) -> u64 {
    let more = windows as u64 + 1;
    if low <= 0.0 {
        return more;
    }
    let to_either_side = (high / low).ln() / 2.0;
    ((windows as f64 * (to_either_side / RESOLUTION).powi(2)).ceil() as u64).max(more)
}

/// Checks that two runs have the same settings. Servers, sources, seeds and labels may differ.
fn check_settings((name, run): &(String, Report), (first_name, first): &(String, Report)) -> Result<(), String> {
    let [ours, theirs] = [run, first].map(settings);
    for (what, ours) in &ours {
        // A merged report has no options.
        if let Some(theirs) = theirs.get(what).filter(|&theirs| theirs != ours) {
            return Err(format!("{name}: {what} is {ours}, and {theirs} in {first_name}"));
        }
    }
    Ok(())
}

fn settings(run: &Report) -> Map<String, Value> {
    let config = &run.config;
    let mut settings = Map::new();
    for (what, value) in [
        ("mode", json!(run.mode)),
        ("loop", json!(run.r#loop)),
        ("connections", json!(run.connections.requested)),
        ("size", json!(config.size)),
        ("size_max", json!(config.size_max)),
        ("pipeline", json!(config.pipeline)),
        ("rate", json!(config.rate)),
        ("arrivals", json!(run.arrivals())),
        ("stages", json!(shape(&run.stages))),
        ("messages_per_connection", json!(config.messages_per_connection)),
        ("proxy_protocol", json!(config.proxy_protocol)),
    ] {
        settings.insert(what.to_owned(), value);
    }
    let options = run.origin.as_ref().map(|origin| json!(origin.options));
    if let Some(Value::Object(options)) = options {
        settings.extend(options);
    }
    settings
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
