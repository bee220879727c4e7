//! A tester of the path between two hosts: does everything on it (NAT, firewall, proxy, load balancer) pass on every byte, how fast, and
//! does it keep connections that are silent? The server and the load are one program.
//!
//! `path_tester serve 0.0.0.0:5000` on one host, and `path_tester 192.0.2.1:5000` on the other. Then the other way round: what is
//! between them may treat connections differently by who opens them. Without arguments both ends are on this host.
//!
//! The server prints each connection as it sees it. Another address than that of the client is a NAT or a proxy; `Reset` there, without
//! an error at the client, is one too.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use ecoloop::load::{self, Mode, Report, Run};
use ecoloop::{CloseReason, Config, Observer, Peer, Server};

const USAGE: &str = "usage: path_tester serve ADDRESS
       path_tester ADDRESS [SECONDS_OF_TRAFFIC=5] [SECONDS_OF_SILENCE=60]";

/// Size of the messages that measure the throughput, in bytes.
const LARGE: u16 = 32 << 10;

/// Returns the line of a test.
type Line = fn(&Report) -> String;

/// Sends a line for each connection that has closed. It prints nothing itself: a terminal that does not read would stop the server.
struct Log {
    received: HashMap<usize, u64>,
    lines: Sender<String>,
}

impl Observer for Log {
    fn received(&mut self, peer: Peer, data: &[u8]) {
        *self.received.entry(peer.key).or_default() += data.len() as u64;
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        let received = self.received.remove(&peer.key).unwrap_or_default();
        // Fails only while the program ends.
        let _ = self.lines.send(format!("{}: {received} bytes, {reason:?}", peer.address));
    }
}

fn serve(address: &str) -> io::Result<()> {
    let (lines, received) = mpsc::channel();
    let log = Log { received: HashMap::new(), lines };
    let server = Server::bind(address, Config::default())?.with_observer(log).spawn()?;
    println!("serving on {}", server.local_addr());
    for line in received {
        println!("{line}");
    }
    server.join()?;
    Ok(())
}

/// Runs each test, and returns whether all have passed.
fn test(server: SocketAddr, traffic: Duration, silence: Duration) -> io::Result<bool> {
    let mut hold = load::Config::new(vec![server]);
    hold.mode = Mode::Hold;
    hold.connections = 20;
    hold.duration = silence;
    let tests: [(Run, Line); 3] = [
        (Run::new([server]).rate(100.0).duration(traffic), latency),
        (Run::new([server]).connections(4).size(LARGE.into()).duration(traffic), throughput),
        (Run::from(hold), survivors),
    ];
    let mut passed = true;
    for (run, line) in tests {
        let report = run.spawn()?.join()?;
        println!("{}", line(&report));
        if report.failed() {
            println!("{report}");
            passed = false;
        }
        if report.connections.established == 0 {
            break;
        }
    }
    Ok(passed)
}

fn latency(report: &Report) -> String {
    let latency = &report.latency_us;
    let us = |value: Option<u64>| value.map_or("none".to_owned(), |value| format!("{value} µs"));
    format!("latency: median {}, p99 {}, max {}", us(latency.p50), us(latency.p99), us(latency.max))
}

fn throughput(report: &Report) -> String {
    let rate = report.rate_per_s.unwrap_or_default() * f64::from(LARGE) / 1e6;
    format!("throughput: {rate:.1} MB/s in each direction, over {} connections", report.connections.held)
}

fn survivors(report: &Report) -> String {
    let alive = report.hold.as_ref().map_or(0, |hold| hold.alive);
    let (requested, seconds) = (report.connections.requested, report.phases_s.measure);
    format!("silence: {alive} of {requested} connections alive after {seconds:.1} s")
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let seconds = |text: &str| -> Result<Duration, Box<dyn Error>> { Ok(Duration::try_from_secs_f64(text.parse()?)?) };
    let passed = match arguments[..] {
        ["serve", address] => {
            serve(address)?;
            true
        }
        [] => {
            let server = Server::bind("127.0.0.1:0", Config::default())?.spawn()?;
            test(server.local_addr(), Duration::from_millis(200), Duration::from_millis(200))?
        }
        [address, ref rest @ ..] if rest.len() <= 2 && !address.starts_with('-') => {
            let server = address.to_socket_addrs()?.next().ok_or("the name has no address")?;
            let traffic = rest.first().map_or(Ok(Duration::from_secs(5)), |text| seconds(text))?;
            let silence = rest.get(1).map_or(Ok(Duration::from_secs(60)), |text| seconds(text))?;
            test(server, traffic, silence)?
        }
        _ => {
            eprintln!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    };
    println!("{}", if passed { "passed" } else { "failed" });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
