//! Reading from and writing to a connected socket, with as little as there can be between the loop and the kernel.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

/// A stream whose `read` and `write` are recv(2) and send(2).
///
/// With the feature `raw-syscalls` on Linux they do not pass through the C library, where in a process of several threads each
/// of them is a cancellation point (pthreads(7)) with two atomic operations around the call.
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

    /// There is nothing to flush: what was written is the kernel's.
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
        // A peer that has gone is an error to look at, never a signal.
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
