//! Live counts of a server in a terminal: the server is on a thread of its own, and this one reads its counters.
//!
//! `cargo run --example live_counts -- 127.0.0.1:5000` serves until Ctrl-C ends it, and shows each second what the clients do. Without
//! an address the program is its own client, and ends.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ecoloop::{Config, Server, Stats};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Returns a line with what has happened from one snapshot of the counters to the next.
fn line(before: &Stats, now: &Stats, elapsed: Duration) -> String {
    let milliseconds = elapsed.as_millis().max(1);
    let rate =
        |before: u64, now: u64| u64::try_from(u128::from(now - before) * 1000 / milliseconds).unwrap_or(u64::MAX);
    let bytes = |before, now| HumanBytes(rate(before, now));
    let closed = now.closed.by_reason().filter(|&(_, count)| count > 0);
    let closed: String =
        closed.map(|(reason, count)| [", ", &count.to_string(), " closed: ", reason].concat()).collect();
    format!(
        "{} open, {} accepted/s, {}/s in, {}/s out{closed}",
        now.open(),
        rate(before.accepted, now.accepted),
        bytes(before.bytes_in, now.bytes_in),
        bytes(before.bytes_out, now.bytes_out),
    )
}

/// Connects four times, and exchanges messages for a tenth of a second each time.
fn run_client(server: SocketAddr) -> io::Result<()> {
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            stream.write_all(b"hola")?;
            stream.read_exact(&mut [0; 4])?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1);
    let server = Server::bind(address.as_deref().unwrap_or("127.0.0.1:0"), Config::default())?.spawn()?;
    let local_addr = server.local_addr();
    let client = address.is_none().then(|| thread::spawn(move || run_client(local_addr)));
    let interval = Duration::from_millis(if client.is_some() { 100 } else { 1000 });

    let terminal = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    terminal.set_style(ProgressStyle::with_template("{msg}")?);
    let (mut before, mut time) = (server.stats(), Instant::now());
    while !server.is_finished() && !client.as_ref().is_some_and(JoinHandle::is_finished) {
        thread::sleep(interval);
        // A snapshot takes no lock: the server does not wait for this thread.
        let (stats, now) = (server.stats(), Instant::now());
        let line = line(&before, &stats, now - time);
        if terminal.is_hidden() {
            println!("{line}");
        } else {
            terminal.set_message(line);
        }
        (before, time) = (stats, now);
    }
    terminal.finish_and_clear();
    if let Some(client) = client {
        client.join().map_err(|_| "the client has panicked")??;
    }
    let (report, ()) = server.shutdown()?;
    println!("{} connections accepted, {} closed", report.stats.accepted, report.stats.closed.total());
    Ok(())
}
