//! What the peers share: their arguments, and the listening socket.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Socket, Type};

/// As ecoloop's own.
pub const BACKLOG: i32 = 4096;

/// Where to listen, and the size of each connection's buffer, of `PORT BUFFER_SIZE`.
///
/// # Errors
///
/// The arguments are others, or the descriptor limit, which is raised here, cannot be.
pub fn arguments() -> Result<(SocketAddr, usize)> {
    let wrong = || Error::new(ErrorKind::InvalidInput, "usage: COMMAND PORT BUFFER_SIZE");
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).ok_or_else(wrong)?;
    let buffer_size = arguments.next().and_then(|size| size.parse().ok()).ok_or_else(wrong)?;
    rlimit::increase_nofile_limit(u64::MAX)?;
    Ok(((Ipv4Addr::LOCALHOST, port).into(), buffer_size))
}

/// A listening socket of the standard library, which most runtimes take.
///
/// # Errors
///
/// The address cannot be had.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
