//! Finds connections on which no byte moves.

use super::config::IDLE_TICKS;
use super::echo::Entry;
use crate::reactor::Reactor;

/// Counts a period for every connection, and returns the keys of those on which no byte has moved for the idle timeout.
pub(super) fn find_idle(reactor: &mut Reactor<Entry>) -> Vec<usize> {
    let is_idle = |entry: &mut Entry| match entry {
        Entry::Connection { connection, .. } => connection.tick_idle() > IDLE_TICKS,
        Entry::Listener(_) => false,
    };
    reactor.iter_mut().filter_map(|(key, entry)| is_idle(entry).then_some(key)).collect()
}
