//! The steps of a run: when each ends, and what the next begins with.

use std::ops::ControlFlow;

use super::{Engine, clients};
use crate::load::arrivals::ArrivalProcess;
use crate::load::driver::Driver;
use crate::load::error::{ErrorName, Phase};
use crate::load::mode::Traffic;
use crate::load::progress::Step;
use crate::load::schedule::{Arrivals, Events, Pace, SendSchedule};
use crate::load::stage::Stage;
use crate::load::stage_totals::StageTotals;
use crate::load::timer::{SECOND, nanoseconds};

/// The close phase ends after this many timeouts and this time for each connection, however the server trickles.
const CLOSE_TIMEOUTS_MAX: u64 = 10;
const CLOSE_TIME_MAX: u64 = SECOND / 1000;

impl Engine {
    /// Begins the warm-up of a window.
    pub(in crate::load) fn begin_window(&mut self) {
        if self.driver.step != Step::Ready || self.interrupted {
            return;
        }
        for (_, client) in clients(&mut self.reactor) {
            client.messages.reported = 0;
        }
        let traffic = self.driver.workload.traffic();
        let mut slots = self.assign_slots(traffic);
        self.driver.has_no_connection = self.config.unresolved > 0 || slots.is_empty() && self.config.is_scheduled();
        if self.driver.has_no_connection {
            // Every message of the window is due, and stays unsent.
            slots = vec![None; self.config.connections as usize];
        }
        self.driver.totals.stages = StageTotals::new(&self.config.stages);
        // What came before grows with the number of connections: no message is due in that time.
        let now = self.driver.clock.read();
        let window = &mut self.driver.window;
        window.start = now + nanoseconds(self.config.warmup);
        let is_timed = self.driver.workload.is_timed();
        window.end = if is_timed { window.start + nanoseconds(self.config.window()) } else { u64::MAX };
        self.driver.totals.stages.begin(window.start);
        self.windows += 1;
        self.enter(Step::Warmup);
        self.start_traffic(traffic, slots);
        // Without a warm-up the window begins now.
        self.change_step();
    }

    /// Begins to close every connection.
    pub(in crate::load) fn begin_close(&mut self) {
        if !matches!(self.driver.step, Step::Ready | Step::Idle) || self.interrupted {
            return;
        }
        self.enter(Step::Close);
        let connector = &mut self.driver.connector;
        let mut keys = Vec::new();
        for (key, client) in clients(&mut self.reactor) {
            client.enter(Stage::Finished, &mut connector.counts, self.driver.clock.now());
            keys.push(key);
        }
        connector.close_all(keys);
    }

    /// Enters the next step if the current one is over.
    pub(super) fn change_step(&mut self) {
        let (step, driver) = (self.driver.step, &self.driver);
        match step {
            Step::Connect if driver.workload.is_connected(&driver.status()) => self.enter(Step::Ready),
            Step::Warmup if driver.clock.now() >= driver.window.start => {
                self.timeline.start(driver.window.start, driver.totals.error_count());
                self.enter(Step::Measure);
                self.begun[Step::Measure as usize] = self.driver.window.start;
            }
            Step::Measure if driver.is_over() => self.end_window(),
            Step::Drain if driver.workload.is_drained(&driver.status()) => {
                if driver.workload.closes_from() > Step::Drain {
                    self.count_held();
                }
                self.driver.end_measurement();
                self.enter(Step::Idle);
            }
            Step::Close if driver.connector.counts.open() == 0 => self.enter(Step::Done),
            _ => return,
        }
        // The new step may be over already. The session takes measurements when one of these two begins.
        if !matches!(self.driver.step, Step::Measure | Step::Drain) {
            self.change_step();
        }
    }

    pub(super) fn enter(&mut self, step: Step) {
        self.driver.step = step;
        self.begun[step as usize] = self.driver.clock.now();
        self.publish(None);
    }

    /// Gives each steady connection its slot in the schedule of `traffic`, if it has one.
    fn assign_slots(&mut self, traffic: Traffic) -> Vec<Option<usize>> {
        let mut slots = Vec::new();
        if matches!(traffic, Traffic::Scheduled { .. }) {
            for (key, client) in clients(&mut self.reactor).filter(|(_, client)| client.stage == Stage::Steady) {
                client.assign_slot(u32::try_from(slots.len()).unwrap_or(u32::MAX), 0);
                slots.push(Some(key));
            }
            // A connection that is down has its slot too.
            for outage in self.driver.reconnects.open() {
                outage.slot = u32::try_from(slots.len()).unwrap_or(u32::MAX);
                slots.push(None);
            }
        }
        slots
    }

    fn start_traffic(&mut self, traffic: Traffic, slots: Vec<Option<usize>>) {
        let window = self.driver.window;
        match traffic {
            Traffic::Nothing => {}
            Traffic::OnReply => self.driver.starting = 0..self.reactor.capacity(),
            Traffic::Scheduled { rate, messages } => {
                self.driver.schedule = Some(SendSchedule::new(self.events(rate), slots, messages, window));
            }
            Traffic::Connections { rate } => {
                self.driver.connector.arrivals = Some(Arrivals::new(self.events(rate), window));
            }
        }
    }

    /// Returns the events of a schedule that begins now: at `rate`, or in the stages.
    fn events(&self, rate: f64) -> Events {
        let (now, rank) = (self.driver.clock.now(), self.config.rank());
        let pace = match &self.config.stages[..] {
            [] => Pace::new(now, rate, rank),
            stages => Pace::of_stages(now, stages, rank),
        };
        match self.config.arrivals {
            ArrivalProcess::Even => Events::even(pace),
            // Each window has other arrivals.
            ArrivalProcess::Poisson => Events::poisson(pace, self.config.seed, self.windows),
        }
    }

    fn end_window(&mut self) {
        self.driver.window.end = self.driver.window.end.min(self.driver.end_of_traffic());
        self.driver.starting = 0..0;
        self.end_arrivals(self.driver.window.end, usize::MAX);
        self.end_reconnects(self.driver.window.end);
        let last_traffic = self.driver.workload.last_traffic();
        if last_traffic == Traffic::Nothing {
            self.driver.end_measurement();
        }
        self.end_second();
        self.timeline.stop();
        self.enter(Step::Drain);
        // A late turn is no part of the window.
        self.begun[Step::Drain as usize] = self.driver.clock.now().min(self.driver.window.end);
        let slots = self.assign_slots(last_traffic);
        self.driver.clock.read();
        self.start_traffic(last_traffic, slots);
        if self.driver.workload.closes_from() == Step::Drain {
            self.count_held();
        }
        if let Some(failure) = self.driver.connector.never_connected() {
            let now = self.driver.clock.now();
            self.driver.totals.record_errors(failure.phase, failure.error, failure.errno, 1, now);
        }
    }

    /// Counts the connections that would be held if the run ended now.
    pub(in crate::load) fn count_held_until_now(&mut self) {
        let driver = &mut self.driver;
        if driver.step >= driver.workload.closes_from() {
            // They were counted before the first was closed.
            return;
        }
        if driver.step < Step::Drain {
            // None was asked: there is no need to look at each.
            let counts = &mut driver.connector.counts;
            counts.held = counts.at(Stage::Steady);
            (counts.late, counts.unasked) = (0, counts.held);
        } else {
            self.count_held();
        }
    }

    fn count_held(&mut self) {
        let counts = &mut self.driver.connector.counts;
        (counts.held, counts.late, counts.unasked) = (0, 0, 0);
        for (_, client) in clients(&mut self.reactor).filter(|(_, client)| client.stage == Stage::Steady) {
            counts.held += 1;
            counts.late += u64::from(client.is_late);
            counts.unasked += u64::from(client.messages.done < 2);
        }
    }

    /// Ends every connection of an interrupted run. Messages in flight are unanswered, and those that were due and wait for a turn unsent.
    pub(super) fn end_all(&mut self) {
        let now = self.driver.clock.read();
        // A connection with wrong bytes is not held.
        for key in self.keys() {
            self.with_client(key, Driver::conclude);
        }
        if self.driver.step < self.driver.workload.closes_from() {
            self.count_held();
        }
        self.end_second();
        self.driver.window.end = self.driver.window.end.min(now);
        self.driver.starting = 0..0;
        self.end_arrivals(now, usize::MAX);
        self.end_reconnects(now);
        for key in self.keys() {
            self.abandon(key);
        }
        self.end_schedule(now);
        self.driver.end_measurement();
        for begun in &mut self.begun[self.driver.step as usize + 1..] {
            *begun = now;
        }
    }

    /// Returns when the connections that are still open are given up: after a timeout without any close, and in any case at a time that
    /// does not depend on the server.
    pub(super) fn close_deadline(&self) -> u64 {
        let (begun, timeout) = (self.begun[Step::Close as usize], nanoseconds(self.config.timeout));
        let bound = timeout
            .saturating_mul(CLOSE_TIMEOUTS_MAX)
            .saturating_add(CLOSE_TIME_MAX.saturating_mul(self.config.connections.into()));
        let after = |time: u64, length: u64| time.saturating_add(length).saturating_add(self.driver.pauses.since(time));
        after(self.driver.last_closed.max(begun), timeout).min(after(begun, bound))
    }

    /// Ends every connection that has not closed.
    pub(super) fn end_close(&mut self) {
        for key in self.keys() {
            self.with_client(key, |driver, client| {
                ControlFlow::Break(driver.fail(client, Phase::Close, ErrorName::Timeout, None))
            });
        }
    }
}
