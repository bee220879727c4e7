//! Slices: one window of load against one server, in rounds of random order, in sittings of new processes.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::generators::{CLIENT_CORE, ECOLOOP, Generator, OVERTIME, failure};
use crate::peers::{CONTROL, FLOOR, LeftOut, Peer, SERVER_CORE, Server};
use crate::processes::{Job, before_others, check_interrupt, pinned, reason, sleep};
use crate::report::{Contestant, Measured};
use crate::statistics::median;
use crate::tools;
use crate::workloads::{BURST_CONNECTS, Kind, RATE_POINTER, Workload};

/// Before the window of a load that connects in each slice.
const WARM_UP: &str = "50ms";
/// Slices that may fail before a peer is left out of a workload.
const FAILURES_MAX: usize = 3;
/// A server of one's own in each slice takes time, and what is measured of it varies little.
const OWN_SERVER_ROUNDS_MAX: usize = 5;
/// Of a sitting: a slice is two windows of a second.
const BURST_ROUNDS_MAX: usize = 5;
/// Long enough for a burst and what it leaves behind.
const BURST_WINDOW: &str = "1s";
const BURST_WARM_UP: &str = "100ms";
/// From the start of the load to the burst in its window.
const BURST_DELAY: Duration = Duration::from_millis(500);
const IDLE_TIME: &str = "300ms";

/// A peer with what was measured of it.
struct Entry<'a> {
    peer: &'a Peer,
    /// None between sittings, in a workload that starts a server for each slice, and where none could be started.
    seat: Option<Seat>,
    contestant: Contestant,
    failures: Vec<String>,
}

/// What lasts for a sitting.
struct Seat {
    server: Server,
    /// None in a workload whose load connects anew in each slice.
    generator: Option<Generator>,
}

enum Outcome {
    Measured(Value),
    /// The load generator was late: what it saw is not the server's doing.
    Late,
}

pub(crate) struct Settings {
    pub(crate) sittings: usize,
    /// Of a sitting.
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

pub(crate) fn measure(workload: &Workload, peers: &[Peer], wanted: &Settings) -> Result<Measured, String> {
    let (sittings, rounds) = match workload.kind {
        Kind::Idle | Kind::Counts => (1, wanted.rounds.min(OWN_SERVER_ROUNDS_MAX)),
        Kind::Burst => (wanted.sittings, wanted.rounds.min(BURST_ROUNDS_MAX)),
        Kind::Load | Kind::Churn | Kind::Open | Kind::CrossCheck => (wanted.sittings, wanted.rounds),
    };
    let mut measured = Measured {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        load: format!("-c {} {}", workload.connections, workload.load),
        buffer_bytes: workload.buffer_bytes,
        rate_per_s: None,
        baseline: FLOOR.to_owned(),
        control: Some(CONTROL.to_owned()),
        figures: workload.figures.clone(),
        sittings,
        rounds: sittings * rounds,
        left_out: Vec::new(),
        contestants: Vec::new(),
    };
    let slice = wanted.slice * workload.stretch;
    if workload.kind == Kind::CrossCheck {
        cross_check(workload, peers, slice, [sittings, rounds], &mut measured)?;
        return Ok(measured);
    }
    if workload.kind == Kind::Counts {
        tools::check()?;
    }
    if workload.kind == Kind::Open {
        measured.rate_per_s = Some(half_of_the_floor(workload, peers, slice)?);
    }

    let mut entries = enter(workload, peers, &mut measured.left_out);
    for sitting in 1..=sittings {
        // So that it is not always the same that connects first.
        fastrand::shuffle(&mut entries);
        for entry in &mut entries {
            check_interrupt()?;
            entry.sit_down(workload, slice, measured.rate_per_s);
        }
        for round in 1..=rounds {
            eprintln!("{}: sitting {sitting} of {sittings}, round {round} of {rounds}", workload.name);
            fastrand::shuffle(&mut entries);
            for entry in &mut entries {
                check_interrupt()?;
                let outcome = entry.slice(workload, slice);
                check_interrupt()?;
                entry.record(workload, outcome);
            }
        }
        for entry in &mut entries {
            entry.get_up(workload);
        }
    }
    for peer in peers {
        let Some(at) = entries.iter().position(|entry| entry.peer.name == peer.name) else { continue };
        let entry = entries.swap_remove(at);
        if let Some(why) = entry.failures.last() {
            let why = format!("failures: {}, the last one: {why}", entry.failures.len());
            measured.left_out.push(LeftOut { name: peer.name.clone(), why });
        }
        if entry.contestant.has_any() || entry.failures.is_empty() {
            measured.contestants.push(entry.contestant);
        }
    }
    Ok(measured)
}

/// The peers that take part.
fn enter<'a>(workload: &Workload, peers: &'a [Peer], left_out: &mut Vec<LeftOut>) -> Vec<Entry<'a>> {
    let mut entries = Vec::new();
    let connections = workload.connections + if workload.kind == Kind::Burst { BURST_CONNECTS } else { 0 };
    for peer in peers {
        if let Some(why) = peer.refuses(connections) {
            left_out.push(LeftOut { name: peer.name.clone(), why });
        } else {
            let contestant = Contestant::new(&peer.name, &workload.figures);
            entries.push(Entry { peer, seat: None, contestant, failures: Vec::new() });
        }
    }
    entries
}

impl Seat {
    fn take(workload: &Workload, peer: &Peer, slice: Duration, rate: Option<f64>) -> Result<Self, String> {
        let server = Server::start(peer, workload.buffer_bytes, &[])?;
        let generator = match workload.kind {
            Kind::Load | Kind::Open => Some(Generator::start(workload, &server, slice, rate)?),
            _ => None,
        };
        Ok(Self { server, generator })
    }
}

impl Entry<'_> {
    fn has_failed(&self) -> bool {
        self.failures.len() >= FAILURES_MAX
    }

    fn sit_down(&mut self, workload: &Workload, slice: Duration, rate: Option<f64>) {
        if self.has_failed() || matches!(workload.kind, Kind::Idle | Kind::Counts) {
            return;
        }
        match Seat::take(workload, self.peer, slice, rate) {
            Ok(seat) => self.seat = Some(seat),
            Err(why) => self.fail(workload, why),
        }
    }

    /// Ends what lasted for a sitting.
    fn get_up(&mut self, workload: &Workload) {
        let Some(Seat { server, generator }) = self.seat.take() else { return };
        let end = generator.map_or(Ok(()), Generator::end);
        // Not before the generator: that would be an error of its connections.
        drop(server);
        if let Err(why) = end
            && self.failures.is_empty()
        {
            self.fail(workload, why);
        }
    }

    fn fail(&mut self, workload: &Workload, why: String) {
        eprintln!("{}: {}: {why}", workload.name, self.peer.name);
        self.failures.push(why);
    }

    /// None where there is nothing to measure.
    fn slice(&mut self, workload: &Workload, slice: Duration) -> Option<Result<Outcome, String>> {
        if self.has_failed() {
            return None;
        }
        match workload.kind {
            Kind::Counts => Some(Ok(Outcome::Measured(tools::count(workload, self.peer)))),
            Kind::Idle => Some(idle(workload, self.peer)),
            _ => Some(self.seat.as_mut()?.slice(workload, slice)),
        }
    }

    fn record(&mut self, workload: &Workload, outcome: Option<Result<Outcome, String>>) {
        let document = match outcome {
            Some(Ok(Outcome::Measured(document))) => document,
            Some(Ok(Outcome::Late)) => {
                self.contestant.late += 1;
                Value::Null
            }
            Some(Err(why)) => {
                self.fail(workload, why);
                Value::Null
            }
            None => Value::Null,
        };
        self.contestant.push(&workload.figures, &document);
    }
}

impl Seat {
    fn slice(&mut self, workload: &Workload, slice: Duration) -> Result<Outcome, String> {
        let Self { server, generator } = self;
        if let Some(generator) = generator {
            let document = generator.measure(server)?;
            return Ok(if is_late(&document) { Outcome::Late } else { Outcome::Measured(document) });
        }
        let outcome = if workload.kind == Kind::Burst {
            burst(workload, server)
        } else {
            let window = ["-d", &format!("{}us", slice.as_micros()), "--warmup", WARM_UP];
            run_load(workload, server, &window, slice + OVERTIME).map(Outcome::Measured)
        };
        server.settle()?;
        outcome
    }
}

/// Against a server of its own.
fn idle(workload: &Workload, peer: &Peer) -> Result<Outcome, String> {
    let server = Server::start(peer, workload.buffer_bytes, &[])?;
    run_load(workload, &server, &["-d", IDLE_TIME], OVERTIME).map(Outcome::Measured)
}

fn is_late(document: &Value) -> bool {
    document.pointer("/schedule/kept") == Some(&Value::Bool(false))
}

/// `ecoloop load` on the clients' core. What it reports of a server of several processes would be of one of them.
pub(crate) fn load_command(core: u32, connections: u32, load: &str, server: &Server, arguments: &[&str]) -> Command {
    let mut command = pinned(core, ECOLOOP);
    command.args(["load", "-q", "--json", "-", "--close", "rst", "-c", &connections.to_string()]);
    command.args(load.split_ascii_whitespace()).args(arguments);
    if server.is_one_process {
        command.args(["--server-pid", &server.process.id().to_string()]);
    }
    command.arg(server.address.to_string());
    command
}

fn run_load(workload: &Workload, server: &Server, arguments: &[&str], limit: Duration) -> Result<Value, String> {
    let mut command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, arguments);
    finish_load(Job::start(&mut command)?, limit)
}

/// Its document, if no threshold failed.
pub(crate) fn finish_load(job: Job, limit: Duration) -> Result<Value, String> {
    let output = job.wait(limit).map_err(|why| format!("ecoloop load: {why}"))?;
    let document = serde_json::from_str::<Value>(&output.text);
    if output.status.success() {
        return document.map_err(|error| format!("ecoloop load: {error}"));
    }
    let why = document.as_ref().ok().and_then(failure).unwrap_or_else(|| reason(output.status, &output.errors));
    Err(format!("ecoloop load: {why}"))
}

/// Messages a second that half of the floor's capacity is.
fn half_of_the_floor(workload: &Workload, peers: &[Peer], slice: Duration) -> Result<f64, String> {
    let server = Server::start(floor(peers)?, workload.buffer_bytes, &[])?;
    let mut generator = Generator::start(workload, &server, slice, None)?;
    let mut rates = Vec::new();
    for _ in 0..5 {
        rates.extend(generator.ask()?.pointer(RATE_POINTER).and_then(Value::as_f64));
    }
    generator.end()?;
    let rate = median(&rates).ok_or("the floor has no rate")?;
    // In hundreds, to be read.
    Ok((rate / 200.0).round() * 100.0)
}

fn floor(peers: &[Peer]) -> Result<&Peer, String> {
    peers.iter().find(|peer| peer.name == FLOOR).ok_or_else(|| "the floor is not there".to_owned())
}

/// The load on connections that are there already, without the burst and with it. The burst comes from the server's core.
fn burst(workload: &Workload, server: &Server) -> Result<Outcome, String> {
    let window = ["-d", BURST_WINDOW, "--warmup", BURST_WARM_UP];
    let steady = || {
        let command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, &window);
        Job::start(&mut before_others(&command))
    };
    let quiet = finish_load(steady()?, OVERTIME)?;
    let before = kernel_counters()?;
    let steady = steady()?;
    sleep(BURST_DELAY)?;
    let at_once = BURST_CONNECTS.to_string();
    let connects = ["-s", "64", "-m", "1", "--max-connecting", &at_once];
    let mut command = load_command(SERVER_CORE, BURST_CONNECTS, "", server, &connects);
    let burst = finish_load(Job::start(&mut command)?, OVERTIME)?;
    let disturbed = finish_load(steady, OVERTIME)?;
    if is_late(&quiet) || is_late(&disturbed) {
        return Ok(Outcome::Late);
    }
    let after = kernel_counters()?;
    let more: serde_json::Map<_, _> = before
        .into_iter()
        .zip(after)
        .map(|((name, before), (_, after))| (name.to_owned(), after.saturating_sub(before).into()))
        .collect();
    Ok(Outcome::Measured(json!({ "quiet": quiet, "disturbed": disturbed, "burst": burst, "kernel": more })))
}

/// Of the whole network namespace.
fn kernel_counters() -> Result<[(&'static str, u64); 2], String> {
    const FILE: &str = "/proc/net/netstat";
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let counter = |name| kernel_counter(&text, name).ok_or_else(|| format!("{FILE} has no {name}"));
    Ok([("ListenOverflows", counter("ListenOverflows")?), ("TCPSynRetrans", counter("TCPSynRetrans")?)])
}

/// A line of names, and one of numbers.
fn kernel_counter(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let at = lines.next()?.split_ascii_whitespace().position(|at| at == name)?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

/// The same server, by two clients that share no code, both connected for a sitting.
fn cross_check(
    workload: &Workload,
    peers: &[Peer],
    slice: Duration,
    [sittings, rounds]: [usize; 2],
    measured: &mut Measured,
) -> Result<(), String> {
    const C: &str = "epoll_client";
    const OURS: &str = "ecoloop load";
    let floor = floor(peers)?;
    let mut contestants = [OURS, C].map(|name| Contestant::new(name, &workload.figures));
    for sitting in 1..=sittings {
        let server = Server::start(floor, workload.buffer_bytes, &[])?;
        let mut ours = Generator::start(workload, &server, slice, None)?;
        let mut theirs = Generator::start_in_c(workload, &server, slice)?;
        for round in 1..=rounds {
            eprintln!("{}: sitting {sitting} of {sittings}, round {round} of {rounds}", workload.name);
            fastrand::shuffle(&mut contestants);
            for contestant in &mut contestants {
                let document = if contestant.name == C {
                    theirs.measure_in_c()?
                } else {
                    // The other one warms up in each slice, too.
                    ours.ask()?;
                    ours.measure(&server)?
                };
                contestant.push(&workload.figures, &document);
            }
        }
        ours.end()?;
        theirs.end()?;
    }
    contestants.sort_by(|one, other| one.name.cmp(&other.name));
    C.clone_into(&mut measured.baseline);
    measured.control = None;
    measured.contestants = contestants.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_stands_below_its_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows TCPSynRetrans\nTcpExt: 1 20 300\nIpExt: A\nIpExt: 4\n";
        assert_eq!(kernel_counter(text, "ListenOverflows"), Some(20));
        assert_eq!(kernel_counter(text, "TCPSynRetrans"), Some(300));
        assert_eq!(kernel_counter(text, "A"), None);
    }
}
