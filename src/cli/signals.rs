//! The signals of the process, in order and without repeats.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
#[cfg(feature = "load")]
use signal_hook::consts::SIGHUP;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::backend::{PollResult, SignalDelivery, SignalIterator};
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::hints::with_descriptor_hint;
use super::output;

/// A second signal within this time is the same request, whichever it is: timeout(1) sends one to the process and once more to its group,
/// and a wrapper turns Ctrl-C into SIGTERM for its child, which had SIGINT from the terminal.
const REPEAT_INTERVAL: Duration = Duration::from_millis(300);
/// Pause after a failed read of the pipe that announces signals.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Sets the signal mask of this thread, which threads started from it inherit.
///
/// Unblocks the signals that end the process: the process that started it may have left them blocked. Blocks two that would end or stop it in
/// the middle of a write, so that the write fails with EFBIG (SIGXFSZ), or succeeds from the background of a terminal (SIGTTOU).
pub(crate) fn set_mask() -> io::Result<()> {
    let set = |signals: [Signal; 2]| signals.into_iter().collect::<SigSet>();
    set([Signal::SIGINT, Signal::SIGTERM]).thread_unblock()?;
    set([Signal::SIGXFSZ, Signal::SIGTTOU]).thread_block()?;
    Ok(())
}

/// Lets SIGINT and SIGTERM end process 1 of a container, for which they have no default action (`pid_namespaces(7)`).
pub(super) fn end_process_1() -> Result<(), String> {
    if process::id() != 1 {
        return Ok(());
    }
    let mut requests = Requests::new(&[SIGINT, SIGTERM], &[])?;
    let wait = move || {
        if let Some(signal) = requests.next() {
            // The status that a shell reports for a process which the signal has ended.
            output::exit(128 + signal);
        }
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(wait)
        .map_err(|error| format!("cannot start the thread that waits for signals: {error}"))?;
    Ok(())
}

/// The signals that the process receives from now on. An iterator that waits.
pub(super) struct Requests {
    signals: Signals,
    /// The signals that ask the process to end.
    ending: &'static [i32],
    /// When the last request to end was received.
    last: Option<Instant>,
}

impl Requests {
    /// Receives the signals that are requests to end, and `others`.
    pub(super) fn new(ending: &'static [i32], others: &[i32]) -> Result<Self, String> {
        let deliver = || {
            let (read, write) = UnixStream::pair()?;
            SignalDelivery::with_pipe(read, write, SignalOnly, ending.iter().chain(others))
        };
        let signals = deliver().map_err(|error| format!("cannot handle signals: {}", with_descriptor_hint(error)))?;
        Ok(Self { signals, ending, last: None })
    }

    /// Receives the signals that end a load or a grading, and `others`. Under nohup(1), which ignores SIGHUP, it outlives its terminal.
    #[cfg(feature = "load")]
    pub(super) fn to_end_a_run(others: &[i32]) -> Result<Self, String> {
        Self::new(if is_ignored(SIGHUP) { &[SIGINT, SIGTERM] } else { &[SIGINT, SIGTERM, SIGHUP] }, others)
    }

    /// Records a signal, and returns whether it is a request of its own. A signal that does not end the process always is.
    fn is_new(&mut self, signal: i32, now: Instant) -> bool {
        if !self.ending.contains(&signal) {
            return true;
        }
        let is_repeat = self.last.is_some_and(|last| now - last < REPEAT_INTERVAL);
        if !is_repeat {
            self.last = Some(now);
        }
        !is_repeat
    }
}

impl Iterator for Requests {
    type Item = i32;

    fn next(&mut self) -> Option<i32> {
        loop {
            let signal = match SignalIterator::new(&mut self.signals).poll_signal(&mut wait_for_signal) {
                PollResult::Signal(signal) => signal,
                PollResult::Closed => return None,
                PollResult::Pending | PollResult::Err(_) => continue,
            };
            if self.is_new(signal, Instant::now()) {
                return Some(signal);
            }
        }
    }
}

/// Waits until a signal may have arrived. `Signals` of signal-hook panics where the read fails: no signal would end the process then.
fn wait_for_signal(pipe: &mut UnixStream) -> io::Result<bool> {
    loop {
        match pipe.read(&mut [0]) {
            Ok(length) => return Ok(length > 0),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                thread::sleep(RETRY_INTERVAL);
                return Ok(true);
            }
        }
    }
}

/// Returns whether the process was started with a signal ignored, as nohup(1) does with SIGHUP. Call it before [`Requests::new`].
#[cfg(feature = "load")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    use super::*;

    #[test]
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn a_second_signal_within_the_interval_is_the_same_request() {
        let mut requests = Requests::new(&[SIGINT, SIGTERM], &[]).unwrap();
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(requests.is_new(SIGTERM, start));
        assert!(!requests.is_new(SIGTERM, after(1)));
        // The interval starts at the request, not at its last repeat.
        assert!(!requests.is_new(SIGINT, after(299)));
        assert!(requests.is_new(SIGINT, after(300)));
        assert!(!requests.is_new(SIGTERM, after(301)));
        // A signal that does not end the process is no repeat, and starts no interval.
        assert!(requests.is_new(SIGHUP, after(302)));
        assert!(requests.is_new(SIGHUP, after(700)));
        assert!(requests.is_new(SIGTERM, after(701)));
    }
}
