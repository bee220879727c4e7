//! What limits the number of connections on this machine, and the lines that lift it.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::procfs::{self, SocketStatistics, parse_ports};

/// Descriptors of a process that are not connections, with some to spare.
const DESCRIPTORS_KEPT: u64 = 64;
/// Kernel memory of one idle end: its socket, its file, and its entry in the poll.
const MEMORY_OF_END: u64 = 4096;
/// Connections that arrive at once, at most: what a server's backlog is by default.
const BURST: u64 = 4096;
/// The range that has every port an unprivileged process may bind.
const WIDEST_RANGE: &str = "1024 65535";

/// What the connections are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server here, with its clients elsewhere.
    Serve,
    /// A load generator here. Its server is here as well if a target is a loopback address.
    Load,
    /// Both here.
    Both,
}

/// Connections that this machine is to hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many.
    pub connections: u32,
    /// What for.
    pub purpose: Purpose,
    /// Number of addresses that a load generator connects from; 0 if the system chooses one.
    pub sources: usize,
    /// Number of source/target pairs, each with the whole port range; at least 1.
    pub pairs: u32,
    /// Whether a target of the load generator is a loopback address.
    pub loopback: bool,
}

impl Plan {
    /// Ends of each connection that are on this machine.
    fn ends(&self) -> u64 {
        let is_both = match self.purpose {
            Purpose::Serve => false,
            Purpose::Load => self.loopback,
            Purpose::Both => true,
        };
        if is_both { 2 } else { 1 }
    }

    fn ends_in_all(&self) -> u64 {
        u64::from(self.connections) * self.ends()
    }
}

/// One limit of this machine, seen from a [`Plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limit {
    /// As the system names it: `fs.nr_open`.
    pub name: &'static str,
    /// What it is here; `None` where it cannot be read.
    pub value: Option<String>,
    /// What it leaves room for.
    pub allows: Capacity,
    /// It does not leave room for what was planned.
    pub stops: bool,
    /// The lines that lift it, to be run as they stand.
    pub commands: Vec<String>,
    /// What else would.
    pub advice: Option<String>,
}

/// What a [`Limit`] leaves room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// So many connections.
    Connections(u64),
    /// So many that arrive together.
    AtOnce(u64),
    /// Any number.
    Any,
    /// That cannot be read.
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
    /// What it stops, for a limit that does: `fs.nr_open (1024) stops at 960 connections`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}) ", self.name, self.value.as_deref().unwrap_or("unknown"))?;
        match self.allows {
            Capacity::Connections(1) => formatter.write_str("stops at 1 connection"),
            Capacity::AtOnce(count) => write!(formatter, "stops at {count} connections that arrive at once"),
            allows => write!(formatter, "stops at {allows} connections"),
        }
    }
}

/// Where limits are read.
#[derive(Debug)]
pub(crate) struct Machine {
    proc: PathBuf,
    /// Soft and hard.
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

/// Every limit that concerns `plan`, on this machine.
#[must_use]
pub fn limits(plan: &Plan) -> Vec<Limit> {
    limits_of(&Machine::here(), plan)
}

/// A line for each limit that would stop `plan` on this machine, with what lifts it. That the system cuts a backlog is not among
/// them: a server says it itself, of the backlog that it has.
#[must_use]
pub fn warnings(plan: &Plan) -> Vec<String> {
    warnings_of(&limits(plan), plan.connections)
}

fn warnings_of(limits: &[Limit], connections: u32) -> Vec<String> {
    let stops = limits.iter().filter(|limit| limit.stops && !matches!(limit.allows, Capacity::AtOnce(_)));
    let warning = |limit: &Limit| {
        let commands: Vec<_> = limit.commands.iter().map(|command| format!("`{command}`")).collect();
        let lifted = (!commands.is_empty()).then(|| commands.join(", then "));
        let remedies: Vec<_> = lifted.into_iter().chain(limit.advice.clone()).collect();
        format!("{limit} of {connections}: {}", remedies.join(", or "))
    };
    stops.map(warning).collect()
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
        Self { name, value: None, allows: Capacity::Unknown, stops: false, commands: Vec::new(), advice: None }
    }

    /// Bounds connections.
    fn new(name: &'static str, value: String, allows: u64, plan: &Plan) -> Self {
        let stops = allows < u64::from(plan.connections);
        Self { value: Some(value), allows: Capacity::Connections(allows), stops, ..Self::unknown(name) }
    }

    /// Bounds those that arrive together.
    fn at_once(name: &'static str, value: String, allows: u64, plan: &Plan) -> Self {
        Self { stops: allows < burst(plan), allows: Capacity::AtOnce(allows), ..Self::new(name, value, allows, plan) }
    }

    /// What lifts it, if it needs lifting.
    fn fix(mut self, command: impl FnOnce() -> String) -> Self {
        if self.stops {
            self.commands.push(command());
        }
        self
    }
}

fn burst(plan: &Plan) -> u64 {
    u64::from(plan.connections).min(BURST)
}

/// Of one process: a server and a generator on the same machine have each their own.
fn descriptors(machine: &Machine, plan: &Plan) -> Vec<Limit> {
    const SOFT: &str = "ulimit -Sn";
    const HARD: &str = "ulimit -Hn";
    const NR_OPEN: &str = "fs.nr_open";
    let needed = u64::from(plan.connections) + DESCRIPTORS_KEPT;
    let room = |limit: u64| limit.saturating_sub(DESCRIPTORS_KEPT);
    let nr_open = machine.number("sys/fs/nr_open").map_or_else(
        || Limit::unknown(NR_OPEN),
        |limit| {
            let found = Limit::new(NR_OPEN, limit.to_string(), room(limit), plan);
            found.fix(|| format!("sysctl -w fs.nr_open={needed}"))
        },
    );
    let Some((soft, hard)) = machine.descriptors else {
        return vec![nr_open, Limit::unknown(HARD), Limit::unknown(SOFT)];
    };
    let said = |limit: u64| if limit == rlimit::INFINITY { "unlimited".to_owned() } else { limit.to_string() };
    let mut hard = Limit::new(HARD, said(hard), room(hard), plan).fix(|| format!("ulimit -n {needed}"));
    if hard.stops {
        // setrlimit(2): above the hard limit only with CAP_SYS_RESOURCE, and above `fs.nr_open` not even then.
        hard.advice = Some(format!(
            "not as root, `LimitNOFILE={needed}` in the systemd unit, or `* hard nofile {needed}` in /etc/security/limits.conf and a new login"
        ));
    }
    vec![
        nr_open,
        hard,
        // Both raise it to the hard one when they start.
        Limit {
            value: Some(format!("{}, raised at the start", said(soft))),
            allows: Capacity::Any,
            ..Limit::unknown(SOFT)
        },
    ]
}

/// Of all processes together.
fn file_max(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "fs.file-max";
    let Some(most) = machine.number("sys/fs/file-max") else { return Limit::unknown(NAME) };
    let used = machine.number("sys/fs/file-nr").unwrap_or(0);
    let kept = used + DESCRIPTORS_KEPT * plan.ends();
    let found = Limit::new(NAME, with_used(most, used), most.saturating_sub(kept) / plan.ends(), plan);
    found.fix(|| format!("sysctl -w fs.file-max={}", kept + plan.ends_in_all()))
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
    let pairs_said = if pairs == 1 { String::new() } else { format!(" x {pairs} pairs") };
    let noun = if count == 1 { "port" } else { "ports" };
    let value = format!("{} = {count} {noun}{pairs_said}", words.join(" "));
    let mut found = Limit::new(NAME, value, count * pairs, plan);
    if found.stops {
        let connections = u64::from(plan.connections);
        let widest = parse_ports(WIDEST_RANGE, &reserved).map_or(0, |ports| ports.len() as u64);
        if widest * pairs >= connections {
            found.commands.push(format!("sysctl -w net.ipv4.ip_local_port_range=\"{WIDEST_RANGE}\""));
        }
        let ports_of_source = count * pairs / plan.sources.max(1) as u64;
        if ports_of_source > 0 {
            found.advice = Some(format!("--source with {} addresses", connections.div_ceil(ports_of_source)));
        }
    }
    found
}

fn accept_queue(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.core.somaxconn";
    let Some(limit) = machine.number("sys/net/core/somaxconn") else { return Limit::unknown(NAME) };
    let found = Limit::at_once(NAME, limit.to_string(), limit, plan);
    found.fix(|| format!("sysctl -w net.core.somaxconn={}", burst(plan)))
}

/// Linux keeps a quarter for peers that it knows, and asks nobody while SYN cookies are on (`tcp_conn_request`).
fn handshakes(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.tcp_max_syn_backlog";
    let Some(limit) = machine.number("sys/net/ipv4/tcp_max_syn_backlog") else { return Limit::unknown(NAME) };
    if machine.number("sys/net/ipv4/tcp_syncookies").is_some_and(|cookies| cookies > 0) {
        let value = Some(format!("{limit}, with SYN cookies"));
        return Limit { value, allows: Capacity::Any, ..Limit::unknown(NAME) };
    }
    let found = Limit::at_once(NAME, limit.to_string(), limit - limit / 4, plan);
    found.fix(|| format!("sysctl -w net.ipv4.tcp_max_syn_backlog={}", (burst(plan) * 4).div_ceil(3)))
}

fn memory(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "MemAvailable";
    let available = machine.read("meminfo").and_then(|text| procfs::field(&text, "MemAvailable:"));
    let Some(available_kib) = available else { return Limit::unknown(NAME) };
    let allows = (available_kib << 10) / (MEMORY_OF_END * plan.ends());
    let mut found = Limit::new(NAME, format!("{} MiB", available_kib >> 10), allows, plan);
    if found.stops {
        let needed = (plan.ends_in_all() * MEMORY_OF_END).div_ceil(1 << 20);
        found.advice = Some(format!("{needed} MiB of available memory"));
    }
    found
}

/// Each end with data in flight has at least one page of it.
fn memory_in_flight(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "net.ipv4.tcp_mem";
    let limits = machine.numbers("sys/net/ipv4/tcp_mem");
    let Some([_, _, most]) = limits.as_deref() else { return Limit::unknown(NAME) };
    let used = SocketStatistics::read_at(&machine.proc).map_or(0, |sockets| sockets.tcp_mem_pages);
    let value = if used == 0 { format!("{most} pages") } else { format!("{most} pages, {used} in use") };
    let found = Limit::new(NAME, value, most.saturating_sub(used) / plan.ends(), plan);
    found.fix(|| {
        // In the proportions that the kernel has by default.
        let share = (used + plan.ends_in_all()).div_ceil(6);
        format!("sysctl -w net.ipv4.tcp_mem=\"{} {} {}\"", share * 3, share * 4, share * 6)
    })
}

/// A connection with both ends here is tracked once.
fn tracked(machine: &Machine, plan: &Plan) -> Option<Limit> {
    let most = machine.number("sys/net/netfilter/nf_conntrack_max")?;
    let used = machine.number("sys/net/netfilter/nf_conntrack_count").unwrap_or(0);
    let name = "net.netfilter.nf_conntrack_max";
    let found = Limit::new(name, with_used(most, used), most.saturating_sub(used), plan);
    Some(found.fix(|| format!("sysctl -w {name}={}", used + u64::from(plan.connections))))
}

/// Of all processes of a user.
fn watches(machine: &Machine, plan: &Plan) -> Limit {
    const NAME: &str = "fs.epoll.max_user_watches";
    let Some(most) = machine.number("sys/fs/epoll/max_user_watches") else { return Limit::unknown(NAME) };
    let kept = DESCRIPTORS_KEPT * plan.ends();
    let found = Limit::new(NAME, most.to_string(), most.saturating_sub(kept) / plan.ends(), plan);
    found.fix(|| format!("sysctl -w fs.epoll.max_user_watches={}", kept + plan.ends_in_all()))
}

fn with_used(most: u64, used: u64) -> String {
    if used == 0 { most.to_string() } else { format!("{most}, {used} in use") }
}

#[cfg(test)]
mod tests;
