//! 3000 bytes wait in a socket, and mio tells of edges. `broken` reads once for each event. `fixed` reads until it would block.
//!
//!     cargo run --example read_once -- broken

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let mut client = std::net::TcpStream::connect(listener.local_addr()?)?;
    let (connection, _) = listener.accept()?;
    connection.set_nonblocking(true)?;
    let mut connection = TcpStream::from_std(connection);
    let mut poll = Poll::new()?;
    poll.registry().register(&mut connection, Token(1), Interest::READABLE)?;

    client.write_all(&[b'a'; 3000])?;
    let first = read_while_there_are_events(&mut poll, &mut connection, &case)?;
    println!("3000 bytes were sent. The loop has read {first}.");
    client.write_all(b"a")?;
    let second = read_while_there_are_events(&mut poll, &mut connection, &case)?;
    println!("1 more byte was sent. The loop has read {second} more.");

    println!(r#"{{"case": "{case}", "of_3000": {first}, "after_one_more": {second}}}"#);
    Ok(())
}

/// Returns how many bytes were read when no event has come for a second.
fn read_while_there_are_events(poll: &mut Poll, connection: &mut TcpStream, case: &str) -> io::Result<usize> {
    let mut events = Events::with_capacity(8);
    let mut bytes = 0;
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        if events.is_empty() {
            return Ok(bytes);
        }
        bytes += if case == "broken" { read_once(connection)? } else { read_until_it_would_block(connection)? };
    }
}

fn read_once(connection: &mut TcpStream) -> io::Result<usize> {
    connection.read(&mut [0; 1024])
}

fn read_until_it_would_block(connection: &mut TcpStream) -> io::Result<usize> {
    let mut bytes = 0;
    loop {
        match connection.read(&mut [0; 1024]) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(bytes),
            Err(error) => return Err(error),
        }
    }
}
