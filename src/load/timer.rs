//! The clock of a run, and a timer that is precise to microseconds. mio rounds timeouts up to a millisecond.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::cannot;

/// A second, in nanoseconds of the run.
pub(super) const SECOND: u64 = 1_000_000_000;

/// Converts a duration to nanoseconds, at most a quarter of `u64::MAX`, so that the sum of four does not overflow.
pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}

/// The nanoseconds since a run began, as last read from the system's clock.
#[derive(Debug)]
pub(super) struct Clock {
    epoch: Instant,
    now: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { epoch: Instant::now(), now: 0 }
    }

    /// Reads the system's clock.
    pub(super) fn read(&mut self) -> u64 {
        self.now = nanoseconds(self.epoch.elapsed());
        self.now
    }

    /// Returns the time of the last read.
    pub(super) fn now(&self) -> u64 {
        self.now
    }
}

/// A timerfd (`timerfd_create(2)`), registered with the reactor like any other descriptor.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: OwnedFd,
    armed_for: u64,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(|error| cannot("open a timer", error))?;
        Ok(Self { descriptor, armed_for: 0 })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Makes the descriptor readable at the time `at`, which is after `now`. It is edge-triggered and need not be read.
    pub(super) fn arm(&mut self, at: u64, now: u64) -> io::Result<()> {
        if at != self.armed_for {
            // Zero would disarm the timer.
            let left = Duration::from_nanos(at.saturating_sub(now).max(1));
            let value = Timespec::try_from(left).map_err(io::Error::other)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
            timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once)?;
            self.armed_for = at;
        }
        Ok(())
    }
}
