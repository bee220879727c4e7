//! Opens the listening sockets, accepts in bursts, waits out a lack of descriptors.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::config::{ACCEPT_RETRY, COMPLAINT_INTERVAL, Config};
use crate::LOG_TARGET;

/// Whether an accepted socket has its listener's buffer sizes and `TCP_NODELAY`. tcp(7) promises it on Linux alone.
pub(super) const ACCEPTED_INHERITS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) key: usize,
}

/// What one call of accept(2) answered.
#[derive(Debug)]
pub(super) enum Accept {
    Connection(TcpStream, SocketAddr),
    Blocked,
    /// It failed for one connection, which is gone: the next may do.
    Skipped,
    /// It failed for all.
    Failed(io::Error),
}

impl Listener {
    pub(super) fn accept(&self) -> Accept {
        match self.socket.accept() {
            Ok((stream, address)) => Accept::Connection(stream, address),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accept::Blocked,
            Err(error) if is_one_connections_own(&error) => Accept::Skipped,
            Err(error) => Accept::Failed(error),
        }
    }
}

/// Whether accepting rests, until when, and what has been said of it.
#[derive(Debug, Default)]
pub(super) struct Accepting {
    /// The listeners were left with connections that wait, and no edge will announce those again.
    held: bool,
    /// A burst has ended before the backlog did, or a rest is over.
    unfinished: bool,
    retry_at: Option<Instant>,
    /// The system ran out of descriptors or memory, and nothing was accepted since.
    short: bool,
    /// When a shortage was last said, and when any other failure was: neither may keep the other from being said.
    shortage_said_at: Option<Instant>,
    failure_said_at: Option<Instant>,
}

impl Accepting {
    /// Leaves what waits to the backlog, until a connection closes.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// The same, and until a little time has passed. A shortage is said once, anything else at a limited rate.
    pub(super) fn rest(&mut self, address: SocketAddr, error: &io::Error) {
        let now = Instant::now();
        self.held = true;
        self.retry_at = Some(now + ACCEPT_RETRY);
        let words = format_args!("cannot accept on {address}: {error}; those who wait are tried again");
        if !is_shortage(error) {
            say(&mut self.failure_said_at, now, words);
        } else if !std::mem::replace(&mut self.short, true) {
            say(&mut self.shortage_said_at, now, words);
        }
    }

    /// Says that a connection was dropped because the system would not have it.
    pub(super) fn dropped(&mut self, address: SocketAddr, error: &io::Error) {
        say(&mut self.failure_said_at, Instant::now(), format_args!("cannot serve {address}: {error}; dropped"));
    }

    /// A connection was accepted: a shortage is over.
    pub(super) fn accepted(&mut self) {
        self.short = false;
    }

    /// When to go on, if nothing closes before.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn is_resting(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Ends the rest, if there was one: the next turn goes on.
    pub(super) fn wake(&mut self) {
        self.retry_at = None;
        self.unfinished |= std::mem::take(&mut self.held);
    }

    /// Leaves what waits to the next turn.
    pub(super) fn leave_unfinished(&mut self) {
        self.unfinished = true;
    }

    /// Whether the next turn has to go on without an event. It is asked once.
    pub(super) fn take_unfinished(&mut self) -> bool {
        std::mem::take(&mut self.unfinished)
    }
}

/// Warns, unless the same was said less than a minute ago.
fn say(said_at: &mut Option<Instant>, now: Instant, words: std::fmt::Arguments<'_>) {
    if said_at.is_none_or(|at| now.duration_since(at) >= COMPLAINT_INTERVAL) {
        *said_at = Some(now);
        log::warn!(target: LOG_TARGET, "{words}");
    }
}

/// Opens a listening socket on each address: all are bound, then all listen, and if one fails there is none.
pub(super) fn open(addresses: &[SocketAddr], config: &Config) -> io::Result<Vec<TcpListener>> {
    let mut sockets: Vec<(SocketAddr, Socket)> = Vec::new();
    for &address in addresses {
        // A name may resolve to one address twice.
        if address.port() != 0 && sockets.iter().any(|&(bound, _)| bound == address) {
            continue;
        }
        let socket = bind(address, config).map_err(|error| cannot_listen(address, &error))?;
        sockets.push((address, socket));
    }
    let backlog = i32::try_from(config.backlog).unwrap_or(i32::MAX);
    sockets
        .into_iter()
        .map(|(address, socket)| {
            socket.listen(backlog).map_err(|error| cannot_listen(address, &error))?;
            Ok(TcpListener::from_std(socket.into()))
        })
        .collect()
}

/// Sets what every connection is to have: on a listener whose connections inherit it, else on each of them.
pub(super) fn set_connection_options(socket: &SockRef<'_>, config: &Config) -> io::Result<()> {
    socket.set_tcp_nodelay(config.nodelay)?;
    if let Some(bytes) = config.recv_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = config.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

/// Warns where the system cuts the backlog without a word (listen(2)).
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn warn_of_short_backlog(backlog: u32) {
    let somaxconn = std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    if let Some(most) = somaxconn.and_then(|text| text.trim().parse::<u32>().ok()).filter(|&most| most < backlog) {
        log::warn!(
            target: LOG_TARGET,
            "the system cuts the backlog of {backlog} to {most}; `sysctl -w net.core.somaxconn={backlog}` lifts it"
        );
    }
}

/// Says nothing where the limit cannot be read from a file.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn warn_of_short_backlog(_: u32) {}

fn bind(address: SocketAddr, config: &Config) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // So that `0.0.0.0:p` and `[::]:p` stand side by side, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    if config.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if ACCEPTED_INHERITS {
        // Before `listen`: the window scale of a connection is fixed in its handshake (tcp(7)).
        set_connection_options(&SockRef::from(&socket), config)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
}

/// No descriptors, or no memory: accept(2), "ERRORS".
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// An error that was waiting on the new connection: accept(2), "Error handling", says to go on as after `EAGAIN`.
fn is_one_connections_own(error: &io::Error) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if error.raw_os_error() == Some(libc::ENONET) {
        return true;
    }
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}
