//! The system limits on the number of connections, and the commands that raise them.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use super::cgroup::Groups;
use super::procfs::{self, SocketStatistics, parse_ports};
use crate::socket_address::AnyAddress;

/// Descriptors of a process that are not connections, with a margin.
const DESCRIPTORS_KEPT: u64 = 64;
/// Largest value of `fs.nr_open` (`sysctl_nr_open_max`).
const NR_OPEN_MAX: u64 = 0x7fff_ffc0;
/// Threads of a server or of a load generator.
const THREADS: u64 = 4;
/// Threads with which the first process of a load waits for each of the others, and for its end.
const THREADS_FOR_OTHER: u64 = 2;
/// Bytes of kernel memory of one idle end: its socket, its file and its epoll entry.
const END_BYTES: u64 = 4096;
/// Largest burst of new connections to plan for: the default backlog of a server.
const BURST_MAX: u64 = 4096;
/// The range of every port that an unprivileged process may bind.
const WIDEST_RANGE: &str = "1024 65535";

/// Which ends of the connections are on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The server's; its clients are on other machines.
    Serve,
    /// The load generator's, and the server's too if a target is an address of this machine.
    Load,
    /// Both.
    Both,
}

/// The connections that this machine has to hold.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Number of connections.
    pub connections: u32,
    /// Which of their ends are on this machine.
    pub purpose: Purpose,
    /// Addresses that a load generator connects from; empty if the system chooses one.
    pub sources: Vec<IpAddr>,
    /// Addresses that a load generator connects to; empty if they are not known.
    pub targets: Vec<AnyAddress>,
    /// Number of source/target pairs, each with the whole port range; at least 1.
    pub pairs: u32,
    /// Number of processes that share the connections, each with its own descriptors and threads; at least 1.
    pub processes: u32,
    /// Descriptors that each process uses for anything but connections. `None`: at most 64.
    pub other_descriptors: Option<u64>,
}

impl Plan {
    /// Returns a plan for connections between addresses that are not known.
    #[must_use]
    pub fn new(connections: u32, purpose: Purpose) -> Self {
        Self {
            connections,
            purpose,
            sources: Vec::new(),
            targets: Vec::new(),
            pairs: 1,
            processes: 1,
            other_descriptors: None,
        }
    }
}

/// Returns whether an address is one of this machine, which a socket can be bound to. Its port does not matter, and its zone does.
#[must_use]
pub fn is_local(mut address: SocketAddr) -> bool {
    address.set_port(0);
    !UdpSocket::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

/// Returns the address that the system would connect from.
fn source_of(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Of a datagram socket, which sends nothing.
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A limit of this machine, compared with a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limit {
    /// The system's name of it: `fs.nr_open`.
    pub name: &'static str,
    /// Its value; `None` if it cannot be read.
    pub value: Option<String>,
    /// Number of connections that it allows.
    pub capacity: Capacity,
    /// Whether that is less than planned.
    pub insufficient: bool,
    /// The commands that raise it.
    pub commands: Vec<String>,
    /// An alternative to the commands.
    pub advice: Option<String>,
}

/// The number of connections that a [`Limit`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capacity {
    /// This many open connections.
    Connections(u64),
    /// This many that arrive in one burst.
    AtOnce(u64),
    /// Any number.
    Any,
    /// The limit cannot be read.
    Unknown,
}

impl fmt::Display for Capacity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connections(count) => count.fmt(formatter),
            Self::AtOnce(count) => write!(formatter, "{count} at once"),
            Self::Any => formatter.write_str("any"),
            Self::Unknown => formatter.write_str("unknown"),
        }
    }
}

impl fmt::Display for Limit {
    /// Writes its name, value and capacity: `fs.nr_open (1024) allows 960 connections`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}) allows ", self.name, self.value.as_deref().unwrap_or("unknown"))?;
        match self.capacity {
            Capacity::Connections(1) => formatter.write_str("1 connection"),
            Capacity::AtOnce(count) => write!(formatter, "{count} connections that arrive at once"),
            capacity => write!(formatter, "{capacity} connections"),
        }
    }
}

/// Where the limits are read.
#[derive(Debug)]
struct Machine {
    proc: PathBuf,
    /// The soft and the hard limit.
    descriptors: Option<(u64, u64)>,
    /// The root of the control groups.
    groups: PathBuf,
    is_local: fn(SocketAddr) -> bool,
    source_of: fn(SocketAddr) -> Option<IpAddr>,
}

impl Machine {
    fn here() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            descriptors: rlimit::Resource::NOFILE.get().ok(),
            groups: PathBuf::from("/sys/fs/cgroup"),
            is_local,
            source_of,
        }
    }

    /// Returns the number of ends of each connection that are on this machine.
    fn ends(&self, plan: &Plan) -> u64 {
        let is_both = match plan.purpose {
            Purpose::Serve => false,
            Purpose::Load => {
                plan.targets.iter().any(|target| target.tcp().is_none_or(|target| (self.is_local)(target)))
            }
            Purpose::Both => true,
        };
        if is_both { 2 } else { 1 }
    }

    fn total_ends(&self, plan: &Plan) -> u64 {
        u64::from(plan.connections) * self.ends(plan)
    }

    fn groups(&self) -> Option<Groups> {
        Some(Groups::new(self.read("self/cgroup")?, self.groups.clone()))
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.proc.join(path)).ok()
    }

    fn numbers(&self, path: &str) -> Option<Vec<u64>> {
        self.read(path)?.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.numbers(path)?.first().copied()
    }
}

/// Returns every limit of this machine that applies to `plan`.
#[must_use]
pub fn limits(plan: &Plan) -> Vec<Limit> {
    limits_of(&Machine::here(), plan)
}

/// Returns a line for each limit of this machine that is insufficient for `plan`, with the commands that raise it.
///
/// Limits on a burst are left out: a server that starts logs a warning when the system cuts its backlog.
#[must_use]
pub fn warnings(plan: &Plan) -> Vec<String> {
    warnings_of(&limits(plan), plan.connections)
}

fn warnings_of(limits: &[Limit], connections: u32) -> Vec<String> {
    let warning = |limit: &Limit| {
        let Capacity::Connections(allowed) = limit.capacity else { return None };
        let commands: Vec<_> = limit.commands.iter().map(|command| format!("`{command}`")).collect();
        let commands = (!commands.is_empty()).then(|| commands.join(", then "));
        let fixes: Vec<_> = commands.into_iter().chain(limit.advice.clone()).collect();
        let (name, value, fixes) = (limit.name, limit.value.as_deref().unwrap_or("unknown"), fixes.join(", or "));
        Some(format!("{name} ({value}) allows {allowed} of {connections} connections: {fixes}"))
    };
    limits.iter().filter(|limit| limit.insufficient).filter_map(warning).collect()
}

fn limits_of(machine: &Machine, plan: &Plan) -> Vec<Limit> {
    let mut limits = descriptors(machine, plan);
    limits.push(file_max(machine, plan));
    // Ports, handshakes, TCP's memory and connection tracking do not limit connections to Unix sockets.
    let has_tcp = plan.targets.is_empty() || plan.targets.iter().any(|target| !target.is_unix());
    if plan.purpose != Purpose::Serve && has_tcp {
        limits.extend(sources(machine, plan));
        limits.push(ports(machine, plan));
        limits.extend(time_wait(machine, plan));
    }
    if plan.purpose != Purpose::Load {
        limits.push(accept_queue(machine, plan));
        limits.extend(has_tcp.then(|| handshakes(machine, plan)));
    }
    limits.push(memory(machine, plan));
    limits.extend(has_tcp.then(|| memory_in_flight(machine, plan)));
    if let Some(groups) = machine.groups() {
        limits.extend(group_memory(&groups, machine, plan));
        limits.extend(group_tasks(&groups, machine, plan));
        limits.extend(group_cores(&groups));
    }
    limits.extend(tracked(machine, plan).filter(|_| has_tcp));
    limits.push(watches(machine, plan));
    limits
}

impl Limit {
    fn unknown(name: &'static str) -> Self {
        Self { name, value: None, capacity: Capacity::Unknown, insufficient: false, commands: Vec::new(), advice: None }
    }

    /// Creates a limit on open connections.
    fn new(name: &'static str, value: String, connections: u64, plan: &Plan) -> Self {
        Self {
            value: Some(value),
            capacity: Capacity::Connections(connections),
            insufficient: connections < u64::from(plan.connections),
            ..Self::unknown(name)
        }
    }

    /// Creates a limit on connections that arrive in one burst.
    fn at_once(name: &'static str, value: String, connections: u64, plan: &Plan) -> Self {
        Self {
            value: Some(value),
            capacity: Capacity::AtOnce(connections),
            insufficient: connections < burst(plan),
            ..Self::unknown(name)
        }
    }

    /// Adds the command that raises it, if it is insufficient.
    fn fix(mut self, command: impl FnOnce() -> String) -> Self {
        if self.insufficient {
            self.commands.push(command());
        }
        self
    }
}

fn burst(plan: &Plan) -> u64 {
    u64::from(plan.connections).min(BURST_MAX)
}

/// Checks the limits of one process. A server and a load generator on the same machine have one each.
fn descriptors(machine: &Machine, plan: &Plan) -> Vec<Limit> {
    const SOFT: &str = "ulimit -Sn";
    const HARD: &str = "ulimit -Hn";
    const NR_OPEN: &str = "fs.nr_open";
    let kept = plan.other_descriptors.unwrap_or(DESCRIPTORS_KEPT);
    let processes = plan.processes.max(1);
    let needed = u64::from(plan.connections.div_ceil(processes)).saturating_add(kept);
    let room = |limit: u64| limit.saturating_sub(kept).saturating_mul(processes.into());
    let nr_open = machine.number("sys/fs/nr_open").map_or_else(
        || Limit::unknown(NR_OPEN),
        |most| {
            let mut limit = Limit::new(NR_OPEN, most.to_string(), room(most), plan);
            if needed > NR_OPEN_MAX {
                limit.advice =
                    limit.insufficient.then(|| format!("several processes: it can be {NR_OPEN_MAX} at most"));
                return limit;
            }
            limit.fix(|| format!("sysctl -w fs.nr_open={needed}"))
        },
    );
    let Some((soft, hard)) = machine.descriptors else {
        return vec![nr_open, Limit::unknown(HARD), Limit::unknown(SOFT)];
    };
    let text = |limit: u64| if limit == rlimit::INFINITY { "unlimited".to_owned() } else { limit.to_string() };
    let mut hard = Limit::new(HARD, text(hard), room(hard), plan);
    if hard.insufficient && needed <= NR_OPEN_MAX {
        hard.commands.push(format!("ulimit -n {needed}"));
        // setrlimit(2): above the hard limit only with CAP_SYS_RESOURCE, and above `fs.nr_open` not even then.
        hard.advice = Some(format!(
            "without root `LimitNOFILE={needed}` in the systemd unit, or `* hard nofile {needed}` in /etc/security/limits.conf and a new login"
        ));
    }
    vec![
        nr_open,
        hard,
        // `ecoloop serve` and `ecoloop load` raise it to the hard limit when they start.
        Limit {
            value: Some(format!("{}, raised at startup", text(soft))),
            capacity: Capacity::Any,
            ..Limit::unknown(SOFT)
        },
    ]
}

/// Checks the limit of all processes together.
fn file_max(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "fs.file-max";
    let Some(most) = machine.number("sys/fs/file-max") else { return Limit::unknown(NAME) };
    let used = machine.number("sys/fs/file-nr").unwrap_or(0);
    let kept = used + DESCRIPTORS_KEPT * machine.ends(plan);
    let limit = Limit::new(NAME, with_used(most, used), most.saturating_sub(kept) / machine.ends(plan), plan);
    limit.fix(|| format!("sysctl -w fs.file-max={}", kept + machine.total_ends(plan)))
}

fn ports(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.ip_local_port_range";
    let reserved = machine.read("sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let range = machine.read("sys/net/ipv4/ip_local_port_range");
    let Some((range, ports)) = range.and_then(|range| parse_ports(&range, &reserved).map(|ports| (range, ports)))
    else {
        return Limit::unknown(NAME);
    };
    let (count, pairs) = (ports.len() as u64, u64::from(plan.pairs));
    let words: Vec<_> = range.split_ascii_whitespace().collect();
    let pairs_text = if pairs == 1 { String::new() } else { format!(" x {pairs} pairs") };
    let noun = if count == 1 { "port" } else { "ports" };
    let value = format!("{} = {count} {noun}{pairs_text}", words.join(" "));
    let mut limit = Limit::new(NAME, value, count * pairs, plan);
    if limit.insufficient {
        let connections = u64::from(plan.connections);
        let widest = parse_ports(WIDEST_RANGE, &reserved).map_or(0, |ports| ports.len() as u64);
        if widest * pairs >= connections {
            limit.commands.push(format!("sysctl -w net.ipv4.ip_local_port_range=\"{WIDEST_RANGE}\""));
        }
        let ports_of_source = count * pairs / plan.sources.len().max(1) as u64;
        if ports_of_source > 0 {
            limit.advice = Some(format!("--source with {} addresses", connections.div_ceil(ports_of_source)));
        }
    }
    limit
}

/// Checks that the sources are addresses of this machine: a connection from another one fails.
fn sources(machine: &Machine, plan: &Plan) -> Option<Limit> {
    let foreign: Vec<_> = plan.sources.iter().filter(|&&source| !(machine.is_local)((source, 0).into())).collect();
    let (count, first) = (plan.sources.len() as u64, plan.sources.first()?);
    let local = count - foreign.len() as u64;
    let value = match (&foreign[..], count) {
        ([], 1) => format!("{first}, local"),
        ([], _) => format!("{count} addresses, all local"),
        ([one], _) => format!("{one} is not local"),
        ([one, rest @ ..], _) => format!("{one} and {} more are not local", rest.len()),
    };
    // Connections rotate over the sources.
    let mut limit = Limit::new("--source", value, u64::from(plan.connections) * local / count, plan);
    if let Some(one) = foreign.first().filter(|_| limit.insufficient) {
        let length = if one.is_ipv4() { 32 } else { 128 };
        limit.advice = Some(format!("`ip address add {one}/{length} dev INTERFACE` for each, or only local sources"));
    }
    Some(limit)
}

/// Checks the ports that an earlier run has left in `TIME_WAIT`, where they stay for a minute.
///
/// The system assigns none of them to a target that is not a loopback address, unless `tcp_tw_reuse` is 1 (ip-sysctl). With `--source`
/// the load generator chooses the ports, and the system accepts them.
fn time_wait(machine: &Machine, plan: &Plan) -> Option<Limit> {
    const NAME: &str = "TIME_WAIT";
    let reuse = machine.number("sys/net/ipv4/tcp_tw_reuse").unwrap_or(2);
    let is_kept = |target: &SocketAddr| reuse == 0 || reuse == 2 && !target.ip().is_loopback();
    let targets: Vec<_> = plan.targets.iter().filter_map(AnyAddress::tcp).filter(is_kept).collect();
    if targets.is_empty() || !plan.sources.is_empty() {
        return None;
    }
    let reserved = machine.read("sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let range = machine.read("sys/net/ipv4/ip_local_port_range")?;
    let ports = parse_ports(&range, &reserved)?.len() as u64 * u64::from(plan.pairs);
    let Some(waiting) = procfs::time_wait(&machine.proc, &targets) else { return Some(Limit::unknown(NAME)) };
    let noun = if waiting == 1 { "port" } else { "ports" };
    let mut limit = Limit::new(NAME, format!("{waiting} {noun}"), ports.saturating_sub(waiting), plan);
    // Without one, the limit is that of the range.
    limit.insufficient &= waiting > 0;
    if limit.insufficient {
        let own = targets.first().and_then(|&target| (machine.source_of)(target));
        let own = own.map_or("an address of this machine".to_owned(), |own| own.to_string());
        limit.advice =
            Some(format!("--source {own}, whose ports in TIME_WAIT can be used again, or a wait of a minute"));
    }
    Some(limit)
}

fn accept_queue(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.core.somaxconn";
    let Some(length) = machine.number("sys/net/core/somaxconn") else { return Limit::unknown(NAME) };
    let limit = Limit::at_once(NAME, length.to_string(), length, plan);
    limit.fix(|| format!("sysctl -w net.core.somaxconn={}", burst(plan)))
}

/// Linux reserves a quarter for known peers, and ignores the limit while SYN cookies are on (`tcp_conn_request`).
fn handshakes(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.tcp_max_syn_backlog";
    let Some(length) = machine.number("sys/net/ipv4/tcp_max_syn_backlog") else { return Limit::unknown(NAME) };
    if machine.number("sys/net/ipv4/tcp_syncookies").is_some_and(|cookies| cookies > 0) {
        let value = Some(format!("{length}, with SYN cookies"));
        return Limit { value, capacity: Capacity::Any, ..Limit::unknown(NAME) };
    }
    let limit = Limit::at_once(NAME, length.to_string(), length - length / 4, plan);
    limit.fix(|| format!("sysctl -w net.ipv4.tcp_max_syn_backlog={}", (burst(plan) * 4).div_ceil(3)))
}

fn memory(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "MemAvailable";
    let available = machine.read("meminfo").and_then(|text| procfs::field(&text, "MemAvailable:"));
    let Some(available_kib) = available else { return Limit::unknown(NAME) };
    let connections = (available_kib << 10) / (END_BYTES * machine.ends(plan));
    let mut limit = Limit::new(NAME, format!("{} MiB", available_kib >> 10), connections, plan);
    if limit.insufficient {
        let needed = (machine.total_ends(plan) * END_BYTES).div_ceil(1 << 20);
        limit.advice = Some(format!("{needed} MiB of available memory"));
    }
    limit
}

/// Checks the memory of the control group, which the kernel's memory for sockets is a part of.
fn group_memory(groups: &Groups, machine: &Machine, plan: &Plan) -> Option<Limit> {
    let memory = groups.memory()?;
    let value = format!("{} MiB, {} in use", memory.most >> 20, memory.used >> 20);
    let mut limit = Limit::new("memory.max", value, memory.left() / (END_BYTES * machine.ends(plan)), plan);
    if limit.insufficient {
        let needed = (memory.used + machine.total_ends(plan) * END_BYTES).div_ceil(1 << 20);
        limit.advice = Some(format!("{needed} MiB for the control group (MemoryMax= of systemd, --memory of docker)"));
    }
    Some(limit)
}

/// Checks that the control group has room for the threads.
fn group_tasks(groups: &Groups, machine: &Machine, plan: &Plan) -> Option<Limit> {
    const NAME: &str = "pids.max";
    let tasks = groups.tasks()?;
    let value = with_used(tasks.most, tasks.used);
    let others = u64::from(plan.processes.saturating_sub(1));
    let needed = THREADS * machine.ends(plan) + (THREADS + THREADS_FOR_OTHER) * others;
    if tasks.left() >= needed {
        return Some(Limit { value: Some(value), capacity: Capacity::Any, ..Limit::unknown(NAME) });
    }
    let more = tasks.used + needed;
    let advice = format!("{more} tasks for the control group (TasksMax= of systemd, --pids-limit of docker)");
    Some(Limit { advice: Some(advice), ..Limit::new(NAME, value, 0, plan) })
}

/// Returns the share of the processors, which limits no number of connections.
fn group_cores(groups: &Groups) -> Option<Limit> {
    let cores = groups.cores()?;
    let value = if cores < 1.0 { format!("{:.0} % of a core", cores * 100.0) } else { format!("{cores:.1} cores") };
    Some(Limit { value: Some(value), capacity: Capacity::Any, ..Limit::unknown("cpu.max") })
}

/// Checks the pages of data in flight: at least one for each end.
fn memory_in_flight(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.tcp_mem";
    let limits = machine.numbers("sys/net/ipv4/tcp_mem");
    let Some([_, _, most]) = limits.as_deref() else { return Limit::unknown(NAME) };
    let used = SocketStatistics::read_at(&machine.proc).map_or(0, |sockets| sockets.tcp_mem_pages);
    let value = if used == 0 { format!("{most} pages") } else { format!("{most} pages, {used} in use") };
    let limit = Limit::new(NAME, value, most.saturating_sub(used) / machine.ends(plan), plan);
    limit.fix(|| {
        // 3 : 4 : 6, as the kernel's defaults.
        let share = (used + machine.total_ends(plan)).div_ceil(6);
        format!("sysctl -w net.ipv4.tcp_mem=\"{} {} {}\"", share * 3, share * 4, share * 6)
    })
}

/// Checks the connection tracking table, which has one entry for a connection with both ends on this machine.
fn tracked(machine: &Machine, plan: &Plan) -> Option<Limit> {
    let most = machine.number("sys/net/netfilter/nf_conntrack_max")?;
    let used = machine.number("sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    let name = "net.netfilter.nf_conntrack_max";
    let limit = Limit::new(name, with_used(most, used), most.saturating_sub(used), plan);
    Some(limit.fix(|| format!("sysctl -w {name}={}", used + u64::from(plan.connections))))
}

/// Checks the epoll entries of all processes of a user.
fn watches(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "fs.epoll.max_user_watches";
    let Some(most) = machine.number("sys/fs/epoll/max_user_watches") else { return Limit::unknown(NAME) };
    let kept = DESCRIPTORS_KEPT * machine.ends(plan);
    let limit = Limit::new(NAME, most.to_string(), most.saturating_sub(kept) / machine.ends(plan), plan);
    limit.fix(|| format!("sysctl -w fs.epoll.max_user_watches={}", kept + machine.total_ends(plan)))
}

fn with_used(most: u64, used: u64) -> String {
    if used == 0 { most.to_string() } else { format!("{most}, {used} in use") }
}

#[cfg(test)]
mod tests;
