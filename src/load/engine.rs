//! The loop of a run: waits, dispatches, and leads the run from step to step.

mod due;

use std::io;
use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Waker};

use super::arrivals::ArrivalProcess;
use super::client::Client;
use super::config::Config;
use super::driver::{Driver, Pause, Registered, Removal};
use super::error::{ErrorName, Phase};
use super::hand::Hand;
use super::interrupt::Interrupt;
use super::mode::{Traffic, new_workload};
use super::progress::{Progress, ProgressCell, Step};
use super::reconnects::OUTAGE_BYTES;
use super::report::{Histogram, Sample};
use super::schedule::{Arrivals, Events, Pace, SendSchedule};
use super::search::StopRule;
use super::stage::Stage;
use super::stage_totals::StageTotals;
use super::timeline::Timeline;
use super::timer::{SECOND, Timer, nanoseconds};
use crate::error::cannot;
use crate::memory;
use crate::reactor::Reactor;

const EVENTS_PER_TURN: usize = 1024;
/// The loop wakes up at least this often, so that a pause of the generator itself shows.
const BEAT: u64 = SECOND / 10;
/// A longer gap is a pause of the generator itself, which does not count towards a timeout.
const PAUSE_MIN: u64 = SECOND / 10;
/// Bytes of a connection in lists of keys and in the schedule.
const LIST_BYTES: usize = 96;
/// Bytes of memory for everything that is not of a connection.
const MEMORY_KEPT: usize = 16 << 20;
/// The close phase ends after this many timeouts and this time for each connection, however the server trickles.
const CLOSE_TIMEOUTS_MAX: u64 = 10;
const CLOSE_TIME_MAX: u64 = SECOND / 1000;

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) driver: Driver,
    /// When each step began, in nanoseconds of the run.
    pub(super) begun: [u64; Step::COUNT],
    pub(super) timeline: Timeline,
    pub(super) turn: Histogram,
    /// The longest time in which the generator was late at the poll: a turn, or a wait that ended after its timeout.
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
        // The caller's time between two steps is no turn.
        self.turn_start = self.driver.clock.read();
        while self.driver.step < until && !self.interrupted {
            let next = self.advance();
            if self.driver.step >= until {
                // The caller takes its measurements before the first work of this step.
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

    /// Begins to open a connection in place of each that has ended, and returns their number.
    pub(super) fn reopen(&mut self) -> u64 {
        let counts = &mut self.driver.connector.counts;
        let missing = counts.requested.saturating_sub(counts.open());
        counts.replaced = (counts.opened + missing).saturating_sub(counts.requested);
        if missing > 0 && !self.interrupted {
            self.enter(Step::Connect);
        }
        missing
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

    /// Begins the warm-up of a window.
    pub(super) fn begin_window(&mut self) {
        if self.driver.step != Step::Ready || self.interrupted {
            return;
        }
        for (_, client) in clients(&mut self.reactor) {
            client.messages.reported = 0;
        }
        let traffic = self.driver.workload.traffic();
        let mut slots = self.assign_slots(traffic);
        self.driver.reaches_nobody = self.config.unresolved > 0 || slots.is_empty() && self.config.is_scheduled();
        if self.driver.reaches_nobody {
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
        if self.driver.reaches_nobody {
            self.end_arrivals(self.driver.window.end);
        }
        // Without a warm-up the window begins now.
        self.change_step();
    }

    /// Begins to close every connection.
    pub(super) fn begin_close(&mut self) {
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

    /// Waits once, at most until `next`, and serves what is ready.
    fn turn(&mut self, next: u64) -> io::Result<()> {
        let end = self.driver.clock.read();
        let took = end - self.turn_start;
        if self.driver.step == Step::Measure {
            self.turn.record(took);
        }
        let timeout = if next <= end {
            Some(Duration::ZERO)
        } else {
            self.timer.arm(next, end)?;
            None
        };
        self.reactor.wait(timeout)?;
        self.turn_start = self.driver.clock.read();
        self.record_gap(took.max(self.turn_start.saturating_sub(next.max(end))));
        self.reactor.serve(1, &mut self.driver);
        if self.interrupt.is_set() {
            self.interrupted = true;
            self.end_all();
        }
        Ok(())
    }

    fn record_gap(&mut self, gap: u64) {
        if gap >= PAUSE_MIN {
            self.driver.pause = Pause { end: self.turn_start, length: gap };
        }
        if matches!(self.driver.step, Step::Measure | Step::Drain) {
            self.longest_gap = self.longest_gap.max(gap);
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

    /// Returns when the connections that are still open are given up: after a timeout without any close, and in any case at a time that
    /// does not depend on the server.
    fn close_deadline(&self) -> u64 {
        let (begun, timeout) = (self.begun[Step::Close as usize], nanoseconds(self.config.timeout));
        let bound = timeout
            .saturating_mul(CLOSE_TIMEOUTS_MAX)
            .saturating_add(CLOSE_TIME_MAX.saturating_mul(self.config.connections.into()));
        (self.driver.last_closed.max(begun) + timeout).min(begun.saturating_add(bound))
    }

    /// Ends every connection that has not closed.
    fn end_close(&mut self) {
        for key in self.keys() {
            self.with_client(key, |driver, client| {
                ControlFlow::Break(driver.fail(client, Phase::Close, ErrorName::Timeout, None))
            });
        }
    }

    fn enter(&mut self, step: Step) {
        self.driver.step = step;
        self.begun[step as usize] = self.driver.clock.now();
        self.publish(None);
    }

    /// Enters the next step if the current one is over.
    fn change_step(&mut self) {
        let (step, driver) = (self.driver.step, &self.driver);
        match step {
            Step::Connect if driver.workload.is_connected(&driver.status()) => self.enter(Step::Ready),
            Step::Warmup if driver.clock.now() >= driver.window.start => {
                self.timeline.start(driver.window.start);
                self.enter(Step::Measure);
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
                let schedule = SendSchedule::new(self.events(rate), slots, messages, window);
                let schedule = self.driver.schedule.insert(schedule);
                if self.driver.reconnects.has_open() {
                    schedule.await_connections();
                }
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
        self.end_arrivals(self.driver.window.end);
        self.end_reconnects(self.driver.window.end);
        let last_traffic = self.driver.workload.last_traffic();
        if last_traffic == Traffic::Nothing {
            self.driver.end_measurement();
        }
        self.end_second();
        self.timeline.stop();
        self.enter(Step::Drain);
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
    fn end_all(&mut self) {
        let now = self.driver.clock.read();
        if self.driver.step < self.driver.workload.closes_from() {
            self.count_held();
        }
        self.end_second();
        self.driver.window.end = self.driver.window.end.min(now);
        self.driver.starting = 0..0;
        self.end_arrivals(now);
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
        let Driver { step, clock, window, totals, connector, .. } = &mut self.driver;
        if *step == Step::Measure {
            totals.expire_lost(clock.now());
            let sample = self.timeline.end_second(clock.now(), *window, totals, connector.counts.open()).copied();
            if sample.is_some() {
                self.publish(sample);
            }
        }
    }

    fn publish(&self, sample: Option<Sample>) {
        let Driver { step, clock, window, totals, connector, faults, .. } = &self.driver;
        let is_timed = matches!(step, Step::Warmup | Step::Measure) && window.end < u64::MAX;
        self.progress.publish(Progress {
            step: *step,
            open: connector.counts.open(),
            requested: connector.counts.requested,
            opened: connector.counts.opened - faults.established(),
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
