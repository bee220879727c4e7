//! The metric families of a server, and how they are collected at each scrape.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ecoloop::Handle;
use nix::errno::Errno;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::super::log::LostLines;
use super::encoder::{Encoder, as_float};

/// Upper bounds of the buckets of a turn's duration, in microseconds.
const TURN_BOUNDS_US: [u64; 19] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000,
];

/// What the metrics of a server are read from.
#[derive(Debug)]
pub(super) struct Families {
    handle: Handle,
    max_connections: u64,
    lost_lines: LostLines,
    turns: Arc<Turns>,
}

impl Families {
    /// Creates the metrics of the server behind `handle`, which has at most `max_connections` open.
    pub(super) fn new(handle: Handle, max_connections: usize, lost_lines: LostLines, turns: Arc<Turns>) -> Self {
        Self { handle, max_connections: max_connections as u64, lost_lines, turns }
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
        let mut encoder = Encoder::new(encoder);
        let stats = self.handle.stats();
        encoder.gauge("ecoloop_connections", "Open connections", &stats.open())?;
        let help = "Maximum number of open connections";
        encoder.gauge("ecoloop_max_connections", help, &self.max_connections)?;
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
        encoder.counters(
            "ecoloop_accept_errors",
            "Errors of accept(2), and of registering what it returned, by errno",
            "errno",
            errors,
        )?;
        self.turns.encode(&mut encoder)?;
        let help = "Log lines that standard output did not take";
        encoder.counter("ecoloop_log_lines_lost", help, &self.lost_lines.count())?;
        encoder.process()
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
