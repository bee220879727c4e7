//! A server that stalls for 200 ms in one second. `broken` measures it with a closed loop. `fixed` measures from when a message was
//! due.
//!
//!     cargo run --example omission -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const RATE: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    let (connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    thread::spawn(move || echo_with_a_stall(connection));

    let mut latencies = if case == "broken" { closed_loop(client)? } else { open_loop(client)? };
    latencies.sort_unstable();
    let of = |share: usize| latencies[(latencies.len() * share / 100).min(latencies.len() - 1)].as_secs_f64() * 1e3;
    let (p50, p90, p99, max) = (of(50), of(90), of(99), of(100));
    println!("p50 {p50:.3} ms, p90 {p90:.3} ms, p99 {p99:.3} ms, max {max:.3} ms");

    println!(r#"{{"case": "{case}", "p50_ms": {p50:.3}, "p90_ms": {p90:.3}, "p99_ms": {p99:.3}, "max_ms": {max:.3}}}"#);
    Ok(())
}

/// Sends the next message when the echo of the last one has come.
fn closed_loop(mut client: TcpStream) -> io::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut latencies = Vec::new();
    while start.elapsed() < SECOND {
        let sent = Instant::now();
        client.write_all(b"hola")?;
        client.read_exact(&mut [0; 4])?;
        latencies.push(sent.elapsed());
    }
    Ok(latencies)
}

/// Sends 1000 messages in a second, each when it is due, whatever the echoes do. Latency is from when it was due.
fn open_loop(client: TcpStream) -> io::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut sender = client.try_clone()?;
    let sending = thread::spawn(move || -> io::Result<()> {
        for message in 0..RATE {
            thread::sleep((start + SECOND * message / RATE).saturating_duration_since(Instant::now()));
            sender.write_all(b"hola")?;
        }
        Ok(())
    });
    let mut receiver = client;
    let mut latencies = Vec::new();
    for message in 0..RATE {
        receiver.read_exact(&mut [0; 4])?;
        latencies.push((start + SECOND * message / RATE).elapsed());
    }
    sending.join().map_err(|_| io::ErrorKind::Other)??;
    Ok(latencies)
}

/// Stalls once, half a second after its start.
fn echo_with_a_stall(mut connection: TcpStream) -> io::Result<()> {
    let (start, mut has_stalled) = (Instant::now(), false);
    let mut buffer = [0; 1024];
    loop {
        let count = connection.read(&mut buffer)?;
        if !has_stalled && start.elapsed() > SECOND / 2 {
            thread::sleep(Duration::from_millis(200));
            has_stalled = true;
        }
        connection.write_all(&buffer[..count])?;
    }
}
