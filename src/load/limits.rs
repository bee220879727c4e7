//! What limits the number of connections on this machine, and the lines that lift it.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::machine::{self, SocketStatistics};
use super::sources::{count_pairs, parse_ports};

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
    /// The addresses that a load generator connects from. None: the system's choice of one.
    pub sources: Vec<IpAddr>,
    /// The servers that it connects to. None: one, somewhere else.
    pub targets: Vec<SocketAddr>,
}

impl Plan {
    /// Ends of each connection that are on this machine.
    fn ends(&self) -> u64 {
        let is_both = match self.purpose {
            Purpose::Serve => false,
            Purpose::Load => self.targets.iter().any(|target| target.ip().is_loopback()),
            Purpose::Both => true,
        };
        if is_both { 2 } else { 1 }
    }

    fn ends_in_all(&self) -> u64 {
        u64::from(self.connections) * self.ends()
    }

    /// Source-target pairs, each with a range of ports of its own.
    fn pairs(&self) -> u64 {
        if self.targets.is_empty() {
            return self.sources.len().max(1) as u64;
        }
        count_pairs(&self.sources, &self.targets).unwrap_or(0).into()
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
    let (count, pairs) = (ports.len() as u64, plan.pairs());
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
        let ports_of_source = count * pairs / plan.sources.len().max(1) as u64;
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
    let available = machine.read("meminfo").and_then(|text| machine::field(&text, "MemAvailable:"));
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
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory that plays `/proc`.
    pub(in super::super) struct Files(PathBuf);

    impl Files {
        pub(in super::super) fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("ecoloop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let root = std::env::temp_dir().join(name);
            fs::create_dir(&root).unwrap();
            Self(root)
        }

        pub(in super::super) fn root(&self) -> &Path {
            &self.0
        }

        pub(in super::super) fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(in super::super) fn remove(&self, path: &str) {
            fs::remove_dir_all(self.0.join(path)).unwrap();
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const PORTS: &str = "net.ipv4.ip_local_port_range";

    /// A machine that holds a million connections, but for what a test changes.
    fn roomy() -> (Files, Machine) {
        let files = Files::new();
        for (path, text) in [
            ("sys/fs/nr_open", "10000000\n"),
            ("sys/fs/file-max", "10000000\n"),
            ("sys/fs/file-nr", "1000\t0\t10000000\n"),
            ("sys/fs/epoll/max_user_watches", "10000000\n"),
            ("sys/net/core/somaxconn", "4096\n"),
            ("sys/net/ipv4/tcp_max_syn_backlog", "8192\n"),
            ("sys/net/ipv4/tcp_syncookies", "0\n"),
            ("sys/net/ipv4/tcp_mem", "3000000\t4000000\t6000000\n"),
            ("sys/net/ipv4/ip_local_port_range", "10000\t59999\n"),
            ("sys/net/ipv4/ip_local_reserved_ports", "\n"),
            ("net/sockstat", "sockets: used 232\nTCP: inuse 207 orphan 0 tw 430 alloc 212 mem 100\n"),
            ("meminfo", "MemTotal:       64000000 kB\nMemAvailable:   32000000 kB\n"),
        ] {
            files.write(path, text);
        }
        let machine = Machine { proc: files.root().to_owned(), descriptors: Some((1024, 10_000_000)) };
        (files, machine)
    }

    fn plan(connections: u32, purpose: Purpose) -> Plan {
        Plan { connections, purpose, sources: Vec::new(), targets: Vec::new() }
    }

    /// The one limit that stops `plan`.
    #[track_caller]
    fn only_stop(machine: &Machine, plan: &Plan) -> Limit {
        let stops: Vec<_> = limits_of(machine, plan).into_iter().filter(|limit| limit.stops).collect();
        assert_eq!(stops.len(), 1, "{stops:#?}");
        stops.into_iter().next().unwrap()
    }

    /// Writes `text` there: up to `most` connections pass, one more is stopped by `name` alone, and `command` lifts it.
    #[track_caller]
    fn assert_stops_above(most: u32, purpose: Purpose, (path, text): (&str, &str), name: &str, command: &str) {
        let (files, machine) = roomy();
        files.write(path, text);
        assert_eq!(limits_of(&machine, &plan(most, purpose)).iter().find(|limit| limit.stops), None);
        let limit = only_stop(&machine, &plan(most + 1, purpose));
        assert_eq!((limit.name, limit.allows), (name, Capacity::Connections(most.into())));
        assert_eq!(limit.commands, [command]);

        let (setting, value) = command.strip_prefix("sysctl -w ").unwrap().split_once('=').unwrap();
        assert_eq!(setting, name);
        files.write(path, value.trim_matches('"'));
        assert_eq!(limits_of(&machine, &plan(most + 1, purpose)).iter().find(|limit| limit.stops), None);
    }

    #[test]
    fn a_roomy_machine_stops_nothing() {
        let (_files, machine) = roomy();
        for purpose in [Purpose::Serve, Purpose::Load, Purpose::Both] {
            let plan = plan(50_000, purpose);
            let limits = limits_of(&machine, &plan);
            assert!(limits.len() >= 8);
            assert!(limits.iter().all(|limit| !limit.stops && limit.value.is_some()), "{limits:#?}");
            assert_eq!(warnings_of(&limits, plan.connections), [""; 0]);
        }
    }

    #[test]
    fn the_hard_limit_of_descriptors_stops_and_the_soft_one_is_raised() {
        let (_files, mut machine) = roomy();
        machine.descriptors = Some((256, 20_000));
        assert!(limits_of(&machine, &plan(19_936, Purpose::Both)).iter().all(|limit| !limit.stops));
        let limit = only_stop(&machine, &plan(19_937, Purpose::Both));
        assert_eq!((limit.name, limit.allows), ("ulimit -Hn", Capacity::Connections(19_936)));
        assert_eq!(limit.commands, ["ulimit -n 20001"]);
        let advice = "not as root, `LimitNOFILE=20001` in the systemd unit, or `* hard nofile 20001` in \
                      /etc/security/limits.conf and a new login";
        assert_eq!(limit.advice.as_deref(), Some(advice));
        machine.descriptors = Some((20_001, 20_001));
        assert!(limits_of(&machine, &plan(19_937, Purpose::Both)).iter().all(|limit| !limit.stops));
    }

    #[test]
    fn what_the_hard_limit_may_be_is_raised_before_it() {
        let (files, mut machine) = roomy();
        machine.descriptors = Some((256, 1000));
        files.write("sys/fs/nr_open", "1000\n");
        let limits = limits_of(&machine, &plan(10_000, Purpose::Serve));
        let commands: Vec<_> = limits.into_iter().flat_map(|limit| limit.commands).collect();
        assert_eq!(commands, ["sysctl -w fs.nr_open=10064", "ulimit -n 10064"]);
    }

    #[test]
    fn the_files_of_the_system_stop_at_what_is_left_of_them() {
        let path = ("sys/fs/file-max", "41128\n");
        assert_stops_above(40_064, Purpose::Load, path, "fs.file-max", "sysctl -w fs.file-max=41129");
        assert_stops_above(20_000, Purpose::Both, path, "fs.file-max", "sysctl -w fs.file-max=41130");
    }

    #[test]
    fn the_watches_of_the_poll_stop() {
        let path = ("sys/fs/epoll/max_user_watches", "20064");
        let name = "fs.epoll.max_user_watches";
        assert_stops_above(20_000, Purpose::Serve, path, name, "sysctl -w fs.epoll.max_user_watches=20065");
    }

    #[test]
    fn the_memory_of_data_in_flight_stops() {
        let path = ("sys/net/ipv4/tcp_mem", "10000 15000 20100");
        let command = "sysctl -w net.ipv4.tcp_mem=\"10053 13404 20106\"";
        assert_stops_above(20_000, Purpose::Load, path, "net.ipv4.tcp_mem", command);
        assert_stops_above(10_000, Purpose::Both, path, "net.ipv4.tcp_mem", command);
    }

    #[test]
    fn tracked_connections_stop_where_they_are_tracked() {
        let path = ("sys/net/netfilter/nf_conntrack_max", "20000");
        let name = "net.netfilter.nf_conntrack_max";
        assert_stops_above(20_000, Purpose::Both, path, name, "sysctl -w net.netfilter.nf_conntrack_max=20001");
        let (files, machine) = roomy();
        assert!(limits_of(&machine, &plan(1, Purpose::Both)).iter().all(|limit| limit.name != name));
        files.write(path.0, path.1);
        files.write("sys/net/netfilter/nf_conntrack_count", "500");
        let limit = only_stop(&machine, &plan(20_000, Purpose::Serve));
        assert_eq!(limit.allows, Capacity::Connections(19_500));
    }

    #[test]
    fn ports_stop_a_load_alone() {
        let path = ("sys/net/ipv4/ip_local_port_range", "20000 21999");
        let command = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"";
        assert_stops_above(2000, Purpose::Load, path, PORTS, command);
        assert_stops_above(2000, Purpose::Both, path, PORTS, command);
        let (files, machine) = roomy();
        files.write(path.0, path.1);
        assert!(limits_of(&machine, &plan(30_000, Purpose::Serve)).iter().all(|limit| !limit.stops));

        files.write("sys/net/ipv4/ip_local_reserved_ports", "80,21000-21999");
        let limit = only_stop(&machine, &plan(2500, Purpose::Load));
        assert_eq!(limit.allows, Capacity::Connections(1000));
        assert_eq!(limit.advice.as_deref(), Some("--source with 3 addresses"));
    }

    #[test]
    fn ports_are_those_of_every_pair() {
        let (files, machine) = roomy();
        files.write("sys/net/ipv4/ip_local_port_range", "20000 21999");
        let sources: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|text| text.parse().unwrap()).into();
        let targets: Vec<SocketAddr> = ["10.0.1.1:5", "10.0.1.1:6"].map(|text| text.parse().unwrap()).into();
        for (sources_count, targets_count, allows) in [(3, 0, 6000), (3, 1, 6000), (0, 2, 4000), (2, 2, 8000)] {
            let plan = Plan {
                sources: sources[..sources_count].to_vec(),
                targets: targets[..targets_count].to_vec(),
                ..plan(40_000, Purpose::Load)
            };
            let limit = only_stop(&machine, &plan);
            assert_eq!((limit.name, limit.allows), (PORTS, Capacity::Connections(allows)));
            let needed = format!("--source with {} addresses", if targets_count == 2 { 10 } else { 20 });
            assert_eq!(limit.advice, Some(needed));
        }
    }

    #[test]
    fn one_port_is_no_ports() {
        let (files, machine) = roomy();
        files.write("sys/net/ipv4/ip_local_port_range", "20000 20000");
        let limit = only_stop(&machine, &plan(2, Purpose::Load));
        assert_eq!(limit.to_string(), format!("{PORTS} (20000 20000 = 1 port) stops at 1 connection"));
    }

    #[test]
    fn no_range_is_wide_enough_for_a_million_from_one_address() {
        let (_files, machine) = roomy();
        let limit = only_stop(&machine, &plan(1_000_000, Purpose::Load));
        assert_eq!((limit.name, &limit.commands[..]), (PORTS, &[][..]));
        assert_eq!(limit.advice.as_deref(), Some("--source with 20 addresses"));
    }

    #[test]
    fn queues_stop_those_that_arrive_at_once() {
        let (files, machine) = roomy();
        files.write("sys/net/core/somaxconn", "128");
        assert!(limits_of(&machine, &plan(128, Purpose::Serve)).iter().all(|limit| !limit.stops));
        assert!(limits_of(&machine, &plan(10_000, Purpose::Load)).iter().all(|limit| !limit.stops));
        let limit = only_stop(&machine, &plan(200, Purpose::Serve));
        assert_eq!((limit.name, limit.allows), ("net.core.somaxconn", Capacity::AtOnce(128)));
        assert_eq!(limit.commands, ["sysctl -w net.core.somaxconn=200"]);
        let limit = only_stop(&machine, &plan(10_000, Purpose::Both));
        assert_eq!(limit.commands, ["sysctl -w net.core.somaxconn=4096"]);
        assert_eq!(warnings_of(&[limit], 10_000), [""; 0], "the server says this itself");
    }

    #[test]
    fn handshakes_stop_unless_cookies_stand_in() {
        let (files, machine) = roomy();
        files.write("sys/net/ipv4/tcp_max_syn_backlog", "1000");
        let limit = only_stop(&machine, &plan(1000, Purpose::Serve));
        assert_eq!((limit.name, limit.allows), ("net.ipv4.tcp_max_syn_backlog", Capacity::AtOnce(750)));
        assert_eq!(limit.commands, ["sysctl -w net.ipv4.tcp_max_syn_backlog=1334"]);
        files.write("sys/net/ipv4/tcp_max_syn_backlog", "1334");
        assert!(limits_of(&machine, &plan(1000, Purpose::Serve)).iter().all(|limit| !limit.stops));
        files.write("sys/net/ipv4/tcp_max_syn_backlog", "10");
        files.write("sys/net/ipv4/tcp_syncookies", "1");
        assert!(limits_of(&machine, &plan(1000, Purpose::Serve)).iter().all(|limit| !limit.stops));
    }

    #[test]
    fn memory_stops_both_ends_of_a_loopback_connection() {
        let (files, machine) = roomy();
        files.write("meminfo", "MemTotal: 4000000 kB\nMemAvailable:   160000 kB\n");
        let to = |target: &str| Plan { targets: vec![target.parse().unwrap()], ..plan(45_000, Purpose::Load) };
        for (plan, allows, advice) in [
            (plan(45_000, Purpose::Serve), 40_000, "176 MiB of available memory"),
            (to("10.0.0.1:5000"), 40_000, "176 MiB of available memory"),
            (to("127.0.0.1:5000"), 20_000, "352 MiB of available memory"),
            (plan(45_000, Purpose::Both), 20_000, "352 MiB of available memory"),
        ] {
            let limit = only_stop(&machine, &plan);
            assert_eq!((limit.name, limit.allows), ("MemAvailable", Capacity::Connections(allows)));
            assert_eq!((&limit.commands[..], limit.advice.as_deref()), (&[][..], Some(advice)));
        }
    }

    #[test]
    fn what_cannot_be_read_stops_nothing() {
        let files = Files::new();
        let machine = Machine { proc: files.root().to_owned(), descriptors: None };
        let limits = limits_of(&machine, &plan(1_000_000, Purpose::Both));
        assert!(limits.len() >= 10);
        for limit in limits {
            assert_eq!((limit.value, limit.allows, limit.stops), (None, Capacity::Unknown, false), "{}", limit.name);
        }
    }

    #[test]
    fn a_warning_says_what_stops_where_and_what_lifts_it() {
        let (files, mut machine) = roomy();
        machine.descriptors = Some((256, 1064));
        files.write("sys/net/ipv4/ip_local_port_range", "20000 21999");
        let plan = plan(10_000, Purpose::Load);
        assert_eq!(
            warnings_of(&limits_of(&machine, &plan), plan.connections),
            [
                "ulimit -Hn (1064) stops at 1000 connections of 10000: `ulimit -n 10064`, or not as root, \
                 `LimitNOFILE=10064` in the systemd unit, or `* hard nofile 10064` in /etc/security/limits.conf and a new login",
                "net.ipv4.ip_local_port_range (20000 21999 = 2000 ports) stops at 2000 connections of 10000: \
                 `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"`, or --source with 5 addresses",
            ]
        );
    }

    #[test]
    fn this_machine_can_be_read() {
        let limits = limits(&plan(1, Purpose::Both));
        let descriptors = limits.iter().find(|limit| limit.name == "ulimit -Hn").unwrap();
        assert!(matches!(descriptors.allows, Capacity::Connections(1..)), "{descriptors:?}");
    }
}
