//! recv(2) and send(2) of a TCP socket.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

/// A stream whose `read` and `write` are recv(2) and send(2).
///
/// With the feature `raw-syscalls` they bypass the C library on Linux. There each is a cancellation point (pthreads(7)), which costs
/// two atomic operations a call in a process of several threads.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) TcpStream);

impl Read for Socket {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        calls::receive(&mut self.0, buffer)
    }
}

impl Write for Socket {
    #[inline]
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        calls::send(&mut self.0, data)
    }

    /// Does nothing: the kernel has what was written.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(feature = "raw-syscalls", any(target_os = "linux", target_os = "android")))]
mod calls {
    use std::io;

    use mio::net::TcpStream;
    use rustix::net::{RecvFlags, SendFlags};

    #[inline]
    pub(super) fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, received) = rustix::net::recv(stream, buffer, RecvFlags::empty())?;
        Ok(received)
    }

    #[inline]
    pub(super) fn send(stream: &mut TcpStream, data: &[u8]) -> io::Result<usize> {
        // A peer that has closed is an error, never a signal.
        Ok(rustix::net::send(stream, data, SendFlags::NOSIGNAL)?)
    }
}

#[cfg(not(all(feature = "raw-syscalls", any(target_os = "linux", target_os = "android"))))]
mod calls {
    use std::io::{self, Read, Write};

    use mio::net::TcpStream;

    pub(super) fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
        stream.read(buffer)
    }

    pub(super) fn send(stream: &mut TcpStream, data: &[u8]) -> io::Result<usize> {
        stream.write(data)
    }
}
