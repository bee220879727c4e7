//! Memory that may be more than the system has.

use std::io;

/// Fails if `bytes` cannot be allocated now. `Vec` and `Box` have no error for that: they end the process.
pub(crate) fn check(bytes: usize) -> io::Result<()> {
    // Reserved and not written: no page of it becomes resident.
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| io::ErrorKind::OutOfMemory.into())
}
