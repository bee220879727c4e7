//! How the candidates of a workload compare: ratios, and a verdict on each.

use serde::Serialize;

use super::{Contestant, Measured};
use crate::peers::OURS;
use crate::statistics::{Estimate, median, ratios};
use crate::workloads::{Comparison, Figure};

/// A control that is less sure than this says nothing of anybody.
const RESOLVED_WIDTH: f64 = 0.02;
/// By so much two sittings of the same servers differ, of which an interval knows little.
const RATIO_MARGIN: f64 = 0.01;
/// Ranges that are closer are called equal.
const RANGE_MARGIN: f64 = 0.02;
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Better,
    Worse,
    NoDifference,
    /// The control is too wide, or there are too few rounds.
    Unresolved,
}

/// What is said of one peer in one figure of one workload.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) workload: String,
    pub(crate) figure: String,
    pub(crate) name: String,
    pub(crate) value: Option<Estimate>,
    pub(crate) to_baseline: Option<Estimate>,
    /// The ratio to ecoloop.
    pub(crate) to_ours: Option<Estimate>,
    /// Beside ecoloop.
    pub(crate) verdict: Option<Verdict>,
}

impl Measured {
    pub(super) fn contestant(&self, name: &str) -> Option<&Contestant> {
        self.contestants.iter().find(|contestant| contestant.name == name)
    }

    pub(super) fn ratio(&self, figure: &Figure, contestant: &Contestant, to: &str) -> Option<Estimate> {
        let to = self.contestant(to).filter(|_| figure.comparison == Comparison::Ratio)?;
        Estimate::of(&ratios(contestant.of(figure), to.of(figure)))
    }

    pub(crate) fn to_baseline(&self, figure: &Figure, contestant: &Contestant) -> Option<Estimate> {
        self.ratio(figure, contestant, &self.baseline)
    }

    /// Where the ratio of two copies of one server lies.
    pub(crate) fn control_interval(&self, figure: &Figure) -> Option<[f64; 2]> {
        let control = self.contestant(self.control.as_deref()?)?;
        self.to_baseline(figure, control)?.interval
    }

    pub(crate) fn is_resolved(&self, figure: &Figure) -> bool {
        self.control_interval(figure).is_some_and(|[low, high]| high - low <= RESOLVED_WIDTH)
    }

    /// How far the medians of two copies of one server are from each other, as a share.
    fn control_difference(&self, figure: &Figure) -> Option<f64> {
        let median_of = |name: &str| median(&self.contestant(name)?.values(figure));
        let (control, floor) = (median_of(self.control.as_deref()?)?, median_of(&self.baseline)?);
        Some((control / floor - 1.0).abs()).filter(|difference| difference.is_finite())
    }

    pub(super) fn verdict(&self, figure: &Figure, contestant: &Contestant) -> Option<Verdict> {
        let ours = self.contestant(OURS).filter(|ours| ours.name != contestant.name)?;
        let (is_less, is_more) = match figure.comparison {
            Comparison::None => return None,
            Comparison::Ratio => {
                let interval = self.ratio(figure, contestant, OURS).and_then(|ratio| ratio.interval);
                let control = self.control_interval(figure).filter(|_| self.is_resolved(figure));
                let (Some([low, high]), Some([control_low, control_high])) = (interval, control) else {
                    return Some(Verdict::Unresolved);
                };
                (high < control_low.min(1.0 - RATIO_MARGIN), low > control_high.max(1.0 + RATIO_MARGIN))
            }
            Comparison::Range => {
                let ([low, high], [our_low, our_high]) = (range(contestant, figure)?, range(ours, figure)?);
                let margin = self.control_difference(figure).unwrap_or(0.0).max(RANGE_MARGIN);
                (high < our_low * (1.0 - margin), low > our_high * (1.0 + margin))
            }
        };
        Some(match (is_less, is_more) {
            (false, false) => Verdict::NoDifference,
            (is_less, _) if is_less == figure.less_is_better => Verdict::Better,
            _ => Verdict::Worse,
        })
    }

    pub(super) fn summary(&self) -> impl Iterator<Item = Summary> {
        self.figures.iter().flat_map(move |figure| {
            self.contestants.iter().map(move |contestant| Summary {
                workload: self.name.clone(),
                figure: figure.name.clone(),
                name: contestant.name.clone(),
                value: Estimate::of(&contestant.values(figure)),
                to_baseline: self.to_baseline(figure, contestant),
                to_ours: self.ratio(figure, contestant, OURS),
                verdict: self.verdict(figure, contestant),
            })
        })
    }
}

pub(super) fn range(contestant: &Contestant, figure: &Figure) -> Option<[f64; 2]> {
    let values = contestant.values(figure);
    let low = values.iter().copied().reduce(f64::min)?;
    Some([low, values.iter().copied().reduce(f64::max)?])
}
