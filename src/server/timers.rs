//! The deadlines of connections with faults.

use std::collections::BTreeSet;
use std::time::Instant;

/// The next deadline of each connection that has one, earliest first. A set, and not a heap: a deadline that has changed is removed, so
/// that there is never more than one for a connection.
#[derive(Debug, Default)]
pub(super) struct Timers {
    deadlines: BTreeSet<(Instant, usize)>,
}

impl Timers {
    /// Replaces the deadline of `key`, which is in `timer`.
    pub(super) fn set(&mut self, key: usize, timer: &mut Option<Instant>, deadline: Option<Instant>) {
        if *timer == deadline {
            return;
        }
        if let Some(at) = timer.take() {
            self.deadlines.remove(&(at, key));
        }
        if let Some(at) = deadline {
            self.deadlines.insert((at, key));
        }
        *timer = deadline;
    }

    /// Returns the earliest deadline.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Removes a deadline that has passed, and returns its key.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<usize> {
        if self.next_at()? > now {
            return None;
        }
        self.deadlines.pop_first().map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_has_one_deadline_and_they_expire_in_order() {
        let start = Instant::now();
        let at = |millis| Some(start + Duration::from_millis(millis));
        let (mut timers, mut first, mut second) = (Timers::default(), None, None);
        timers.set(7, &mut first, at(60_000));
        for millis in (1..100).rev() {
            timers.set(7, &mut first, at(millis));
            timers.set(7, &mut first, at(60_000));
        }
        timers.set(8, &mut second, at(5));
        assert_eq!((timers.deadlines.len(), timers.next_at()), (2, at(5)));
        assert_eq!(timers.pop_expired(start), None);
        assert_eq!(timers.pop_expired(start + Duration::from_millis(5)), Some(8));
        timers.set(7, &mut first, None);
        assert_eq!((timers.next_at(), first), (None, None));
    }
}
