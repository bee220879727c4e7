//! The loop of a run: waits, dispatches, and leads the run from step to step.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Waker};

use super::client::Client;
use super::config::Config;
use super::driver::{Driver, Registered, Removal};
use super::error::{ErrorName, Phase};
use super::interrupt::Interrupt;
use super::mode::Traffic;
use super::progress::{Progress, ProgressCell, Step};
use super::report::{Histogram, Sample};
use super::schedule::SendSchedule;
use super::stage::Stage;
use super::timeline::Timeline;
use super::timer::{SECOND, Timer, nanoseconds};
use super::totals::AbandonReason;
use crate::memory;
use crate::reactor::Reactor;

/// Maximum number of connects begun in a turn, so that established connections do not wait for a storm of new ones.
const CONNECTS_PER_TURN: u32 = 64;
/// Maximum number of connections closed in a turn, for the same reason.
const CLOSES_PER_TURN: u32 = 64;
const EVENTS_PER_TURN: usize = 1024;
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
    pub(super) interrupted: bool,
    reactor: Reactor<Registered>,
    timer: Timer,
    interrupt: Interrupt,
    /// A waker must live as long as its poll.
    _waker: Arc<Waker>,
    progress: ProgressCell,
    /// When the timeouts are checked next.
    next_expiry: u64,
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
            // Without one of its targets it would be another run.
            driver.step = Step::Done;
        }
        for _ in 0..config.unresolved {
            driver.totals.record_error(Phase::Resolve, ErrorName::Other, None);
        }
        Ok(Self {
            config,
            driver,
            begun: [0; Step::COUNT],
            timeline: Timeline::new(),
            turn: Histogram::new(),
            interrupted: false,
            reactor,
            timer,
            interrupt: interrupt.clone(),
            _waker: waker,
            progress,
            next_expiry: 0,
        })
    }

    /// Runs until step `until` begins or the run is interrupted.
    pub(super) fn run_until(&mut self, until: Step) -> io::Result<()> {
        while self.driver.step < until && !self.interrupted {
            let timeout = self.advance()?;
            if self.driver.step >= until {
                // The caller takes its measurements before the first work of this step.
                break;
            }
            self.turn(timeout)?;
        }
        self.driver.totals.end_second();
        Ok(())
    }

    /// Serves the events that arrived between two windows, and starts the time of the next report.
    pub(super) fn catch_up(&mut self) -> io::Result<()> {
        while !self.interrupted {
            self.turn(Some(Duration::ZERO))?;
            if !self.reactor.has_pending() {
                break;
            }
        }
        if self.driver.step == Step::Idle {
            self.driver.step = Step::Ready;
        }
        self.begun = [self.driver.clock.now(); Step::COUNT];
        Ok(())
    }

    /// Clears the counts that a report contains. The connections stay as they are.
    pub(super) fn reset(&mut self) {
        self.driver.totals.reset();
        self.driver.schedule = None;
        self.timeline.reset();
        self.turn.clear();
    }

    /// Begins the warm-up of a window.
    pub(super) fn begin_window(&mut self) {
        if self.driver.step != Step::Ready || self.interrupted {
            return;
        }
        let window = &mut self.driver.window;
        window.start = self.driver.clock.now() + nanoseconds(self.config.warmup);
        let is_timed = self.driver.workload.is_timed();
        window.end = if is_timed { window.start + nanoseconds(self.config.duration) } else { u64::MAX };
        self.enter(Step::Warmup);
        for (_, client) in clients(&mut self.reactor) {
            client.messages.reported = 0;
        }
        self.start_traffic(self.driver.workload.traffic());
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

    /// Waits once, and serves what is ready.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.reactor.wait(timeout)?;
        let start = self.driver.clock.read();
        self.reactor.serve(1, &mut self.driver);
        self.turn.record(self.driver.clock.now() - start);
        if self.interrupt.is_set() {
            self.interrupted = true;
            self.end_all();
        }
        Ok(())
    }

    /// Runs everything that is due and returns the poll timeout: zero, or none because the timer ends the wait.
    fn advance(&mut self) -> io::Result<Option<Duration>> {
        let now = self.driver.clock.read();
        if now >= self.next_expiry {
            self.expire();
        }
        if now >= self.timeline.next() {
            self.end_second();
        }
        self.open_connections();
        self.close_connections();
        self.enqueue_due();
        self.change_step();
        let next = self.next_event();
        if next <= now {
            return Ok(Some(Duration::ZERO));
        }
        self.timer.arm(next, &self.driver.clock)?;
        Ok(None)
    }

    /// Returns when the next work is due.
    fn next_event(&self) -> u64 {
        let driver = &self.driver;
        let step = match driver.step {
            Step::Warmup => driver.window.start,
            Step::Measure => driver.window.end,
            _ => u64::MAX,
        };
        let close = driver.connector.may_close().then(|| driver.clock.now());
        let times = [self.next_connect(), close, driver.next_due()];
        let next = times.into_iter().flatten().min().unwrap_or(u64::MAX);
        next.min(step).min(self.timeline.next()).min(self.next_expiry)
    }

    fn next_connect(&self) -> Option<u64> {
        if self.driver.workload.may_connect(&self.driver.status()) {
            self.driver.connector.next_connect()
        } else {
            None
        }
    }

    /// Begins the connects that are due.
    fn open_connections(&mut self) {
        let now = self.driver.clock.now();
        for _ in 0..CONNECTS_PER_TURN {
            if self.next_connect().is_none_or(|at| at > now) {
                return;
            }
            let Some((number, result)) = self.driver.connector.connect(now) else { return };
            self.driver.begin(&mut self.reactor, number, result);
        }
    }

    fn close_connections(&mut self) {
        for _ in 0..CLOSES_PER_TURN {
            let Some(key) = self.driver.connector.next_close() else { return };
            self.with_client(key, Driver::close);
        }
    }

    /// Enqueues the scheduled messages that are due.
    fn enqueue_due(&mut self) {
        let now = self.driver.clock.now();
        while let Some((due, key)) = self.driver.schedule.as_mut().and_then(|schedule| schedule.take_due(now)) {
            let Some(key) = key else {
                self.driver.record_unsent(due);
                continue;
            };
            self.with_client(key, |driver, client| {
                driver.enqueue(client, due);
                ControlFlow::Continue(())
            });
            // The message is sent when the connection is served, which is in this turn.
            self.reactor.resume(key);
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
                self.timeline.start(driver.clock.now());
                self.enter(Step::Measure);
            }
            Step::Measure if driver.workload.is_over(&driver.status()) => self.end_window(),
            Step::Drain if driver.workload.is_drained(&driver.status()) => {
                if driver.workload.closes_from() > Step::Drain {
                    self.count_held();
                }
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

    fn start_traffic(&mut self, traffic: Traffic) {
        match traffic {
            Traffic::Nothing => {}
            Traffic::OnReply => {
                for key in self.keys() {
                    self.with_client(key, Driver::send_next);
                    self.reactor.resume(key);
                }
            }
            Traffic::Scheduled { rate, messages } => {
                let mut keys = Vec::new();
                for (key, client) in clients(&mut self.reactor).filter(|(_, client)| client.stage == Stage::Steady) {
                    client.assign_slot(u32::try_from(keys.len()).unwrap_or(u32::MAX));
                    keys.push(key);
                }
                let (now, window) = (self.driver.clock.now(), self.driver.window);
                self.driver.schedule = Some(SendSchedule::new(now, rate, keys, messages, window));
            }
        }
    }

    fn end_window(&mut self) {
        self.driver.window.end = self.driver.window.end.min(self.driver.clock.now());
        self.end_second();
        self.timeline.stop();
        self.enter(Step::Drain);
        self.start_traffic(self.driver.workload.last_traffic());
        if self.driver.workload.closes_from() == Step::Drain {
            self.count_held();
        }
        if let Some(failure) = self.driver.connector.never_connected() {
            self.driver.totals.record_error(failure.phase, failure.error, failure.errno);
        }
    }

    fn count_held(&mut self) {
        let counts = &mut self.driver.connector.counts;
        (counts.held, counts.late) = (0, 0);
        for (_, client) in clients(&mut self.reactor).filter(|(_, client)| client.stage == Stage::Steady) {
            counts.held += 1;
            counts.late += u64::from(client.is_late);
        }
    }

    /// Ends every connection of an interrupted run. Messages in flight are unanswered.
    fn end_all(&mut self) {
        let now = self.driver.clock.read();
        if self.driver.step < self.driver.workload.closes_from() {
            self.count_held();
        }
        self.end_second();
        for key in self.keys() {
            self.with_client(key, |driver, client| {
                driver.abandon(client, AbandonReason::Unanswered);
                ControlFlow::Break(Removal::Ended)
            });
        }
        for begun in &mut self.begun[self.driver.step as usize + 1..] {
            *begun = now;
        }
        self.driver.window.end = self.driver.window.end.min(now);
    }

    /// Ends every connection whose timeout has expired.
    fn expire(&mut self) {
        let (connect, reply) = (nanoseconds(self.config.connect_timeout), nanoseconds(self.config.timeout));
        let (driver, now) = (&self.driver, self.driver.clock.now());
        let mut expired = Vec::new();
        for (key, client) in clients(&mut self.reactor) {
            let (phase, deadline) = match client.stage {
                Stage::Connecting => (Phase::Connect, client.since + connect),
                Stage::Finished => continue,
                Stage::Closing => (Phase::Close, client.since + reply),
                Stage::Opening | Stage::Steady => match client.oldest(driver.schedule.as_ref()) {
                    Some(message) => (Phase::Receive, message.due + reply),
                    None => continue,
                },
            };
            if deadline <= now {
                expired.push((key, phase));
            }
        }
        for (key, phase) in expired {
            self.with_client(key, |driver, client| {
                ControlFlow::Break(driver.fail(client, phase, ErrorName::Timeout, None))
            });
        }
        self.next_expiry = now + (connect.min(reply) / 20).clamp(SECOND / 1000, SECOND / 4);
        // Only in the window does each second publish progress, and the other steps may take minutes.
        if self.driver.step != Step::Measure {
            self.publish(None);
        }
    }

    /// Adds a sample to the timeline.
    fn end_second(&mut self) {
        let Driver { step, clock, window, totals, connector, .. } = &mut self.driver;
        if *step == Step::Measure {
            let sample = self.timeline.end_second(clock.now(), *window, totals, connector.counts.open()).copied();
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
            open: connector.counts.open(),
            requested: connector.counts.requested,
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
    let ring = if due_times > 1 { due_times.saturating_mul(size_of::<u64>()) } else { 0 };
    memory::check(connections.saturating_mul(ring.saturating_add(LIST_BYTES)).saturating_add(MEMORY_KEPT))
        .and_then(|()| reactor.try_reserve(connections))
        .map_err(|error| {
            let pipeline = config.pipeline.map_or(String::new(), |pipeline| format!(" with pipeline {pipeline}"));
            let noun = if connections == 1 { "connection" } else { "connections" };
            io::Error::new(error.kind(), format!("cannot allocate {connections} {noun}{pipeline}: {error}"))
        })
}

fn clients(reactor: &mut Reactor<Registered>) -> impl Iterator<Item = (usize, &mut Client)> {
    reactor.iter_mut().filter_map(|(key, registered)| match registered {
        Registered::Client(client) => Some((key, client)),
        Registered::Timer => None,
    })
}
