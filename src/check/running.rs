//! A run on a thread of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{Grader, Report};
use crate::worker::Worker;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Checks that have run or were skipped.
    pub done: usize,
    /// Checks in all.
    pub total: usize,
}

/// A run on a thread of its own, as [`Grader::spawn`] returns it. Dropping it interrupts the run and joins the thread.
#[derive(Debug)]
pub struct Running {
    interrupt: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    total: usize,
    thread: Worker<io::Result<Report>>,
}

impl Running {
    pub(super) fn start(grader: Grader) -> io::Result<Self> {
        let (interrupt, done, total) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), grader.checks.len());
        let thread = {
            let (interrupt, done) = (Arc::clone(&interrupt), Arc::clone(&done));
            let run = move || {
                grader.run(&interrupt, |_| {
                    done.fetch_add(1, Ordering::Relaxed);
                })
            };
            Worker::spawn("ecoloop check", run)?
        };
        Ok(Self { interrupt, done, total, thread })
    }

    /// Returns how many checks have run.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress { done: self.done.load(Ordering::Relaxed), total: self.total }
    }

    /// Ends the run within half a second: [`Running::join`] returns the results until now.
    pub fn interrupt(&self) {
        self.interrupt.store(true, Ordering::Release);
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
    /// - Those of [`Grader::run`].
    pub fn join(mut self) -> io::Result<Report> {
        self.thread.join()?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.thread.end(|| self.interrupt.store(true, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn dropping_a_run_ends_its_thread() {
        // The system accepts the connection, and no program replies.
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let run = Grader::new([silent.local_addr().unwrap()]).spawn().unwrap();
        let shared = Arc::downgrade(&run.interrupt);
        drop(run);
        assert_eq!(shared.strong_count(), 0, "the thread still has it");
    }
}
