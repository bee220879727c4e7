//! A distribution in a report.

use serde::{Deserialize, Serialize};

/// A distribution, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// Number of values.
    pub count: u64,
    /// Number of values that are the age of a message without a reply, at its timeout or when the measurement ended, or of an outage
    /// that lasts.
    pub censored: u64,
    /// Number of values over an hour, recorded as an hour.
    pub clipped: u64,
    /// The arithmetic mean.
    pub mean: Option<f64>,
    /// The median.
    pub p50: Option<u64>,
    /// The 90th percentile.
    pub p90: Option<u64>,
    /// The 95th percentile.
    pub p95: Option<u64>,
    /// The 99th percentile.
    pub p99: Option<u64>,
    /// The 99.9th percentile.
    pub p99_9: Option<u64>,
    /// The 99.99th percentile.
    pub p99_99: Option<u64>,
    /// The largest value.
    pub max: Option<u64>,
    /// The histogram: `HdrHistogram` V2, compressed, in base64.
    pub hdr_v2: Option<String>,
}

impl Summary {
    /// Returns the percentiles, in microseconds: each with the share of values, from 0 to 1, that it is not below, and its name.
    #[must_use]
    pub fn percentiles(&self) -> [(f64, &'static str, Option<u64>); 6] {
        [
            (0.5, "p50", self.p50),
            (0.9, "p90", self.p90),
            (0.95, "p95", self.p95),
            (0.99, "p99", self.p99),
            (0.999, "p99.9", self.p99_9),
            (0.9999, "p99.99", self.p99_99),
        ]
    }
}
