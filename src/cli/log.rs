//! Logging that can neither block the loop nor end the process.
//!
//! Only a writer thread prints, because a full pipe blocks it. It takes the lines from a bounded queue that drops lines when it is full.
//! No other thread writes to standard output.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::escape::Escaped;
use super::output::{is_writable, write_whole};

/// The name in brackets on each line.
pub(super) const TARGET: &str = "ecoloop";

/// Bytes of each half of the queue: one is filled while the other is written. 1 MiB together.
const HALF_BYTES: usize = 1 << 19;
/// Ends each line of a half. No line contains it: control characters are escaped.
const SEPARATOR: char = '\x1e';
/// How long the process waits at its end for standard output, then for standard error: together a second.
const STDOUT_TIMEOUT: Duration = Duration::from_millis(900);
const STDERR_TIMEOUT: Duration = Duration::from_millis(100);
/// How often it waits for standard error if that can take a line: the thread that writes it may have had no CPU.
const STDERR_WAITS_MAX: u32 = 10;

/// Ends the log.
pub(super) struct Writer {
    queue: Arc<Queue>,
    is_finished: bool,
}

/// The number of lines that were lost so far.
#[derive(Clone)]
pub(super) struct LostLines(Arc<Queue>);

impl LostLines {
    pub(super) fn count(&self) -> u64 {
        self.0.lost_lines.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for LostLines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("LostLines").field(&self.count()).finish()
    }
}

/// The end of the log.
pub(super) struct Finished {
    pub(super) lost_lines: u64,
    /// Whether the writer thread waits for nothing more: then another thread may write to standard output.
    pub(super) is_written: bool,
}

/// The queue between the loop and the writer thread.
struct Queue {
    half: Mutex<Half>,
    filled: Condvar,
    offered_lines: AtomicU64,
    written_lines: AtomicU64,
    /// Lines that did not fit in the queue, or could not be written.
    lost_lines: AtomicU64,
}

struct Half {
    /// Lines, each preceded by the digit of its level.
    lines: String,
    /// Set at the end. Receives `true` once all is written and no line was lost, or standard output shows how many.
    finish: Option<Sender<bool>>,
}

/// Starts the writer thread, and sends it every record from `level` up.
pub(super) fn start(level: LevelFilter) -> std::io::Result<Writer> {
    let queue = Arc::new(Queue {
        half: Mutex::new(Half { lines: String::with_capacity(HALF_BYTES), finish: None }),
        filled: Condvar::new(),
        offered_lines: AtomicU64::new(0),
        written_lines: AtomicU64::new(0),
        lost_lines: AtomicU64::new(0),
    });
    let of_writer = Arc::clone(&queue);
    thread::Builder::new().name("log".to_owned()).spawn(move || of_writer.write_lines())?;
    log::set_boxed_logger(Box::new(Logger(Arc::clone(&queue)))).map_err(std::io::Error::other)?;
    log::set_max_level(level);
    Ok(Writer { queue, is_finished: false })
}

impl Writer {
    pub(super) fn lost_lines(&self) -> LostLines {
        LostLines(Arc::clone(&self.queue))
    }

    /// Waits at most a second until all is written, or two on a busy machine. If standard output does not show how many lines were lost,
    /// prints it on standard error.
    pub(super) fn finish(mut self) -> Finished {
        self.is_finished = true;
        self.flush()
    }

    fn flush(&self) -> Finished {
        let (sender, answer) = mpsc::channel();
        self.queue.lock().finish = Some(sender);
        self.queue.filled.notify_one();
        let is_shown = answer.recv_timeout(STDOUT_TIMEOUT);
        let lost = self.queue.lost();
        if lost > 0 && is_shown != Ok(true) {
            print_on_stderr(lost_lines(lost));
        }
        Finished { lost_lines: lost, is_written: is_shown.is_ok() }
    }
}

impl Drop for Writer {
    /// Writes what is queued if a panic or an error ends the process: its message alone would not tell what led to it.
    fn drop(&mut self) {
        if !self.is_finished {
            self.flush();
        }
    }
}

/// The process's logger, which fills the queue.
struct Logger(Arc<Queue>);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        self.0.offered_lines.fetch_add(1, Ordering::Relaxed);
        let lines = &mut self.0.lock().lines;
        let start = lines.len();
        if write_line(&mut Bounded(lines), record).is_err() {
            lines.truncate(start);
            self.0.lost_lines.fetch_add(1, Ordering::Relaxed);
        } else if start == 0 {
            self.0.filled.notify_one();
        }
    }

    fn flush(&self) {}
}

/// Queues a line. Paths and names in it may have any character, and must not act on a terminal or begin another line.
fn write_line(half: &mut Bounded<'_>, record: &Record<'_>) -> fmt::Result {
    write!(half, "{}", record.level() as u8)?;
    write!(Escaped(&mut *half), "{}", record.args())?;
    half.write_char(SEPARATOR)
}

impl Queue {
    /// Ignores poison: a record whose `Display` panics leaves nothing but an incomplete line.
    fn lock(&self) -> MutexGuard<'_, Half> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> u64 {
        // In this order: a line may be offered and written between the two.
        let written = self.written_lines.load(Ordering::Relaxed);
        self.offered_lines.load(Ordering::Relaxed).saturating_sub(written)
    }

    fn write_lines(&self) {
        let mut printer = Printer::default();
        let mut lines = String::with_capacity(HALF_BYTES);
        loop {
            let wait = |half: &mut Half| half.lines.is_empty() && half.finish.is_none();
            let mut half = self.filled.wait_while(self.lock(), wait).unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut half.lines, &mut lines);
            let finish = half.finish.take();
            drop(half);
            for line in lines.split_terminator(SEPARATOR) {
                let (level, words) = line.split_at(1);
                let level =
                    Level::iter().nth(level.parse().map_or(0, |level: usize| level - 1)).unwrap_or(Level::Error);
                let count = if printer.print(level, words) { &self.written_lines } else { &self.lost_lines };
                count.fetch_add(1, Ordering::Relaxed);
            }
            lines.clear();
            if let Some(answer) = finish {
                let lost = self.lost();
                let _ = answer.send(lost == 0 || printer.print(Level::Warn, &lost_lines(lost)));
            }
        }
    }
}

/// Prints lines on standard output.
#[derive(Default)]
struct Printer {
    line: String,
    /// The last line was written in part.
    is_mid_line: bool,
}

impl Printer {
    /// Returns whether the whole line was written. One that follows a part of another begins on a new line.
    fn print(&mut self, level: Level, words: &str) -> bool {
        let end_of_part = if self.is_mid_line { "\n" } else { "" };
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        self.line.clear();
        let _ = writeln!(self.line, "{end_of_part}{time} {level:<5} [{TARGET}] {words}");
        let mut rest = self.line.as_bytes();
        let is_written = write_whole(std::io::stdout(), &mut rest).is_ok();
        if let Some(last) = self.line.as_bytes()[..self.line.len() - rest.len()].last() {
            self.is_mid_line = *last != b'\n';
        }
        is_written
    }
}

/// Prints a line on standard error, and waits at most `STDERR_TIMEOUT` if that is full: a pipe that is not read cannot delay the end.
pub(super) fn print_on_stderr(line: String) {
    let (sender, done) = mpsc::channel();
    let write = move || {
        let _ = write_whole(std::io::stderr(), &mut format!("{line}\n").as_bytes());
        let _ = sender.send(());
    };
    if thread::Builder::new().spawn(write).is_err() {
        return;
    }
    for _ in 0..STDERR_WAITS_MAX {
        let is_over = done.recv_timeout(STDERR_TIMEOUT) != Err(RecvTimeoutError::Timeout);
        if is_over || !is_writable(std::io::stderr()) {
            return;
        }
    }
}

fn lost_lines(lost: u64) -> String {
    match lost {
        1 => "1 log line was lost: standard output did not take it".to_owned(),
        _ => format!("{lost} log lines were lost: standard output did not take them"),
    }
}

/// Appends up to `HALF_BYTES`, and never reallocates.
struct Bounded<'a>(&'a mut String);

impl fmt::Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > HALF_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use std::env;
    use std::io::{BufRead, BufReader, Read};
    use std::panic::catch_unwind;
    use std::process::{Command, Stdio, exit};

    use super::*;

    /// More than a pipe holds, and less than the queue.
    const LINES: u64 = 5000;

    /// Set in the process that panics: its logger is that of the whole process.
    const PANICS: &str = "ECOLOOP_TEST_PANICS";

    fn panic_after_log_lines() -> ! {
        // As in `serve`, the panic drops the writer on its way to the end of the process.
        let ended = catch_unwind(|| {
            let _writer = start(LevelFilter::Info).unwrap();
            for line in 1..=LINES {
                log::info!("line {line}");
            }
            panic!("the end of the test");
        });
        exit(if ended.is_err() { 101 } else { 0 });
    }

    #[test]
    fn a_panic_writes_its_message_and_every_line_before_it() {
        if env::var_os(PANICS).is_some() {
            panic_after_log_lines();
        }
        let mut panicking = Command::new(env::current_exe().unwrap());
        let this = "cli::log::tests::a_panic_writes_its_message_and_every_line_before_it";
        panicking.args(["--exact", "--nocapture", this]).env(PANICS, "1").env("RUST_BACKTRACE", "0");
        let mut child = panicking.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        // Most lines are still queued when the message comes: the pipe of standard output is full.
        while !stderr.ends_with("\nthe end of the test\n") {
            assert!(errors.read_line(&mut stderr).unwrap() > 0, "{stderr}");
        }
        child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        errors.read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(101), "{stderr}");
        assert!(stderr.contains("panicked at src/cli/log.rs"), "{stderr}");
        let lines = stdout.lines().filter_map(|line| line.split_once("[ecoloop] line ")?.1.parse::<u64>().ok());
        let is_complete = lines.eq(1..=LINES);
        // A machine that is too busy to write the lines within the timeout loses some, and the writer prints how many.
        assert!(is_complete || stderr.contains("lost: standard output did not take"), "{stdout}{stderr}");
    }
}
