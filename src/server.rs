//! The echo server: bind, turn, run.

mod accept;
mod admission;
mod config;
mod connect_faults;
mod connection;
mod drain;
mod echo;
mod faulted;
mod handle;
mod idle;
mod listen;
mod observer;
pub(crate) mod proxy_protocol;
mod running;
mod stats;
#[cfg(test)]
mod tests;
mod token_bucket;
mod turn;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::net::TcpListener;

use self::accept::{Acceptor, Listener};
use self::admission::Admission;
use self::connect_faults::{ConnectFaults, Open};
use self::drain::Lifecycle;
use self::echo::{Core, Echo, Entry};
use self::idle::Timeouts;
use self::observer::LocalAddresses;
use self::turn::EventLoop;
use crate::clock;
use crate::error::cannot;
use crate::fault::{Fault, Rules};
use crate::memory;
use crate::reactor::Reactor;
use crate::timers::Timers;
use crate::transport::{Listen, UnixAddress, UnixListener};
use crate::worker::{Worker, resume_panic};

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use self::listen::set_connection_options as set_tcp_options;

pub use self::config::{Config, SourceLimit, WhenFull};
pub use self::connection::{Connection, Outcome, Served};
pub use self::drain::Turn;
pub use self::handle::Handle;
pub use self::observer::{CloseReason, Observer, Peer};
pub use self::running::Running;
pub use self::stats::{AcceptErrorStats, ClosedStats, FaultStats, RefusedStats, Report, Stats};

/// An echo server on one readiness loop. It listens on TCP, or on another [transport](crate::transport). It is bound and listening,
/// and serves while [`run`](Self::run) or [`turn`](Self::turn) is called.
///
/// Dropping it closes every connection, with the reason [`CloseReason::Stopped`].
///
/// It starts a thread only in [`spawn`](Self::spawn), installs no signal handler and no logger, and prints nothing. It logs failures
/// of the system with `log`, under the target `ecoloop`.
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
pub struct Server<O: Observer = (), L: Listen = TcpListener> {
    /// `None` only once it was taken out, which consumes the server.
    event_loop: Option<EventLoop<O, L>>,
}

impl Server {
    /// Binds every address that `address` resolves to, then listens on all of them. If one fails, none is served. To resolve a name may
    /// block. With port 0 each address has a port of its own: see [`local_addrs`](Self::local_addrs).
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a field of `config` is zero or above its limit, rules of `faults` exclude each other, or `address` resolves to
    ///   nothing.
    /// - `Unsupported`: a rule is `connect=hang`, and the system is not Linux.
    /// - The address does not resolve.
    /// - `OutOfMemory`: the system has not enough memory for `buffer_size`.
    /// - `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and the other errors of bind(2) and listen(2); the text names the address.
    /// - The process is out of descriptors.
    pub fn bind(address: impl ToSocketAddrs, config: Config) -> io::Result<Self> {
        let addresses = address.to_socket_addrs().map_err(|error| cannot("resolve the address", error))?;
        let addresses: Vec<_> = addresses.collect();
        let sockets = bind_tcp(&addresses, &config)?;
        Self::new(sockets, config, Some(Open::TCP))
    }

    /// Serves a socket that is already listening, and sets it non-blocking.
    ///
    /// `reuse_port` of `config` has no effect. `backlog` only limits how many connections are accepted when a drain begins.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a field of `config` is zero or above its limit, or the socket does not listen (Linux, Android and FreeBSD).
    /// - `InvalidInput`: rules of `faults` exclude each other, or one is `connect=hang` or `connect=refuse`. Those need sockets that
    ///   [`bind`](Self::bind) has opened.
    /// - `OutOfMemory`: the system has not enough memory for `buffer_size`.
    /// - The socket's options cannot be set, or the process is out of descriptors.
    pub fn from_listener(listener: std::net::TcpListener, config: Config) -> io::Result<Self> {
        Self::from_listeners(vec![listener], config)
    }

    /// Serves sockets that are already listening, as [`from_listener`](Self::from_listener) does.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: `listeners` is empty.
    /// - Those of [`from_listener`](Self::from_listener).
    pub fn from_listeners(listeners: Vec<std::net::TcpListener>, config: Config) -> io::Result<Self> {
        check_given(&listeners, &config)?;
        for listener in &listeners {
            let name = || listener.local_addr().map_or("a socket".to_owned(), |address| address.to_string());
            listen::adopt(listener, &config).map_err(|error| cannot(format_args!("serve {}", name()), error))?;
        }
        let mut server = Self::new(listeners.into_iter().map(TcpListener::from_std).collect(), config, None)?;
        server.event_loop_mut().echo.core.acceptor.expect_older();
        Ok(server)
    }
}

impl Server<(), UnixListener> {
    /// Listens on a Unix socket: on a path, or on a name without a file if `path` begins with `@` (Linux). See [`UnixListener::bind`].
    /// The file is removed when the server drains, or ends.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: see [`UnixAddress::new`], and [`from_transport`](Self::from_transport).
    /// - Those of [`UnixListener::bind`].
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{Read, Write};
    /// use std::os::unix::net::UnixStream;
    ///
    /// let directory = std::env::temp_dir();
    /// let path = directory.join(format!("ecoloop-{}.sock", std::process::id()));
    /// let server = ecoloop::Server::bind_unix(&path, ecoloop::Config::default())?.spawn()?;
    ///
    /// let mut client = UnixStream::connect(&path)?;
    /// client.write_all(b"hola")?;
    /// let mut echo = [0; 4];
    /// client.read_exact(&mut echo)?;
    /// assert_eq!(&echo, b"hola");
    ///
    /// drop(server);
    /// assert!(!path.exists());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn bind_unix(path: impl AsRef<Path>, config: Config) -> io::Result<Self> {
        config.validate()?;
        let listener = UnixListener::bind(&UnixAddress::new(path)?, &config)?;
        Self::from_transport(vec![listener], config)
    }
}

impl<L: Listen> Server<(), L> {
    /// Serves listening sockets of any transport. They must not block.
    ///
    /// Of `config`, what precedes listen(2) has no effect, and each transport sets the options that it has in
    /// [`Listen::configure`].
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: `listeners` is empty, or a field of `config` is zero or above its limit.
    /// - `InvalidInput`: rules of `faults` exclude each other, or one is `connect=hang` or `connect=refuse`. Those need sockets that
    ///   [`bind`](Server::bind) has opened.
    /// - `OutOfMemory`: the system has not enough memory for `buffer_size`.
    /// - The process is out of descriptors.
    pub fn from_transport(listeners: Vec<L>, config: Config) -> io::Result<Self> {
        check_given(&listeners, &config)?;
        Self::new(listeners, config, None)
    }

    fn new(sockets: Vec<L>, config: Config, open: Option<Open<L>>) -> io::Result<Self> {
        let mut reactor = Reactor::new(config.events_per_turn)?;
        let handle = Handle::new(reactor.waker()?);
        let mut listeners = Vec::with_capacity(sockets.len());
        for (index, socket) in (0..).zip(sockets) {
            let address = socket.local_addr()?;
            let mut registered = None;
            let key = reactor.insert(socket, Interest::READABLE, |socket| {
                registered = Some(socket);
                Entry::Listener(index)
            });
            let key = key.map_err(|error| cannot(format_args!("wait for connections on {address}"), error))?;
            listeners.extend(registered.map(|socket| Listener { socket, address, key, has_older: false }));
        }
        let started = clock::now();
        memory::check(config.buffer_size)
            .map_err(|error| cannot(format_args!("allocate a buffer_size of {}", config.buffer_size), error))?;
        let core = Core {
            local_addrs: listeners.iter().map(|listener| listener.address.clone()).collect(),
            acceptor: Acceptor::new(listeners, config.accept_rate),
            admission: Admission::new(&config),
            buffer: vec![0; config.buffer_size].into(),
            timeouts: Timeouts::new(&config),
            local_addresses: LocalAddresses::default(),
            connections: 0,
            connections_peak: 0,
            lifecycle: Lifecycle::Serving,
            hand: None,
            rules: Rules::new(&config.faults, config.fault_seed, started),
            accepts: 0,
            timers: Timers::new(),
            connect_faults: ConnectFaults::new(open),
            config,
            handle,
        };
        let mut echo = Echo { core, observer: () };
        // What the sockets were opened for, even if its time is over.
        echo.apply_connect_faults(&mut reactor, started);
        Ok(Self { event_loop: Some(EventLoop { reactor, echo }) })
    }

    /// Sets the observer of connection events. Call it before the first turn: of a connection that is open already, the observer gets
    /// the events that follow, and no [`opened`](Observer::opened).
    pub fn with_observer<O: Observer>(mut self, observer: O) -> Server<O, L> {
        let event_loop = self.event_loop.take();
        Server {
            event_loop: event_loop
                .map(|EventLoop { reactor, echo }| EventLoop { reactor, echo: Echo { core: echo.core, observer } }),
        }
    }
}

impl<O: Observer, L: Listen> Server<O, L> {
    fn event_loop(&self) -> &EventLoop<O, L> {
        match &self.event_loop {
            Some(event_loop) => event_loop,
            None => unreachable!("a server whose loop was taken is gone"),
        }
    }

    fn event_loop_mut(&mut self) -> &mut EventLoop<O, L> {
        match &mut self.event_loop {
            Some(event_loop) => event_loop,
            None => unreachable!("a server whose loop was taken is gone"),
        }
    }

    fn core(&self) -> &Core<L> {
        &self.event_loop().echo.core
    }

    /// Returns the first address that the server is bound to, with the real port if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> L::Address {
        self.core().local_addrs[0].clone()
    }

    /// Returns every address that the server is bound to.
    #[must_use]
    pub fn local_addrs(&self) -> &[L::Address] {
        &self.core().local_addrs
    }

    /// Returns a handle, which commands the server and reads its counters from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.core().handle.clone()
    }

    /// Returns the observer.
    pub fn observer(&self) -> &O {
        &self.event_loop().echo.observer
    }

    /// Returns the observer, to alter it between turns.
    pub fn observer_mut(&mut self) -> &mut O {
        &mut self.event_loop_mut().echo.observer
    }

    /// Closes every connection, with the reason [`CloseReason::Stopped`], and returns the observer.
    ///
    /// # Panics
    ///
    /// Panics if the observer panics.
    ///
    /// # Examples
    ///
    /// ```
    /// use ecoloop::{Config, Observer, Peer, Server};
    ///
    /// #[derive(Default)]
    /// struct Count(u64);
    ///
    /// impl Observer for Count {
    ///     fn opened(&mut self, _: Peer) {
    ///         self.0 += 1;
    ///     }
    /// }
    ///
    /// let mut server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Count::default());
    /// server.handle().drain();
    /// server.run()?;
    /// let count = server.into_observer();
    /// assert_eq!(count.0, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn into_observer(mut self) -> O {
        self.event_loop_mut().close();
        match self.event_loop.take() {
            Some(event_loop) => event_loop.echo.observer,
            None => unreachable!("a server whose loop was taken is gone"),
        }
    }

    /// Returns the counters, and the time since the bind.
    #[must_use]
    pub fn report(&self) -> Report {
        self.core().handle.report()
    }

    /// Returns the time by which to call [`turn`](Self::turn) even if the descriptor is not readable: *now* while work is left over
    /// from the last turn, `None` if there is no deadline.
    ///
    /// An outer loop whose own poll is edge-triggered (mio, tokio's `AsyncFd`) calls `turn` with `Some(Duration::ZERO)` until this is
    /// `None` or later than now, and then waits for both.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.core().lifecycle.is_finished() {
            None
        } else if self.event_loop().reactor.has_pending() {
            Some(clock::now())
        } else {
            self.core().earliest_deadline()
        }
    }

    /// Serves until a [`Handle`] drains or stops the server, and returns the report.
    ///
    /// # Errors
    ///
    /// - The poll itself fails, which no peer can cause.
    pub fn run(&mut self) -> io::Result<Report> {
        while self.turn(None)? == Turn::Running {}
        Ok(self.report())
    }

    /// Serves on a thread of its own. Dropping the returned value stops the server and joins the thread.
    ///
    /// # Errors
    ///
    /// - The system refuses the thread.
    pub fn spawn(self) -> io::Result<Running<O, L>>
    where
        O: Send + 'static,
        L: Send + 'static,
        L::Stream: Send,
        L::Address: Send,
    {
        let mut server = self;
        let (local_addrs, handle) = (server.local_addrs().to_owned(), server.handle());
        let run = move || (server.run(), server.into_observer());
        let thread = Worker::spawn("ecoloop", run).map_err(|error| cannot("start the server's thread", error))?;
        Ok(Running { local_addrs, handle, thread })
    }

    /// Takes one turn: waits for readiness, at most for `timeout` (`None`: without limit) and never past
    /// [`next_deadline`](Self::next_deadline), then serves each connection and listener that is ready.
    ///
    /// # Errors
    ///
    /// - The poll itself fails, which no peer can cause.
    ///
    /// # Panics
    ///
    /// Panics if the observer panics. Call it again after you have caught that: every other connection is served as if nothing had
    /// happened. The connection that was served may have lost what it had received, or an event.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use ecoloop::{Config, Server, Turn};
    ///
    /// let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    /// let handle = server.handle();
    /// while server.turn(Some(Duration::from_millis(10)))? == Turn::Running {
    ///     handle.drain();
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<Turn> {
        self.event_loop_mut().turn(timeout)
    }
}

/// Checks `config` for sockets that the caller has opened: rules that close or filter them are refused, because the server could not
/// open them again.
fn check_given<L>(listeners: &[L], config: &Config) -> io::Result<()> {
    config.validate()?;
    if listeners.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket to listen on"));
    }
    if config.faults.iter().any(Fault::changes_listeners) {
        let reason = "connect=hang and connect=refuse need listening sockets that Server::bind has opened";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

/// Opens the listening sockets of a TCP server.
pub(crate) fn bind_tcp(addresses: &[SocketAddr], config: &Config) -> io::Result<Vec<TcpListener>> {
    config.validate()?;
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
    }
    let sockets = listen::open(addresses, config)?;
    listen::warn_if_backlog_is_cut(config.backlog);
    Ok(sockets)
}

impl<O: Observer, L: Listen> AsFd for Server<O, L> {
    /// Returns the poll's descriptor, which is readable while there are events. See [`Server::next_deadline`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_loop().reactor.as_fd()
    }
}

impl<O: Observer, L: Listen> Drop for Server<O, L> {
    /// Closes every connection, with the reason [`CloseReason::Stopped`].
    ///
    /// # Panics
    ///
    /// Panics if the observer panics, unless the thread is panicking already.
    fn drop(&mut self) {
        if let Some(mut event_loop) = self.event_loop.take() {
            let closed = panic::catch_unwind(AssertUnwindSafe(|| event_loop.close()));
            resume_panic(closed);
        }
    }
}
