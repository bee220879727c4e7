//! System calls and user-space instructions per message: the kernel counts the calls, callgrind the instructions.
//!
//! Each count is the difference of a long and a short load, which cancels the connects and the closes, and under callgrind the
//! server's startup. Callgrind slows a server down, so that it finds more messages in each turn. The kernel's tracepoint costs
//! a small part of a system call.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::generators::{CLIENT_CORE, finish_load, load_command};
use crate::peers::{IoModel, Peer, Server};
use crate::processes::{Job, output_of, pinned};
use crate::workloads::Workload;

/// Every entry into the kernel by a system call.
const TRACEPOINT: &str = "raw_syscalls:sys_enter";
const SHORT_LOAD: &str = "100ms";
const LONG_LOAD: &str = "600ms";
const TOOL_TIMEOUT: Duration = Duration::from_secs(20);
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Returns both counts. A count that fails is null, and the reason is printed on standard error.
pub(crate) fn count(workload: &Workload, peer: &Peer) -> Value {
    let or_null = |what: &str, count: Result<f64, String>| {
        count.map_or_else(
            |error| {
                eprintln!("{}: {}: cannot count {what}: {error}", workload.name, peer.name);
                Value::Null
            },
            Value::from,
        )
    };
    json!({
        "calls": or_null("system calls", per_message(|duration| calls(workload, peer, duration))),
        "instructions": or_null("instructions", per_message(|duration| instructions(workload, peer, duration))),
    })
}

/// The count of one load, and its verified messages.
struct Count {
    total: f64,
    messages: f64,
}

fn per_message(count: impl Fn(&str) -> Result<Count, String>) -> Result<f64, String> {
    let (short, long) = (count(SHORT_LOAD)?, count(LONG_LOAD)?);
    if long.messages <= short.messages {
        return Err("the longer load had no more messages".to_owned());
    }
    Ok((long.total - short.total) / (long.messages - short.messages))
}

fn load(workload: &Workload, server: &Server, duration: &str) -> Command {
    load_command(CLIENT_CORE, workload.connections, &workload.load, server, &["-d", duration])
}

/// Runs the load and returns its verified messages.
fn run(load: &mut Command) -> Result<f64, String> {
    let report = finish_load(Job::start(load)?, LOAD_TIMEOUT)?;
    let messages = report.pointer("/messages/verified").and_then(Value::as_f64);
    messages.ok_or_else(|| "ecoloop load: no messages in its JSON".to_owned())
}

/// Counts the system calls of all threads, and of the processes that the server forks, during a load.
fn calls(workload: &Workload, peer: &Peer, duration: &str) -> Result<Count, String> {
    const FILE: &str = "target/perf.txt";
    let server = Server::start(peer, workload.buffer_bytes, &[])?;
    let load = load(workload, &server, duration);
    let mut command = pinned(CLIENT_CORE, "perf");
    command.args(["stat", "-x", ",", "-e", TRACEPOINT, "-o", FILE, "-p", &server.process.id().to_string(), "--"]);
    let messages = run(command.arg(load.get_program()).args(load.get_args()))?;
    let counts = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let total = total_calls(&counts).ok_or_else(|| format!("no count in {FILE}"))?;
    Ok(Count { total, messages })
}

/// Reads the first field of the event's line, which is a number or `<not counted>`.
fn total_calls(counts: &str) -> Option<f64> {
    counts.lines().find(|line| line.contains(TRACEPOINT))?.split(',').next()?.parse().ok()
}

fn instructions(workload: &Workload, peer: &Peer, duration: &str) -> Result<Count, String> {
    const FILE: &str = "target/callgrind.out";
    if peer.kind == IoModel::Completion {
        return Err("valgrind does not support io_uring".to_owned());
    }
    if fs::exists(FILE).unwrap_or(false) {
        fs::remove_file(FILE).map_err(|error| format!("cannot remove {FILE}: {error}"))?;
    }
    let callgrind_file = format!("--callgrind-out-file={FILE}");
    let wrapper = ["valgrind", "-q", "--tool=callgrind", &callgrind_file];
    let mut server = Server::start(peer, workload.buffer_bytes, &wrapper)?;
    if !server.is_one_process {
        return Err("the server has several processes".to_owned());
    }
    let messages = run(&mut load(workload, &server, duration))?;
    // Valgrind starts slowly: another program may have taken the port and echoed in the server's place.
    if let Some(status) = server.process.exit_status()? {
        return Err(format!("the server exited: {status}"));
    }
    if !server.process.signal_and_wait(Signal::TERM, TOOL_TIMEOUT)? {
        return Err(format!("the server did not exit within {} s of SIGTERM", TOOL_TIMEOUT.as_secs()));
    }
    let profile = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let total = total_instructions(&profile).ok_or_else(|| format!("no total in {FILE}"))?;
    Ok(Count { total, messages })
}

fn total_instructions(profile: &str) -> Option<f64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// Returns an error unless perf and valgrind both work.
pub(crate) fn check_tools() -> Result<(), String> {
    output_of(Command::new("perf").args(["stat", "-e", TRACEPOINT, "true"]), TOOL_TIMEOUT)
        .map_err(|error| format!("counting system calls needs perf, and tracefs with {TRACEPOINT}: {error}"))?;
    output_of(Command::new("valgrind").arg("--version"), TOOL_TIMEOUT)
        .map_err(|error| format!("counting instructions needs valgrind: {error}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_the_output_of_perf_and_callgrind() {
        let counts = "# started on Tue Nov 24 05:00:00 2026\n\n6017,,raw_syscalls:sys_enter,1234567,100.00,,\n";
        assert_eq!(total_calls(counts), Some(6017.0));
        assert_eq!(total_calls("<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(total_calls(""), None);
        assert_eq!(total_instructions("events: Ir\nsummary: 4\n\nfn=(1)\n12 3\n\ntotals: 123456\n"), Some(123_456.0));
        assert_eq!(total_instructions("events: Ir\n"), None);
    }
}
