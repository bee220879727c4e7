#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::super::fake_proc::Files;
use super::*;

const PORTS: &str = "net.ipv4.ip_local_port_range";

/// A machine that allows a million connections, except where a test changes a limit.
fn large_machine() -> (Files, Machine) {
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
    let machine = machine(&files, Some((1024, 10_000_000)));
    (files, machine)
}

/// A machine of these files, whose addresses are 127.0.0.1 and 10.0.0.1.
fn machine(files: &Files, descriptors: Option<(u64, u64)>) -> Machine {
    Machine {
        proc: files.root().to_owned(),
        descriptors,
        groups: files.root().join("cgroup"),
        is_local: |address| ["127.0.0.1", "10.0.0.1"].map(|own| own.parse().unwrap()).contains(&address.ip()),
        source_of: |_| "10.0.0.1".parse().ok(),
    }
}

fn plan(connections: u32, purpose: Purpose) -> Plan {
    Plan::new(connections, purpose)
}

/// Returns the one limit that is insufficient for `plan`.
#[track_caller]
fn only_insufficient(machine: &Machine, plan: &Plan) -> Limit {
    let insufficient: Vec<_> = limits_of(machine, plan).into_iter().filter(|limit| limit.insufficient).collect();
    assert_eq!(insufficient.len(), 1, "{insufficient:#?}");
    insufficient.into_iter().next().unwrap()
}

/// Writes `text` to `path`: `most` connections are allowed, one more exceeds the limit `name` alone, and `command` raises it.
#[track_caller]
fn assert_allows(most: u32, purpose: Purpose, (path, text): (&str, &str), name: &str, command: &str) {
    let (files, machine) = large_machine();
    files.write(path, text);
    assert_eq!(limits_of(&machine, &plan(most, purpose)).iter().find(|limit| limit.insufficient), None);
    let limit = only_insufficient(&machine, &plan(most + 1, purpose));
    assert_eq!((limit.name, limit.capacity), (name, Capacity::Connections(most.into())));
    assert_eq!(limit.commands, [command]);

    let (setting, value) = command.strip_prefix("sysctl -w ").unwrap().split_once('=').unwrap();
    assert_eq!(setting, name);
    files.write(path, value.trim_matches('"'));
    assert_eq!(limits_of(&machine, &plan(most + 1, purpose)).iter().find(|limit| limit.insufficient), None);
}

#[test]
fn a_large_machine_has_no_insufficient_limit() {
    let (_files, machine) = large_machine();
    for purpose in [Purpose::Serve, Purpose::Load, Purpose::Both] {
        let plan = plan(50_000, purpose);
        let limits = limits_of(&machine, &plan);
        assert!(limits.len() >= 8);
        assert!(limits.iter().all(|limit| !limit.insufficient && limit.value.is_some()), "{limits:#?}");
        assert_eq!(warnings_of(&limits, plan.connections), [""; 0]);
    }
}

#[test]
fn the_hard_descriptor_limit_counts_and_the_soft_one_is_raised() {
    let (_files, mut machine) = large_machine();
    machine.descriptors = Some((256, 20_000));
    assert!(limits_of(&machine, &plan(19_936, Purpose::Both)).iter().all(|limit| !limit.insufficient));
    let limit = only_insufficient(&machine, &plan(19_937, Purpose::Both));
    assert_eq!((limit.name, limit.capacity), ("ulimit -Hn", Capacity::Connections(19_936)));
    assert_eq!(limit.commands, ["ulimit -n 20001"]);
    let advice = "without root `LimitNOFILE=20001` in the systemd unit, or `* hard nofile 20001` in \
                  /etc/security/limits.conf and a new login";
    assert_eq!(limit.advice.as_deref(), Some(advice));
    machine.descriptors = Some((20_001, 20_001));
    assert!(limits_of(&machine, &plan(19_937, Purpose::Both)).iter().all(|limit| !limit.insufficient));
}

#[test]
fn descriptors_that_are_counted_replace_those_that_are_kept() {
    let (_files, mut machine) = large_machine();
    machine.descriptors = Some((1000, 1000));
    let plan = |connections| Plan { other_descriptors: Some(10), ..plan(connections, Purpose::Load) };
    assert!(limits_of(&machine, &plan(990)).iter().all(|limit| !limit.insufficient));
    let limit = only_insufficient(&machine, &plan(991));
    assert_eq!((limit.capacity, &limit.commands[..]), (Capacity::Connections(990), &["ulimit -n 1001".to_owned()][..]));
}

#[test]
fn no_command_exceeds_the_maximum_of_nr_open() {
    let (files, mut machine) = large_machine();
    machine.descriptors = Some((256, 1000));
    let of_descriptors = |connections| {
        let limits = limits_of(&machine, &plan(connections, Purpose::Serve)).into_iter();
        limits.take(2).flat_map(|limit| limit.commands).collect::<Vec<_>>()
    };
    assert_eq!(of_descriptors(0x7fff_ff80), ["sysctl -w fs.nr_open=2147483584", "ulimit -n 2147483584"]);
    assert_eq!(of_descriptors(0x7fff_ff81), [""; 0]);
    let limits = limits_of(&machine, &plan(0x7fff_ff81, Purpose::Serve));
    assert_eq!(limits[0].advice.as_deref(), Some("several processes: it can be 2147483584 at most"));
    drop(files);
}

#[test]
fn sources_must_be_addresses_of_this_machine() {
    let (_files, machine) = large_machine();
    let plan = |sources: &[&str]| Plan {
        sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
        ..plan(1000, Purpose::Load)
    };
    assert!(limits_of(&machine, &plan(&["127.0.0.1", "10.0.0.1"])).iter().all(|limit| !limit.insufficient));
    let limit = only_insufficient(&machine, &plan(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "127.0.0.1"]));
    assert_eq!((limit.name, limit.capacity), ("--source", Capacity::Connections(500)));
    assert_eq!(limit.value.as_deref(), Some("10.0.0.2 and 1 more are not local"));
    let advice = "`ip address add 10.0.0.2/32 dev INTERFACE` for each, or only local sources";
    assert_eq!(limit.advice.as_deref(), Some(advice));
}

#[test]
fn ports_in_time_wait_are_lost_to_a_remote_target() {
    let (files, machine) = large_machine();
    let row = |remote: &str, state: &str| format!("   1: 0100000A:9C40 {remote} {state} 00000000:00000000 03:0000\n");
    // Two to 192.0.2.1:5000, one to another port of it, and a connection that is open.
    let rows = [("010200C0:1388", "06"), ("010200C0:1388", "06"), ("010200C0:1389", "06"), ("010200C0:1388", "01")];
    let rows: String = rows.iter().map(|(remote, state)| row(remote, state)).collect();
    files.write("net/tcp", &format!("  sl  local_address rem_address   st\n{rows}"));
    let load = |target: &str| Plan { targets: vec![target.parse().unwrap()], ..plan(50_000, Purpose::Load) };
    let limit = only_insufficient(&machine, &load("192.0.2.1:5000"));
    assert_eq!((limit.name, limit.capacity), ("TIME_WAIT", Capacity::Connections(49_998)));
    assert_eq!(limit.value.as_deref(), Some("2 ports"));
    let advice = "--source 10.0.0.1, whose ports in TIME_WAIT can be used again, or a wait of a minute";
    assert_eq!(limit.advice.as_deref(), Some(advice));

    let is_enough = |plan: &Plan| limits_of(&machine, plan).iter().all(|limit| !limit.insufficient);
    let limit = only_insufficient(&machine, &load("192.0.2.1:5001"));
    assert_eq!((limit.value.as_deref(), limit.capacity), (Some("1 port"), Capacity::Connections(49_999)));
    assert!(is_enough(&Plan { sources: vec!["10.0.0.1".parse().unwrap()], ..load("192.0.2.1:5000") }));
    assert!(is_enough(&load("127.0.0.1:5000")), "tcp_tw_reuse is 2");
    files.write("sys/net/ipv4/tcp_tw_reuse", "1\n");
    assert!(is_enough(&load("192.0.2.1:5000")));
    files.write("sys/net/ipv4/tcp_tw_reuse", "0\n");
    files.write("net/sockstat", "TCP: inuse 207 orphan 0 tw 0 alloc 212 mem 100\n");
    assert!(is_enough(&load("192.0.2.1:5000")), "no socket is in TIME_WAIT");
}

#[test]
fn control_groups_are_limits() {
    let (files, machine) = large_machine();
    files.write("self/cgroup", "0::/a\n");
    files.write("cgroup/a/memory.max", &format!("{}\n", 50 << 20));
    files.write("cgroup/a/memory.current", &format!("{}\n", 10 << 20));
    files.write("cgroup/a/cpu.max", "20000 100000\n");
    files.write("cgroup/a/pids.max", "100\n");
    let named =
        |name| limits_of(&machine, &plan(1, Purpose::Serve)).into_iter().find(|limit| limit.name == name).unwrap();
    assert_eq!(named("cpu.max").value.as_deref(), Some("20 % of a core"));
    assert_eq!((named("pids.max").capacity, named("pids.max").insufficient), (Capacity::Any, false));
    let limit = only_insufficient(&machine, &plan(10_241, Purpose::Serve));
    assert_eq!((limit.name, limit.capacity), ("memory.max", Capacity::Connections(10_240)));
    let advice = "51 MiB for the control group (MemoryMax= of systemd, --memory of docker)";
    assert_eq!(limit.advice.as_deref(), Some(advice));
    files.write("cgroup/a/pids.current", "97\n");
    let limit = only_insufficient(&machine, &plan(1, Purpose::Serve));
    assert_eq!((limit.name, limit.capacity), ("pids.max", Capacity::Connections(0)));
}

#[test]
fn each_process_of_a_load_has_threads() {
    let (files, machine) = large_machine();
    files.write("self/cgroup", "0::/a\n");
    files.write("cgroup/a/pids.max", "100\n");
    let plan = |processes| Plan { processes, ..plan(8, Purpose::Load) };
    let is_enough = |plan: &Plan| limits_of(&machine, plan).iter().all(|limit| !limit.insufficient);
    // Eight have four each, and the first has two more for each of the others.
    files.write("cgroup/a/pids.current", "54\n");
    assert!(is_enough(&plan(8)));
    files.write("cgroup/a/pids.current", "55\n");
    assert!(is_enough(&plan(1)));
    let limit = only_insufficient(&machine, &plan(8));
    assert_eq!((limit.name, limit.capacity), ("pids.max", Capacity::Connections(0)));
    let advice = "101 tasks for the control group (TasksMax= of systemd, --pids-limit of docker)";
    assert_eq!(limit.advice.as_deref(), Some(advice));
}

#[test]
fn nr_open_is_raised_before_the_hard_limit() {
    let (files, mut machine) = large_machine();
    machine.descriptors = Some((256, 1000));
    files.write("sys/fs/nr_open", "1000\n");
    let limits = limits_of(&machine, &plan(10_000, Purpose::Serve));
    let commands: Vec<_> = limits.into_iter().flat_map(|limit| limit.commands).collect();
    assert_eq!(commands, ["sysctl -w fs.nr_open=10064", "ulimit -n 10064"]);
}

#[test]
fn files_in_use_are_subtracted_from_file_max() {
    let path = ("sys/fs/file-max", "41128\n");
    assert_allows(40_064, Purpose::Load, path, "fs.file-max", "sysctl -w fs.file-max=41129");
    assert_allows(20_000, Purpose::Both, path, "fs.file-max", "sysctl -w fs.file-max=41130");
}

#[test]
fn epoll_watches_are_limited() {
    let path = ("sys/fs/epoll/max_user_watches", "20064");
    let name = "fs.epoll.max_user_watches";
    assert_allows(20_000, Purpose::Serve, path, name, "sysctl -w fs.epoll.max_user_watches=20065");
}

#[test]
fn memory_of_data_in_flight_is_limited() {
    let path = ("sys/net/ipv4/tcp_mem", "10000 15000 20100");
    let command = "sysctl -w net.ipv4.tcp_mem=\"10053 13404 20106\"";
    assert_allows(20_000, Purpose::Load, path, "net.ipv4.tcp_mem", command);
    assert_allows(10_000, Purpose::Both, path, "net.ipv4.tcp_mem", command);
}

#[test]
fn connection_tracking_is_a_limit_where_it_is_loaded() {
    let path = ("sys/net/netfilter/nf_conntrack_max", "20000");
    let name = "net.netfilter.nf_conntrack_max";
    assert_allows(20_000, Purpose::Both, path, name, "sysctl -w net.netfilter.nf_conntrack_max=20001");
    let (files, machine) = large_machine();
    assert!(limits_of(&machine, &plan(1, Purpose::Both)).iter().all(|limit| limit.name != name));
    files.write(path.0, path.1);
    files.write("sys/net/netfilter/nf_conntrack_count", "500");
    let limit = only_insufficient(&machine, &plan(20_000, Purpose::Serve));
    assert_eq!(limit.capacity, Capacity::Connections(19_500));
}

#[test]
fn ports_limit_load_but_not_serve() {
    let path = ("sys/net/ipv4/ip_local_port_range", "20000 21999");
    let command = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"";
    assert_allows(2000, Purpose::Load, path, PORTS, command);
    assert_allows(2000, Purpose::Both, path, PORTS, command);
    let (files, machine) = large_machine();
    files.write(path.0, path.1);
    assert!(limits_of(&machine, &plan(30_000, Purpose::Serve)).iter().all(|limit| !limit.insufficient));

    files.write("sys/net/ipv4/ip_local_reserved_ports", "80,21000-21999");
    let limit = only_insufficient(&machine, &plan(2500, Purpose::Load));
    assert_eq!(limit.capacity, Capacity::Connections(1000));
    assert_eq!(limit.advice.as_deref(), Some("--source with 3 addresses"));
}

#[test]
fn every_pair_has_the_whole_port_range() {
    let (files, machine) = large_machine();
    files.write("sys/net/ipv4/ip_local_port_range", "20000 21999");
    for (sources, pairs, capacity, needed) in [(3, 3, 6000, 20), (0, 2, 4000, 10), (2, 4, 8000, 10)] {
        let sources = (0..sources).map(|_| "10.0.0.1".parse().unwrap()).collect();
        let plan = Plan { sources, pairs, ..plan(40_000, Purpose::Load) };
        let limit = only_insufficient(&machine, &plan);
        assert_eq!((limit.name, limit.capacity), (PORTS, Capacity::Connections(capacity)));
        assert_eq!(limit.advice, Some(format!("--source with {needed} addresses")));
    }
}

#[test]
fn one_port_is_singular() {
    let (files, machine) = large_machine();
    files.write("sys/net/ipv4/ip_local_port_range", "20000 20000");
    let limit = only_insufficient(&machine, &plan(2, Purpose::Load));
    assert_eq!(limit.to_string(), format!("{PORTS} (20000 20000 = 1 port) allows 1 connection"));
}

#[test]
fn a_million_from_one_address_needs_more_sources() {
    let (_files, machine) = large_machine();
    let limit = only_insufficient(&machine, &plan(1_000_000, Purpose::Load));
    assert_eq!((limit.name, &limit.commands[..]), (PORTS, &[][..]));
    assert_eq!(limit.advice.as_deref(), Some("--source with 20 addresses"));
}

#[test]
fn the_accept_queue_limits_a_burst() {
    let (files, machine) = large_machine();
    files.write("sys/net/core/somaxconn", "128");
    assert!(limits_of(&machine, &plan(128, Purpose::Serve)).iter().all(|limit| !limit.insufficient));
    assert!(limits_of(&machine, &plan(10_000, Purpose::Load)).iter().all(|limit| !limit.insufficient));
    let limit = only_insufficient(&machine, &plan(200, Purpose::Serve));
    assert_eq!((limit.name, limit.capacity), ("net.core.somaxconn", Capacity::AtOnce(128)));
    assert_eq!(limit.commands, ["sysctl -w net.core.somaxconn=200"]);
    let limit = only_insufficient(&machine, &plan(10_000, Purpose::Both));
    assert_eq!(limit.commands, ["sysctl -w net.core.somaxconn=4096"]);
    assert_eq!(warnings_of(&[limit], 10_000), [""; 0], "the server logs this itself");
}

#[test]
fn the_syn_queue_limits_a_burst_without_syn_cookies() {
    let (files, machine) = large_machine();
    files.write("sys/net/ipv4/tcp_max_syn_backlog", "1000");
    let limit = only_insufficient(&machine, &plan(1000, Purpose::Serve));
    assert_eq!((limit.name, limit.capacity), ("net.ipv4.tcp_max_syn_backlog", Capacity::AtOnce(750)));
    assert_eq!(limit.commands, ["sysctl -w net.ipv4.tcp_max_syn_backlog=1334"]);
    files.write("sys/net/ipv4/tcp_max_syn_backlog", "1334");
    assert!(limits_of(&machine, &plan(1000, Purpose::Serve)).iter().all(|limit| !limit.insufficient));
    files.write("sys/net/ipv4/tcp_max_syn_backlog", "10");
    files.write("sys/net/ipv4/tcp_syncookies", "1");
    assert!(limits_of(&machine, &plan(1000, Purpose::Serve)).iter().all(|limit| !limit.insufficient));
}

#[test]
fn a_loopback_connection_takes_the_memory_of_two_ends() {
    let (files, machine) = large_machine();
    files.write("meminfo", "MemTotal: 4000000 kB\nMemAvailable:   160000 kB\n");
    let load = |target: &str| Plan { targets: vec![target.parse().unwrap()], ..plan(45_000, Purpose::Load) };
    for (plan, capacity, advice) in [
        (plan(45_000, Purpose::Serve), 40_000, "176 MiB of available memory"),
        (load("192.0.2.1:5000"), 40_000, "176 MiB of available memory"),
        (load("127.0.0.1:5000"), 20_000, "352 MiB of available memory"),
        (load("10.0.0.1:5000"), 20_000, "352 MiB of available memory"),
        (plan(45_000, Purpose::Both), 20_000, "352 MiB of available memory"),
    ] {
        let limit = only_insufficient(&machine, &plan);
        assert_eq!((limit.name, limit.capacity), ("MemAvailable", Capacity::Connections(capacity)));
        assert_eq!((&limit.commands[..], limit.advice.as_deref()), (&[][..], Some(advice)));
    }
}

#[test]
fn an_unreadable_limit_is_unknown_and_not_insufficient() {
    let files = Files::new();
    let machine = machine(&files, None);
    let limits = limits_of(&machine, &plan(1_000_000, Purpose::Both));
    assert!(limits.len() >= 10);
    for limit in limits {
        assert_eq!(
            (limit.value, limit.capacity, limit.insufficient),
            (None, Capacity::Unknown, false),
            "{}",
            limit.name
        );
    }
}

#[test]
fn a_warning_names_the_limit_its_capacity_and_the_fix() {
    let (files, mut machine) = large_machine();
    machine.descriptors = Some((256, 1064));
    files.write("sys/net/ipv4/ip_local_port_range", "20000 21999");
    let plan = plan(10_000, Purpose::Load);
    assert_eq!(
        warnings_of(&limits_of(&machine, &plan), plan.connections),
        [
            "ulimit -Hn (1064) allows 1000 of 10000 connections: `ulimit -n 10064`, or without root \
             `LimitNOFILE=10064` in the systemd unit, or `* hard nofile 10064` in /etc/security/limits.conf and a new login",
            "net.ipv4.ip_local_port_range (20000 21999 = 2000 ports) allows 2000 of 10000 connections: \
             `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"`, or --source with 5 addresses",
        ]
    );
}

#[test]
fn limits_of_this_machine_are_read() {
    let limits = limits(&plan(1, Purpose::Both));
    let descriptors = limits.iter().find(|limit| limit.name == "ulimit -Hn").unwrap();
    assert!(matches!(descriptors.capacity, Capacity::Connections(1..)), "{descriptors:?}");
}
