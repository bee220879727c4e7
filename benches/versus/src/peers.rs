//! The servers that are compared: how each is built and started.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::processes::{Process, check_interrupt, exit_reason, output_of, pinned, wait_until};

/// The baseline of every ratio.
pub(crate) const FLOOR: &str = "epoll floor";
/// The A/A control: the same binary, whose difference from the floor is noise.
pub(crate) const CONTROL: &str = "epoll floor again";
pub(crate) const ECOLOOP: &str = "ecoloop";

pub(crate) const SERVER_CORE: u32 = 0;
const BUILD_TIMEOUT: Duration = Duration::from_secs(1800);
const START_TIMEOUT: Duration = Duration::from_secs(20);
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// CPU time within 5 ms below which a server counts as idle: it may have timers.
const IDLE_CPU_MAX: Duration = Duration::from_micros(100);
/// Below the default range of ephemeral ports.
const FIRST_PORT: u16 = 21000;
const LAST_PORT: u16 = 29999;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IoModel {
    Readiness,
    /// `io_uring`.
    Completion,
    /// A thread or a process per connection, or one connection at a time.
    Blocking,
}

/// An entry of `peers.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) kind: IoModel,
    /// Commands that must be in `PATH`.
    #[serde(default)]
    needs: Vec<String>,
    /// Debian packages that contain the commands and libraries.
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    build: Vec<String>,
    pub(crate) run: String,
    version: String,
    /// Left out without `--all`.
    #[serde(default)]
    optional: bool,
    pub(crate) connections_max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    peer: Vec<Peer>,
}

/// A peer that was not measured, and the reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) name: String,
    pub(crate) reason: String,
}

/// Returns the peers named in `only`, or without names every peer that is not optional, or all with `all`. The floor and its
/// control are always included.
pub(crate) fn select(list: &str, all: bool, only: &[String]) -> Result<Vec<Peer>, String> {
    let List { peer: peers } = toml::from_str(list).map_err(|error| format!("peers.toml: {error}"))?;
    for name in only.iter().map(String::as_str).chain([FLOOR, CONTROL]) {
        if !peers.iter().any(|peer| peer.name == name) {
            let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
            return Err(format!("unknown peer {name:?}; expected one of {}", names.join(", ")));
        }
    }
    let is_wanted = |peer: &Peer| {
        let is_reference = peer.name == FLOOR || peer.name == CONTROL;
        is_reference || if only.is_empty() { all || !peer.optional } else { only.contains(&peer.name) }
    };
    Ok(peers.into_iter().filter(is_wanted).collect())
}

pub(crate) fn install(peers: &[Peer]) -> Result<(), String> {
    let packages: BTreeSet<_> = peers.iter().flat_map(|peer| &peer.packages).collect();
    if packages.is_empty() {
        return Ok(());
    }
    // An outdated index lists files that the mirror no longer has.
    apt_get(&["update"])?;
    let install = ["install", "--yes"].into_iter().chain(packages.into_iter().map(String::as_str));
    apt_get(&install.collect::<Vec<_>>())
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    output_of(&mut command, BUILD_TIMEOUT).map(|_| ()).map_err(|error| format!("apt-get {}: {error}", arguments[0]))
}

/// Builds the peers, and returns the built ones and the skipped ones.
pub(crate) fn build(peers: Vec<Peer>) -> Result<(Vec<Peer>, Vec<Skipped>), String> {
    let (mut built, mut skipped) = (Vec::new(), Vec::new());
    for peer in peers {
        eprintln!("building {}", peer.name);
        match peer.build() {
            Ok(()) => built.push(peer),
            Err(reason) => skipped.push(Skipped { name: peer.name, reason }),
        }
        check_interrupt()?;
    }
    if let Some(floor) = skipped.iter().find(|peer| peer.name == FLOOR || peer.name == CONTROL) {
        return Err(format!("cannot build the {}: {}", floor.name, floor.reason));
    }
    Ok((built, skipped))
}

impl Peer {
    fn build(&self) -> Result<(), String> {
        if let Some(missing) = self.needs.iter().find(|command| !is_command(command)) {
            let remedy = if self.packages.is_empty() {
                String::new()
            } else {
                format!("; use --install, or run apt-get install {}", self.packages.join(" "))
            };
            return Err(format!("the command {missing} is missing{remedy}"));
        }
        for line in &self.build {
            output_of(&mut shell(line), BUILD_TIMEOUT).map_err(|error| format!("{line}: {error}"))?;
        }
        Ok(())
    }

    /// Returns the version that its command prints, or "unknown".
    pub(crate) fn version(&self) -> String {
        let printed = output_of(&mut shell(&self.version), START_TIMEOUT);
        let line = printed.ok().and_then(|text| Some(text.lines().next_back()?.trim().to_owned()));
        line.filter(|line| !line.is_empty()).unwrap_or_else(|| "unknown".to_owned())
    }

    /// Returns the reason if the peer does not support `connections`.
    pub(crate) fn unsupported(&self, connections: u32) -> Option<String> {
        let max = self.connections_max.filter(|&max| max < connections)?;
        Some(format!("measured with at most {max} connection{}", if max == 1 { "" } else { "s" }))
    }
}

fn is_command(name: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", line]);
    command
}

/// A running server.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// False for a server that forks, whose CPU time and memory cannot be read from one process.
    pub(crate) is_one_process: bool,
}

impl Server {
    /// Starts the server, under the command `wrapper` unless it is empty, and returns once it echoes.
    pub(crate) fn start(peer: &Peer, buffer_bytes: u32, wrapper: &[&str]) -> Result<Self, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let line = peer.run.replace("{port}", &address.port().to_string());
        let line = line.replace("{buffer}", &buffer_bytes.to_string());
        let mut words = wrapper.iter().copied().chain(line.split_ascii_whitespace());
        let program = words.next().ok_or("empty command line")?;
        let log = format!("target/{}.log", peer.name.replace([' ', '/'], "-"));
        let errors = File::create(&log).map_err(|error| format!("cannot write {log}: {error}"))?;
        let mut command = pinned(SERVER_CORE, program);
        let mut process = Process::spawn(command.args(words).stdout(Stdio::null()).stderr(errors))?;

        let mut client = None;
        let mut exit_status = None;
        wait_until(START_TIMEOUT, || {
            client = TcpStream::connect(address).ok();
            exit_status = process.exit_status()?;
            Ok(client.is_some() || exit_status.is_some())
        })?;
        if let Some(status) = exit_status {
            let errors = fs::read_to_string(log).unwrap_or_default();
            return Err(format!("the server exited: {}", exit_reason(status, &errors)));
        }
        let mut client = client.ok_or_else(|| format!("no connect succeeded within {} s", START_TIMEOUT.as_secs()))?;
        echo_once(&mut client).map_err(|error| format!("the server did not echo: {error}"))?;
        let is_one_process = process.group_size() == 1;
        Ok(Self { process, address, is_one_process })
    }

    /// Waits until the server uses no CPU, so that it takes none from the next one, and returns its CPU time. The
    /// kernel's account of a thread is as old as the last tick while the thread runs, and exact while it sleeps.
    pub(crate) fn wait_until_idle(&self) -> Result<Duration, String> {
        let mut last = None;
        // The polls are 5 ms apart: a running thread has a tick in that time.
        let is_idle = wait_until(IDLE_TIMEOUT, || {
            let now = self.process.cpu_time();
            let is_idle = last.is_some_and(|last| now.saturating_sub(last) < IDLE_CPU_MAX);
            last = Some(now);
            Ok(is_idle)
        })?;
        if !is_idle {
            return Err(format!("the server was not idle within {} s", IDLE_TIMEOUT.as_secs()));
        }
        Ok(last.unwrap_or_default())
    }
}

fn echo_once(client: &mut TcpStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(ECHO_TIMEOUT))?;
    client.write_all(b"?")?;
    client.read_exact(&mut [0])
}

/// Returns a port that no socket listens on.
fn free_port() -> Result<u16, String> {
    let is_free = |&port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (FIRST_PORT..=LAST_PORT).find(is_free).ok_or_else(|| format!("no port from {FIRST_PORT} to {LAST_PORT} is free"))
}

/// Builds the load generators: `ecoloop load` and the client in C.
pub(crate) fn build_clients(root: &Path) -> Result<(), String> {
    eprintln!("building the load generators");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = |command: &mut Command| output_of(command.current_dir(root), BUILD_TIMEOUT);
    build(Command::new(cargo).args(["build", "--release", "--quiet"]))
        .map_err(|error| format!("cargo build: {error}"))?;
    build(Command::new("make").args(["-s", "-C", "benches/floor"])).map_err(|error| format!("make: {error}"))?;
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const LIST: &str = r#"
        peer = [
            { name = "epoll floor", kind = "readiness", run = "floor {port}", version = "true" },
            { name = "epoll floor again", kind = "readiness", run = "floor {port}", version = "true" },
            { name = "one", kind = "blocking", run = "nc", version = "echo 1.2", connections_max = 1 },
            { name = "rare", kind = "completion", run = "rare", version = "false", optional = true,
              needs = ["no-such-command"], packages = ["rare-dev"] },
            { name = "broken", kind = "completion", run = "x", version = "false", build = ["echo no; exit 4"] },
        ]"#;

    fn names(peers: &[Peer]) -> Vec<&str> {
        peers.iter().map(|peer| peer.name.as_str()).collect()
    }

    #[test]
    fn selection_always_has_the_floor_and_its_control() {
        let select = |all, only: &[&str]| {
            let only: Vec<_> = only.iter().map(|&name| name.to_owned()).collect();
            select(LIST, all, &only).map(|peers| names(&peers).join(","))
        };
        assert_eq!(select(false, &[]).unwrap(), "epoll floor,epoll floor again,one,broken");
        assert_eq!(select(true, &[]).unwrap(), "epoll floor,epoll floor again,one,rare,broken");
        assert_eq!(select(false, &["rare"]).unwrap(), "epoll floor,epoll floor again,rare");
        assert!(
            select(false, &["two"]).unwrap_err().starts_with("unknown peer \"two\"; expected one of epoll floor, ")
        );
    }

    #[test]
    fn peers_toml_is_valid() {
        let peers = select(include_str!("../peers.toml"), true, &[ECOLOOP.to_owned()]).unwrap();
        assert_eq!(names(&peers), [ECOLOOP, FLOOR, CONTROL]);
    }

    #[test]
    fn peers_that_cannot_be_built_are_skipped_with_a_reason() {
        let (built, skipped) = build(select(LIST, true, &[]).unwrap()).unwrap();
        assert_eq!(names(&built), ["epoll floor", "epoll floor again", "one"]);
        let reasons: Vec<_> = skipped.iter().map(|peer| peer.reason.as_str()).collect();
        assert_eq!(
            reasons[0],
            "the command no-such-command is missing; use --install, or run apt-get install rare-dev"
        );
        assert_eq!(reasons[1], "echo no; exit 4: exit status: 4");
        assert_eq!((built[2].version().as_str(), built[0].version().as_str()), ("1.2", "unknown"));
        assert_eq!(built[2].unsupported(50).unwrap(), "measured with at most 1 connection");
        assert_eq!((built[2].unsupported(1), built[0].unsupported(50)), (None, None));
    }
}
