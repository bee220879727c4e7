//! An echo server on one loop: `src/reactor.rs` of ecoloop, with the same names, and nothing that an echo can do without.
//!
//!     cargo run --example loop -- 127.0.0.1:5000

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::time::Duration;

use mio::event::Event;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

struct Reactor {
    poll: Poll,
    events: Events,
    slots: Slab<Connection>,
    run_queue: Vec<usize>, // keys to serve without an event
}

struct Connection {
    stream: TcpStream,
    pending: Vec<u8>,
    queued: bool,
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:5000".into());
    let mut listener = TcpListener::bind(address.parse().map_err(io::Error::other)?)?;
    println!("Listening on {}", listener.local_addr()?);
    let (poll, events) = (Poll::new()?, Events::with_capacity(1024));
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut reactor = Reactor { poll, events, slots: Slab::new(), run_queue: Vec::new() };
    loop {
        reactor.wait()?;
        reactor.serve(&listener);
    }
}

impl Reactor {
    fn wait(&mut self) -> io::Result<()> {
        let timeout = (!self.run_queue.is_empty()).then_some(Duration::ZERO);
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn serve(&mut self, listener: &TcpListener) {
        let queued = mem::take(&mut self.run_queue);
        let reported: Vec<_> = self.events.iter().map(Event::token).collect();
        for token in reported {
            if token == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    self.insert(stream);
                }
            } else {
                self.serve_one(token.0);
            }
        }
        for key in queued {
            self.slots[key].queued = false;
            self.serve_one(key);
        }
    }

    fn serve_one(&mut self, key: usize) {
        let Some(connection) = self.slots.get_mut(key).filter(|connection| !connection.queued) else { return };
        match connection.ready() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // drained: the next edge brings the key back
            Ok(1..) => {
                connection.queued = true; // not drained: no edge will bring it back
                self.run_queue.push(key);
            }
            Ok(0) | Err(_) => drop(self.slots.remove(key)), // closes the socket
        }
    }

    fn insert(&mut self, mut stream: TcpStream) {
        let entry = self.slots.vacant_entry();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(entry.key()), interest).is_ok() {
            entry.insert(Connection { stream, pending: Vec::new(), queued: false });
        }
    }
}

impl Connection {
    /// Sends what is pending, then reads once, and sends that back.
    fn ready(&mut self) -> io::Result<usize> {
        self.send()?;
        let mut buffer = [0; 1024];
        let received = self.stream.read(&mut buffer)?;
        self.pending.extend_from_slice(&buffer[..received]);
        self.send()?;
        Ok(received)
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            let sent = self.stream.write(&self.pending)?;
            self.pending.drain(..sent);
        }
        Ok(())
    }
}
