//! Drain, stop and look on from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mio::Waker;

use super::stats::{Counters, Stats};

/// Commands a [`Server`](crate::Server) from any thread, and reads its counters.
///
/// It may outlive the server: what it says then does nothing.
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

/// What the loop and its handles share.
#[derive(Debug)]
struct Shared {
    command: AtomicU8,
    waker: Waker,
    counters: Counters,
}

/// What a handle has asked for. A later one overrides an earlier, never the reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Command {
    Run,
    Drain,
    Stop,
}

impl Handle {
    pub(super) fn new(waker: Waker) -> Self {
        Self(Arc::new(Shared { command: AtomicU8::new(Command::Run as u8), waker, counters: Counters::default() }))
    }

    /// Asks for an orderly end: no new connections, the echo of all that comes, FIN to each connection that has fallen
    /// silent, and at [`Config::drain_timeout`](crate::Config::drain_timeout) the end of those that are left.
    pub fn drain(&self) {
        self.ask(Command::Drain);
    }

    /// Asks for the end at once: every connection is closed, and what is pending is lost.
    pub fn stop(&self) {
        self.ask(Command::Stop);
    }

    /// Whether [`drain`](Self::drain) or [`stop`](Self::stop) has been called.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.command() > Command::Run
    }

    /// The counters as they stand.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    fn ask(&self, command: Command) {
        // The command before the wake: the loop looks for it after its wait.
        self.0.command.fetch_max(command as u8, Ordering::Release);
        if let Err(error) = self.0.waker.wake() {
            log::warn!(target: crate::LOG_TARGET, "cannot wake the loop: {error}; it obeys at its next event");
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
