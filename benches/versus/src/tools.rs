//! What a message takes: system calls as strace counts them, user-space instructions as callgrind does.
//!
//! Both are the difference of two runs with different numbers of messages, so that the start, the connects and the closes
//! are not in it. Both slow the server down, and one that is slow finds more messages at each of its turns.

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::measure::run_load;
use crate::peers::{Kind, Peer, Server};
use crate::processes::{Process, output_of, wait_until};
use crate::workloads::Workload;

const FEW: u32 = 4000;
const MANY: u32 = 20_000;
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
        "calls": or_null("system calls", a_message(|messages| calls(workload, peer, messages))),
        "instructions": or_null("instructions", a_message(|messages| instructions(workload, peer, messages))),
    })
}

fn a_message(count: impl Fn(u32) -> Result<u64, String>) -> Result<f64, String> {
    let (few, many) = (count(FEW)?, count(MANY)?);
    let more = u32::try_from(many.saturating_sub(few)).map_err(|error| error.to_string())?;
    Ok(f64::from(more) / f64::from(MANY - FEW))
}

fn load(workload: &Workload, server: &Server, messages: u32) -> Result<(), String> {
    let each = (messages / workload.connections).to_string();
    run_load(workload, server, &["-m", &each], LOAD_LIMIT).map(|_| ())
}

/// System calls of all threads.
fn calls(workload: &Workload, peer: &Peer, messages: u32) -> Result<u64, String> {
    const FILE: &str = "target/strace.txt";
    let server = Server::start(peer, workload.buffer_bytes, &[])?;
    let id = server.process.id().to_string();
    let mut command = std::process::Command::new("strace");
    let mut strace = Process::spawn(
        command.args(["-f", "-q", "-c", "-U", "calls,name", "-o", FILE, "-p", &id]).stderr(std::process::Stdio::null()),
    )?;
    let is_attached = wait_until(TOOL_LIMIT, || Ok(strace.exited()?.is_some() || is_traced(&id)))?;
    if !is_attached || strace.exited()?.is_some() {
        return Err("strace could not attach".to_owned());
    }
    load(workload, &server, messages)?;
    if !strace.end(Signal::INT, TOOL_LIMIT)? {
        return Err("strace did not end".to_owned());
    }
    let summary = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    total_calls(&summary).ok_or_else(|| format!("{FILE} has no total"))
}

/// Whether all its threads are traced.
fn is_traced(id: &str) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{id}/task")) else { return false };
    let mut statuses = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses.all(|status| !status.contains("TracerPid:\t0\n"))
}

fn total_calls(summary: &str) -> Option<u64> {
    summary.lines().find_map(|line| line.trim().strip_suffix(" total")?.trim().parse().ok())
}

fn instructions(workload: &Workload, peer: &Peer, messages: u32) -> Result<u64, String> {
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
    load(workload, &server, messages)?;
    if !server.process.end(Signal::TERM, TOOL_LIMIT)? {
        return Err("it did not end".to_owned());
    }
    let profile = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    total_instructions(&profile).ok_or_else(|| format!("{FILE} has no total"))
}

fn total_instructions(profile: &str) -> Option<u64> {
    profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

/// Whether both tools are there.
pub(crate) fn check() -> Result<(), String> {
    for tool in ["strace", "valgrind"] {
        output_of(std::process::Command::new(tool).arg("--version"), TOOL_LIMIT)
            .map_err(|why| format!("counting calls and instructions needs {tool}: {why}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found() {
        let summary = "    calls syscall\n--------- ----------------\n      501 sendto\n       35 epoll_wait\n\
                       --------- ----------------\n      536 total\n";
        assert_eq!(total_calls(summary), Some(536));
        assert_eq!(total_calls(""), None);
        assert_eq!(total_instructions("events: Ir\nsummary: 4\n\nfn=(1)\n12 3\n\ntotals: 123456\n"), Some(123_456));
        assert_eq!(total_instructions("events: Ir\n"), None);
    }
}
