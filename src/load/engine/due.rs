//! Begins what is due, a bounded number of each in a turn: connects, closes and messages.

use std::ops::{ControlFlow, Range};

use super::Engine;
use crate::load::driver::{Driver, Registered, Removal};
use crate::load::hand::SLICE;
use crate::load::progress::Step;
use crate::load::schedule::{Arrivals, Due};
use crate::load::totals::AbandonReason;

/// Maximum number of connections closed in a turn, so that the others do not wait for all closes.
const CLOSES_PER_TURN: u32 = 64;
/// Maximum number of scheduled messages and connections that become due in a turn.
const DUE_PER_TURN: usize = 1024;

impl Engine {
    /// Returns when the next work is due.
    pub(super) fn next_event(&self) -> u64 {
        let driver = &self.driver;
        let step = match driver.step {
            Step::Warmup => driver.window.start,
            Step::Measure => driver.window.end,
            _ => u64::MAX,
        };
        let close = driver.connector.may_close().then(|| driver.clock.now());
        let start = (!driver.starting.is_empty()).then(|| driver.clock.now());
        let arrival = if driver.has_arrivals_without_connection() {
            Some(driver.clock.now())
        } else {
            driver.connector.arrivals.as_ref().and_then(Arrivals::next_untimed)
        };
        let (faulted, unix) = (driver.faults.timers.next_at(), driver.backlogs.next_due());
        let times =
            [self.next_connect(), self.next_reconnect(), unix, close, start, arrival, driver.next_due(), faulted];
        let next = times.into_iter().flatten().min().unwrap_or(u64::MAX);
        next.min(step).min(self.timeline.next()).min(self.hand.next_due()).min(self.next_beat)
    }

    fn next_connect(&self) -> Option<u64> {
        let driver = &self.driver;
        if !driver.has_arrivals_without_connection() && driver.workload.may_connect(&driver.status()) {
            self.driver.connector.next_connect()
        } else {
            None
        }
    }

    /// Returns when the next connection that has ended may be opened anew.
    fn next_reconnect(&self) -> Option<u64> {
        let driver = &self.driver;
        let next = driver.reconnects.next_attempt()?;
        let is_window = matches!(driver.step, Step::Warmup | Step::Measure);
        (is_window && driver.connector.has_room()).then_some(next)
    }

    /// Begins to open anew a connection that has ended, if it is time: at most one a turn, as [`Engine::open_connection`].
    pub(super) fn reopen_connection(&mut self) {
        if self.next_reconnect().is_some_and(|at| at <= self.driver.clock.now()) {
            self.driver.reopen(&mut self.reactor);
        }
    }

    /// Gives up the connections that are down, and the attempts in progress.
    pub(super) fn end_reconnects(&mut self, time: u64) {
        for key in self.driver.reconnects.end(time) {
            self.abandon(key);
        }
    }

    /// Ends a connection whose messages in flight are unanswered, unless wrong bytes have arrived.
    pub(super) fn abandon(&mut self, key: usize) {
        self.with_client(key, |driver, client| {
            driver.conclude(client)?;
            driver.abandon(client, AbandonReason::Unanswered);
            ControlFlow::Break(Removal::Ended)
        });
    }

    /// Begins the next connect if it is due: at most one a turn, so that no handshake waits for other connects to be noticed.
    pub(super) fn open_connection(&mut self) {
        if self.next_connect().is_none_or(|at| at > self.driver.clock.now()) {
            return;
        }
        let now = self.driver.clock.read();
        let connector = &mut self.driver.connector;
        let arrival = connector.arrivals.as_mut().and_then(|arrivals| arrivals.take_due(now));
        let due = arrival.map(|(due, _)| due).or(connector.next_due()).unwrap_or(now);
        if let Some((number, result)) = connector.connect(now) {
            connector.counts.opened_faulted += u64::from(self.driver.faults.chooses(number));
            self.driver.begin(&mut self.reactor, number, due, result);
        }
        if let Some((due, false)) = arrival {
            self.driver.clock.read();
            self.driver.record_connect_lateness(due, 1);
        }
    }

    /// Connects the next connection to a Unix socket, if it is time: at most one a turn, as [`Engine::open_connection`].
    pub(super) fn connect_unix(&mut self) {
        let now = self.driver.clock.now();
        if self.driver.backlogs.next_due().is_none_or(|at| at > now) {
            return;
        }
        let Some(waiting) = self.driver.backlogs.take_due(now) else { return };
        let mut is_connected = false;
        self.with_client(waiting.key, |driver, client| {
            is_connected = driver.connect_unix(client, waiting)?;
            ControlFlow::Continue(())
        });
        if is_connected {
            // No event follows a connect that has succeeded at once.
            self.reactor.resume(waiting.key);
        }
    }

    /// Records the connections of an open loop that are due and wait because the maximum is open or connecting. In a run that connects
    /// nothing they are unsent, and wait for no time.
    pub(super) fn defer_arrivals(&mut self) {
        if self.driver.has_no_connection {
            return self.end_arrivals(u64::MAX, DUE_PER_TURN);
        }
        let now = self.driver.clock.now();
        if now >= self.driver.window.end {
            // After a pause of the generator itself, none of them has waited for a place.
            return;
        }
        if self.driver.connector.arrivals.is_none() || self.next_connect().is_some_and(|at| at <= now) {
            return;
        }
        for _ in 0..DUE_PER_TURN {
            let arrivals = self.driver.connector.arrivals.as_mut();
            let Some(due) = arrivals.and_then(|arrivals| arrivals.take_waiting(now)) else { return };
            self.driver.record_connect_lateness(due, 1);
            self.driver.record_connect_deferred(due);
        }
    }

    /// Records the connections of an open loop that are due by `time` and never began, at most those of `ticks_max` ticks.
    pub(super) fn end_arrivals(&mut self, time: u64, ticks_max: usize) {
        for _ in 0..ticks_max {
            let arrivals = self.driver.connector.arrivals.as_mut();
            let Some(unsent) = arrivals.and_then(|arrivals| arrivals.take_unsent(time)) else { return };
            self.driver.record_unsent(unsent.due, unsent.count);
            // The generator did not come to these in time. One that connects nothing is never late.
            if unsent.untimed > 0 && !self.driver.has_no_connection {
                self.driver.record_connect_lateness(unsent.due, unsent.untimed);
            }
        }
    }

    /// Records the scheduled messages that are due by `time`, once every connection has ended.
    pub(super) fn end_schedule(&mut self, time: u64) {
        // Without any connection, messages do not wait for their time: those left may be of hours, and the others are recorded.
        if self.driver.has_no_connection {
            return;
        }
        let unsent = |driver: &mut Driver| driver.schedule.as_mut()?.take_due(time);
        while let Some(Due::Unsent { due, count }) = unsent(&mut self.driver) {
            self.driver.record_unsent(due, count);
        }
    }

    pub(super) fn close_connections(&mut self) {
        for _ in 0..CLOSES_PER_TURN {
            let Some(key) = self.driver.connector.next_close() else { return };
            self.with_client(key, Driver::close);
        }
    }

    /// Continues connections with faults that have waited for a time.
    pub(super) fn resume_faulted(&mut self) {
        let now = self.driver.clock.now();
        while let Some(key) = self.driver.faults.timers.pop_expired(now) {
            if let Some(Registered::Faulted(client)) = self.reactor.get_mut(key) {
                client.timer = None;
                self.reactor.resume(key);
            }
        }
    }

    /// Enqueues the scheduled messages that are due.
    pub(super) fn enqueue_due(&mut self) {
        for _ in 0..DUE_PER_TURN {
            let (due, key) = match self.driver.take_due() {
                None => return,
                Some(Due::Unsent { due, count }) => {
                    self.driver.record_unsent(due, count);
                    continue;
                }
                Some(Due::Message { due, key }) => (due, key),
            };
            self.with_client(key, |driver, client| {
                driver.enqueue(client, due);
                ControlFlow::Continue(())
            });
            // The message is sent when the connection is served, which is in this turn.
            self.reactor.resume(key);
        }
    }

    /// Begins the closed loop on the next connections, a slice in each turn.
    pub(super) fn start_connections(&mut self) {
        let Range { start, end } = self.driver.starting;
        let slice = start..end.min(start + SLICE);
        self.driver.starting = slice.end..end;
        for key in slice {
            self.with_client(key, Driver::send_next);
            self.reactor.resume(key);
        }
    }
}
