//! Opens the socket of a connection and starts to connect it.

use std::io;
use std::net::SocketAddr;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::load::error::{ErrorName, Phase, classify};
use crate::socket_address::UnixAddress;

/// The options of every socket, set before it connects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketOptions {
    pub(crate) nodelay: bool,
    pub(crate) recv_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
}

/// A connect that could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectFailure {
    pub(crate) phase: Phase,
    pub(crate) error: ErrorName,
    pub(crate) errno: Option<i32>,
}

impl ConnectFailure {
    /// Returns whether the next connect would fail in the same way: descriptors, ports or epoll watches are exhausted, and no connection
    /// of a run that does not repeat its connects gives one back.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self.error, ErrorName::NoDescriptors | ErrorName::NoPorts) || self.errno == Some(libc::ENOSPC)
    }

    pub(super) fn new(phase: Phase, error: &io::Error) -> Self {
        Self { phase, error: classify(error), errno: error.raw_os_error() }
    }
}

/// All ports are in use by connections of this run; no system call was made.
pub(super) const NO_PORTS: ConnectFailure =
    ConnectFailure { phase: Phase::Bind, error: ErrorName::NoPorts, errno: None };

/// Opens a TCP socket and starts to connect it. Returns an error with its phase.
pub(super) fn open(
    local: Option<SocketAddr>,
    peer: SocketAddr,
    options: &SocketOptions,
) -> Result<TcpStream, (Phase, io::Error)> {
    let socket = prepare(peer, options).map_err(|error| (Phase::Connect, error))?;
    if let Some(local) = local {
        socket.bind(&local.into()).map_err(|error| (Phase::Bind, error))?;
    }
    match socket.connect(&peer.into()) {
        // POSIX: an interrupted connect continues in the background, as that of a non-blocking socket.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => {
            Err((Phase::Connect, error))
        }
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

/// Opens a Unix socket, which is not connected: the caller connects it once it is registered.
pub(super) fn open_unix(options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    set_buffers(&socket, options)?;
    // For recv(2) and send(2) all stream sockets are alike.
    Ok(TcpStream::from_std(socket.into()))
}

/// Connects a Unix socket. Returns whether its backlog had room.
pub(crate) fn connect_unix(stream: &TcpStream, address: &UnixAddress) -> io::Result<bool> {
    match SockRef::from(stream).connect(&address.socket_address()?) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

fn prepare(peer: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Also without sources: the port keeps it in TIME_WAIT, so that a later run with sources can bind it.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(options.nodelay)?;
    // Before the handshake, which sets the window scale (tcp(7)).
    set_buffers(&socket, options)?;
    Ok(socket)
}

fn set_buffers(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    if let Some(bytes) = options.recv_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(())
}

/// Classifies a failure with a chosen address: `EADDRNOTAVAIL` of bind(2) means that the address is not local.
pub(super) fn bound_failure(phase: Phase, error: &io::Error) -> ConnectFailure {
    let failure = ConnectFailure::new(phase, error);
    if phase == Phase::Bind && failure.errno == Some(libc::EADDRNOTAVAIL) {
        return ConnectFailure { error: ErrorName::NotLocal, ..failure };
    }
    failure
}

/// Classifies a failure with an address that the system chose: `EADDRNOTAVAIL` means that there is no port left for the target, or
/// no address (IPv6 is disabled). A datagram socket tells them apart: it needs the address alone.
pub(super) fn unbound_failure(phase: Phase, error: &io::Error, peer: SocketAddr) -> ConnectFailure {
    let failure = ConnectFailure::new(phase, error);
    if failure.errno == Some(libc::EADDRNOTAVAIL) {
        let probe = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))
            .and_then(|socket| socket.connect(&peer.into()));
        if probe.is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL)) {
            return ConnectFailure { error: ErrorName::Unreachable, ..failure };
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_lasts_if_something_of_the_machine_is_used_up() {
        let is_lasting = |errno| ConnectFailure::new(Phase::Connect, &io::Error::from_raw_os_error(errno)).is_lasting();
        let used_up = [libc::EMFILE, libc::ENFILE, libc::EADDRINUSE, libc::EADDRNOTAVAIL, libc::ENOSPC];
        assert_eq!(used_up.map(is_lasting), [true; 5]);
        assert_eq!([libc::ECONNREFUSED, libc::ENETUNREACH, libc::ENOBUFS].map(is_lasting), [false; 3]);
        assert!(NO_PORTS.is_lasting());
    }
}
