//! The workloads and the metrics of each, as data.

use serde::{Deserialize, Serialize};

/// How a workload is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A closed loop over connections that stay open for a session, while all servers run.
    ClosedLoop,
    /// An open loop over such connections, at a twentieth of the rate that the floor reaches in a closed loop: at
    /// a quarter of it the load generator, which wakes up for each message, is saturated.
    OpenLoop,
    /// One run of `ecoloop load` per window, which opens and closes its connections.
    Churn,
    /// Simultaneous connects beside a load on open connections.
    Burst,
    /// One run per window against a new server: an old one reuses memory that it has freed, so its growth does not show.
    Idle,
    /// System calls and instructions, each counted in separate runs against new servers.
    Counts,
    /// `ecoloop load` and the client in C against the floor.
    CrossCheck,
}

/// How a metric is compared between two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Comparison {
    /// By the ratio of the two in each round.
    Ratio,
    /// By the ranges over all rounds.
    Range,
    /// Not compared: the metric only explains others.
    None,
}

/// A quantity that a workload measures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Metric {
    /// Name in the JSON file.
    pub(crate) name: String,
    /// Column heading in tables.
    pub(crate) title: String,
    pub(crate) lower_is_better: bool,
    pub(crate) comparison: Comparison,
    /// JSON pointer to the value in the report of a window.
    #[serde(skip)]
    pub(crate) pointer: &'static str,
    /// Factor by which the value in the report is multiplied.
    #[serde(skip)]
    pub(crate) scale: f64,
}

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) kind: Kind,
    pub(crate) buffer_bytes: u32,
    pub(crate) connections: u32,
    /// Factor by which its windows are longer than `--window`.
    pub(crate) window_factor: u32,
    /// Arguments of `ecoloop load` other than the connections, the duration and the address.
    pub(crate) load: String,
    pub(crate) metrics: Vec<Metric>,
}

/// The default of `ecoloop serve`.
const BUFFER_BYTES: u32 = 1024;
/// Messages per second on the connections that are open during the burst.
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
            let title = messages_title(connections, size);
            all.push(closed_loop(name, title, connections, &format!("-s {size}"), message_metrics()));
        }
    }
    let pipeline = "50 connections, 64 bytes, 16 messages in flight on each".to_owned();
    all.push(closed_loop("50x64-pipeline16", pipeline, 50, "-s 64 -p 16", message_metrics()));
    // 50 streams have 12.5 MiB in flight, which takes 0.1 s through a buffer of 1 KiB. A window must be several times longer.
    for (connections, buffer_bytes, window_factor, name) in [
        (1, 1024, 1, "bulk-1-1KiB"),
        (1, 65536, 1, "bulk-1-64KiB"),
        (50, 1024, 4, "bulk-50-1KiB"),
        (50, 65536, 2, "bulk-50-64KiB"),
    ] {
        let streams =
            if connections == 1 { "one bulk stream".to_owned() } else { format!("{connections} bulk streams") };
        let title = format!("{streams}, server buffer {} KiB", buffer_bytes / 1024);
        let workload = closed_loop(name, title, connections, "-s 64KiB -p 4", bulk_metrics());
        all.push(Workload { buffer_bytes, window_factor, ..workload });
    }
    let churn_title = "connect, one message of 64 bytes, close; 50 connections open at a time".to_owned();
    // Connects, and the closes of the window before, come in bursts. A window must contain many of them.
    let churn = closed_loop("churn", churn_title, 50, "-s 64 --mode churn", churn_metrics());
    all.push(Workload { kind: Kind::Churn, window_factor: 8, ..churn });
    let open_title = "50 connections, 64 bytes, open loop at a twentieth of the floor's rate".to_owned();
    // The 99.9th percentile needs some thousands of messages.
    let open = closed_loop("open", open_title, 50, "-s 64", latency_metrics());
    all.push(Workload { kind: Kind::OpenLoop, window_factor: 8, ..open });
    let burst_title =
        format!("{BURST_CONNECTS} simultaneous connects, beside 200 connections at {BURST_RATE} messages per second");
    let burst_load = format!("-s 64 -r {BURST_RATE}");
    let burst = closed_loop("burst", burst_title, 200, &burst_load, burst_metrics());
    all.push(Workload { kind: Kind::Burst, ..burst });
    for (connections, name) in [(10_000, "idle-10000"), (19_000, "idle-19000")] {
        let title = format!("{connections} idle connections");
        let idle = closed_loop(name, title, connections, "-s 64 --mode hold", memory_metrics());
        all.push(Workload { kind: Kind::Idle, ..idle });
    }
    for (connections, size, pipeline, name) in [
        (1, 64, 1, "counts-1x64"),
        (50, 64, 1, "counts-50x64"),
        (50, 64, 16, "counts-50x64-pipeline16"),
        (50, 1024, 1, "counts-50x1024"),
    ] {
        let title = format!("{}, {pipeline} in flight: calls and instructions", messages_title(connections, size));
        let counts = closed_loop(name, title, connections, &format!("-s {size} -p {pipeline}"), count_metrics());
        all.push(Workload { kind: Kind::Counts, ..counts });
    }
    let check_title = "the two load generators against the floor, 50 connections, 64 bytes".to_owned();
    let check = closed_loop("clients", check_title, 50, "-s 64", message_metrics());
    all.push(Workload { kind: Kind::CrossCheck, ..check });
    all
}

fn messages_title(connections: u32, size: u32) -> String {
    let plural = if connections == 1 { "" } else { "s" };
    format!("{connections} connection{plural}, {size} bytes")
}

fn closed_loop(name: &'static str, title: String, connections: u32, load: &str, metrics: Vec<Metric>) -> Workload {
    // One connection has few messages per window, and each of 10,000 has few turns in one.
    let window_factor = if (2..10_000).contains(&connections) { 1 } else { 4 };
    let load = load.to_owned();
    let (kind, buffer_bytes) = (Kind::ClosedLoop, BUFFER_BYTES);
    Workload { name, title, kind, buffer_bytes, connections, window_factor, load, metrics }
}

fn lower_is_better(name: &str, title: &str, pointer: &'static str) -> Metric {
    let (name, title) = (name.to_owned(), title.to_owned());
    Metric { name, title, lower_is_better: true, comparison: Comparison::Ratio, pointer, scale: 1.0 }
}

fn higher_is_better(name: &str, title: &str, pointer: &'static str) -> Metric {
    Metric { lower_is_better: false, ..lower_is_better(name, title, pointer) }
}

fn lower_range_is_better(name: &str, title: &str, pointer: &'static str) -> Metric {
    Metric { comparison: Comparison::Range, ..lower_is_better(name, title, pointer) }
}

fn not_compared(name: &str, title: &str, pointer: &'static str) -> Metric {
    Metric { comparison: Comparison::None, ..lower_is_better(name, title, pointer) }
}

fn message_metrics() -> Vec<Metric> {
    vec![
        lower_is_better("cpu_us_per_message", "CPU, µs per message", CPU_POINTER),
        higher_is_better("messages_per_s", "messages per second", RATE_POINTER),
    ]
}

/// Metrics of messages of 64 KiB: 16 of them are 1 MiB.
fn bulk_metrics() -> Vec<Metric> {
    vec![
        Metric { scale: 16.0, ..lower_is_better("cpu_us_per_mib", "CPU, µs per MiB", CPU_POINTER) },
        Metric { scale: 1.0 / 16.0, ..higher_is_better("mib_per_s", "MiB per second", RATE_POINTER) },
    ]
}

/// Metrics of connections with one message each.
fn churn_metrics() -> Vec<Metric> {
    vec![
        lower_is_better("cpu_us_per_connection", "CPU, µs per connection", CPU_POINTER),
        higher_is_better("connections_per_s", "connections per second", RATE_POINTER),
    ]
}

fn latency_metrics() -> Vec<Metric> {
    vec![
        lower_is_better("p50_us", "p50, µs", "/latency_us/p50"),
        lower_is_better("p99_us", "p99, µs", "/latency_us/p99"),
        lower_is_better("p99_9_us", "p99.9, µs", "/latency_us/p99_9"),
    ]
}

fn burst_metrics() -> Vec<Metric> {
    vec![
        lower_range_is_better("p99_burst_us", "p99 with the burst, µs", "/with_burst/latency_us/p99"),
        lower_range_is_better("p99_quiet_us", "p99 without it, µs", "/without_burst/latency_us/p99"),
        lower_range_is_better("connect_max_us", "longest connect, µs", "/burst/connect_us/max"),
        not_compared("overflows", "dropped: backlog full", "/kernel/ListenOverflows"),
        not_compared("syn_retransmits", "SYN retransmits", "/kernel/TCPSynRetrans"),
    ]
}

fn memory_metrics() -> Vec<Metric> {
    vec![lower_range_is_better("bytes_per_connection", "bytes per connection", "/server/rss_bytes_per_connection")]
}

fn count_metrics() -> Vec<Metric> {
    vec![
        lower_range_is_better("calls_per_message", "system calls per message", "/calls"),
        lower_range_is_better("instructions_per_message", "user-space instructions per message", "/instructions"),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_echo_mode_keeps_connections_open_for_a_session() {
        let keeps = |workload: &Workload| matches!(workload.kind, Kind::ClosedLoop | Kind::OpenLoop | Kind::CrossCheck);
        assert!(all().iter().filter(|workload| keeps(workload)).all(|workload| !workload.load.contains("--mode")));
    }

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = all().iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), all().len());
        for workload in all() {
            let metrics: BTreeSet<_> = workload.metrics.iter().map(|metric| metric.name.clone()).collect();
            assert_eq!(metrics.len(), workload.metrics.len(), "{}", workload.name);
        }
    }
}
