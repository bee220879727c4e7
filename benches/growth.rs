//! Measures the CPU time of turns that depend on the number of connections: those in which the reactor's slab grows, and those that look
//! for idle connections among a million.
//!
//! A server accepts 19,000 connections, 64 per turn. A second process connects, because the descriptor limit of one process
//! may be too low for both ends. It makes the connects of a turn before the turn begins, so that every turn has the same work.
//!
//! The million is a slab of entries as large as the server's, without sockets but for one batch of connections, which each turn serves.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::convert::Infallible;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use ecoloop::{Config, Connection, Handler, INTEREST, Next, Outcome, Reactor, Ready, Server, Turn};
use mio::event::Source;
use mio::{Interest, Registry, Token};
use rustix::time::{ClockId, clock_gettime};
use slab::Slab;

const RUNS: usize = 5;
const ACCEPTS_PER_TURN: usize = 64;
const TURNS: usize = 19_000 / ACCEPTS_PER_TURN;
const DESCRIPTORS: u64 = 19_100;
/// Two addresses, because the kernel is slow to find a free port once half of the ports are used for one address.
const LISTENERS: [&str; 2] = ["127.0.0.1:0", "127.0.0.2:0"];
/// Capacities at which the slab grows: each is twice the one before.
const CAPACITIES: [usize; 3] = [4096, 8192, 16_384];
const MILLION: usize = 1 << 20;

/// Connections that a turn serves, the most that one batch of events has.
const BATCH: usize = 1024;
/// Entries that a turn visits for a timeout, as the server does.
const SLICE: usize = 1024;
const MESSAGE: [u8; 64] = [1; 64];
/// Turns of each kind.
const IDLE_TURNS: usize = 2000;

fn main() {
    let descriptors = rlimit::increase_nofile_limit(DESCRIPTORS).unwrap();
    assert!(descriptors >= DESCRIPTORS, "{DESCRIPTORS} descriptors are needed, and the limit allows {descriptors}");
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("connect") => return connect(&arguments[1..]),
        Some("turns") => return turns(),
        _ => {}
    }

    let mut growing = CAPACITIES.map(|_| Vec::new());
    let mut others = Vec::new();
    for _ in 0..RUNS {
        // A new process per run: once glibc has freed a large block, it takes blocks of that size from its heap.
        let output = itself("turns").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for (turn, line) in String::from_utf8(output.stdout).unwrap().lines().enumerate() {
            let duration = Duration::from_nanos(line.parse().unwrap());
            // The listeners have slab entries, too.
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
    println!("turns that echo {BATCH} messages, beside {MILLION} idle entries");
    let [(_, without), (slice_visits, slice), (all_visits, all)] = idle_turns();
    print("no timeout", without);
    print(&format!("a timeout visits {SLICE} entries"), slice);
    print("    its visits", slice_visits);
    print("a timeout visits every entry", all);
    print("    its visits", all_visits);
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

/// Returns the CPU time of this thread, which does not include the time that other processes had the core.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// Runs a server, and prints the CPU time of each turn in nanoseconds.
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

/// Connects for one turn per byte on standard input, and keeps all connections open until its end.
fn connect(addresses: &[String]) {
    let mut clients = Vec::with_capacity(TURNS * ACCEPTS_PER_TURN);
    for address in addresses.iter().cycle() {
        if io::stdin().read(&mut [0]).unwrap() == 0 {
            return;
        }
        for _ in 0..ACCEPTS_PER_TURN {
            let client = TcpStream::connect(address).unwrap();
            // Close with a reset, which leaves no port in TIME-WAIT.
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            clients.push(client);
        }
        io::stdout().write_all(b"!").unwrap();
        io::stdout().flush().unwrap();
    }
}

/// Returns the CPU time of one growth of a slab whose entries are as large as the server's: 56 bytes.
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

/// An entry of the slab, as large as the server's: 56 bytes with what the reactor keeps of it.
struct Entry {
    connection: Connection<Stream>,
    _peer: SocketAddr,
}

/// A socket, or none.
struct Stream(Option<mio::net::TcpStream>);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.as_mut().unwrap().read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A source that no poll reports.
struct Silent;

impl Source for Silent {
    fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _: &Registry) -> io::Result<()> {
        Ok(())
    }
}

/// Echoes with one buffer, and counts what it sends.
struct Echo {
    buffer: [u8; 1024],
    sent: usize,
}

impl Handler<Entry> for Echo {
    type Act = Infallible;

    fn ready(&mut self, _: usize, entry: &mut Entry, ready: Ready) -> Next<Infallible> {
        let served = entry.connection.serve(ready, &mut self.buffer);
        self.sent += served.sent;
        match served.outcome {
            Outcome::Wait => Next::Wait,
            Outcome::Again => Next::Again,
            ended => unreachable!("no client ends: {ended:?}"),
        }
    }

    fn act(&mut self, _: &mut Reactor<Entry>, _: usize, never: Infallible) -> Next<Infallible> {
        match never {}
    }
}

/// Returns CPU times, of the visits and of the whole turn: without a timeout, with one that visits a slice, and with one that visits all.
fn idle_turns() -> [(Vec<Duration>, Vec<Duration>); 3] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let entry = |stream| Entry { connection: Connection::new(Stream(stream)), _peer: address };
    let mut reactor = Reactor::new(BATCH).unwrap();
    let mut clients = Vec::with_capacity(BATCH);
    for key in 0..MILLION {
        // The connections are spread over the slab.
        if key % (MILLION / BATCH) == 0 {
            clients.push(TcpStream::connect(address).unwrap());
            let stream = listener.accept().unwrap().0;
            stream.set_nonblocking(true).unwrap();
            let stream = mio::net::TcpStream::from_std(stream);
            reactor.insert(stream, INTEREST, |stream| entry(Some(stream))).unwrap();
        } else {
            reactor.insert(Silent, INTEREST, |_| entry(None)).unwrap();
        }
    }
    let mut echo = Echo { buffer: [0; 1024], sent: 0 };
    let mut slices = (0..MILLION).step_by(SLICE).cycle();
    let is_idle = |entry: &mut Entry| entry.connection.tick_idle() == u8::MAX && entry.connection.pending() > 0;
    let mut times = [const { (Vec::new(), Vec::new()) }; 3];
    for turn in 0..IDLE_TURNS * times.len() {
        for client in &mut clients {
            client.write_all(&MESSAGE).unwrap();
        }
        echo.sent = 0;
        let kind = turn % times.len();
        let before = cpu_time();
        let found = match kind {
            0 => 0,
            1 => {
                let start = slices.next().unwrap();
                (start..start + SLICE).filter(|&key| reactor.get_mut(key).is_some_and(is_idle)).count()
            }
            _ => reactor.iter_mut().filter_map(|(_, entry)| is_idle(entry).then_some(())).count(),
        };
        let visited = cpu_time();
        reactor.wait(Some(Duration::ZERO)).unwrap();
        reactor.serve(1, &mut echo);
        let served = cpu_time();
        assert_eq!(found, 0);
        if echo.sent == BATCH * MESSAGE.len() {
            let (visits, turns) = &mut times[kind];
            turns.push(served.saturating_sub(before));
            visits.push(visited.saturating_sub(before));
        }
        // The kernel may deliver a message after the wait. Such a turn has less work, and is not counted.
        while echo.sent < BATCH * MESSAGE.len() {
            reactor.wait(None).unwrap();
            reactor.serve(1, &mut echo);
        }
        for client in &mut clients {
            client.read_exact(&mut [0; MESSAGE.len()]).unwrap();
        }
    }
    times
}
