//! The results: the JSON file, the comparison of the candidates, and the tables.

mod comparison;
pub(crate) mod markdown;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::peers::{IoModel, Skipped};
use crate::workloads::{self, Metric};
use comparison::Summary;

const SCHEMA: &str = "ecoloop.versus/1";

/// The JSON file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Document {
    schema: String,
    /// RFC 3339.
    pub(crate) start: String,
    pub(crate) window_ms: u64,
    pub(crate) machine: Machine,
    pub(crate) peers: Vec<PeerInfo>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) workloads: Vec<WorkloadResult>,
    /// Computed from the samples on each write.
    #[serde(skip_deserializing)]
    summary: Vec<Summary>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct PeerInfo {
    pub(crate) name: String,
    pub(crate) kind: IoModel,
    pub(crate) version: String,
    pub(crate) run: String,
}

/// A workload with every sample.
#[derive(Serialize, Deserialize)]
pub(crate) struct WorkloadResult {
    pub(crate) name: String,
    pub(crate) title: String,
    /// The arguments of `ecoloop load`.
    pub(crate) load: String,
    pub(crate) buffer_bytes: u32,
    /// Rate over all connections, in an open loop.
    pub(crate) rate_per_s: Option<f64>,
    /// Name of the candidate that is the denominator of the ratios.
    pub(crate) baseline: String,
    /// Name of the A/A control, a second copy of the baseline.
    pub(crate) control: Option<String>,
    /// Number of sessions, each with new servers and new connections.
    pub(crate) sessions: usize,
    /// Number of rounds of all sessions.
    pub(crate) rounds: usize,
    pub(crate) metrics: Vec<Metric>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) candidates: Vec<Candidate>,
}

/// The samples of one server or load generator in one workload.
#[derive(Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    /// Windows without samples, because the load generator did not keep its schedule.
    pub(crate) late_windows: u32,
    /// By metric, one sample per round; null for a round without one.
    pub(crate) samples: BTreeMap<String, Vec<Option<f64>>>,
}

impl Candidate {
    pub(crate) fn new(name: &str, metrics: &[Metric]) -> Self {
        let samples = metrics.iter().map(|metric| (metric.name.clone(), Vec::new())).collect();
        Self { name: name.to_owned(), late_windows: 0, samples }
    }

    /// Appends one round: the metrics that the report of a window has, and null for the others.
    pub(crate) fn record(&mut self, metrics: &[Metric], report: &Value) {
        for metric in metrics {
            let value = report.pointer(metric.pointer).and_then(Value::as_f64);
            let value = value.map(|value| round(value * metric.scale));
            self.samples.entry(metric.name.clone()).or_default().push(value);
        }
    }

    /// Returns whether any round has a sample.
    pub(crate) fn has_samples(&self) -> bool {
        self.samples.values().flatten().any(Option::is_some)
    }

    fn samples(&self, metric: &Metric) -> &[Option<f64>] {
        self.samples.get(&metric.name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn values(&self, metric: &Metric) -> Vec<f64> {
        self.samples(metric).iter().flatten().copied().collect()
    }
}

/// Rounds to five significant digits.
fn round(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

impl Document {
    pub(crate) fn new(start: String, window_ms: u64, machine: Machine) -> Self {
        let (peers, skipped, workloads, summary) = Default::default();
        Self { schema: SCHEMA.to_owned(), start, window_ms, machine, peers, skipped, workloads, summary }
    }

    /// Reads a file that `write` has written.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        let document: Self = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
        if document.schema == SCHEMA { Ok(document) } else { Err(format!("{name}: the schema is not {SCHEMA}")) }
    }

    /// Takes the peers and workloads of an earlier document, which must have the same window and machine.
    pub(crate) fn keep(&mut self, earlier: Self) -> Result<(), String> {
        if (earlier.window_ms, &earlier.machine) != (self.window_ms, &self.machine) {
            return Err("the earlier results have another window or are from another machine".to_owned());
        }
        self.start = earlier.start;
        (self.peers, self.workloads) = (earlier.peers, earlier.workloads);
        Ok(())
    }

    /// Adds a peer, or replaces the one of that name.
    pub(crate) fn add_peer(&mut self, peer: PeerInfo) {
        match self.peers.iter_mut().find(|earlier| earlier.name == peer.name) {
            Some(earlier) => *earlier = peer,
            None => self.peers.push(peer),
        }
    }

    /// Adds a workload, or replaces the one of that name. The workloads keep the order of `workloads::all`.
    pub(crate) fn add_workload(&mut self, result: WorkloadResult) {
        self.workloads.retain(|earlier| earlier.name != result.name);
        self.workloads.push(result);
        let all = workloads::all();
        self.workloads.sort_by_key(|result| all.iter().position(|workload| workload.name == result.name));
    }

    /// Updates the summary and writes the file.
    pub(crate) fn write(&mut self, path: &Path) -> Result<(), String> {
        self.summary = self.workloads.iter().flat_map(WorkloadResult::summary).collect();
        let text = serde_json::to_string(self).map_err(|error| format!("cannot write JSON: {error}"))?;
        // One line per peer, workload and summary, for readable diffs.
        let text = text.replace(r#"{"name":""#, "\n{\"name\":\"").replace(r#"{"workload":""#, "\n{\"workload\":\"");
        replace_file(path, &(text + "\n"))
    }
}

/// Writes a file atomically: readers see the old content or the new.
pub(crate) fn replace_file(path: &Path, text: &str) -> Result<(), String> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
