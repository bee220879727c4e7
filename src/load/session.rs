//! A run in parts: connect, one or more windows, close.

use std::io;
use std::time::{Duration, SystemTime};

use super::config::Config;
use super::engine::Engine;
use super::error::errno_name;
use super::interrupt::Interrupt;
use super::progress::{ProgressCell, Step};
use super::report::{
    self, Connections, CpuTimes, Ended, ErrorCount, Loop, Measured, Mode, Phases, Readings, Report, Settings,
};
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
/// use ecoloop::load::report::Verdict;
/// use ecoloop::load::{Config, Interrupt, ProgressCell, Session};
///
/// let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
/// let mut config = Config::new(vec![server.local_addr()]);
/// config.duration = Duration::from_millis(50);
/// let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default())?;
/// for _ in 0..3 {
///     assert_eq!(session.measure()?.verdict, Verdict::Pass);
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

impl Session {
    /// Opens every connection and verifies it by a first message. A connection that fails is an error in the first report.
    ///
    /// # Errors
    ///
    /// - The errors of [`run`](super::run).
    /// - `InvalidInput`: the mode is not [`Mode::Echo`], the only one whose connections outlast a window.
    pub fn connect(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Self> {
        if config.mode != Mode::Echo {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the connections of mode echo outlast a window",
            ));
        }
        Self::open(config, interrupt, progress)
    }

    /// Opens every connection, in any mode.
    pub(super) fn open(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Self> {
        config.validate()?;
        if config.unresolved == 0 {
            wait_for(config.start_at, interrupt);
        }
        let server = config.server_pid.map(Process::open).transpose()?;
        let memory_before = server.as_ref().and_then(Process::resident_bytes);
        let start = SystemTime::now();
        let mut engine = Engine::new(config, interrupt, progress.clone())?;
        engine.run_until(Step::Ready)?;
        Ok(Self { engine, server, memory_before, start, readings: Readings::default() })
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
        self.run_window()?;
        Ok(self.report())
    }

    /// Closes every connection, and returns a report of the errors since the last window. Ignore its thresholds: it has no measurement.
    ///
    /// # Errors
    ///
    /// - The poll itself fails.
    pub fn close(mut self) -> io::Result<Report> {
        self.catch_up()?;
        self.end()
    }

    /// Serves the events since the last window, and begins the next report.
    fn catch_up(&mut self) -> io::Result<()> {
        self.engine.catch_up()?;
        self.start = SystemTime::now();
        Ok(())
    }

    /// Runs one window, until its last reply.
    pub(super) fn run_window(&mut self) -> io::Result<()> {
        self.engine.begin_window();
        self.engine.run_until(Step::Measure)?;
        let memory = self.server.as_ref().and_then(Process::resident_bytes);
        let cpu_before = CpuTimes::now(self.server.as_ref());
        self.engine.run_until(Step::Drain)?;
        self.readings = Readings {
            cpu: CpuTimes::now(self.server.as_ref()).since(cpu_before),
            memory: memory.zip(self.memory_before).map(|(now, before)| now.saturating_sub(before)),
            sockets: SocketStatistics::read(),
        };
        self.engine.run_until(Step::Idle)
    }

    /// Closes every connection, and returns the report.
    pub(super) fn end(mut self) -> io::Result<Report> {
        self.engine.begin_close();
        self.engine.run_until(Step::Done)?;
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

/// Returns what the engine has measured since its last reset.
fn measured(engine: &Engine, start: SystemTime, readings: Readings) -> Measured<'_> {
    let (config, driver) = (&engine.config, &engine.driver);
    let (totals, counts) = (&driver.totals, driver.connector.counts);
    let is_open_loop = config.is_open_loop();
    Measured {
        start,
        ended: if engine.interrupted { Ended::Interrupted } else { Ended::Complete },
        mode: config.mode,
        r#loop: if is_open_loop { Loop::Open } else { Loop::Closed },
        settings: Settings {
            targets: config.targets.clone(),
            sources: config.sources.clone(),
            size: config.size as u64,
            pipeline: config.pipeline.or(if config.is_scheduled() { None } else { Some(1) }),
            rate: config.rate,
            seed: Some(config.seed),
            labels: config.labels.clone(),
        },
        phases_s: phases(engine),
        connections: Connections {
            requested: config.connections.into(),
            established: counts.established,
            verified: counts.verified,
            held: counts.held,
            opened_total: counts.opened,
        },
        hold: driver.workload.outcomes(&counts),
        messages: totals.messages,
        verified_in_window: totals.verified_in_window,
        latency: &totals.latency,
        connect: &totals.connect,
        lateness: &totals.lateness,
        turn: &engine.turn,
        longest_gap: engine.turn.quantile(1.0).map(|_| engine.longest_gap),
        errors: totals
            .errors()
            .map(|((phase, error, errno), count)| ErrorCount {
                phase,
                error,
                errno: errno.map(|errno| errno_name(errno).into_owned()),
                count,
            })
            .collect(),
        verify: totals.verify.clone(),
        server_pid: config.server_pid,
        readings,
        timeline: engine.timeline.samples().to_vec(),
    }
}

/// Returns the duration of each phase.
fn phases(engine: &Engine) -> Phases {
    let seconds = |from: Step, to: Step| {
        let begun = engine.begun[from as usize];
        Duration::from_nanos(engine.begun[to as usize].saturating_sub(begun)).as_secs_f64()
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
