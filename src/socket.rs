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
mod calls {
    use std::io;
    use std::os::fd::AsFd;

    use rustix::net::{RecvFlags, SendFlags};

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
mod calls {
    use std::io::{self, Read, Write};

    pub(super) fn receive(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
        stream.read(buffer)
    }

    pub(super) fn send(stream: &mut impl Write, data: &[u8]) -> io::Result<usize> {
        stream.write(data)
    }
}
