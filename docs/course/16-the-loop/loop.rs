//! An echo server on one loop: `src/reactor.rs` of ecoloop, with the same names, and nothing that an echo can do without.
//!
//!     cargo run --example loop -- 127.0.0.1:5000

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

struct Reactor {
    poll: Poll,
    slots: Slab<(TcpStream, Vec<u8>)>, // each connection, with its pending output
    run_queue: BTreeSet<Token>,        // to serve in the next pass, each once
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:5000".into());
    let mut listener = TcpListener::bind(address.parse().map_err(io::Error::other)?)?;
    println!("Listening on {}", listener.local_addr()?);
    let (poll, mut events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut reactor = Reactor { poll, slots: Slab::new(), run_queue: BTreeSet::new() };
    loop {
        reactor.wait(&mut events)?;
        reactor.serve(&events, &listener);
    }
}

impl Reactor {
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let timeout = (!self.run_queue.is_empty()).then_some(Duration::ZERO);
        let result = self.poll.poll(events, timeout);
        result.or_else(|error| if error.kind() == ErrorKind::Interrupted { Ok(()) } else { Err(error) })
    }

    fn serve(&mut self, events: &Events, listener: &TcpListener) {
        self.run_queue.extend(events.iter().map(mio::event::Event::token));
        for token in std::mem::take(&mut self.run_queue) {
            if token == LISTENER { self.accept(listener) } else { self.serve_one(token) }
        }
    }

    fn accept(&mut self, listener: &TcpListener) {
        while let Ok((stream, _)) = listener.accept() {
            self.insert(stream);
        }
    }

    fn insert(&mut self, mut stream: TcpStream) {
        let entry = self.slots.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(entry.key()), interest).is_ok() {
            entry.insert((stream, Vec::new()));
        }
    }

    fn serve_one(&mut self, token: Token) {
        let Some((stream, pending)) = self.slots.get_mut(token.0) else { return };
        match ready(stream, pending) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // drained: the next edge brings the token back
            Ok(true) => self.run_queue.extend([token]),               // not drained: no edge will bring it back
            Ok(false) | Err(_) => drop(self.slots.remove(token.0)),   // closes the socket
        }
    }
}

/// Reads once if nothing is pending, and sends what is pending. Returns `false` at the end of the stream.
fn ready(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<bool> {
    if pending.is_empty() {
        let mut buffer = [0; 1024];
        let received = stream.read(&mut buffer)?;
        pending.extend_from_slice(&buffer[..received]);
    }
    let is_open = !pending.is_empty();
    while !pending.is_empty() {
        let sent = stream.write(pending)?;
        pending.drain(..sent);
    }
    Ok(is_open)
}
