//! The first server without its five faults, and with an end: SIGTERM. It passes every check of `ecoloop check`.
//!
//!     cargo run --example mended_server -- 127.0.0.1:5000

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream, UnixStream};
use mio::{Events, Interest, Poll, Token};
use signal_hook::consts::SIGTERM;
use signal_hook::low_level::pipe;
use socket2::{Domain, Socket, Type};

const SERVER: Token = Token(0);
const SIGNAL: Token = Token(1);

struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:5000".into());
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(128);
    let mut server = listen(address)?;
    poll.registry().register(&mut server, SERVER, Interest::READABLE)?;
    let (mut signal, sender) = UnixStream::pair()?;
    pipe::register(SIGTERM, sender)?; // a signal is one more thing to read, in the one place that waits
    poll.registry().register(&mut signal, SIGNAL, Interest::READABLE)?;
    println!("Listening on {}", server.local_addr()?);

    let mut connections = HashMap::new();
    let mut last_token = SIGNAL;
    let mut run_queue = BTreeSet::new();
    let (mut accept_failed, mut is_ending) = (false, false);
    while !is_ending || !connections.is_empty() {
        let timeout = match (run_queue.is_empty(), accept_failed) {
            (false, _) => Some(Duration::ZERO),
            (true, true) => Some(Duration::from_millis(100)),
            (true, false) => None,
        };
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        let mut tokens = mem::take(&mut run_queue);
        tokens.extend(events.iter().map(Event::token));
        tokens.extend(mem::take(&mut accept_failed).then_some(SERVER));
        for token in tokens {
            match token {
                SERVER => loop {
                    let mut stream = match server.accept() {
                        Ok((stream, _)) => stream,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(_) => {
                            accept_failed = !is_ending; // no event will come for those who wait: try again by the clock
                            break;
                        }
                    };
                    last_token = Token(last_token.0 + 1);
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    if poll.registry().register(&mut stream, last_token, interest).is_ok() {
                        connections.insert(last_token, Connection { stream, pending: Vec::new() });
                    }
                },
                SIGNAL => {
                    is_ending = true;
                    poll.registry().deregister(&mut server)?;
                }
                token => {
                    let Some(connection) = connections.get_mut(&token) else { continue };
                    match echo(connection) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        Ok(false) => {
                            run_queue.insert(token); // not drained: its next turn is after all others
                        }
                        Ok(true) | Err(_) => {
                            connections.remove(&token); // it has ended, or failed: this client, and no other
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// Sends what is pending, then reads once, and sends that back. Returns whether the client has ended the connection.
fn echo(connection: &mut Connection) -> io::Result<bool> {
    send(connection)?;
    let mut buffer = [0; 4096];
    let count = connection.stream.read(&mut buffer)?;
    connection.pending.extend_from_slice(&buffer[..count]);
    send(connection)?;
    Ok(count == 0)
}

/// Sends until nothing is pending, or until it would block: the rest stays pending.
fn send(connection: &mut Connection) -> io::Result<()> {
    while !connection.pending.is_empty() {
        let sent = connection.stream.write(&connection.pending)?;
        connection.pending.drain(..sent);
    }
    Ok(())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into()))
}
