//! The echo server: leads each readiness to the listener or to its connection.

mod config;
mod connection;
mod handle;
mod listener;
mod observer;
mod stats;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use self::config::{DRAIN_SWEEP, DRAIN_SWEEPS, IDLE_SWEEPS, PEAK_WORTH_A_TRIM};
use self::handle::Command;
use self::listener::{ACCEPTED_INHERITS, Accept, Accepting, Listener};
use crate::reactor::{Batch, INTEREST, Reactor, Readiness, SLOTS_RESERVED};
use crate::socket::Socket;

pub use self::config::Config;
pub use self::connection::{Connection, Progress};
pub use self::handle::Handle;
pub use self::observer::{Closed, Observer, Peer};
pub use self::stats::{ClosedStats, Stats};

/// A TCP echo server on one readiness loop: bound and listening, and served by whoever calls [`run`](Self::run) or
/// [`turn`](Self::turn).
///
/// It starts no thread but in [`spawn`](Self::spawn), installs no signal handler and no logger, and prints nothing; what it has
/// to say of the system's failures goes through `log` under the target `ecoloop`.
///
/// # Examples
///
/// ```
/// use std::io::{Read, Write};
/// use std::net::{Shutdown, TcpStream};
/// use ecoloop::{Config, Server};
///
/// let mut server = Server::bind("127.0.0.1:0", Config::default())?;
/// let address = server.local_addr();
/// let handle = server.handle();
/// let thread = std::thread::spawn(move || server.run());
///
/// let mut client = TcpStream::connect(address)?;
/// client.write_all(b"hola")?;
/// client.shutdown(Shutdown::Write)?;
/// let mut echo = String::new();
/// client.read_to_string(&mut echo)?;
/// assert_eq!(echo, "hola");
///
/// handle.drain();
/// # #[expect(clippy::unwrap_used)]
/// let report = thread.join().unwrap()?;
/// assert_eq!(report.stats.closed.end_of_stream, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Server<O = ()> {
    reactor: Reactor<Entry>,
    listeners: Vec<Listener>,
    accepting: Accepting,
    local_addrs: Vec<SocketAddr>,
    config: Config,
    /// Every read goes through it: a connection has none of its own.
    buffer: Box<[u8]>,
    /// How many are open.
    connections: usize,
    /// How many were, at most, since none was.
    connections_peak: usize,
    phase: Phase,
    /// When to look for connections on which nothing moves.
    next_sweep: Option<Instant>,
    started: Instant,
    handle: Handle,
    observer: O,
}

/// What stands under a key.
///
/// Its size decides what an idle connection costs; a listener's belongings are outside, in `Server::listeners`.
#[derive(Debug)]
enum Entry {
    Listener(u32),
    Connection { connection: Connection<Socket>, address: SocketAddr },
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    Draining { deadline: Option<Instant> },
    Finished,
}

/// Whether there are more turns to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Call again, when the descriptor is readable or the deadline has come.
    Running,
    /// Drained or stopped: every socket is closed.
    Finished,
}

/// What a server has done, at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The final counters.
    pub stats: Stats,
    /// From the bind to the call of [`Server::report`].
    pub elapsed: Duration,
}

impl Server {
    /// Binds every address that `address` names, then listens on all of them; if one fails, none serves.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: an option of `config` is zero or above its limit, or `address` names nothing.
    /// - The address does not resolve.
    /// - `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and what else bind(2) and listen(2) answer; the text names the address.
    /// - The process is out of descriptors.
    pub fn bind(address: impl ToSocketAddrs, config: Config) -> io::Result<Self> {
        config.validate()?;
        let addresses: Vec<_> = address.to_socket_addrs()?.collect();
        if addresses.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
        }
        let sockets = listener::open(&addresses, &config)?;
        listener::warn_of_short_backlog(config.backlog);
        Self::new(sockets, config)
    }

    /// Serves a socket that listens already, and sets it non-blocking.
    ///
    /// `reuse_port` of `config` comes too late to apply, and so does `backlog`, but for how many are taken in when a drain begins.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: an option of `config` is zero or above its limit.
    /// - The socket's options cannot be set, or the process is out of descriptors.
    pub fn from_listener(listener: std::net::TcpListener, config: Config) -> io::Result<Self> {
        config.validate()?;
        listener.set_nonblocking(true)?;
        if ACCEPTED_INHERITS {
            listener::set_connection_options(&SockRef::from(&listener), &config)?;
        }
        Self::new(vec![TcpListener::from_std(listener)], config)
    }

    fn new(sockets: Vec<TcpListener>, config: Config) -> io::Result<Self> {
        let mut reactor = Reactor::new(config.events_per_turn)?;
        let handle = Handle::new(reactor.waker()?);
        let local_addrs = sockets.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let mut listeners = Vec::with_capacity(sockets.len());
        for (index, socket) in (0..).zip(sockets) {
            let mut registered = None;
            let key = reactor.insert(socket, Interest::READABLE, |socket| {
                registered = Some(socket);
                Entry::Listener(index)
            })?;
            listeners.extend(registered.map(|socket| Listener { socket, key }));
        }
        Ok(Self {
            reactor,
            listeners,
            accepting: Accepting::default(),
            local_addrs,
            buffer: vec![0; config.buffer_size].into(),
            config,
            connections: 0,
            connections_peak: 0,
            phase: Phase::Serving,
            next_sweep: None,
            started: Instant::now(),
            handle,
            observer: (),
        })
    }

    /// Has `observer` told what becomes of the connections.
    pub fn with_observer<O: Observer>(self, observer: O) -> Server<O> {
        Server {
            observer,
            reactor: self.reactor,
            listeners: self.listeners,
            accepting: self.accepting,
            local_addrs: self.local_addrs,
            config: self.config,
            buffer: self.buffer,
            connections: self.connections,
            connections_peak: self.connections_peak,
            phase: self.phase,
            next_sweep: self.next_sweep,
            started: self.started,
            handle: self.handle,
        }
    }
}

impl<O> Server<O> {
    /// The first address it was bound to, with the real port where 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs[0]
    }

    /// Every address it was bound to.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Commands it, and reads its counters, from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What is told of the connections.
    pub fn observer(&self) -> &O {
        &self.observer
    }

    /// What it has done so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report { stats: self.handle.stats(), elapsed: self.started.elapsed() }
    }

    /// The time by which to call [`turn`](Self::turn) though the descriptor says nothing: *now* while work is left over from
    /// the last turn.
    ///
    /// An outer loop whose own poll is edge-triggered (mio, tokio's `AsyncFd`) turns with `Some(Duration::ZERO)` until this is
    /// `None` or later than now, and then waits for both.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.phase {
            // A list that was left over when time ran out is nobody's.
            Phase::Finished => None,
            _ if self.reactor.has_work() => Some(Instant::now()),
            _ => self.earliest_deadline(),
        }
    }

    fn earliest_deadline(&self) -> Option<Instant> {
        self.deadlines().into_iter().flatten().min()
    }

    fn deadlines(&self) -> [Option<Instant>; 3] {
        let drain = match self.phase {
            Phase::Draining { deadline } => deadline,
            Phase::Serving | Phase::Finished => None,
        };
        [self.accepting.retry_at(), self.next_sweep, drain]
    }
}

impl<O: Observer> Server<O> {
    /// Serves until a [`Handle`] drains or stops it, and reports.
    ///
    /// # Errors
    ///
    /// - The poll itself fails, which no peer can cause.
    pub fn run(&mut self) -> io::Result<Report> {
        while self.turn(None)? == Turn::Running {}
        Ok(self.report())
    }

    /// Serves on a thread of its own, which ends when the answer is dropped.
    ///
    /// # Errors
    ///
    /// - The system refuses the thread.
    pub fn spawn(self) -> io::Result<Running>
    where
        O: Send + 'static,
    {
        let mut server = self;
        let (local_addrs, handle) = (server.local_addrs.clone(), server.handle());
        let thread = thread::Builder::new().name("ecoloop".to_owned()).spawn(move || server.run())?;
        Ok(Running { local_addrs, handle, thread: Some(thread) })
    }

    /// One turn: waits for readiness, at most for `timeout` (`None`: as long as it takes) and never past
    /// [`next_deadline`](Self::next_deadline), then serves each connection and listener that has something to do.
    ///
    /// # Errors
    ///
    /// - The poll itself fails, which no peer can cause.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        let timeout = self.meet_deadlines(timeout);
        if let Phase::Finished = self.phase {
            return Ok(Turn::Finished);
        }
        let batch = self.poll(timeout)?;
        if self.handle.is_ending() {
            self.obey();
        }
        for reported in batch.iter() {
            self.serve(reported.key(), &reported.readiness());
        }
        self.reactor.give_back(batch);
        if self.reactor.has_work() {
            self.serve_listed();
        }
        self.resume_listeners();
        if self.connections == 0 {
            if let Phase::Draining { .. } = self.phase {
                self.finish(Closed::Drained);
            } else if self.connections_peak > 0 {
                self.give_memory_back();
            }
        }
        Ok(if let Phase::Finished = self.phase { Turn::Finished } else { Turn::Running })
    }

    #[cold]
    fn obey(&mut self) {
        match (self.handle.command(), self.phase) {
            (Command::Drain, Phase::Serving) => self.begin_drain(),
            (Command::Stop, _) => self.finish(Closed::Stopped),
            _ => {}
        }
    }

    /// After a peak that was worth it, once the last connection has gone.
    fn give_memory_back(&mut self) {
        if self.reactor.capacity() > SLOTS_RESERVED {
            self.reactor.shrink_to_fit();
        }
        if self.connections_peak >= PEAK_WORTH_A_TRIM {
            // What was pending lies in glibc's heap in small pieces. It joins them, and gives the end of the heap back to the
            // system, when a block of 64 KiB is freed (malloc.c, FASTBIN_CONSOLIDATION_THRESHOLD).
            drop(std::hint::black_box(Vec::<u8>::with_capacity(64 << 10)));
        }
        self.connections_peak = 0;
    }

    /// Does what its time has come for, and answers how long the turn may wait. Without a deadline it reads no clock.
    fn meet_deadlines(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.deadlines().iter().any(Option::is_some) { self.meet_those_due(timeout) } else { timeout }
    }

    #[inline(never)]
    fn meet_those_due(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let now = Instant::now();
        if self.accepting.retry_at().is_some_and(|at| at <= now) {
            self.accepting.wake();
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
        if let Phase::Draining { deadline: Some(deadline) } = self.phase
            && deadline <= now
        {
            self.finish(Closed::Cut);
        }
        self.resume_listeners();
        let wait = self.earliest_deadline().map(|at| at.saturating_duration_since(now));
        [timeout, wait].into_iter().flatten().min()
    }

    /// Waits for events, at most for `timeout`; polls without waiting first, as long as the configuration says.
    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<Batch> {
        if self.config.spin.is_zero() { self.reactor.poll(timeout) } else { self.spin(timeout) }
    }

    #[inline(never)]
    fn spin(&mut self, timeout: Option<Duration>) -> io::Result<Batch> {
        let spin = self.config.spin.min(timeout.unwrap_or(Duration::MAX));
        let start = Instant::now();
        loop {
            let batch = self.reactor.poll(Some(Duration::ZERO))?;
            let elapsed = start.elapsed();
            if !batch.is_empty() || self.reactor.has_work() {
                return Ok(batch);
            }
            self.reactor.give_back(batch);
            if elapsed >= spin {
                return self.reactor.poll(timeout.map(|timeout| timeout.saturating_sub(elapsed)));
            }
        }
    }

    /// Serves those on the list, in as many rounds as a connection has reads in a turn; the first has begun.
    ///
    /// Whoever fills its buffer has its next read after everybody else's: that is fair, and answers that go out one behind the other
    /// cost less CPU time than answers with a read in between (docs/benchmarks.md, "What was tried").
    fn serve_listed(&mut self) {
        for round in 1..=self.config.reads_per_turn {
            if round > 1 && !self.reactor.next_round() {
                break;
            }
            while let Some(key) = self.reactor.next_listed() {
                self.serve(key, &Readiness::default());
            }
        }
    }

    /// Has a listener accept, or a connection read once.
    #[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "by value the hints are packed into a word, and unpacked again"
    )]
    #[inline(always)]
    fn serve(&mut self, key: usize, readiness: &Readiness) {
        match self.reactor.visit(key) {
            Some(Entry::Connection { connection, address }) => {
                let peer = || Peer::new(key, *address);
                let progress = echo(connection, peer, readiness, &mut self.buffer, &self.handle, &mut self.observer);
                match progress {
                    Progress::Waiting => {}
                    Progress::Unfinished => self.reactor.resume(key),
                    Progress::Discarded(length) => self.discarded(key, length),
                    Progress::Ended => self.end(key),
                    Progress::Failed(kind) => self.close(key, kind.into()),
                }
            }
            Some(&mut Entry::Listener(index)) => self.attend(index as usize),
            None => {}
        }
    }

    #[cold]
    fn discarded(&mut self, key: usize, length: usize) {
        self.handle.counters().bytes_in.add(length);
        self.handle.counters().discarded.add(length);
        self.reactor.resume(key);
    }

    /// The peer has ended its direction.
    #[cold]
    fn end(&mut self, key: usize) {
        if let Some(Entry::Connection { connection, address }) = self.reactor.get_mut(key) {
            let why = if connection.is_discarding() { Closed::Drained } else { Closed::EndOfStream };
            self.observer.ended(Peer::new(key, *address));
            self.close(key, why);
        }
    }

    #[cold]
    fn attend(&mut self, index: usize) {
        if self.accepting.is_resting() {
            self.accepting.hold();
        } else {
            self.accept(index, self.config.accepts_per_turn);
        }
    }

    /// Accepts until there is nobody left, at most `burst` times: a storm of new connections shall not starve the old.
    fn accept(&mut self, index: usize, burst: usize) {
        for _ in 0..burst {
            if self.connections >= self.config.max_connections {
                self.accepting.hold();
                return;
            }
            match self.listeners[index].accept() {
                Accept::Connection(stream, address) => self.admit(stream, address),
                Accept::Skipped => {}
                Accept::Blocked => return,
                Accept::Failed(error) => return self.accepting.rest(self.local_addrs[index], &error),
            }
        }
        self.accepting.leave_unfinished();
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr) {
        self.accepting.accepted();
        if !ACCEPTED_INHERITS
            && let Err(error) = listener::set_connection_options(&SockRef::from(&stream), &self.config)
        {
            return self.accepting.dropped(address, &error);
        }
        let wrap = |stream| Entry::Connection { connection: Connection::new(Socket(stream)), address };
        match self.reactor.insert(stream, INTEREST, wrap) {
            Ok(key) => {
                self.connections += 1;
                self.connections_peak = self.connections_peak.max(self.connections);
                self.handle.counters().accepted.add(1);
                self.observer.opened(Peer::new(key, address));
                if self.next_sweep.is_none() {
                    self.next_sweep = self.config.idle_sweep().map(|period| Instant::now() + period);
                }
            }
            Err(error) => self.accepting.dropped(address, &error),
        }
    }

    /// Counts and tells why, then closes. The key is free from the next turn on.
    fn close(&mut self, key: usize, why: Closed) {
        if let Some(Entry::Connection { connection, address }) = self.reactor.remove(key) {
            self.connections -= 1;
            self.handle.counters().closed(why).add(1);
            self.observer.closed(Peer::new(key, address), why);
            drop(connection);
            self.accepting.wake();
        }
    }

    /// Goes back in the next turn to the listeners that were left with connections that wait.
    fn resume_listeners(&mut self) {
        if self.accepting.take_unfinished() {
            for listener in &self.listeners {
                self.reactor.resume(listener.key);
            }
        }
    }

    /// Takes in those who wait already, closes the listeners, and looks for silence from now on.
    fn begin_drain(&mut self) {
        for index in 0..self.listeners.len() {
            self.accept(index, self.config.backlog as usize);
        }
        self.close_listeners();
        for (_, entry) in self.reactor.iter_mut() {
            if let Entry::Connection { connection, .. } = entry {
                connection.reset_quiet();
            }
        }
        let now = Instant::now();
        self.phase = Phase::Draining { deadline: now.checked_add(self.config.drain_timeout) };
        self.next_sweep = Some(now + DRAIN_SWEEP);
    }

    fn close_listeners(&mut self) {
        self.accepting = Accepting::default();
        for mut listener in self.listeners.drain(..) {
            self.reactor.remove(listener.key);
            if let Err(error) = self.reactor.deregister(&mut listener.socket) {
                log::debug!(target: crate::LOG_TARGET, "cannot deregister a listener: {error}; closing it does as well");
            }
        }
    }

    /// Looks at every connection for one on which nothing has moved: while draining it gets FIN, else it has idled too long.
    fn sweep(&mut self, now: Instant) {
        let draining = matches!(self.phase, Phase::Draining { .. });
        let mut idle = Vec::new();
        for (key, entry) in self.reactor.iter_mut() {
            let Entry::Connection { connection, .. } = entry else { continue };
            let quiet = connection.grow_quiet();
            if draining {
                if quiet >= DRAIN_SWEEPS && connection.pending() == 0 && !connection.is_discarding() {
                    // A peer that has gone answers ENOTCONN; the read that follows says how it went.
                    let _ = connection.get_ref().0.shutdown(Shutdown::Write);
                    connection.discard();
                }
            } else if quiet > IDLE_SWEEPS {
                idle.push(key);
            }
        }
        for key in idle {
            self.close(key, Closed::Idle);
        }
        let period = if draining { Some(DRAIN_SWEEP) } else { self.config.idle_sweep() };
        self.next_sweep = period.filter(|_| self.connections > 0).map(|period| now + period);
    }

    /// Closes whatever is open.
    fn finish(&mut self, why: Closed) {
        self.phase = Phase::Finished;
        self.next_sweep = None;
        self.close_listeners();
        let keys: Vec<_> = self.reactor.iter_mut().map(|(key, _)| key).collect();
        for key in keys {
            self.close(key, why);
        }
        self.reactor.shrink_to_fit();
    }
}

impl<O> AsFd for Server<O> {
    /// The poll's descriptor, which is readable while there is readiness to take. See [`Server::next_deadline`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

/// A server on a thread of its own. Dropped, it stops the server and waits for the thread.
#[derive(Debug)]
pub struct Running {
    local_addrs: Vec<SocketAddr>,
    handle: Handle,
    thread: Option<JoinHandle<io::Result<Report>>>,
}

impl Running {
    /// The first address it was bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs[0]
    }

    /// Every address it was bound to.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Commands it, and reads its counters, from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the end that a [`Handle`] has asked for, or will.
    ///
    /// # Errors
    ///
    /// - As [`Server::run`].
    ///
    /// # Panics
    ///
    /// Where the observer did.
    pub fn join(mut self) -> io::Result<Report> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("only `join` and `drop` take the thread, and each ends this value"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            // Its panic was its own thread's to print; a second one here would abort the process.
            let _ = thread.join();
        }
    }
}

/// Serves one connection, counts what moves, and tells the observer what came in.
///
/// `peer` is made for an observer that looks at it, and costs nothing for one that does not.
#[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
#[inline(always)]
fn echo<S: Read + Write>(
    connection: &mut Connection<S>,
    peer: impl Fn() -> Peer,
    readiness: &Readiness,
    buffer: &mut [u8],
    handle: &Handle,
    observer: &mut impl Observer,
) -> Progress {
    let received = |data: &[u8]| {
        handle.counters().bytes_in.add(data.len());
        observer.received(peer(), data);
    };
    connection.serve(readiness, buffer, received, |length| handle.counters().bytes_out.add(length))
}
