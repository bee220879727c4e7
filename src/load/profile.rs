//! A rate that changes over time, and when its integral reaches a number of events.

use std::fmt;
use std::time::Duration;

use super::timer::nanoseconds;

/// An event in units of the integral: rates are whole billionths of an event a second and times whole nanoseconds, so that the integral
/// of a ramp, which has a half, is a whole number.
const EVENT: u128 = 2_000_000_000_000_000_000;
/// The parts of a rate of one event a second.
const RATE_PARTS: f64 = 1e9;
const SECOND: f64 = 1e9;

/// A part of a run, in which the rate goes in a straight line from one value to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateStage {
    /// Rate at its beginning, over all connections, per second.
    pub from: f64,
    /// Rate at its end.
    pub to: f64,
    /// Its length.
    pub duration: Duration,
}

impl RateStage {
    /// Returns the mean rate, per second.
    #[must_use]
    pub fn mean(&self) -> f64 {
        f64::midpoint(self.from, self.to)
    }
}

impl fmt::Display for RateStage {
    /// Writes the stage as an option has it: `0..10000@30s`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, duration } = self;
        write!(formatter, "{from}..{to}@{}s", duration.as_secs_f64())
    }
}

/// Returns the mean rate of stages in a row, per second; `None` if there are none.
pub(super) fn mean_rate(stages: &[RateStage]) -> Option<f64> {
    let seconds: f64 = stages.iter().map(|stage| stage.duration.as_secs_f64()).sum();
    let events: f64 = stages.iter().map(|stage| stage.mean() * stage.duration.as_secs_f64()).sum();
    (!stages.is_empty()).then_some(events / seconds)
}

/// Stages in a row, of which one begins where the one before ends.
#[derive(Debug)]
pub(super) struct Profile {
    segments: Vec<Segment>,
}

#[derive(Debug)]
struct Segment {
    /// In nanoseconds from the beginning of the first one.
    start: u64,
    length: u64,
    /// Rates per second.
    from: f64,
    to: f64,
    /// The integral before it, and over it, in parts of [`EVENT`].
    before: u128,
    integral: u128,
}

impl Profile {
    /// # Panics
    ///
    /// - Debug builds: the stages were not validated, and last longer than 2⁵³ ns.
    pub(super) fn new(stages: &[RateStage]) -> Self {
        let (mut start, mut before) = (0, 0);
        let segment = |stage: &RateStage| {
            let length = nanoseconds(stage.duration);
            let integral = (rate_parts(stage.from) + rate_parts(stage.to)) * u128::from(length);
            let segment = Segment { start, length, from: stage.from, to: stage.to, before, integral };
            start += length;
            before += integral;
            segment
        };
        Self { segments: stages.iter().map(segment).collect() }
    }

    /// Returns when the integral reaches `event`, in nanoseconds from the beginning, or `u64::MAX` if it does not. Where the rate is 0,
    /// that is when it begins to rise again.
    pub(super) fn time_of(&self, event: u64) -> u64 {
        self.time_of_parts(u128::from(event) * EVENT)
    }

    /// Returns when the integral reaches `events`, which may be a fraction.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and below 2^64 events")]
    pub(super) fn time_of_fraction(&self, events: f64) -> u64 {
        let whole = events.trunc();
        self.time_of_parts(whole as u128 * EVENT + ((events - whole) * (RATE_PARTS * SECOND * 2.0)) as u128)
    }

    fn time_of_parts(&self, parts: u128) -> u64 {
        let index = self.segments.partition_point(|segment| segment.before + segment.integral <= parts);
        self.segments.get(index).map_or(u64::MAX, |segment| segment.start + segment.time_of(parts - segment.before))
    }

    /// Returns about how many events are due before `time`, in nanoseconds from the beginning.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate, below 2^53"
    )]
    pub(super) fn about_before(&self, time: u64) -> u64 {
        let index = self.segments.partition_point(|segment| segment.start <= time);
        let Some(segment) = index.checked_sub(1).and_then(|index| self.segments.get(index)) else { return 0 };
        let within = (time - segment.start).min(segment.length) as f64 / SECOND;
        let rise = (segment.to - segment.from) * within * SECOND / segment.length as f64;
        (events(segment.before) + (segment.from + rise / 2.0) * within).max(0.0) as u64
    }

    /// Returns the first boundary between two stages after `time`, in nanoseconds from the beginning, or `u64::MAX`.
    pub(super) fn boundary_after(&self, time: u64) -> u64 {
        let index = self.segments.partition_point(|segment| segment.start <= time);
        self.segments.get(index).map_or(u64::MAX, |segment| segment.start)
    }
}

impl Segment {
    /// Returns when the integral from its beginning reaches `parts`, which is less than all of it. Each of the two formulas adds positive
    /// numbers alone, so that no digit is lost where a ramp begins or ends at 0.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positive, and below 2^53 nanoseconds"
    )]
    fn time_of(&self, parts: u128) -> u64 {
        let length = self.length as f64;
        let slope = (self.to - self.from).abs() / length * SECOND;
        let time_after = |rate: f64, events: f64| {
            let sum = rate + (rate * rate + 2.0 * slope * events).sqrt();
            if sum > 0.0 { 2.0 * events / sum * SECOND } else { 0.0 }
        };
        let time = if self.to >= self.from {
            time_after(self.from, events(parts))
        } else {
            length - time_after(self.to, events(self.integral - parts))
        };
        // Rounded, and never into the next stage, which this event does not belong to.
        ((time + 0.5) as u64).min(self.length - 1)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and at most 1e18")]
fn rate_parts(rate: f64) -> u128 {
    (rate * RATE_PARTS).round() as u128
}

#[expect(clippy::cast_precision_loss, reason = "to 53 bits")]
fn events(parts: u128) -> f64 {
    parts as f64 / EVENT as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A fraction of whole numbers, whose denominator is positive.
    type Fraction = (i128, i128);

    /// Stages with rates in thousandths of an event a second, and lengths in milliseconds.
    #[derive(Clone, Debug)]
    struct Stages(Vec<(u32, u32, u32)>);

    impl Stages {
        fn profile(&self) -> Profile {
            let stage = |&(from, to, length): &(u32, u32, u32)| RateStage {
                from: f64::from(from) / 1000.0,
                to: f64::from(to) / 1000.0,
                duration: Duration::from_millis(length.into()),
            };
            Profile::new(&self.0.iter().map(stage).collect::<Vec<_>>())
        }

        /// Returns the integral from the beginning to `time`, as rational arithmetic has it: the area of the trapezoids.
        fn integral(&self, time: u64) -> Fraction {
            let (mut start, mut whole, mut cut) = (0_i128, 0_i128, (0, 1));
            for &(from, to, length) in &self.0 {
                let (from, to, length) = (i128::from(from), i128::from(to), i128::from(length) * 1_000_000);
                let within = (i128::from(time) - start).clamp(0, length);
                if within == length {
                    whole += (from + to) * length;
                } else if within > 0 {
                    cut = ((2 * from * length + (to - from) * within) * within, length);
                }
                start += length;
            }
            (whole * cut.1 + cut.0, cut.1 * 2_000_000_000_000)
        }

        fn end(&self) -> u64 {
            self.0.iter().map(|&(.., length)| u64::from(length) * 1_000_000).sum()
        }

        /// Returns the number of whole numbers from 0 that are below the integral to `time`.
        fn count_before(&self, time: u64) -> u64 {
            let (numerator, denominator) = self.integral(time);
            u64::try_from((numerator + denominator - 1) / denominator).unwrap_or(u64::MAX)
        }
    }

    fn any_stages() -> impl Strategy<Value = Stages> {
        let rate = prop_oneof![Just(0_u32), 1..5000_u32, 0..50_000_000_u32];
        proptest::collection::vec((rate.clone(), rate, 1..20_000_u32), 1..6)
            .prop_filter("a rate of 0", |stages| stages.iter().any(|stage| stage.0 + stage.1 > 0))
            .prop_map(Stages)
    }

    /// Returns whether the integral to `time` is at most `event`, or if `is_least` at least.
    fn compare((numerator, denominator): Fraction, event: u64, is_least: bool) -> bool {
        let event = i128::from(event) * denominator;
        if is_least { numerator >= event } else { numerator <= event }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

        #[test]
        fn an_event_is_due_where_the_integral_of_the_rate_reaches_its_number(
            stages in any_stages(), places in proptest::collection::vec(0.0..1.0_f64, 20),
        ) {
            let (profile, count) = (stages.profile(), stages.count_before(stages.end()));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let some = places.into_iter().map(|place| (place * count as f64) as u64);
            for event in some.chain([0, 1, count.saturating_sub(1)]).filter(|&event| event < count) {
                let time = profile.time_of(event);
                prop_assert!(time < stages.end(), "{event} of {count} at {time}");
                // To the nanosecond: the integral is not above the event's number one before, and not below it one after.
                prop_assert!(compare(stages.integral(time.saturating_sub(1)), event, false), "{event} at {time}");
                prop_assert!(compare(stages.integral(time + 1), event, true), "{event} at {time}");
            }
            prop_assert_eq!(profile.time_of(count), u64::MAX);
        }

        #[test]
        fn each_stage_has_the_events_that_its_integral_has(stages in any_stages()) {
            let profile = stages.profile();
            let mut end = 0;
            for &(.., length) in &stages.0 {
                end += u64::from(length) * 1_000_000;
                let count = stages.count_before(end);
                prop_assert!(profile.time_of(count) >= end);
                prop_assert!(count == 0 || profile.time_of(count - 1) < end);
                prop_assert!(profile.about_before(end).abs_diff(count) <= 1);
            }
        }
    }

    #[test]
    fn the_events_of_a_ramp_are_at_the_roots_of_its_integral() {
        let second = Duration::from_secs(1);
        let stage = |from, to, seconds| RateStage { from, to, duration: second * seconds };
        // 5 t^2, 10 a second, 10 t - 5 t^2.
        let profile = Profile::new(&[stage(0.0, 10.0, 1), stage(10.0, 10.0, 2), stage(10.0, 0.0, 1)]);
        let seconds = |event| Duration::from_nanos(profile.time_of(event)).as_secs_f64();
        for (event, expected) in [
            (0, 0.0),
            (1, 0.2_f64.sqrt()),
            (4, 0.8_f64.sqrt()),
            (5, 1.0),
            (6, 1.1),
            (24, 2.9),
            (25, 3.0),
            (26, 4.0 - 0.8_f64.sqrt()),
            (29, 4.0 - 0.2_f64.sqrt()),
        ] {
            assert!((seconds(event) - expected).abs() < 1.5e-9, "{event} at {}", seconds(event));
        }
        assert_eq!(profile.time_of(30), u64::MAX);
    }

    /// Rounding must not move an event to where another rate is.
    #[test]
    fn an_event_in_the_last_nanosecond_of_a_stage_stays_in_it() {
        let stage = |from, to, nanoseconds| RateStage { from, to, duration: Duration::from_nanos(nanoseconds) };
        // At 0, 3.33 and 6.67 ns; the next stage begins at 7 ns.
        let level = Profile::new(&[stage(3e8, 3e8, 7), stage(1e9, 1e9, 10)]);
        assert_eq!([0, 1, 2, 3].map(|event| level.time_of(event)), [0, 3, 6, 8]);
        // After t ns the integral is t/2 - t^2/40, which is 2.49 after 9.37 ns, and 2.5 at the end.
        let falling = Profile::new(&[stage(5e8, 0.0, 10)]);
        assert_eq!(falling.time_of_fraction(2.49), 9);
        assert_eq!(falling.time_of_fraction(2.499), 9);
    }

    #[test]
    fn nothing_is_due_while_the_rate_is_0() {
        let second = Duration::from_secs(1);
        let stage = |rate| RateStage { from: rate, to: rate, duration: second };
        let profile = Profile::new(&[stage(0.0), stage(2.0), stage(0.0), stage(2.0), stage(0.0)]);
        let times: Vec<_> = (0..5).map(|event| profile.time_of(event)).collect();
        assert_eq!(times, [1_000_000_000, 1_500_000_000, 3_000_000_000, 3_500_000_000, u64::MAX]);
    }

    #[test]
    fn the_mean_rate_is_weighted_by_time() {
        let stage = |from, to, seconds| RateStage { from, to, duration: Duration::from_secs(seconds) };
        assert_eq!(mean_rate(&[stage(0.0, 10.0, 10), stage(20.0, 20.0, 30)]), Some(16.25));
        assert_eq!(mean_rate(&[]), None);
    }

    #[test]
    fn a_stage_is_written_as_its_option() {
        let stage = RateStage { from: 0.0, to: 2500.5, duration: Duration::from_millis(1500) };
        assert_eq!(stage.to_string(), "0..2500.5@1.5s");
    }
}
