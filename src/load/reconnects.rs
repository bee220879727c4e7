//! Opens each connection anew that has ended, and measures how long it was down.

use std::collections::{BTreeMap, HashMap};

use super::client::Client;
use super::config::Config;
use super::report::{Histogram, Outages};
use super::timer::SECOND;

/// Nanoseconds that a connection waits after its first failed attempt. Each further failure doubles them.
const BACKOFF_MIN: u64 = SECOND / 100;
const BACKOFF_MAX: u64 = SECOND / 10;
/// Nanoseconds without any attempt after a failed one, so that many connections together do not flood a dead server.
const FAILURE_PAUSE: u64 = SECOND / 1000;
/// Bytes of a connection that is down.
pub(super) const OUTAGE_BYTES: usize = 128;

/// The time in which a connection is down: from the first message without a reply, or from the connection's end if it awaited none, to
/// the first reply on the connection that replaces it. Times are nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    start: u64,
    pub(super) pair: u32,
    /// The slot of the send schedule, if there is one.
    pub(super) slot: u32,
    /// The reactor's key of the connection that replaces it.
    pub(super) key: usize,
    attempts: u32,
    /// When its first attempt may begin.
    earliest: u64,
}

/// The outages of a run.
#[derive(Debug)]
pub(super) struct Reconnects {
    is_enabled: bool,
    /// What was counted is reported.
    is_reported: bool,
    /// The outages whose connection ends or opens, by its number.
    in_progress: HashMap<u64, Outage>,
    /// Those that wait for their next attempt, by its time and the number of the connection that ended.
    waiting: BTreeMap<(u64, u64), Outage>,
    /// Nanoseconds between two attempts, and after one that failed.
    interval: u64,
    failure_pause: u64,
    paused_until: u64,
    count: u64,
    recovered: u64,
    attempts: u64,
    longest: u64,
    recovery: Histogram,
}

impl Reconnects {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1 ns; it saturates")]
    pub(super) fn new(config: &Config) -> Self {
        Self {
            is_enabled: config.reconnect,
            is_reported: config.reconnect,
            in_progress: HashMap::new(),
            waiting: BTreeMap::new(),
            interval: config.connect_rate.map_or(0, |rate| (1e9 / config.share_of_rate(rate)) as u64),
            failure_pause: FAILURE_PAUSE.saturating_mul(config.rank().count.into()),
            paused_until: 0,
            count: 0,
            recovered: 0,
            attempts: 0,
            longest: 0,
            recovery: Histogram::new(),
        }
    }

    /// Begins the outage of a verified connection that ends, of which a message due at `start` has no reply.
    pub(super) fn begin(&mut self, client: &Client, start: u64) {
        if self.is_enabled {
            self.count += 1;
            let outage = Outage {
                start,
                pair: client.pair,
                slot: client.slot,
                key: 0,
                attempts: 0,
                // A server that closes each connection after its first message is not flooded either.
                earliest: client.since.saturating_add(BACKOFF_MIN),
            };
            self.in_progress.insert(client.verifier.connection(), outage);
        }
    }

    /// Schedules the next attempt if connection `number` was in an outage. It has ended, or could not be opened.
    pub(super) fn retry(&mut self, number: u64, now: u64) {
        let Some(outage) = self.in_progress.remove(&number) else { return };
        let at = if outage.attempts == 0 { outage.earliest.max(now) } else { now + backoff(outage.attempts) };
        if outage.attempts > 0 {
            self.paused_until = self.paused_until.max(now + self.failure_pause);
        }
        self.waiting.insert((at, number), outage);
    }

    /// Returns when the next attempt may begin.
    #[inline]
    pub(super) fn next_attempt(&self) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.first_key_value().map(|(&(at, _), _)| at.max(self.paused_until))
    }

    /// Takes the outage whose attempt begins now.
    pub(super) fn take_next(&mut self, now: u64) -> Option<Outage> {
        let (_, mut outage) = self.waiting.pop_first()?;
        outage.attempts += 1;
        self.attempts += 1;
        // The interval of the lowest rate is the longest time.
        self.paused_until = now.saturating_add(self.interval);
        Some(outage)
    }

    /// Adds an outage whose attempt is connection `number`.
    pub(super) fn attempt(&mut self, number: u64, outage: Outage) {
        self.in_progress.insert(number, outage);
    }

    /// Sets the reactor's key of connection `number`.
    pub(super) fn set_key(&mut self, number: u64, key: usize) {
        if let Some(outage) = self.in_progress.get_mut(&number) {
            outage.key = key;
        }
    }

    /// Ends the outage that connection `number` was opened for, because its first message was verified.
    pub(super) fn recover(&mut self, number: u64, now: u64) -> Option<Outage> {
        let outage = self.in_progress.remove(&number)?;
        let took = now.saturating_sub(outage.start);
        self.recovered += 1;
        self.longest = self.longest.max(took);
        self.recovery.record(took);
        Some(outage)
    }

    /// Returns the outages that last.
    pub(super) fn open(&mut self) -> impl Iterator<Item = &mut Outage> {
        self.waiting.values_mut().chain(self.in_progress.values_mut())
    }

    pub(super) fn has_open(&self) -> bool {
        !self.waiting.is_empty() || !self.in_progress.is_empty()
    }

    /// Ends all reconnecting at `end`: the outages that last are recorded with their age. Returns the keys of the connections that were
    /// opened for them.
    pub(super) fn end(&mut self, end: u64) -> Vec<usize> {
        self.is_enabled = false;
        let ages: Vec<_> = self.open().map(|outage| end.saturating_sub(outage.start)).collect();
        for age in ages {
            self.longest = self.longest.max(age);
            self.recovery.record_censored(age);
        }
        self.waiting.clear();
        self.in_progress.drain().map(|(_, outage)| outage.key).collect()
    }

    /// Returns what is reported of them, if connections are opened anew.
    pub(super) fn report(&self) -> Option<Outages> {
        self.is_reported.then(|| Outages {
            count: self.count,
            recovered: self.recovered,
            attempts: self.attempts,
            longest_us: self.longest.div_ceil(1000),
            recovery_us: self.recovery.summary(),
        })
    }
}

/// Returns how many nanoseconds a connection waits after its failed attempt number `attempt`, from 1.
fn backoff(attempt: u32) -> u64 {
    (BACKOFF_MIN << attempt.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::client::tests::client;
    use super::*;
    use crate::socket_address::AnyAddress;

    const MILLISECOND: u64 = SECOND / 1000;

    fn reconnects(connect_rate: Option<f64>) -> Reconnects {
        let config = Config { reconnect: true, connect_rate, ..Config::new(Vec::<AnyAddress>::new()) };
        Reconnects::new(&config)
    }

    /// Returns when the next attempt may begin, in milliseconds.
    fn next_ms(reconnects: &Reconnects) -> Option<u64> {
        reconnects.next_attempt().map(|at| at / MILLISECOND)
    }

    #[test]
    fn a_failed_attempt_pauses_all_and_the_end_of_a_connection_does_not() {
        let mut reconnects = reconnects(None);
        for number in [1, 2] {
            reconnects.begin(&client(number, Some(1)).0, 0);
            assert_eq!(next_ms(&reconnects), None);
        }
        reconnects.retry(1, 20 * MILLISECOND);
        assert_eq!(next_ms(&reconnects), Some(20));
        reconnects.retry(2, 0);
        // Ten milliseconds after it was established.
        assert_eq!(next_ms(&reconnects), Some(10));
        let outage = reconnects.take_next(10 * MILLISECOND).unwrap();
        assert_eq!(next_ms(&reconnects), Some(20));
        reconnects.attempt(3, outage);
        reconnects.retry(3, 25 * MILLISECOND);
        // The other one waits a millisecond, and the one that failed ten.
        assert_eq!(next_ms(&reconnects), Some(26));
        reconnects.take_next(26 * MILLISECOND).unwrap();
        assert_eq!(next_ms(&reconnects), Some(35));
    }

    #[test]
    fn attempts_follow_each_other_at_the_connect_rate() {
        let mut reconnects = reconnects(Some(50.0));
        for number in [1, 2] {
            reconnects.begin(&client(number, Some(1)).0, 0);
            reconnects.retry(number, 0);
        }
        reconnects.take_next(13 * MILLISECOND).unwrap();
        assert_eq!(next_ms(&reconnects), Some(13 + 1000 / 50));
    }

    #[test]
    fn outages_are_open_until_a_reply_and_end_with_the_keys_of_their_connections() {
        let mut reconnects = reconnects(None);
        assert!(!reconnects.has_open());
        for number in [1, 2] {
            reconnects.begin(&client(number, Some(1)).0, MILLISECOND);
            // Its connection ends, and then it waits.
            assert!(reconnects.has_open());
            reconnects.retry(number, 0);
        }
        assert!(reconnects.has_open());
        for number in [3, 4] {
            let outage = reconnects.take_next(10 * MILLISECOND).unwrap();
            reconnects.attempt(number, outage);
            reconnects.set_key(number, 70 + usize::try_from(number).unwrap());
        }
        assert!(reconnects.recover(3, 21 * MILLISECOND).is_some());
        assert!(reconnects.has_open());
        assert_eq!(reconnects.end(31 * MILLISECOND), [74]);
        assert!(!reconnects.has_open());
        let report = reconnects.report().unwrap();
        assert_eq!([report.count, report.recovered, report.attempts, report.longest_us], [2, 1, 2, 30_000]);
    }

    #[test]
    fn failed_attempts_double_the_wait_up_to_a_tenth_of_a_second() {
        let waits: Vec<_> = (1..=6).map(|failures| backoff(failures) / (SECOND / 1000)).collect();
        assert_eq!(waits, [10, 20, 40, 80, 100, 100]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
