//! Metric families as text, and those of every process.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Encodes one family at a time. The names of counters are without `_total`, which the format adds.
pub(super) struct Encoder<'a>(DescriptorEncoder<'a>);

impl<'a> Encoder<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    #[cfg(feature = "load")]
    pub(super) fn gauges(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'static str, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, count) in values {
            family.encode_family(&[(label, value)])?.encode_gauge(&count)?;
        }
        Ok(())
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(value, None)
    }

    pub(super) fn counters(
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

    /// Encodes what every process of ecoloop has.
    pub(super) fn process(&mut self) -> fmt::Result {
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        let mut build = self.0.encode_descriptor("ecoloop_build", "Version of ecoloop", None, MetricType::Info)?;
        build.encode_info(&labels)?;
        encode_process(self)
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, sum: f64, buckets: &[(f64, u64)]) -> fmt::Result {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        family.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
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
pub(super) fn as_float(value: u64) -> f64 {
    value as f64
}
