//! Medians of windows, their confidence intervals, and ratios.

use std::f64::consts::LN_2;

use serde::Serialize;

/// A sample median, and how certain it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The sample median.
    pub median: f64,
    /// The 95% confidence interval of the population median; `None` with fewer than six samples.
    pub interval: Option<[f64; 2]>,
}

impl Estimate {
    /// Returns the estimate from `samples`, or `None` if there are none.
    #[must_use]
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let interval = interval_rank(sorted.len()).map(|rank| [sorted[rank - 1], sorted[sorted.len() - rank]]);
        Some(Self { median: median(samples)?, interval })
    }
}

/// Samples below which a side has no interval: of five on each side, all of one are above the other's too often by chance.
pub const SAMPLES_MIN: usize = 6;
/// Number of resamples of a bootstrap.
const RESAMPLES: usize = 1000;

/// The ratio of two medians, and how certain it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The ratio of the sample medians.
    pub value: f64,
    /// Its bootstrap confidence interval; `None` if a side has fewer than [`SAMPLES_MIN`] samples.
    pub interval: Option<[f64; 2]>,
}

impl Ratio {
    /// Returns the ratio of the median of `new` to that of `old`, or `None` if one of them has no samples, or the ratio no value.
    ///
    /// Both sides are resampled with replacement, independently of each other: no distribution of the samples is assumed. The same
    /// samples have the same interval. `confidence` is a share, such as 0.95.
    ///
    /// # Examples
    ///
    /// ```
    /// use ecoloop::load::statistics::Ratio;
    ///
    /// let old = [100.0, 101.0, 99.0, 100.0, 100.0, 102.0];
    /// let new = old.map(|sample| sample * 1.5);
    /// let ratio = Ratio::of_medians(&old, &new, 0.95).unwrap();
    /// assert_eq!(ratio.value, 1.5);
    /// assert!(ratio.interval.unwrap()[0] > 1.4);
    /// ```
    #[must_use]
    pub fn of_medians(old: &[f64], new: &[f64], confidence: f64) -> Option<Self> {
        let value = Some(median(new)? / median(old)?).filter(|ratio| ratio.is_finite())?;
        if old.len().min(new.len()) < SAMPLES_MIN {
            return Some(Self { value, interval: None });
        }
        let mut random = fastrand::Rng::with_seed(1);
        let mut resamples = [Vec::with_capacity(old.len()), Vec::with_capacity(new.len())];
        let mut resampled_median = |samples: &[f64], at: usize| {
            resamples[at].clear();
            resamples[at].extend((0..samples.len()).map(|_| samples[random.usize(..samples.len())]));
            median_of(&mut resamples[at])
        };
        let mut ratios: Vec<_> = (0..RESAMPLES).map(|_| resampled_median(new, 1) / resampled_median(old, 0)).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below the number of resamples"
        )]
        let tail = ((1.0 - confidence) / 2.0 * RESAMPLES as f64) as usize;
        // A median of 0 in the denominator has no ratio.
        let interval =
            Some([ratios[tail], ratios[RESAMPLES - 1 - tail]]).filter(|ends| ends.iter().all(|end| end.is_finite()));
        Some(Self { value, interval })
    }
}

/// Returns the median, or `None` if there are no samples.
///
/// # Examples
///
/// ```
/// use ecoloop::load::statistics::median;
///
/// assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
/// ```
#[doc(hidden)]
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    if samples.is_empty() { None } else { Some(median_of(&mut samples.to_vec())) }
}

/// Returns the median of samples, of which there is one at least, and reorders them.
fn median_of(samples: &mut [f64]) -> f64 {
    let is_even = samples.len().is_multiple_of(2);
    let (below, &mut upper, _) = samples.select_nth_unstable_by(samples.len() / 2, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp).filter(|_| is_even);
    lower.map_or(upper, |lower| f64::midpoint(lower, upper))
}

/// Returns the ratio in each round that has both samples.
#[doc(hidden)]
#[must_use]
pub fn ratios(numerators: &[Option<f64>], denominators: &[Option<f64>]) -> Vec<f64> {
    let pairs = numerators.iter().zip(denominators).filter_map(|(a, b)| Some((*a)? / (*b)?));
    pairs.filter(|ratio| ratio.is_finite()).collect()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// Returns the rank of the order statistics, from below and from above, that bound the median with at least 95% confidence.
/// The number of samples below the median is binomial with p = 0.5, so no distribution of the samples is assumed.
fn interval_rank(count: usize) -> Option<usize> {
    #[expect(clippy::cast_precision_loss, reason = "a count of samples")]
    let number = |count: usize| count as f64;
    // The logarithm of the probability of exactly `rank` samples below the median: a float has no 0.5^1075.
    let mut log_probability = -number(count) * LN_2;
    let mut tail = 0.0;
    let mut rank = 0;
    loop {
        tail += log_probability.exp();
        if tail > 0.025 {
            break;
        }
        rank += 1;
        log_probability += (number(count + 1 - rank) / number(rank)).ln();
    }
    (rank > 0).then_some(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_count_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    /// The expected ranks are from tables of the sign test, and those above 100 from the exact sums of binomial coefficients.
    #[test]
    fn interval_has_the_ranks_of_the_sign_test() {
        let few = [(0, None), (5, None), (6, Some(1)), (9, Some(2)), (15, Some(4)), (20, Some(6)), (100, Some(40))];
        let many = [(1074, Some(505)), (1075, Some(505)), (2000, Some(956)), (10_000, Some(4902))];
        for (count, rank) in few.into_iter().chain(many) {
            assert_eq!(interval_rank(count), rank, "{count}");
        }
        let samples: Vec<f64> = (1..=15).map(f64::from).collect();
        assert_eq!(Estimate::of(&samples), Some(Estimate { median: 8.0, interval: Some([4.0, 12.0]) }));
        assert_eq!(Estimate::of(&samples[..5]), Some(Estimate { median: 3.0, interval: None }));
    }

    #[test]
    fn interval_covers_the_median_in_95_percent_of_trials() {
        let mut random = fastrand::Rng::with_seed(1);
        let covered = (0..4000).filter(|_| {
            // A skewed distribution, as times have: the median of -ln(u) is ln 2.
            let samples: Vec<f64> = (0..15).map(|_| -(1.0 - random.f64()).ln()).collect();
            let interval = Estimate::of(&samples).and_then(|estimate| estimate.interval);
            interval.is_some_and(|[low, high]| (low..=high).contains(&2_f64.ln()))
        });
        let covered = covered.count();
        // The expected coverage is 96.5%; the bounds are five standard deviations from it.
        assert!((3800..=3920).contains(&covered), "{covered} of 4000");
    }

    /// The median of 15 values drawn from 1 to 15 is at most k with the probability that of 15 draws 8 or more are: 0.4%, 2.6%, 8.8%,
    /// 21.3% and 39.6% for k from 3 to 7.
    #[test]
    fn interval_of_a_ratio_has_the_quantiles_of_resampled_medians() {
        let samples: Vec<f64> = (1..=15).map(f64::from).collect();
        let interval =
            |confidence| Ratio::of_medians(&[1.0; 15], &samples, confidence).and_then(|ratio| ratio.interval);
        for (confidence, low) in [(0.98, 4.0), (0.9, 5.0), (0.7, 6.0), (0.4, 7.0)] {
            assert_eq!(interval(confidence), Some([low, 16.0 - low]), "{confidence}");
        }
        // Less than one of the resamples is outside: the interval has them all.
        assert!(interval(0.9999).is_some_and(|[low, high]| low < 4.0 && high > 12.0));
    }

    #[test]
    fn ratio_of_fewer_than_six_samples_has_no_interval() {
        let has_interval =
            |old: &[f64], new: &[f64]| Ratio::of_medians(old, new, 0.95).map(|ratio| ratio.interval.is_some());
        assert_eq!(has_interval(&[1.0; 6], &[2.0; 6]), Some(true));
        assert_eq!(has_interval(&[1.0; 5], &[2.0; 6]), Some(false));
        assert_eq!(has_interval(&[1.0; 6], &[2.0; 5]), Some(false));
    }

    #[test]
    fn ratios_skip_rounds_without_both_samples() {
        let ratios = ratios(&[Some(2.0), None, Some(3.0), Some(1.0)], &[Some(1.0), Some(1.0), None, Some(0.0)]);
        assert_eq!(ratios, [2.0]);
    }
}
