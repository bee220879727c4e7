//! A client sends a message in two writes. `broken` leaves Nagle's algorithm on. `fixed` sets `TCP_NODELAY`.
//!
//!     cargo run --example nagle -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

const MESSAGES: usize = 20;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(case != "broken")?;
    let (connection, _) = listener.accept()?;
    thread::spawn(move || echo_whole_messages(connection));

    let mut times = Vec::new();
    for _ in 0..MESSAGES {
        let start = Instant::now();
        client.write_all(b"ho")?;
        client.write_all(b"la")?;
        client.read_exact(&mut [0; 4])?;
        times.push(start.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    times.sort_unstable();
    let median_ms = times[MESSAGES / 2].as_secs_f64() * 1e3;
    println!("The median of {MESSAGES} round trips is {median_ms:.3} ms.");

    println!(r#"{{"case": "{case}", "median_ms": {median_ms:.3}}}"#);
    Ok(())
}

/// Replies when the four bytes of a message are there.
fn echo_whole_messages(mut connection: TcpStream) -> io::Result<()> {
    let mut message = [0; 4];
    loop {
        connection.read_exact(&mut message)?;
        connection.write_all(&message)?;
    }
}
