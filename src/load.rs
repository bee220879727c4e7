//! A load generator for TCP echo servers, on the same [`Reactor`](crate::Reactor) as the server.
//!
//! It counts the outcome of every message, verifies every byte that comes back, and measures latency from the scheduled send time,
//! so that a stall cannot hide (no coordinated omission).
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use ecoloop::load::report::Verdict;
//! use ecoloop::load::{Config, Interrupt, ProgressCell, run};
//!
//! let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
//! let mut config = Config::new(vec![server.local_addr()]);
//! config.connections = 10;
//! config.duration = Duration::from_millis(100);
//! let report = run(config, &Interrupt::default(), &ProgressCell::default())?;
//! assert_eq!(report.verdict, Verdict::Pass);
//! assert_eq!(report.connections.held, 10);
//! # Ok::<(), std::io::Error>(())
//! ```

mod client;
mod config;
mod connector;
mod driver;
mod engine;
mod error;
mod hand;
mod interrupt;
mod mode;
mod pattern;
mod progress;
pub mod report;
mod schedule;
mod session;
mod sources;
mod stage;
mod timeline;
mod timer;
mod totals;
mod verify;

use std::io;

pub use self::config::{Close, Config};
pub use self::interrupt::Interrupt;
pub use self::progress::{Progress, ProgressCell, Step};
pub use self::report::{Histogram, Mode, Percentile, Report, Threshold, merge};
pub use self::session::Session;
pub use self::sources::{SourceRange, count_pairs};

/// Runs a load and returns its report. [`Session`] measures several windows over the same connections.
///
/// The failure of a connection is in the report.
///
/// # Errors
///
/// - `InvalidInput`: a setting is out of range, or a source or target has no counterpart of its address family.
/// - [`Config::server_pid`] cannot be read.
/// - The process has no descriptor left before the first connect, or the poll fails.
pub fn run(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Report> {
    let mut session = Session::open(config, interrupt, progress)?;
    session.run_window()?;
    session.end()
}
