//! Logging that can neither block the loop nor end the process.
//!
//! `simple_logger` prints with `println!`, which panics on a full or broken output and blocks on a full pipe. So a thread of its own
//! does that, behind a queue that drops what it has no room for. Until the end, nobody but that thread touches standard output.

use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simple_logger::SimpleLogger;

/// What stands in brackets on each line.
pub(super) const TARGET: &str = "ecoloop";

/// Bytes that may wait to be written.
const QUEUE_BYTES: usize = 1 << 20;
/// How long the end of the process waits for standard output, and then for standard error.
const PATIENCE: Duration = Duration::from_millis(500);
const WRITER: &str = "log";

/// The way to end the log.
pub(super) struct Writer {
    sender: Sender<Message>,
    counts: Arc<Counts>,
}

/// The logger that the process's records go to.
struct Queue {
    sender: Sender<Message>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    queued_bytes: AtomicUsize,
    offered_lines: AtomicU64,
    written_lines: AtomicU64,
}

enum Message {
    Line(Level, String),
    /// Write what stands before this, say what was lost, and answer whether that could be said.
    Finish(Sender<bool>),
}

/// Starts the writer, and sends it every record from `level` up.
pub(super) fn start(level: LevelFilter) -> std::io::Result<Writer> {
    let (sender, receiver) = mpsc::channel();
    let counts = Arc::new(Counts::default());
    // The panic of a line that cannot be written is expected, and its message would go to standard error.
    let print_panic = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if thread::current().name() != Some(WRITER) {
            print_panic(panic);
        }
    }));
    let of_writer = Arc::clone(&counts);
    thread::Builder::new().name(WRITER.to_owned()).spawn(move || write_lines(&receiver, &of_writer))?;
    let queue = Queue { sender: sender.clone(), counts: Arc::clone(&counts) };
    log::set_boxed_logger(Box::new(queue)).map_err(std::io::Error::other)?;
    log::set_max_level(level);
    Ok(Writer { sender, counts })
}

impl Writer {
    /// Waits, within bounds, until all is written; answers how many lines were lost, and says so on standard error if standard
    /// output did not take it.
    pub(super) fn finish(self) -> u64 {
        let (sender, answer) = mpsc::channel();
        let said = self.sender.send(Message::Finish(sender)).is_ok() && answer.recv_timeout(PATIENCE) == Ok(true);
        let lost = self.counts.lost();
        if lost > 0 && !said {
            say_on_stderr(lost_lines(lost));
        }
        lost
    }
}

impl Counts {
    fn lost(&self) -> u64 {
        self.offered_lines.load(Ordering::Relaxed) - self.written_lines.load(Ordering::Relaxed)
    }
}

impl Log for Queue {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        self.counts.offered_lines.fetch_add(1, Ordering::Relaxed);
        // Before the line is formatted: with a full queue a line costs next to nothing.
        if self.counts.queued_bytes.load(Ordering::Relaxed) >= QUEUE_BYTES {
            return;
        }
        let line = record.args().to_string();
        self.counts.queued_bytes.fetch_add(cost(&line), Ordering::Relaxed);
        // It fails only where the writer is gone: then the line is lost, and counted so.
        let _ = self.sender.send(Message::Line(record.level(), line));
    }

    fn flush(&self) {}
}

/// Writes a line on standard error, and waits for it a little: a pipe that nobody reads shall not hold up the end.
pub(super) fn say_on_stderr(line: String) {
    let (sender, done) = mpsc::channel();
    let write = move || {
        let _ = writeln!(std::io::stderr(), "{line}");
        let _ = sender.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = done.recv_timeout(PATIENCE);
    }
}

fn write_lines(receiver: &Receiver<Message>, counts: &Counts) {
    let logger = SimpleLogger::new().with_utc_timestamps();
    let stdout_is_closed = stdout_is_closed();
    let write = |level, line: &str| {
        let print = || logger.log(&Record::builder().level(level).target(TARGET).args(format_args!("{line}")).build());
        !stdout_is_closed && panic::catch_unwind(AssertUnwindSafe(print)).is_ok()
    };
    for message in receiver {
        match message {
            Message::Line(level, line) => {
                if write(level, &line) {
                    counts.written_lines.fetch_add(1, Ordering::Relaxed);
                }
                counts.queued_bytes.fetch_sub(cost(&line), Ordering::Relaxed);
            }
            Message::Finish(answer) => {
                let lost = counts.lost();
                let _ = answer.send(lost == 0 || write(Level::Warn, &lost_lines(lost)));
            }
        }
    }
}

fn lost_lines(lost: u64) -> String {
    format!("{lost} log lines were lost: standard output did not take them")
}

/// What a waiting line holds.
fn cost(line: &str) -> usize {
    line.len() + size_of::<Message>()
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
