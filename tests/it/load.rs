//! `ecoloop load`, against this crate's server and against faulty servers.

mod accounting;
mod addresses;
mod breakdown;
mod churn;
mod command_line;
mod connecting;
mod failures;
mod faults;
pub(crate) mod faulty_server;
mod hold;
mod library;
mod metrics;
mod page;
mod proxy_protocol;
mod reconnect;
mod report;
mod running;
mod schedule;
mod search;
mod sizes;
mod stages;
mod timing;
mod unix;
mod verification;
mod windows;

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ecoloop::load::report::{Ended as RunEnded, ErrorName, Phase, Verdict};
use ecoloop::load::{self, Config, Interrupt, ProgressCell, Report};
use ecoloop::transport::AnyAddress;
use ecoloop::{Config as ServerConfig, Stats};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::{Ended, Process, TIMEOUT, ecoloop, join, serve};

/// Message size, in bytes.
const SIZE: usize = 64;
/// The timeout of a run in which one expires.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections of a run against a faulty server, and which of them has the fault.
const CONNECTIONS: usize = 3;
const FAULTY_CONNECTION: usize = 1;

/// Returns settings whose timeouts do not expire on a loaded machine.
fn config(address: impl Into<AnyAddress>) -> Config {
    let mut config = Config::new([address]);
    config.timeout = TIMEOUT;
    config.connect_timeout = TIMEOUT;
    config.size = SIZE;
    config
}

/// Listens on a port of 127.0.0.1 with room for one connection: the kernel queues one more than the backlog (listen(2) on Linux).
/// Returns the socket and its address.
#[track_caller]
fn listen_with_room_for_one() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Runs a load within twice [`TIMEOUT`], and checks the sums of its report. A lost message times out before, and the report shows it.
#[track_caller]
fn run(config: Config) -> Report {
    let (sender, report) = mpsc::channel();
    let interrupt = Interrupt::default();
    thread::spawn(move || sender.send(Box::new(load::run(config, &interrupt, &ProgressCell::default()).unwrap())));
    let report = report.recv_timeout(TIMEOUT * 2).expect("the run has not ended");
    assert_sums(&report);
    *report
}

/// Asserts that each due message is counted exactly once, and has a latency.
#[track_caller]
fn assert_sums(report: &Report) {
    let messages = report.messages;
    let sum = messages.unsent + messages.verified + messages.unanswered + messages.failed;
    assert_eq!(messages.due, sum, "{messages:?}");
    let first = report.hold.as_ref().map(|hold| (hold.first_us.count, hold.first_us.censored)).unwrap_or_default();
    let latencies = (report.latency_us.count + first.0, report.latency_us.censored + first.1);
    assert_eq!(latencies, (messages.due, messages.due - messages.verified), "{messages:?}");
    if let Some(hold) = &report.hold {
        assert_eq!(hold.alive + hold.late + hold.unasked, report.connections.held, "{hold:?}");
        let outcomes = hold.alive + hold.late + hold.reset + hold.closed + hold.silent + hold.unasked + hold.failed;
        let established = report.connections.established;
        assert!(outcomes <= established, "{hold:?}");
        // A connection has one outcome, or none where it was still waiting for its first reply when the run, or its outage, ended.
        let is_cut = report.ended == RunEnded::Interrupted || report.outages.is_some();
        assert!(is_cut || outcomes == established, "{hold:?}");
    }
}

/// Asserts that all that was due was sent, and came back.
#[track_caller]
fn assert_clean(report: &Report) {
    assert_all_returned(report);
    assert_eq!(report.messages.unsent, 0);
}

/// Asserts that each connection of a churn at a rate was opened, and had its one message back. On a loaded machine, the last ones may
/// have no turn before the end of the window.
#[track_caller]
fn assert_opened(report: &Report) {
    assert_all_returned(report);
    let messages = report.messages;
    assert_eq!(report.connections.opened_total, messages.verified);
    assert!(messages.verified > 0, "{messages:?}");
}

/// Asserts that all that was sent came back.
#[track_caller]
fn assert_all_returned(report: &Report) {
    assert_eq!((&report.errors[..], &report.verify.findings[..]), (&[][..], &[][..]));
    let messages = report.messages;
    assert_eq!((messages.unanswered, messages.failed), (0, 0), "{messages:?}");
    // A loaded machine can keep the generator from its schedule, or from its core.
    let has_passed = matches!(report.verdict, Verdict::Pass | Verdict::Inconclusive);
    assert!(has_passed && report.ended == RunEnded::Complete, "{:?}: {:?}", report.verdict, report.thresholds);
}

type ErrorRow<'a> = (Phase, ErrorName, Option<&'a str>, u64);

fn errors(report: &Report) -> Vec<ErrorRow<'_>> {
    report.errors.iter().map(|row| (row.phase, row.error, row.errno.as_deref(), row.count)).collect()
}

/// Runs a load against a server of this process, and asserts that its counters agree with the report.
#[track_caller]
fn run_on_server(change: impl FnOnce(&mut Config)) -> (Report, Stats) {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    change(&mut config);
    let report = run(config);
    server.handle().drain();
    let stats = join(server).stats;
    assert_eq!(stats.accepted, report.connections.opened_total);
    assert_eq!(stats.bytes_in, stats.bytes_out);
    (report, stats)
}

#[track_caller]
fn run_command(arguments: &[&str]) -> Ended {
    Process::start(ecoloop(&[&["load"], arguments].concat())).wait()
}

/// Returns the exit status of a verdict.
fn status(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Fail => 1,
        Verdict::Inconclusive => 3,
        Verdict::Interrupted | Verdict::Running => 130,
    }
}

/// Parses the one document on standard output.
#[track_caller]
fn document(ended: &Ended) -> (Value, Report) {
    let [line] = &ended.stdout[..] else { panic!("not one line: {ended:?}") };
    let report = Report::from_json(line).unwrap();
    assert_sums(&report);
    assert_eq!(ended.status.code(), Some(status(report.verdict)), "{ended:?}");
    (serde_json::from_str(line).unwrap(), report)
}
