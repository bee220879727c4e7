//! When the events of a schedule are due, and which of them are those of a rank.

use std::sync::Arc;

use crate::load::arrivals::Poisson;
use crate::load::profile::{Profile, RateStage};
use crate::load::rank::Rank;

const SECOND: f64 = 1e9;

/// The times at which the events of all ranks are due, of which each rank has every Nth.
#[derive(Clone, Debug)]
pub(in crate::load) struct Pace {
    start: u64,
    rank: Rank,
    rate: Rate,
}

#[derive(Clone, Debug)]
enum Rate {
    /// Event `n` of all ranks is due at `start + n * interval`.
    Constant {
        interval: f64,
    },
    Stages(Arc<Profile>),
}

impl Pace {
    /// Begins at `start`, with `rate` events a second over all ranks, of which this is `rank`.
    pub(in crate::load) fn new(start: u64, rate: f64, rank: Rank) -> Self {
        Self { start, rank, rate: Rate::Constant { interval: SECOND / rate } }
    }

    /// Begins at `start` with the first of `stages`.
    pub(in crate::load) fn of_stages(start: u64, stages: &[RateStage], rank: Rank) -> Self {
        Self { start, rank, rate: Rate::Stages(Arc::new(Profile::new(stages))) }
    }

    /// Begins anew at `start`, with the first event.
    pub(in crate::load) fn restart(&mut self, start: u64) {
        self.start = start;
    }

    /// Returns when event `event` of this rank is due, or `u64::MAX` if it is not.
    #[inline]
    pub(in crate::load) fn time_of(&self, event: u64) -> u64 {
        let event = self.rank.nth(event);
        #[expect(clippy::cast_precision_loss, reason = "below 2^53 events")]
        match &self.rate {
            Rate::Constant { interval } => self.after(event as f64 * interval),
            Rate::Stages(profile) => self.start.saturating_add(profile.time_of(event)),
        }
    }

    /// Returns when the integral of the rate reaches `events`.
    fn time_of_fraction(&self, events: f64) -> u64 {
        match &self.rate {
            Rate::Constant { interval } => self.after(events * interval),
            Rate::Stages(profile) => self.start.saturating_add(profile.time_of_fraction(events)),
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^53 nanoseconds, which is a hundred days"
    )]
    fn after(&self, nanoseconds: f64) -> u64 {
        // Rounded: 1,800 events at 900 a second take 2 s, and 1.999999999 s in floats.
        self.start.saturating_add((nanoseconds + 0.5) as u64)
    }

    /// Returns the first event of this rank that is due at `time` or later.
    fn first_from(&self, time: u64) -> u64 {
        let elapsed = time.saturating_sub(self.start);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "below 2^53 nanoseconds, which is a hundred days"
        )]
        let about = match &self.rate {
            Rate::Constant { interval } => (elapsed as f64 / interval) as u64,
            Rate::Stages(profile) => profile.about_before(elapsed),
        };
        // The rounding of `time_of` decides, so that every event is on one side of `time`.
        ((about / u64::from(self.rank.count)).saturating_sub(1)..u64::MAX)
            .find(|&event| self.time_of(event) >= time)
            .unwrap_or(u64::MAX)
    }

    /// Returns when the stage ends that `time` is in, or `u64::MAX`.
    fn stage_end(&self, time: u64) -> u64 {
        match &self.rate {
            Rate::Constant { .. } => u64::MAX,
            Rate::Stages(profile) => self.start.saturating_add(profile.boundary_after(time.saturating_sub(self.start))),
        }
    }
}

/// Goes through the events of a rank in their order.
#[derive(Clone, Debug)]
pub(in crate::load) struct Events {
    pace: Pace,
    /// The next event.
    next: u64,
    /// When it is due.
    due: u64,
    /// Events do not follow each other evenly.
    poisson: Option<Poisson>,
}

impl Events {
    /// Goes through events that follow each other evenly, as far as the rate does not change.
    pub(in crate::load) fn even(pace: Pace) -> Self {
        Self { due: pace.time_of(0), pace, next: 0, poisson: None }
    }

    /// Goes through the events of a Poisson process: every Nth of the process that all ranks draw from the same seed, for the same
    /// window. So all ranks together have the events that one generator would have.
    pub(in crate::load) fn poisson(pace: Pace, seed: u64, window: u64) -> Self {
        let mut poisson = Poisson::new(seed, window);
        let first = poisson.skip(u64::from(pace.rank.index) + 1);
        Self { due: pace.time_of_fraction(first), pace, next: 0, poisson: Some(poisson) }
    }

    /// Returns the number of the next event.
    #[inline]
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Returns when the next event is due.
    #[inline]
    pub(in crate::load) fn due(&self) -> u64 {
        self.due
    }

    /// Returns when event `event` is due, if they follow each other evenly.
    #[inline]
    pub(super) fn time_of(&self, event: u64) -> u64 {
        self.pace.time_of(event)
    }

    /// Goes on to the event after the next one.
    #[inline]
    pub(in crate::load) fn advance(&mut self) {
        self.next += 1;
        self.due = match &mut self.poisson {
            None => self.pace.time_of(self.next),
            Some(poisson) => self.pace.time_of_fraction(poisson.skip(self.pace.rank.count.into())),
        };
    }

    /// Goes on to the first event after the next one that is due at `time` or later, or that is `most` events away. Returns how many
    /// events it has passed.
    pub(super) fn advance_to(&mut self, time: u64, most: u64) -> u64 {
        let begin = self.next;
        if self.poisson.is_some() {
            self.advance();
            while self.due < time && self.next - begin < most {
                self.advance();
            }
        } else {
            self.next = self.pace.first_from(time).min(begin.saturating_add(most)).max(begin + 1);
            self.due = self.pace.time_of(self.next);
        }
        self.next - begin
    }

    /// Returns when the stage ends that the next event is in, or `u64::MAX`.
    pub(super) fn stage_end(&self) -> u64 {
        self.pace.stage_end(self.due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_event_is_on_one_side_of_a_time() {
        for rate in [3.0, 777.0, 10_000.0, 1e9 / 7.0] {
            let pace = Pace::new(5, rate, Rank::ALONE);
            for time in [5, 6, 1_000_000, 999_999_937] {
                let first = pace.first_from(time);
                assert!(pace.time_of(first) >= time);
                assert!(first == 0 || pace.time_of(first - 1) < time);
            }
        }
    }

    #[test]
    fn a_whole_number_of_seconds_has_the_rate_as_often_and_no_event_more() {
        for rate in [3_u32, 7, 30, 90, 700, 900, 999, 3000, 60_000] {
            for seconds in [1, 2, 3, 10, 60, 3600] {
                let events = Pace::new(5, rate.into(), Rank::ALONE).first_from(5 + seconds * 1_000_000_000);
                assert_eq!(events, u64::from(rate) * seconds, "{rate} for {seconds} s");
            }
        }
    }

    /// Returns the times of the events before `end`.
    fn times(mut events: Events, end: u64) -> Vec<u64> {
        let next = || {
            let due = events.due();
            events.advance();
            (due < end).then_some(due)
        };
        std::iter::from_fn(next).collect()
    }

    /// Asserts that the ranks together have the times of one generator, an event of each in turn.
    fn assert_striped(events: impl Fn(Rank) -> Events, count: u32, end: u64) {
        let ranks: Vec<_> = (0..count).map(|index| times(events(Rank { index, count }), end)).collect();
        let all: Vec<_> =
            (0..ranks[0].len()).flat_map(|n| ranks.iter().filter_map(move |rank| rank.get(n).copied())).collect();
        assert_eq!(all, times(events(Rank::ALONE), end), "{count} ranks");
        assert!(!all.is_empty());
    }

    #[test]
    fn the_ranks_together_have_every_event_once_at_its_time() {
        for (rate, count) in [(997.3, 1), (997.3, 3), (10_000.0, 7), (1e9 / 7.0, 2)] {
            assert_striped(|rank| Events::even(Pace::new(5, rate, rank)), count, 10_000_000);
            assert_striped(|rank| Events::poisson(Pace::new(5, rate, rank), 3, 1), count, 10_000_000);
        }
    }

    proptest! {
        #[test]
        fn the_ranks_of_a_run_in_stages_together_have_every_event_once_at_its_time(
            rates in proptest::collection::vec(0..2000_u32, 2..5), count in 1..6_u32, milliseconds in 1..500_u64,
        ) {
            prop_assume!(rates.windows(2).any(|ends| ends[0] + ends[1] > 0));
            let stage = |ends: &[u32]| {
                let [from, to] = [ends[0], ends[1]].map(f64::from);
                RateStage { from, to, duration: Duration::from_millis(milliseconds) }
            };
            let stages: Vec<_> = rates.windows(2).map(stage).collect();
            assert_striped(|rank| Events::even(Pace::of_stages(5, &stages, rank)), count, u64::MAX);
        }
    }

    #[test]
    fn many_events_are_passed_as_one_by_one() {
        let stage = |from, to| RateStage { from, to, duration: Duration::from_millis(300) };
        let stages = [stage(0.0, 5000.0), stage(0.0, 0.0), stage(700.0, 700.0), stage(5000.0, 0.0)];
        let rank = Rank { index: 1, count: 3 };
        for events in [
            Events::even(Pace::new(5, 3333.0, rank)),
            Events::even(Pace::of_stages(5, &stages, rank)),
            Events::poisson(Pace::of_stages(5, &stages, rank), 1, 1),
        ] {
            let one_by_one = times(events.clone(), 3_000_000_000);
            // Also to the times of events, which are not passed.
            let mut steps: Vec<_> = (1..40).map(|step| step * 31_000_000).collect();
            steps.extend(one_by_one.iter().step_by(25).filter(|&&time| time < 2_000_000_000));
            steps.sort_unstable();
            for most in [7, 30, u64::MAX] {
                let mut events = events.clone();
                for &step in &steps {
                    let begin = events.next();
                    let before = one_by_one.partition_point(|&time| time < step) as u64;
                    let next = before.min(begin.saturating_add(most)).max(begin + 1);
                    assert_eq!(events.advance_to(step, most), next - begin, "from {begin} to {step}");
                    let due = usize::try_from(next).ok().and_then(|next| one_by_one.get(next)).copied();
                    assert_eq!((events.next(), events.due()), (next, due.unwrap_or(u64::MAX)));
                }
            }
        }
    }
}
