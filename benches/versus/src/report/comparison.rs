//! Comparison of the candidates of a workload: ratios and verdicts.

use ecoloop::load::statistics::{Estimate, median, ratios};
use serde::Serialize;

use super::{Candidate, WorkloadResult};
use crate::peers::ECOLOOP;
use crate::workloads::{Comparison, Metric};

/// Maximum width of the control interval; with a wider one the verdicts are unresolved.
const RESOLVED_WIDTH: f64 = 0.02;
/// Two sessions of the same servers differ by up to this share, which the interval over their rounds does not cover.
const RATIO_MARGIN: f64 = 0.01;
/// Ranges closer than this share are no difference.
const RANGE_MARGIN: f64 = 0.02;

/// How a candidate compares with ecoloop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Better,
    Worse,
    NoDifference,
    /// The control is too wide, or there are too few rounds.
    Unresolved,
}

/// The comparison of one candidate in one metric of one workload.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) workload: String,
    pub(crate) metric: String,
    pub(crate) name: String,
    pub(crate) value: Option<Estimate>,
    pub(crate) ratio_to_baseline: Option<Estimate>,
    pub(crate) ratio_to_ecoloop: Option<Estimate>,
    pub(crate) verdict: Option<Verdict>,
}

impl WorkloadResult {
    pub(super) fn candidate(&self, name: &str) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.name == name)
    }

    pub(super) fn ratio(&self, metric: &Metric, candidate: &Candidate, to: &str) -> Option<Estimate> {
        let to = self.candidate(to).filter(|_| metric.comparison == Comparison::Ratio)?;
        Estimate::of(&ratios(candidate.samples(metric), to.samples(metric)))
    }

    pub(crate) fn ratio_to_baseline(&self, metric: &Metric, candidate: &Candidate) -> Option<Estimate> {
        self.ratio(metric, candidate, &self.baseline)
    }

    /// Returns the interval of the ratio of the control to the baseline.
    pub(crate) fn control_interval(&self, metric: &Metric) -> Option<[f64; 2]> {
        let control = self.candidate(self.control.as_deref()?)?;
        self.ratio_to_baseline(metric, control)?.interval
    }

    /// Returns whether the control interval is narrow enough for verdicts.
    pub(crate) fn is_resolved(&self, metric: &Metric) -> bool {
        self.control_interval(metric).is_some_and(|[low, high]| high - low <= RESOLVED_WIDTH)
    }

    /// Returns the difference of the medians of control and baseline, as a share.
    fn control_difference(&self, metric: &Metric) -> Option<f64> {
        let median_of = |name: &str| median(&self.candidate(name)?.values(metric));
        let (control, baseline) = (median_of(self.control.as_deref()?)?, median_of(&self.baseline)?);
        Some((control / baseline - 1.0).abs()).filter(|difference| difference.is_finite())
    }

    pub(super) fn verdict(&self, metric: &Metric, candidate: &Candidate) -> Option<Verdict> {
        let ecoloop = self.candidate(ECOLOOP).filter(|ecoloop| ecoloop.name != candidate.name)?;
        let (is_lower, is_higher) = match metric.comparison {
            Comparison::None => return None,
            Comparison::Ratio => {
                let interval = self.ratio(metric, candidate, ECOLOOP).and_then(|ratio| ratio.interval);
                let control = self.control_interval(metric).filter(|_| self.is_resolved(metric));
                let (Some([low, high]), Some([control_low, control_high])) = (interval, control) else {
                    return Some(Verdict::Unresolved);
                };
                (high < control_low.min(1.0 - RATIO_MARGIN), low > control_high.max(1.0 + RATIO_MARGIN))
            }
            Comparison::Range => {
                let ([low, high], [ecoloop_low, ecoloop_high]) = (range(candidate, metric)?, range(ecoloop, metric)?);
                let margin = self.control_difference(metric).unwrap_or(0.0).max(RANGE_MARGIN);
                (high < ecoloop_low * (1.0 - margin), low > ecoloop_high * (1.0 + margin))
            }
        };
        Some(match (is_lower, is_higher) {
            (false, false) => Verdict::NoDifference,
            (is_lower, _) if is_lower == metric.lower_is_better => Verdict::Better,
            _ => Verdict::Worse,
        })
    }

    pub(super) fn summary(&self) -> impl Iterator<Item = Summary> {
        self.metrics.iter().flat_map(move |metric| {
            self.candidates.iter().map(move |candidate| Summary {
                workload: self.name.clone(),
                metric: metric.name.clone(),
                name: candidate.name.clone(),
                value: Estimate::of(&candidate.values(metric)),
                ratio_to_baseline: self.ratio_to_baseline(metric, candidate),
                ratio_to_ecoloop: self.ratio(metric, candidate, ECOLOOP),
                verdict: self.verdict(metric, candidate),
            })
        })
    }
}

/// Returns the minimum and the maximum over all rounds.
pub(super) fn range(candidate: &Candidate, metric: &Metric) -> Option<[f64; 2]> {
    let values = candidate.values(metric);
    let low = values.iter().copied().reduce(f64::min)?;
    Some([low, values.iter().copied().reduce(f64::max)?])
}
