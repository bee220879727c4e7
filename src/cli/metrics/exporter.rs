//! The server of the metrics: HTTP/1.1, one request per connection, on a reactor of its own.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{Handler, Next, Reactor, Ready};
use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use prometheus_client::registry::Registry;

use super::http;

/// Maximum number of clients at a time. A further one takes the place of the one that came first.
pub(in super::super) const CLIENTS_MAX: usize = 64;
/// How long a client may take from its accept to the end.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the thread waits after a failure to accept, of which no event announces the end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Most reads and writes of one client before the others are served.
const CALLS_PER_TURN: usize = 16;

/// The server of the metrics.
pub(super) struct Exporter {
    reactor: Reactor<Entry>,
    clients: Clients,
}

/// The clients, and what they are sent.
struct Clients {
    is_ending: Box<dyn Fn() -> bool + Send>,
    registry: Registry,
    /// Their keys and deadlines, the first to come in front.
    queue: VecDeque<(usize, Instant)>,
}

enum Entry {
    Listener(TcpListener),
    Client(Client),
}

enum Act {
    Accept,
    Close,
}

impl Exporter {
    /// Creates a server of `registry`, which reports bad health once `is_ending` returns true.
    pub(super) fn new(
        listeners: Vec<std::net::TcpListener>,
        is_ending: impl Fn() -> bool + Send + 'static,
        registry: Registry,
    ) -> io::Result<Self> {
        let mut reactor = Reactor::new(2 * CLIENTS_MAX)?;
        for listener in listeners {
            listener.set_nonblocking(true)?;
            reactor.insert(TcpListener::from_std(listener), Interest::READABLE, Entry::Listener)?;
        }
        Ok(Self { reactor, clients: Clients { is_ending: Box::new(is_ending), registry, queue: VecDeque::new() } })
    }

    /// Serves until the poll fails.
    pub(super) fn run(&mut self) -> io::Error {
        loop {
            let now = Instant::now();
            while let Some(&(key, deadline)) = self.clients.queue.front()
                && deadline <= now
            {
                self.clients.close(&mut self.reactor, key);
            }
            let timeout = self.clients.queue.front().map(|(_, deadline)| deadline.saturating_duration_since(now));
            if let Err(error) = self.reactor.wait(timeout) {
                return error;
            }
            self.reactor.serve(1, &mut self.clients);
        }
    }
}

impl Handler<Entry> for Clients {
    type Act = Act;

    fn ready(&mut self, _: usize, entry: &mut Entry, _: Ready) -> Next<Act> {
        match entry {
            Entry::Listener(_) => Next::Act(Act::Accept),
            Entry::Client(client) => client.serve(|head| http::respond(head, &self.registry, (self.is_ending)())),
        }
    }

    fn act(&mut self, reactor: &mut Reactor<Entry>, key: usize, act: Act) -> Next<Infallible> {
        match act {
            Act::Accept => self.accept(reactor, key),
            Act::Close => {
                self.close(reactor, key);
                Next::Wait
            }
        }
    }
}

impl Clients {
    /// Accepts at most as many as there can be: each is served once before the next ones can take its place.
    fn accept(&mut self, reactor: &mut Reactor<Entry>, listener: usize) -> Next<Infallible> {
        for _ in 0..CLIENTS_MAX {
            let Some(Entry::Listener(socket)) = reactor.get_mut(listener) else { return Next::Wait };
            match socket.accept() {
                Ok((stream, _)) => self.open(reactor, stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
                Err(_) => {
                    thread::sleep(ACCEPT_RETRY);
                    break;
                }
            }
        }
        Next::Again
    }

    fn open(&mut self, reactor: &mut Reactor<Entry>, stream: TcpStream) {
        if self.queue.len() == CLIENTS_MAX
            && let Some(&(first, _)) = self.queue.front()
        {
            self.close(reactor, first);
        }
        let interest = Interest::READABLE | Interest::WRITABLE;
        // A client that cannot be registered is dropped.
        if let Ok(key) = reactor.insert(stream, interest, |stream| Entry::Client(Client::new(stream))) {
            self.queue.push_back((key, Instant::now() + DEADLINE));
        }
    }

    fn close(&mut self, reactor: &mut Reactor<Entry>, key: usize) {
        self.queue.retain(|&(other, _)| other != key);
        reactor.remove(key);
    }
}

/// A connection: it brings a request, takes the response, and ends.
struct Client {
    stream: TcpStream,
    head: Vec<u8>,
    /// `None` until the head of the request is complete.
    response: Option<Vec<u8>>,
    sent: usize,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        Self { stream, head: Vec::new(), response: None, sent: 0 }
    }

    /// Reads the request, sends what `respond` returns for its head, and reads to the end: closing with unread input would destroy
    /// the response (RFC 1122, 4.2.2.13).
    fn serve(&mut self, respond: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Next<Act> {
        for _ in 0..CALLS_PER_TURN {
            let progress = if self.response.as_ref().is_some_and(|response| self.sent < response.len()) {
                self.send()
            } else {
                self.receive(&respond)
            };
            match progress {
                Ok(0) => return Next::Act(Act::Close),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Next::Act(Act::Close),
            }
        }
        Next::Again
    }

    fn send(&mut self) -> io::Result<usize> {
        let response = self.response.as_deref().unwrap_or_default();
        let length = self.stream.write(&response[self.sent..])?;
        self.sent += length;
        if self.sent == response.len() {
            // ENOTCONN: the client has gone, which the next read returns.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(length)
    }

    fn receive(&mut self, respond: impl Fn(&[u8]) -> Option<Vec<u8>>) -> io::Result<usize> {
        let mut buffer = [0; 1024];
        let length = self.stream.read(&mut buffer)?;
        if self.response.is_none() && length > 0 {
            self.head.extend_from_slice(&buffer[..length]);
            self.response = respond(&self.head);
        }
        Ok(length)
    }
}
