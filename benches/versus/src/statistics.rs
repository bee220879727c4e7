//! Medians, and what is known of them.

use serde::Serialize;

/// A median, and where that of all slices there could be lies with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    /// None where there are too few samples to say.
    pub(crate) interval: Option<[f64; 2]>,
}

impl Estimate {
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let interval = interval_rank(sorted.len()).map(|rank| [sorted[rank - 1], sorted[sorted.len() - rank]]);
        Some(Self { median: median(samples)?, interval })
    }
}

pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let sorted = sorted(samples);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) } else { upper })
}

/// The quotient of two servers in each round that both have.
pub(crate) fn ratios(numerators: &[Option<f64>], denominators: &[Option<f64>]) -> Vec<f64> {
    let pairs = numerators.iter().zip(denominators).filter_map(|(a, b)| Some((*a)? / (*b)?));
    pairs.filter(|ratio| ratio.is_finite()).collect()
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The rank whose value, with that of the same rank from above, encloses the median in at least 95 % of all cases, whatever
/// the distribution: how many of `count` samples lie below their median is a matter of tossing a coin.
fn interval_rank(count: usize) -> Option<usize> {
    let mut probability = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut tail = 0.0;
    let mut rank = 0;
    // `probability` is that of exactly `rank` samples below the median.
    while rank < count {
        tail += probability;
        if tail > 0.025 {
            break;
        }
        rank += 1;
        #[expect(clippy::cast_precision_loss, reason = "a count of rounds")]
        let step = (count + 1 - rank) as f64 / rank as f64;
        probability *= step;
    }
    (rank > 0).then_some(rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    /// The ranks that tables of the sign test give.
    #[test]
    fn the_interval_has_the_ranks_of_the_sign_test() {
        for (count, rank) in [(5, None), (6, Some(1)), (9, Some(2)), (15, Some(4)), (20, Some(6)), (100, Some(40))] {
            assert_eq!(interval_rank(count), rank, "{count}");
        }
        let samples: Vec<f64> = (1..=15).map(f64::from).collect();
        assert_eq!(Estimate::of(&samples), Some(Estimate { median: 8.0, interval: Some([4.0, 12.0]) }));
        assert_eq!(Estimate::of(&samples[..5]), Some(Estimate { median: 3.0, interval: None }));
    }

    #[test]
    fn the_interval_holds_the_median_as_often_as_it_says() {
        let mut random = fastrand::Rng::with_seed(1);
        let held = (0..4000).filter(|_| {
            // Skewed, as times are: the median of -ln(u) is ln 2.
            let samples: Vec<f64> = (0..15).map(|_| -(1.0 - random.f64()).ln()).collect();
            let interval = Estimate::of(&samples).and_then(|estimate| estimate.interval);
            interval.is_some_and(|[low, high]| (low..=high).contains(&2_f64.ln()))
        });
        let held = held.count();
        // 96.5 % is expected; this is five standard deviations to each side.
        assert!((3800..=3920).contains(&held), "{held} of 4000");
    }

    #[test]
    fn a_ratio_needs_both() {
        let ratios = ratios(&[Some(2.0), None, Some(3.0), Some(1.0)], &[Some(1.0), Some(1.0), None, Some(0.0)]);
        assert_eq!(ratios, [2.0]);
    }
}
