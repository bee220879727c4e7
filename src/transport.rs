//! What a server listens on: a [`Listen`] accepts connections, and each of them is a [`Stream`].
//!
//! [`Server`](crate::Server) is generic over it, and listens on TCP by default.

mod unix;

use std::fmt::{Debug, Display};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use socket2::SockRef;

use crate::Config;

pub use self::unix::UnixListener;
pub use crate::socket::Socket;
pub use crate::socket_address::{AnyAddress, UnixAddress};

/// A listening socket of a [`Server`](crate::Server).
///
/// It must not block, and neither must the streams that it accepts.
pub trait Listen: Source + AsFd + Debug + Sized {
    /// A connection that it accepts.
    type Stream: Stream;

    /// Its own address, as [`Server::local_addr`](crate::Server::local_addr) returns it.
    type Address: Clone + Debug + Display;

    /// Returns the address that it listens on.
    ///
    /// # Errors
    ///
    /// - The system does not tell (getsockname(2)).
    fn local_addr(&self) -> io::Result<Self::Address>;

    /// Accepts a connection that waits. Returns it with the address of its peer, as [`Peer::address`](crate::Peer::address) has it:
    /// [`Peer::NO_ADDRESS`](crate::Peer::NO_ADDRESS) if it has none.
    ///
    /// # Errors
    ///
    /// - `WouldBlock`: no connection waits.
    /// - The error of accept(2), by which the server decides whether to go on.
    fn accept(&self) -> io::Result<(Self::Stream, SocketAddr)>;

    /// Sets the options of `config` on a connection that was accepted and has not inherited them. Does nothing by default.
    ///
    /// # Errors
    ///
    /// - An option cannot be set: the connection is dropped.
    fn configure(&self, stream: &Self::Stream, config: &Config) -> io::Result<()> {
        let _ = (stream, config);
        Ok(())
    }
}

/// A connection of a [`Server`](crate::Server): the bytes of a read are written back.
///
/// The server calls `flush` only after a write. A stream that begins with a greeting sends it in its `read`, which is called at once.
///
/// Dropping it closes it. The server gets at its socket through [`AsFd`]: it resets a connection by `SO_LINGER` (socket(7)), and
/// takes a PROXY header out of it.
pub trait Stream: Read + Write + Source + AsFd + Debug + Sized {
    /// Whether it is a TCP socket of the system: there is nothing to flush, and a short read drains its edge where the system promises
    /// that (epoll(7), question 9). Any other stream is read until `WouldBlock`, and flushed after each write. Default: it is not.
    const IS_TCP_SOCKET: bool = false;

    /// Reads the next bytes of its socket, and leaves them there. The server looks for a PROXY header in this way. Default:
    /// recv(2) with `MSG_PEEK`; without the feature `raw-syscalls` through a duplicate of the descriptor.
    ///
    /// # Errors
    ///
    /// - Those of recv(2), and of dup(2) for a duplicate.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        crate::socket::calls::peek(self, buffer)
    }

    /// Ends the direction of the output: the peer reads the end of the stream after what was written. Default: shutdown(2) of the
    /// socket.
    ///
    /// The server calls it in a drain. It also calls it before it closes a stream that is not a TCP socket, at the peer's end of the
    /// stream or at the idle timeout.
    ///
    /// # Errors
    ///
    /// - `WouldBlock`: the stream still has bytes to send. In a drain, the server flushes it when the socket is writable. Before a
    ///   close it does not: the stream is dropped, and those bytes are lost.
    /// - The connection has ended.
    fn shutdown(&mut self) -> io::Result<()> {
        SockRef::from(&*self).shutdown(Shutdown::Write)
    }
}

/// Opens a listening TCP socket on each of `addresses`, as [`Server::bind`](crate::Server::bind) does: for a transport over TCP.
///
/// # Errors
///
/// - Those of [`Server::bind`](crate::Server::bind).
pub fn bind_tcp(addresses: &[SocketAddr], config: &Config) -> io::Result<Vec<TcpListener>> {
    crate::server::bind_tcp(addresses, config)
}

impl Listen for TcpListener {
    type Stream = Socket<TcpStream>;
    type Address = SocketAddr;

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn accept(&self) -> io::Result<(Socket<TcpStream>, SocketAddr)> {
        self.accept().map(|(stream, address)| (Socket(stream), address))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn configure(&self, stream: &Socket<TcpStream>, config: &Config) -> io::Result<()> {
        crate::server::set_tcp_options(&SockRef::from(stream), config)
    }
}

impl Stream for Socket<TcpStream> {
    const IS_TCP_SOCKET: bool = true;

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.peek(buffer)
    }
}
