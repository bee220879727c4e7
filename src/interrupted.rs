//! Calls that a signal interrupts.

use std::io::{self, ErrorKind};

/// Makes a call again for as long as a signal interrupts it (EINTR, signal(7)).
#[inline]
pub(crate) fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
