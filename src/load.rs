//! A load generator for TCP echo servers, on the same [`Reactor`](crate::Reactor) as the server.
//!
//! It counts what became of every message, verifies every byte that comes back, and measures latency from when a message was due,
//! so that a server that stalls cannot hide it by holding up the generator (coordinated omission).
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mio::Waker;

pub use self::config::{Close, Config};
pub use self::progress::{Progress, ProgressCell, Step};
pub use self::report::{Histogram, Mode, Percentile, Report, Threshold, merge};
pub use self::session::Session;
pub use self::sources::{SourceRange, count_pairs};

/// Ends a run early, or several, from any thread. It reports what it has seen until then.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    set: AtomicBool,
    /// Those of the runs that are not over.
    wakers: Mutex<Vec<Weak<Waker>>>,
}

impl Interrupt {
    /// Asks for the end.
    pub fn set(&self) {
        // Before the wake: the run looks for it after its wait.
        self.0.set.store(true, Ordering::Release);
        for waker in self.wakers().iter().filter_map(Weak::upgrade) {
            // Where it fails, the run sees it at its next event, which a sweep makes within a quarter of a second.
            let _ = waker.wake();
        }
    }

    fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    fn wakes(&self, waker: &Arc<Waker>) {
        let mut wakers = self.wakers();
        wakers.retain(|waker| waker.strong_count() > 0);
        wakers.push(Arc::downgrade(waker));
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Weak<Waker>>> {
        // Whoever panicked with it left a list that is whole.
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs, and reports. [`Session`] measures several windows over the same connections.
///
/// # Errors
///
/// - `InvalidInput`: a setting is out of its range, or the sources and targets do not fit together.
/// - [`Config::server_pid`] cannot be read.
/// - The process is out of descriptors before anything is connected, or the poll itself fails. What fails for a connection is in
///   the report.
pub fn run(config: Config, interrupt: &Interrupt, progress: &ProgressCell) -> io::Result<Report> {
    let mut session = Session::open(config, interrupt, progress)?;
    session.run_window()?;
    session.end()
}
