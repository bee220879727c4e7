//! The clock of the server.

use std::time::Instant;

/// Returns the time.
#[inline]
pub(crate) fn now() -> Instant {
    Instant::now()
}
