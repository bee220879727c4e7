//! How the events of an open loop follow each other.

use serde::{Deserialize, Serialize};

use crate::splitmix::splitmix64;

/// Number of the random numbers that are drawn, of 53 bits.
const DRAWS: f64 = 9_007_199_254_740_992.0;

/// How the messages of an open loop follow each other, or in [`Mode::Churn`](super::Mode::Churn) the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ArrivalProcess {
    /// Evenly: one each `1 / rate`.
    #[default]
    Even,
    /// As those of many clients who do not know of each other: a Poisson process, whose inter-arrival times are exponential.
    Poisson,
}

impl ArrivalProcess {
    /// Returns the name that the option and the report use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Even => "even",
            Self::Poisson => "poisson",
        }
    }
}

/// The events of a Poisson process of rate 1, drawn from a seed.
#[derive(Clone, Debug)]
pub(super) struct Poisson {
    seed: u64,
    drawn: u64,
    time: f64,
}

impl Poisson {
    /// Creates the process of a window: each has other events.
    pub(super) fn new(seed: u64, window: u64) -> Self {
        Self { seed: splitmix64(seed ^ splitmix64(window)), drawn: 0, time: 0.0 }
    }

    /// Passes `count` events, and returns the time of the last one.
    pub(super) fn skip(&mut self, count: u64) -> f64 {
        for _ in 0..count {
            self.time += self.exponential();
        }
        self.time
    }

    /// Returns a number of the exponential distribution with mean 1, by the inverse of its distribution function.
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    fn exponential(&mut self) -> f64 {
        let random = splitmix64(self.seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        self.drawn += 1;
        // From above 0 to 1: the logarithm of 0 has no value.
        -(((random >> 11) + 1) as f64 / DRAWS).ln()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ArrivalProcess;
    use crate::load::profile::RateStage;
    use crate::load::rank::Rank;
    use crate::load::schedule::{Events, Pace};
    use crate::splitmix::splitmix64;

    const EVENTS: usize = 20_000;

    /// Returns the statistic of Kolmogorov and Smirnov, the largest difference between the empirical distribution function and the
    /// exponential one of mean 1, times the square root of the number of values.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand values")]
    fn kolmogorov_smirnov(mut values: Vec<f64>) -> f64 {
        values.sort_unstable_by(f64::total_cmp);
        let count = values.len() as f64;
        let distances = values.iter().enumerate().map(|(index, value)| {
            let expected = 1.0 - (-value).exp();
            (expected - index as f64 / count).max((index + 1) as f64 / count - expected)
        });
        distances.fold(0.0, f64::max) * count.sqrt()
    }

    /// Below it are 99 of 100 samples of the distribution.
    const CRITICAL_VALUE: f64 = 1.628;

    fn times(mut events: Events) -> Vec<f64> {
        let next = || {
            let due = events.due();
            events.advance();
            (due < u64::MAX).then(|| Duration::from_nanos(due).as_secs_f64())
        };
        std::iter::from_fn(next).take(EVENTS).collect()
    }

    fn differences(times: &[f64]) -> Vec<f64> {
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    #[test]
    fn inter_arrival_times_of_a_poisson_process_are_exponential() {
        const RATE: f64 = 1000.0;
        for seed in 0..5 {
            let times = times(Events::poisson(Pace::new(0, RATE, Rank::ALONE), seed, 1));
            let gaps: Vec<_> = differences(&times).into_iter().map(|gap| gap * RATE).collect();
            assert_eq!(gaps.len(), EVENTS - 1);
            let statistic = kolmogorov_smirnov(gaps.clone());
            assert!(statistic < CRITICAL_VALUE, "seed {seed}: {statistic}");
            // Nor does a gap say anything about the next one: the sum of a pair would have another distribution.
            let pairs = gaps.chunks_exact(2).map(|pair| pair[0] + pair[1]);
            let statistic = kolmogorov_smirnov(pairs.map(|sum| -((-sum).exp() * (1.0 + sum)).ln()).collect());
            assert!(statistic < CRITICAL_VALUE, "seed {seed}, pairs: {statistic}");
        }
    }

    #[test]
    fn inter_arrival_times_of_even_events_are_not_exponential() {
        let gaps = differences(&times(Events::even(Pace::new(0, 1.0, Rank::ALONE))));
        assert!(kolmogorov_smirnov(gaps) > 10.0 * CRITICAL_VALUE);
    }

    #[test]
    fn a_rank_has_every_nth_event_of_the_process() {
        // The time between every third event is the sum of three: its distribution is that of Erlang.
        let rank = Rank { index: 1, count: 3 };
        let gaps = differences(&times(Events::poisson(Pace::new(0, 1.0, rank), 1, 1)));
        let distribution = |gap: f64| 1.0 - (-gap).exp() * (1.0 + gap + gap * gap / 2.0);
        let statistic = kolmogorov_smirnov(gaps.into_iter().map(|gap| -(1.0 - distribution(gap)).ln()).collect());
        assert!(statistic < CRITICAL_VALUE, "{statistic}");
    }

    /// The integral of the rate between two events has the distribution that the time has where the rate is 1.
    #[test]
    fn in_stages_the_integral_of_the_rate_between_two_events_is_exponential() {
        let stage = |from, to, seconds| RateStage { from, to, duration: Duration::from_secs(seconds) };
        let stages = [stage(0.0, 3000.0, 4), stage(1000.0, 1000.0, 3), stage(3000.0, 100.0, 4)];
        let integral = |time: f64| {
            let (mut begin, mut sum) = (0.0, 0.0);
            for RateStage { from, to, duration } in &stages {
                let within = (time - begin).clamp(0.0, duration.as_secs_f64());
                sum += from * within + (to - from) * within * within / 2.0 / duration.as_secs_f64();
                begin += duration.as_secs_f64();
            }
            sum
        };
        let times = times(Events::poisson(Pace::of_stages(0, &stages, Rank::ALONE), 1, 1));
        // The expected number is 15,200, and the bounds are four standard deviations from it.
        assert!((14_707..15_693).contains(&times.len()), "{}", times.len());
        let gaps = differences(&times.iter().map(|&time| integral(time)).collect::<Vec<_>>());
        let statistic = kolmogorov_smirnov(gaps);
        assert!(statistic < CRITICAL_VALUE, "{statistic}");
    }

    #[test]
    fn the_longest_inter_arrival_time_is_finite() {
        // Of this seed, the first random number is 0.
        const SEED: u64 = 0x54d4_c25c_bd4e_4134;
        assert_eq!(splitmix64(splitmix64(SEED ^ splitmix64(1))), 0);
        let times = times(Events::poisson(Pace::new(0, 1.0, Rank::ALONE), SEED, 1));
        assert_eq!(times.len(), EVENTS);
        // The smallest of 2^53 draws.
        assert!((times[0] - 53.0 * std::f64::consts::LN_2).abs() < 1e-8, "{}", times[0]);
    }

    #[test]
    fn the_seed_and_the_window_decide() {
        let times = |seed, window| times(Events::poisson(Pace::new(0, 1.0, Rank::ALONE), seed, window));
        assert_eq!(times(1, 1), times(1, 1));
        assert!(times(1, 1) != times(2, 1) && times(1, 1) != times(1, 2) && times(1, 2) != times(2, 1));
    }

    #[test]
    fn a_report_calls_each_process_by_its_name() {
        for process in [ArrivalProcess::Even, ArrivalProcess::Poisson] {
            assert_eq!(serde_json::to_value(process).ok(), Some(process.name().into()));
        }
    }
}
