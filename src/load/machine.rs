//! What Linux says of processes and sockets in `/proc`. What cannot be read is `None`, never 0.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process whose CPU and memory are looked at.
#[derive(Debug)]
pub(crate) struct Process {
    directory: PathBuf,
    threads: RefCell<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    /// The CPU of each when it was last seen: one that has ended stays.
    cpu_ns: BTreeMap<u32, u64>,
    /// Of those whose id has gone to another.
    replaced_ns: u64,
}

impl Process {
    /// This process.
    pub(crate) fn own() -> Self {
        Self::of(PathBuf::from("/proc/self"))
    }

    /// # Errors
    ///
    /// - There is no such process, or the number is a thread's.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        Self::open_at(Path::new("/proc"), pid)
    }

    fn open_at(proc: &Path, pid: u32) -> io::Result<Self> {
        let directory = proc.join(pid.to_string());
        let status = fs::read_to_string(directory.join("status")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("there is no process {pid}")),
            kind => io::Error::new(kind, format!("cannot look at process {pid}: {error}")),
        })?;
        // A thread's directory is not listed, but it is there.
        match field(&status, "Tgid:") {
            Some(group) if group != u64::from(pid) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{pid} is a thread of process {group}")))
            }
            _ => Ok(Self::of(directory)),
        }
    }

    fn of(directory: PathBuf) -> Self {
        Self { directory, threads: RefCell::default() }
    }

    /// The time that its threads have spent on a CPU, but for the running slice of those on one now. It never goes backwards,
    /// though a thread that ends takes with it what it had used since the last call.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let Threads { cpu_ns, replaced_ns } = &mut *self.threads.borrow_mut();
        for thread in fs::read_dir(self.directory.join("task")).ok()? {
            let thread = thread.ok()?;
            let id = thread.file_name().to_str()?.parse().ok()?;
            let now_ns = match fs::read_to_string(thread.path().join("schedstat")) {
                Ok(text) => first_number(&text)?,
                // It ended after it was listed. ESRCH: after the file was opened.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(_) => return None,
            };
            let before_ns = cpu_ns.insert(id, now_ns);
            *replaced_ns += before_ns.filter(|&before_ns| before_ns > now_ns).unwrap_or(0);
        }
        let all_ns = *replaced_ns + cpu_ns.values().sum::<u64>();
        // A kernel that does not count says 0, and no process that has run does.
        (all_ns > 0).then(|| Duration::from_nanos(all_ns))
    }

    /// Its resident memory.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let rollup = fs::read_to_string(self.directory.join("smaps_rollup")).ok()?;
        Some(field(&rollup, "Rss:")? << 10)
    }
}

/// The TCP sockets of this network namespace, both ends of a connection that stays in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketStatistics {
    /// Of IPv4 and of IPv6.
    pub(crate) tcp_inuse: u64,
    /// Pages that hold data in flight, of all namespaces.
    pub(crate) tcp_mem_pages: u64,
}

impl SocketStatistics {
    pub(crate) fn read() -> Option<Self> {
        Self::read_at(Path::new("/proc"))
    }

    pub(super) fn read_at(proc: &Path) -> Option<Self> {
        let ipv4 = fs::read_to_string(proc.join("net/sockstat")).ok()?;
        let ipv6 = fs::read_to_string(proc.join("net/sockstat6")).unwrap_or_default();
        let inuse = field_of(&ipv4, "TCP:", "inuse")?;
        Some(Self {
            tcp_inuse: inuse + field_of(&ipv6, "TCP6:", "inuse").unwrap_or(0),
            tcp_mem_pages: field_of(&ipv4, "TCP:", "mem")?,
        })
    }
}

/// `TCP: inuse 5 orphan 0`: the number behind a word of a line.
fn field_of(text: &str, line: &str, word: &str) -> Option<u64> {
    let words = text.lines().find_map(|text| text.strip_prefix(line))?;
    words.split_ascii_whitespace().skip_while(|&at| at != word).nth(1)?.parse().ok()
}

/// `Rss:   1628 kB`: the first number of a line.
pub(super) fn field(text: &str, line: &str) -> Option<u64> {
    first_number(text.lines().find_map(|text| text.strip_prefix(line))?)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::process::{Command, Stdio};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use rustix::time::{ClockId, clock_gettime};

    use super::super::limits::tests::Files;
    use super::*;

    /// Keeps the CPU busy until the calling thread has used so much of it.
    fn burn(time: Duration) {
        let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let (until, deadline) = (used() + time, Instant::now() + Duration::from_secs(60));
        while used() < until {
            assert!(Instant::now() < deadline, "the CPU of a busy thread stands still");
        }
    }

    fn thread(files: &Files, id: u32, ns: u64) {
        files.write(&format!("42/task/{id}/schedstat"), &format!("{ns} 159620 2\n"));
    }

    fn process(files: &Files) -> Process {
        files.write("42/status", "Name:\techo\nTgid:\t42\nPid:\t42\n");
        Process::open_at(files.root(), 42).unwrap()
    }

    #[test]
    fn the_cpu_of_threads_that_have_ended_counts() {
        const WORK: Duration = Duration::from_millis(50);
        for process in [Process::own(), Process::open(std::process::id()).unwrap()] {
            let start = process.cpu_time().unwrap();
            let (tell, told) = mpsc::channel();
            let (release, wait) = mpsc::channel::<()>();
            let busy = thread::spawn(move || {
                burn(WORK);
                tell.send(()).unwrap();
                let _ = wait.recv();
            });
            told.recv().unwrap();
            // Its last slice counts once it waits, so this look is taken until it does.
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut during = process.cpu_time().unwrap();
            while during < start + WORK {
                assert!(Instant::now() < deadline, "{start:?} {during:?}");
                during = process.cpu_time().unwrap();
            }
            release.send(()).unwrap();
            busy.join().unwrap();
            let after = process.cpu_time().unwrap();
            assert!(after >= during, "{during:?} {after:?}");
        }
    }

    #[test]
    fn a_thread_that_ends_and_one_that_takes_its_id_count_both() {
        let files = Files::new();
        let process = process(&files);
        let cpu_ns = || process.cpu_time().unwrap().as_nanos();
        thread(&files, 42, 1000);
        thread(&files, 43, 500);
        assert_eq!(cpu_ns(), 1500);
        files.remove("42/task/43");
        thread(&files, 42, 1100);
        assert_eq!(cpu_ns(), 1600);
        thread(&files, 43, 20);
        assert_eq!(cpu_ns(), 1620);
        thread(&files, 43, 30);
        assert_eq!(cpu_ns(), 1630);
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        let files = Files::new();
        let process = process(&files);
        assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None));
        thread(&files, 42, 0);
        files.write("42/smaps_rollup", "");
        assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None), "a kernel that does not count says 0");
        assert_eq!(SocketStatistics::read_at(files.root()), None);
        files.write("net/sockstat", "sockets: used 232\n");
        assert_eq!(SocketStatistics::read_at(files.root()), None);
    }

    #[test]
    fn memory_is_what_is_resident() {
        let process = Process::open(std::process::id()).unwrap();
        assert!(process.cpu_time().is_some());
        let before = process.resident_bytes().unwrap();
        let pages = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = process.resident_bytes().unwrap();
        drop(pages);
        assert!(after >= before + (32 << 20), "{before} {after}");
    }

    #[test]
    fn a_process_that_has_ended_says_nothing() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((process.cpu_time(), process.resident_bytes()), (None, None));
    }

    #[test]
    fn a_wrong_pid_is_refused() {
        // proc(5): no pid is above 4,194,304.
        assert_eq!(Process::open(4_194_305).unwrap_err().to_string(), "there is no process 4194305");

        let (tell, told) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let id = fs::read_link("/proc/thread-self").unwrap();
            tell.send(id.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap()).unwrap();
            let _ = wait.recv();
        });
        let id = told.recv().unwrap();
        let error = Process::open(id).unwrap_err().to_string();
        release.send(()).unwrap();
        thread.join().unwrap();
        assert_eq!(error, format!("{id} is a thread of process {}", std::process::id()));
    }

    #[test]
    fn the_sockets_of_both_families_are_counted() {
        let files = Files::new();
        files.write(
            "net/sockstat",
            "sockets: used 232\nTCP: inuse 207 orphan 1 tw 430 alloc 212 mem 211\nUDP: inuse 3 mem 4\n",
        );
        assert_eq!(
            SocketStatistics::read_at(files.root()),
            Some(SocketStatistics { tcp_inuse: 207, tcp_mem_pages: 211 })
        );
        files.write("net/sockstat6", "TCP6: inuse 5\nUDP6: inuse 6\n");
        assert_eq!(
            SocketStatistics::read_at(files.root()),
            Some(SocketStatistics { tcp_inuse: 212, tcp_mem_pages: 211 })
        );
        assert!(SocketStatistics::read().is_some());
    }
}
