//! What a run tells while it runs, through a slot that drops what is not taken: who looks on cannot hold it up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Progress {
    /// What it is doing.
    pub step: Step,
    /// Connections open, of those asked for.
    pub open: u64,
    /// Connections asked for.
    pub requested: u64,
    /// Messages verified in the last second.
    pub rate: Option<u64>,
    /// The median latency of the last second, in microseconds.
    pub p50: Option<u64>,
    /// The 99th percentile of latency of the last second, in microseconds.
    pub p99: Option<u64>,
    /// Errors so far.
    pub errors: u64,
    /// What is left of the measured window.
    pub left: Option<Duration>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Connections are opened, and verified by a first message.
    Connect,
    /// Traffic that is not measured.
    Warmup,
    /// The measured window.
    Measure,
    /// The window is over; what is due is still answered.
    Drain,
    /// Every connection is open and none has anything to do: before a window, and after it.
    Idle,
    /// Connections are closed.
    Close,
    /// All is done.
    Done,
}

impl Step {
    /// A word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Warmup => "warm-up",
            Self::Measure => "measure",
            Self::Drain => "drain",
            Self::Idle => "idle",
            Self::Close => "close",
            Self::Done => "done",
        }
    }
}

/// A place for the latest [`Progress`].
#[derive(Clone, Debug, Default)]
pub struct ProgressCell(Arc<Mutex<Option<Progress>>>);

impl ProgressCell {
    /// The latest, if there is one that nobody has taken.
    #[must_use]
    pub fn take(&self) -> Option<Progress> {
        self.0.lock().ok()?.take()
    }

    /// Puts the latest there, unless somebody is looking right now.
    pub(super) fn publish(&self, progress: Progress) {
        if let Ok(mut slot) = self.0.try_lock() {
            *slot = Some(progress);
        }
    }
}
