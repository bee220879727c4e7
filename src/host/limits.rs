//! The system limits on the number of connections, and the commands that raise them.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::procfs::{self, SocketStatistics, parse_ports};

/// Descriptors of a process that are not connections, with a margin.
const DESCRIPTORS_KEPT: u64 = 64;
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
    /// The load generator's, and with [`Plan::loopback`] the server's too.
    Load,
    /// Both.
    Both,
}

/// The connections that this machine has to hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of connections.
    pub connections: u32,
    /// Which of their ends are on this machine.
    pub purpose: Purpose,
    /// Number of addresses that a load generator connects from; 0 if the system chooses one.
    pub sources: usize,
    /// Number of source/target pairs, each with the whole port range; at least 1.
    pub pairs: u32,
    /// Whether a target of the load generator is a loopback address.
    pub loopback: bool,
}

impl Plan {
    /// Returns the number of ends of each connection that are on this machine.
    fn ends(&self) -> u64 {
        let is_both = match self.purpose {
            Purpose::Serve => false,
            Purpose::Load => self.loopback,
            Purpose::Both => true,
        };
        if is_both { 2 } else { 1 }
    }

    fn total_ends(&self) -> u64 {
        u64::from(self.connections) * self.ends()
    }
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
}

impl Machine {
    fn here() -> Self {
        Self { proc: PathBuf::from("/proc"), descriptors: rlimit::Resource::NOFILE.get().ok() }
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
    if plan.purpose != Purpose::Serve {
        limits.push(ports(machine, plan));
    }
    if plan.purpose != Purpose::Load {
        limits.extend([accept_queue(machine, plan), handshakes(machine, plan)]);
    }
    limits.extend([memory(machine, plan), memory_in_flight(machine, plan)]);
    limits.extend(tracked(machine, plan));
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
    let needed = u64::from(plan.connections) + DESCRIPTORS_KEPT;
    let room = |limit: u64| limit.saturating_sub(DESCRIPTORS_KEPT);
    let nr_open = machine.number("sys/fs/nr_open").map_or_else(
        || Limit::unknown(NR_OPEN),
        |most| {
            let limit = Limit::new(NR_OPEN, most.to_string(), room(most), plan);
            limit.fix(|| format!("sysctl -w fs.nr_open={needed}"))
        },
    );
    let Some((soft, hard)) = machine.descriptors else {
        return vec![nr_open, Limit::unknown(HARD), Limit::unknown(SOFT)];
    };
    let text = |limit: u64| if limit == rlimit::INFINITY { "unlimited".to_owned() } else { limit.to_string() };
    let mut hard = Limit::new(HARD, text(hard), room(hard), plan).fix(|| format!("ulimit -n {needed}"));
    if hard.insufficient {
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
    let kept = used + DESCRIPTORS_KEPT * plan.ends();
    let limit = Limit::new(NAME, with_used(most, used), most.saturating_sub(kept) / plan.ends(), plan);
    limit.fix(|| format!("sysctl -w fs.file-max={}", kept + plan.total_ends()))
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
        let ports_of_source = count * pairs / plan.sources.max(1) as u64;
        if ports_of_source > 0 {
            limit.advice = Some(format!("--source with {} addresses", connections.div_ceil(ports_of_source)));
        }
    }
    limit
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
    let connections = (available_kib << 10) / (END_BYTES * plan.ends());
    let mut limit = Limit::new(NAME, format!("{} MiB", available_kib >> 10), connections, plan);
    if limit.insufficient {
        let needed = (plan.total_ends() * END_BYTES).div_ceil(1 << 20);
        limit.advice = Some(format!("{needed} MiB of available memory"));
    }
    limit
}

/// Checks the pages of data in flight: at least one for each end.
fn memory_in_flight(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.tcp_mem";
    let limits = machine.numbers("sys/net/ipv4/tcp_mem");
    let Some([_, _, most]) = limits.as_deref() else { return Limit::unknown(NAME) };
    let used = SocketStatistics::read_at(&machine.proc).map_or(0, |sockets| sockets.tcp_mem_pages);
    let value = if used == 0 { format!("{most} pages") } else { format!("{most} pages, {used} in use") };
    let limit = Limit::new(NAME, value, most.saturating_sub(used) / plan.ends(), plan);
    limit.fix(|| {
        // 3 : 4 : 6, as the kernel's defaults.
        let share = (used + plan.total_ends()).div_ceil(6);
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
    let kept = DESCRIPTORS_KEPT * plan.ends();
    let limit = Limit::new(NAME, most.to_string(), most.saturating_sub(kept) / plan.ends(), plan);
    limit.fix(|| format!("sysctl -w fs.epoll.max_user_watches={}", kept + plan.total_ends()))
}

fn with_used(most: u64, used: u64) -> String {
    if used == 0 { most.to_string() } else { format!("{most}, {used} in use") }
}

#[cfg(test)]
mod tests;
