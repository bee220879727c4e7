//! What was measured, as a JSON file; what follows from it, as tables.

mod comparison;
pub(crate) mod markdown;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::peers::{Kind, LeftOut};
use crate::workloads::{self, Figure};
use comparison::Summary;

const SCHEMA: &str = "ecoloop.versus/1";

#[derive(Serialize, Deserialize)]
pub(crate) struct Document {
    schema: String,
    /// RFC 3339.
    pub(crate) start: String,
    pub(crate) slice_ms: u64,
    pub(crate) machine: Machine,
    pub(crate) peers: Vec<Described>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) workloads: Vec<Measured>,
    /// Computed from the above, each time anew.
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
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) version: String,
    pub(crate) run: String,
}

/// A workload with every slice of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) title: String,
    /// The arguments of `ecoloop load`.
    pub(crate) load: String,
    pub(crate) buffer_bytes: u32,
    /// That of all, in an open loop.
    pub(crate) rate_per_s: Option<f64>,
    /// Whom ratios are to.
    pub(crate) baseline: String,
    /// Its second copy.
    pub(crate) control: Option<String>,
    /// In which servers and connections were new. One in files of old.
    #[serde(default = "one")]
    pub(crate) sittings: usize,
    /// Of all sittings, one sitting's after the other's.
    pub(crate) rounds: usize,
    pub(crate) figures: Vec<Figure>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) contestants: Vec<Contestant>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    /// Slices that are not counted, for the load generator was late in them.
    pub(crate) late: u32,
    /// By figure, round for round; null where there is none.
    pub(crate) samples: BTreeMap<String, Vec<Option<f64>>>,
}

impl Contestant {
    pub(crate) fn new(name: &str, figures: &[Figure]) -> Self {
        let samples = figures.iter().map(|figure| (figure.name.clone(), Vec::new())).collect();
        Self { name: name.to_owned(), late: 0, samples }
    }

    /// Takes from a slice's document what is looked at.
    pub(crate) fn push(&mut self, figures: &[Figure], slice: &Value) {
        for figure in figures {
            let value = slice.pointer(figure.pointer).and_then(Value::as_f64);
            let value = value.map(|value| round(value * figure.scale));
            self.samples.entry(figure.name.clone()).or_default().push(value);
        }
    }

    /// Whether a slice has brought anything.
    pub(crate) fn has_any(&self) -> bool {
        self.samples.values().flatten().any(Option::is_some)
    }

    fn of(&self, figure: &Figure) -> &[Option<f64>] {
        self.samples.get(&figure.name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn values(&self, figure: &Figure) -> Vec<f64> {
        self.of(figure).iter().flatten().copied().collect()
    }
}

fn one() -> usize {
    1
}

/// To five digits: no slice knows more.
fn round(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

impl Document {
    pub(crate) fn new(start: String, slice_ms: u64, machine: Machine) -> Self {
        let (peers, left_out, workloads, summary) = Default::default();
        Self { schema: SCHEMA.to_owned(), start, slice_ms, machine, peers, left_out, workloads, summary }
    }

    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        let document: Self = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
        if document.schema == SCHEMA { Ok(document) } else { Err(format!("{name}: its schema is not {SCHEMA}")) }
    }

    /// Takes over what was measured before, under the same conditions.
    pub(crate) fn keep(&mut self, earlier: Self) -> Result<(), String> {
        if (earlier.slice_ms, &earlier.machine) != (self.slice_ms, &self.machine) {
            return Err("what is there was measured with other slices, or on another machine".to_owned());
        }
        self.start = earlier.start;
        (self.peers, self.workloads) = (earlier.peers, earlier.workloads);
        Ok(())
    }

    /// In place of an earlier one of that name.
    pub(crate) fn describe(&mut self, peer: Described) {
        match self.peers.iter_mut().find(|earlier| earlier.name == peer.name) {
            Some(earlier) => *earlier = peer,
            None => self.peers.push(peer),
        }
    }

    /// In place of an earlier one of that name, in the order of the list.
    pub(crate) fn add(&mut self, measured: Measured) {
        self.workloads.retain(|earlier| earlier.name != measured.name);
        self.workloads.push(measured);
        let all = workloads::all();
        self.workloads.sort_by_key(|measured| all.iter().position(|workload| workload.name == measured.name));
    }

    /// A file that is there stays whole until this one is.
    pub(crate) fn write(&mut self, path: &Path) -> Result<(), String> {
        self.summary = self.workloads.iter().flat_map(Measured::summary).collect();
        let text = serde_json::to_string(self).map_err(|error| format!("cannot write JSON: {error}"))?;
        // A line for each workload and each summary, so that changes can be seen.
        let text = text.replace(r#"{"name":""#, "\n{\"name\":\"").replace(r#"{"workload":""#, "\n{\"workload\":\"");
        replace_file(path, &(text + "\n"))
    }
}

pub(crate) fn replace_file(path: &Path, text: &str) -> Result<(), String> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
