//! Reading from and writing to a connected socket, with as little as there can be between the loop and the kernel.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

/// A stream whose `read` and `write` are recv(2) and send(2).
///
/// With the feature `raw-syscalls` on Linux they do not pass through the C library, where in a process of several threads each
/// of them is a cancellation point (pthreads(7)) with two atomic operations around the call.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) TcpStream);

#[cfg(feature = "raw-syscalls")]
impl Read for Socket {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, received) = rustix::net::recv(&self.0, buffer, rustix::net::RecvFlags::empty())?;
        Ok(received)
    }
}

#[cfg(feature = "raw-syscalls")]
impl Write for Socket {
    #[inline]
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // A peer that has gone is an error to look at, never a signal.
        Ok(rustix::net::send(&self.0, data, rustix::net::SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(not(feature = "raw-syscalls"))]
impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[cfg(not(feature = "raw-syscalls"))]
impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
