//! The progress of a run, in a cell that keeps only the latest: a slow reader cannot delay the run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::report::Messages;

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// The current step.
    pub step: Step,
    /// Open connections: their handshake is complete.
    pub open: u64,
    /// Requested connections.
    pub requested: u64,
    /// Connects that began or could not begin since the start of the run.
    pub opened: u64,
    /// Messages of the measured window so far, by outcome.
    pub messages: Messages,
    /// Messages verified in the last second.
    pub rate: Option<u64>,
    /// Median latency of the last second, in microseconds.
    pub p50: Option<u64>,
    /// 99th percentile of the latency of the last second, in microseconds.
    pub p99: Option<u64>,
    /// Errors since the last report.
    pub errors: u64,
    /// Time until the measured window ends.
    pub left: Option<Duration>,
}

/// The steps of a run, in their order. A [`Session`](super::Session) takes those from `Ready` to `Idle` once a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Connections are opened, and each is verified by a first message.
    Connect,
    /// The connections are open; the window has not begun.
    Ready,
    /// Traffic that is not measured.
    Warmup,
    /// The measured window.
    Measure,
    /// The window is over; replies to what is due are awaited.
    Drain,
    /// The connections are open and nothing is due.
    Idle,
    /// Connections are closed.
    Close,
    /// Every connection is closed.
    Done,
}

impl Step {
    /// The number of steps.
    pub(super) const COUNT: usize = Self::Done as usize + 1;
    /// Every step, in order.
    pub const ALL: &[Self] =
        &[Self::Connect, Self::Ready, Self::Warmup, Self::Measure, Self::Drain, Self::Idle, Self::Close, Self::Done];

    /// Returns the name that progress lines show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Ready => "ready",
            Self::Warmup => "warm-up",
            Self::Measure => "measure",
            Self::Drain => "drain",
            Self::Idle => "idle",
            Self::Close => "close",
            Self::Done => "done",
        }
    }
}

/// Holds the latest [`Progress`] of a run. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ProgressCell(Arc<Mutex<Latest>>);

#[derive(Debug, Default)]
struct Latest {
    progress: Option<Progress>,
    is_taken: bool,
}

impl ProgressCell {
    /// Takes the latest progress, or returns `None` if it was taken before.
    #[must_use]
    pub fn take(&self) -> Option<Progress> {
        let mut latest = self.0.lock().ok()?;
        let is_taken = std::mem::replace(&mut latest.is_taken, true);
        latest.progress.filter(|_| !is_taken)
    }

    /// Returns the latest progress, also if it was taken; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<Progress> {
        self.0.lock().ok()?.progress
    }

    /// Replaces the latest progress. It is dropped if another thread is taking the previous one.
    pub(super) fn publish(&self, progress: Progress) {
        if let Ok(mut latest) = self.0.try_lock() {
            *latest = Latest { progress: Some(progress), is_taken: false };
        }
    }
}
