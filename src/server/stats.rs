//! The counters, a snapshot of them, and the report.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use super::observer::CloseReason;
use crate::fault::Kind;

/// What a server has done.
///
/// With the feature `serde`, it is serialized with the field names of `ecoloop serve --report`, and `accept_errors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// The counters.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub stats: Stats,
    /// From the bind to the call that returned this report.
    #[cfg_attr(feature = "serde", serde(rename = "seconds", serialize_with = "as_seconds"))]
    pub elapsed: Duration,
}

/// The counters of a server since it was bound.
///
/// A snapshot of a running server may be taken between two counters: a message is received and not yet sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted and registered. With [`Config::proxy_protocol`](crate::Config::proxy_protocol) one is counted when its
    /// header has arrived, or when it ends without one.
    pub accepted: u64,
    /// Connections closed, by reason.
    pub closed: ClosedStats,
    /// Connections reset at their accept, or when their PROXY header has arrived, by reason. They are not counted as accepted.
    pub refused: RefusedStats,
    /// What the rules of [`Config::faults`](crate::Config::faults) have touched, by kind.
    pub faults: FaultStats,
    /// Bytes received, including those discarded.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received after the server had sent FIN, which are not echoed.
    pub discarded: u64,
    /// Errors of accept(2), and of configuring and registering what it returned (`ENOSPC` of `epoll_ctl(2)`), by errno.
    pub accept_errors: AcceptErrorStats,
}

impl Stats {
    /// Returns the number of open connections, without those whose PROXY header has not arrived.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.accepted.saturating_sub(self.closed.total())
    }
}

/// Connections closed, by reason: one count for each variant of [`CloseReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ClosedStats {
    /// [`CloseReason::EndOfStream`]
    pub end_of_stream: u64,
    /// [`CloseReason::Reset`]
    pub reset: u64,
    /// [`CloseReason::Failed`]
    pub failed: u64,
    /// [`CloseReason::Idle`]
    pub idle: u64,
    /// [`CloseReason::Stalled`]
    pub stalled: u64,
    /// [`CloseReason::Drained`]
    pub drained: u64,
    /// [`CloseReason::Cut`]
    pub cut: u64,
    /// [`CloseReason::Stopped`]
    pub stopped: u64,
    /// [`CloseReason::Fault`]
    pub fault: u64,
}

impl ClosedStats {
    /// Returns the number of closed connections.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().map(|(_, count)| count).sum()
    }

    /// Iterates over each reason and its count. A reason is the name of its field.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [
            ("end_of_stream", self.end_of_stream),
            ("reset", self.reset),
            ("failed", self.failed),
            ("idle", self.idle),
            ("stalled", self.stalled),
            ("drained", self.drained),
            ("cut", self.cut),
            ("stopped", self.stopped),
            ("fault", self.fault),
        ]
        .into_iter()
    }
}

/// Connections that were reset because of a limit, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RefusedStats {
    /// [`Config::max_connections`](crate::Config::max_connections) were open, with [`WhenFull::Reset`](crate::WhenFull::Reset).
    pub max_connections: u64,
    /// [`Config::max_per_source`](crate::Config::max_per_source) connections of the source were open.
    pub per_source: u64,
    /// The source was in no network of [`Config::allow`](crate::Config::allow).
    pub not_allowed: u64,
}

impl RefusedStats {
    /// Returns the number of refused connections.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason().map(|(_, count)| count).sum()
    }

    /// Iterates over each reason and its count. A reason is the name of its field.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        [("max_connections", self.max_connections), ("per_source", self.per_source), ("not_allowed", self.not_allowed)]
            .into_iter()
    }
}

/// Most values of errno that [`AcceptErrorStats`] tells apart.
const ERRNOS_MAX: usize = 8;

/// See [`Stats::accept_errors`]. The first 8 values of errno are counted apart; the others, and errors without one, together.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct AcceptErrorStats {
    by_errno: [(i32, u64); ERRNOS_MAX],
    others: u64,
}

impl AcceptErrorStats {
    /// Iterates over each errno and its count. The errno of the others is 0.
    pub fn iter(&self) -> impl Iterator<Item = (i32, u64)> + use<> {
        self.by_errno.into_iter().chain([(0, self.others)]).filter(|&(_, count)| count > 0)
    }

    /// Returns the number of errors.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

/// What faults have touched, by kind: connections, or bytes for `flip`, `lose`, `duplicate` and `swap`. A rule that has chosen a
/// connection, and not come to pass, is not counted.
///
/// # Examples
///
/// ```
/// use ecoloop::fault::Kind;
///
/// let stats = ecoloop::Stats::default();
/// assert_eq!(stats.faults.get(Kind::Delay), 0);
/// assert!(stats.faults.iter().any(|(name, count)| (name, count) == ("delay", 0)));
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct FaultStats([u64; Kind::ALL.len()]);

impl FaultStats {
    /// Returns the count of a kind.
    #[must_use]
    pub fn get(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// Iterates over every kind's name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        Kind::ALL.iter().map(|kind| kind.name()).zip(self.0)
    }
}

/// A map of each errno to its count.
impl fmt::Debug for AcceptErrorStats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

/// A map of each kind's name to its count.
impl fmt::Debug for FaultStats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(feature = "serde")]
fn as_seconds<S: serde::Serializer>(elapsed: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(elapsed.as_secs_f64())
}

/// A map of each errno to its count.
#[cfg(feature = "serde")]
impl serde::Serialize for AcceptErrorStats {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// A map of each kind's name to its count.
#[cfg(feature = "serde")]
impl serde::Serialize for FaultStats {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The live counters. Only the loop writes them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) discarded: Counter,
    end_of_stream: Counter,
    reset: Counter,
    failed: Counter,
    idle: Counter,
    stalled: Counter,
    drained: Counter,
    cut: Counter,
    stopped: Counter,
    fault: Counter,
    pub(super) refused: RefusedCounters,
    /// One for each [`Kind`].
    pub(super) faults: [Counter; Kind::ALL.len()],
    pub(super) accept_errors: AcceptErrorCounters,
}

/// The live counters of [`RefusedStats`].
#[derive(Debug, Default)]
pub(super) struct RefusedCounters {
    pub(super) max_connections: Counter,
    pub(super) per_source: Counter,
    pub(super) not_allowed: Counter,
}

/// The live counters of [`AcceptErrorStats`].
#[derive(Debug, Default)]
pub(super) struct AcceptErrorCounters {
    /// An errno of 0: not used yet.
    by_errno: [(AtomicI32, Counter); ERRNOS_MAX],
    others: Counter,
}

impl AcceptErrorCounters {
    pub(super) fn add(&self, error: &io::Error) {
        if let Some(errno) = error.raw_os_error() {
            for (slot, count) in &self.by_errno {
                let known = slot.load(Ordering::Relaxed);
                if known == 0 {
                    slot.store(errno, Ordering::Relaxed);
                }
                if known == 0 || known == errno {
                    return count.add(1);
                }
            }
        }
        self.others.add(1);
    }

    fn snapshot(&self) -> AcceptErrorStats {
        AcceptErrorStats {
            // The count first: it releases the errno.
            by_errno: self.by_errno.each_ref().map(|(errno, count)| {
                let count = count.get();
                (errno.load(Ordering::Relaxed), count)
            }),
            others: self.others.get(),
        }
    }
}

impl Counters {
    pub(super) fn closed(&self, reason: CloseReason) -> &Counter {
        match reason {
            CloseReason::EndOfStream => &self.end_of_stream,
            CloseReason::Reset => &self.reset,
            CloseReason::Failed(_) => &self.failed,
            CloseReason::Idle => &self.idle,
            CloseReason::Stalled => &self.stalled,
            CloseReason::Drained => &self.drained,
            CloseReason::Cut => &self.cut,
            CloseReason::Stopped => &self.stopped,
            CloseReason::Fault => &self.fault,
        }
    }

    pub(super) fn snapshot(&self) -> Stats {
        // Read before `accepted`, so that `open` cannot underflow: a connection is counted there first.
        let closed = ClosedStats {
            end_of_stream: self.end_of_stream.get(),
            reset: self.reset.get(),
            failed: self.failed.get(),
            idle: self.idle.get(),
            stalled: self.stalled.get(),
            drained: self.drained.get(),
            cut: self.cut.get(),
            stopped: self.stopped.get(),
            fault: self.fault.get(),
        };
        Stats {
            closed,
            refused: RefusedStats {
                max_connections: self.refused.max_connections.get(),
                per_source: self.refused.per_source.get(),
                not_allowed: self.refused.not_allowed.get(),
            },
            faults: FaultStats(std::array::from_fn(|kind| self.faults[kind].get())),
            accepted: self.accepted.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            discarded: self.discarded.get(),
            accept_errors: self.accept_errors.snapshot(),
        }
    }
}

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// Adds with a load and a store: there is one writer, and `fetch_add` would lock the bus. The store releases earlier counts, so
    /// that a reader that sees a connection closed has seen it accepted. It wraps around, as atomic additions do.
    pub(super) fn add(&self, n: usize) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n as u64), Ordering::Release);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_accept_are_told_apart_up_to_the_limit() {
        let counters = AcceptErrorCounters::default();
        for errno in (1..=20).chain([7, 20]) {
            counters.add(&io::Error::from_raw_os_error(errno));
        }
        let stats = counters.snapshot();
        let expected = (1..=8).map(|errno| (errno, 1 + u64::from(errno == 7))).chain([(0, 13)]);
        assert_eq!(stats.iter().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(stats.total(), 22);
    }

    #[test]
    fn debug_names_the_faults_and_the_errors_of_accept() {
        let counters = Counters::default();
        counters.faults[Kind::Swap as usize].add(3);
        counters.accept_errors.add(&io::Error::from_raw_os_error(24));
        let debug = format!("{:?}", counters.snapshot());
        assert!(debug.contains(r#""swap": 3"#) && debug.contains("accept_errors: {24: 1}"), "{debug}");
    }
}
