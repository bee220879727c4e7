//! A load generator for echo servers, over TCP or Unix sockets, on the same [`Reactor`](crate::Reactor) as the server.
//!
//! It counts the outcome of every message, verifies every byte that comes back, and measures latency from the scheduled send time,
//! so that a stall cannot hide (no coordinated omission).
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use ecoloop::load::Run;
//!
//! let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
//! let load = Run::new([server.local_addr()]).connections(10).duration(Duration::from_millis(100)).spawn()?;
//! let report = load.join()?;
//! assert_eq!((report.connections.held, report.errors.len()), (10, 0));
//! # Ok::<(), std::io::Error>(())
//! ```

mod arrivals;
mod backlogs;
mod breakdown;
mod client;
pub mod compare;
mod config;
mod connector;
mod driver;
mod engine;
mod error;
mod faulted;
mod hand;
mod interrupt;
mod mode;
pub(crate) mod pattern;
mod pauses;
mod profile;
mod progress;
mod proxy_protocol;
mod rank;
mod reconnects;
pub mod report;
mod running;
mod schedule;
pub mod search;
mod session;
mod sizes;
mod sources;
mod stage;
mod stage_totals;
pub mod statistics;
mod timeline;
mod timer;
mod totals;
pub(crate) mod verify;

use std::io;
use std::time::Duration;

pub use self::arrivals::ArrivalProcess;
pub use self::compare::compare;
pub use self::config::{Close, Config};
pub use self::interrupt::Interrupt;
pub use self::profile::RateStage;
pub use self::progress::{Progress, ProgressCell, Step};
pub use self::proxy_protocol::ProxyVersion;
pub use self::rank::Rank;
pub use self::report::{Histogram, Mode, Percentile, Report, Threshold, merge, merge_ranks};
pub use self::running::{Run, Running};
pub use self::search::{Search, find_rate};
use self::session::RunningReports;
pub use self::session::Session;
pub use self::sources::SourceRange;
#[doc(hidden)]
pub use self::sources::{count_pairs, unpaired};

/// Runs a load on this thread, and returns its report. [`Run`] starts a thread; [`Session`] measures several windows over the same
/// connections.
///
/// The failure of a connection is in the report.
///
/// # Errors
///
/// - `InvalidInput`: a setting is out of range, or no source can reach a target.
/// - `OutOfMemory`: the system has not enough memory for [`Config::connections`] and [`Config::pipeline`].
/// - [`Config::server_pid`] cannot be read.
/// - The process has no descriptor left before the first connect, or the poll fails.
pub fn run(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Report> {
    run_reporting(config, interrupt, progress, RunningReports::none())
}

/// Runs a load as [`run`] does, and calls `take` every `interval` with the report until then, whose verdict is
/// [`Running`](report::Verdict::Running).
///
/// The call is part of the loop: `take` must hand the report to another thread to write it.
///
/// # Errors
///
/// - The errors of [`run`].
pub fn run_with_reports(
    config: Config,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    interval: Duration,
    take: impl FnMut(Report),
) -> io::Result<Report> {
    run_reporting(config, interrupt, progress, RunningReports::new(interval, take))
}

/// Runs a load as [`run`] does, and calls `start` once the connections are established: the warm-up begins when it returns.
///
/// No timeout expires while `start` waits. If the interrupt is set in that time, the run ends.
///
/// # Errors
///
/// - The errors of [`run`].
pub fn run_with_start(
    config: Config,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    start: impl FnOnce(),
) -> io::Result<Report> {
    let mut reports = RunningReports::none();
    let mut session = Session::open(config, interrupt, progress, &mut reports)?;
    let memory = session.memory();
    start();
    session.end_wait()?;
    session.run_window(memory, &mut reports)?;
    session.end(&mut reports)
}

fn run_reporting(
    config: Config,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    mut reports: RunningReports<'_>,
) -> io::Result<Report> {
    let mut session = Session::open(config, interrupt, progress, &mut reports)?;
    let memory = session.memory();
    session.run_window(memory, &mut reports)?;
    session.end(&mut reports)
}
