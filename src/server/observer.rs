//! What the embedder is told.

use std::io;
use std::net::SocketAddr;

/// The other end of a connection, as an [`Observer`] is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// Tells apart the connections that are open. A key is used again after its connection has closed.
    pub key: usize,
    /// The address that accept(2) gave.
    pub address: SocketAddr,
}

impl Peer {
    pub(super) fn new(key: usize, address: SocketAddr) -> Self {
        Self { key, address }
    }
}

/// Is told, on the server's thread, what becomes of each connection: opened, received and ended as they come, then closed.
///
/// Every method does nothing unless it is written, and `()` observes nothing at no cost. While a method runs the server
/// serves nobody, so none may block.
///
/// # Examples
///
/// ```
/// use ecoloop::{Closed, Config, Observer, Peer, Server};
///
/// #[derive(Default)]
/// struct Resets(u64);
///
/// impl Observer for Resets {
///     fn closed(&mut self, _: Peer, why: Closed) {
///         self.0 += u64::from(why == Closed::Reset);
///     }
/// }
///
/// let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Resets::default());
/// assert_eq!(server.observer().0, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Observer {
    /// A connection was accepted.
    fn opened(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// These bytes came in, and are about to be echoed: at most one buffer's worth, cut where the reads happened to end.
    fn received(&mut self, peer: Peer, data: &[u8]) {
        let _ = (peer, data);
    }

    /// The peer has ended its direction, and all that it sent has gone back, apart from what came after this end's own FIN.
    fn ended(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// The connection is about to be closed; nothing more is told of it.
    fn closed(&mut self, peer: Peer, why: Closed) {
        let _ = (peer, why);
    }
}

impl Observer for () {}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// The peer ended its direction, and all that it sent went back.
    EndOfStream,
    /// The peer reset it, or was gone when it was written to (`ECONNRESET`, `EPIPE`).
    Reset,
    /// Another failure of a read or a write, such as a timeout of the network.
    Failed(io::ErrorKind),
    /// No byte moved for [`Config::idle_timeout`](crate::Config::idle_timeout).
    Idle,
    /// The server drained: this end sent FIN first, and the peer answered with its own.
    Drained,
    /// The server drained, and [`Config::drain_timeout`](crate::Config::drain_timeout) passed before the peer's FIN.
    Cut,
    /// The server stopped.
    Stopped,
}

impl From<io::ErrorKind> for Closed {
    fn from(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            kind => Self::Failed(kind),
        }
    }
}
