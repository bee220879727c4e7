//! A loop that logs each message into a pipe, which nobody reads. `broken` waits for room in the pipe. `fixed` drops the line.
//!
//!     cargo run --example blocked_log -- broken

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

const LINE_BYTES: usize = 1000;
const LINES: usize = 100;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let flags = if case == "broken" { PipeFlags::empty() } else { PipeFlags::NONBLOCK };
    let (reader, writer): (OwnedFd, OwnedFd) = pipe_with(flags)?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut clients = [TcpStream::connect(listener.local_addr()?)?, TcpStream::connect(listener.local_addr()?)?];
    let connections = [listener.accept()?.0, listener.accept()?.0];
    thread::spawn(move || serve(connections, File::from(writer)));

    let mut served = 0;
    while served < LINES && is_echoed(&mut clients[0])? {
        served += 1;
    }
    println!("The first client has sent messages until it was not served: {served} echoes.");
    let other = is_echoed(&mut clients[1])?;
    println!("The second client is served: {}.", if other { "yes" } else { "no" });
    drop(reader);

    let bytes = served * LINE_BYTES;
    println!(r#"{{"case": "{case}", "served": {served}, "log_bytes": {bytes}, "other_is_served": {other}}}"#);
    Ok(())
}

fn serve(mut connections: [TcpStream; 2], mut log: File) -> io::Result<()> {
    let line = [b'.'; LINE_BYTES];
    loop {
        let mut sockets: Vec<_> = connections.iter().map(|c| PollFd::new(c, PollFlags::IN)).collect();
        poll(&mut sockets, None)?;
        let is_ready: Vec<bool> = sockets.iter().map(|socket| !socket.revents().is_empty()).collect();
        for (connection, _) in connections.iter_mut().zip(is_ready).filter(|(_, is_ready)| *is_ready) {
            let mut buffer = [0; 1024];
            let count = connection.read(&mut buffer)?;
            match log.write(&line) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // the line is lost, and the client is served
                result => drop(result?),
            }
            connection.write_all(&buffer[..count])?;
        }
    }
}

/// Sends a message, and returns whether its echo comes within a second.
fn is_echoed(client: &mut TcpStream) -> io::Result<bool> {
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.write_all(b"hola")?;
    Ok(client.read(&mut [0; 4]).is_ok())
}
