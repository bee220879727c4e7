//! In another event loop: mio.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::mio::unix::SourceFd;
use ecoloop::mio::{Events, Interest, Poll, Token};
use ecoloop::{Config, Server, Turn};

const ECHO: Token = Token(0);

fn main() -> Result<(), Box<dyn Error>> {
    let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    let (address, handle) = (server.local_addr(), server.handle());
    let client = thread::spawn(move || -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"hola")?;
        stream.read_exact(&mut [0; 4])?;
        handle.drain();
        Ok(())
    });

    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(64);
    poll.registry().register(&mut SourceFd(&server.as_fd().as_raw_fd()), ECHO, Interest::READABLE)?;
    // mio reports an edge once: a turn after every wait, and no wait while the server has work left.
    while server.turn(Some(Duration::ZERO))? == Turn::Running {
        let timeout = server.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            if event.token() != ECHO {
                // A source of your own.
            }
        }
    }
    poll.registry().deregister(&mut SourceFd(&server.as_fd().as_raw_fd()))?;
    client.join().map_err(|_| "the client has panicked")??;
    println!("{} bytes echoed", server.report().stats.bytes_out);
    Ok(())
}
