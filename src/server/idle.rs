//! The hand that goes round the slab, and finds connections on which no byte moves.

use std::time::{Duration, Instant};

use super::config::{DRAIN_TICKS, IDLE_TICKS, LATENESS};
use super::connection::Connection;
use crate::reactor::Reactor;

/// Most entries of the slab that are visited in one turn.
const SLICE: usize = 1024;

/// Visits every connection once a period, a slice of the slab at a time: no turn is longer for a million connections than for ten.
///
/// `n` visits of a connection span at least `n - 2` periods, less [`LATENESS`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    period: Duration,
    /// Rounds begun, this one included.
    rounds: u8,
    /// When this round began.
    start: Instant,
    /// The next key to visit in this round, and the end of the round.
    next: usize,
    end: usize,
}

/// What follows for a connection that was visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    Wait,
    /// It seems silent. Only a read shows whether it is: input may wait in the kernel.
    Read,
    /// It is silent.
    Silent,
}

impl Hand {
    /// Begins a round at `start`.
    pub(super) fn new<T>(period: Duration, start: Instant, reactor: &Reactor<T>) -> Self {
        Self { period, rounds: 1, start, next: 0, end: reactor.capacity().max(1) }
    }

    /// Returns how many rounds have begun.
    pub(super) fn rounds(&self) -> u8 {
        self.rounds
    }

    /// Returns when the next slice is due.
    pub(super) fn deadline(&self) -> Instant {
        let end_of_slice = self.end.min(self.next + SLICE);
        #[expect(clippy::cast_precision_loss, reason = "a share of the period")]
        let share = end_of_slice as f64 / self.end as f64;
        self.start + self.period.mul_f64(share)
    }

    /// Visits the slice that is due. Returns the connections that are silent.
    pub(super) fn advance<T>(
        &mut self,
        now: Instant,
        reactor: &mut Reactor<T>,
        mut visit: impl FnMut(&mut T) -> Visit,
    ) -> Vec<usize> {
        let end_of_slice = self.end.min(self.next + SLICE);
        let mut silent = Vec::new();
        for key in self.next..end_of_slice {
            match reactor.get_mut(key).map(&mut visit) {
                None | Some(Visit::Wait) => {}
                Some(Visit::Read) => reactor.resume(key),
                Some(Visit::Silent) => silent.push(key),
            }
        }
        self.next = end_of_slice;
        if self.next == self.end {
            let due = self.start + self.period;
            let start = if now.saturating_duration_since(due) <= LATENESS { due } else { now };
            *self = Self { rounds: self.rounds.saturating_add(1), ..Self::new(self.period, start, reactor) };
        }
        silent
    }
}

/// Returns whether no byte has moved on a connection for the idle timeout.
pub(super) fn visit<S>(connection: &mut Connection<S>) -> Visit {
    let is_stalled = connection.pending() > 0;
    match connection.tick_idle() {
        IDLE_TICKS.. if is_stalled || connection.is_drained() => Visit::Silent,
        ticks if ticks >= IDLE_TICKS - 1 && !is_stalled => read(connection),
        _ => Visit::Wait,
    }
}

/// Returns whether a connection is silent in a drain: no byte has moved for 100 ms, nothing is pending, and a read found nothing.
///
/// `rounds` are those of the drain: a silence before it does not count.
pub(super) fn visit_draining<S>(connection: &mut Connection<S>, rounds: u8) -> Visit {
    let ticks = connection.tick_idle().min(rounds);
    if connection.pending() > 0 || connection.is_discarding() {
        return Visit::Wait;
    }
    match ticks {
        DRAIN_TICKS.. if connection.is_drained() => Visit::Silent,
        ticks if ticks >= DRAIN_TICKS - 1 => read(connection),
        _ => Visit::Wait,
    }
}

fn read<S>(connection: &mut Connection<S>) -> Visit {
    connection.expect_input();
    Visit::Read
}
