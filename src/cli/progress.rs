//! The progress line of `ecoloop load`, on standard error.

use std::io::{self, IsTerminal, stderr};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ecoloop::load::{Progress, ProgressCell};
use indicatif::ProgressBar;

use super::format::{plural, time};
use super::print_error;

/// Shortest time between two drawings on a terminal.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Draws the progress of a run from its own thread: a frozen terminal cannot delay the schedule.
pub(super) struct ProgressDisplay {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressDisplay {
    /// Prints a line every `interval`; without one, redraws a line if `draw` is set and standard error is a terminal.
    pub(super) fn start(cell: ProgressCell, interval: Option<Duration>, draw: bool) -> io::Result<Self> {
        Self::start_total(cell, interval, draw, |own| own)
    }

    /// Does the same for a run of which this process has a part: `total` returns the progress of all.
    pub(super) fn start_total(
        cell: ProgressCell,
        interval: Option<Duration>,
        draw: bool,
        total: impl Fn(Progress) -> Progress + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let draw = draw && interval.is_none() && stderr().is_terminal();
        if !draw && interval.is_none() {
            return Ok(Self { stop, thread: None });
        }
        let display = move || {
            let spinner = if draw { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
            let mut last = None;
            while stopped.recv_timeout(interval.unwrap_or(REDRAW_INTERVAL)) == Err(RecvTimeoutError::Timeout) {
                last = cell.take().or(last);
                let Some(progress) = last.map(&total) else { continue };
                if draw {
                    spinner.set_message(line(&progress));
                    spinner.tick();
                } else {
                    print_error(&line(&progress));
                }
            }
            spinner.finish_and_clear();
        };
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(display)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Clears the line. Does not wait for a frozen terminal.
    pub(super) fn finish(self) {
        drop(self.stop);
        let deadline = Instant::now() + REDRAW_INTERVAL * 2;
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn line(progress: &Progress) -> String {
    let mut words = vec![
        progress.step.name().to_owned(),
        format!("{}/{} open", progress.open, progress.requested),
        plural(progress.errors, "error", "errors"),
    ];
    if let Some(rate) = progress.rate {
        words.push(format!("{rate}/s"));
    }
    if let (Some(p50), Some(p99)) = (progress.p50, progress.p99) {
        words.push(format!("p50 {} p99 {}", time(p50), time(p99)));
    }
    if let Some(left) = progress.left {
        words.push(format!("{} s left", whole_seconds(left)));
    }
    words.join(", ")
}

/// Rounds to the nearest second: a turn after the first of ten seconds, 8.999 s are left.
fn whole_seconds(left: Duration) -> u64 {
    left.saturating_add(Duration::from_millis(500)).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_rounded_to_the_nearest_second() {
        for (milliseconds, seconds) in [(8_999, 9), (9_000, 9), (9_499, 9), (9_500, 10), (0, 0)] {
            assert_eq!(whole_seconds(Duration::from_millis(milliseconds)), seconds, "{milliseconds} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }
}
