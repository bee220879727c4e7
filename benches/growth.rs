//! The CPU time of a turn in which the reactor's slab grows, beside those in which it does not.
//!
//! A server takes in 19,000 connections, 64 in each turn. A process of their own makes them, for one process may not have
//! both ends of so many; it makes those of a turn before that turn begins, so that all turns have the same work.

#![expect(clippy::unwrap_used, reason = "in a benchmark a panic is the answer")]

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use ecoloop::{Config, Server, Turn};
use rustix::time::{ClockId, clock_gettime};
use slab::Slab;

const RUNS: usize = 5;
const ACCEPTS_PER_TURN: usize = 64;
const TURNS: usize = 19_000 / ACCEPTS_PER_TURN;
const DESCRIPTORS: u64 = 19_100;
/// Two, for the ports of clients: the kernel is slow to find one once half of them are taken for the same address.
const LISTENERS: [&str; 2] = ["127.0.0.1:0", "127.0.0.2:0"];
/// Capacities at which the slab grows: each is twice the one before.
const CAPACITIES: [usize; 3] = [4096, 8192, 16_384];
const MILLION: usize = 1 << 20;

fn main() {
    let descriptors = rlimit::increase_nofile_limit(DESCRIPTORS).unwrap();
    assert!(descriptors >= DESCRIPTORS, "{DESCRIPTORS} descriptors are needed, and {descriptors} allowed");
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("connect") => return connect(&arguments[1..]),
        Some("turns") => return turns(),
        _ => {}
    }

    let mut growing = CAPACITIES.map(|_| Vec::new());
    let mut others = Vec::new();
    for _ in 0..RUNS {
        // In a process of its own, as a server is: once glibc has freed a large block, it takes others of that size from its heap.
        let output = itself("turns").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (turn, line) in String::from_utf8(output.stdout).unwrap().lines().enumerate() {
            let duration = Duration::from_nanos(line.parse().unwrap());
            // The listeners have keys, too.
            let entries = LISTENERS.len() + turn * ACCEPTS_PER_TURN;
            match CAPACITIES.iter().position(|&capacity| (entries..entries + ACCEPTS_PER_TURN).contains(&capacity)) {
                Some(at) => growing[at].push(duration),
                None => others.push(duration),
            }
        }
    }
    println!("CPU time of turns that accept {ACCEPTS_PER_TURN}      count      median       p99.9     longest");
    for (capacity, durations) in CAPACITIES.iter().zip(growing) {
        print(&format!("the slab grows from {capacity} to {}", capacity * 2), durations);
    }
    print("it does not", others);
    println!("without sockets");
    let million = (0..RUNS).map(|_| slab_growth()).collect();
    print(&format!("a slab grows from {} to {MILLION}", MILLION / 2), million);
}

fn print(what: &str, mut durations: Vec<Duration>) {
    durations.sort();
    let microseconds = |rank: usize| durations[rank].as_secs_f64() * 1e6;
    let last = durations.len() - 1;
    let [median, tail, longest] = [last / 2, (last * 999).div_ceil(1000), last].map(microseconds);
    println!("{what:<38}{:>6}{median:>9.0} µs{tail:>9.0} µs{longest:>9.0} µs", durations.len());
}

fn itself(command: &str) -> Command {
    let mut itself = Command::new(std::env::current_exe().unwrap());
    itself.arg(command);
    itself
}

/// That of this thread. A turn that does not wait differs from it by the time that others had the core.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Prints how many nanoseconds of CPU time each turn of a server took.
fn turns() {
    let mut config = Config::default();
    config.accepts_per_turn = ACCEPTS_PER_TURN;
    let addresses: [SocketAddr; 2] = LISTENERS.map(|address| address.parse().unwrap());
    let mut server = Server::bind(addresses.as_slice(), config).unwrap();
    let mut command = itself("connect");
    command.args(server.local_addrs().iter().map(ToString::to_string));
    let mut clients = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut asks, mut answers) = (clients.stdin.take().unwrap(), clients.stdout.take().unwrap());
    for turn in 1..=TURNS {
        asks.write_all(b"?").unwrap();
        answers.read_exact(&mut [0]).unwrap();
        let before = cpu_time();
        assert_eq!(server.turn(Some(Duration::ZERO)).unwrap(), Turn::Running);
        println!("{}", cpu_time().saturating_sub(before).as_nanos());
        assert_eq!(server.report().stats.accepted, (turn * ACCEPTS_PER_TURN) as u64);
    }
    drop(asks);
    clients.wait().unwrap();
}

/// Makes the connections of a turn each time it is asked for them, and keeps all until its input ends.
fn connect(addresses: &[String]) {
    let mut clients = Vec::with_capacity(TURNS * ACCEPTS_PER_TURN);
    for address in addresses.iter().cycle() {
        if std::io::stdin().read(&mut [0]).unwrap() == 0 {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let client = TcpStream::connect(address).unwrap();
            // So that none is left in TIME-WAIT, with its port.
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            clients.push(client);
        }
        std::io::stdout().write_all(b"!").unwrap();
        std::io::stdout().flush().unwrap();
    }
}

/// Of entries as large as the server's: 56 bytes.
fn slab_growth() -> Duration {
    let mut slab = Slab::<[u64; 6]>::with_capacity(CAPACITIES[0]);
    while slab.len() < MILLION / 2 {
        slab.insert([1; 6]);
    }
    assert_eq!(slab.capacity(), slab.len());
    let before = cpu_time();
    slab.insert([1; 6]);
    let duration = cpu_time().saturating_sub(before);
    assert_eq!(black_box(slab).capacity(), MILLION);
    duration
}
