//! The figures of each stage of the rate.

use std::io;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;

use super::document::{Messages, Report};
use super::fields::number;
use super::merge::{messages, round_to_millionths, summary, total};
use super::summary::Summary;

/// The figures of a stage, in which the rate goes in a straight line from one value to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StageFigures {
    /// Messages due per second at its beginning, over all connections; in [`Mode::Churn`](super::Mode::Churn), connections.
    #[serde(serialize_with = "whole")]
    pub from: f64,
    /// Messages due per second at its end.
    #[serde(serialize_with = "whole")]
    pub to: f64,
    /// Its length, in seconds.
    pub seconds: f64,
    /// Number of messages that were due in it, by outcome.
    pub messages: Messages,
    /// Verified replies that arrived in it, per second. `None` if the run was interrupted before it.
    pub rate_per_s: Option<f64>,
    /// Number of errors that occurred in it; of the last stage, also those after it.
    pub errors: u64,
    /// Latency of the messages that were due in it.
    pub latency_us: Summary,
    /// Lateness of the messages that were due in it.
    pub lateness_us: Summary,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn whole<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    number(&Some(*value), serializer)
}

/// Returns the rates and the length of each stage as text, or `None` if there are no stages.
pub(in crate::load) fn shape(stages: &[StageFigures]) -> Option<String> {
    let stage = |stage: &StageFigures| format!("{}..{}@{}s", stage.from, stage.to, stage.seconds);
    (!stages.is_empty()).then(|| stages.iter().map(stage).collect::<Vec<_>>().join(","))
}

/// Returns the lengths of the stages, which are the same in generators of one run.
pub(super) fn lengths(stages: &[StageFigures]) -> serde_json::Value {
    json!(stages.iter().map(|stage| stage.seconds).collect::<Vec<_>>())
}

/// Adds up the figures of each stage of runs whose stages are equally long.
pub(super) fn merge_stages(runs: &[(String, Report)]) -> io::Result<Vec<StageFigures>> {
    let stages = runs.first().map_or(0, |(_, run)| run.stages.len());
    let merge_stage = |index: usize| {
        let parts: Vec<_> = runs.iter().filter_map(|(_, run)| run.stages.get(index)).collect();
        let sum = |of: fn(&StageFigures) -> f64| round_to_millionths(parts.iter().map(|part| of(part)).sum());
        let summary = |of: fn(&StageFigures) -> &Summary| {
            summary(runs, &format!("stages[{index}]"), |run| run.stages.get(index).map(of))
        };
        Ok(StageFigures {
            from: sum(|part| part.from),
            to: sum(|part| part.to),
            seconds: parts.first().map_or(0.0, |part| part.seconds),
            messages: messages(parts.iter().map(|part| &part.messages)),
            rate_per_s: parts.iter().map(|part| part.rate_per_s).sum(),
            errors: total(parts.iter().map(|part| part.errors)),
            latency_us: summary(|part| &part.latency_us)?,
            lateness_us: summary(|part| &part.lateness_us)?,
        })
    };
    (0..stages).map(merge_stage).collect()
}
