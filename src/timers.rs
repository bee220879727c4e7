//! The deadlines of connections with faults.

use std::collections::BTreeSet;

/// The next deadline of each connection that has one, earliest first. A set, and not a heap: a deadline that has changed is removed, so
/// that there is never more than one for a connection.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    deadlines: BTreeSet<(T, usize)>,
}

impl<T: Copy + Ord> Timers<T> {
    pub(crate) fn new() -> Self {
        Self { deadlines: BTreeSet::new() }
    }

    /// Replaces the deadline of `key`, which is in `timer`.
    pub(crate) fn set(&mut self, key: usize, timer: &mut Option<T>, deadline: Option<T>) {
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
    pub(crate) fn next_at(&self) -> Option<T> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Removes a deadline that has passed, and returns its key. What has its timer clears that.
    pub(crate) fn pop_expired(&mut self, now: T) -> Option<usize> {
        if self.next_at()? > now {
            return None;
        }
        self.deadlines.pop_first().map(|(_, key)| key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_connection_has_one_deadline_and_they_expire_in_order() {
        let start = Instant::now();
        let at = |millis| Some(start + Duration::from_millis(millis));
        let (mut timers, mut first, mut second) = (Timers::new(), None, None);
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
