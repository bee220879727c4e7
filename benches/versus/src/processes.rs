//! Child processes that are killed when dropped, and waits with a timeout.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How often a wait for a reply checks for a signal: rarely, because it runs while a window is measured.
const SIGNAL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Makes `check_interrupt` fail after SIGINT, SIGTERM or SIGHUP.
pub(crate) fn watch_signals() -> Result<(), String> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))
            .map_err(|error| format!("cannot watch signal {signal}: {error}"))?;
    }
    Ok(())
}

pub(crate) fn check_interrupt() -> Result<(), String> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err("interrupted".to_owned()) } else { Ok(()) }
}

pub(crate) fn sleep(duration: Duration) -> Result<(), String> {
    wait_until(duration, || Ok(false)).map(|_| ())
}

/// Polls `condition` until it is true and returns true, or returns false after `timeout`.
pub(crate) fn wait_until(
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool, String>,
) -> Result<bool, String> {
    let end = Instant::now() + timeout;
    loop {
        check_interrupt()?;
        if condition()? {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        thread::sleep(left.min(POLL_INTERVAL));
    }
}

/// Returns a command that runs `program` on one core. The kernel kills it if this process dies.
pub(crate) fn pinned(core: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string(), program]);
    command
}

/// Returns the command with `SCHED_FIFO`, so that it runs as soon as it can. With the normal policy it may wait some
/// milliseconds for the process that has the core, which is longer than most replies take.
pub(crate) fn with_realtime_priority(command: &Command) -> Command {
    let mut realtime = Command::new("chrt");
    realtime.args(["--fifo", "1"]).arg(command.get_program()).args(command.get_args());
    realtime
}

/// A child process and its descendants, as a process group that is killed on drop.
pub(crate) struct Process {
    child: Child,
    group: Pid,
    exit_status: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self, String> {
        Self::spawn_with(command, Stdio::null())
    }

    fn spawn_with(command: &mut Command, input: Stdio) -> Result<Self, String> {
        let program = command.get_program().display().to_string();
        let child = command
            .process_group(0)
            .stdin(input)
            .spawn()
            .map_err(|error| format!("cannot start {program}: {error}"))?;
        Ok(Self { group: Pid::from_child(&child), child, exit_status: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status, or `None` while the process runs.
    pub(crate) fn exit_status(&mut self) -> Result<Option<ExitStatus>, String> {
        if self.exit_status.is_none() {
            self.exit_status =
                self.child.try_wait().map_err(|error| format!("cannot wait for {}: {error}", self.id()))?;
        }
        Ok(self.exit_status)
    }

    /// Sends `signal` and returns whether the process exited before `timeout`.
    pub(crate) fn signal_and_wait(&mut self, signal: Signal, timeout: Duration) -> Result<bool, String> {
        if self.exit_status()?.is_none() {
            kill_process(self.group, signal).map_err(|error| format!("cannot signal {}: {error}", self.id()))?;
        }
        wait_until(timeout, || Ok(self.exit_status()?.is_some()))
    }

    /// Returns the number of processes in its group: 1, except for a server that forks.
    pub(crate) fn group_size(&self) -> usize {
        group_size(self.id())
    }

    /// Returns the CPU time of its threads.
    pub(crate) fn cpu_time(&self) -> Duration {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.id())) else { return Duration::ZERO };
        let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        Duration::from_nanos(texts.filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok()).sum())
    }
}

/// Returns the number of processes in the group, without zombies.
fn group_size(group: u32) -> usize {
    let group = group.to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return 1 };
    let stats = processes.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // The name is in parentheses and may contain any character; the state, the parent and the group follow.
    let is_member = |stat: &String| {
        let mut fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace();
        fields.next() != Some("Z") && fields.nth(1) == Some(&group)
    };
    stats.filter(is_member).count()
}

impl Drop for Process {
    fn drop(&mut self) {
        // The kernel does not reuse the group id while the child is not waited for or the group has a process.
        if self.exit_status.is_none() || self.group_size() > 0 {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A running command whose output is collected.
pub(crate) struct Job {
    process: Process,
    output: JoinHandle<String>,
    errors: JoinHandle<String>,
}

pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
    pub(crate) errors: String,
}

impl Job {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let output = collect(process.child.stdout.take());
        let errors = collect(process.child.stderr.take());
        Ok(Self { process, output, errors })
    }

    /// Waits until the command exits, and kills it after `timeout`.
    pub(crate) fn wait(self, timeout: Duration) -> Result<Output, String> {
        let Self { mut process, output, errors } = self;
        if !wait_until(timeout, || Ok(process.exit_status()?.is_some()))? {
            return Err(format!("not finished after {}", humantime::format_duration(timeout)));
        }
        let Some(status) = process.exit_status else { return Err("it has no exit status".to_owned()) };
        // A process that it left behind would keep its output open.
        drop(process);
        let read = |reader: JoinHandle<String>| reader.join().map_err(|_| "its output could not be read".to_owned());
        Ok(Output { status, text: read(output)?, errors: read(errors)? })
    }
}

/// A command that replies to each line of its input with one line of output.
pub(crate) struct Coprocess {
    process: Process,
    input: Option<ChildStdin>,
    replies: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Coprocess {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn_with(command, Stdio::piped())?;
        let (sender, replies) = mpsc::channel();
        if let Some(output) = process.child.stdout.take() {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            thread::spawn(move || lines.map(|line| sender.send(line)).all(|sent| sent.is_ok()));
        }
        let errors = Some(collect(process.child.stderr.take()));
        Ok(Self { input: process.child.stdin.take(), process, replies, errors })
    }

    /// Sends an empty line and returns the reply.
    pub(crate) fn request(&mut self, timeout: Duration) -> Result<String, String> {
        // If the write fails the process has exited, and `next_line` returns why.
        let _ = self.input.as_mut().map(|input| input.write_all(b"\n"));
        self.next_line(timeout)
    }

    /// Returns the next line of its output.
    pub(crate) fn next_line(&mut self, timeout: Duration) -> Result<String, String> {
        let end = Instant::now() + timeout;
        loop {
            check_interrupt()?;
            let left = end.saturating_duration_since(Instant::now());
            match self.replies.recv_timeout(left.min(SIGNAL_CHECK_INTERVAL)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(format!("no reply after {}", humantime::format_duration(timeout)));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish(timeout, &[])?;
                    return Err("it exited".to_owned());
                }
            }
        }
    }

    /// Closes its input and waits until it exits, with 0 or a status of `also`.
    pub(crate) fn finish(&mut self, timeout: Duration, also: &[i32]) -> Result<(), String> {
        self.input = None;
        if !wait_until(timeout, || Ok(self.process.exit_status()?.is_some()))? {
            return Err(format!("not finished after {}", humantime::format_duration(timeout)));
        }
        match self.process.exit_status()? {
            Some(status) if !status.success() && !status.code().is_some_and(|code| also.contains(&code)) => {
                let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
                Err(exit_reason(status, &errors))
            }
            _ => Ok(()),
        }
    }
}

/// Reads a pipe to its end on a separate thread, so that the command never blocks on a full pipe.
fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Returns what the command printed, or an error if its exit status is not 0.
pub(crate) fn output_of(command: &mut Command, timeout: Duration) -> Result<String, String> {
    let output = Job::start(command)?.wait(timeout)?;
    if output.status.success() { Ok(output.text) } else { Err(exit_reason(output.status, &output.errors)) }
}

/// Returns the exit status and the last line of standard error.
pub(crate) fn exit_reason(status: ExitStatus, errors: &str) -> String {
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    last.map_or_else(|| status.to_string(), |line| format!("{status}: {}", line.trim()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn drop_kills_the_whole_process_group() {
        let mut command = Command::new("sh");
        let process = Process::spawn(command.args(["-c", "sleep 60 & sleep 60"])).unwrap();
        assert!(wait_until(Duration::from_secs(10), || Ok(process.group_size() == 3)).unwrap());
        let group = process.id();
        drop(process);
        assert!(wait_until(Duration::from_secs(10), || Ok(group_size(group) == 0)).unwrap());
    }

    #[test]
    fn coprocess_replies_to_each_line_and_reports_its_failure() {
        let timeout = Duration::from_secs(10);
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; while read line; do n=$((n + 1)); echo $n; done; echo broken >&2; exit $n"]);
        let mut coprocess = Coprocess::start(&mut command).unwrap();
        assert_eq!(coprocess.next_line(timeout).unwrap(), "ready");
        assert_eq!(coprocess.next_line(POLL_INTERVAL).unwrap_err(), "no reply after 5ms");
        assert_eq!(
            (coprocess.request(timeout).unwrap(), coprocess.request(timeout).unwrap()),
            ("1".to_owned(), "2".to_owned())
        );
        assert_eq!(coprocess.finish(timeout, &[3]).unwrap_err(), "exit status: 2: broken");
        let late = || Coprocess::start(Command::new("sh").args(["-c", "read line; exit 3"])).unwrap();
        assert_eq!(late().finish(timeout, &[3]), Ok(()));
        assert_eq!(late().finish(timeout, &[]).unwrap_err(), "exit status: 3");
        let mut ended = Coprocess::start(&mut Command::new("true")).unwrap();
        assert_eq!(ended.request(timeout).unwrap_err(), "it exited");
    }

    #[test]
    fn commands_time_out_and_failures_are_reported() {
        let slow = output_of(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(slow.unwrap_err(), "not finished after 50ms");
        let failed = output_of(Command::new("sh").args(["-c", "echo no such wheel >&2; exit 3"]), POLL_INTERVAL * 1000);
        assert_eq!(failed.unwrap_err(), "exit status: 3: no such wheel");
        let start = Instant::now();
        let left_behind = output_of(Command::new("sh").args(["-c", "sleep 60 & echo done"]), POLL_INTERVAL * 4000);
        assert_eq!((left_behind.unwrap().as_str(), start.elapsed().as_secs() < 30), ("done\n", true));
        let many = output_of(Command::new("seq").arg("100000"), POLL_INTERVAL * 4000).unwrap();
        assert_eq!(many.lines().count(), 100_000);
        assert!(Process::spawn(&mut Command::new("/no/such/program")).is_err());
    }
}
