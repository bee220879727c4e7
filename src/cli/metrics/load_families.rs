//! The metric families of a load, and how they are collected at each scrape.

use std::fmt;

use ecoloop::load::{Progress, Step};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::encoder::{Encoder, as_float};

/// What the metrics of a load are read from.
pub(super) struct LoadFamilies<F>(F);

impl<F: Fn() -> Option<Progress>> LoadFamilies<F> {
    /// Creates those of the progress that `latest` returns.
    pub(super) fn new(latest: F) -> Self {
        Self(latest)
    }
}

impl<F> fmt::Debug for LoadFamilies<F> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("LoadFamilies").finish_non_exhaustive()
    }
}

impl<F: Fn() -> Option<Progress> + Send + Sync + 'static> Collector for LoadFamilies<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encoder = Encoder::new(encoder);
        if let Some(progress) = (self.0)() {
            encode_progress(&mut encoder, &progress)?;
        }
        encoder.process()
    }
}

fn encode_progress(encoder: &mut Encoder<'_>, progress: &Progress) -> fmt::Result {
    let steps = Step::ALL.iter().map(|&step| (step.name(), u64::from(step == progress.step)));
    encoder.gauges("ecoloop_load_step", "Step of the run: 1 for the current one", "step", steps)?;
    encoder.gauge("ecoloop_load_connections", "Open connections", &progress.open)?;
    encoder.gauge("ecoloop_load_connections_requested", "Connections to hold open", &progress.requested)?;
    encoder.counter("ecoloop_load_connections_opened", "Connects that began or could not begin", &progress.opened)?;
    let messages = progress.messages;
    encoder.counter("ecoloop_load_messages_due", "Messages whose scheduled time came", &messages.due)?;
    let outcomes = [
        ("verified", messages.verified),
        ("unanswered", messages.unanswered),
        ("unsent", messages.unsent),
        ("failed", messages.failed),
    ];
    encoder.counters("ecoloop_load_messages", "Messages, by outcome", "outcome", outcomes)?;
    let help = "Messages that waited because the pipeline or the socket was full";
    encoder.counter("ecoloop_load_messages_deferred", help, &messages.deferred)?;
    encoder.counter("ecoloop_load_errors", "Errors of connections", &progress.errors)?;
    for (name, help, microseconds) in [
        ("ecoloop_load_latency_p50_seconds", "Median latency of the last second", progress.p50),
        ("ecoloop_load_latency_p99_seconds", "99th percentile of the latency of the last second", progress.p99),
    ] {
        if let Some(microseconds) = microseconds {
            encoder.gauge(name, help, &(as_float(microseconds) / 1e6))?;
        }
    }
    Ok(())
}
