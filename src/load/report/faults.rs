//! Connections of a load that misbehave on purpose.

use serde::{Deserialize, Serialize};

/// The connections that a rule of [`Config::faults`](crate::load::Config::faults) chose. They are in no other figure of the report.
///
/// A connection that several rules chose is in the figures of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FaultFigures {
    /// The rule, as in `rate=1KiB,first=10`.
    pub rule: String,
    /// Connections that were established: the sum of the four that follow.
    pub connections: u64,
    /// Still open at the end of the run.
    pub open: u64,
    /// The server sent FIN.
    pub closed: u64,
    /// The server reset them.
    pub reset: u64,
    /// They sent FIN or RST themselves, by a rule.
    pub own_end: u64,
}

impl FaultFigures {
    pub(in crate::load) fn new(rule: String) -> Self {
        Self { rule, connections: 0, open: 0, closed: 0, reset: 0, own_end: 0 }
    }

    /// Adds the figures of another generator. A sum above `u64::MAX` is `u64::MAX`.
    pub(super) fn add(&mut self, other: &Self) {
        let Self { rule: _, connections, open, closed, reset, own_end } = other;
        self.connections = self.connections.saturating_add(*connections);
        self.open = self.open.saturating_add(*open);
        self.closed = self.closed.saturating_add(*closed);
        self.reset = self.reset.saturating_add(*reset);
        self.own_end = self.own_end.saturating_add(*own_end);
    }
}
