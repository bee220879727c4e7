//! Drains, stops and counts from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use mio::Waker;

use super::stats::{Counters, Report, Stats};
use crate::log_target::LOG_TARGET;

/// Commands a [`Server`](crate::Server) from any thread, and reads its counters.
///
/// It may outlive the server: its commands have no effect then.
///
/// # Examples
///
/// ```
/// use ecoloop::{Config, Server};
///
/// let mut server = Server::bind("127.0.0.1:0", Config::default())?;
/// let handle = server.handle();
/// let thread = std::thread::spawn(move || server.run());
/// handle.drain();
/// # #[expect(clippy::unwrap_used)]
/// let report = thread.join().unwrap()?;
/// assert_eq!(report.stats, handle.stats());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

/// What the loop shares with its handles.
#[derive(Debug)]
struct Shared {
    command: AtomicU8,
    waker: Waker,
    counters: Counters,
    started: Instant,
}

/// A command. A later one overrides an earlier one, never the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Command {
    Run,
    Drain,
    Stop,
}

impl Handle {
    pub(super) fn new(waker: Waker) -> Self {
        Self(Arc::new(Shared {
            command: AtomicU8::new(Command::Run as u8),
            waker,
            counters: Counters::default(),
            started: Instant::now(),
        }))
    }

    /// Shuts down gracefully: the server accepts the connections that wait, within `backlog`, `max_connections` and `accept_rate` of its
    /// [`Config`](crate::Config), and closes its listening sockets, which resets the others. It keeps echoing, and sends FIN to each
    /// connection once nothing is pending and no byte has moved for 100 ms. At [`Config::drain_timeout`](crate::Config::drain_timeout)
    /// it closes the rest.
    pub fn drain(&self) {
        self.send(Command::Drain);
    }

    /// Closes every connection immediately. Pending output is lost.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    /// Returns whether [`drain`](Self::drain) or [`stop`](Self::stop) was called.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.command() > Command::Run
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    /// Returns the counters, and the time since the bind.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { stats: self.stats(), elapsed: self.0.started.elapsed() }
    }

    fn send(&self, command: Command) {
        // Before the wake: the loop reads the command after its wait.
        self.0.command.fetch_max(command as u8, Ordering::Release);
        self.wake();
    }

    /// Ends the wait of the loop, or the next one.
    pub(super) fn wake(&self) {
        if let Err(error) = self.0.waker.wake() {
            log::warn!(target: LOG_TARGET, "cannot wake the loop: {error}; the command takes effect at the next event");
        }
    }

    pub(super) fn command(&self) -> Command {
        match self.0.command.load(Ordering::Acquire) {
            0 => Command::Run,
            1 => Command::Drain,
            _ => Command::Stop,
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.0.counters
    }
}
