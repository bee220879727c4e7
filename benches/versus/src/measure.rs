//! Slices: one run of the load generator against one server, in rounds of random order.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::peers::{CONTROL, FLOOR, LeftOut, Peer, SERVER_CORE, Server};
use crate::processes::{Job, check_interrupt, output_of, pinned, reason, sleep};
use crate::report::{Contestant, Measured};
use crate::statistics::median;
use crate::tools;
use crate::workloads::{BURST_CONNECTS, Kind, RATE_POINTER, Workload};

const ECOLOOP: &str = "../../target/release/ecoloop";
const C_CLIENT: &str = "../floor/epoll_client";
const CLIENT_CORE: u32 = 1;
const WARM_UP: Duration = Duration::from_millis(50);
/// What a slice may take longer than its measured window: ten thousand connects, and the last answers.
const OVERTIME: Duration = Duration::from_secs(60);
/// Slices that may fail before a peer is left out of a workload.
const FAILURES_MAX: usize = 3;
/// A server of one's own in each round takes time, and its memory varies little.
const IDLE_ROUNDS_MAX: usize = 7;
/// Long enough for a burst and what it leaves behind.
const BURST_WINDOW: &str = "1s";
const BURST_WARM_UP: &str = "100ms";
/// From the start of the load to the burst in its window.
const BURST_DELAY: Duration = Duration::from_millis(500);
const IDLE_TIME: &str = "300ms";

/// A server with what was measured of it.
struct Entry<'a> {
    peer: &'a Peer,
    /// None in a workload that starts one for each slice.
    server: Option<Server>,
    contestant: Contestant,
    failures: Vec<String>,
}

enum Outcome {
    Measured(Value),
    /// The load generator was late: what it saw is not the server's doing.
    Late,
}

pub(crate) struct Settings {
    pub(crate) rounds: usize,
    pub(crate) slice: Duration,
}

pub(crate) fn measure(workload: &Workload, peers: &[Peer], settings: &Settings) -> Result<Measured, String> {
    let mut measured = Measured {
        name: workload.name.to_owned(),
        title: workload.title.clone(),
        load: format!("-c {} {}", workload.connections, workload.load),
        buffer_bytes: workload.buffer_bytes,
        rate_per_s: None,
        baseline: FLOOR.to_owned(),
        control: Some(CONTROL.to_owned()),
        figures: workload.figures.clone(),
        rounds: match workload.kind {
            Kind::Counts => 1,
            Kind::Idle => settings.rounds.min(IDLE_ROUNDS_MAX),
            _ => settings.rounds,
        },
        left_out: Vec::new(),
        contestants: Vec::new(),
    };
    if workload.kind == Kind::CrossCheck {
        cross_check(workload, peers, settings, &mut measured)?;
        return Ok(measured);
    }
    if workload.kind == Kind::Counts {
        tools::check()?;
    }

    let mut entries = start(workload, peers, &mut measured.left_out)?;
    if workload.kind == Kind::Open {
        measured.rate_per_s = Some(half_of_the_floor(workload, &entries, settings)?);
    }
    for round in 1..=measured.rounds {
        eprintln!("{}: round {round} of {}", workload.name, measured.rounds);
        fastrand::shuffle(&mut entries);
        for entry in &mut entries {
            check_interrupt()?;
            if entry.failures.len() < FAILURES_MAX {
                let outcome = slice(workload, entry, settings, measured.rate_per_s);
                check_interrupt()?;
                entry.record(workload, outcome);
            } else {
                entry.contestant.push(&workload.figures, &Value::Null);
            }
        }
    }
    for peer in peers {
        let Some(at) = entries.iter().position(|entry| entry.peer.name == peer.name) else { continue };
        let entry = entries.swap_remove(at);
        if let Some(why) = entry.failures.last() {
            let why = format!("slices that failed: {}, the last one: {why}", entry.failures.len());
            measured.left_out.push(LeftOut { name: peer.name.clone(), why });
        }
        measured.contestants.push(entry.contestant);
    }
    Ok(measured)
}

/// All servers at once, but for those workloads that want a new one in each slice.
fn start<'a>(workload: &Workload, peers: &'a [Peer], left_out: &mut Vec<LeftOut>) -> Result<Vec<Entry<'a>>, String> {
    let mut entries = Vec::new();
    let connections = workload.connections + if workload.kind == Kind::Burst { BURST_CONNECTS } else { 0 };
    for peer in peers {
        check_interrupt()?;
        let started = match peer.refuses(connections) {
            Some(why) => Err(why),
            None if matches!(workload.kind, Kind::Idle | Kind::Counts) => Ok(None),
            None => Server::start(peer, workload.buffer_bytes, &[]).map(Some),
        };
        match started {
            Ok(server) => {
                let contestant = Contestant::new(&peer.name, &workload.figures);
                entries.push(Entry { peer, server, contestant, failures: Vec::new() });
            }
            Err(why) => left_out.push(LeftOut { name: peer.name.clone(), why }),
        }
    }
    Ok(entries)
}

impl Entry<'_> {
    fn record(&mut self, workload: &Workload, outcome: Result<Outcome, String>) {
        let document = match outcome {
            Ok(Outcome::Measured(document)) => document,
            Ok(Outcome::Late) => {
                self.contestant.late += 1;
                Value::Null
            }
            Err(why) => {
                eprintln!("{}: {}: {why}", workload.name, self.peer.name);
                self.failures.push(why);
                Value::Null
            }
        };
        self.contestant.push(&workload.figures, &document);
    }
}

fn slice(workload: &Workload, entry: &Entry, settings: &Settings, rate: Option<f64>) -> Result<Outcome, String> {
    let fresh;
    let server = match (&entry.server, workload.kind) {
        (_, Kind::Counts) => return Ok(Outcome::Measured(tools::count(workload, entry.peer))),
        (Some(server), _) => server,
        (None, _) => {
            fresh = Server::start(entry.peer, workload.buffer_bytes, &[])?;
            &fresh
        }
    };
    let outcome = match workload.kind {
        Kind::Burst => burst(workload, server),
        Kind::Idle => run_load(workload, server, &["-d", IDLE_TIME], OVERTIME).map(Outcome::Measured),
        _ => timed(workload, server, settings, rate),
    };
    server.settle()?;
    outcome
}

/// A load of the length of a slice.
fn timed(workload: &Workload, server: &Server, settings: &Settings, rate: Option<f64>) -> Result<Outcome, String> {
    let slice = settings.slice * workload.stretch;
    let milliseconds = |time: Duration| format!("{}ms", time.as_millis());
    let (duration, warm_up) = (milliseconds(slice), milliseconds(WARM_UP * workload.stretch));
    let rate = rate.map(|rate| rate.to_string());
    let mut arguments = vec!["-d", &duration, "--warmup", &warm_up];
    arguments.extend(rate.iter().flat_map(|rate| ["-r", rate]));
    let document = run_load(workload, server, &arguments, slice + OVERTIME)?;
    Ok(if rate.is_some() && is_late(&document) { Outcome::Late } else { Outcome::Measured(document) })
}

fn is_late(document: &Value) -> bool {
    document.pointer("/schedule/kept") == Some(&Value::Bool(false))
}

/// `ecoloop load` on the clients' core. What it reports of a server of several processes would be of one of them.
fn load_command(core: u32, connections: u32, load: &str, server: &Server, arguments: &[&str]) -> Command {
    let mut command = pinned(core, ECOLOOP);
    command.args(["load", "-q", "--json", "-", "--close", "rst", "-c", &connections.to_string()]);
    command.args(load.split_ascii_whitespace()).args(arguments);
    if server.is_one_process {
        command.args(["--server-pid", &server.process.id().to_string()]);
    }
    command.arg(server.address.to_string());
    command
}

pub(crate) fn run_load(
    workload: &Workload,
    server: &Server,
    arguments: &[&str],
    limit: Duration,
) -> Result<Value, String> {
    let mut command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, arguments);
    finish_load(Job::start(&mut command)?, limit)
}

/// Its document, if no gate fell.
fn finish_load(job: Job, limit: Duration) -> Result<Value, String> {
    let output = job.wait(limit).map_err(|why| format!("ecoloop load: {why}"))?;
    let document = serde_json::from_str(&output.text);
    if output.status.success() {
        return document.map_err(|error| format!("ecoloop load: {error}"));
    }
    let of = |list: &str, what: fn(&Value) -> Option<String>| {
        let list = document.as_ref().ok()?.get(list)?.as_array()?.iter().filter_map(what).collect::<Vec<_>>();
        Some(list.join(", ")).filter(|list| !list.is_empty())
    };
    let errors = of("errors", |error| {
        Some(format!("{} {} {} times", error["phase"].as_str()?, error["error"].as_str()?, error["count"]))
    });
    let gates =
        of("gates", |gate| (gate["fell"] == true).then(|| gate["expr"].as_str().unwrap_or_default().to_owned()));
    let why = errors.or(gates).unwrap_or_else(|| reason(output.status, &output.errors));
    Err(format!("ecoloop load: {why}"))
}

/// Messages a second that half of the floor's capacity is.
fn half_of_the_floor(workload: &Workload, entries: &[Entry], settings: &Settings) -> Result<f64, String> {
    let floor = entries.iter().find(|entry| entry.peer.name == FLOOR).and_then(|entry| entry.server.as_ref());
    let floor = floor.ok_or("the floor does not run")?;
    let mut rates = Vec::new();
    for _ in 0..5 {
        if let Outcome::Measured(document) = timed(workload, floor, settings, None)? {
            rates.extend(document.pointer(RATE_POINTER).and_then(Value::as_f64));
        }
    }
    let rate = median(&rates).ok_or("the floor has no rate")?;
    // In hundreds, to be read.
    Ok((rate / 200.0).round() * 100.0)
}

/// The load on connections that are there already, without the burst and with it. The burst comes from the server's core.
fn burst(workload: &Workload, server: &Server) -> Result<Outcome, String> {
    let window = ["-d", BURST_WINDOW, "--warmup", BURST_WARM_UP];
    let quiet = run_load(workload, server, &window, OVERTIME)?;
    let before = kernel_counters()?;
    let mut command = load_command(CLIENT_CORE, workload.connections, &workload.load, server, &window);
    let job = Job::start(&mut command)?;
    sleep(BURST_DELAY)?;
    let at_once = BURST_CONNECTS.to_string();
    let connects = ["-s", "64", "-m", "1", "--connecting", &at_once];
    let mut command = load_command(SERVER_CORE, BURST_CONNECTS, "", server, &connects);
    let burst = finish_load(Job::start(&mut command)?, OVERTIME)?;
    let disturbed = finish_load(job, OVERTIME)?;
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

/// The same server, by two clients that share no code.
fn cross_check(
    workload: &Workload,
    peers: &[Peer],
    settings: &Settings,
    measured: &mut Measured,
) -> Result<(), String> {
    const C: &str = "epoll_client";
    const OURS: &str = "ecoloop load";
    let floor = peers.iter().find(|peer| peer.name == FLOOR).ok_or("the floor is not there")?;
    let server = Server::start(floor, workload.buffer_bytes, &[])?;
    let mut contestants = [OURS, C].map(|name| Contestant::new(name, &workload.figures));
    for round in 1..=settings.rounds {
        eprintln!("{}: round {round} of {}", workload.name, settings.rounds);
        fastrand::shuffle(&mut contestants);
        for contestant in &mut contestants {
            let document = if contestant.name == C {
                c_client(workload, &server, settings)?
            } else {
                match timed(workload, &server, settings, None)? {
                    Outcome::Measured(document) => document,
                    Outcome::Late => Value::Null,
                }
            };
            contestant.push(&workload.figures, &document);
            server.settle()?;
        }
    }
    contestants.sort_by(|one, other| one.name.cmp(&other.name));
    C.clone_into(&mut measured.baseline);
    measured.control = None;
    measured.contestants = contestants.into();
    Ok(())
}

/// In the words of the other client.
fn c_client(workload: &Workload, server: &Server, settings: &Settings) -> Result<Value, String> {
    let mut command = pinned(CLIENT_CORE, C_CLIENT);
    command.args([server.address.port().to_string(), workload.connections.to_string(), "64".to_owned()]);
    command.args([settings.slice.as_secs_f64().to_string(), server.process.id().to_string()]);
    let text = output_of(&mut command, settings.slice + OVERTIME).map_err(|why| format!("epoll_client: {why}"))?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("epoll_client: {error}"))?;
    let field = |name: &str| answer[name].as_f64().ok_or_else(|| format!("epoll_client: there is no {name}"));
    let cpu_us_per_message = field("server_cpu_seconds")? * 1e6 / field("messages")?;
    Ok(json!({
        "server": { "cpu_us_per_message": cpu_us_per_message },
        "rate_per_s": field("messages_per_second")?,
    }))
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
