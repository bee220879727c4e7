//! A run in parts: connect, one or more windows, close.

use std::io;
use std::time::{Duration, SystemTime};

use super::Interrupt;
use super::config::{Config, Mode};
use super::engine::Engine;
use super::progress::{ProgressCell, Step};
use super::report::Report;
use super::summary::{self, CpuTimes, Readings};
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
    own: Process,
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
        let own = Process::own();
        let start = SystemTime::now();
        let mut engine = Engine::new(config, interrupt, progress.clone())?;
        engine.run_until(Step::Ready)?;
        Ok(Self { engine, own, server, memory_before, start, readings: Readings::default() })
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
        let cpu_before = CpuTimes::now(&self.own, self.server.as_ref());
        self.engine.run_until(Step::Drain)?;
        self.readings = Readings {
            cpu: CpuTimes::now(&self.own, self.server.as_ref()).since(cpu_before),
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
        let report = summary::report(&self.engine, self.start, self.readings);
        self.engine.reset();
        self.readings = Readings::default();
        report
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
