//! A run on a thread of its own.

use std::io;
use std::time::Duration;

use super::config::Config;
use super::interrupt::Interrupt;
use super::progress::{Progress, ProgressCell};
use super::report::Report;
use super::run;
use crate::ValueError;
use crate::socket_address::AnyAddress;
use crate::worker::Worker;

/// A run to start on a thread of its own, for example in a test.
///
/// It sets what most tests set. [`Run::from`] takes a [`Config`] with any other setting.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ecoloop::load::Run;
///
/// let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
/// let load = Run::new([server.local_addr()])
///     .connections(5)
///     .rate(500.0)
///     .duration(Duration::from_millis(100))
///     .fail_if("p99>5s")?
///     .spawn()?;
/// let report = load.join()?;
/// assert!(!report.failed(), "{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Run {
    config: Config,
}

impl Run {
    /// Returns a run with the defaults of [`Config::new`], with a target at each address.
    pub fn new(targets: impl IntoIterator<Item = impl Into<AnyAddress>>) -> Self {
        Self { config: Config::new(targets) }
    }

    /// Sets [`Config::connections`].
    pub fn connections(mut self, connections: u32) -> Self {
        self.config.connections = connections;
        self
    }

    /// Sets [`Config::rate`], in messages a second: the loop is open.
    pub fn rate(mut self, rate: f64) -> Self {
        self.config.rate = Some(rate);
        self
    }

    /// Sets [`Config::size`], in bytes.
    pub fn size(mut self, size: usize) -> Self {
        self.config.size = size;
        self
    }

    /// Sets [`Config::duration`] of the measured window.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.config.duration = duration;
        self
    }

    /// Adds a [`Threshold`](super::Threshold), such as `p99>5ms`.
    ///
    /// # Errors
    ///
    /// - `expr` is not a threshold.
    pub fn fail_if(mut self, expr: &str) -> Result<Self, ValueError> {
        self.config.thresholds.push(expr.parse()?);
        Ok(self)
    }

    /// Starts the run.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a setting is out of range ([`Config::validate`]).
    /// - No thread can be started.
    pub fn spawn(self) -> io::Result<Running> {
        self.config.validate()?;
        let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
        let thread = {
            let (interrupt, progress) = (interrupt.clone(), progress.clone());
            Worker::spawn("ecoloop load", move || run(self.config, &interrupt, &progress))?
        };
        Ok(Running { interrupt, progress, thread })
    }
}

impl From<Config> for Run {
    fn from(config: Config) -> Self {
        Self { config }
    }
}

/// A run on a thread of its own, as [`Run::spawn`] returns it. Dropping it interrupts the run and joins the thread.
#[derive(Debug)]
pub struct Running {
    interrupt: Interrupt,
    progress: ProgressCell,
    thread: Worker<io::Result<Report>>,
}

impl Running {
    /// Returns the latest progress, or `None` before the first.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.progress.latest()
    }

    /// Ends the run early: [`Running::join`] returns what was measured until now.
    pub fn interrupt(&self) {
        self.interrupt.set();
    }

    /// Returns whether the run is over, so that [`Running::join`] does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the run is over, and returns its report.
    ///
    /// # Errors
    ///
    /// - Those of [`run`].
    pub fn join(mut self) -> io::Result<Report> {
        self.thread.join()?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.thread.end(|| self.interrupt.set());
    }
}
