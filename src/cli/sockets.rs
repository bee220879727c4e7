//! The sockets of `serve` where one of its addresses is a Unix socket. A server on TCP alone has no use for these: its connections take
//! a read less for each message.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ecoloop::transport::{AnyAddress, Listen, Socket, Stream, UnixAddress, UnixListener, bind_tcp};
use ecoloop::{Config, Server};
use mio::event::Source;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

/// A listening socket of TCP, or a Unix socket.
#[derive(Debug)]
pub(super) enum AnyListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection of either, in one type: recv(2) and send(2) do not tell them apart. It is read as a Unix socket has to be.
#[derive(Debug)]
pub(super) struct AnyStream(Socket<TcpStream>);

/// Binds a server on TCP addresses and Unix sockets.
pub(super) fn bind(
    addresses: &[SocketAddr],
    unix: &[UnixAddress],
    config: Config,
) -> io::Result<Server<(), AnyListener>> {
    // Before TCP: a port may be shared, and clients that reach it are reset if this server then does not start.
    let unix = unix.iter().map(|address| UnixListener::bind(address, &config)).collect::<io::Result<Vec<_>>>()?;
    let tcp = if addresses.is_empty() { Vec::new() } else { bind_tcp(addresses, &config)? };
    let listeners = tcp.into_iter().map(AnyListener::Tcp).chain(unix.into_iter().map(AnyListener::Unix));
    Server::from_transport(listeners.collect(), config)
}

impl AnyListener {
    fn as_source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(listener) => listener,
            Self::Unix(listener) => listener,
        }
    }
}

impl Listen for AnyListener {
    type Stream = AnyStream;
    type Address = AnyAddress;

    fn local_addr(&self) -> io::Result<AnyAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(AnyAddress::Tcp),
            Self::Unix(listener) => listener.local_addr().map(AnyAddress::Unix),
        }
    }

    fn accept(&self) -> io::Result<(AnyStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => Listen::accept(listener).map(|(stream, address)| (AnyStream(stream), address)),
            Self::Unix(listener) => {
                let (stream, address) = listener.accept()?;
                let stream = TcpStream::from(OwnedFd::from(stream.into_inner()));
                Ok((AnyStream(Socket::new(stream)), address))
            }
        }
    }

    fn configure(&self, stream: &AnyStream, config: &Config) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.configure(&stream.0, config),
            Self::Unix(_) => UnixListener::set_buffers(&stream.0, config),
        }
    }
}

impl AsFd for AnyListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Source for AnyListener {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.as_source().register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.as_source().reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.as_source().deregister(registry)
    }
}

impl Stream for AnyStream {}

impl Read for AnyStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for AnyStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl AsFd for AnyStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Source for AnyStream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        self.0.reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.0.deregister(registry)
    }
}
