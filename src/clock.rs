//! The clock of the server.

use std::time::Instant;

/// Returns the time: in a simulation that of the modelled kernel.
#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(all(any(test, fuzzing), target_os = "linux"))]
    if let Some(now) = crate::simulation::now() {
        return now;
    }
    Instant::now()
}
