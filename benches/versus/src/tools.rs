//! What a message takes: system calls as the kernel counts them, user-space instructions as callgrind does.
//!
//! Both are the difference of two loads, a short one and a long one, so that the connects and the closes, and with callgrind
//! the start, are not in it. Callgrind slows the server down, and one that is slow finds more messages at each of its turns;
//! the kernel counts at a small part of a call's cost.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::generators::CLIENT_CORE;
use crate::measure::{finish_load, load_command};
use crate::peers::{Kind, Peer, Server};
use crate::processes::{Job, output_of, pinned};
use crate::workloads::Workload;

/// Every entry into the kernel, whichever call it is.
const TRACEPOINT: &str = "raw_syscalls:sys_enter";
/// The two loads.
const SHORT: &str = "100ms";
const LONG: &str = "600ms";
const TOOL_LIMIT: Duration = Duration::from_secs(20);
const LOAD_LIMIT: Duration = Duration::from_secs(120);

/// A count that cannot be had is null; why is told to standard error.
pub(crate) fn count(workload: &Workload, peer: &Peer) -> Value {
    let or_null = |what: &str, counted: Result<f64, String>| {
        counted.map_or_else(
            |why| {
                eprintln!("{}: {}: no {what}: {why}", workload.name, peer.name);
                Value::Null
            },
            Value::from,
        )
    };
    json!({
        "calls": or_null("system calls", a_message(|duration| calls(workload, peer, duration))),
        "instructions": or_null("instructions", a_message(|duration| instructions(workload, peer, duration))),
    })
}

/// What is counted in a load, and its messages.
struct Counted {
    total: f64,
    messages: f64,
}

fn a_message(count: impl Fn(&str) -> Result<Counted, String>) -> Result<f64, String> {
    let (short, long) = (count(SHORT)?, count(LONG)?);
    Ok((long.total - short.total) / (long.messages - short.messages))
}

fn load(workload: &Workload, server: &Server, duration: &str) -> Command {
    load_command(CLIENT_CORE, workload.connections, &workload.load, server, &["-d", duration])
}

/// Runs it. The messages that were answered.
fn messages(load: &mut Command) -> Result<f64, String> {
    let document = finish_load(Job::start(load)?, LOAD_LIMIT)?;
    document.pointer("/messages/verified").and_then(Value::as_f64).ok_or_else(|| "ecoloop load: no messages".to_owned())
}

/// System calls of all threads, and of the processes that it forks, while the load runs.
fn calls(workload: &Workload, peer: &Peer, duration: &str) -> Result<Counted, String> {
    const FILE: &str = "target/perf.txt";
    let server = Server::start(peer, workload.buffer_bytes, &[])?;
    let load = load(workload, &server, duration);
    let mut command = pinned(CLIENT_CORE, "perf");
    command.args(["stat", "-x", ",", "-e", TRACEPOINT, "-o", FILE, "-p", &server.process.id().to_string(), "--"]);
    let messages = messages(command.arg(load.get_program()).args(load.get_args()))?;
    let counts = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let total = counted_calls(&counts).ok_or_else(|| format!("{FILE} has no count"))?;
    Ok(Counted { total, messages })
}

/// A line of the count, its unit, the event and more; instead of a count it may say that there is none.
fn counted_calls(counts: &str) -> Option<f64> {
    counts.lines().find(|line| line.contains(TRACEPOINT))?.split(',').next()?.parse().ok()
}

fn instructions(workload: &Workload, peer: &Peer, duration: &str) -> Result<Counted, String> {
    const FILE: &str = "target/callgrind.out";
    if peer.kind == Kind::Completion {
        return Err("valgrind has no io_uring".to_owned());
    }
    if fs::exists(FILE).unwrap_or(false) {
        fs::remove_file(FILE).map_err(|error| format!("cannot remove {FILE}: {error}"))?;
    }
    let callgrind_file = format!("--callgrind-out-file={FILE}");
    let tool = ["valgrind", "-q", "--tool=callgrind", &callgrind_file];
    let mut server = Server::start(peer, workload.buffer_bytes, &tool)?;
    if !server.is_one_process {
        return Err("it is several processes".to_owned());
    }
    let messages = messages(&mut load(workload, &server, duration))?;
    // It is slow to start: another program may have taken its port meanwhile, and answered in its place.
    if let Some(status) = server.process.exited()? {
        return Err(format!("it ended: {status}"));
    }
    if !server.process.end(Signal::TERM, TOOL_LIMIT)? {
        return Err("it did not end".to_owned());
    }
    let profile = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let total = total_instructions(&profile).ok_or_else(|| format!("{FILE} has no total"))?;
    Ok(Counted { total, messages })
}

fn total_instructions(profile: &str) -> Option<f64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// Whether both tools can be had.
pub(crate) fn check() -> Result<(), String> {
    output_of(Command::new("perf").args(["stat", "-e", TRACEPOINT, "true"]), TOOL_LIMIT)
        .map_err(|why| format!("counting system calls needs perf, and tracefs with {TRACEPOINT}: {why}"))?;
    output_of(Command::new("valgrind").arg("--version"), TOOL_LIMIT)
        .map_err(|why| format!("counting instructions needs valgrind: {why}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found() {
        let counts = "# started on Tue Nov 24 05:00:00 2026\n\n6017,,raw_syscalls:sys_enter,1234567,100.00,,\n";
        assert_eq!(counted_calls(counts), Some(6017.0));
        assert_eq!(counted_calls("<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(counted_calls(""), None);
        assert_eq!(total_instructions("events: Ir\nsummary: 4\n\nfn=(1)\n12 3\n\ntotals: 123456\n"), Some(123_456.0));
        assert_eq!(total_instructions("events: Ir\n"), None);
    }
}
