//! The orderly end: FIN to each connection that is silent.

use std::net::Shutdown;

use super::Entry;
use super::config::DRAIN_TICKS;
use crate::reactor::Reactor;

/// Begins to count each connection's silence.
pub(super) fn begin(reactor: &mut Reactor<Entry>) {
    for (_, entry) in reactor.iter_mut() {
        if let Entry::Connection { connection, .. } = entry {
            connection.reset_idle();
        }
    }
}

/// Counts a period for every connection, and sends FIN to each that is silent and has nothing pending.
///
/// What such a connection sends after that is read and discarded until its own FIN: closing a socket with unread input sends RST,
/// which destroys the echo that is on its way (RFC 1122, 4.2.2.13).
pub(super) fn end_silent(reactor: &mut Reactor<Entry>) {
    for (_, entry) in reactor.iter_mut() {
        let Entry::Connection { connection, .. } = entry else { continue };
        if connection.tick_idle() >= DRAIN_TICKS && connection.pending() == 0 && !connection.is_discarding() {
            // ENOTCONN: the peer has gone, and the read that follows returns how.
            let _ = connection.get_ref().0.shutdown(Shutdown::Write);
            connection.discard();
        }
    }
}
