//! The metric families, and how they are collected at each scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ecoloop::Handle;
use nix::errno::Errno;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::super::log::LostLines;

/// Upper bounds of the buckets of a turn's duration, in microseconds.
const TURN_BOUNDS_US: [u64; 19] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000,
];

/// What the metrics of a server are read from.
#[derive(Debug)]
pub(super) struct Families {
    handle: Handle,
    lost_lines: LostLines,
    turns: Arc<Turns>,
}

impl Families {
    pub(super) fn new(handle: Handle, lost_lines: LostLines, turns: Arc<Turns>) -> Self {
        Self { handle, lost_lines, turns }
    }

    /// Returns a registry that reads the values each time it is encoded.
    pub(super) fn into_registry(self) -> Registry {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        registry
    }
}

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder(encoder);
        let stats = self.handle.stats();
        encoder.gauge("ecoloop_connections", "Open connections", &stats.open())?;
        encoder.counter("ecoloop_connections_accepted", "Connections accepted", &stats.accepted)?;
        let closed = stats.closed.by_reason();
        encoder.counters("ecoloop_connections_closed", "Connections closed, by reason", "reason", closed)?;
        let refused = stats.refused.by_reason();
        encoder.counters("ecoloop_connections_refused", "Connections refused, by reason", "reason", refused)?;
        let bytes = [("in", stats.bytes_in), ("out", stats.bytes_out)];
        encoder.counters("ecoloop_bytes", "Bytes received (in) and sent (out)", "direction", bytes)?;
        let help = "Bytes received after the server's FIN, and not echoed";
        encoder.counter("ecoloop_discarded_bytes", help, &stats.discarded)?;
        let help = "What faults have touched, by kind: connections, or bytes for flip, lose, duplicate and swap";
        encoder.counters("ecoloop_faults", help, "kind", stats.faults.iter())?;
        let errors = stats.accept_errors.iter().map(|(errno, count)| (errno_name(errno), count));
        encoder.counters("ecoloop_accept_errors", "Errors of accept(2), by errno", "errno", errors)?;
        self.turns.encode(&mut encoder)?;
        let help = "Log lines that standard output did not take";
        encoder.counter("ecoloop_log_lines_lost", help, &self.lost_lines.count())?;
        encoder.info("ecoloop_build", "Version of ecoloop", [("version", env!("CARGO_PKG_VERSION"))])?;
        encode_process(&mut encoder)
    }
}

/// Returns the name of an errno, as in errno(3).
fn errno_name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        _ if errno == 0 => "other".to_owned(),
        Errno::UnknownErrno => errno.to_string(),
        known => format!("{known:?}"),
    }
}

/// Encodes what Prometheus shows of every process ("Writing client libraries", "Process metrics"). What cannot be read is left out.
#[cfg(target_os = "linux")]
fn encode_process(encoder: &mut Encoder<'_>) -> fmt::Result {
    use procfs::process::{LimitValue, Process};

    let limit = |limit| match limit {
        LimitValue::Unlimited => f64::INFINITY,
        LimitValue::Value(limit) => as_float(limit),
    };
    let Ok(process) = Process::myself() else { return Ok(()) };
    if let Ok(stat) = process.stat() {
        let seconds = |ticks| as_float(ticks) / as_float(procfs::ticks_per_second());
        let cpu = seconds(stat.utime + stat.stime);
        encoder.counter("process_cpu_seconds", "Total user and system CPU time spent in seconds", &cpu)?;
        if let Ok(boot) = procfs::boot_time_secs() {
            let help = "Start time of the process since unix epoch in seconds";
            encoder.gauge("process_start_time_seconds", help, &(as_float(boot) + seconds(stat.starttime)))?;
        }
        encoder.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes", &stat.vsize)?;
        encoder.gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes",
            &(stat.rss * procfs::page_size()),
        )?;
        encoder.gauge("process_threads", "Number of OS threads in the process", &stat.num_threads)?;
    }
    if let Ok(count) = process.fd_count() {
        encoder.gauge("process_open_fds", "Number of open file descriptors", &count)?;
    }
    if let Ok(limits) = process.limits() {
        let help = "Maximum number of open file descriptors";
        encoder.gauge("process_max_fds", help, &limit(limits.max_open_files.soft_limit))?;
        let help = "Maximum amount of virtual memory available in bytes";
        encoder.gauge("process_virtual_memory_max_bytes", help, &limit(limits.max_address_space.soft_limit))?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::unnecessary_wraps, reason = "on Linux it can fail")]
fn encode_process(_: &mut Encoder<'_>) -> fmt::Result {
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "15 digits are enough of a metric")]
fn as_float(value: u64) -> f64 {
    value as f64
}

/// Encodes one family at a time. The names of counters are without `_total`, which the format adds.
struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(value, None)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        counts: impl IntoIterator<Item = (impl AsRef<str>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (value, count) in counts {
            let labels = [(label, value.as_ref())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn info(&mut self, name: &str, help: &str, labels: [(&str, &str); 1]) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn histogram(&mut self, name: &str, help: &str, sum: f64, buckets: &[(f64, u64)]) -> fmt::Result {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }
}

/// How long the turns of the loop took. Only the loop writes it: a lock could hold up the loop.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The last one is without an upper bound.
    buckets: [AtomicU64; TURN_BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Turns {
    fn record(&self, duration: Duration) {
        let add = |counter: &AtomicU64, n| counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = TURN_BOUNDS_US.partition_point(|bound| bound * 1000 < ns);
        add(&self.sum_ns, ns);
        add(&self.buckets[bucket], 1);
    }

    fn encode(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let bounds = TURN_BOUNDS_US.iter().map(|&bound| as_float(bound) / 1e6).chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let sum = as_float(self.sum_ns.load(Ordering::Relaxed)) / 1e9;
        let help = "Time from the end of a wait to the beginning of the next";
        encoder.histogram("ecoloop_turn_seconds", help, sum, &bounds.zip(counts).collect::<Vec<_>>())
    }
}

/// Times the turns of a server.
#[derive(Clone, Debug)]
pub(in super::super) struct TurnTimer {
    turns: Arc<Turns>,
    woke_at: Option<Instant>,
}

impl TurnTimer {
    pub(super) fn new(turns: Arc<Turns>) -> Self {
        Self { turns, woke_at: None }
    }

    /// The loop is about to wait.
    pub(in super::super) fn waiting(&mut self) {
        if let Some(woke_at) = self.woke_at {
            self.turns.record(woke_at.elapsed());
        }
    }

    /// The wait is over.
    pub(in super::super) fn woken(&mut self) {
        self.woke_at = Some(Instant::now());
    }
}
