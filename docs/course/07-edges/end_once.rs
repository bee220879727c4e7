//! A client sends hola and closes, both before the loop looks. `broken` takes a short read for the last. `fixed` reads on.
//!
//!     cargo run --example end_once -- broken

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (connection, _) = listener.accept()?;
    client.write_all(b"hola")?;
    client.shutdown(Shutdown::Write)?;
    poll(&mut [PollFd::new(&connection, PollFlags::RDHUP)], None)?; // wait until the kernel has both

    connection.set_nonblocking(true)?;
    let mut connection = TcpStream::from_std(connection);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut connection, Token(1), Interest::READABLE)?;

    let mut events = Events::with_capacity(8);
    let (mut bytes, mut is_ended) = (0, false);
    while !is_ended {
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        if events.is_empty() {
            println!("No event for a second.");
            break;
        }
        println!("An event.");
        loop {
            let mut buffer = [0; 1024];
            match connection.read(&mut buffer) {
                Ok(0) => {
                    println!("The client has ended.");
                    is_ended = true;
                    break;
                }
                Ok(count) => {
                    println!("The loop has read {count} bytes.");
                    bytes += count;
                    if case == "broken" && count < buffer.len() {
                        break; // the buffer was not filled, so nothing is left
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
    }

    println!(r#"{{"case": "{case}", "bytes": {bytes}, "is_ended": {is_ended}}}"#);
    Ok(())
}
