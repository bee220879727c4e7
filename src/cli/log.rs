//! Logging that can neither block the loop nor end the process.
//!
//! `simple_logger` prints with `println!`, which panics on a full or broken output and blocks on a full pipe. So a thread of its own
//! does that, behind a queue that drops what it has no room for. Until the end, nobody but that thread touches standard output.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// What stands in brackets on each line.
pub(super) const TARGET: &str = "ecoloop";

/// Bytes of each half of the queue: one is filled while the other is written, 1 MiB in all.
const HALF_BYTES: usize = 1 << 19;
/// Stands behind each line of a half. No line holds it: what comes from a peer is escaped.
const SEPARATOR: char = '\x1e';
/// How long the end of the process waits for standard output, and then for standard error: a second in all.
const STDOUT_PATIENCE: Duration = Duration::from_millis(900);
const STDERR_PATIENCE: Duration = Duration::from_millis(100);
const WRITER: &str = "log";

/// The way to end the log.
pub(super) struct Writer(Arc<Queue>);

/// What the loop and the writer share.
struct Queue {
    half: Mutex<Half>,
    filled: Condvar,
    offered_lines: AtomicU64,
    written_lines: AtomicU64,
}

struct Half {
    /// Lines, each behind a character for its level.
    lines: String,
    /// To be answered when all is written: whether standard output was told of the lines that were lost.
    finish: Option<Sender<bool>>,
}

/// Starts the writer, and sends it every record from `level` up.
pub(super) fn start(level: LevelFilter) -> std::io::Result<Writer> {
    // The panic of a line that cannot be written is expected, and its message would go to standard error.
    let print_panic = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some(WRITER) {
            print_panic(panic);
        }
    }));
    let queue = Arc::new(Queue {
        half: Mutex::new(Half { lines: empty_half(), finish: None }),
        filled: Condvar::new(),
        offered_lines: AtomicU64::new(0),
        written_lines: AtomicU64::new(0),
    });
    let of_writer = Arc::clone(&queue);
    thread::Builder::new().name(WRITER.to_owned()).spawn(move || of_writer.write_lines())?;
    log::set_boxed_logger(Box::new(Logger(Arc::clone(&queue)))).map_err(std::io::Error::other)?;
    log::set_max_level(level);
    Ok(Writer(queue))
}

impl Writer {
    /// Waits, within bounds, until all is written; answers how many lines were lost, and says so on standard error if standard
    /// output was not told.
    pub(super) fn finish(self) -> u64 {
        let (sender, answer) = mpsc::channel();
        self.0.lock().finish = Some(sender);
        self.0.filled.notify_one();
        let said = answer.recv_timeout(STDOUT_PATIENCE) == Ok(true);
        let lost = self.0.lost();
        if lost > 0 && !said {
            say_on_stderr(lost_lines(lost));
        }
        lost
    }
}

/// The logger that the process's records go to.
struct Logger(Arc<Queue>);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        self.0.offered_lines.fetch_add(1, Ordering::Relaxed);
        let lines = &mut self.0.lock().lines;
        let start = lines.len();
        let level = record.level() as u8;
        if write!(Bounded(lines), "{level}{}{SEPARATOR}", record.args()).is_err() {
            lines.truncate(start);
        } else if start == 0 {
            self.0.filled.notify_one();
        }
    }

    fn flush(&self) {}
}

impl Queue {
    /// A record whose `Display` panics leaves a line without its end, and no more harm than that.
    fn lock(&self) -> MutexGuard<'_, Half> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> u64 {
        self.offered_lines.load(Ordering::Relaxed) - self.written_lines.load(Ordering::Relaxed)
    }

    fn write_lines(&self) {
        let logger = SimpleLogger::new().with_utc_timestamps();
        let stdout_is_closed = stdout_is_closed();
        let write = |level, line: &str| {
            let print =
                || logger.log(&Record::builder().level(level).target(TARGET).args(format_args!("{line}")).build());
            !stdout_is_closed && panic::catch_unwind(AssertUnwindSafe(print)).is_ok()
        };
        let mut lines = empty_half();
        touch_arena();
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
                if write(level, words) {
                    self.written_lines.fetch_add(1, Ordering::Relaxed);
                }
            }
            lines.clear();
            if let Some(answer) = finish {
                let lost = self.lost();
                let _ = answer.send(lost == 0 || write(Level::Warn, &lost_lines(lost)));
            }
        }
    }
}

/// Writes a line on standard error, and waits for it a little: a pipe that nobody reads shall not hold up the end.
fn say_on_stderr(line: String) {
    let (sender, done) = mpsc::channel();
    let write = move || {
        let _ = writeln!(std::io::stderr(), "{line}");
        let _ = sender.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = done.recv_timeout(STDERR_PATIENCE);
    }
}

fn lost_lines(lost: u64) -> String {
    match lost {
        1 => "1 log line was lost: standard output did not take it".to_owned(),
        _ => format!("{lost} log lines were lost: standard output did not take them"),
    }
}

/// Room for half a queue, every page of it touched: a storm of lines later costs no memory that was not there before.
fn empty_half() -> String {
    let mut half = "\0".repeat(HALF_BYTES);
    half.clear();
    half
}

/// Touches the first pages that glibc gives a thread for small allocations (132 KiB, trimmed when 128 are free). What
/// `simple_logger` formats creeps through them line by line, so they would seem to be a cost of the connections.
fn touch_arena() {
    drop(std::hint::black_box("\0".repeat(120 << 10)));
}

/// Appends as long as there is room, and never makes more.
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

/// Whether the process was started without a standard output.
///
/// Rust's runtime puts `/dev/null` in its place, open for reading and writing, where everything seems to be written. Who sends
/// the log there on purpose opens it for writing alone, as a shell does.
fn stdout_is_closed() -> bool {
    let is_null = std::fs::read_link("/proc/self/fd/1").is_ok_and(|path| path.as_os_str() == "/dev/null");
    let flags = std::fs::read_to_string("/proc/self/fdinfo/1").unwrap_or_default();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
    // proc(5): in octal. O_RDWR is 2 of the access mode's two bits.
    let is_read_write =
        flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & 3 == 2);
    is_null && is_read_write
}
