//! The servers that are compared: built, started on a core of their own, ended.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::processes::{Process, check_interrupt, output_of, pinned, reason, wait_until};

/// What everything is compared with.
pub(crate) const FLOOR: &str = "epoll floor";
/// A second copy of it: the control.
pub(crate) const CONTROL: &str = "epoll floor again";
pub(crate) const OURS: &str = "ecoloop";

pub(crate) const SERVER_CORE: u32 = 0;
const BUILD_LIMIT: Duration = Duration::from_secs(1800);
const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// What a server may spend in 5 ms on timers of its own while nobody asks it for anything.
const SETTLED_WITHIN: Duration = Duration::from_micros(100);
/// Below the ports that Linux takes for clients.
const FIRST_PORT: u16 = 21000;
const LAST_PORT: u16 = 29999;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Readiness,
    /// On `io_uring`.
    Completion,
    /// A thread or a process for each connection.
    Blocking,
}

/// An entry of `peers.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Commands that must exist.
    #[serde(default)]
    needs: Vec<String>,
    /// Debian's packages that bring them.
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    build: Vec<String>,
    pub(crate) run: String,
    version: String,
    /// Only with `--all`.
    #[serde(default)]
    all: bool,
    pub(crate) connections_max: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    peer: Vec<Peer>,
}

/// A peer that is not compared, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub(crate) name: String,
    pub(crate) why: String,
}

/// The peers asked for: those named, or all that need no `--all`. The floor and its copy are always among them.
pub(crate) fn select(list: &str, all: bool, only: &[String]) -> Result<Vec<Peer>, String> {
    let List { peer: peers } = toml::from_str(list).map_err(|error| format!("peers.toml: {error}"))?;
    for name in only.iter().map(String::as_str).chain([FLOOR, CONTROL]) {
        if !peers.iter().any(|peer| peer.name == name) {
            let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
            return Err(format!("no peer is named {name:?}; there are {}", names.join(", ")));
        }
    }
    let is_wanted = |peer: &Peer| {
        let is_reference = peer.name == FLOOR || peer.name == CONTROL;
        is_reference || if only.is_empty() { all || !peer.all } else { only.contains(&peer.name) }
    };
    Ok(peers.into_iter().filter(is_wanted).collect())
}

pub(crate) fn install(peers: &[Peer]) -> Result<(), String> {
    let packages: BTreeSet<_> = peers.iter().flat_map(|peer| &peer.packages).collect();
    if packages.is_empty() {
        return Ok(());
    }
    // An index that is too old names files that are no longer there.
    apt_get(&["update"])?;
    let install = ["install", "--yes"].into_iter().chain(packages.into_iter().map(String::as_str));
    apt_get(&install.collect::<Vec<_>>())
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command.arg("--quiet").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    output_of(&mut command, BUILD_LIMIT).map(|_| ()).map_err(|error| format!("apt-get {}: {error}", arguments[0]))
}

/// Builds each. Those that could be built, and the others.
pub(crate) fn build(peers: Vec<Peer>) -> Result<(Vec<Peer>, Vec<LeftOut>), String> {
    let (mut built, mut left_out) = (Vec::new(), Vec::new());
    for peer in peers {
        eprintln!("build {}", peer.name);
        match peer.build() {
            Ok(()) => built.push(peer),
            Err(why) => left_out.push(LeftOut { name: peer.name, why }),
        }
        check_interrupt()?;
    }
    if let Some(floor) = left_out.iter().find(|peer| peer.name == FLOOR || peer.name == CONTROL) {
        return Err(format!("cannot build the {}: {}", floor.name, floor.why));
    }
    Ok((built, left_out))
}

impl Peer {
    fn build(&self) -> Result<(), String> {
        if let Some(missing) = self.needs.iter().find(|command| !is_command(command)) {
            let remedy = if self.packages.is_empty() {
                String::new()
            } else {
                format!("; `--install`, or apt-get install {}", self.packages.join(" "))
            };
            return Err(format!("there is no {missing}{remedy}"));
        }
        for line in &self.build {
            output_of(&mut shell(line), BUILD_LIMIT).map_err(|why| format!("{line}: {why}"))?;
        }
        Ok(())
    }

    pub(crate) fn version(&self) -> String {
        let printed = output_of(&mut shell(&self.version), START_LIMIT);
        let line = printed.ok().and_then(|text| Some(text.lines().next_back()?.trim().to_owned()));
        line.filter(|line| !line.is_empty()).unwrap_or_else(|| "unknown".to_owned())
    }

    /// Why it takes no part in a workload of so many connections.
    pub(crate) fn refuses(&self, connections: u32) -> Option<String> {
        let most = self.connections_max.filter(|&most| most < connections)?;
        Some(format!("more connections than {most} are not tried"))
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

/// A server that runs.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// One that forks has no figures of a single process.
    pub(crate) is_one_process: bool,
}

impl Server {
    /// Waits until it echoes. `tool`: a command that runs it.
    pub(crate) fn start(peer: &Peer, buffer_bytes: u32, tool: &[&str]) -> Result<Self, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let line = peer.run.replace("{port}", &address.port().to_string());
        let line = line.replace("{buffer}", &buffer_bytes.to_string());
        let mut words = tool.iter().copied().chain(line.split_ascii_whitespace());
        let program = words.next().ok_or("its command line is empty")?;
        let log = format!("target/{}.log", peer.name.replace([' ', '/'], "-"));
        let errors = File::create(&log).map_err(|error| format!("cannot write {log}: {error}"))?;
        let mut command = pinned(SERVER_CORE, program);
        let mut process = Process::spawn(command.args(words).stdout(Stdio::null()).stderr(errors))?;

        let mut client = None;
        let mut end = None;
        wait_until(START_LIMIT, || {
            client = TcpStream::connect(address).ok();
            end = process.exited()?;
            Ok(client.is_some() || end.is_some())
        })?;
        if let Some(status) = end {
            return Err(format!("it ended: {}", reason(status, &fs::read_to_string(log).unwrap_or_default())));
        }
        let mut client = client.ok_or_else(|| format!("no connect succeeded in {} s", START_LIMIT.as_secs()))?;
        echo_once(&mut client).map_err(|error| format!("it did not echo: {error}"))?;
        let is_one_process = process.members() == 1;
        Ok(Self { process, address, is_one_process })
    }

    /// Waits until it has nothing left to do, so that it takes no time from the next one. The CPU time that it has spent until
    /// then: the kernel's account of a thread is as old as its last tick while it runs, and exact once it sleeps.
    pub(crate) fn settle(&self) -> Result<Duration, String> {
        let mut last = None;
        // Each look is 5 ms after the one before, in which a thread that runs has a tick.
        wait_until(SETTLE_LIMIT, || {
            let now = self.process.cpu_time();
            let is_idle = last.is_some_and(|last| now.saturating_sub(last) < SETTLED_WITHIN);
            last = Some(now);
            Ok(is_idle)
        })?;
        Ok(last.unwrap_or_default())
    }
}

fn echo_once(client: &mut TcpStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(ANSWER_LIMIT))?;
    client.write_all(b"?")?;
    client.read_exact(&mut [0])
}

/// One that nobody listens on.
fn free_port() -> Result<u16, String> {
    let is_free = |&port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    (FIRST_PORT..=LAST_PORT).find(is_free).ok_or_else(|| "no port is free".to_owned())
}

/// Builds the load generators: `ecoloop load` and the plain client in C.
pub(crate) fn build_clients(root: &Path) -> Result<(), String> {
    eprintln!("build the load generators");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = |command: &mut Command| output_of(command.current_dir(root), BUILD_LIMIT);
    build(Command::new(cargo).args(["build", "--release", "--quiet"])).map_err(|why| format!("cargo build: {why}"))?;
    build(Command::new("make").args(["-s", "-C", "benches/floor"])).map_err(|why| format!("make: {why}"))?;
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
            { name = "rare", kind = "completion", run = "rare", version = "false", all = true,
              needs = ["no-such-command"], packages = ["rare-dev"] },
            { name = "broken", kind = "completion", run = "x", version = "false", build = ["echo no; exit 4"] },
        ]"#;

    fn names(peers: &[Peer]) -> Vec<&str> {
        peers.iter().map(|peer| peer.name.as_str()).collect()
    }

    #[test]
    fn the_floor_and_its_copy_always_take_part() {
        let select = |all, only: &[&str]| {
            let only: Vec<_> = only.iter().map(|&name| name.to_owned()).collect();
            select(LIST, all, &only).map(|peers| names(&peers).join(","))
        };
        assert_eq!(select(false, &[]).unwrap(), "epoll floor,epoll floor again,one,broken");
        assert_eq!(select(true, &[]).unwrap(), "epoll floor,epoll floor again,one,rare,broken");
        assert_eq!(select(false, &["rare"]).unwrap(), "epoll floor,epoll floor again,rare");
        assert!(select(false, &["two"]).unwrap_err().starts_with("no peer is named \"two\"; there are epoll floor, "));
    }

    #[test]
    fn the_list_is_whole() {
        let peers = select(include_str!("../peers.toml"), true, &[OURS.to_owned()]).unwrap();
        assert_eq!(names(&peers), [OURS, FLOOR, CONTROL]);
    }

    #[test]
    fn who_cannot_be_built_is_named_with_the_reason() {
        let (built, left_out) = build(select(LIST, true, &[]).unwrap()).unwrap();
        assert_eq!(names(&built), ["epoll floor", "epoll floor again", "one"]);
        let why: Vec<_> = left_out.iter().map(|peer| peer.why.as_str()).collect();
        assert_eq!(why[0], "there is no no-such-command; `--install`, or apt-get install rare-dev");
        assert_eq!(why[1], "echo no; exit 4: exit status: 4");
        assert_eq!((built[2].version().as_str(), built[0].version().as_str()), ("1.2", "unknown"));
        assert_eq!(built[2].refuses(50).unwrap(), "more connections than 1 are not tried");
        assert_eq!((built[2].refuses(1), built[0].refuses(50)), (None, None));
    }
}
