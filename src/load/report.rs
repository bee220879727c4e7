//! The report of a run, which is the JSON document `ecoloop.load/1`; the thresholds that fail it; and the merge of several.

mod build;
mod display;
mod document;
mod faults;
mod fields;
mod findings;
mod histogram;
mod merge;
mod origin;
mod outages;
mod ranks;
mod search;
mod stages;
mod summary;
mod thresholds;

pub(crate) use self::build::{CpuTimes, Measured, Readings, build};
#[cfg(test)]
pub(in crate::load) use self::document::tests::example as example_report;
pub use self::document::{
    ClosedAfter, Connections, Ended, ErrorCount, Figures, Generator, Hold, Loop, Messages, Mode, Phases, Report,
    SCHEMA, Sample, ScheduleReport, ServerSide, Settings, Sockstat, SourceFigures, TargetCount, TargetFigures,
    ThresholdResult, Verdict,
};
pub use self::faults::FaultFigures;
pub use self::findings::{Excerpt, Finding, FindingKind, Verify};
pub use self::histogram::{Histogram, Percentile};
pub use self::merge::{merge, merge_ranks};
pub(in crate::load) use self::merge::{merge_errors, merge_verify};
pub use self::origin::{Options, Origin};
pub use self::outages::Outages;
#[doc(hidden)]
pub use self::ranks::check_ranks;
pub use self::search::{LimitedBy, Probe, SearchReport};
pub use self::stages::StageFigures;
pub(in crate::load) use self::stages::shape;
pub use self::summary::Summary;
pub use self::thresholds::Threshold;
pub(in crate::load) use self::thresholds::{Quantity, check_stages, evaluate};
pub use super::error::{ErrorName, Phase};
