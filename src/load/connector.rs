//! Paces the connects and the closes of a run.

use std::io;

use super::config::Config;
use super::error::ErrorName;
use super::rank::Rank;
use super::schedule::{Arrivals, Pace};
use super::sources::{ConnectFailure, Connecting, SocketOptions, Sources};
use super::stage::{Counts, Stage};

/// Decides when the next connection is opened and when the next one is closed, and counts connections by stage.
///
/// Times are nanoseconds of the run.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) counts: Counts,
    pub(super) sources: Sources,
    options: SocketOptions,
    /// When each connect is due, if connects are paced.
    pace: Option<Pace>,
    /// The number of the first connect of the pace.
    first_paced: u64,
    /// This generator's connections are every Nth of all ranks', in their numbers too.
    rank: Rank,
    /// Maximum number of connects in progress, and of closes in progress: a million FINs overrun the queues of the kernel.
    max_connecting: u64,
    /// The connections of an open loop, from the beginning of its window on.
    pub(super) arrivals: Option<Arrivals>,
    /// Nanoseconds that the next connect waits after a failed one. With 0, a connect that finds no port is not repeated.
    retry_pause: u64,
    paused_until: u64,
    /// Why the last connect that is to be repeated found no port.
    no_ports: Option<ConnectFailure>,
    /// The keys of the connections to close.
    to_close: Vec<usize>,
}

impl Connector {
    /// # Errors
    ///
    /// - The errors of [`Sources::new`].
    pub(super) fn new(config: &Config, retry_pause: u64) -> io::Result<Self> {
        let rank = config.rank();
        let sources = if config.unresolved > 0 {
            // Nothing is connected.
            Sources::default()
        } else {
            Sources::new(&config.sources, &config.targets, config.seed, rank)?
        };
        Ok(Self {
            counts: Counts::new(config.connections.into()),
            sources,
            options: SocketOptions {
                nodelay: config.nodelay,
                recv_buffer: config.recv_buffer,
                send_buffer: config.send_buffer,
            },
            pace: config.connect_rate.map(|rate| Pace::new(0, rate, rank)),
            first_paced: 0,
            rank,
            max_connecting: config.max_connecting.into(),
            arrivals: None,
            retry_pause,
            paused_until: 0,
            no_ports: None,
            to_close: Vec::new(),
        })
    }

    /// Returns when the next connect may begin, or `None` while the maximum is in progress or none is to come.
    pub(super) fn next_connect(&self) -> Option<u64> {
        let due = if self.arrivals.is_some() { self.next_due()? } else { self.next_due().unwrap_or(0) };
        self.has_room().then(|| due.max(self.paused_until))
    }

    /// Returns whether another connect may be in progress.
    pub(super) fn has_room(&self) -> bool {
        self.counts.at(Stage::Connecting) < self.max_connecting
    }

    /// Returns when the next connect is due, or `None` if connects are not paced.
    pub(super) fn next_due(&self) -> Option<u64> {
        match &self.arrivals {
            Some(arrivals) => arrivals.next_due(),
            None => self.pace.as_ref().map(|pace| pace.time_of(self.counts.opened - self.first_paced)),
        }
    }

    /// Paces the connects that follow from `now` on: they were not due while others lasted.
    pub(super) fn restart_pace(&mut self, now: u64) {
        self.first_paced = self.counts.opened;
        if let Some(pace) = &mut self.pace {
            pace.restart(now);
        }
    }

    /// Begins a connect and returns the connection's number with the result, or `None` if no port is free yet.
    pub(super) fn connect(&mut self, now: u64) -> Option<(u64, Result<Connecting, ConnectFailure>)> {
        let result = self.sources.connect(&self.options);
        if let Err(failure) = result
            && failure.error == ErrorName::NoPorts
            && self.retry_pause > 0
        {
            // Every port may be in TIME_WAIT, and becomes free later.
            self.no_ports = Some(failure);
            self.pause(now);
            return None;
        }
        let number = self.rank.nth(self.counts.opened);
        self.counts.opened += 1;
        Some((number, result))
    }

    /// Returns a bound of the numbers of the connections opened, by any rank: others may be ahead.
    pub(super) fn numbers_end(&self) -> u64 {
        match self.rank.count {
            1 => self.counts.opened,
            count => 2 * u64::from(count) * self.counts.opened.max(self.counts.requested),
        }
    }

    /// Begins a connect from another port of the same pair, on a new socket, because `port` is taken.
    pub(super) fn reconnect(&mut self, pair: u32, port: Option<u16>) -> Result<Connecting, ConnectFailure> {
        self.sources.retry(pair, port, &self.options)
    }

    /// Begins a connect in place of a connection of `pair` that has ended, and returns its number with the result.
    pub(super) fn connect_anew(&mut self, pair: u32) -> (u64, Result<Connecting, ConnectFailure>) {
        let number = self.rank.nth(self.counts.opened);
        self.counts.opened += 1;
        self.counts.replaced += 1;
        (number, self.sources.connect_from(pair, &self.options))
    }

    /// Begins no further connect, unless connects are repeated or due at their times, and returns how many would have followed.
    pub(super) fn give_up(&mut self) -> u64 {
        if self.retry_pause > 0 || self.arrivals.is_some() {
            return 0;
        }
        let left = self.counts.total().saturating_sub(self.counts.opened);
        self.counts.opened += left;
        self.counts.opened_faulted = self.counts.faulted;
        left
    }

    /// Begins a connect to the next address of a target, on a new socket.
    pub(super) fn connect_from(&mut self, pair: u32) -> Result<Connecting, ConnectFailure> {
        self.sources.connect_from(pair, &self.options)
    }

    /// Delays the next connect by the retry pause, so that a dead server is not flooded.
    pub(super) fn pause(&mut self, now: u64) {
        self.paused_until = now + self.retry_pause;
    }

    /// Returns why no connect could begin in the whole run, if every one found no port.
    pub(super) fn never_connected(&self) -> Option<ConnectFailure> {
        self.no_ports.filter(|_| self.counts.opened == 0)
    }

    /// Sets the connections to close.
    pub(super) fn close_all(&mut self, keys: Vec<usize>) {
        self.to_close = keys;
    }

    /// Returns whether a connection may be closed now.
    pub(super) fn may_close(&self) -> bool {
        !self.to_close.is_empty() && self.counts.at(Stage::Closing) < self.max_connecting
    }

    /// Takes the key of the next connection to close, if one may be closed now.
    pub(super) fn next_close(&mut self) -> Option<usize> {
        if self.may_close() { self.to_close.pop() } else { None }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::load::schedule::{Events, Window};
    use crate::socket_address::AnyAddress;

    fn connector(change: impl FnOnce(&mut Config), retry_pause: u64) -> Connector {
        let mut config = Config::new(["127.0.0.1:9".parse::<AnyAddress>().unwrap()]);
        change(&mut config);
        Connector::new(&config, retry_pause).unwrap()
    }

    #[test]
    fn connects_are_paced_by_their_number() {
        let mut connector = connector(|config| config.connect_rate = Some(4.0), 0);
        assert_eq!(connector.next_connect(), Some(0));
        connector.counts.opened = 3;
        assert_eq!(connector.next_connect(), Some(750_000_000));
    }

    #[test]
    fn connects_after_a_restart_of_the_pace_are_due_from_then_on() {
        let mut connector = connector(|config| config.connect_rate = Some(4.0), 0);
        connector.counts.opened = 3;
        connector.restart_pace(7_000_000_000);
        assert_eq!((connector.next_connect(), connector.next_due()), (Some(7_000_000_000), Some(7_000_000_000)));
        connector.counts.opened += 1;
        assert_eq!(connector.next_connect(), Some(7_250_000_000));
    }

    #[test]
    fn no_connect_begins_while_the_maximum_is_in_progress() {
        let mut connector = connector(|config| config.max_connecting = 1, 0);
        connector.counts.change(None, Some(Stage::Connecting));
        assert_eq!(connector.next_connect(), None);
        connector.counts.change(Some(Stage::Connecting), Some(Stage::Opening));
        assert_eq!(connector.next_connect(), Some(0));
    }

    #[test]
    fn a_pause_delays_the_next_connect_only_where_there_is_one() {
        for (retry_pause, next) in [(0, 100), (10, 110)] {
            let mut connector = connector(|_| {}, retry_pause);
            connector.pause(100);
            assert_eq!(connector.next_connect(), Some(next));
        }
    }

    #[test]
    fn closes_in_progress_have_the_limit_of_connects() {
        let mut connector = connector(|config| config.max_connecting = 1, 0);
        connector.close_all(vec![1, 2]);
        assert_eq!(connector.next_close(), Some(2));
        connector.counts.change(None, Some(Stage::Closing));
        assert_eq!(connector.next_close(), None);
        connector.counts.change(Some(Stage::Closing), None);
        assert_eq!(connector.next_close(), Some(1));
        assert_eq!(connector.next_close(), None);
    }

    #[test]
    fn the_numbers_of_ranks_that_have_opened_twice_as_many_are_in_bounds() {
        assert_eq!(connector(|_| {}, 0).numbers_end(), 0);
        let rank = Rank { index: 0, count: 3 };
        let mut connector = connector(|config| (config.rank, config.connections) = (Some(rank), 7), 0);
        let end = |opened: u64| Rank { index: 2, ..rank }.nth(2 * opened - 1) + 1;
        assert_eq!(connector.numbers_end(), end(7));
        connector.counts.opened = 9;
        assert_eq!(connector.numbers_end(), end(9));
    }

    #[test]
    fn a_connection_that_replaces_another_takes_no_place_of_those_to_come() {
        // A Unix socket is only opened.
        let address: AnyAddress = "unix:/nonexistent".parse().unwrap();
        let change = |config: &mut Config| (config.targets, config.connections) = (vec![vec![address]], 2);
        let mut connector = connector(change, 0);
        let opened = connector.connect(0).map(|(number, result)| (number, result.is_ok()));
        let (number, replaced) = connector.connect_anew(0);
        assert_eq!((opened, number, replaced.is_ok()), (Some((0, true)), 1, true));
        assert!(!connector.counts.all_opened());
        assert_eq!(connector.connect(0).map(|(number, _)| number), Some(2));
        assert!(connector.counts.all_opened());
    }

    #[test]
    fn a_connect_without_a_port_is_repeated_only_after_a_pause() {
        // Without a resolved target no port is ever free.
        let mut connectors = [10, 0].map(|pause| connector(|config| config.unresolved = 1, pause));
        let [repeats, fails] = &mut connectors;
        assert!(repeats.connect(100).is_none());
        assert_eq!((repeats.next_connect(), repeats.counts.opened), (Some(110), 0));
        assert_eq!(repeats.never_connected().map(|failure| failure.error), Some(ErrorName::NoPorts));
        repeats.counts.opened = 1;
        assert!(repeats.never_connected().is_none());

        let failure = fails.connect(100).and_then(|(_, result)| result.err());
        assert_eq!((failure.map(|failure| failure.error), fails.counts.opened), (Some(ErrorName::NoPorts), 1));
        assert!(fails.never_connected().is_none());
    }

    #[test]
    fn connects_are_given_up_unless_they_are_repeated_or_have_their_times() {
        let mut gives_up = connector(|config| config.connections = 5, 0);
        gives_up.counts.opened = 2;
        gives_up.counts.exclude(2);
        assert_eq!((gives_up.give_up(), gives_up.give_up(), gives_up.counts.all_opened()), (3, 0, true));
        assert_eq!(gives_up.counts.opened_measured(), 3);
        assert_eq!(connector(|_| {}, 10).give_up(), 0);
        let mut at_times = connector(|_| {}, 0);
        let events = Events::even(Pace::new(0, 1.0, Rank::ALONE));
        at_times.arrivals = Some(Arrivals::new(events, Window { start: 0, end: 10 }));
        assert_eq!(at_times.give_up(), 0);
    }
}
