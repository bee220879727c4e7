//! When to accept, when to pause or back off, and which errors of accept(2) are one connection's own.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::config::{ACCEPT_RETRY, WhenFull};
use super::stats::AcceptErrorCounters;
use super::token_bucket::TokenBucket;
use crate::clock;
use crate::fault::Connect;
use crate::log_target::warn_rate_limited;
use crate::transport::Listen;

/// A listening socket, registered under `key`.
#[derive(Debug)]
pub(super) struct Listener<L: Listen> {
    pub(super) socket: L,
    pub(super) address: L::Address,
    pub(super) key: usize,
    /// Connections may wait that were established before the socket had its options: they have not inherited them.
    pub(super) has_older: bool,
}

/// Accepts in bursts from the listening sockets.
#[derive(Debug)]
pub(super) struct Acceptor<L: Listen> {
    listeners: Vec<Listener<L>>,
    /// The listener to accept from first after a pause: the one after that which accepted last.
    first: usize,
    /// Connections were left in a backlog until one closes, and no edge will announce them again.
    paused: bool,
    /// Connections were left in a backlog for the next turn.
    unfinished: bool,
    /// Limits the connections accepted per second.
    bucket: Option<TokenBucket>,
    /// What a rule of a fault does to the accepts.
    fault: Option<Connect>,
    pace: Pace,
    /// When to accept again after a failure, or when there is a token again.
    retry_at: Option<Instant>,
    /// The system ran out of descriptors or memory, and nothing was accepted since.
    exhausted: bool,
    /// When each kind of failure was last logged: one must not suppress the other.
    exhaustion_logged_at: Option<Instant>,
    full_logged_at: Option<Instant>,
    failure_logged_at: Option<Instant>,
}

/// One accept at a time, for [`Connect::Every`].
#[derive(Debug, Default)]
struct Pace {
    next_at: Option<Instant>,
    /// Clients may have been held back since the last accept.
    is_holding: bool,
    /// The client that was accepted last had been held back.
    has_held: bool,
}

/// The result of one call of accept(2).
enum Accepted<S> {
    Connection(S, SocketAddr),
    Blocked,
    /// One connection failed, and is gone.
    Skipped(io::Error),
    /// The listening socket or the system failed.
    Failed(io::Error),
}

impl<L: Listen> Acceptor<L> {
    pub(super) fn new(listeners: Vec<Listener<L>>, accept_rate: Option<f64>) -> Self {
        Self {
            listeners,
            bucket: accept_rate.map(|rate| TokenBucket::new(rate, clock::now())),
            fault: None,
            pace: Pace::default(),
            first: 0,
            paused: false,
            unfinished: false,
            retry_at: None,
            exhausted: false,
            exhaustion_logged_at: None,
            full_logged_at: None,
            failure_logged_at: None,
        }
    }

    /// Accepts from listener `index` until `WouldBlock`, with at most `attempts` calls, while there is `room` for connections. Calls
    /// `admit` for each, which returns whether it is served; an error drops the connection. Counts the errors of both.
    ///
    /// Backs off if every attempt failed: an error of single connections that lasts, such as `EPERM` of a filter, is the system's.
    pub(super) fn accept(
        &mut self,
        index: usize,
        attempts: usize,
        mut room: usize,
        errors: &AcceptErrorCounters,
        mut admit: impl FnMut(&Listener<L>, L::Stream, SocketAddr) -> io::Result<bool>,
    ) {
        if self.fault == Some(Connect::Hang) {
            return self.pause();
        }
        let mut allowance = match self.allowance() {
            Ok(allowance) => allowance,
            Err(retry_at) => {
                self.retry_at = Some(retry_at);
                return self.pause();
            }
        };
        let (mut accepted, mut skipped) = (false, None);
        for _ in 0..attempts {
            if allowance == 0 {
                break;
            }
            if room == 0 {
                return self.pause();
            }
            match accept(&self.listeners[index].socket) {
                Accepted::Connection(stream, address) => {
                    self.spend_allowance();
                    allowance -= 1;
                    self.exhausted = false;
                    self.first = (index + 1) % self.listeners.len();
                    accepted = true;
                    match admit(&self.listeners[index], stream, address) {
                        Ok(true) => room -= 1,
                        Ok(false) => {}
                        Err(error) => {
                            errors.add(&error);
                            self.warn_dropped(address, &error);
                        }
                    }
                }
                Accepted::Skipped(error) => {
                    errors.add(&error);
                    skipped = Some(error);
                }
                Accepted::Blocked => {
                    self.pace.is_holding = false;
                    self.listeners[index].has_older = false;
                    return;
                }
                Accepted::Failed(error) => {
                    errors.add(&error);
                    return self.back_off(index, &error);
                }
            }
        }
        match skipped {
            Some(error) if !accepted => self.back_off(index, &error),
            _ => self.unfinished = true,
        }
    }

    /// Returns how many connections may be accepted now, or when one may.
    fn allowance(&mut self) -> Result<usize, Instant> {
        let mut allowance = usize::MAX;
        if let Some(bucket) = &mut self.bucket {
            allowance = bucket.fill(clock::now());
            if allowance == 0 {
                return Err(bucket.next_at());
            }
        }
        if let Some(Connect::Every(_)) = self.fault {
            if let Some(at) = self.pace.next_at.filter(|&at| clock::now() < at) {
                self.pace.is_holding = true;
                return Err(at);
            }
            allowance = 1;
        }
        Ok(allowance)
    }

    fn spend_allowance(&mut self) {
        if let Some(bucket) = &mut self.bucket {
            bucket.take();
        }
        if let Some(Connect::Every(interval)) = self.fault {
            self.pace.next_at = Some(clock::now() + interval);
            self.pace.has_held = std::mem::take(&mut self.pace.is_holding);
        }
    }

    /// Sets what a rule of a fault does to the accepts from now on.
    pub(super) fn set_fault(&mut self, fault: Option<Connect>) {
        self.fault = fault;
        self.pace = Pace::default();
        self.resume();
    }

    /// Returns whether [`Connect::Every`] had held back the connection that was accepted last.
    pub(super) fn take_held(&mut self) -> bool {
        std::mem::take(&mut self.pace.has_held)
    }

    /// Leaves what waits in the backlogs until a connection closes.
    pub(super) fn pause(&mut self) {
        self.paused = true;
    }

    /// Leaves what waits in the backlogs until a connection closes, or 100 ms have passed: after `EMFILE` no event announces those
    /// that are already there (mio's `Poll`, "Draining readiness").
    fn back_off(&mut self, index: usize, error: &io::Error) {
        let now = clock::now();
        self.paused = true;
        self.retry_at = Some(now + ACCEPT_RETRY);
        let logged_at = if !is_exhaustion(error) {
            &mut self.failure_logged_at
        } else if !std::mem::replace(&mut self.exhausted, true) {
            &mut self.exhaustion_logged_at
        } else {
            return;
        };
        let address = &self.listeners[index].address;
        let next = "accepting again when a connection closes, or in 100 ms";
        warn_rate_limited(logged_at, now, format_args!("cannot accept on {address}: {error}; {next}"));
    }

    fn warn_dropped(&mut self, address: SocketAddr, error: &io::Error) {
        warn_rate_limited(
            &mut self.failure_logged_at,
            clock::now(),
            format_args!("cannot serve {address}: {error}; the connection is dropped"),
        );
    }

    /// Logs that `max_connections` connections are open.
    pub(super) fn warn_full(&mut self, max_connections: usize, when_full: WhenFull) {
        let noun = if max_connections == 1 { "connection is" } else { "connections are" };
        let others = match when_full {
            WhenFull::Wait => "more wait in the backlog until one closes",
            WhenFull::Reset => "more are reset until one closes",
        };
        warn_rate_limited(
            &mut self.full_logged_at,
            clock::now(),
            format_args!("{max_connections} {noun} open, the maximum: {others}"),
        );
    }

    /// Returns when to accept again, if no connection closes before.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn is_backing_off(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Ends a pause: the backlogs are looked at in the next turn.
    pub(super) fn resume(&mut self) {
        self.retry_at = None;
        self.unfinished |= std::mem::take(&mut self.paused);
    }

    /// Looks at the backlogs in the next turn: a panic has ended a burst of accepts.
    pub(super) fn accept_again(&mut self) {
        self.unfinished = true;
    }

    /// Returns the keys of the listeners if the next turn must accept without an event, else none. The request is taken.
    ///
    /// Listeners take turns: with room for one connection the first in the order would starve the others.
    pub(super) fn take_unfinished(&mut self) -> impl Iterator<Item = usize> {
        let listeners = if std::mem::take(&mut self.unfinished) { &self.listeners[..] } else { &[] };
        let (after, before) = listeners.split_at(self.first.min(listeners.len()));
        before.iter().chain(after).map(|listener| listener.key)
    }

    /// Expects connections that have not inherited the options of their listening sockets.
    pub(super) fn expect_older(&mut self) {
        self.listeners.iter_mut().for_each(|listener| listener.has_older = true);
    }

    pub(super) fn listeners(&self) -> &[Listener<L>] {
        &self.listeners
    }

    /// Returns the listening sockets, which are to be closed for a while.
    pub(super) fn take_listeners(&mut self) -> Vec<Listener<L>> {
        std::mem::take(&mut self.listeners)
    }

    /// Accepts from one more.
    pub(super) fn add_listener(&mut self, listener: Option<Listener<L>>) {
        self.listeners.extend(listener);
    }

    /// Gives up accepting, and returns the listening sockets.
    pub(super) fn close(&mut self) -> Vec<Listener<L>> {
        std::mem::replace(self, Self::new(Vec::new(), None)).listeners
    }
}

fn accept<L: Listen>(listener: &L) -> Accepted<L::Stream> {
    match listener.accept() {
        Ok((stream, address)) => Accepted::Connection(stream, address),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Accepted::Blocked,
        Err(error) if is_one_connections_own(&error) => Accepted::Skipped(error),
        Err(error) => Accepted::Failed(error),
    }
}

/// Returns whether the process or the system is out of descriptors or memory (accept(2), "ERRORS").
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Returns whether the next connection may be accepted in spite of the error. accept(2), "Error handling", names those of the
/// network, which were pending on the new connection; `EPERM` is a firewall's.
fn is_one_connections_own(error: &io::Error) -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if error.raw_os_error() == Some(libc::ENONET) {
        return true;
    }
    matches!(
        error.raw_os_error(),
        Some(
            libc::EINTR
                | libc::ECONNABORTED
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::os::fd::{AsFd, BorrowedFd};

    use mio::event::Source;
    use mio::net::UnixStream;
    use mio::{Interest, Registry, Token};

    use super::*;
    use crate::Peer;
    use crate::log_target::warnings_of;
    use crate::transport::Socket;

    /// A listening socket whose accepts return what is scripted: a connection, or an error. Then they block.
    #[derive(Debug)]
    struct Scripted {
        accepts: RefCell<VecDeque<Option<i32>>>,
        descriptor: UnixStream,
    }

    impl Listen for Scripted {
        type Stream = Socket<UnixStream>;
        type Address = usize;

        fn local_addr(&self) -> io::Result<usize> {
            Ok(0)
        }

        fn accept(&self) -> io::Result<(Socket<UnixStream>, SocketAddr)> {
            match self.accepts.borrow_mut().pop_front() {
                Some(None) => Ok((Socket::new(UnixStream::pair()?.0), Peer::NO_ADDRESS)),
                Some(Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
                None => Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    impl AsFd for Scripted {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }
    }

    impl Source for Scripted {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn reregister(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }

        fn deregister(&mut self, _: &Registry) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns an acceptor with as many listeners as scripts. Their keys are the numbers from 0.
    fn acceptor<const N: usize>(scripts: [&[Option<i32>]; N]) -> Acceptor<Scripted> {
        let listener = |(key, script): (usize, &[Option<i32>])| {
            let accepts = RefCell::new(script.iter().copied().collect());
            let socket = Scripted { accepts, descriptor: UnixStream::pair().unwrap().0 };
            Listener { socket, address: key, key, has_older: false }
        };
        Acceptor::new((0..).zip(scripts).map(listener).collect(), None)
    }

    /// Calls accept(2) once. Returns whether there was a connection.
    fn accept_one(acceptor: &mut Acceptor<Scripted>, index: usize) -> bool {
        let mut accepted = false;
        acceptor.accept(index, 1, usize::MAX, &AcceptErrorCounters::default(), |_, _, _| {
            accepted = true;
            Ok(true)
        });
        accepted
    }

    #[test]
    fn the_listener_after_that_which_accepted_last_comes_first() {
        for index in 0..3 {
            let mut acceptor = acceptor([&[None]; 3]);
            assert!(accept_one(&mut acceptor, index));
            let mut order = [0, 1, 2];
            order.rotate_left(index + 1);
            assert_eq!(acceptor.take_unfinished().collect::<Vec<_>>(), order);
            assert_eq!(acceptor.take_unfinished().count(), 0, "the request is taken");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_connection_was_held_back_if_it_waited_for_its_time() {
        use std::time::Duration;

        use crate::simulation::{Modelled, set_now};

        let _modelled = Modelled::new(|_, _, _| Ok(()));
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        set_now(start);
        let mut acceptor = acceptor([&[None; 3]]);
        acceptor.set_fault(Some(Connect::Every(Duration::from_millis(10))));
        assert!(accept_one(&mut acceptor, 0) && !acceptor.take_held());

        set_now(at(9));
        assert!(!accept_one(&mut acceptor, 0));
        assert_eq!(acceptor.retry_at(), Some(at(10)));
        set_now(at(10));
        assert!(accept_one(&mut acceptor, 0));
        assert!(acceptor.take_held());
        assert!(!acceptor.take_held(), "it is counted once");

        set_now(at(20));
        assert!(accept_one(&mut acceptor, 0) && !acceptor.take_held());
    }

    #[test]
    fn running_out_of_descriptors_is_logged_once_and_does_not_suppress_the_log_of_a_dropped_connection() {
        let mut acceptor = acceptor([&[Some(libc::EMFILE), Some(libc::EMFILE), None]]);
        let mut warnings = || {
            let refuse = |_: &_, _, _| Err(io::ErrorKind::OutOfMemory.into());
            warnings_of(|| acceptor.accept(0, 1, usize::MAX, &AcceptErrorCounters::default(), refuse))
        };
        let exhausted = warnings();
        assert_eq!(exhausted.len(), 1, "{exhausted:?}");
        assert!(exhausted[0].starts_with("cannot accept on 0: "), "{exhausted:?}");
        assert!(warnings().is_empty());
        let dropped = warnings();
        assert_eq!(dropped.len(), 1, "{dropped:?}");
        assert!(dropped[0].starts_with("cannot serve 0.0.0.0:0: "), "{dropped:?}");
    }

    #[test]
    fn an_error_of_accept_is_of_its_connection_of_exhaustion_or_of_the_listener() {
        let own = [
            libc::EINTR,
            libc::ECONNABORTED,
            libc::EPROTO,
            libc::EPERM,
            libc::ENETDOWN,
            libc::ENOPROTOOPT,
            libc::EHOSTDOWN,
            libc::EHOSTUNREACH,
            libc::EOPNOTSUPP,
            libc::ENETUNREACH,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            libc::ENONET,
        ];
        let exhaustion = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
        for errno in 1..200 {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(is_one_connections_own(&error), own.contains(&errno), "{error}");
            assert_eq!(is_exhaustion(&error), exhaustion.contains(&errno), "{error}");
        }
        // Not of the system.
        let error = io::ErrorKind::OutOfMemory.into();
        assert!(!is_one_connections_own(&error) && !is_exhaustion(&error));
    }
}
