//! A client sends 150,000 bytes and then reads. `broken` sends what is pending, or else reads. `fixed` sends, and then reads.
//!
//!     cargo run --example resume -- broken

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

const SENT: usize = 150_000;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let (mut connection, mut client) = connect()?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut connection, Token(1), Interest::READABLE | Interest::WRITABLE)?;

    let mut events = Events::with_capacity(8);
    let (mut sent, mut received, mut pending) = (0, 0, Vec::new());
    loop {
        // The client sends all that it can, then the server has a turn, then the client reads all that has come.
        while sent < SENT && or_zero(client.write(&[b'a'; 1000]).inspect(|count| sent += count))? > 0 {}
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        if !events.is_empty() && case == "broken" {
            send_or_read(&mut connection, &mut pending)?;
        } else if !events.is_empty() {
            send_and_read(&mut connection, &mut pending)?;
        }
        let before = received;
        while or_zero(client.read(&mut [0; 4096]).inspect(|count| received += count))? > 0 {}
        if events.is_empty() && received == before {
            break;
        }
    }
    println!("The client has sent {sent} bytes, and has received {received}.");

    println!(r#"{{"case": "{case}", "sent": {sent}, "received": {received}}}"#);
    Ok(())
}

fn send_or_read(connection: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<()> {
    if pending.is_empty() { echo_until_it_would_block(connection, pending) } else { send(connection, pending) }
}

fn send_and_read(connection: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<()> {
    send(connection, pending)?;
    if pending.is_empty() { echo_until_it_would_block(connection, pending) } else { Ok(()) }
}

/// Reads and writes until the read would block, or until bytes are pending.
fn echo_until_it_would_block(connection: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 1024];
    while pending.is_empty() {
        let count = or_zero(connection.read(&mut buffer))?;
        if count == 0 {
            break;
        }
        pending.extend_from_slice(&buffer[..count]);
        send(connection, pending)?;
    }
    Ok(())
}

fn send(connection: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<()> {
    let written = or_zero(connection.write(pending))?;
    pending.drain(..written);
    Ok(())
}

/// Takes "would block" for nothing.
fn or_zero(result: io::Result<usize>) -> io::Result<usize> {
    result.or_else(|error| if error.kind() == ErrorKind::WouldBlock { Ok(0) } else { Err(error) })
}

/// Returns both ends of a connection, with buffers of a fixed size, and non-blocking.
fn connect() -> io::Result<(TcpStream, std::net::TcpStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_send_buffer_size(16 << 10)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.set_recv_buffer_size(16 << 10)?;
    client.set_send_buffer_size(212_992)?;
    client.connect(&listener.local_addr()?)?;
    let connection = listener.accept()?.0;
    connection.set_nonblocking(true)?;
    client.set_nonblocking(true)?;
    Ok((TcpStream::from_std(connection.into()), client.into()))
}
