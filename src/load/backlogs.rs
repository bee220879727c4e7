//! The connections that are to connect to Unix sockets, in order: one whose backlog is full takes none.

use std::collections::{BTreeMap, VecDeque};

use super::timer::SECOND;

/// Nanoseconds until a connect is tried again that found a full backlog: no event tells that it has room (connect(2), `EAGAIN`).
const RETRY_INTERVAL: u64 = SECOND / 1000;

/// A connection that is to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) pair: u32,
    /// Its key in the reactor, as long as that has this connection.
    pub(super) key: usize,
    pub(super) connection: u64,
}

/// The queue of each pair that has one. Times are nanoseconds of the run.
#[derive(Debug, Default)]
pub(super) struct Backlogs {
    queues: BTreeMap<u32, Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    connections: VecDeque<Waiting>,
    /// When the first of them is to connect.
    next: u64,
}

impl Backlogs {
    /// Adds a connection after those that wait for the same backlog.
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.queues.entry(waiting.pair).or_default().connections.push_back(waiting);
    }

    /// Returns when the next connection is to connect.
    #[inline]
    pub(super) fn next_due(&self) -> Option<u64> {
        if self.queues.is_empty() {
            return None;
        }
        self.queues.values().map(|queue| queue.next).min()
    }

    /// Takes a connection that is to connect now.
    pub(super) fn take_due(&mut self, now: u64) -> Option<Waiting> {
        let (&pair, queue) = self.queues.iter_mut().find(|(_, queue)| queue.next <= now)?;
        let first = queue.connections.pop_front();
        if queue.connections.is_empty() {
            self.queues.remove(&pair);
        }
        first
    }

    /// Puts a connection back in front, which found a full backlog.
    pub(super) fn put_back(&mut self, waiting: Waiting, now: u64) {
        let queue = self.queues.entry(waiting.pair).or_default();
        queue.connections.push_front(waiting);
        queue.next = now + RETRY_INTERVAL;
    }

    /// Has the next connection of a pair connect at once: the server has accepted another one.
    pub(super) fn hasten(&mut self, pair: u32) {
        if let Some(queue) = self.queues.get_mut(&pair) {
            queue.next = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(pair: u32, connection: u64) -> Waiting {
        Waiting { pair, key: 0, connection }
    }

    #[test]
    fn connections_wait_in_order_for_the_backlog_of_their_own_pair() {
        let mut backlogs = Backlogs::default();
        assert_eq!((backlogs.next_due(), backlogs.take_due(7)), (None, None));
        for (pair, connection) in [(0, 1), (1, 2), (0, 3), (1, 4)] {
            backlogs.push(waiting(pair, connection));
        }
        assert_eq!(backlogs.next_due(), Some(0));
        assert_eq!(backlogs.take_due(7), Some(waiting(0, 1)));
        backlogs.put_back(waiting(0, 1), 7);
        backlogs.push(waiting(0, 5));
        assert_eq!([(); 3].map(|()| backlogs.take_due(7)), [Some(waiting(1, 2)), Some(waiting(1, 4)), None]);
        assert_eq!(backlogs.next_due(), Some(7 + RETRY_INTERVAL));
        backlogs.hasten(1);
        backlogs.hasten(0);
        assert_eq!([(); 4].map(|()| backlogs.take_due(7).map(|of| of.connection)), [Some(1), Some(3), Some(5), None]);
        assert_eq!(backlogs.next_due(), None);
    }
}
