//! The orderly end of a server: no new connections, FIN to each silent one, and a deadline for the rest.

use std::io::ErrorKind;
use std::time::Instant;

use super::connection::Connection;
use crate::transport::Stream;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lifecycle {
    Serving,
    Draining { deadline: Option<Instant> },
    Finished,
}

impl Lifecycle {
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

/// Whether there are more turns to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// Call again when the descriptor is readable or the deadline has passed.
    Running,
    /// The server has drained or was stopped: every socket is closed.
    Finished,
}

impl From<Lifecycle> for Turn {
    fn from(lifecycle: Lifecycle) -> Self {
        if lifecycle.is_finished() { Self::Finished } else { Self::Running }
    }
}

/// Sends FIN to a silent connection.
///
/// What it sends after that is read and discarded until its own FIN: closing a socket with unread input sends RST, which destroys
/// the echo that is on its way (RFC 1122, 4.2.2.13).
pub(super) fn send_fin(connection: &mut Connection<impl Stream>) {
    // ENOTCONN: the peer has gone, and the read that follows returns how.
    if connection.get_mut().shutdown().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        connection.expect_flush();
    }
    connection.discard();
}
