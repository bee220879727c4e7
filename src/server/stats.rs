//! The counters, and a snapshot of them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::observer::Closed;

/// What a server has counted since it was bound.
///
/// A snapshot taken while the server runs may catch it between two counters: a message received and not yet sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections accepted and registered.
    pub accepted: u64,
    /// Connections closed, by reason.
    pub closed: ClosedStats,
    /// Bytes received, those discarded included.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Bytes received after this end had sent FIN, and thrown away.
    pub discarded: u64,
}

impl Stats {
    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.accepted - self.closed.total()
    }
}

/// Connections closed, by reason: one count for each variant of [`Closed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClosedStats {
    /// [`Closed::EndOfStream`]
    pub end_of_stream: u64,
    /// [`Closed::Reset`]
    pub reset: u64,
    /// [`Closed::Failed`]
    pub failed: u64,
    /// [`Closed::Idle`]
    pub idle: u64,
    /// [`Closed::Drained`]
    pub drained: u64,
    /// [`Closed::Cut`]
    pub cut: u64,
    /// [`Closed::Stopped`]
    pub stopped: u64,
}

impl ClosedStats {
    /// Connections closed, whatever the reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.end_of_stream + self.reset + self.failed + self.idle + self.drained + self.cut + self.stopped
    }
}

/// The live counters. The loop alone writes them.
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
    drained: Counter,
    cut: Counter,
    stopped: Counter,
}

impl Counters {
    pub(super) fn closed(&self, why: Closed) -> &Counter {
        match why {
            Closed::EndOfStream => &self.end_of_stream,
            Closed::Reset => &self.reset,
            Closed::Failed(_) => &self.failed,
            Closed::Idle => &self.idle,
            Closed::Drained => &self.drained,
            Closed::Cut => &self.cut,
            Closed::Stopped => &self.stopped,
        }
    }

    pub(super) fn snapshot(&self) -> Stats {
        // Closed before accepted, so that `open` cannot fall below zero: each is counted after the other.
        let closed = ClosedStats {
            end_of_stream: self.end_of_stream.get(),
            reset: self.reset.get(),
            failed: self.failed.get(),
            idle: self.idle.get(),
            drained: self.drained.get(),
            cut: self.cut.get(),
            stopped: self.stopped.get(),
        };
        Stats {
            closed,
            accepted: self.accepted.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            discarded: self.discarded.get(),
        }
    }
}

/// A counter with one writer and any number of readers.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// A load and a store, where `fetch_add` would lock the bus: nobody else writes. The store releases what was counted
    /// before it, so that a reader who sees a connection closed has seen it accepted.
    pub(super) fn add(&self, n: usize) {
        self.0.store(self.0.load(Ordering::Relaxed) + n as u64, Ordering::Release);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
