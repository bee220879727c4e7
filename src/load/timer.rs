//! The alarm of the schedule: mio rounds timeouts up to a millisecond, which is what an open loop may not be late.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A timerfd (`timerfd_create(2)`), registered with the reactor like any other descriptor.
#[derive(Debug)]
pub(super) struct Timer {
    descriptor: OwnedFd,
    armed_for: u64,
}

impl Timer {
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { descriptor, armed_for: 0 })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// Makes the descriptor readable `at` nanoseconds after `epoch`. Being edge-triggered, it need not be read.
    pub(super) fn arm(&mut self, at: u64, epoch: Instant) -> io::Result<()> {
        if at != self.armed_for {
            // By the clock as it is now: what the turn has done since it looked took its time. Zero would disarm it.
            let left = Duration::from_nanos(at).saturating_sub(epoch.elapsed()).max(Duration::from_nanos(1));
            let value = Timespec::try_from(left).map_err(io::Error::other)?;
            let once = Itimerspec { it_interval: Timespec::default(), it_value: value };
            timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &once)?;
            self.armed_for = at;
        }
        Ok(())
    }
}
