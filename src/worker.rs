//! A thread of its own for a server or a run.

use std::io;
use std::panic;
use std::thread::{self, JoinHandle};

/// A thread, which is joined once. Its panic goes on where it is joined.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    /// `None` once the thread was joined.
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    pub(crate) fn spawn(name: &str, run: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { thread: Some(thread) })
    }
}

impl<T> Worker<T> {
    /// Returns whether the thread has ended, so that joining it does not wait.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the thread has ended, and returns its result.
    ///
    /// # Errors
    ///
    /// - `Deadlock`: this is that thread.
    pub(crate) fn join(&mut self) -> io::Result<T> {
        match self.thread.take_if(|thread| !is_current(thread)).map(JoinHandle::join) {
            Some(Ok(result)) => Ok(result),
            Some(Err(payload)) => panic::resume_unwind(payload),
            None => Err(io::Error::new(io::ErrorKind::Deadlock, "cannot join a thread on itself")),
        }
    }

    /// Calls `stop` and joins the thread, unless it was joined. On that thread itself, only calls `stop`.
    pub(crate) fn end(&mut self, stop: impl FnOnce()) {
        if let Some(thread) = self.thread.take() {
            stop();
            if !is_current(&thread) {
                resume_panic(thread.join());
            }
        }
    }
}

fn is_current<T>(thread: &JoinHandle<T>) -> bool {
    thread.thread().id() == thread::current().id()
}

/// Goes on with the panic that `result` has caught, unless the thread is panicking already: a second one would abort the process.
pub(crate) fn resume_panic<T>(result: thread::Result<T>) {
    if let Err(payload) = result
        && !thread::panicking()
    {
        panic::resume_unwind(payload);
    }
}
