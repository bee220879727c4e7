//! A server on a thread of its own.

use std::io;

use mio::net::TcpListener;

use super::handle::Handle;
use super::{Report, Stats};
use crate::transport::Listen;
use crate::worker::Worker;

/// A server on a thread of its own, as [`Server::spawn`](crate::Server::spawn) returns it. Dropping it stops the server and joins the
/// thread.
///
/// # Panics
///
/// Dropping it panics with the panic of the observer, if there was one and this thread is not panicking already. So a test fails if
/// its observer panics.
///
/// Dropped on the server's own thread, by the observer, it stops the server and does not join the thread.
///
/// # Examples
///
/// ```
/// use std::io::Write;
/// use std::net::{Shutdown, TcpStream};
///
/// use ecoloop::{Config, Observer, Peer, Server};
///
/// #[derive(Default)]
/// struct Received(Vec<u8>);
///
/// impl Observer for Received {
///     fn received(&mut self, _: Peer, data: &[u8]) {
///         self.0.extend_from_slice(data);
///     }
/// }
///
/// let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Received::default()).spawn()?;
/// let mut client = TcpStream::connect(server.local_addr())?;
/// client.write_all(b"hola")?;
/// client.shutdown(Shutdown::Write)?;
///
/// let (report, received) = server.shutdown()?;
/// assert_eq!(report.stats.closed.end_of_stream, 1);
/// assert_eq!(received.0, b"hola");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Running<O = (), L: Listen = TcpListener> {
    pub(super) local_addrs: Vec<L::Address>,
    pub(super) handle: Handle,
    pub(super) thread: Worker<(io::Result<Report>, O)>,
}

impl<O, L: Listen> Running<O, L> {
    /// Returns the first address that the server is bound to.
    #[must_use]
    pub fn local_addr(&self) -> L::Address {
        self.local_addrs[0].clone()
    }

    /// Returns every address that the server is bound to.
    #[must_use]
    pub fn local_addrs(&self) -> &[L::Address] {
        &self.local_addrs
    }

    /// Returns a handle, which commands the server and reads its counters from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns the counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.handle.stats()
    }

    /// Shuts down gracefully, as [`Handle::drain`] does, and does not wait for it.
    pub fn drain(&self) {
        self.handle.drain();
    }

    /// Closes every connection immediately, as [`Handle::stop`] does, and does not wait for it.
    pub fn stop(&self) {
        self.handle.stop();
    }

    /// Returns whether the thread has ended: the server has drained or was stopped, the poll has failed, or the observer has panicked.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Shuts down gracefully, waits for the end, and returns the report and the observer.
    ///
    /// The wait takes at most [`Config::drain_timeout`](crate::Config::drain_timeout).
    ///
    /// # Errors
    ///
    /// - Those of [`join`](Self::join).
    ///
    /// # Panics
    ///
    /// Panics if the observer panicked.
    pub fn shutdown(self) -> io::Result<(Report, O)> {
        self.drain();
        self.join_thread()
    }

    /// Waits until [`drain`](Self::drain), [`stop`](Self::stop) or a [`Handle`] ends the server, and returns its report.
    ///
    /// # Errors
    ///
    /// - Those of [`Server::run`](crate::Server::run).
    /// - `Deadlock`: this is the server's own thread. The server is stopped.
    ///
    /// # Panics
    ///
    /// Panics if the observer panicked.
    pub fn join(self) -> io::Result<Report> {
        self.join_thread().map(|(report, _)| report)
    }

    fn join_thread(mut self) -> io::Result<(Report, O)> {
        // After an error, dropping `self` stops the server.
        let (report, observer) = self.thread.join()?;
        Ok((report?, observer))
    }
}

impl<O, L: Listen> Drop for Running<O, L> {
    fn drop(&mut self) {
        self.thread.end(|| self.handle.stop());
    }
}
