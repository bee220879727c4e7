//! A run in its parts: connect, one window or several, close.

use std::io;
use std::time::{Duration, SystemTime};

use super::Interrupt;
use super::config::Config;
use super::engine::Engine;
use super::machine::{Process, SocketStatistics};
use super::progress::{Slot, Step};
use super::report::Report;
use super::summary::{self, CpuTimes, Readings};

#[derive(Debug)]
pub(super) struct Session {
    engine: Engine,
    own: Process,
    server: Option<Process>,
    memory_before: Option<u64>,
    /// When what is reported next began.
    start: SystemTime,
    readings: Readings,
}

impl Session {
    /// Connects. What fails for a connection is for the report.
    pub(super) fn connect(config: Config, interrupt: &Interrupt, progress: &Slot) -> io::Result<Self> {
        config.validate()?;
        if config.unresolved == 0 {
            wait_for(config.start_at, interrupt);
        }
        let server = config.server_pid.map(Process::open).transpose()?;
        let memory_before = server.as_ref().and_then(Process::resident_bytes);
        let own = Process::own();
        let start = SystemTime::now();
        let mut engine = Engine::new(config, interrupt, progress.clone())?;
        engine.run_until(Step::Idle)?;
        Ok(Self { engine, own, server, memory_before, start, readings: Readings::default() })
    }

    /// One window, until its last answer.
    pub(super) fn measure(&mut self) -> io::Result<()> {
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

    /// Closes, and reports.
    pub(super) fn close(mut self) -> io::Result<Report> {
        self.engine.begin_close();
        self.engine.run_until(Step::Done)?;
        Ok(summary::report(&self.engine, self.start, self.readings))
    }
}

/// Sleeps until `time`, or until there is no more need.
fn wait_for(time: Option<SystemTime>, interrupt: &Interrupt) {
    while let Some(left) = time.and_then(|time| time.duration_since(SystemTime::now()).ok()) {
        if interrupt.is_set() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
