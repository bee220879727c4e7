//! Two clients send two messages each. `broken` asks every socket again and again. `fixed` waits for all of them in poll.
//!
//!     cargo run --example busy_loop -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let clients = thread::spawn(move || -> io::Result<()> {
        let mut streams = [TcpStream::connect(address)?, TcpStream::connect(address)?];
        for _ in 0..2 {
            for stream in &mut streams {
                thread::sleep(Duration::from_millis(50));
                stream.write_all(b"hola")?;
                stream.read_exact(&mut [0; 4])?;
            }
        }
        Ok(())
    });
    let mut connections = [listener.accept()?.0, listener.accept()?.0];
    for connection in &connections {
        connection.set_nonblocking(true)?;
    }

    let (mut calls, mut useful) = (0, 0);
    while useful < 4 {
        if case != "broken" {
            let mut sockets: Vec<_> = connections.iter().map(|c| PollFd::new(c, PollFlags::IN)).collect();
            poll(&mut sockets, None)?;
            calls += 1;
        }
        for connection in &mut connections {
            calls += 1;
            if echo_once(connection)? {
                useful += 1;
            }
        }
    }
    clients.join().map_err(|_| io::ErrorKind::Other)??;
    println!("The loop has made {calls} calls. {useful} of them have read a message.");

    println!(r#"{{"case": "{case}", "calls": {calls}, "useful": {useful}}}"#);
    Ok(())
}

/// Reads once, and returns whether there was anything.
fn echo_once(connection: &mut TcpStream) -> io::Result<bool> {
    let mut buffer = [0; 1024];
    match connection.read(&mut buffer) {
        Ok(count) => {
            connection.write_all(&buffer[..count])?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
