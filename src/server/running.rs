//! A server on a thread of its own.

use std::io;
use std::thread::JoinHandle;

use mio::net::TcpListener;

use super::Report;
use super::handle::Handle;
use crate::transport::Listen;

/// A server on a thread of its own, as [`Server::spawn`](crate::Server::spawn) returns it. Dropping it stops the server and joins the
/// thread.
#[derive(Debug)]
pub struct Running<L: Listen = TcpListener> {
    pub(super) local_addrs: Vec<L::Address>,
    pub(super) handle: Handle,
    /// `None` once the thread was joined.
    pub(super) thread: Option<JoinHandle<io::Result<Report>>>,
}

impl<L: Listen> Running<L> {
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

impl<L: Listen> Drop for Running<L> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            // The thread has printed its panic. A second one here, during another, would abort the process.
            let _ = thread.join();
        }
    }
}
