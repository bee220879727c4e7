//! The processes that tests of the library start.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Child, Command};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Locked for writing while a process starts: until its exec it has a copy of every socket, so that one which a test drops stays bound.
static STARTS: RwLock<()> = RwLock::new(());

/// Starts a process, while no test runs that reuses ports.
pub(crate) fn spawn(command: &mut Command) -> Child {
    let _starts = STARTS.write().unwrap_or_else(PoisonError::into_inner);
    command.spawn().unwrap()
}

/// Keeps tests from starting a process until the result is dropped.
pub(crate) fn prevent() -> RwLockReadGuard<'static, ()> {
    STARTS.read().unwrap_or_else(PoisonError::into_inner)
}
