//! `ecoloop load` with few ports: in a network namespace with its own `ip_local_port_range`.

use std::process::Command;

use ecoloop::load::Report;
use ecoloop::load::report::{ErrorName, Phase, Verdict};

use crate::support::{Process, ecoloop, wrapped};

const ADDRESS: &str = "127.0.0.1:5000";
/// The interface of a namespace to another one.
pub(crate) const LINK: &str = "veth0";

/// A network namespace of one test, which is deleted when dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    /// Creates one with `ports` as its `ip_local_port_range`.
    #[track_caller]
    pub(crate) fn new(test: &str, ports: &str) -> Self {
        let namespace = Self(format!("ecoloop-{}-{test}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &namespace.0]));
        run(namespace.command("ip").args(["link", "set", "lo", "up"]));
        let script = format!("echo {ports} > /proc/sys/net/ipv4/ip_local_port_range");
        run(namespace.command("sh").args(["-c", &script]));
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        wrapped(self.enter(), &Command::new(program))
    }

    /// Returns a command that runs what is appended to it in this namespace.
    fn enter(&self) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]);
        command
    }

    /// Connects this namespace, as 10.77.0.1, and another one, as 10.77.0.2.
    #[track_caller]
    pub(crate) fn link_to(&self, other: &Self) {
        // Outside of the namespaces, the tests of one process would share the names.
        let pair = ["link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", &other.0];
        run(self.command("ip").args(pair));
        for (namespace, address) in [(self, "10.77.0.1/24"), (other, "10.77.0.2/24")] {
            run(namespace.command("ip").args(["address", "add", address, "dev", LINK]));
            run(namespace.command("ip").args(["link", "set", LINK, "up"]));
        }
    }

    /// Drops every packet from and to the other namespace, without a word to either end.
    #[track_caller]
    pub(crate) fn cut_link(&self) {
        run(self.command("ip").args(["link", "set", LINK, "down"]));
    }

    #[track_caller]
    pub(crate) fn start(&self, arguments: &[&str]) -> Process {
        Process::start(wrapped(self.enter(), &ecoloop(arguments)))
    }

    #[track_caller]
    pub(crate) fn serve(&self, addresses: &[&str]) -> Process {
        let mut server = self.start(&[&["serve", "--lang", "en"], addresses].concat());
        for _ in addresses {
            server.listening();
        }
        server
    }

    #[track_caller]
    pub(crate) fn load(&self, arguments: &[&str]) -> Report {
        let ended = self.start(&[&["load", "--json", "-"], arguments].concat()).wait();
        let [line] = &ended.stdout[..] else { panic!("not one line: {ended:?}") };
        Report::from_json(line).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[track_caller]
pub(crate) fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn errors(report: &Report) -> Vec<(Phase, ErrorName, u64)> {
    report.errors.iter().map(|row| (row.phase, row.error, row.count)).collect()
}

#[test]
#[ignore = "needs root: it makes a network namespace with a single port"]
fn a_self_connect_is_an_error() {
    let namespace = Namespace::new("self", "20000 20000");
    // There is no listener, and the only port to connect from is the target's.
    let report = namespace.load(&["-d", "100ms", "127.0.0.1:20000"]);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::SelfConnect, 1)]);
    assert_eq!((report.verdict, report.connections.verified), (Verdict::Fail, 0));
    // With `--source` the load generator chooses the port, and skips the target's.
    let report = namespace.load(&["-d", "100ms", "--source", "127.0.0.1", "127.0.0.1:20000"]);
    assert_eq!(errors(&report), [(Phase::Bind, ErrorName::NoPorts, 1)]);
}

#[test]
#[ignore = "needs root: it makes a network namespace with 2000 ports"]
fn churn_never_runs_out_of_ports() {
    let namespace = Namespace::new("churn", "20000 21999");
    let _server = namespace.serve(&[ADDRESS]);
    // First without `--source`: the ports that it leaves in TIME_WAIT can be reused by the runs with `--source`.
    for close in ["rst", "fin"] {
        for sources in [&[][..], &["--source", "127.0.0.1"], &["--source", "127.0.0.2-127.0.0.3"]] {
            let arguments = ["--mode", "churn", "-c", "50", "-d", "3s", "--close", close, ADDRESS];
            let report = namespace.load(&[&arguments, sources].concat());
            assert_eq!((errors(&report), report.verdict == Verdict::Fail), (vec![], false), "{close} {sources:?}");
            let connections = report.connections;
            assert!(connections.verified > 2000, "no port was reused: {close} {sources:?} {connections:?}");
        }
    }
}

#[test]
#[ignore = "needs root: it makes a network namespace with 200 ports"]
fn churn_without_a_free_port_reports_no_ports() {
    let namespace = Namespace::new("none", "20000 20199");
    let _server = namespace.serve(&[ADDRESS]);
    let churn = |more: &[&str]| namespace.load(&[&["--mode", "churn", "-c", "50", "-d", "1s", ADDRESS], more].concat());
    assert!(churn(&["--source", "127.0.0.1"]).connections.verified > 200);
    // The kernel does not assign a port that was bound explicitly while it is in TIME_WAIT.
    let report = churn(&[]);
    assert_eq!(errors(&report), [(Phase::Connect, ErrorName::NoPorts, 1)]);
    assert_eq!((report.verdict, report.connections.opened_total), (Verdict::Fail, 0));
}

#[test]
#[ignore = "needs root: it makes a network namespace with 200 ports"]
fn each_source_and_target_pair_uses_the_whole_port_range() {
    let namespace = Namespace::new("pairs", "20000 20199");
    let targets = [ADDRESS, "127.0.0.1:5001"];
    let _server = namespace.serve(&targets);
    for (source, targets, requested, held) in [
        ("127.0.0.1-127.0.0.3", &targets[..1], 550, 550),
        ("127.0.0.1", &targets[..], 350, 350),
        ("127.0.0.0/30", &targets[..], 700, 700),
        ("127.0.0.1", &targets[..1], 250, 200),
    ] {
        // RST leaves no port in TIME_WAIT for the next run.
        let count = requested.to_string();
        let arguments = ["-m", "2", "--close", "rst", "-c", &count, "--source", source];
        let report = namespace.load(&[&arguments, targets].concat());
        let expected =
            if held < requested { vec![(Phase::Bind, ErrorName::NoPorts, requested - held)] } else { vec![] };
        assert_eq!((report.connections.held, errors(&report)), (held, expected), "{source} to {targets:?}");
        assert_eq!(report.messages.verified, held * 2);
    }
}

#[test]
#[ignore = "needs root: it makes a network namespace with two ports"]
fn a_connection_with_a_fault_gives_its_port_back() {
    let namespace = Namespace::new("fault", "20000 20001");
    let _server = namespace.serve(&[ADDRESS]);
    let arguments = ["-m", "2", "-c", "3", "--max-connecting", "1", "--source", "127.0.0.1", ADDRESS];
    let report = namespace.load(&[&["--fault", "reset=0s,first=1"], &arguments[..]].concat());
    assert_eq!((report.connections.held, errors(&report)), (2, vec![]));
}

#[test]
#[ignore = "needs root: it makes two network namespaces and a link between them"]
fn ports_in_time_wait_are_forecast_and_an_own_source_uses_them_again() {
    const REMOTE: &str = "10.77.0.2:5000";
    let (client, server) = (Namespace::new("client", "20000 20199"), Namespace::new("server", "32768 60999"));
    client.link_to(&server);
    let _server = server.serve(&[REMOTE]);
    let run = ["-m", "2", "-c", "150", REMOTE];
    assert_eq!(client.load(&run).connections.held, 150);

    let doctor = |arguments: &[&str]| client.start(&[&["doctor", "-c", "150"], arguments].concat()).wait();
    let ended = doctor(&[REMOTE]);
    let has = |text: &str| ended.stdout.iter().any(|line| line.contains(text));
    assert!(ended.status.code() == Some(1) && has("TIME_WAIT (150 ports) allows 50 connections"), "{ended:?}");
    assert!(has("--source 10.77.0.1, whose ports in TIME_WAIT can be used again, or a wait of a minute"), "{ended:?}");

    let ended = client.start(&[&["load", "--json", "-"], &run[..]].concat()).wait();
    let report = Report::from_json(&ended.stdout[0]).unwrap();
    assert_eq!((report.connections.held, errors(&report)), (50, vec![(Phase::Connect, ErrorName::NoPorts, 100)]));
    let hint = "connect no_ports 100 times: name this machine's own address with --source";
    assert!(ended.stderr.iter().any(|line| line.contains(hint)), "{ended:?}");
    assert!(
        ended.stderr.iter().any(|line| line.contains("TIME_WAIT (150 ports) allows 50 of 150 connections")),
        "{ended:?}"
    );

    assert_eq!(doctor(&["--source", "10.77.0.1", REMOTE]).status.code(), Some(0));
    let report = client.load(&[&["--source", "10.77.0.1"], &run[..]].concat());
    assert_eq!((report.connections.held, report.verdict), (150, Verdict::Pass));
}

#[test]
#[ignore = "needs root: it makes a network namespace with 200 ports"]
fn a_load_opens_as_many_connections_as_its_warning_says() {
    let namespace = Namespace::new("forecast", "20000 20199");
    let _server = namespace.serve(&[ADDRESS]);
    for (sources, phase) in [(&[][..], Phase::Connect), (&["--source", "127.0.0.1"], Phase::Bind)] {
        let arguments = ["load", "--json", "-", "-m", "2", "--close", "rst", "-c", "1M", ADDRESS];
        let ended = namespace.start(&[&arguments, sources].concat()).wait();
        let report = Report::from_json(&ended.stdout[0]).unwrap();
        let rest = 1_000_000 - 200;
        assert_eq!((report.connections.held, errors(&report)), (200, vec![(phase, ErrorName::NoPorts, rest)]));
        assert!(
            ended.stderr.iter().any(|line| line.contains("200 ports) allows 200 of 1000000 connections")),
            "{ended:?}"
        );
    }
    // Each of the two processes opens half, and they share the ports.
    let jobs = ["load", "-j", "2", "--json", "-", "-m", "2", "--close", "rst", "-c", "300", ADDRESS];
    let ended = namespace.start(&jobs).wait();
    assert!(ended.stderr.iter().any(|line| line.contains("200 ports) allows 200 of 300 connections")), "{ended:?}");
}
