//! Reads processes, sockets and the port range from `/proc`. A value that cannot be read is `None`, never 0.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::cannot;

/// The dynamic ports of RFC 6335, section 6: the range to use if the system's cannot be read.
const DYNAMIC_PORTS: (u16, u16) = (49152, 65535);

/// Returns the name of this machine.
pub(crate) fn name() -> Option<String> {
    line("/proc/sys/kernel/hostname")
}

/// Returns the release of the kernel.
pub(crate) fn kernel() -> Option<String> {
    line("/proc/sys/kernel/osrelease")
}

fn line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned()).filter(|line| !line.is_empty())
}

/// A process whose CPU time and memory are read.
#[derive(Debug)]
pub(crate) struct Process {
    directory: PathBuf,
    threads: RefCell<Threads>,
}

#[derive(Debug, Default)]
struct Threads {
    /// CPU time by thread id, as last read. A thread that has ended keeps its entry.
    cpu_ns: BTreeMap<u32, u64>,
    /// CPU time of ended threads whose id another thread reuses.
    replaced_ns: u64,
}

impl Process {
    /// Returns the process `pid`.
    ///
    /// # Errors
    ///
    /// - `NotFound`: there is no such process.
    /// - `InvalidInput`: `pid` is the id of a thread.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        Self::open_at(Path::new("/proc"), pid)
    }

    fn open_at(proc: &Path, pid: u32) -> io::Result<Self> {
        let directory = proc.join(pid.to_string());
        let status = fs::read_to_string(directory.join("status")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if is_empty(proc) => {
                io::Error::new(error.kind(), format!("cannot read process {pid}: {} is not mounted", proc.display()))
            }
            io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("there is no process {pid}")),
            _ => cannot(format_args!("read the status of process {pid}"), error),
        })?;
        // The directory of a thread is not listed in /proc, but it can be opened.
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

    /// Returns the CPU time of its threads, without the current time slice of running ones. It never decreases.
    ///
    /// The time that a thread uses between the last call and its end is lost.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        let Threads { cpu_ns, replaced_ns } = &mut *self.threads.borrow_mut();
        for thread in fs::read_dir(self.directory.join("task")).ok()? {
            let thread = thread.ok()?;
            let id = thread.file_name().to_str()?.parse().ok()?;
            let now_ns = match fs::read_to_string(thread.path().join("schedstat")) {
                Ok(text) => first_number(&text)?,
                // The thread ended after it was listed; ESRCH: after its file was opened.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                Err(_) => return None,
            };
            let before_ns = cpu_ns.insert(id, now_ns);
            *replaced_ns += before_ns.filter(|&before_ns| before_ns > now_ns).unwrap_or(0);
        }
        let all_ns = *replaced_ns + cpu_ns.values().sum::<u64>();
        // 0 means that the kernel does not count: a process that runs has used some.
        (all_ns > 0).then(|| Duration::from_nanos(all_ns))
    }

    /// Returns its resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let rollup = fs::read_to_string(self.directory.join("smaps_rollup")).ok()?;
        Some(field(&rollup, "Rss:")? << 10)
    }
}

/// Returns whether a directory has no entry, or does not exist.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}

/// How long a thread has run, and how long it has waited in a run queue for a CPU.
///
/// A thread of a control group that has used up its CPU quota waits there too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ThreadTime {
    pub(crate) run: Duration,
    pub(crate) wait: Duration,
}

impl ThreadTime {
    /// Returns the times of the calling thread, without its current time slice. Both are 0 if the kernel does not count.
    pub(crate) fn now() -> Option<Self> {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut times = text.split_ascii_whitespace().map(|time| time.parse().ok().map(Duration::from_nanos));
        Some(Self { run: times.next()??, wait: times.next()?? })
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self { run: self.run.saturating_sub(before.run), wait: self.wait.saturating_sub(before.wait) }
    }
}

/// Counts of TCP sockets in this network namespace. A connection within it counts twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketStatistics {
    /// TCP sockets of IPv4 and IPv6.
    pub(crate) tcp_inuse: u64,
    /// Pages of data in flight, in all namespaces.
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

/// Returns how many sockets of this network namespace are in `TIME_WAIT` after a connection to one of `targets`.
pub(super) fn time_wait(proc: &Path, targets: &[SocketAddr]) -> Option<u64> {
    const TIME_WAIT: &str = "06";
    let all = fs::read_to_string(proc.join("net/sockstat")).ok()?;
    if field_of(&all, "TCP:", "tw")? == 0 {
        // Without reading a table of a million sockets.
        return Some(0);
    }
    let mut count = 0;
    for name in ["net/tcp", "net/tcp6"] {
        let Ok(file) = File::open(proc.join(name)) else { continue };
        for row in BufReader::new(file).lines() {
            let row = row.ok()?;
            let mut words = row.split_ascii_whitespace().skip(2);
            let (Some(remote), Some(TIME_WAIT)) = (words.next(), words.next()) else { continue };
            count += u64::from(parse_address(remote).is_some_and(|remote| targets.contains(&remote)));
        }
    }
    Some(count)
}

/// Parses an address of `/proc/net/tcp`: words of four bytes as this machine stores them, and the port (proc(5)).
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let bytes = |at: usize| Some(u32::from_str_radix(words.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address = match words.len() {
        8 => IpAddr::from(bytes(0)?),
        32 => {
            let mut all = [0; 16];
            all.as_chunks_mut().0.copy_from_slice(&[bytes(0)?, bytes(8)?, bytes(16)?, bytes(24)?]);
            IpAddr::from(all)
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// Returns the ports that this system assigns to connections: `ip_local_port_range` without the reserved ones.
pub(crate) fn local_ports() -> Vec<u16> {
    let read = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    parse_ports(&read("ip_local_port_range"), &read("ip_local_reserved_ports"))
        .unwrap_or_else(|| (DYNAMIC_PORTS.0..=DYNAMIC_PORTS.1).collect())
}

/// Parses `ip_local_port_range` (`32768 60999`) and `ip_local_reserved_ports` (`8080,9148-9150`, or empty).
pub(super) fn parse_ports(range: &str, reserved: &str) -> Option<Vec<u16>> {
    let (first, last) = range.trim().split_once(char::is_whitespace)?;
    let (first, last) = (first.parse::<u16>().ok()?.max(1), last.trim().parse::<u16>().ok()?);
    let mut is_reserved = vec![false; 1 << 16];
    for range in reserved.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        for port in first..=last {
            is_reserved[usize::from(port)] = true;
        }
    }
    Some((first..=last).filter(|&port| !is_reserved[usize::from(port)]).collect())
}

/// Returns the number after `word` in a line such as `TCP: inuse 5 orphan 0`.
fn field_of(text: &str, line: &str, word: &str) -> Option<u64> {
    let words = text.lines().find_map(|text| text.strip_prefix(line))?;
    words.split_ascii_whitespace().skip_while(|&at| at != word).nth(1)?.parse().ok()
}

/// Returns the first number of a line such as `Rss:   1628 kB`.
pub(super) fn field(text: &str, line: &str) -> Option<u64> {
    first_number(text.lines().find_map(|text| text.strip_prefix(line))?)
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests;
