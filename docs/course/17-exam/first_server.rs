//! A first server with mio, as mio's own example goes. It echoes, and it has five faults.
//!
//!     cargo run --example first_server -- 127.0.0.1:5000

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const SERVER: Token = Token(0);

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:5000".into());
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(128);
    let mut server = TcpListener::bind(address)?;
    poll.registry().register(&mut server, SERVER, Interest::READABLE)?;
    println!("Listening on {}", server.local_addr()?);

    let mut connections = HashMap::new();
    let mut last_token = SERVER;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &events {
            match event.token() {
                SERVER => loop {
                    let mut stream = match server.accept() {
                        Ok((stream, _)) => stream,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    };
                    last_token = Token(last_token.0 + 1);
                    poll.registry().register(&mut stream, last_token, Interest::READABLE)?;
                    connections.insert(last_token, stream);
                },
                token => {
                    let Some(stream) = connections.get_mut(&token) else { continue };
                    let has_ended = echo(stream)?;
                    if has_ended {
                        connections.remove(&token);
                    }
                }
            }
        }
    }
}

/// Reads all that has come, and sends it back. Returns whether the client has ended the connection.
fn echo(stream: &mut TcpStream) -> io::Result<bool> {
    let mut received = Vec::new();
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    match stream.write(&received) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
        _ => Ok(false),
    }
}
