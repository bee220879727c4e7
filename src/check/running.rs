//! A run on a thread of its own.

use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use super::{Grader, Report};

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
    /// `None` once the thread was joined.
    thread: Option<JoinHandle<io::Result<Report>>>,
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
            thread::Builder::new().name("ecoloop check".to_owned()).spawn(run)?
        };
        Ok(Self { interrupt, done, total, thread: Some(thread) })
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
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the run is over, and returns its report.
    ///
    /// # Errors
    ///
    /// - Those of [`Grader::run`].
    pub fn join(mut self) -> io::Result<Report> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("only `join` and `drop` take the thread, and each ends this value"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.interrupt();
            if let (Err(panic), false) = (thread.join(), thread::panicking()) {
                resume_unwind(panic);
            }
        }
    }
}
