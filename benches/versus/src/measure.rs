//! Measures workloads: windows of load against one server at a time, in rounds of random order, in sessions of new processes.

use std::fs;
use std::time::Duration;

use ecoloop::load::statistics::median;
use serde_json::{Value, json};

use crate::counters;
use crate::generators::{CLIENT_CORE, Generator, TIMEOUT_MARGIN, finish_load, load_command};
use crate::peers::{CONTROL, FLOOR, Peer, SERVER_CORE, Server, Skipped};
use crate::processes::{Job, check_interrupt, sleep, with_realtime_priority};
use crate::report::{Candidate, WorkloadResult};
use crate::workloads::{BURST_CONNECTS, Kind, RATE_POINTER, Workload};

/// Warm-up before a window whose load connects anew.
const WARM_UP: &str = "50ms";
/// After this many failed windows a peer is no longer measured in the workload.
const FAILURES_MAX: usize = 3;
/// Rounds per session of a workload that starts a server for each window: that is slow, and its metrics vary little.
const NEW_SERVER_ROUNDS_MAX: usize = 5;
/// Rounds per session of the burst, which takes two seconds per server.
const BURST_ROUNDS_MAX: usize = 5;
/// Window of a load with a burst, which contains the burst and the recovery from it.
const BURST_WINDOW: &str = "1s";
const BURST_WARM_UP: &str = "100ms";
/// Time from the start of the load to the burst.
const BURST_DELAY: Duration = Duration::from_millis(500);
const IDLE_WINDOW: &str = "300ms";
const FLOOR_RATE_WINDOWS: usize = 5;

/// Measures one peer in one workload.
struct Runner<'a> {
    peer: &'a Peer,
    /// None between sessions, in a workload that starts a server for each window, and after a failed start.
    session: Option<Session>,
    candidate: Candidate,
    failures: Vec<String>,
}

/// The processes that last for a session.
struct Session {
    server: Server,
    /// None in a workload whose load connects anew in each window.
    generator: Option<Generator>,
}

enum Outcome {
    Measured(Value),
    /// The load generator did not keep its schedule or was saturated, so the window says nothing about the server.
    Late,
}

pub(crate) struct Settings {
    pub(crate) sessions: usize,
    pub(crate) rounds_per_session: usize,
    pub(crate) window: Duration,
}

pub(crate) fn measure(workload: &Workload, peers: &[Peer], settings: &Settings) -> Result<WorkloadResult, String> {
    let (sessions, rounds) = match workload.kind {
        Kind::Idle | Kind::Counts => (1, settings.rounds_per_session.min(NEW_SERVER_ROUNDS_MAX)),
        Kind::Burst => (settings.sessions, settings.rounds_per_session.min(BURST_ROUNDS_MAX)),
        Kind::ClosedLoop | Kind::OpenLoop | Kind::Churn | Kind::CrossCheck => {
            (settings.sessions, settings.rounds_per_session)
        }
    };
    let mut result = WorkloadResult {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        load: format!("-c {} {}", workload.connections, workload.load),
        buffer_bytes: workload.buffer_bytes,
        rate_per_s: None,
        baseline: FLOOR.to_owned(),
        control: Some(CONTROL.to_owned()),
        metrics: workload.metrics.clone(),
        sessions,
        rounds: sessions * rounds,
        skipped: Vec::new(),
        candidates: Vec::new(),
    };
    let window = settings.window * workload.window_factor;
    if workload.kind == Kind::CrossCheck {
        cross_check(workload, peers, window, [sessions, rounds], &mut result)?;
        return Ok(result);
    }
    if workload.kind == Kind::Counts {
        counters::check_tools()?;
    }
    if workload.kind == Kind::OpenLoop {
        result.rate_per_s = Some(twentieth_of_floor_rate(workload, peers, window)?);
    }

    let mut runners = runners(workload, peers, &mut result.skipped);
    for session in 1..=sessions {
        // A random order of connecting, too.
        fastrand::shuffle(&mut runners);
        for runner in &mut runners {
            check_interrupt()?;
            runner.start_session(workload, window, result.rate_per_s);
        }
        for round in 1..=rounds {
            eprintln!("{}: session {session} of {sessions}, round {round} of {rounds}", workload.name);
            fastrand::shuffle(&mut runners);
            for runner in &mut runners {
                check_interrupt()?;
                let outcome = runner.measure(workload, window);
                check_interrupt()?;
                runner.record(workload, outcome);
            }
        }
        for runner in &mut runners {
            runner.end_session(workload);
        }
    }
    for peer in peers {
        let Some(at) = runners.iter().position(|runner| runner.peer.name == peer.name) else { continue };
        let runner = runners.swap_remove(at);
        if let Some(last) = runner.failures.last() {
            let reason = format!("failures: {}, the last one: {last}", runner.failures.len());
            result.skipped.push(Skipped { name: peer.name.clone(), reason });
        }
        if runner.candidate.has_samples() || runner.failures.is_empty() {
            result.candidates.push(runner.candidate);
        }
    }
    Ok(result)
}

/// Returns a runner for each peer that supports the workload's number of connections.
fn runners<'a>(workload: &Workload, peers: &'a [Peer], skipped: &mut Vec<Skipped>) -> Vec<Runner<'a>> {
    let mut runners = Vec::new();
    let connections = workload.connections + if workload.kind == Kind::Burst { BURST_CONNECTS } else { 0 };
    for peer in peers {
        if let Some(reason) = peer.unsupported(connections) {
            skipped.push(Skipped { name: peer.name.clone(), reason });
        } else {
            let candidate = Candidate::new(&peer.name, &workload.metrics);
            runners.push(Runner { peer, session: None, candidate, failures: Vec::new() });
        }
    }
    runners
}

impl Runner<'_> {
    fn has_failed(&self) -> bool {
        self.failures.len() >= FAILURES_MAX
    }

    fn start_session(&mut self, workload: &Workload, window: Duration, rate: Option<f64>) {
        if self.has_failed() || matches!(workload.kind, Kind::Idle | Kind::Counts) {
            return;
        }
        match Session::start(workload, self.peer, window, rate) {
            Ok(session) => self.session = Some(session),
            Err(error) => self.fail(workload, error),
        }
    }

    fn end_session(&mut self, workload: &Workload) {
        let Some(Session { server, generator }) = self.session.take() else { return };
        let result = generator.map_or(Ok(()), Generator::finish);
        // After the generator, whose connections would be reset otherwise.
        drop(server);
        if let Err(error) = result
            && self.failures.is_empty()
        {
            self.fail(workload, error);
        }
    }

    fn fail(&mut self, workload: &Workload, error: String) {
        eprintln!("{}: {}: {error}", workload.name, self.peer.name);
        self.failures.push(error);
    }

    /// Measures one window, or returns `None` if the peer is no longer measured.
    fn measure(&mut self, workload: &Workload, window: Duration) -> Option<Result<Outcome, String>> {
        if self.has_failed() {
            return None;
        }
        match workload.kind {
            Kind::Counts => Some(Ok(Outcome::Measured(counters::count(workload, self.peer)))),
            Kind::Idle => Some(idle(workload, self.peer)),
            _ => Some(self.session.as_mut()?.measure(workload, window)),
        }
    }

    fn record(&mut self, workload: &Workload, outcome: Option<Result<Outcome, String>>) {
        let report = match outcome {
            Some(Ok(Outcome::Measured(report))) => report,
            Some(Ok(Outcome::Late)) => {
                self.candidate.late_windows += 1;
                Value::Null
            }
            Some(Err(error)) => {
                self.fail(workload, error);
                Value::Null
            }
            None => Value::Null,
        };
        self.candidate.record(&workload.metrics, &report);
    }
}

impl Session {
    fn start(workload: &Workload, peer: &Peer, window: Duration, rate: Option<f64>) -> Result<Self, String> {
        let server = Server::start(peer, workload.buffer_bytes, &[])?;
        let generator = match workload.kind {
            Kind::ClosedLoop | Kind::OpenLoop => Some(Generator::start(workload, &server, window, rate)?),
            _ => None,
        };
        Ok(Self { server, generator })
    }

    fn measure(&mut self, workload: &Workload, window: Duration) -> Result<Outcome, String> {
        let Self { server, generator } = self;
        if let Some(generator) = generator {
            let report = generator.measure(server)?;
            return Ok(if is_late(&report) { Outcome::Late } else { Outcome::Measured(report) });
        }
        let outcome = if workload.kind == Kind::Burst {
            burst(workload, server)
        } else {
            let arguments = ["-d", &format!("{}us", window.as_micros()), "--warmup", WARM_UP];
            run_load(workload, server, &arguments, window + TIMEOUT_MARGIN).map(Outcome::Measured)
        };
        let idle = server.wait_until_idle();
        // Why a window failed comes first: its connections may be what keeps the server busy.
        let outcome = outcome?;
        idle.map(|_| outcome)
    }
}

/// Measures the memory of idle connections, against a new server.
fn idle(workload: &Workload, peer: &Peer) -> Result<Outcome, String> {
    let server = Server::start(peer, workload.buffer_bytes, &[])?;
    run_load(workload, &server, &["-d", IDLE_WINDOW], TIMEOUT_MARGIN).map(Outcome::Measured)
}

/// Returns whether a window of an open loop was inconclusive. In a closed loop a saturated generator is the normal case: the workload
/// measures the server's CPU time.
fn is_late(report: &Value) -> bool {
    report["verdict"] == "inconclusive" && report["loop"] == "open"
}

fn run_load(workload: &Workload, server: &Server, arguments: &[&str], timeout: Duration) -> Result<Value, String> {
    let mut command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, arguments);
    finish_load(Job::start(&mut command)?, timeout)
}

/// Returns a twentieth of the floor's messages per second in a closed loop.
fn twentieth_of_floor_rate(workload: &Workload, peers: &[Peer], window: Duration) -> Result<f64, String> {
    let server = Server::start(floor(peers)?, workload.buffer_bytes, &[])?;
    let mut generator = Generator::start(workload, &server, window, None)?;
    let mut rates = Vec::new();
    for _ in 0..FLOOR_RATE_WINDOWS {
        rates.extend(generator.next_report()?.pointer(RATE_POINTER).and_then(Value::as_f64));
    }
    generator.finish()?;
    let rate = median(&rates).ok_or("the floor's windows have no rate")?;
    // Rounded to hundreds, for readability.
    Ok((rate / 2000.0).round() * 100.0)
}

fn floor(peers: &[Peer]) -> Result<&Peer, String> {
    peers.iter().find(|peer| peer.name == FLOOR).ok_or_else(|| format!("the peer {FLOOR:?} is missing"))
}

/// Measures the load on open connections twice, without and with a burst of connects, which comes from the server's core.
fn burst(workload: &Workload, server: &Server) -> Result<Outcome, String> {
    let window = ["-d", BURST_WINDOW, "--warmup", BURST_WARM_UP];
    let start_load = || {
        let command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, &window);
        Job::start(&mut with_realtime_priority(&command))
    };
    let without_burst = finish_load(start_load()?, TIMEOUT_MARGIN)?;
    let before = kernel_counters()?;
    let load = start_load()?;
    sleep(BURST_DELAY)?;
    let connecting = BURST_CONNECTS.to_string();
    let connects = ["-s", "64", "-m", "1", "--max-connecting", &connecting];
    let mut command = load_command(SERVER_CORE, BURST_CONNECTS, "", server, &connects);
    let burst = finish_load(Job::start(&mut command)?, TIMEOUT_MARGIN)?;
    let with_burst = finish_load(load, TIMEOUT_MARGIN)?;
    if is_late(&without_burst) || is_late(&with_burst) {
        return Ok(Outcome::Late);
    }
    let after = kernel_counters()?;
    let kernel: serde_json::Map<_, _> = before
        .into_iter()
        .zip(after)
        .map(|((name, before), (_, after))| (name.to_owned(), after.saturating_sub(before).into()))
        .collect();
    Ok(Outcome::Measured(
        json!({ "without_burst": without_burst, "with_burst": with_burst, "burst": burst, "kernel": kernel }),
    ))
}

/// Reads counters of the whole network namespace.
fn kernel_counters() -> Result<[(&'static str, u64); 2], String> {
    const FILE: &str = "/proc/net/netstat";
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let counter = |name| kernel_counter(&text, name).ok_or_else(|| format!("no {name} in {FILE}"));
    Ok([("ListenOverflows", counter("ListenOverflows")?), ("TCPSynRetrans", counter("TCPSynRetrans")?)])
}

/// Finds a counter in a line of names followed by a line of numbers.
fn kernel_counter(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let column = lines.next()?.split_ascii_whitespace().position(|heading| heading == name)?;
    lines.next()?.split_ascii_whitespace().nth(column)?.parse().ok()
}

/// Measures one server with two load generators that share no code, both connected for a session.
fn cross_check(
    workload: &Workload,
    peers: &[Peer],
    window: Duration,
    [sessions, rounds]: [usize; 2],
    result: &mut WorkloadResult,
) -> Result<(), String> {
    const C_CLIENT: &str = "epoll_client";
    const ECOLOOP_LOAD: &str = "ecoloop load";
    let floor = floor(peers)?;
    let mut candidates = [ECOLOOP_LOAD, C_CLIENT].map(|name| Candidate::new(name, &workload.metrics));
    for session in 1..=sessions {
        let server = Server::start(floor, workload.buffer_bytes, &[])?;
        let mut ecoloop_load = Generator::start(workload, &server, window, None)?;
        let mut c_client = Generator::start_c_client(workload, &server, window)?;
        for round in 1..=rounds {
            eprintln!("{}: session {session} of {sessions}, round {round} of {rounds}", workload.name);
            fastrand::shuffle(&mut candidates);
            for candidate in &mut candidates {
                let report = if candidate.name == C_CLIENT {
                    c_client.measure_c_client()?
                } else {
                    // One window as a warm-up, because the client in C warms up before each window.
                    ecoloop_load.next_report()?;
                    ecoloop_load.measure(&server)?
                };
                candidate.record(&workload.metrics, &report);
            }
        }
        ecoloop_load.finish()?;
        c_client.finish()?;
    }
    candidates.sort_by(|one, other| one.name.cmp(&other.name));
    C_CLIENT.clone_into(&mut result.baseline);
    result.control = None;
    result.candidates = candidates.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_counter_is_read_from_the_column_of_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows TCPSynRetrans\nTcpExt: 1 20 300\nIpExt: A\nIpExt: 4\n";
        assert_eq!(kernel_counter(text, "ListenOverflows"), Some(20));
        assert_eq!(kernel_counter(text, "TCPSynRetrans"), Some(300));
        assert_eq!(kernel_counter(text, "A"), None);
    }
}
