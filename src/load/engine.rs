//! The loop of a run: waits, dispatches, and leads the run from step to step.

mod due;
mod steps;

use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Waker};

use super::client::Client;
use super::config::Config;
use super::driver::{Driver, Registered, Removal};
use super::error::{ErrorName, Phase};
use super::hand::Hand;
use super::interrupt::Interrupt;
use super::mode::new_workload;
use super::progress::{Progress, ProgressCell, Step};
use super::reconnects::OUTAGE_BYTES;
use super::report::{Histogram, Sample};
use super::search::StopRule;
use super::timeline::Timeline;
use super::timer::{SECOND, Timer, nanoseconds};
use crate::error::cannot;
use crate::memory;
use crate::reactor::Reactor;

const EVENTS_PER_TURN: usize = 1024;
/// The loop wakes up at least this often, so that a pause of the generator itself shows.
const BEAT: u64 = SECOND / 10;
/// Bytes of a connection in lists of keys and in the schedule.
const LIST_BYTES: usize = 96;
/// Bytes of memory for everything that is not of a connection.
const MEMORY_KEPT: usize = 16 << 20;

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) driver: Driver,
    /// When each step began, in nanoseconds of the run.
    pub(super) begun: [u64; Step::COUNT],
    pub(super) timeline: Timeline,
    pub(super) turn: Histogram,
    /// The longest time in which the generator was late at the poll: a turn, the caller's time, or a wait that ended after its timeout.
    pub(super) longest_gap: u64,
    pub(super) interrupted: bool,
    reactor: Reactor<Registered>,
    timer: Timer,
    interrupt: Interrupt,
    /// A waker must live as long as its poll.
    _waker: Arc<Waker>,
    progress: ProgressCell,
    /// In a search, when the window is given up.
    stop_rule: Option<StopRule>,
    hand: Hand,
    /// Number of windows that have begun.
    windows: u64,
    /// Connections whose timeout has expired. Each is read once more before it ends.
    expiring: Vec<usize>,
    next_beat: u64,
    /// When the last wait returned.
    turn_start: u64,
}

impl Engine {
    /// # Errors
    ///
    /// - The errors of [`Driver::new`].
    /// - The process or the system is out of descriptors.
    pub(super) fn new(config: Config, interrupt: &Interrupt, progress: ProgressCell) -> io::Result<Self> {
        let mut reactor = Reactor::new(EVENTS_PER_TURN)?;
        let timer = Timer::new()?;
        reactor.insert(SourceFd(&timer.descriptor()), Interest::READABLE, |_| Registered::Timer)?;
        let waker = Arc::new(reactor.waker()?);
        interrupt.register(&waker);
        reserve(&mut reactor, &config)?;
        let mut driver = Driver::new(&config)?;
        if config.unresolved > 0 {
            // Without one of its targets it would be another run: it connects nothing.
            driver.step = if config.is_open_loop() { Step::Ready } else { Step::Done };
        }
        for _ in 0..config.unresolved {
            driver.totals.record_errors(Phase::Resolve, ErrorName::Other, None, 1, 0);
        }
        let hand = Hand::new(hand_period(&config), 0, reactor.capacity());
        Ok(Self {
            config,
            driver,
            begun: [0; Step::COUNT],
            timeline: Timeline::new(),
            turn: Histogram::new(),
            longest_gap: 0,
            interrupted: false,
            reactor,
            timer,
            interrupt: interrupt.clone(),
            _waker: waker,
            progress,
            stop_rule: None,
            hand,
            windows: 0,
            expiring: Vec::new(),
            next_beat: 0,
            turn_start: 0,
        })
    }

    /// Runs until step `until` begins or the run is interrupted. From `pause` on, in nanoseconds of the run, it returns earlier: in the
    /// window at the end of a second, whose latencies the timeline has by then.
    pub(super) fn run_until(&mut self, until: Step, pause: u64) -> io::Result<()> {
        // The caller's time is no turn, but a gap if it is within a step.
        let start = self.turn_start.max(self.begun[self.driver.step as usize]);
        self.turn_start = self.driver.clock.read();
        self.record_gap(start, self.turn_start);
        while self.driver.step < until && !self.interrupted {
            let is_window = self.driver.step == Step::Measure;
            let next = self.advance();
            if self.driver.step >= until {
                // The caller takes its measurements before the first work of this step.
                if is_window {
                    self.end_last_turn();
                }
                break;
            }
            let is_mid_second = self.driver.step == Step::Measure && self.driver.totals.is_mid_second();
            if self.driver.clock.now() >= pause && !is_mid_second {
                break;
            }
            self.turn(next)?;
        }
        self.driver.totals.end_second();
        Ok(())
    }

    /// Serves the events that arrived while the caller had the thread.
    pub(super) fn serve_arrived(&mut self) -> io::Result<()> {
        self.turn_start = self.driver.clock.read();
        while !self.interrupted {
            self.turn(0)?;
            if !self.reactor.has_pending() {
                break;
            }
        }
        Ok(())
    }

    /// Serves the events that arrived between two windows, and starts the time of the next report.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        self.serve_arrived()?;
        if self.driver.step == Step::Idle {
            self.driver.step = Step::Ready;
        }
        self.begun = [self.driver.clock.now(); Step::COUNT];
        Ok(())
    }

    /// Clears the counts that a report contains. The connections stay as they are.
    pub(super) fn reset(&mut self) {
        self.driver.totals.reset();
        self.driver.breakdown.reset();
        self.driver.schedule = None;
        self.timeline.reset();
        self.turn.clear();
        self.longest_gap = 0;
    }

    /// Begins to open a connection in place of each that has ended. A run without one of its targets connects nothing.
    pub(super) fn reopen(&mut self) {
        self.driver.connector.restart_pace(self.driver.clock.now());
        let counts = &mut self.driver.connector.counts;
        let missing = counts.requested.saturating_sub(counts.open());
        counts.replaced = (counts.opened + missing).saturating_sub(counts.requested);
        if missing > 0 && !self.interrupted && self.config.unresolved == 0 {
            self.enter(Step::Connect);
        }
    }

    /// Sets the rate and the length of the next window, and when it is given up.
    pub(super) fn set_window(&mut self, rate: f64, duration: Duration, stop_rule: StopRule) {
        self.config.duration = duration;
        self.stop_rule = Some(stop_rule);
        self.set_rate(rate);
    }

    /// Sets the rate of the windows that follow.
    pub(super) fn set_rate(&mut self, rate: f64) {
        self.config.rate = Some(rate);
        self.driver.workload = new_workload(&self.config);
    }

    /// Sets the size of the messages that follow. No message is outstanding.
    pub(super) fn set_size(&mut self, size: usize) {
        (self.config.size, self.config.size_max) = (size, None);
        let sizes = self.config.sizes();
        self.driver.sizes = sizes;
        for (_, client) in clients(&mut self.reactor) {
            client.move_to_next_boundary(&sizes);
        }
    }

    /// Ends the window if it can no longer pass.
    fn stop_early(&mut self) {
        let now = self.driver.clock.now();
        if self.driver.step == Step::Measure
            && self.stop_rule.as_ref().is_some_and(|rule| rule.cannot_pass(&self.driver.totals))
        {
            if let Some(schedule) = &mut self.driver.schedule {
                schedule.truncate(now);
            }
            self.driver.window.end = self.driver.window.end.min(now);
        }
    }

    /// Waits once, at most until `next`, and serves what is ready.
    fn turn(&mut self, next: u64) -> io::Result<()> {
        let (start, end) = (self.turn_start, self.driver.clock.read());
        if self.driver.step == Step::Measure {
            self.turn.record(end - start);
        }
        let timeout = if next <= end {
            Some(Duration::ZERO)
        } else {
            self.timer.arm(next, end)?;
            None
        };
        self.reactor.wait(timeout)?;
        self.turn_start = self.driver.clock.read();
        self.record_gap(start, end);
        self.record_gap(next.max(end), self.turn_start);
        self.reactor.serve(1, &mut self.driver);
        if self.interrupt.is_set() {
            self.interrupted = true;
            self.end_all();
        }
        Ok(())
    }

    /// Records the turn that has ended the window, which no wait follows.
    fn end_last_turn(&mut self) {
        let (start, end) = (self.turn_start, self.driver.clock.read());
        self.turn.record(end - start);
        self.record_gap(start, end);
        self.turn_start = end;
    }

    /// Records that the generator was late at the poll from `start` to `end`.
    fn record_gap(&mut self, start: u64, end: u64) {
        self.driver.pauses.record(start, end);
        if matches!(self.driver.step, Step::Measure | Step::Drain) {
            self.longest_gap = self.longest_gap.max(end.saturating_sub(start));
        }
    }

    /// Runs everything that is due and returns when the next work is due.
    fn advance(&mut self) -> u64 {
        let now = self.driver.clock.now();
        for key in mem::take(&mut self.expiring) {
            self.with_client(key, Driver::expire);
        }
        if now >= self.hand.next_due() {
            self.find_expired();
        }
        if now >= self.next_beat {
            self.beat();
        }
        if now >= self.timeline.next() {
            self.end_second();
        }
        if self.driver.step == Step::Close && now >= self.close_deadline() {
            self.end_close();
        }
        self.defer_arrivals();
        self.open_connection();
        self.reopen_connection();
        self.connect_unix();
        self.close_connections();
        self.start_connections();
        self.resume_faulted();
        self.enqueue_due();
        self.change_step();
        self.next_event()
    }

    /// Finds the connections of the next slice whose timeout has expired, and has them read once more: after a pause of the generator
    /// itself, replies may wait in the sockets.
    fn find_expired(&mut self) {
        let slice = self.hand.take_slice(self.driver.clock.now(), self.reactor.capacity());
        for key in slice {
            if let Some(Registered::Client(client)) = self.reactor.get_mut(key)
                && self.driver.expired(client).is_some()
            {
                client.expect_input();
                self.reactor.resume(key);
                self.expiring.push(key);
            }
        }
    }

    fn beat(&mut self) {
        self.next_beat = self.driver.clock.now() + BEAT;
        self.stop_early();
        // Only in the window does each second publish progress, and the other steps may take minutes.
        if self.driver.step != Step::Measure {
            self.publish(None);
        }
    }

    /// Adds a sample to the timeline.
    fn end_second(&mut self) {
        let Driver { step, clock, window, totals, connector, breakdown, .. } = &mut self.driver;
        if *step == Step::Measure {
            totals.expire_lost(clock.now(), breakdown);
            let sample = self.timeline.end_second(clock.now(), *window, totals, connector.counts.connected()).copied();
            if sample.is_some() {
                self.publish(sample);
            }
        }
    }

    fn publish(&self, sample: Option<Sample>) {
        let Driver { step, clock, window, totals, connector, .. } = &self.driver;
        let is_timed = matches!(step, Step::Warmup | Step::Measure) && window.end < u64::MAX;
        self.progress.publish(Progress {
            step: *step,
            open: connector.counts.connected(),
            requested: connector.counts.requested,
            opened: connector.counts.opened_measured(),
            messages: totals.messages,
            rate: sample.map(|sample| sample.rate),
            p50: sample.and_then(|sample| sample.p50),
            p99: sample.and_then(|sample| sample.p99),
            errors: totals.error_count(),
            left: is_timed.then(|| Duration::from_nanos(window.end.saturating_sub(clock.now()))),
        });
    }

    fn keys(&mut self) -> Vec<usize> {
        clients(&mut self.reactor).map(|(key, _)| key).collect()
    }

    /// Calls `step` for the connection under `key`, and removes the connection if `step` returns a removal.
    fn with_client(&mut self, key: usize, step: impl FnOnce(&mut Driver, &mut Client) -> ControlFlow<Removal>) {
        if let Some(Registered::Client(client)) = self.reactor.get_mut(key)
            && let ControlFlow::Break(removal) = step(&mut self.driver, client)
        {
            self.driver.remove(&mut self.reactor, key, removal);
        }
    }
}

/// Reserves the memory of every connection. What is allocated later cannot fail without ending the process.
fn reserve(reactor: &mut Reactor<Registered>, config: &Config) -> io::Result<()> {
    let (connections, due_times) = (config.connections as usize, config.due_times_max());
    let ring =
        due_times.filter(|&due_times| due_times > 1).map_or(0, |due_times| due_times.saturating_mul(size_of::<u64>()));
    let outage = if config.reconnect { OUTAGE_BYTES } else { 0 };
    memory::check(connections.saturating_mul(ring.saturating_add(LIST_BYTES + outage)).saturating_add(MEMORY_KEPT))
        .and_then(|()| reactor.try_reserve(connections))
        .map_err(|error| {
            let pipeline = config.pipeline.map_or(String::new(), |pipeline| format!(" with pipeline {pipeline}"));
            let noun = if connections == 1 { "connection" } else { "connections" };
            cannot(format_args!("allocate {connections} {noun}{pipeline}"), error)
        })
}

fn clients(reactor: &mut Reactor<Registered>) -> impl Iterator<Item = (usize, &mut Client)> {
    reactor.iter_mut().filter_map(|(key, registered)| match registered {
        Registered::Client(client) => Some((key, client)),
        Registered::Faulted(_) | Registered::Timer => None,
    })
}

/// Returns how often each connection's timeout is looked at: often enough for a tenth of the shorter timeout.
fn hand_period(config: &Config) -> u64 {
    let shorter = nanoseconds(config.connect_timeout.min(config.timeout));
    (shorter / 10).clamp(SECOND / 1000, SECOND / 2)
}

#[cfg(test)]
mod tests;
