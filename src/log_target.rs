//! The log records of this crate.

use std::fmt;
use std::time::{Duration, Instant};

/// The target of every log record of this crate.
pub(crate) const LOG_TARGET: &str = "ecoloop";

/// Shortest time between two warnings of one kind.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Logs a warning, unless one of its kind was logged less than a minute ago.
pub(crate) fn warn_rate_limited(logged_at: &mut Option<Instant>, now: Instant, message: fmt::Arguments<'_>) {
    if logged_at.is_none_or(|at| now.duration_since(at) >= WARN_INTERVAL) {
        *logged_at = Some(now);
        log::warn!(target: LOG_TARGET, "{message}");
    }
}
