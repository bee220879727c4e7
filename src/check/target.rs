//! The server under test: its address, and its process on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getpid, kill_process, prlimit, test_kill_process};

use super::attempt::{Attempt, Outcome, Stop};
use super::problem::{Problem, Skip};
use crate::error::cannot;
use crate::host;
use crate::socket_address::AnyAddress;

/// How long the first connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Target {
    pub(super) address: AnyAddress,
    pub(super) process: Option<Process>,
}

impl Target {
    /// Finds the first address that accepts a connection. Returns `None` if it was interrupted.
    pub(super) fn open(addresses: &[AnyAddress], pid: Option<u32>, interrupt: &AtomicBool) -> io::Result<Option<Self>> {
        let is_unix = addresses.iter().any(AnyAddress::is_unix);
        let mut process = pid.map(|pid| Process::open(pid, is_unix)).transpose()?;
        let mut failure = io::Error::new(io::ErrorKind::InvalidInput, "there is no address");
        for address in addresses {
            let target = Self { address: address.clone(), process };
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let error = match Attempt::new(&target, interrupt, deadline).try_connect(|_| Ok(())) {
                Ok(Ok(_)) => return Ok(Some(target)),
                Ok(Err(error)) => error,
                Err(_) => return Ok(None),
            };
            failure = cannot(format_args!("connect to {address}"), error);
            process = target.process;
        }
        Err(failure)
    }
}

/// The server's process.
pub(super) struct Process {
    pid: Pid,
    statistics: host::Process,
}

impl Process {
    /// Returns the process, if it may be signaled and listens on TCP or on a Unix socket: a wrong number would stop or end another program.
    fn open(number: u32, is_unix: bool) -> io::Result<Self> {
        let statistics = host::Process::open(number)?;
        let named = |error: io::Error| cannot(format_args!("examine process {number}"), error);
        let pid = i32::try_from(number).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        test_kill_process(pid).map_err(|error| named(error.into()))?;
        let process = Self { pid, statistics };
        let listening = if is_unix { process.listening_unix() } else { process.listening_tcp() };
        if !process.has_any(&listening).map_err(named)? {
            let kind = if is_unix { "Unix socket" } else { "TCP port" };
            let reason = format!("process {number} listens on no {kind}: give the process ID of the server");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(process)
    }

    fn path(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.pid)
    }

    /// Returns the sockets of its network namespace that listen for TCP connections, as its descriptors name them (proc(5)).
    fn listening_tcp(&self) -> BTreeSet<String> {
        const LISTEN: &str = "0A";
        ["net/tcp", "net/tcp6"].into_iter().flat_map(|table| self.sockets(table, (3, LISTEN), 9)).collect()
    }

    /// Returns the Unix sockets of its network namespace that listen.
    fn listening_unix(&self) -> BTreeSet<String> {
        const ACCEPTS_CONNECTIONS: &str = "00010000";
        self.sockets("net/unix", (3, ACCEPTS_CONNECTIONS), 6)
    }

    /// Returns the sockets of a table that have a value in a column.
    fn sockets(&self, table: &str, (column, value): (usize, &str), inode: usize) -> BTreeSet<String> {
        let text = fs::read_to_string(self.path(table)).unwrap_or_default();
        let rows = text.lines().map(|row| row.split_ascii_whitespace().collect::<Vec<_>>());
        let rows = rows.filter(|row| row.get(column) == Some(&value));
        rows.filter_map(|row| Some(format!("socket:[{}]", row.get(inode)?))).collect()
    }

    /// Returns whether one of its descriptors is one of `sockets`.
    fn has_any(&self, sockets: &BTreeSet<String>) -> io::Result<bool> {
        let names = fs::read_dir(self.path("fd"))?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        Ok(names.into_iter().any(|name| name.to_str().is_some_and(|name| sockets.contains(name))))
    }

    /// Returns the character of proc(5) for its state, or `None` if it has ended.
    fn state(&self) -> Option<char> {
        let stat = fs::read_to_string(self.path("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next().filter(|state| !matches!(state, 'Z' | 'X'))
    }

    pub(super) fn is_alive(&self) -> bool {
        self.state().is_some()
    }

    /// Returns the CPU time that it has used.
    pub(super) fn cpu_time(&self) -> Result<Duration, Stop> {
        self.statistics.cpu_time().ok_or(Stop::Skip(Skip::Unreadable))
    }

    /// Returns how long its threads have been ready to run and waited for a CPU (schedstats).
    pub(super) fn queued_time(&self) -> Duration {
        let threads = fs::read_dir(self.path("task")).into_iter().flatten().filter_map(Result::ok);
        let statistics = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
        let queued = statistics.filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
        Duration::from_nanos(queued.sum())
    }

    /// Returns the resident memory of the process and its descendants: a server may fork for each client.
    pub(super) fn resident_bytes(&self) -> Result<u64, Stop> {
        let own = self.statistics.resident_bytes().ok_or(Stop::Skip(Skip::Unreadable))?;
        let others = descendants(self.pid.as_raw_nonzero().get().unsigned_abs()).into_iter();
        let others = others.filter_map(|pid| host::Process::open(pid).ok()?.resident_bytes());
        Ok(own + others.sum::<u64>())
    }

    /// Returns its open descriptors.
    pub(super) fn descriptors(&self) -> Result<BTreeSet<u64>, Stop> {
        let directory = fs::read_dir(self.path("fd")).map_err(|_| Stop::Skip(Skip::Unreadable))?;
        let names = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(names.collect())
    }

    /// Returns its descriptor limit.
    pub(super) fn descriptor_limit(&self) -> Option<Rlimit> {
        let limits = fs::read_to_string(self.path("limits")).ok()?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        // Linux has no unlimited number of descriptors.
        let mut limits = line.split_ascii_whitespace().map(|word| word.parse().ok());
        Some(Rlimit { current: limits.next()?, maximum: limits.next()? })
    }

    /// Stops the process with SIGSTOP, until the result is dropped.
    pub(super) fn pause(&self, attempt: &Attempt<'_>) -> Result<Paused<'_>, Stop> {
        self.refuse_own()?;
        self.signal(Signal::STOP)?;
        let paused = Paused(self);
        // A process that is traced, as by strace, stops in state t (proc(5)). It has this state at each system call too: the signal is
        // pending then, and stops it when the call returns.
        if attempt.eventually(|| self.state().is_none_or(|state| matches!(state, 'T' | 't')))? {
            Ok(paused)
        } else {
            Err(Problem::not_stopped().into())
        }
    }

    /// Lowers the soft descriptor limit so that `free` more can be opened, until the result is dropped.
    pub(super) fn leave_descriptors(&self, free: usize) -> Result<Lowered<'_>, Stop> {
        self.refuse_own()?;
        let open = self.descriptors()?;
        let unused = (0..).filter(|descriptor| !open.contains(descriptor));
        let limit = unused.take(free).last().map_or(0, |last| last + 1);
        let before = self.descriptor_limit().ok_or(Stop::Skip(Skip::Unreadable))?;
        let lowered = Rlimit { current: Some(limit), ..before };
        prlimit(Some(self.pid), Resource::Nofile, lowered).map_err(|_| Stop::Skip(Skip::Unreadable))?;
        Ok(Lowered { process: self, before })
    }

    pub(super) fn terminate(&self) -> Outcome {
        self.signal(Signal::TERM)
    }

    /// A process that stops itself cannot continue itself.
    fn refuse_own(&self) -> Outcome {
        if self.pid == getpid() { Err(Stop::Skip(Skip::OwnProcess)) } else { Ok(()) }
    }

    fn signal(&self, signal: Signal) -> Outcome {
        // It was allowed at the start, so the process has ended.
        kill_process(self.pid, signal).map_err(|_| Problem::died().into())
    }
}

/// A stopped process, which continues when this is dropped.
pub(super) struct Paused<'a>(&'a Process);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // Fails if the process has ended.
        let _ = self.0.signal(Signal::CONT);
    }
}

/// A process with a lowered descriptor limit, which has its own again when this is dropped.
pub(super) struct Lowered<'a> {
    process: &'a Process,
    before: Rlimit,
}

impl Drop for Lowered<'_> {
    fn drop(&mut self) {
        // Fails if the process has ended.
        let _ = prlimit(Some(self.process.pid), Resource::Nofile, self.before);
    }
}

/// Returns the children of a process, theirs, and so on.
fn descendants(pid: u32) -> BTreeSet<u32> {
    let mut family = BTreeSet::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for thread in threads.filter_map(Result::ok) {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
            parents.extend(children.filter(|&child| family.insert(child)));
        }
    }
    family
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsRawFd;
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::Ordering;

    use super::super::scene::Scene;
    use super::*;
    use crate::process_start;

    fn process(number: u32) -> Process {
        let pid = Pid::from_raw(number.try_into().unwrap()).unwrap();
        Process { pid, statistics: host::Process::open(number).unwrap() }
    }

    /// A process whose child waits for a line, which ends both.
    struct Family {
        parent: Child,
        child: u32,
    }

    impl Family {
        fn start() -> Self {
            // With a command after it, the shell does not replace itself.
            let script = "sh -c 'echo $$; read line'; true";
            let mut command = Command::new("sh");
            let command = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut parent = process_start::spawn(command);
            let mut line = String::new();
            BufReader::new(parent.stdout.take().unwrap()).read_line(&mut line).unwrap();
            Self { parent, child: line.trim_end().parse().unwrap() }
        }
    }

    impl Drop for Family {
        fn drop(&mut self) {
            drop(self.parent.stdin.take());
            let _ = self.parent.wait();
        }
    }

    #[test]
    fn a_process_is_read_as_it_reads_itself() {
        let process = process(std::process::id());
        let before = host::ThreadTime::now().unwrap();
        assert!(process.cpu_time().unwrap() >= before.run);
        assert!(process.queued_time() >= before.wait);
        let file = File::open("/dev/null").unwrap();
        let descriptor = file.as_raw_fd().try_into().unwrap();
        assert!(process.descriptors().unwrap().contains(&descriptor));
    }

    #[test]
    fn the_memory_of_a_process_is_that_of_its_children_too() {
        let family = Family::start();
        let parent = process(family.parent.id());
        assert_eq!(descendants(family.parent.id()), BTreeSet::from([family.child]));
        let [parent_alone, child] =
            [&parent, &process(family.child)].map(|one| one.statistics.resident_bytes().unwrap());
        let both = parent.resident_bytes().unwrap();
        assert!(both > parent_alone && both > child, "{both}: {parent_alone} and {child}");
    }

    #[test]
    fn a_process_is_stopped_while_it_is_paused_and_then_goes_on() {
        let scene = Scene::tcp();
        let mut family = Family::start();
        let parent = process(family.parent.id());
        for _ in 0..10 {
            let paused = parent.pause(&scene.attempt()).unwrap();
            assert_eq!(parent.state(), Some('T'));
            drop(paused);
        }
        drop(family.parent.stdin.take());
        family.parent.wait().unwrap();
        assert!(!parent.is_alive());
    }

    #[test]
    fn a_process_can_open_as_many_descriptors_as_are_left_to_it() {
        let family = Family::start();
        let parent = process(family.parent.id());
        let open = parent.descriptors().unwrap();
        let before = parent.descriptor_limit().unwrap();
        for left in [1, 3, 20] {
            let lowered = parent.leave_descriptors(left).unwrap();
            let limit = parent.descriptor_limit().unwrap();
            assert_eq!(limit.maximum, before.maximum);
            let unused = (0..limit.current.unwrap()).filter(|descriptor| !open.contains(descriptor));
            assert_eq!(unused.count(), left, "limit {:?}, open {open:?}", limit.current);
            drop(lowered);
            assert_eq!(parent.descriptor_limit(), Some(before));
        }
    }

    #[test]
    fn the_first_connect_waits_for_a_full_backlog_until_it_is_interrupted() {
        let scene = Scene::full_backlog();
        scene.interrupt.store(true, Ordering::Release);
        let opened = Target::open(std::slice::from_ref(&scene.target.address), None, &scene.interrupt).unwrap();
        assert!(opened.is_none());
    }
}
