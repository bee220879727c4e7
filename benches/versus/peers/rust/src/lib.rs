//! The arguments and the listening socket of the peers.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// The default backlog of ecoloop.
pub const BACKLOG: i32 = 4096;

/// Raises the descriptor limit, and returns the address and the buffer size of the arguments `PORT BUFFER_SIZE`.
///
/// # Errors
///
/// Fails if the arguments are invalid or the limit cannot be raised.
pub fn arguments() -> Result<(SocketAddr, usize)> {
    let usage = || Error::new(ErrorKind::InvalidInput, "usage: COMMAND PORT BUFFER_SIZE");
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).ok_or_else(usage)?;
    let buffer_size = arguments.next().and_then(|size| size.parse().ok()).ok_or_else(usage)?;
    rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(((Ipv4Addr::LOCALHOST, port).into(), buffer_size))
}

/// Returns a non-blocking listening socket, which most runtimes can adopt.
///
/// # Errors
///
/// Fails if the address cannot be bound.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
