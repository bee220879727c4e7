//! The report of a run: the JSON document `ecoloop.load/1`, how it is built and merged, and the thresholds that it is evaluated by.

mod build;
mod document;
mod histogram;
mod merge;
mod thresholds;

pub(crate) use self::build::{CpuTimes, Measured, Readings, build};
pub use self::document::{
    Connections, Ended, ErrorCount, Finding, FindingKind, Generator, Hold, Loop, Messages, Mode, Phases, Report,
    SCHEMA, Sample, ScheduleReport, ServerSide, Settings, Sockstat, Summary, ThresholdResult, Verdict, Verify,
};
pub use self::histogram::{Histogram, Percentile};
pub use self::merge::merge;
pub use self::thresholds::Threshold;
pub use super::error::{ErrorName, Phase};
