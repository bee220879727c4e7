//! Targets with several addresses, families, zones, and what a malformed address is told.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{ErrorName, Phase, Verdict};
use ecoloop::load::{self, Interrupt, Mode, ProgressCell, Session};
use socket2::Socket;

use super::{SHORT_TIMEOUT, assert_clean, config, document, errors, listen_with_room_for_one, run, run_command};
use crate::few_ports::{self, Namespace};
use crate::support::{Process, ecoloop, eventually, join, reserve_port, serve};

/// Returns an address that answers no connect: its backlog is full. It stays so while the other two live.
fn silent_address() -> (SocketAddr, Socket, TcpStream) {
    let (socket, address) = listen_with_room_for_one();
    let queued = TcpStream::connect(address).unwrap();
    (address, socket, queued)
}

#[test]
fn the_addresses_of_a_target_are_tried_in_order_until_one_accepts() {
    let (_port, refused) = reserve_port();
    let (silent, _socket, _queued) = silent_address();
    for (mode, fails) in [(Mode::Echo, refused), (Mode::Hold, refused), (Mode::Churn, refused), (Mode::Echo, silent)] {
        let server = serve(ServerConfig::default());
        let mut config = config(server.local_addr());
        config.targets = vec![vec![fails.into(), refused.into(), server.local_addr().into()]];
        config.mode = mode;
        config.connections = 10;
        config.duration = Duration::from_millis(100);
        if fails == silent {
            config.connect_timeout = SHORT_TIMEOUT;
        }
        let report = run(config);
        assert_clean(&report);
        assert_eq!(report.config.targets, [server.local_addr()], "the report has the address that was used");
        server.handle().drain();
        assert_eq!(join(server).stats.accepted, report.connections.opened_total, "{mode:?}");
    }
}

#[test]
fn sources_go_on_to_the_next_address_too() {
    let (_port, refused) = reserve_port();
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.targets = vec![vec!["[::1]:9".parse().unwrap(), refused.into(), server.local_addr().into()]];
    config.sources = vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
    config.connections = 10;
    config.messages_per_connection = Some(2);
    let report = run(config);
    assert_clean(&report);
    assert_eq!(report.config.targets, [server.local_addr()]);
}

#[test]
fn an_address_that_has_accepted_is_kept() {
    let first = serve(ServerConfig::default());
    let second = serve(ServerConfig::default());
    let mut config = config(first.local_addr());
    config.targets = vec![vec![first.local_addr().into(), second.local_addr().into()]];
    config.mode = Mode::Churn;
    config.duration = Duration::from_millis(300);
    let handle = first.handle().clone();
    let run = thread::spawn(move || load::run(config, &Interrupt::default(), &ProgressCell::default()).unwrap());
    eventually("a connection", || handle.stats().accepted > 0);
    handle.stop();
    let report = run.join().unwrap();
    // Its end is an error, and not hidden by a change to the other server.
    let refused = report.errors.iter().any(|row| (row.phase, row.error) == (Phase::Connect, ErrorName::Refused));
    assert!(refused && report.verdict == Verdict::Fail, "{:?}", report.errors);
    assert_eq!(report.config.targets, [first.local_addr()]);
    second.handle().drain();
    assert_eq!(join(second).stats.accepted, 0);
}

#[test]
fn a_target_none_of_whose_addresses_accepts_is_one_error_a_connection() {
    let (_one, first) = reserve_port();
    let (_other, second) = reserve_port();
    let mut config = config(first);
    config.targets = vec![vec![first.into(), second.into()]];
    config.connections = 3;
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::Refused, Some("ECONNREFUSED"), 3)]);
    assert_eq!(report.connections.opened_total, 3);
    assert_eq!(report.config.targets, [first, second]);
}

#[test]
fn a_connect_that_times_out_is_told_apart_from_a_refused_one() {
    let (_port, refused) = reserve_port();
    let (silent, _socket, _queued) = silent_address();
    for (address, hint) in [
        (refused, "connect refused 1 time: no server listens there, or a firewall rejects the connection"),
        (silent, "connect timeout 1 time: the server's backlog is full, or packets to or from it are lost"),
    ] {
        let ended = run_command(&["--connect-timeout", "100ms", "-m", "1", "--json", "-", &address.to_string()]);
        assert_eq!(ended.stderr, [format!("ecoloop: {hint}")]);
    }
}

#[test]
fn several_targets_are_all_used() {
    let servers = [serve(ServerConfig::default()), serve(ServerConfig::default())];
    let mut config = config(servers[0].local_addr());
    config.targets = servers.iter().map(|server| vec![server.local_addr().into()]).collect();
    config.connections = 6;
    let mut session = Session::connect(config, &Interrupt::default(), &ProgressCell::default()).unwrap();
    assert_clean(&session.measure().unwrap());
    session.close().unwrap();
    for server in servers {
        server.handle().drain();
        assert_eq!(join(server).stats.accepted, 3);
    }
}

#[test]
fn an_address_of_the_excluded_family_is_a_usage_error() {
    for (arguments, reason) in [
        (["-4", "[::1]:9"], "[::1]:9 is not an IPv4 address"),
        (["-6", "127.0.0.1:9"], "127.0.0.1:9 is not an IPv6 address"),
    ] {
        for subcommand in [&["load"][..], &["doctor", "-c", "1"]] {
            let ended = Process::start(ecoloop(&[subcommand, &arguments].concat())).wait();
            assert_eq!(ended.status.code(), Some(2), "{ended:?}");
            assert_eq!(ended.stderr[0], format!("error: {reason}"));
        }
    }
}

#[test]
fn a_bare_port_with_6_is_that_of_localhost_in_ipv6() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = format!(":{}", listener.local_addr().unwrap().port());
    drop(listener);
    let ended = run_command(&["-6", "-d", "100ms", "--json", "-", &port]);
    let (_, report) = document(&ended);
    assert_eq!(report.config.targets, [format!("[::1]{port}").parse::<SocketAddr>().unwrap()]);
}

#[test]
fn sources_pair_with_what_they_can_reach() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let sources = ["--source", "::2", "--source", "127.0.0.2"];
    let ended = run_command(&[&sources[..], &["-c", "2", "-m", "1", "--json", "-", &address]].concat());
    let (_, report) = document(&ended);
    assert_clean(&report);
    assert_eq!(report.config.sources, ["127.0.0.2".parse().unwrap()]);
    let warning = "ecoloop: no target can be reached from source ::2: not used";
    assert_eq!(ended.stderr_without_saturation(), [warning]);

    let ended = run_command(&["--source", "127.0.0.2", "-m", "1", "--json", "-", &address, "[::1]:9"]);
    let (_, report) = document(&ended);
    assert_clean(&report);
    let warning = "ecoloop: no source can reach target [::1]:9: nothing connects to it";
    assert_eq!(ended.stderr_without_saturation(), [warning]);

    let ended = run_command(&["--source", "::2", &address]);
    assert_eq!(ended.status.code(), Some(2), "nothing is left: {ended:?}");
}

#[test]
fn the_error_for_a_malformed_value_names_what_is_wrong_with_it() {
    for (arguments, reason) in [
        (&["tcp://h:5"][..], "write h:5 without tcp://"),
        (&["a:1,b:2"], "write several addresses with spaces between them, not commas"),
        (&["[::1]"], "the port is missing: [::1]:PORT"),
        (&["[::1]5000"], "the port follows a colon: [::1]:5000"),
        (&["[::1:5000"], "the closing bracket is missing: expected [IPv6]:PORT"),
        (&["[127.0.0.1]:5"], "brackets are for IPv6: write 127.0.0.1:5"),
        (&["[::ffff:127.0.0.1]:5"], "::ffff:127.0.0.1 is an IPv4 address in IPv6: write 127.0.0.1"),
        (&["::1"], "an IPv6 address is written in brackets, with a port: [::1]:PORT"),
        (&["fe80::1%lo:5000"], "an IPv6 address with a port is written in brackets: [fe80::1%lo]:5000"),
        (&["[fe80::1]:5"], "the link-local address fe80::1 needs its interface: fe80::1%eth0"),
        (&["[fe80::1%nope]:5"], r#"there is no interface "nope""#),
        (&["[::1%lo]:5"], "::1 has no interface: only a link-local address (fe80::/10) has one"),
        (&["localhost"], "the port is missing: localhost:PORT"),
        (&["5000"], "a port alone is written :5000"),
        (&["host:http"], "the port must be a number from 0 to 65535"),
        (&[":+80"], "the port must be a number from 0 to 65535"),
        (&["127.0.0.256:5"], "127.0.0.256 is not an IPv4 address, and no name ends in a number"),
        (&["bücher.example:5"], "write the name bücher.example in its ASCII form, which begins with xn--"),
        (&["-c", "-1", ":5"], "expected a count such as 4096, 10k or 1M"),
        (&["-r", "-1", ":5"], "expected a rate such as 2000, 10k or 0.5/s"),
        (&["-s", "-1", ":5"], "expected a size such as 1024 or 64KiB"),
        (&["--source", "-1", ":5"], "-1 is not an IP address"),
        (
            &["--source", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ":5"],
            "there can be at most 65536 source addresses",
        ),
        (&["--source", "255.255.255.255", ":5"], "255.255.255.255 cannot be a source"),
    ] {
        let ended = run_command(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        let first = &ended.stderr[0];
        assert!(first.starts_with("error: invalid value '"), "{arguments:?}: {first}");
        assert!(first.ends_with(&format!(": {reason}")), "{arguments:?}: {first}");
    }
}

/// Gives a namespace an interface `veth-a`, and returns its link-local address once it can be used.
#[track_caller]
fn link_local(namespace: &Namespace) -> String {
    for arguments in [
        &["link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b"][..],
        &["link", "set", "veth-b", "up"],
        // Without duplicate address detection the address can be used at once.
        &["-6", "address", "add", "fe80::1/64", "dev", "veth-a", "nodad"],
        &["link", "set", "veth-a", "up"],
    ] {
        few_ports::run(namespace.command("ip").args(arguments));
    }
    "fe80::1%veth-a".to_owned()
}

#[test]
#[ignore = "needs root: it makes a network namespace with a link-local address"]
fn a_link_local_address_has_a_zone() {
    let namespace = Namespace::new("zone", "20000 20999");
    let ip = link_local(&namespace);
    let address = format!("[{ip}]:5000");
    let _server = namespace.serve(&[&address]);
    for sources in [&[][..], &["--source", &ip]] {
        let report = namespace.load(&[sources, &["-c", "3", "-m", "2", &address]].concat());
        assert_clean(&report);
        assert_eq!(report.messages.verified, 6);
        assert_eq!(report.config.sources.len(), sources.len() / 2);
        let [target] = &report.config.targets[..] else { panic!("{:?}", report.config.targets) };
        assert!(matches!(target.tcp(), Some(SocketAddr::V6(v6)) if v6.scope_id() > 0), "{target}");
    }
}

#[test]
#[ignore = "needs root: it makes a network namespace with a tentative address"]
fn the_hint_for_a_tentative_address_says_so() {
    let namespace = Namespace::new("tentative", "20000 20999");
    link_local(&namespace);
    let detection = "echo 100 > /proc/sys/net/ipv6/conf/veth-a/dad_transmits";
    few_ports::run(namespace.command("sh").args(["-c", detection]));
    few_ports::run(namespace.command("ip").args(["-6", "address", "add", "fd00::5/64", "dev", "veth-a"]));
    let hint = "the address is tentative: try again once its duplicate address detection has ended (see ip address)";
    for arguments in [&["[fd00::5]:5000"][..], &["load", "--source", "fd00::5", "[fd00::5]:5000"]] {
        let ended = namespace.start(arguments).wait();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.iter().any(|line| line.ends_with(hint)), "{ended:?}");
    }
}

/// Writes `/etc/hosts` of a namespace (ip-netns(8)), which is deleted when dropped.
struct Hosts(String);

impl Hosts {
    #[track_caller]
    fn new(namespace: &Namespace, text: &str) -> Self {
        let directory = format!("/etc/netns/{}", namespace.name());
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/hosts"), text).unwrap();
        Self(directory)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
#[ignore = "needs root: it makes a network namespace with a name of two addresses"]
fn a_name_is_one_target_whose_first_address_that_accepts_is_used() {
    let namespace = Namespace::new("name", "20000 20999");
    let _hosts = Hosts::new(&namespace, "::1 both\n127.0.0.1 both\n127.0.0.1 four\n");
    let _server = namespace.serve(&["127.0.0.1:5000"]);
    let targets = |arguments: &[&str]| {
        let report = namespace.load(&[&["-c", "4", "-m", "2"], arguments].concat());
        let failed = report.errors.iter().map(|row| row.count).sum::<u64>();
        (failed, report.config.targets.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let owned = |failed: u64, targets: &[&str]| (failed, targets.iter().map(|&target| target.to_owned()).collect());
    assert_eq!(targets(&["both:5000"]), owned(0, &["127.0.0.1:5000"]));
    assert_eq!(targets(&["-4", "both:5000"]), owned(0, &["127.0.0.1:5000"]));
    assert_eq!(targets(&["-6", "both:5000"]), owned(4, &["[::1]:5000"]));
    assert_eq!(targets(&["-6", "four:5000"]), owned(1, &[]));
    assert_eq!(targets(&["--all-addresses", "both:5000"]), owned(2, &["[::1]:5000", "127.0.0.1:5000"]));
    assert_eq!(targets(&["--source", "127.0.0.2", "both:5000"]), owned(0, &["127.0.0.1:5000"]));
}
