//! What an embedder can observe.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fault::Fault;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// Identifies the connection among those that are open. A key is used again after its connection has closed.
    pub key: usize,
    /// The address that accept(2) returned, or the source that the connection's PROXY header announced: see
    /// [`Config::proxy_protocol`](crate::Config::proxy_protocol). [`NO_ADDRESS`](Self::NO_ADDRESS) if it has none.
    pub address: SocketAddr,
    /// The address that the peer has connected to, if [`Observer::needs_local_address`].
    pub local_address: Option<SocketAddr>,
}

impl Peer {
    /// The address of a peer that has no IP address, such as one of a Unix socket: 0.0.0.0, port 0.
    pub const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

    /// Returns a peer without a local address, such as a test of an observer needs.
    ///
    /// # Examples
    ///
    /// ```
    /// use ecoloop::{CloseReason, Observer, Peer};
    ///
    /// #[derive(Default)]
    /// struct Closed(Vec<usize>);
    ///
    /// impl Observer for Closed {
    ///     fn closed(&mut self, peer: Peer, _: CloseReason) {
    ///         self.0.push(peer.key);
    ///     }
    /// }
    ///
    /// let mut closed = Closed::default();
    /// closed.closed(Peer::new(7, "192.0.2.1:40000".parse()?), CloseReason::Idle);
    /// assert_eq!(closed.0, [7]);
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn new(key: usize, address: SocketAddr) -> Self {
        Self { key, address, local_address: None }
    }

    /// Returns the same peer with a local address.
    #[must_use]
    pub fn with_local_address(self, local_address: SocketAddr) -> Self {
        Self { local_address: Some(local_address), ..self }
    }
}

/// The local addresses of the open connections, by key, for an observer that needs them.
#[derive(Debug, Default)]
pub(super) struct LocalAddresses(Vec<Option<SocketAddr>>);

impl LocalAddresses {
    pub(super) fn set(&mut self, key: usize, address: Option<SocketAddr>) {
        if self.0.len() <= key && address.is_some() {
            self.0.resize(key + 1, None);
        }
        if let Some(entry) = self.0.get_mut(key) {
            *entry = address;
        }
    }

    #[inline]
    pub(super) fn peer(&self, key: usize, address: SocketAddr) -> Peer {
        Peer { key, address, local_address: if self.0.is_empty() { None } else { self.get(key) } }
    }

    /// Apart, for few observers need it and `peer` is on the path of each message.
    #[cold]
    fn get(&self, key: usize) -> Option<SocketAddr> {
        self.0.get(key).copied().flatten()
    }

    pub(super) fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

/// Receives what the server does, on its thread.
///
/// Of each connection: opened, then received, sent and ended in their order, then closed. Of the loop: waiting and woken, and then
/// serving and served around each connection that is ready.
///
/// Every method has an empty default, and `()` costs nothing. A method must not block: the server serves no connection while it
/// runs.
///
/// A tuple calls each of its observers, in order. An `Arc<Mutex<O>>` is locked for each call, so that another thread can look at it:
/// keep the lock there for a short time, and never while you shut down, join or drop the server, which waits for it.
///
/// # Examples
///
/// ```
/// use ecoloop::{CloseReason, Config, Observer, Peer, Server};
///
/// #[derive(Default)]
/// struct Resets(u64);
///
/// impl Observer for Resets {
///     fn closed(&mut self, _: Peer, reason: CloseReason) {
///         self.0 += u64::from(reason == CloseReason::Reset);
///     }
/// }
///
/// let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Resets::default());
/// assert_eq!(server.observer().0, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait Observer {
    /// Returns whether [`Peer::local_address`] is looked up when a connection is accepted. That takes a getsockname(2) and 32 bytes a
    /// connection.
    fn needs_local_address(&self) -> bool {
        false
    }

    /// The server is about to wait for events.
    fn waiting(&mut self) {}

    /// The wait is over, with this number of events: 0 at a timeout, after a signal, or if work was left over.
    fn woken(&mut self, events: usize) {
        let _ = events;
    }

    /// The server is about to serve the connection of this [key](Peer::key): its readiness was reported, or input was left over.
    fn serving(&mut self, key: usize) {
        let _ = key;
    }

    /// The server has served the connection of this [key](Peer::key), and is about to serve another, to close this one, or to wait.
    fn served(&mut self, key: usize) {
        let _ = key;
    }

    /// A connection was accepted. With [`Config::proxy_protocol`](crate::Config::proxy_protocol) its header has arrived, or it is about
    /// to be closed without one.
    fn opened(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// A rule of [`Config::faults`](crate::Config::faults) has chosen this connection. Called once for each rule, after `opened`.
    fn faulted(&mut self, peer: Peer, fault: &Fault) {
        let _ = (peer, fault);
    }

    /// These bytes were received, and are about to be echoed: one read, at most one buffer's worth.
    fn received(&mut self, peer: Peer, data: &[u8]) {
        let _ = (peer, data);
    }

    /// This many bytes were sent. What is left of those received is pending output.
    fn sent(&mut self, peer: Peer, length: usize) {
        let _ = (peer, length);
    }

    /// The peer has closed its direction, and what it sent before this end's own FIN was echoed.
    fn ended(&mut self, peer: Peer) {
        let _ = peer;
    }

    /// The connection is about to be closed. It is the last event of this connection, and each has it, also when the server is dropped.
    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        let _ = (peer, reason);
    }
}

impl Observer for () {}

/// Implements every method: each of `$observer` is called.
macro_rules! forward {
    ($self:ident => $($observer:expr),+) => {
        #[inline]
        fn needs_local_address(&$self) -> bool {
            $($observer.needs_local_address())||+
        }

        #[inline]
        fn waiting(&mut $self) {
            $($observer.waiting();)+
        }

        #[inline]
        fn woken(&mut $self, events: usize) {
            $($observer.woken(events);)+
        }

        #[inline]
        fn serving(&mut $self, key: usize) {
            $($observer.serving(key);)+
        }

        #[inline]
        fn served(&mut $self, key: usize) {
            $($observer.served(key);)+
        }

        #[inline]
        fn opened(&mut $self, peer: Peer) {
            $($observer.opened(peer);)+
        }

        #[inline]
        fn faulted(&mut $self, peer: Peer, fault: &Fault) {
            $($observer.faulted(peer, fault);)+
        }

        #[inline]
        fn received(&mut $self, peer: Peer, data: &[u8]) {
            $($observer.received(peer, data);)+
        }

        #[inline]
        fn sent(&mut $self, peer: Peer, length: usize) {
            $($observer.sent(peer, length);)+
        }

        #[inline]
        fn ended(&mut $self, peer: Peer) {
            $($observer.ended(peer);)+
        }

        #[inline]
        fn closed(&mut $self, peer: Peer, reason: CloseReason) {
            $($observer.closed(peer, reason);)+
        }
    };
}

impl<O: Observer + ?Sized> Observer for &mut O {
    forward!(self => (**self));
}

impl<O: Observer + ?Sized> Observer for Box<O> {
    forward!(self => (**self));
}

/// A poisoned lock is used: the panic that poisoned it goes on in its own thread.
impl<O: Observer + ?Sized> Observer for Arc<Mutex<O>> {
    forward!(self => self.lock().unwrap_or_else(PoisonError::into_inner));
}

impl<A: Observer, B: Observer> Observer for (A, B) {
    forward!(self => self.0, self.1);
}

impl<A: Observer, B: Observer, C: Observer> Observer for (A, B, C) {
    forward!(self => self.0, self.1, self.2);
}

impl<A: Observer, B: Observer, C: Observer, D: Observer> Observer for (A, B, C, D) {
    forward!(self => self.0, self.1, self.2, self.3);
}

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed its direction, and every byte that it sent was echoed.
    EndOfStream,
    /// The peer reset the connection, or had closed it when the server wrote (`ECONNRESET`, `EPIPE`).
    Reset,
    /// A read or a write failed otherwise, such as by a timeout of the network. `InvalidData`: its PROXY header was bad or missing.
    Failed(io::ErrorKind),
    /// No byte moved for [`Config::idle_timeout`](crate::Config::idle_timeout).
    Idle,
    /// Pending output did not shrink for [`Config::stall_timeout`](crate::Config::stall_timeout), or the peer acknowledged nothing for
    /// `TCP_USER_TIMEOUT`.
    Stalled,
    /// The server drained: it sent FIN first, and the peer sent its own.
    Drained,
    /// The server drained, and [`Config::drain_timeout`](crate::Config::drain_timeout) passed before the peer's FIN.
    Cut,
    /// The server was stopped or dropped.
    Stopped,
    /// A rule of [`Config::faults`](crate::Config::faults) reset it, or sent FIN and the peer followed.
    Fault,
}

impl CloseReason {
    /// Returns its name in reports: that of its field in [`ClosedStats`](crate::ClosedStats).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfStream => "end_of_stream",
            Self::Reset => "reset",
            Self::Failed(_) => "failed",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Drained => "drained",
            Self::Cut => "cut",
            Self::Stopped => "stopped",
            Self::Fault => "fault",
        }
    }
}

impl From<io::ErrorKind> for CloseReason {
    fn from(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            kind => Self::Failed(kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_address_is_that_of_its_key_until_it_is_replaced() {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut addresses = LocalAddresses::default();
        let of = |addresses: &LocalAddresses| [2, 5, 6].map(|key| addresses.peer(key, Peer::NO_ADDRESS).local_address);
        addresses.set(6, None);
        assert_eq!(of(&addresses), [None; 3]);
        addresses.set(5, Some(local(5)));
        addresses.set(2, Some(local(2)));
        assert_eq!(of(&addresses), [Some(local(2)), Some(local(5)), None]);
        addresses.set(5, None);
        assert_eq!(of(&addresses), [Some(local(2)), None, None]);
        addresses.clear();
        assert_eq!(of(&addresses), [None; 3]);
    }

    #[test]
    fn local_addresses_are_looked_up_only_if_an_observer_needs_them() {
        struct Needs;

        impl Observer for Needs {
            fn needs_local_address(&self) -> bool {
                true
            }
        }

        assert!(!().needs_local_address());
        assert!(!((), ()).needs_local_address());
        assert!(((), Needs).needs_local_address());
    }
}
