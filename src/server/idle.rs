//! The hand that goes round the slab, and finds connections on which no byte moves.

use std::time::{Duration, Instant};

use super::config::{Config, DRAIN_TICKS, HEADER_TIMEOUT, LATENESS, PERIOD_MIN, TIMEOUT_MAX, TIMEOUT_ROUNDS};
use super::connection::Connection;
use super::observer::CloseReason;
use super::proxy_protocol::{AwaitingHeader, BAD_HEADER};
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
    rounds: u64,
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
    /// No byte has moved for too long.
    End(CloseReason),
}

/// A connection that the hand visits.
pub(super) trait Watched {
    /// Returns whether there is output that the system does not take.
    fn is_pending(&self) -> bool;

    /// See [`Connection::is_drained`].
    fn is_drained(&self) -> bool;

    /// See [`Connection::is_discarding`].
    fn is_discarding(&self) -> bool;

    /// See [`Connection::tick_idle`].
    fn tick_idle(&mut self) -> u8;

    /// See [`Connection::expect_input`].
    fn expect_input(&mut self);

    /// Ends what a fault withholds. Returns whether there was something.
    fn end_withholding(&mut self) -> bool;
}

impl<S> Watched for Connection<S> {
    fn is_pending(&self) -> bool {
        self.pending() > 0 || self.is_unflushed()
    }

    fn is_drained(&self) -> bool {
        self.is_drained()
    }

    fn is_discarding(&self) -> bool {
        self.is_discarding()
    }

    fn tick_idle(&mut self) -> u8 {
        self.tick_idle()
    }

    fn expect_input(&mut self) {
        self.expect_input();
    }

    fn end_withholding(&mut self) -> bool {
        false
    }
}

/// When connections on which no byte moves are closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// How long the hand takes for a round.
    pub(super) period: Duration,
    without_pending: Option<Timeout>,
    with_pending: Option<Timeout>,
    without_header: Option<Timeout>,
}

/// A timeout that is measured in visits. Every byte that moves restarts it.
#[derive(Clone, Copy, Debug)]
struct Timeout {
    /// Rounds of which only one counts a visit: a connection counts no further than 255.
    rounds_per_tick: u64,
    ticks: u8,
    reason: CloseReason,
}

impl Timeouts {
    /// Returns none if there are no connections to find.
    pub(super) fn new(config: &Config) -> Option<Self> {
        let limit = |timeout: Option<Duration>| timeout.map(|timeout| timeout.min(TIMEOUT_MAX) + LATENESS);
        let (idle, stall) = (limit(config.idle_timeout), limit(config.stall_timeout));
        let header = limit(config.proxy_protocol.then_some(HEADER_TIMEOUT));
        let shortest = [idle, stall, header].into_iter().flatten().min()?;
        // Rounded up, so that the shortest takes no round more.
        let period = (shortest + Duration::from_nanos(u64::from(TIMEOUT_ROUNDS) - 1)) / u32::from(TIMEOUT_ROUNDS);
        let period = period.max(PERIOD_MIN);
        let idle = idle.map(|timeout| (timeout, CloseReason::Idle));
        let stall = stall.map(|timeout| (timeout, CloseReason::Stalled));
        let header = header.map(|timeout| (timeout, BAD_HEADER));
        let shorter = |first, second| [first, second].into_iter().flatten().min_by_key(|&(timeout, _)| timeout);
        let timeout = |(timeout, reason)| Timeout::new(timeout, period, reason);
        Some(Self {
            period,
            without_pending: idle.map(timeout),
            with_pending: shorter(stall, idle).map(timeout),
            without_header: shorter(header, idle).map(timeout),
        })
    }
}

impl Timeout {
    fn new(timeout: Duration, period: Duration, reason: CloseReason) -> Self {
        let rounds = u64::try_from(timeout.as_nanos().div_ceil(period.as_nanos())).unwrap_or(u64::MAX);
        let rounds_per_tick = (rounds / u64::from(TIMEOUT_ROUNDS)).max(1);
        let ticks = u8::try_from(rounds.div_ceil(rounds_per_tick) + 2).unwrap_or(u8::MAX);
        Self { rounds_per_tick, ticks, reason }
    }

    /// Returns whether a visit in this round counts.
    fn counts(&self, rounds: u64) -> bool {
        rounds.is_multiple_of(self.rounds_per_tick)
    }
}

impl Hand {
    /// Begins a round at `start`.
    pub(super) fn new<T>(period: Duration, start: Instant, reactor: &Reactor<T>) -> Self {
        Self { period, rounds: 1, start, next: 0, end: reactor.capacity().max(1) }
    }

    /// Returns how many rounds have begun.
    pub(super) fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Returns when the next slice is due.
    pub(super) fn deadline(&self) -> Instant {
        let end_of_slice = self.end.min(self.next + SLICE);
        #[expect(clippy::cast_precision_loss, reason = "a share of the period")]
        let share = end_of_slice as f64 / self.end as f64;
        self.start + self.period.mul_f64(share)
    }

    /// Visits the slice that is due. Returns the connections on which no byte has moved for too long.
    pub(super) fn advance<T>(
        &mut self,
        now: Instant,
        reactor: &mut Reactor<T>,
        mut visit: impl FnMut(&mut T) -> Visit,
    ) -> Vec<(usize, CloseReason)> {
        let end_of_slice = self.end.min(self.next + SLICE);
        let mut ended = Vec::new();
        for key in self.next..end_of_slice {
            match reactor.get_mut(key).map(&mut visit) {
                None | Some(Visit::Wait) => {}
                Some(Visit::Read) => reactor.resume(key),
                Some(Visit::End(reason)) => ended.push((key, reason)),
            }
        }
        self.next = end_of_slice;
        if self.next == self.end {
            let due = self.start + self.period;
            let start = if now.saturating_duration_since(due) <= LATENESS { due } else { now };
            *self = Self { rounds: self.rounds.saturating_add(1), ..Self::new(self.period, start, reactor) };
        }
        ended
    }
}

/// Ends a connection on which no byte has moved for its timeout.
///
/// Output that is pending shrinks with each byte that moves, and nothing is read before it is gone: one count serves both timeouts. A
/// connection with faults restarts it when the system first refuses its output.
pub(super) fn visit(connection: &mut impl Watched, timeouts: &Timeouts, rounds: u64) -> Visit {
    let is_pending = connection.is_pending();
    let timeout = if is_pending { timeouts.with_pending } else { timeouts.without_pending };
    let Some(Timeout { ticks, reason, .. }) = timeout.filter(|timeout| timeout.counts(rounds)) else {
        return Visit::Wait;
    };
    match connection.tick_idle() {
        count if count >= ticks && (is_pending || connection.is_drained()) => Visit::End(reason),
        count if count >= ticks - 1 && !is_pending => read(connection),
        _ => Visit::Wait,
    }
}

/// Ends a connection that is silent in a drain: no byte has moved for 100 ms, nothing is pending, and a read found nothing.
///
/// `rounds` are those of the drain: a silence before it does not count.
pub(super) fn visit_draining(connection: &mut impl Watched, rounds: u64) -> Visit {
    let ticks = u64::from(connection.tick_idle()).min(rounds);
    if connection.is_pending() || connection.is_discarding() {
        return Visit::Wait;
    }
    match ticks {
        DRAIN_TICKS.. if connection.end_withholding() => read(connection),
        DRAIN_TICKS.. if connection.is_drained() => Visit::End(CloseReason::Drained),
        ticks if ticks >= DRAIN_TICKS - 1 => read(connection),
        _ => Visit::Wait,
    }
}

/// Ends a connection whose PROXY header has not arrived within its timeout, which every visit counts towards.
pub(super) fn visit_awaiting<S>(awaiting: &mut AwaitingHeader<S>, timeouts: &Timeouts, rounds: u64) -> Visit {
    match &timeouts.without_header {
        Some(timeout) if timeout.counts(rounds) => end_at(awaiting.tick().into(), timeout.ticks.into(), timeout.reason),
        _ => Visit::Wait,
    }
}

/// As [`visit_draining`] for a connection whose PROXY header has not arrived.
pub(super) fn visit_awaiting_draining<S>(awaiting: &mut AwaitingHeader<S>, rounds: u64) -> Visit {
    let ticks = u64::from(awaiting.tick()).min(rounds);
    end_at(ticks, DRAIN_TICKS, CloseReason::Drained)
}

/// Ends at the last visit. The one before has the stream looked at once more.
fn end_at(visits: u64, last: u64, reason: CloseReason) -> Visit {
    match visits {
        visits if visits >= last => Visit::End(reason),
        visits if visits == last - 1 => Visit::Read,
        _ => Visit::Wait,
    }
}

fn read(connection: &mut impl Watched) -> Visit {
    connection.expect_input();
    Visit::Read
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use mio::Interest;
    use mio::net::UnixStream;

    use super::*;
    use crate::reactor::Silent;
    use crate::ready::Ready;
    use crate::server::config::DRAIN_PERIOD;
    use crate::server::connection::Outcome;

    #[test]
    fn a_round_over_a_million_entries_visits_each_once_and_at_most_1024_in_a_turn() {
        const MILLION: usize = 1_000_000;
        let mut reactor = Reactor::new(1).unwrap();
        for _ in 0..MILLION {
            reactor.insert(Silent, Interest::READABLE, |_| 0_u8).unwrap();
        }
        // The periods of `--idle-timeout 60s` and of a drain.
        for period in [Duration::from_secs(60) / u32::from(TIMEOUT_ROUNDS), DRAIN_PERIOD] {
            let start = Instant::now();
            let mut hand = Hand::new(period, start, &reactor);
            let (mut turns, mut due) = (0, start);
            while hand.rounds() == 1 {
                // Slices are spread over the period.
                assert!(hand.deadline() >= due && hand.deadline() <= start + period);
                due = hand.deadline();
                let mut visits = 0;
                let ended = hand.advance(due, &mut reactor, |entry| {
                    visits += 1;
                    *entry += 1;
                    Visit::Wait
                });
                assert!(visits <= 1024 && ended.is_empty(), "{visits} visits");
                turns += 1;
            }
            assert_eq!((due, turns), (start + period, reactor.capacity().div_ceil(1024)));
            assert!(reactor.iter_mut().all(|(_, entry)| std::mem::take(entry) == 1));
        }
    }

    #[test]
    fn a_short_timeout_takes_one_turn_for_each_slice_in_a_millisecond() {
        const WAITS: usize = 1000;
        let mut reactor = Reactor::<u8>::new(1).unwrap();
        let slices = reactor.capacity().div_ceil(SLICE);
        for idle in [1, 1_000, 1_000_000, 10_000_000, 29_000_000].map(Duration::from_nanos) {
            let config = Config { idle_timeout: Some(idle), ..Config::default() };
            let start = Instant::now();
            let mut hand = Hand::new(Timeouts::new(&config).unwrap().period, start, &reactor);
            let (mut now, mut turns) = (start, 0);
            for _ in 0..WAITS {
                // The poll waits whole milliseconds.
                now += Duration::from_millis(1);
                while hand.deadline() <= now {
                    hand.advance(now, &mut reactor, |_| Visit::Wait);
                    turns += 1;
                }
            }
            assert_eq!(turns, slices * WAITS, "with {idle:?}");
        }
    }

    #[test]
    fn a_timeout_expires_at_most_an_eighth_late_whatever_the_other_is() {
        let seconds = [0.001, 0.02, 0.5, 0.99, 1.0, 1.5, 1.99, 2.0, 60.0, 61.3, 3600.0, 86400.0, 1e10]
            .map(Duration::from_secs_f64);
        for (idle, stall) in seconds.into_iter().flat_map(|idle| seconds.map(|stall| (idle, stall))) {
            let (idle_timeout, stall_timeout) = (Some(idle), Some(stall));
            let config = Config { idle_timeout, stall_timeout, proxy_protocol: true, ..Config::default() };
            let timeouts = Timeouts::new(&config).unwrap();
            for (timeout, expected, reason) in [
                if HEADER_TIMEOUT <= idle {
                    (timeouts.without_header.unwrap(), HEADER_TIMEOUT, BAD_HEADER)
                } else {
                    (timeouts.without_header.unwrap(), idle, CloseReason::Idle)
                },
                (timeouts.without_pending.unwrap(), idle, CloseReason::Idle),
                if stall <= idle {
                    (timeouts.with_pending.unwrap(), stall, CloseReason::Stalled)
                } else {
                    (timeouts.with_pending.unwrap(), idle, CloseReason::Idle)
                },
            ] {
                assert_eq!(timeout.reason, reason);
                let expected = expected.min(TIMEOUT_MAX).as_secs_f64();
                #[expect(clippy::cast_precision_loss, reason = "at most a few millions")]
                let tick = timeouts.period.as_secs_f64() * timeout.rounds_per_tick as f64;
                let earliest = tick * f64::from(timeout.ticks - 2);
                let latest = tick * f64::from(timeout.ticks) + timeouts.period.as_secs_f64();
                assert!(earliest >= expected, "{earliest} s is before {expected} s");
                let late = latest - expected - (2 * LATENESS + PERIOD_MIN).as_secs_f64();
                assert!(late <= expected / 8.0, "{late} s late of {expected} s, with {config:?}");
            }
        }
    }

    /// A connection on which no byte moves, and what the hand does to it.
    #[derive(Default)]
    #[expect(clippy::struct_excessive_bools, reason = "one for each question of the hand")]
    struct Still {
        is_pending: bool,
        is_discarding: bool,
        is_withholding: bool,
        /// Whether a read found nothing since the last one was asked for.
        is_drained: bool,
        ticks: u8,
    }

    impl Watched for Still {
        fn is_pending(&self) -> bool {
            self.is_pending
        }

        fn is_drained(&self) -> bool {
            self.is_drained
        }

        fn is_discarding(&self) -> bool {
            self.is_discarding
        }

        fn tick_idle(&mut self) -> u8 {
            self.ticks += 1;
            self.ticks
        }

        fn expect_input(&mut self) {
            self.is_drained = false;
        }

        fn end_withholding(&mut self) -> bool {
            std::mem::take(&mut self.is_withholding)
        }
    }

    fn timeouts() -> Timeouts {
        let timeout = |ticks, reason| Some(Timeout { rounds_per_tick: 1, ticks, reason });
        Timeouts {
            period: DRAIN_PERIOD,
            without_pending: timeout(3, CloseReason::Idle),
            with_pending: timeout(3, CloseReason::Stalled),
            without_header: timeout(3, BAD_HEADER),
        }
    }

    #[test]
    fn an_idle_connection_is_read_before_it_is_closed() {
        let mut connection = Still { is_drained: true, ..Still::default() };
        assert_eq!(visit(&mut connection, &timeouts(), 1), Visit::Wait);
        assert_eq!(visit(&mut connection, &timeouts(), 2), Visit::Read);
        // The read has not come to its end.
        assert!(!connection.is_drained);
        assert_eq!(visit(&mut connection, &timeouts(), 3), Visit::Read);
        connection.is_drained = true;
        assert_eq!(visit(&mut connection, &timeouts(), 4), Visit::End(CloseReason::Idle));
    }

    #[test]
    fn a_stalled_connection_is_closed_without_a_read() {
        let mut connection = Still { is_pending: true, ..Still::default() };
        let visits = [1, 2, 3].map(|round| visit(&mut connection, &timeouts(), round));
        assert_eq!(visits, [Visit::Wait, Visit::Wait, Visit::End(CloseReason::Stalled)]);
    }

    #[test]
    fn a_visit_in_a_round_that_does_not_count_is_no_tick() {
        let mut connection = Still { is_pending: true, ..Still::default() };
        let mut timeouts = timeouts();
        timeouts.with_pending.as_mut().unwrap().rounds_per_tick = 3;
        for round in 1..9 {
            assert_eq!(visit(&mut connection, &timeouts, round), Visit::Wait);
            assert_eq!(u64::from(connection.ticks), round / 3);
        }
        assert_eq!(visit(&mut connection, &timeouts, 9), Visit::End(CloseReason::Stalled));
        timeouts.with_pending = None;
        assert_eq!(visit(&mut connection, &timeouts, 10), Visit::Wait);
    }

    #[test]
    fn a_drain_reads_a_silent_connection_before_it_closes_it() {
        let mut connection = Still { is_drained: true, ..Still::default() };
        let mut visits = Vec::new();
        for round in 1..=DRAIN_TICKS {
            visits.push(visit_draining(&mut connection, round));
            // The read finds nothing.
            connection.is_drained = true;
        }
        assert_eq!(visits, [Visit::Wait, Visit::Wait, Visit::Read, Visit::End(CloseReason::Drained)]);
        connection.is_drained = false;
        assert_eq!(visit_draining(&mut connection, DRAIN_TICKS + 1), Visit::Read);
    }

    #[test]
    fn a_silence_before_the_drain_does_not_count() {
        let mut connection = Still { is_drained: true, ticks: 100, ..Still::default() };
        assert_eq!(visit_draining(&mut connection, 1), Visit::Wait);
        assert_eq!(visit_draining(&mut connection, 3), Visit::Read);
    }

    #[test]
    fn a_drain_waits_for_pending_output_and_for_the_clients_fin_and_ends_what_a_fault_withholds() {
        let drained = || Still { is_drained: true, ticks: 100, ..Still::default() };
        for mut connection in [Still { is_pending: true, ..drained() }, Still { is_discarding: true, ..drained() }] {
            assert_eq!(visit_draining(&mut connection, 100), Visit::Wait);
        }
        let mut connection = Still { is_withholding: true, ..drained() };
        assert_eq!(visit_draining(&mut connection, 100), Visit::Read);
        connection.is_drained = true;
        assert_eq!(visit_draining(&mut connection, 101), Visit::End(CloseReason::Drained));
    }

    #[test]
    fn the_hand_of_a_drain_waits_for_the_read_that_it_asks_for_and_after_fin_for_the_client() {
        let (stream, _client) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(stream);
        let mut visits = || [1, 2, 3, 4].map(|round| visit_draining(&mut connection, round));
        // Nothing was read, so a visit does not end it.
        assert_eq!(visits(), [Visit::Wait, Visit::Wait, Visit::Read, Visit::Read]);
        assert_eq!(connection.serve(Ready::NONE, &mut [0; 8]).outcome, Outcome::Wait);
        assert_eq!(visit_draining(&mut connection, 5), Visit::End(CloseReason::Drained));
        connection.discard();
        assert_eq!(visit_draining(&mut connection, 6), Visit::Wait);
    }

    #[test]
    fn the_visit_before_the_last_reads_a_connection_without_a_header() {
        let visits = [1, 2, 3, 4, 5].map(|visits| end_at(visits, 4, CloseReason::Drained));
        let end = Visit::End(CloseReason::Drained);
        assert_eq!(visits, [Visit::Wait, Visit::Wait, Visit::Read, end, end]);
    }
}
