//! recv(2) and send(2) of a stream socket.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use mio::event::Source;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

/// A stream socket whose `read` and `write` are recv(2) and send(2).
///
/// With the feature `raw-syscalls` they bypass the C library on Linux. There each is a cancellation point (pthreads(7)), which costs
/// two atomic operations a call in a process of several threads.
#[derive(Debug)]
pub struct Socket<S = TcpStream>(pub(crate) S);

impl<S> Socket<S> {
    /// Returns a socket over `stream`, which must not block.
    pub fn new(stream: S) -> Self {
        Self(stream)
    }

    /// Returns the stream.
    pub fn into_inner(self) -> S {
        self.0
    }
}

impl<S: AsFd + Read> Read for Socket<S> {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        calls::receive(&mut self.0, buffer)
    }
}

impl<S: AsFd + Write> Write for Socket<S> {
    #[inline]
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        calls::send(&mut self.0, data)
    }

    /// Does nothing: the kernel has what was written.
    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: AsFd> AsFd for Socket<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<S: Source> Source for Socket<S> {
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

#[cfg(all(feature = "raw-syscalls", any(target_os = "linux", target_os = "android")))]
pub(crate) mod calls {
    use std::io;
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, SendFlags};

    pub(crate) fn peek(stream: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
        let (received, _) = rustix::net::recv(stream, buffer, RecvFlags::PEEK)?;
        Ok(received)
    }

    #[inline]
    pub(super) fn receive(stream: &mut impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, received) = rustix::net::recv(stream, buffer, RecvFlags::empty())?;
        Ok(received)
    }

    #[inline]
    pub(super) fn send(stream: &mut impl AsFd, data: &[u8]) -> io::Result<usize> {
        // A peer that has closed is an error, never a signal.
        Ok(rustix::net::send(stream, data, SendFlags::NOSIGNAL)?)
    }
}

#[cfg(not(all(feature = "raw-syscalls", any(target_os = "linux", target_os = "android"))))]
pub(crate) mod calls {
    use std::io::{self, Read, Write};
    use std::os::fd::AsFd;

    pub(crate) fn peek(stream: &impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
        // For recv(2) all stream sockets are alike.
        std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?).peek(buffer)
    }

    pub(super) fn receive(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        stream.read(buffer)
    }

    pub(super) fn send(stream: &mut impl Write, data: &[u8]) -> io::Result<usize> {
        stream.write(data)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};
    use std::time::Duration;

    use mio::net::UnixStream;

    use super::Socket;
    use crate::{Config, INTEREST, Reactor, Server};

    #[test]
    fn a_deregistered_socket_is_not_reported() {
        for is_registered in [true, false] {
            let mut reactor = Reactor::new(1).unwrap();
            let (near, _far) = UnixStream::pair().unwrap();
            let key = reactor.insert(Socket::new(near), INTEREST, |socket| socket).unwrap();
            let mut socket = reactor.remove(key).unwrap();
            if !is_registered {
                reactor.deregister(&mut socket).unwrap();
            }
            // It is writable.
            assert_eq!(reactor.wait(Some(Duration::ZERO)).unwrap(), is_registered);
        }
    }

    /// With the feature `raw-syscalls` and without: the test program of the other tests always has it.
    #[test]
    fn a_server_echoes_and_sees_the_end_with_either_kind_of_calls() {
        let server = Server::bind("127.0.0.1:0", Config::default()).unwrap().spawn().unwrap();
        let mut client = TcpStream::connect(server.local_addr()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.write_all(b"hola").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut echo = String::new();
        client.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "hola");
        let report = server.shutdown().unwrap().0;
        assert_eq!(report.stats.closed.end_of_stream, 1);
    }
}
