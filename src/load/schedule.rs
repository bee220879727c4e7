//! The measured window, and the send schedule of the open loop.

mod pace;

pub(super) use self::pace::{Events, Pace};

/// What is due and reaches no connection is taken together, up to this number of nanoseconds: at a rate of a billion, one by one would
/// take minutes. Its age is kept to the same number.
pub(super) const TICK: u64 = 1 << 20;

/// The measured window, in nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What takes its turn in a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A message on the connection under this key.
    Message { due: u64, key: usize },
    /// `count` events that no connection takes. The first is due at `due`, and the others in the same [`TICK`].
    Unsent { due: u64, count: u64 },
}

/// The messages of an open loop, in turn on each slot: message `n` is on slot `n` modulo the number of slots.
///
/// A slot is the place of one connection. It stays when the connection ends: a message never moves to another connection.
#[derive(Debug)]
pub(super) struct SendSchedule {
    events: Events,
    /// The key of each slot's connection, or `None` once it has ended.
    slots: Vec<Option<usize>>,
    /// The schedule ends before the messages that are due from this time on.
    end: u64,
    /// Messages that are left after the warm-up.
    left: u64,
    /// Slots that have a connection.
    occupied: usize,
    window: Window,
}

impl SendSchedule {
    /// Schedules the messages of the connections `slots`. With `messages`, each has that many after the warm-up; without, the schedule
    /// ends with the window.
    pub(super) fn new(events: Events, slots: Vec<Option<usize>>, messages: Option<u64>, window: Window) -> Self {
        let count = slots.len() as u64;
        let (end, left) = match messages {
            _ if count == 0 => (0, 0),
            Some(messages) => (u64::MAX, messages.saturating_mul(count)),
            None => (window.end, u64::MAX),
        };
        let occupied = slots.iter().flatten().count();
        Self { events, slots, end, left, occupied, window }
    }

    /// Returns when message `message` of `slot` is due, if messages follow each other evenly.
    pub(super) fn due(&self, slot: u32, message: u64) -> u64 {
        self.events.time_of(message * self.slots.len() as u64 + u64::from(slot))
    }

    /// Returns when the next message is due, or `None` after the last.
    pub(super) fn next_due(&self) -> Option<u64> {
        self.has_next().then(|| self.events.due())
    }

    /// Ends the schedule before the messages that are due from `time` on.
    pub(super) fn truncate(&mut self, time: u64) {
        self.end = self.end.min(time);
    }

    /// Returns when the schedule ends, once its messages have been taken.
    pub(super) fn end(&self) -> u64 {
        self.events.due()
    }

    /// Returns whether a message is still to become due.
    pub(super) fn has_next(&self) -> bool {
        self.events.due() < self.end && self.left > 0
    }

    /// Takes the next message if it is due by `now`. If no slot has a connection, takes those of a [`TICK`].
    pub(super) fn take_due(&mut self, now: u64) -> Option<Due> {
        if self.occupied == 0 {
            return self.take_unsent(now);
        }
        let due = self.events.due();
        if due > now || !self.has_next() {
            return None;
        }
        let slot = usize::try_from(self.events.next() % self.slots.len() as u64).ok()?;
        self.left -= u64::from(due >= self.window.start);
        self.events.advance();
        Some(self.slots[slot].map_or(Due::Unsent { due, count: 1 }, |key| Due::Message { due, key }))
    }

    fn take_unsent(&mut self, now: u64) -> Option<Due> {
        let due = self.next_due().filter(|&due| due <= now)?;
        let is_reported = due >= self.window.start;
        let most = if is_reported { self.left } else { u64::MAX };
        let count = self.events.advance_to(tick_end(&self.events, now, self.window).min(self.end), most);
        self.left -= if is_reported { count } else { 0 };
        Some(Due::Unsent { due, count })
    }

    /// Gives `slot`, which is empty, to the connection `key`, and returns which of the slot's messages is its next.
    pub(super) fn occupy(&mut self, slot: u32, key: usize) -> u64 {
        if let Some(occupant) = self.slots.get_mut(slot as usize) {
            self.occupied += usize::from(occupant.replace(key).is_none());
        }
        self.events.next().saturating_sub(slot.into()).div_ceil(self.slots.len().max(1) as u64)
    }

    /// Empties `slot` if it is the connection `key`'s.
    pub(super) fn vacate(&mut self, slot: u32, key: usize) {
        if let Some(occupant) = self.slots.get_mut(slot as usize)
            && *occupant == Some(key)
        {
            *occupant = None;
            self.occupied -= 1;
        }
    }
}

/// Returns the end of the time in which events are taken together with the next one: those due by `now`, in the same [`TICK`], on the
/// same side of the window's start, and in the same stage.
fn tick_end(events: &Events, now: u64, window: Window) -> u64 {
    let due = events.due();
    let end = (due / TICK + 1).saturating_mul(TICK).min(now.saturating_add(1)).min(events.stage_end());
    if due < window.start { end.min(window.start) } else { end }
}

/// The connections of an open loop. Each is due at its time, until the window ends, and begins when the connector has a place for it.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// The next connection to begin.
    next: Events,
    /// The first connection that has neither begun nor was found to wait.
    timed: Events,
    window: Window,
}

/// Connections that never begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnsentArrivals {
    /// When the first is due.
    pub(super) due: u64,
    pub(super) count: u64,
    /// How many of these were not found to wait before.
    pub(super) untimed: u64,
}

impl Arrivals {
    pub(super) fn new(events: Events, window: Window) -> Self {
        Self { next: events.clone(), timed: events, window }
    }

    /// Returns when the next connection to begin is due, or `None` after the last.
    pub(super) fn next_due(&self) -> Option<u64> {
        Some(self.next.due()).filter(|&due| due < self.window.end)
    }

    /// Takes the next connection if it is due by `now`: its due time, and whether it was found to wait before.
    pub(super) fn take_due(&mut self, now: u64) -> Option<(u64, bool)> {
        let due = self.next_due().filter(|&due| due <= now)?;
        let waited = self.next.next() < self.timed.next();
        self.next.advance();
        if !waited {
            self.timed.advance();
        }
        Some((due, waited))
    }

    /// Takes the connections of a [`TICK`] that are due by `now` and will not begin.
    pub(super) fn take_unsent(&mut self, now: u64) -> Option<UnsentArrivals> {
        let due = self.next_due().filter(|&due| due <= now)?;
        let end = tick_end(&self.next, now, self.window).min(self.window.end);
        let count = self.next.advance_to(end, u64::MAX);
        let untimed = self.next.next().saturating_sub(self.timed.next());
        if untimed > 0 {
            self.timed = self.next.clone();
        }
        Some(UnsentArrivals { due, count, untimed })
    }

    /// Returns when the next connection is due that was not found to wait before.
    pub(super) fn next_untimed(&self) -> Option<u64> {
        Some(self.timed.due()).filter(|&due| due < self.window.end)
    }

    /// Takes the next connection that is due by `now` and has to wait: its due time.
    pub(super) fn take_waiting(&mut self, now: u64) -> Option<u64> {
        let due = self.next_untimed().filter(|&due| due <= now)?;
        self.timed.advance();
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::rank::Rank;

    const WINDOW: Window = Window { start: 2_000_000_000, end: 3_000_000_000 };

    fn slots() -> Vec<Option<usize>> {
        vec![Some(7), Some(9)]
    }

    /// Returns when each message is due, with the key of its connection.
    fn due_times(schedule: &mut SendSchedule) -> Vec<(u64, Option<usize>)> {
        let times = std::iter::from_fn(|| schedule.take_due(u64::MAX)).take(100).map(|due| match due {
            Due::Message { due, key } => (due, Some(key)),
            Due::Unsent { due, count } => {
                assert_eq!(count, 1);
                (due, None)
            }
        });
        times.collect()
    }

    #[test]
    fn slots_take_turns_and_each_knows_its_own_due_times() {
        let mut schedule =
            SendSchedule::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), slots(), None, WINDOW);
        let due = due_times(&mut schedule);
        assert_eq!(
            due,
            [(2_000_000_000, Some(7)), (2_250_000_000, Some(9)), (2_500_000_000, Some(7)), (2_750_000_000, Some(9))]
        );
        assert_eq!((schedule.due(0, 1), schedule.due(1, 1)), (2_500_000_000, 2_750_000_000));
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn a_number_of_messages_is_of_each_slot_and_after_the_warm_up() {
        for slots in [slots(), vec![None; 2]] {
            let events = Events::even(Pace::new(1_000_000_000, 4.0, Rank::ALONE));
            assert_eq!(due_times(&mut SendSchedule::new(events, slots, Some(3), WINDOW)).len(), 4 + 2 * 3);
        }
    }

    #[test]
    fn nothing_is_taken_before_it_is_due() {
        let mut schedule = SendSchedule::new(Events::even(Pace::new(0, 1.0, Rank::ALONE)), vec![Some(7)], None, WINDOW);
        assert_eq!(schedule.take_due(0), Some(Due::Message { due: 0, key: 7 }));
        assert_eq!(schedule.take_due(999_999_999), None);
        assert_eq!(schedule.take_due(1_000_000_000), Some(Due::Message { due: 1_000_000_000, key: 7 }));
    }

    #[test]
    fn messages_of_an_ended_connection_stay_due_on_its_slot() {
        let mut schedule =
            SendSchedule::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), slots(), None, WINDOW);
        // The key was reused by a connection that has no slot.
        schedule.vacate(0, 9);
        schedule.vacate(1, 9);
        let keys: Vec<_> = due_times(&mut schedule).into_iter().map(|(_, key)| key).collect();
        assert_eq!(keys, [Some(7), None, Some(7), None]);
    }

    #[test]
    fn a_connection_that_replaces_another_continues_its_slot() {
        let mut schedule =
            SendSchedule::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), slots(), None, WINDOW);
        schedule.vacate(1, 9);
        schedule.take_due(2_000_000_000);
        // The slot's first message is still to come.
        assert_eq!(schedule.occupy(1, 5), 0);
        schedule.vacate(1, 5);
        schedule.vacate(0, 7);
        assert_eq!(schedule.take_due(2_250_000_000), Some(Due::Unsent { due: 2_250_000_000, count: 1 }));
        assert_eq!(schedule.occupy(1, 3), 1);
        assert_eq!(schedule.occupy(0, 4), 1);
        assert_eq!(due_times(&mut schedule), [(2_500_000_000, Some(4)), (2_750_000_000, Some(3))]);
    }

    #[test]
    fn messages_wait_for_connections_that_are_to_come() {
        let mut schedule =
            SendSchedule::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), vec![None; 2], None, WINDOW);
        assert_eq!((schedule.next_due(), schedule.take_due(1_999_999_999)), (Some(2_000_000_000), None));
        schedule.occupy(0, 7);
        assert_eq!(schedule.take_due(2_000_000_000), Some(Due::Message { due: 2_000_000_000, key: 7 }));
    }

    /// A billion a second, one by one, would take longer than the run.
    #[test]
    fn messages_that_reach_no_connection_are_taken_by_the_tick() {
        const SECONDS: u64 = 1_000_000_000;
        let window = Window { start: 2 * SECONDS + 5, end: 12 * SECONDS };
        let pace = || Events::even(Pace::new(2 * SECONDS, 1e9, Rank::ALONE));
        let mut ended = SendSchedule::new(pace(), slots(), None, window);
        assert_eq!(ended.take_due(2 * SECONDS), Some(Due::Message { due: 2 * SECONDS, key: 7 }));
        ended.vacate(0, 7);
        ended.vacate(1, 9);
        let mut arrivals = Arrivals::new(pace(), window);
        assert_eq!(arrivals.take_due(2 * SECONDS), Some((2 * SECONDS, false)));
        let take_arrival =
            |now| arrivals.take_unsent(now).map(|UnsentArrivals { due, count, .. }| Due::Unsent { due, count });
        let takes: [Box<dyn FnMut(u64) -> Option<Due>>; 2] =
            [Box::new(|now| ended.take_due(now)), Box::new(take_arrival)];
        for mut take in takes {
            // Up to the window, then up to now.
            assert_eq!(take(2 * SECONDS + 9), Some(Due::Unsent { due: 2 * SECONDS + 1, count: 4 }));
            assert_eq!(take(2 * SECONDS + 9), Some(Due::Unsent { due: 2 * SECONDS + 5, count: 5 }));
            assert_eq!(take(2 * SECONDS + 9), None);
            let mut expected = 2 * SECONDS + 10;
            while let Some(Due::Unsent { due, count }) = take(u64::MAX) {
                assert!(due == expected && due / TICK == (due + count - 1) / TICK, "{count} from {due}");
                expected += count;
            }
            assert_eq!(expected, window.end);
        }
    }

    #[test]
    fn without_a_slot_nothing_is_due() {
        assert_eq!(
            SendSchedule::new(Events::even(Pace::new(0, 4.0, Rank::ALONE)), Vec::new(), Some(3), WINDOW).next_due(),
            None
        );
    }

    #[test]
    fn a_connection_that_waits_is_found_once_and_keeps_its_due_time() {
        let mut arrivals = Arrivals::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), WINDOW);
        assert_eq!(arrivals.take_due(2_000_000_000), Some((2_000_000_000, false)));
        assert_eq!(arrivals.take_waiting(2_600_000_000), Some(2_250_000_000));
        assert_eq!(arrivals.take_waiting(2_600_000_000), Some(2_500_000_000));
        assert_eq!(arrivals.take_waiting(2_600_000_000), None);
        assert_eq!(arrivals.take_due(2_800_000_000), Some((2_250_000_000, true)));
        assert_eq!(arrivals.take_due(2_800_000_000), Some((2_500_000_000, true)));
        assert_eq!(arrivals.take_due(2_800_000_000), Some((2_750_000_000, false)));
        assert_eq!((arrivals.next_due(), arrivals.next_untimed()), (None, None));
    }

    #[test]
    fn a_connection_that_never_begins_is_not_found_to_wait_afterwards() {
        let mut arrivals = Arrivals::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), WINDOW);
        // Two are found to wait, of which one never begins, and then neither does the other nor the one after it.
        assert_eq!(arrivals.take_waiting(2_250_000_000), Some(2_000_000_000));
        assert_eq!(arrivals.take_waiting(2_250_000_000), Some(2_250_000_000));
        let unsent = |due, untimed| Some(UnsentArrivals { due, count: 1, untimed });
        assert_eq!(arrivals.take_unsent(2_200_000_000), unsent(2_000_000_000, 0));
        assert_eq!(arrivals.next_untimed(), Some(2_500_000_000));
        assert_eq!(arrivals.take_unsent(2_500_000_000), unsent(2_250_000_000, 0));
        assert_eq!(arrivals.take_unsent(2_500_000_000), unsent(2_500_000_000, 1));
        assert_eq!(arrivals.take_unsent(2_500_000_000), None);
        assert_eq!((arrivals.next_due(), arrivals.next_untimed()), (Some(2_750_000_000), Some(2_750_000_000)));
    }

    #[test]
    fn a_truncated_schedule_ends_earlier_and_never_later() {
        let mut schedule =
            SendSchedule::new(Events::even(Pace::new(2_000_000_000, 4.0, Rank::ALONE)), slots(), None, WINDOW);
        schedule.truncate(2_500_000_000);
        schedule.truncate(2_900_000_000);
        assert_eq!(due_times(&mut schedule), [(2_000_000_000, Some(7)), (2_250_000_000, Some(9))]);
    }
}
