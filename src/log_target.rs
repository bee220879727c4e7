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

/// Returns the warnings that a call logs on this thread.
#[cfg(test)]
pub(crate) fn warnings_of(call: impl FnOnce()) -> Vec<String> {
    use std::cell::RefCell;

    thread_local! {
        /// None on the threads of other tests.
        static WARNINGS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    }

    struct Logger;

    impl log::Log for Logger {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() == log::Level::Warn
        }

        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                WARNINGS.with_borrow_mut(|warnings| {
                    if let Some(warnings) = warnings {
                        warnings.push(record.args().to_string());
                    }
                });
            }
        }

        fn flush(&self) {}
    }

    // Fails if another test has set it.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Warn);
    WARNINGS.set(Some(Vec::new()));
    call();
    WARNINGS.take().unwrap_or_default()
}
