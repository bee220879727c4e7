//! What serves the reactor's entries: accepts connections, echoes, closes.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::accept::{Acceptor, Listener};
use super::admission::Admission;
use super::config::{Config, DRAIN_PERIOD, TRIM_THRESHOLD, WhenFull};
use super::connect_faults::ConnectFaults;
use super::connection::{Connection, Outcome, Sink};
use super::drain::{self, Lifecycle};
use super::faulted::Faulted;
use super::handle::Handle;
use super::idle::{self, Hand, Timeouts, Visit};
use super::listen;
use super::observer::{CloseReason, LocalAddresses, Observer, Peer};
use super::proxy_protocol::{AwaitingHeader, BAD_HEADER};
use super::stats::Counters;
use crate::clock;
use crate::fault::{Drawn, Fault, Kind, Rules};
use crate::log_target::LOG_TARGET;
use crate::reactor::{Handler, INTEREST, Next, Reactor};
use crate::ready::Ready;
use crate::timers::Timers;
use crate::transport::{Listen, Stream};

/// What serves the reactor's entries.
#[derive(Debug)]
pub(super) struct Echo<O, L: Listen> {
    pub(super) core: Core<L>,
    pub(super) observer: O,
}

/// What a server consists of, its reactor and its observer apart.
#[derive(Debug)]
pub(super) struct Core<L: Listen> {
    pub(super) config: Config,
    pub(super) local_addrs: Vec<L::Address>,
    pub(super) acceptor: Acceptor<L>,
    pub(super) admission: Admission,
    /// The buffer of every read: a connection has none of its own.
    pub(super) buffer: Box<[u8]>,
    pub(super) local_addresses: LocalAddresses,
    /// Open connections.
    pub(super) connections: usize,
    /// The most that were open since none was.
    pub(super) connections_peak: usize,
    pub(super) lifecycle: Lifecycle,
    /// When the hand ends connections, a drain apart.
    pub(super) timeouts: Option<Timeouts>,
    pub(super) rules: Rules,
    /// Accepts, of which `connect=reset` chooses some.
    pub(super) accepts: u64,
    /// Deadlines of connections with faults.
    pub(super) timers: Timers<Instant>,
    pub(super) connect_faults: ConnectFaults<L>,
    /// Finds connections on which no byte moves, if there are any to find.
    pub(super) hand: Option<Hand>,
    pub(super) handle: Handle,
}

/// The value under a key.
///
/// Its size is what an idle connection costs. What a listener needs is in the [`Acceptor`].
///
/// `Connection` is first: the compiler numbers the others without a gap, and one comparison recognizes a free place of the slab.
#[derive(Debug)]
pub(super) enum Entry<S> {
    Connection {
        connection: Connection<S>,
        address: SocketAddr,
    },
    Listener(u32),
    AwaitingHeader(AwaitingHeader<S>),
    /// A connection that a rule of a fault has chosen.
    Faulted(Box<Faulted<S>>),
}

/// The reactor of a server.
pub(super) type EchoReactor<L> = Reactor<Entry<<L as Listen>::Stream>>;

/// What needs the whole reactor.
#[derive(Debug)]
pub(super) enum Act {
    Accept(u32),
    TakeHeader(Ready),
    Close(CloseReason),
    /// Report again what the socket of a connection with faults is ready for.
    Rearm,
}

impl<S: Stream> Entry<S> {
    /// Returns the entry of a connection that is served, with the faults that it has drawn.
    fn connection(stream: S, address: SocketAddr, drawn: &Drawn) -> Self {
        if drawn.faults.is_empty() {
            return Self::Connection { connection: Connection::new(stream), address };
        }
        Self::Faulted(Box::new(Faulted::new(stream, address, drawn)))
    }

    /// Ends the direction of its output, before it is closed in order.
    fn shutdown(&mut self) {
        // The peer may have gone.
        let _ = match self {
            Self::Connection { connection, .. } => drain::shutdown(connection.get_mut()),
            Self::Faulted(faulted) => drain::shutdown(faulted.stream_mut()),
            Self::Listener(_) | Self::AwaitingHeader(_) => Ok(()),
        };
    }

    /// Has the kernel wait for an acknowledgement as long as TCP does (tcp(7), `TCP_USER_TIMEOUT`).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn lift_user_timeout(&self) {
        if let Some(stream) = self.stream() {
            // A Unix socket has none.
            let _ = SockRef::from(stream).set_tcp_user_timeout(None);
        }
    }

    /// Returns the socket of a connection.
    fn stream(&self) -> Option<&S> {
        match self {
            Self::Connection { connection, .. } => Some(connection.get_ref()),
            Self::Faulted(faulted) => Some(faulted.stream()),
            Self::AwaitingHeader(awaiting) => Some(&awaiting.stream),
            Self::Listener(_) => None,
        }
    }
}

impl<L: Listen> Core<L> {
    /// Returns the earliest deadline.
    pub(super) fn earliest_deadline(&self) -> Option<Instant> {
        self.deadlines().into_iter().flatten().min()
    }

    /// Returns every deadline that is set: the turn must not wait past one.
    pub(super) fn deadlines(&self) -> [Option<Instant>; 5] {
        [
            self.acceptor.retry_at(),
            self.hand.map(|hand| hand.deadline()),
            self.lifecycle.deadline(),
            self.timers.next_at(),
            self.connect_faults.next_at,
        ]
    }

    /// Returns why a connection with `pending` bytes of output failed: at `TCP_USER_TIMEOUT` its peer has stalled.
    #[cold]
    pub(super) fn failure(&self, kind: io::ErrorKind, pending: usize) -> CloseReason {
        // The error of keep-alive is the same: then only pending output tells a stalled peer from an idle one.
        let can_stall = self.config.stall_timeout.is_some() && (pending > 0 || self.config.keepalive.is_none());
        if can_stall && kind == io::ErrorKind::TimedOut { CloseReason::Stalled } else { kind.into() }
    }
}

impl<O: Observer, L: Listen> Handler<Entry<L::Stream>> for Echo<O, L> {
    type Act = Act;

    #[expect(clippy::inline_always, reason = "as a call it costs a message a sixth more instructions")]
    #[inline(always)]
    fn ready(&mut self, key: usize, entry: &mut Entry<L::Stream>, ready: Ready) -> Next<Act> {
        let Entry::Connection { connection, address } = entry else { return self.on_other_ready(key, entry, ready) };
        let peer = || self.core.local_addresses.peer(key, *address);
        self.observer.serving(key);
        let mut tally = Tally { counters: self.core.handle.counters(), peer, observer: &mut self.observer };
        let outcome = if L::Stream::IS_TCP_SOCKET {
            connection.serve_socket(ready, &mut self.core.buffer, &mut tally)
        } else {
            connection.serve_any(ready, &mut self.core.buffer, &mut tally)
        };
        self.observer.served(key);
        match outcome {
            Outcome::Wait => Next::Wait,
            Outcome::Again => Next::Again,
            Outcome::Ended => {
                self.observer.ended(peer());
                let is_drained = connection.is_discarding();
                Next::Act(Act::Close(if is_drained { CloseReason::Drained } else { CloseReason::EndOfStream }))
            }
            Outcome::Failed(kind) => Next::Act(Act::Close(self.core.failure(kind, connection.pending()))),
        }
    }

    fn act(&mut self, reactor: &mut EchoReactor<L>, key: usize, act: Act) -> Next<Infallible> {
        match act {
            Act::Accept(index) => self.accept(reactor, index as usize, self.core.config.accepts_per_turn),
            Act::TakeHeader(ready) => self.take_header(reactor, key, ready),
            Act::Close(reason) => self.close(reactor, key, reason),
            Act::Rearm => self.rearm(reactor, key),
        }
        Next::Wait
    }
}

impl<O: Observer, L: Listen> Echo<O, L> {
    /// Serves an entry that is no connection. A match of all kinds in [`ready`](Self::ready) costs a message 4 % more instructions
    /// than the test for one.
    #[cold]
    fn on_other_ready(&mut self, key: usize, entry: &mut Entry<L::Stream>, ready: Ready) -> Next<Act> {
        match entry {
            Entry::Listener(index) => self.on_listener_ready(*index),
            Entry::AwaitingHeader(_) => Next::Act(Act::TakeHeader(ready)),
            Entry::Faulted(faulted) => self.serve_faulted(key, faulted, ready),
            Entry::Connection { .. } => Next::Wait,
        }
    }

    fn on_listener_ready(&mut self, index: u32) -> Next<Act> {
        if self.core.acceptor.is_backing_off() {
            self.core.acceptor.pause();
            return Next::Wait;
        }
        Next::Act(Act::Accept(index))
    }

    /// Accepts at most `attempts` connections, so that a burst of new ones does not starve the open ones.
    pub(super) fn accept(&mut self, reactor: &mut EchoReactor<L>, index: usize, attempts: usize) {
        let core = &mut self.core;
        let room = match core.config.when_full {
            WhenFull::Wait => core.config.max_connections - core.connections,
            WhenFull::Reset => usize::MAX,
        };
        let errors = &core.handle.counters().accept_errors;
        core.acceptor.accept(index, attempts, room, errors, |listener, stream, address| {
            let refused = &core.handle.counters().refused;
            if !core.config.proxy_protocol && !core.admission.admit(address, refused) {
                reset_on_close(&stream);
                return Ok(false);
            }
            if core.connections == core.config.max_connections {
                reset_on_close(&stream);
                refused.max_connections.add(1);
                return Ok(false);
            }
            core.accepts += 1;
            if let Some(fault) = core.rules.draw_reset(core.accepts) {
                log::debug!(target: LOG_TARGET, "reset the connection from {address}: {fault}");
                reset_on_close(&stream);
                core.handle.counters().faults[Kind::Connect as usize].add(1);
                return Ok(false);
            }
            if listener.has_older {
                listen::set_connection_options(&SockRef::from(&stream), &core.config)?;
            }
            listener.socket.configure(&stream, &core.config)?;
            // Fails if the peer has reset the connection.
            let local_address = if self.observer.needs_local_address() {
                SockRef::from(&stream).local_addr().ok().and_then(|address| address.as_socket())
            } else {
                None
            };
            let mut opened = None;
            let key = if core.config.proxy_protocol {
                let wrap = |stream| Entry::AwaitingHeader(AwaitingHeader::new(stream, address));
                reactor.insert(stream, INTEREST, wrap)?
            } else {
                let drawn = core.rules.draw(core.handle.counters().accepted.get() + 1, address.ip());
                let key = reactor.insert(stream, INTEREST, |stream| Entry::connection(stream, address, &drawn))?;
                core.admission.opened(address);
                core.handle.counters().accepted.add(1);
                opened = Some(drawn.faults);
                key
            };
            core.local_addresses.set(key, local_address);
            core.connections += 1;
            core.connections_peak = core.connections_peak.max(core.connections);
            if core.hand.is_none() {
                core.hand = core.timeouts.map(|timeouts| Hand::new(timeouts.period, clock::now(), reactor));
            }
            // Last: the observer may panic.
            if let Some(faults) = opened {
                report_opened(&mut self.observer, reactor, core.local_addresses.peer(key, address), &faults);
            }
            Ok(true)
        });
        if core.acceptor.take_held() {
            core.handle.counters().faults[Kind::Connect as usize].add(1);
        }
        if core.connections == core.config.max_connections {
            core.acceptor.warn_full(core.connections, core.config.when_full);
        }
    }

    /// Takes the PROXY header of a connection, if it has arrived, and serves the connection from then on.
    #[cold]
    fn take_header(&mut self, reactor: &mut EchoReactor<L>, key: usize, ready: Ready) {
        let Some(Entry::AwaitingHeader(awaiting)) = reactor.get_mut(key) else { return };
        let address = match awaiting.take_header(ready) {
            Ok(Some(address)) => address,
            Ok(None) => return,
            Err(reason) => {
                reset_on_close(&awaiting.stream);
                return self.close(reactor, key, reason);
            }
        };
        if self.core.admission.admit(address, &self.core.handle.counters().refused) {
            let number = self.core.handle.counters().accepted.get() + 1;
            let drawn = self.core.rules.draw(number, address.ip());
            reactor.report(key, ready);
            self.open(reactor, key, Some((address, drawn)));
        } else {
            reset_on_close(&awaiting.stream);
            reactor.remove(key);
            self.core.connections -= 1;
            self.core.acceptor.resume();
        }
    }

    /// Opens a connection that awaits its PROXY header, with the address and the faults of the `client`, or with its own address if the
    /// header has not announced one.
    fn open(&mut self, reactor: &mut EchoReactor<L>, key: usize, client: Option<(SocketAddr, Drawn)>) {
        let Some(Entry::AwaitingHeader(awaiting)) = reactor.get_mut(key) else { return };
        let (address, drawn) = client.unwrap_or_else(|| (awaiting.address, Drawn::default()));
        reactor.replace(key, |entry| match entry {
            Entry::AwaitingHeader(awaiting) => Entry::connection(awaiting.stream, address, &drawn),
            entry => entry,
        });
        // No further event reports the bytes behind the header, or those of a part of one.
        reactor.report(key, Ready::READABLE);
        self.count_opened(address);
        report_opened(&mut self.observer, reactor, self.core.local_addresses.peer(key, address), &drawn.faults);
    }

    /// Counts and reports the reason, then closes, even if the observer panics. The key is free from the next turn on.
    pub(super) fn close(&mut self, reactor: &mut EchoReactor<L>, key: usize, reason: CloseReason) {
        let Some(mut entry) = reactor.remove(key) else { return };
        let mut is_new = false;
        let address = match &mut entry {
            Entry::Listener(_) => return,
            Entry::Connection { address, .. } => *address,
            Entry::AwaitingHeader(awaiting) => {
                is_new = true;
                self.count_opened(awaiting.address);
                awaiting.address
            }
            Entry::Faulted(faulted) => {
                self.core.timers.set(key, &mut faulted.timer, None);
                faulted.address
            }
        };
        self.core.connections -= 1;
        self.core.admission.closed(address);
        self.core.handle.counters().closed(reason).add(1);
        if !L::Stream::IS_TCP_SOCKET && matches!(reason, CloseReason::EndOfStream | CloseReason::Idle) {
            entry.shutdown();
        }
        self.core.acceptor.resume();
        // Last: the observer may panic.
        let peer = self.core.local_addresses.peer(key, address);
        if is_new {
            self.observer.opened(peer);
        }
        self.observer.closed(peer, reason);
        drop(entry);
    }

    fn count_opened(&mut self, address: SocketAddr) {
        self.core.admission.opened(address);
        self.core.handle.counters().accepted.add(1);
    }

    /// Visits the next connections. One on which no byte moves is closed, or gets FIN in a drain.
    pub(super) fn advance_hand(&mut self, reactor: &mut EchoReactor<L>, now: Instant) {
        let Some(hand) = &mut self.core.hand else { return };
        let rounds = hand.rounds();
        // A drain has its own rule.
        let timeouts = self.core.timeouts.filter(|_| !self.core.lifecycle.is_draining());
        // That of the kernel too.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let has_user_timeout =
            self.core.config.stall_timeout.is_some() && self.core.lifecycle.is_draining() && rounds == 1;
        let ended = hand.advance(now, reactor, |entry| {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if has_user_timeout {
                entry.lift_user_timeout();
            }
            match (entry, &timeouts) {
                (Entry::Connection { connection, .. }, Some(timeouts)) => idle::visit(connection, timeouts, rounds),
                (Entry::Connection { connection, .. }, None) => idle::visit_draining(connection, rounds),
                (Entry::Faulted(faulted), Some(timeouts)) => idle::visit(&mut **faulted, timeouts, rounds),
                (Entry::Faulted(faulted), None) => idle::visit_draining(&mut **faulted, rounds),
                (Entry::AwaitingHeader(awaiting), Some(timeouts)) => idle::visit_awaiting(awaiting, timeouts, rounds),
                (Entry::AwaitingHeader(awaiting), None) => idle::visit_awaiting_draining(awaiting, rounds),
                (Entry::Listener(_), _) => Visit::Wait,
            }
        });
        for (key, reason) in ended {
            self.open(reactor, key, None);
            let is_reset = matches!(reason, CloseReason::Stalled | BAD_HEADER);
            match reactor.get_mut(key) {
                Some(Entry::Connection { connection, .. }) if reason == CloseReason::Drained => {
                    drain::send_fin(connection);
                }
                Some(Entry::Faulted(faulted)) if reason == CloseReason::Drained => faulted.send_fin(),
                Some(entry) => {
                    if let Some(stream) = entry.stream().filter(|_| is_reset) {
                        reset_on_close(stream);
                    }
                    self.close(reactor, key, reason);
                }
                None => {}
            }
        }
        if self.core.connections == 0 {
            self.core.hand = None;
        }
    }

    /// Accepts the connections that wait, closes the listeners, and looks for silent connections from now on.
    pub(super) fn begin_drain(&mut self, reactor: &mut EchoReactor<L>) {
        let backlog = self.core.config.backlog as usize;
        for index in 0..self.core.acceptor.listeners().len() {
            self.accept(reactor, index, backlog);
        }
        self.close_listeners(reactor);
        let now = clock::now();
        self.core.lifecycle = Lifecycle::Draining { deadline: now.checked_add(self.core.config.drain_timeout) };
        self.core.hand = Some(Hand::new(DRAIN_PERIOD, now, reactor));
    }

    fn close_listeners(&mut self, reactor: &mut EchoReactor<L>) {
        self.core.connect_faults.close();
        for mut listener in self.core.acceptor.close() {
            remove_listener(reactor, &mut listener);
        }
    }

    /// Returns memory to the system when the last connection of a peak has closed.
    pub(super) fn trim(&mut self, reactor: &mut EchoReactor<L>) {
        if self.core.connections_peak >= TRIM_THRESHOLD {
            reactor.shrink_to_fit();
            self.core.admission.shrink_to_fit();
            self.core.local_addresses.clear();
        }
        self.core.connections_peak = 0;
    }

    /// Closes every socket. A panic of the observer goes on when all are closed.
    pub(super) fn finish(&mut self, reactor: &mut EchoReactor<L>, reason: CloseReason) {
        self.core.lifecycle = Lifecycle::Finished;
        self.core.hand = None;
        self.close_listeners(reactor);
        let keys: Vec<_> = reactor.iter_mut().map(|(key, _)| key).collect();
        let mut panicked = None;
        for key in keys {
            let closed = panic::catch_unwind(AssertUnwindSafe(|| self.close(reactor, key, reason)));
            panicked = panicked.or(closed.err());
        }
        reactor.shrink_to_fit();
        if let Some(payload) = panicked {
            panic::resume_unwind(payload);
        }
    }
}

/// Tells the observer of a connection that is open now, and of its faults.
fn report_opened<T>(observer: &mut impl Observer, reactor: &mut Reactor<T>, peer: Peer, faults: &[Fault]) {
    if !faults.is_empty() {
        // It may have something to do already, or a deadline.
        reactor.resume(peer.key);
    }
    observer.opened(peer);
    for fault in faults {
        observer.faulted(peer, fault);
    }
}

/// Takes a listening socket out of the reactor.
pub(super) fn remove_listener<L: Listen>(reactor: &mut EchoReactor<L>, listener: &mut Listener<L>) {
    reactor.remove(listener.key);
    if let Err(error) = reactor.deregister(&mut listener.socket) {
        log::debug!(target: LOG_TARGET, "cannot deregister a listener: {error}; closing it does the same");
    }
}

/// Makes closing the socket send RST, and discard what the peer has not received.
pub(super) fn reset_on_close(stream: &impl Stream) {
    // Fails if the peer has gone: then the socket is closed anyway.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Counts the bytes that a connection moves, and passes those that it receives to the observer.
pub(super) struct Tally<'a, P, O> {
    pub(super) counters: &'a Counters,
    /// Called only where an observer looks at the peer.
    pub(super) peer: P,
    pub(super) observer: &'a mut O,
}

impl<P: Fn() -> Peer, O: Observer> Sink for Tally<'_, P, O> {
    #[inline]
    fn received(&mut self, data: &[u8]) {
        self.counters.bytes_in.add(data.len());
        self.observer.received((self.peer)(), data);
    }

    #[cold]
    fn discarded(&mut self, length: usize) {
        self.counters.bytes_in.add(length);
        self.counters.discarded.add(length);
    }

    #[inline]
    fn sent(&mut self, length: usize) {
        self.counters.bytes_out.add(length);
        self.observer.sent((self.peer)(), length);
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::TcpStream;

    use super::*;
    use crate::Server;
    use crate::server::EventLoop;
    use crate::server::tests::turn_until;

    /// Returns the `TCP_USER_TIMEOUT` of each connection.
    fn user_timeouts<S: Stream>(reactor: &mut Reactor<Entry<S>>) -> Vec<Option<Duration>> {
        let streams = reactor.iter_mut().filter_map(|(_, entry)| entry.stream());
        streams.map(|stream| SockRef::from(stream).tcp_user_timeout().unwrap()).collect()
    }

    /// The system gives a connection the options of its listening socket at the end of the handshake.
    #[test]
    fn a_connection_that_waited_before_its_socket_was_served_has_the_options_too() {
        use rustix::event::{PollFd, PollFlags, poll};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        poll(&mut [PollFd::new(&listener, PollFlags::IN)], None).unwrap();
        let config = Config { stall_timeout: Some(Duration::from_secs(8)), ..Config::default() };
        let mut server = Server::from_listener(listener, config).unwrap();
        turn_until(&mut server, |server| server.core().connections == 1);
        let EventLoop { reactor, echo } = server.event_loop_mut();
        assert!(!echo.core.acceptor.listeners()[0].has_older, "the backlog was found empty");
        assert_eq!(user_timeouts(reactor), [Some(Duration::from_secs(9))]);
    }

    #[test]
    fn a_drain_ends_the_user_timeout_of_each_connection() {
        for (proxy_protocol, faults) in [(false, vec![]), (false, vec!["mute".parse().unwrap()]), (true, vec![])] {
            let stall_timeout = Some(Duration::from_secs(8));
            let config = Config { stall_timeout, faults, proxy_protocol, ..Config::default() };
            let mut server = Server::bind("127.0.0.1:0", config).unwrap();
            let _client = TcpStream::connect(server.local_addr()).unwrap();
            turn_until(&mut server, |server| server.core().connections == 1);
            let EventLoop { reactor, echo } = server.event_loop_mut();
            assert_eq!(user_timeouts(reactor), [Some(Duration::from_secs(9))]);
            echo.begin_drain(reactor);
            echo.advance_hand(reactor, Instant::now());
            assert_eq!(user_timeouts(reactor), [None]);
        }
    }
}
