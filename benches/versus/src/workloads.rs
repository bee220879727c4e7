//! What is measured, as data.

use serde::{Deserialize, Serialize};

/// How a workload is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A window a slice over connections that last for a sitting, all servers alive.
    Load,
    /// One run of `ecoloop load` a slice, which opens and closes its connections.
    Churn,
    /// As `Load`, at half of the rate that the floor reaches in a closed loop.
    Open,
    /// Connects at once, beside a load on connections that are there already.
    Burst,
    /// One run a slice, against a server of its own: memory that was given back is not always seen.
    Idle,
    /// System calls and instructions, each counted in runs of their own.
    Counts,
    /// `ecoloop load` and the plain client in C, on the floor.
    CrossCheck,
}

/// How a quantity of one server is held against another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Comparison {
    /// By their ratio in the same round.
    Ratio,
    /// By the ranges of all rounds.
    Range,
    /// It is shown, to explain the others.
    None,
}

/// A quantity of a workload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// In the JSON file.
    pub(crate) name: String,
    /// In tables.
    pub(crate) title: String,
    pub(crate) less_is_better: bool,
    pub(crate) comparison: Comparison,
    /// Where it stands in the document of a slice, and what to multiply it with.
    #[serde(skip)]
    pub(crate) pointer: &'static str,
    #[serde(skip)]
    pub(crate) scale: f64,
}

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) kind: Kind,
    pub(crate) buffer_bytes: u32,
    pub(crate) connections: u32,
    /// How many times longer than the others its slices are.
    pub(crate) stretch: u32,
    /// Arguments of `ecoloop load` beside the connections, the duration and the address.
    pub(crate) load: String,
    pub(crate) figures: Vec<Figure>,
}

/// The buffer of ecoloop, if nothing else is asked for.
const BUFFER_BYTES: u32 = 1024;
/// Messages a second on the connections that a burst disturbs.
pub(crate) const BURST_RATE: u32 = 5000;
pub(crate) const BURST_CONNECTS: u32 = 2000;

const CPU_POINTER: &str = "/server/cpu_us_per_message";
pub(crate) const RATE_POINTER: &str = "/rate_per_s";

pub(crate) fn all() -> Vec<Workload> {
    let mut all = Vec::new();
    for size in [64, 1024] {
        for (connections, name) in [
            (1, ["1x64", "1x1024"]),
            (50, ["50x64", "50x1024"]),
            (1000, ["1000x64", "1000x1024"]),
            (10_000, ["10000x64", "10000x1024"]),
        ] {
            let name = name[usize::from(size == 1024)];
            all.push(load(name, messages_title(connections, size), connections, &format!("-s {size}"), closed()));
        }
    }
    let depth = "50 connections, 64 bytes, 16 messages in flight on each".to_owned();
    all.push(load("50x64-depth16", depth, 50, "-s 64 -p 16", closed()));
    // Fifty streams have 12.5 MiB in flight, which a buffer of 1 KiB takes a tenth of a second for: a slice must last for
    // several times as much.
    for (connections, buffer_bytes, stretch, name) in [
        (1, 1024, 1, "bulk-1-1KiB"),
        (1, 65536, 1, "bulk-1-64KiB"),
        (50, 1024, 4, "bulk-50-1KiB"),
        (50, 65536, 2, "bulk-50-64KiB"),
    ] {
        let streams =
            if connections == 1 { "one bulk stream".to_owned() } else { format!("{connections} bulk streams") };
        let title = format!("{streams}, the server's buffer {} KiB", buffer_bytes / 1024);
        all.push(Workload { buffer_bytes, stretch, ..load(name, title, connections, "-s 64KiB -p 4", bulk()) });
    }
    let churn_title = "connect, one message of 64 bytes, close; 50 at once".to_owned();
    // Its connects, and the closes of the slice before, come in bursts: a slice has to hold many of them.
    let churn = load("churn", churn_title, 50, "-s 64 --mode churn", churn());
    all.push(Workload { kind: Kind::Churn, stretch: 8, ..churn });
    let open_title = "50 connections, 64 bytes, in an open loop at half of the floor's rate".to_owned();
    // The 99.9th percentile needs some thousands of messages.
    all.push(Workload { kind: Kind::Open, stretch: 4, ..load("open", open_title, 50, "-s 64", open()) });
    let burst_title =
        format!("{BURST_CONNECTS} connects at once, beside 200 connections at {BURST_RATE} messages a second");
    let burst_load = format!("-s 64 -r {BURST_RATE}");
    all.push(Workload { kind: Kind::Burst, ..load("burst", burst_title, 200, &burst_load, burst()) });
    for (connections, name) in [(10_000, "idle-10000"), (19_000, "idle-19000")] {
        let title = format!("{connections} idle connections");
        all.push(Workload { kind: Kind::Idle, ..load(name, title, connections, "-s 64 --mode hold", idle()) });
    }
    for (connections, size, depth, name) in [
        (1, 64, 1, "counts-1x64"),
        (50, 64, 1, "counts-50x64"),
        (50, 64, 16, "counts-50x64-depth16"),
        (50, 1024, 1, "counts-50x1024"),
    ] {
        let title = format!("{}, {depth} in flight: what a message takes", messages_title(connections, size));
        let load = load(name, title, connections, &format!("-s {size} -p {depth}"), counts());
        all.push(Workload { kind: Kind::Counts, ..load });
    }
    let check_title = "the two load generators on the floor, 50 connections, 64 bytes".to_owned();
    all.push(Workload { kind: Kind::CrossCheck, ..load("clients", check_title, 50, "-s 64", closed()) });
    all
}

fn messages_title(connections: u32, size: u32) -> String {
    let plural = if connections == 1 { "" } else { "s" };
    format!("{connections} connection{plural}, {size} bytes")
}

fn load(name: &'static str, title: String, connections: u32, load: &str, figures: Vec<Figure>) -> Workload {
    // So that each of many connections has its turn more than once, and one has messages enough.
    let stretch = if (2..10_000).contains(&connections) { 1 } else { 4 };
    let load = load.to_owned();
    Workload { name, title, kind: Kind::Load, buffer_bytes: BUFFER_BYTES, connections, stretch, load, figures }
}

fn less(name: &str, title: &str, pointer: &'static str) -> Figure {
    let (name, title) = (name.to_owned(), title.to_owned());
    Figure { name, title, less_is_better: true, comparison: Comparison::Ratio, pointer, scale: 1.0 }
}

fn more(name: &str, title: &str, pointer: &'static str) -> Figure {
    Figure { less_is_better: false, ..less(name, title, pointer) }
}

fn less_by_range(name: &str, title: &str, pointer: &'static str) -> Figure {
    Figure { comparison: Comparison::Range, ..less(name, title, pointer) }
}

fn shown(name: &str, title: &str, pointer: &'static str) -> Figure {
    Figure { comparison: Comparison::None, ..less(name, title, pointer) }
}

fn closed() -> Vec<Figure> {
    vec![
        less("cpu_us_per_message", "CPU, µs a message", CPU_POINTER),
        more("messages_per_s", "messages a second", RATE_POINTER),
    ]
}

/// Of messages of 64 KiB, sixteen of which are 1 MiB.
fn bulk() -> Vec<Figure> {
    vec![
        Figure { scale: 16.0, ..less("cpu_us_per_mib", "CPU, µs a MiB", CPU_POINTER) },
        Figure { scale: 1.0 / 16.0, ..more("mib_per_s", "MiB a second", RATE_POINTER) },
    ]
}

/// One message a connection.
fn churn() -> Vec<Figure> {
    vec![
        less("cpu_us_per_connection", "CPU, µs a connection", CPU_POINTER),
        more("connections_per_s", "connections a second", RATE_POINTER),
    ]
}

fn open() -> Vec<Figure> {
    vec![
        less("p50_us", "p50, µs", "/latency_us/p50"),
        less("p99_us", "p99, µs", "/latency_us/p99"),
        less("p99_9_us", "p99.9, µs", "/latency_us/p99_9"),
    ]
}

fn burst() -> Vec<Figure> {
    vec![
        less_by_range("p99_burst_us", "p99 in the burst, µs", "/disturbed/latency_us/p99"),
        less_by_range("p99_quiet_us", "p99 without it, µs", "/quiet/latency_us/p99"),
        less_by_range("connect_max_us", "longest connect, µs", "/burst/connect_us/max"),
        shown("overflows", "dropped: backlog full", "/kernel/ListenOverflows"),
        shown("syn_retransmits", "SYNs sent again", "/kernel/TCPSynRetrans"),
    ]
}

fn idle() -> Vec<Figure> {
    vec![less_by_range("bytes_per_connection", "bytes a connection", "/server/rss_bytes_per_connection")]
}

fn counts() -> Vec<Figure> {
    vec![
        less_by_range("calls_per_message", "system calls a message", "/calls"),
        less_by_range("instructions_per_message", "user-space instructions a message", "/instructions"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn connections_that_last_for_a_sitting_are_those_of_an_echo() {
        let lasts = |workload: &Workload| matches!(workload.kind, Kind::Load | Kind::Open | Kind::CrossCheck);
        assert!(all().iter().filter(|workload| lasts(workload)).all(|workload| !workload.load.contains("--mode")));
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = all().iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), all().len());
        for workload in all() {
            let figures: BTreeSet<_> = workload.figures.iter().map(|figure| figure.name.clone()).collect();
            assert_eq!(figures.len(), workload.figures.len(), "{}", workload.name);
        }
    }
}
