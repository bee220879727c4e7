#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use super::super::fake_proc::Files;
use super::*;

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
    Plan { connections, purpose, sources: 0, pairs: 1, loopback: false }
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
    for (sources, pairs, allows, needed) in [(3, 3, 6000, 20), (0, 2, 4000, 10), (2, 4, 8000, 10)] {
        let plan = Plan { sources, pairs, ..plan(40_000, Purpose::Load) };
        let limit = only_stop(&machine, &plan);
        assert_eq!((limit.name, limit.allows), (PORTS, Capacity::Connections(allows)));
        assert_eq!(limit.advice, Some(format!("--source with {needed} addresses")));
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
    let load = |loopback| Plan { loopback, ..plan(45_000, Purpose::Load) };
    for (plan, allows, advice) in [
        (plan(45_000, Purpose::Serve), 40_000, "176 MiB of available memory"),
        (load(false), 40_000, "176 MiB of available memory"),
        (load(true), 20_000, "352 MiB of available memory"),
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
