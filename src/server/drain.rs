//! The orderly end of a server: no new connections, FIN to each silent one, and a deadline for the rest.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::connection::Connection;
use crate::interrupted::retry_interrupted;
use crate::transport::Stream;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lifecycle {
    Serving,
    Draining { deadline: Option<Instant> },
    Finished,
}

impl Lifecycle {
    /// Returns when a drain closes the connections that are left.
    pub(super) fn deadline(self) -> Option<Instant> {
        if let Self::Draining { deadline } = self { deadline } else { None }
    }

    pub(super) fn is_draining(self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    pub(super) fn is_finished(self) -> bool {
        matches!(self, Self::Finished)
    }
}

/// Whether there are more turns to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Call again when the descriptor is readable or the deadline has passed.
    Running,
    /// The server has drained or was stopped: every socket is closed.
    Finished,
}

impl From<Lifecycle> for Turn {
    fn from(lifecycle: Lifecycle) -> Self {
        if lifecycle.is_finished() { Self::Finished } else { Self::Running }
    }
}

/// Ends the direction of the output of a stream.
pub(super) fn shutdown(stream: &mut impl Stream) -> io::Result<()> {
    retry_interrupted(|| stream.shutdown())
}

/// Sends FIN to a silent connection.
///
/// What it sends after that is read and discarded until its own FIN: closing a socket with unread input sends RST, which destroys
/// the echo that is on its way (RFC 1122, 4.2.2.13).
pub(super) fn send_fin(connection: &mut Connection<impl Stream>) {
    // ENOTCONN: the peer has gone, and the read that follows returns how.
    if shutdown(connection.get_mut()).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        connection.expect_flush();
    }
    connection.discard();
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;

    use mio::event::Source;
    use mio::{Interest, Registry, Token};

    use super::*;
    use crate::ready::Ready;
    use crate::server::connection::Outcome;
    use crate::server::idle::Watched;

    /// A stream whose first calls of `shutdown` fail, the last of these first.
    #[derive(Debug)]
    struct Failing {
        socket: UnixStream,
        failures: Vec<ErrorKind>,
        flushes: u32,
    }

    fn failing(failures: &[ErrorKind]) -> (Connection<Failing>, UnixStream) {
        let (socket, peer) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (Connection::new(Failing { socket, failures: failures.to_vec(), flushes: 0 }), peer)
    }

    impl Stream for Failing {
        fn shutdown(&mut self) -> io::Result<()> {
            match self.failures.pop() {
                Some(kind) => Err(kind.into()),
                None => self.socket.shutdown(Shutdown::Write),
            }
        }
    }

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.socket.read(buffer)
        }
    }

    impl Write for Failing {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.socket.write(data)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.flushes += 1;
            self.socket.flush()
        }
    }

    impl AsFd for Failing {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
    }

    impl Source for Failing {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn deregister(&mut self, _: &Registry) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_interrupted_shutdown_is_made_again() {
        let (mut connection, mut peer) = failing(&[ErrorKind::Interrupted; 2]);
        send_fin(&mut connection);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the peer reads the end of the stream");
    }

    #[test]
    fn what_keeps_a_stream_from_ending_its_output_is_pending_until_a_flush_has_sent_it() {
        for (failures, flushes) in [(&[][..], 0), (&[ErrorKind::NotConnected], 0), (&[ErrorKind::WouldBlock], 1)] {
            let (mut connection, _peer) = failing(failures);
            send_fin(&mut connection);
            assert_eq!(Watched::is_pending(&connection), flushes > 0, "{failures:?}");
            assert_eq!(connection.serve(Ready::WRITABLE, &mut [0; 8]).outcome, Outcome::Wait);
            assert_eq!(connection.get_ref().flushes, flushes, "{failures:?}");
            assert!(!Watched::is_pending(&connection));
        }
    }
}
