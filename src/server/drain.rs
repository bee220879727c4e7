//! The orderly end: no new connections, FIN to each silent one, and the end of those that are left.

use std::net::Shutdown;
use std::time::Instant;

use super::config::DRAIN_PERIOD;
use super::echo::{Echo, Entry};
use super::idle::Hand;
use super::observer::{CloseReason, Observer};
use crate::log_target::LOG_TARGET;
use crate::reactor::Reactor;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    Serving,
    Draining { deadline: Option<Instant> },
    Finished,
}

impl Phase {
    /// Returns when a drain closes the connections that are left.
    pub(super) fn deadline(self) -> Option<Instant> {
        if let Self::Draining { deadline } = self { deadline } else { None }
    }

    pub(super) fn is_draining(self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    pub(super) fn is_finished(self) -> bool {
        matches!(self, Self::Finished)
    }
}

impl<O: Observer> Echo<O> {
    /// Accepts the connections that wait, closes the listeners, and looks for silent connections from now on.
    pub(super) fn begin_drain(&mut self, reactor: &mut Reactor<Entry>) {
        let backlog = self.core.config.backlog as usize;
        for index in 0..self.core.acceptor.listener_count() {
            self.accept(reactor, index, backlog);
        }
        self.close_listeners(reactor);
        let now = Instant::now();
        self.core.phase = Phase::Draining { deadline: now.checked_add(self.core.config.drain_timeout) };
        self.core.hand = Some(Hand::new(DRAIN_PERIOD, now, reactor));
    }

    fn close_listeners(&mut self, reactor: &mut Reactor<Entry>) {
        for mut listener in self.core.acceptor.close() {
            reactor.remove(listener.key);
            if let Err(error) = reactor.deregister(&mut listener.socket) {
                log::debug!(target: LOG_TARGET, "cannot deregister a listener: {error}; closing it does the same");
            }
        }
    }

    /// Closes every socket.
    pub(super) fn finish(&mut self, reactor: &mut Reactor<Entry>, reason: CloseReason) {
        self.core.phase = Phase::Finished;
        self.core.hand = None;
        self.close_listeners(reactor);
        let keys: Vec<_> = reactor.iter_mut().map(|(key, _)| key).collect();
        for key in keys {
            self.close(reactor, key, reason);
        }
        reactor.shrink_to_fit();
    }
}

/// Sends FIN to a silent connection.
///
/// What it sends after that is read and discarded until its own FIN: closing a socket with unread input sends RST, which destroys
/// the echo that is on its way (RFC 1122, 4.2.2.13).
pub(super) fn send_fin(entry: &mut Entry) {
    if let Entry::Connection { connection, .. } = entry {
        // ENOTCONN: the peer has gone, and the read that follows returns how.
        let _ = connection.get_ref().0.shutdown(Shutdown::Write);
        connection.discard();
    }
}
