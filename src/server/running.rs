//! A server on a thread of its own.

use std::io;
use std::net::SocketAddr;
use std::thread::JoinHandle;

use super::Report;
use super::handle::Handle;

/// A server on a thread of its own, as [`Server::spawn`](crate::Server::spawn) returns it. Dropping it stops the server and joins the
/// thread.
#[derive(Debug)]
pub struct Running {
    pub(super) local_addrs: Vec<SocketAddr>,
    pub(super) handle: Handle,
    /// `None` once the thread was joined.
    pub(super) thread: Option<JoinHandle<io::Result<Report>>>,
}

impl Running {
    /// Returns the first address that the server is bound to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs[0]
    }

    /// Returns every address that the server is bound to.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.local_addrs
    }

    /// Returns a handle, which commands the server and reads its counters from any thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until a [`Handle`] ends the server, and returns its report.
    ///
    /// # Errors
    ///
    /// - Those of [`Server::run`](crate::Server::run).
    ///
    /// # Panics
    ///
    /// Panics if the observer panicked.
    pub fn join(mut self) -> io::Result<Report> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("only `join` and `drop` take the thread, and each ends this value"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            // The thread has printed its panic. A second one here, during another, would abort the process.
            let _ = thread.join();
        }
    }
}
