//! Processes that end when they are let go, and waits that end.

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

const LOOK: Duration = Duration::from_millis(5);
/// How often a wait for an answer looks for a signal: seldom, for a slice is measured meanwhile.
const LOOK_FOR_SIGNAL: Duration = Duration::from_millis(200);

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

pub(crate) fn sleep(time: Duration) -> Result<(), String> {
    wait_until(time, || Ok(false)).map(|_| ())
}

/// Whether it became true in that time.
pub(crate) fn wait_until(limit: Duration, mut is_so: impl FnMut() -> Result<bool, String>) -> Result<bool, String> {
    let end = Instant::now() + limit;
    loop {
        check_interrupt()?;
        if is_so()? {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        thread::sleep(left.min(LOOK));
    }
}

/// A command that is pinned to a core, and that the kernel ends should this process be killed.
pub(crate) fn pinned(core: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "-c", &core.to_string(), program]);
    command
}

/// The command runs as soon as it has something to do. Else it waits until whoever has the core has used up its slice, some
/// milliseconds: longer than most answers take.
pub(crate) fn before_others(command: &Command) -> Command {
    let mut first = Command::new("chrt");
    first.args(["--fifo", "1"]).arg(command.get_program()).args(command.get_args());
    first
}

/// A child with its descendants: a process group of its own, killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    group: Pid,
    exited: Option<ExitStatus>,
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
        Ok(Self { group: Pid::from_child(&child), child, exited: None })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>, String> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait().map_err(|error| format!("cannot wait for {}: {error}", self.id()))?;
        }
        Ok(self.exited)
    }

    /// Asks it to end. Whether it did in that time.
    pub(crate) fn end(&mut self, signal: Signal, limit: Duration) -> Result<bool, String> {
        if self.exited()?.is_none() {
            kill_process(self.group, signal).map_err(|error| format!("cannot signal {}: {error}", self.id()))?;
        }
        wait_until(limit, || Ok(self.exited()?.is_some()))
    }

    /// The processes of its group. It is one, but for a server that forks.
    pub(crate) fn members(&self) -> usize {
        members_of(self.id())
    }

    /// The time its threads have spent on a CPU.
    pub(crate) fn cpu_time(&self) -> Duration {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.id())) else { return Duration::ZERO };
        let texts = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
        Duration::from_nanos(texts.filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok()).sum())
    }
}

/// Those that have ended and are not waited for do not count.
fn members_of(group: u32) -> usize {
    let group = group.to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return 1 };
    let stats = processes.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // The name stands in parentheses and can be anything; behind it are the state, the parent, the group.
    let is_member = |stat: &String| {
        let mut fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace();
        fields.next() != Some("Z") && fields.nth(1) == Some(&group)
    };
    stats.filter(is_member).count()
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its number is not given to another while it is not waited for, or one of its group is left.
        if self.exited.is_none() || self.members() > 0 {
            let _ = kill_process_group(self.group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// A command that runs while its output is collected.
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

    pub(crate) fn wait(self, limit: Duration) -> Result<Output, String> {
        let Self { mut process, output, errors } = self;
        if !wait_until(limit, || Ok(process.exited()?.is_some()))? {
            return Err(format!("not done after {}", humantime::format_duration(limit)));
        }
        let Some(status) = process.exited else { return Err("it has no exit status".to_owned()) };
        // What it has left behind would keep its output open.
        drop(process);
        let read = |reader: JoinHandle<String>| reader.join().map_err(|_| "its output could not be read".to_owned());
        Ok(Output { status, text: read(output)?, errors: read(errors)? })
    }
}

/// A command that answers each line of its input with a line of its output.
pub(crate) struct Dialogue {
    process: Process,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Dialogue {
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn_with(command, Stdio::piped())?;
        let (sender, answers) = mpsc::channel();
        if let Some(output) = process.child.stdout.take() {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            thread::spawn(move || lines.map(|line| sender.send(line)).all(|sent| sent.is_ok()));
        }
        let errors = Some(collect(process.child.stderr.take()));
        Ok(Self { input: process.child.stdin.take(), process, answers, errors })
    }

    /// Its answer to an empty line.
    pub(crate) fn ask(&mut self, limit: Duration) -> Result<String, String> {
        // Where it fails the process has ended, and says why.
        let _ = self.input.as_mut().map(|input| input.write_all(b"\n"));
        self.answer(limit)
    }

    /// The next line of its output.
    pub(crate) fn answer(&mut self, limit: Duration) -> Result<String, String> {
        let end = Instant::now() + limit;
        loop {
            check_interrupt()?;
            let left = end.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(LOOK_FOR_SIGNAL)) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    return Err(format!("no answer after {}", humantime::format_duration(limit)));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.finish(limit)?;
                    return Err("it ended".to_owned());
                }
            }
        }
    }

    /// Ends its input, and waits for its own end.
    pub(crate) fn end(mut self, limit: Duration) -> Result<(), String> {
        self.finish(limit)
    }

    fn finish(&mut self, limit: Duration) -> Result<(), String> {
        self.input = None;
        if !wait_until(limit, || Ok(self.process.exited()?.is_some()))? {
            return Err(format!("not done after {}", humantime::format_duration(limit)));
        }
        match self.process.exited()? {
            Some(status) if !status.success() => {
                let errors = self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default();
                Err(reason(status, &errors))
            }
            _ => Ok(()),
        }
    }
}

/// On a thread of its own: who fills a pipe that nobody reads would wait for ever.
fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What it printed, if its exit status is 0.
pub(crate) fn output_of(command: &mut Command, limit: Duration) -> Result<String, String> {
    let output = Job::start(command)?.wait(limit)?;
    if output.status.success() { Ok(output.text) } else { Err(reason(output.status, &output.errors)) }
}

pub(crate) fn reason(status: ExitStatus, errors: &str) -> String {
    let last = errors.lines().rfind(|line| !line.trim().is_empty());
    last.map_or_else(|| status.to_string(), |line| format!("{status}: {}", line.trim()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_group_ends_with_its_process() {
        let mut command = Command::new("sh");
        let process = Process::spawn(command.args(["-c", "sleep 60 & sleep 60"])).unwrap();
        assert!(wait_until(Duration::from_secs(10), || Ok(process.members() == 3)).unwrap());
        let group = process.id();
        drop(process);
        assert!(wait_until(Duration::from_secs(10), || Ok(members_of(group) == 0)).unwrap());
    }

    #[test]
    fn a_dialogue_has_an_answer_for_each_line_and_an_end() {
        let limit = Duration::from_secs(10);
        let mut command = Command::new("sh");
        command.args(["-c", "echo ready; while read line; do n=$((n + 1)); echo $n; done; echo broken >&2; exit $n"]);
        let mut dialogue = Dialogue::start(&mut command).unwrap();
        assert_eq!(dialogue.answer(limit).unwrap(), "ready");
        assert_eq!(dialogue.answer(LOOK).unwrap_err(), "no answer after 5ms");
        assert_eq!((dialogue.ask(limit).unwrap(), dialogue.ask(limit).unwrap()), ("1".to_owned(), "2".to_owned()));
        assert_eq!(dialogue.end(limit).unwrap_err(), "exit status: 2: broken");
        let mut ended = Dialogue::start(&mut Command::new("true")).unwrap();
        assert_eq!(ended.ask(limit).unwrap_err(), "it ended");
    }

    #[test]
    fn waits_end_and_failures_are_named() {
        let slow = output_of(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(slow.unwrap_err(), "not done after 50ms");
        let failed = output_of(Command::new("sh").args(["-c", "echo no such wheel >&2; exit 3"]), LOOK * 1000);
        assert_eq!(failed.unwrap_err(), "exit status: 3: no such wheel");
        let start = Instant::now();
        let left_behind = output_of(Command::new("sh").args(["-c", "sleep 60 & echo done"]), LOOK * 4000);
        assert_eq!((left_behind.unwrap().as_str(), start.elapsed().as_secs() < 30), ("done\n", true));
        let many = output_of(Command::new("seq").arg("100000"), LOOK * 4000).unwrap();
        assert_eq!(many.lines().count(), 100_000);
        assert!(Process::spawn(&mut Command::new("/no/such/program")).is_err());
    }
}
