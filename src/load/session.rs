//! A run in parts: connect, one or more windows, close.

use std::io;
use std::time::{Duration, SystemTime};

use super::config::Config;
use super::engine::Engine;
use super::error::errno_name;
use super::interrupt::Interrupt;
use super::profile::RateStage;
use super::progress::{ProgressCell, Step};
use super::report::{
    self, Connections, CpuTimes, Ended, ErrorCount, Loop, Measured, Mode, Origin, Phases, Readings, Report, Settings,
    StageFigures, Summary, TargetCount, Verdict,
};
use super::search::StopRule;
use super::stage::Stage;
use super::timer::nanoseconds;
use crate::host::{Process, SocketStatistics};

/// Measures several windows over the same connections: [`run`](super::run) in parts.
///
/// It has no thread of its own: between two windows it sends nothing and no timeout expires. A connection that ends there is an error
/// in the next report.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ecoloop::load::{Config, Interrupt, ProgressCell, Session};
///
/// let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
/// let mut config = Config::new(vec![server.local_addr()]);
/// config.duration = Duration::from_millis(50);
/// let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default())?;
/// for _ in 0..3 {
///     assert!(session.measure()?.messages.verified > 0);
/// }
/// assert!(session.close()?.errors.is_empty());
/// assert_eq!(server.handle().stats().accepted, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    server: Option<Process>,
    memory_before: Option<u64>,
    /// When the next report began.
    start: SystemTime,
    readings: Readings,
}

/// Takes the reports of a run that has not ended.
pub(super) struct RunningReports<'a> {
    interval: u64,
    /// When the next one is due, in nanoseconds of the run.
    next: u64,
    take: Box<dyn FnMut(Report) + 'a>,
}

impl<'a> RunningReports<'a> {
    pub(super) fn new(interval: Duration, take: impl FnMut(Report) + 'a) -> Self {
        let interval = nanoseconds(interval);
        Self { interval, next: interval, take: Box::new(take) }
    }

    pub(super) fn none() -> Self {
        Self::new(Duration::MAX, drop)
    }
}

impl Session {
    /// Opens every connection and verifies it by a first message. A connection that fails is an error in the first report.
    ///
    /// # Errors
    ///
    /// - The errors of [`run`](super::run).
    /// - `InvalidInput`: the mode is not [`Mode::Echo`], the only one whose connections outlast a window, or [`Config::reconnect`] or
    ///   [`Config::faults`] is set.
    pub fn connect(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Self> {
        if config.mode != Mode::Echo {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the connections of mode echo outlast a window",
            ));
        }
        if config.reconnect || !config.faults.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "reconnect and faults apply to a run of one window",
            ));
        }
        Self::open(config, interrupt, progress, &mut RunningReports::none())
    }

    /// Opens every connection, in any mode.
    pub(super) fn open(
        config: Config,
        interrupt: &Interrupt,
        progress: &ProgressCell,
        reports: &mut RunningReports<'_>,
    ) -> io::Result<Self> {
        config.validate()?;
        let config = config.share();
        if config.unresolved == 0 {
            wait_for(config.start_at, interrupt);
        }
        let server = config.server_pid.map(Process::open).transpose()?;
        let memory_before = server.as_ref().and_then(Process::resident_bytes);
        let start = SystemTime::now();
        let engine = Engine::new(config, interrupt, progress.clone())?;
        let mut session = Self { engine, server, memory_before, start, readings: Readings::default() };
        session.run_until(Step::Ready, reports)?;
        Ok(session)
    }

    /// Runs until step `until` begins or the run is interrupted, and reports when it is time.
    fn run_until(&mut self, until: Step, reports: &mut RunningReports<'_>) -> io::Result<()> {
        loop {
            self.engine.run_until(until, reports.next)?;
            if self.engine.driver.step >= until || self.engine.interrupted {
                return Ok(());
            }
            (reports.take)(self.running_report());
            // After the report, which may have taken longer than the interval: a turn follows in any case.
            reports.next = self.engine.driver.clock.read().saturating_add(reports.interval);
        }
    }

    /// Measures one window, and returns the report of everything since the last report.
    ///
    /// Each report has the same connections and connect times, but its own `run_id` and `start`. Its phases `connect` and `close` take
    /// no time.
    ///
    /// # Errors
    ///
    /// - The poll itself fails.
    pub fn measure(&mut self) -> io::Result<Report> {
        self.catch_up()?;
        let memory = self.memory();
        self.run_window(memory, &mut RunningReports::none())?;
        Ok(self.report())
    }

    /// Sets the rate of the windows that follow, in messages a second over all connections.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the rate is out of range, or the session began without a constant one: a closed loop stays closed.
    pub fn set_rate(&mut self, rate: f64) -> io::Result<()> {
        let config = &self.engine.config;
        if config.rate.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the session began without a constant rate"));
        }
        validate(Config { rate: Some(rate), ..config.clone() })?;
        self.engine.set_rate(rate);
        Ok(())
    }

    /// Sets the size of the messages of the windows that follow, in bytes.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the size is 0 or over 1 GiB.
    pub fn set_size(&mut self, size: usize) -> io::Result<()> {
        validate(Config { size, size_max: None, ..self.engine.config.clone() })?;
        self.catch_up()?;
        self.engine.set_size(size);
        Ok(())
    }

    /// Opens a connection in place of each that has ended, and returns how many were verified. One that fails is an error in the next
    /// report.
    pub(super) fn reopen(&mut self) -> io::Result<u64> {
        self.catch_up()?;
        let before = self.engine.driver.connector.counts.verified;
        self.engine.reopen();
        self.run_until(Step::Ready, &mut RunningReports::none())?;
        Ok(self.engine.driver.connector.counts.verified - before)
    }

    /// Returns whether a verified connection is open.
    pub(super) fn has_connection(&self) -> bool {
        self.engine.driver.connector.counts.at(Stage::Steady) > 0
    }

    /// Measures one window at `rate`, until `stop_rule` gives it up.
    pub(super) fn measure_at(&mut self, rate: f64, duration: Duration, stop_rule: StopRule) -> io::Result<Report> {
        self.engine.set_window(rate, duration, stop_rule);
        let memory = self.memory();
        self.run_window(memory, &mut RunningReports::none())?;
        Ok(self.report())
    }

    /// Closes every connection, and returns a report of the errors since the last window. Ignore its thresholds: it has no measurement.
    ///
    /// # Errors
    ///
    /// - The poll itself fails.
    pub fn close(mut self) -> io::Result<Report> {
        self.catch_up()?;
        self.end(&mut RunningReports::none())
    }

    /// Serves the events since the last window, and begins the next report.
    fn catch_up(&mut self) -> io::Result<()> {
        self.engine.catch_up()?;
        self.start = SystemTime::now();
        Ok(())
    }

    /// Serves the events that arrived while the caller waited for the start, which counts as connecting.
    pub(super) fn end_wait(&mut self) -> io::Result<()> {
        self.engine.serve_arrived()?;
        self.engine.begun[Step::Ready as usize] = self.engine.driver.clock.now();
        Ok(())
    }

    /// Returns what the memory of the server has grown since before the first connect, and the connections that are open. Nothing is
    /// sent while the kernel goes through that memory, which may take long: it is no part of a window.
    pub(super) fn memory(&self) -> Option<(u64, u64)> {
        let now = self.server.as_ref().and_then(Process::resident_bytes)?;
        Some((now.saturating_sub(self.memory_before?), self.engine.driver.connector.counts.at(Stage::Steady)))
    }

    /// Runs one window, until its last reply. The server has this `memory` before it.
    pub(super) fn run_window(
        &mut self,
        memory: Option<(u64, u64)>,
        reports: &mut RunningReports<'_>,
    ) -> io::Result<()> {
        self.engine.begin_window();
        self.run_until(Step::Measure, reports)?;
        let cpu_before = CpuTimes::now(self.server.as_ref());
        self.run_until(Step::Drain, reports)?;
        self.readings = Readings {
            cpu: CpuTimes::now(self.server.as_ref()).since(cpu_before),
            memory,
            sockets: SocketStatistics::read(),
        };
        self.run_until(Step::Idle, reports)
    }

    /// Closes every connection, and returns the report.
    pub(super) fn end(mut self, reports: &mut RunningReports<'_>) -> io::Result<Report> {
        self.engine.begin_close();
        self.run_until(Step::Done, reports)?;
        Ok(self.report())
    }

    /// Returns the report, and clears its counts.
    fn report(&mut self) -> Report {
        let measured = measured(&self.engine, self.start, self.readings);
        let report = report::build(measured, &self.engine.config.thresholds);
        self.engine.reset();
        self.readings = Readings::default();
        report
    }
}

impl Session {
    /// Returns the report of the run until now: that of a run which is interrupted here, except for what is in flight. A message is due
    /// in it once its outcome is known.
    fn running_report(&mut self) -> Report {
        self.engine.count_held_until_now();
        let driver = &mut self.engine.driver;
        // What is lost has its age until now in this report alone: it may still grow.
        let kept = driver.totals.has_lost().then(|| (driver.totals.clone(), driver.breakdown.clone()));
        driver.end_measurement();
        driver.totals.end_second();
        let mut measured = measured(&self.engine, self.start, self.readings);
        measured.ended = Ended::Interrupted;
        let of_stages = measured.stages.iter_mut().map(|stage| &mut stage.messages);
        for messages in of_stages.chain([&mut measured.messages]) {
            messages.due = messages.unsent + messages.verified + messages.unanswered + messages.failed;
        }
        let mut report = report::build(measured, &self.engine.config.thresholds);
        report.verdict = Verdict::Running;
        if let Some(kept) = kept {
            (self.engine.driver.totals, self.engine.driver.breakdown) = kept;
        }
        report
    }
}

/// Checks the settings of a session that has begun: they are those of its rank alone, which may have fewer connections than there are
/// ranks.
fn validate(config: Config) -> io::Result<()> {
    Config { rank: None, ..config }.validate()
}

/// Returns what the engine has measured since its last reset.
fn measured(engine: &Engine, start: SystemTime, readings: Readings) -> Measured<'_> {
    let (config, driver) = (&engine.config, &engine.driver);
    let (totals, counts) = (&driver.totals, driver.connector.counts);
    let is_open_loop = config.is_open_loop();
    let rate = if config.mode == Mode::Hold { Some(config.rate_of_last_messages()) } else { config.mean_rate() };
    let (targets, sources) = if config.unresolved > 0 {
        (config.targets.concat(), config.sources.clone())
    } else {
        (driver.connector.sources.target_addresses(), driver.connector.sources.sources())
    };
    let mut verify = totals.verify.clone();
    for (finding, &time) in verify.findings.iter_mut().zip(&totals.finding_times) {
        finding.at_s = seconds_since_start(engine, time);
    }
    Measured {
        start,
        ended: if engine.interrupted { Ended::Interrupted } else { Ended::Complete },
        mode: config.mode,
        r#loop: if is_open_loop { Loop::Open } else { Loop::Closed },
        settings: Settings {
            targets,
            sources,
            size: config.size as u64,
            size_max: config.size_max.map(|bytes| bytes as u64),
            pipeline: config.pipeline.or(if config.is_scheduled() { None } else { Some(1) }),
            rate: rate.map(|rate| config.share_of_rate(rate)),
            arrivals: is_open_loop.then_some(config.arrivals),
            messages_per_connection: config.messages_per_connection.or((config.mode == Mode::Churn).then_some(1)),
            proxy_protocol: config.proxy_protocol,
            seed: Some(config.seed),
            labels: config.labels.clone(),
        },
        rank: config.rank,
        origin: Origin::of(config),
        phases_s: phases(engine),
        connections: Connections {
            requested: counts.requested,
            established: counts.established,
            verified: counts.verified,
            held: counts.held,
            opened_total: counts.opened_measured(),
        },
        hold: driver.workload.outcomes(&counts, &totals.first),
        outages: driver.reconnects.report(),
        faults: driver.faults.figures().to_vec(),
        messages: totals.messages,
        arrived_in_window: totals.arrived_in_window,
        latency: &totals.latency,
        connect: &totals.connect,
        lateness: &totals.lateness,
        turn: &engine.turn,
        longest_gap: engine.turn.quantile(1.0).map(|_| engine.longest_gap),
        stages: stages(engine),
        targets: driver.breakdown.targets(&driver.connector.sources.target_addresses()),
        sources: driver.breakdown.sources(),
        errors: totals
            .errors()
            .map(|((phase, error, errno), totals)| ErrorCount {
                phase,
                error,
                errno: errno.map(|errno| errno_name(errno).into_owned()),
                count: totals.count,
                first_s: seconds_since_start(engine, totals.first),
                targets: totals
                    .targets
                    .iter()
                    .map(|(target, &count)| TargetCount { target: target.clone(), count })
                    .collect(),
            })
            .collect(),
        verify,
        server_pid: config.server_pid,
        readings,
        timeline: engine.timeline.samples().to_vec(),
    }
}

/// Returns the figures of each stage, until now.
fn stages(engine: &Engine) -> Vec<StageFigures> {
    let (config, driver) = (&engine.config, &engine.driver);
    let mut totals = driver.totals.stages.until(driver.clock.now().min(driver.window.end));
    let figures = |stage: &RateStage| {
        let (total, passed) = totals.next().unzip();
        let seconds = passed.map(|nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
        let rate = |seconds: f64| total.map(|total| total.arrived as f64 / seconds);
        StageFigures {
            from: config.share_of_rate(stage.from),
            to: config.share_of_rate(stage.to),
            seconds: stage.duration.as_secs_f64(),
            messages: total.map(|total| total.messages).unwrap_or_default(),
            rate_per_s: seconds.filter(|&seconds| seconds > 0.0).and_then(rate),
            errors: total.map(|total| total.errors).unwrap_or_default(),
            latency_us: total.map_or_else(Summary::default, |total| total.latency.summary()),
            lateness_us: total.map_or_else(Summary::default, |total| total.lateness.summary()),
        }
    };
    config.stages.iter().map(figures).collect()
}

/// Returns the time from the start of the report to `time`, in seconds.
fn seconds_since_start(engine: &Engine, time: u64) -> f64 {
    let start = engine.begun[Step::Connect as usize];
    Duration::from_micros(time.saturating_sub(start) / 1000).as_secs_f64()
}

/// Returns the duration of each phase.
fn phases(engine: &Engine) -> Phases {
    let mut begun = engine.begun;
    // The current phase lasts until now.
    begun[engine.driver.step as usize + 1..].fill(engine.driver.clock.now());
    let seconds = |from: Step, to: Step| {
        Duration::from_nanos(begun[to as usize].saturating_sub(begun[from as usize])).as_secs_f64()
    };
    Phases {
        connect: seconds(Step::Connect, Step::Ready),
        warmup: seconds(Step::Warmup, Step::Measure),
        measure: seconds(Step::Measure, Step::Drain),
        drain: seconds(Step::Drain, Step::Idle),
        close: seconds(Step::Close, Step::Done),
    }
}

/// Sleeps until `time` or the interrupt.
fn wait_for(time: Option<SystemTime>, interrupt: &Interrupt) {
    while let Some(left) = time.and_then(|time| time.duration_since(SystemTime::now()).ok()) {
        if interrupt.is_set() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

#[cfg(test)]
mod tests;
