//! A connection with faults.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use socket2::SockRef;

use super::connection::{Connection, Outcome, Sink};
use super::drain;
use super::echo::{Act, Echo, EchoReactor, Entry, Tally, reset_on_close};
use super::idle::Watched;
use super::observer::{CloseReason, Observer};
use super::stats::Counters;
use crate::clock;
use crate::fault::{Drawn, End, FaultyStream};
use crate::reactor::{INTEREST, Next};
use crate::ready::Ready;
use crate::transport::{Listen, Stream};

/// What an event of a stream that is not a TCP socket may mean. After `PRIORITY` it is read until `WouldBlock`.
const ANYTHING: Ready = Ready::READABLE.and(Ready::WRITABLE).and(Ready::PRIORITY);

/// A connection that at least one rule has chosen.
#[derive(Debug)]
pub(super) struct Faulted<S> {
    connection: Connection<FaultyStream<S, fn() -> Instant>>,
    pub(super) address: SocketAddr,
    /// Its deadline among the timers.
    pub(super) timer: Option<Instant>,
    /// A fault has sent FIN.
    has_fin: bool,
    /// It is reset once the system has sent what was written.
    is_resetting: bool,
}

/// What to do with a connection that was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Wait,
    Again,
    /// Ask for a new event: the socket is not writable until the system has sent everything.
    #[cfg_attr(
        not(any(target_os = "linux", target_os = "android")),
        expect(dead_code, reason = "no TCP_NOTSENT_LOWAT")
    )]
    Rearm,
    /// Its peer has closed its direction.
    End(CloseReason),
    /// Close it: a fault did.
    Reset,
    Failed(io::ErrorKind),
}

impl<O: Observer, L: Listen> Echo<O, L> {
    pub(super) fn serve_faulted(&mut self, key: usize, faulted: &mut Faulted<L::Stream>, ready: Ready) -> Next<Act> {
        let (counters, address) = (self.core.handle.counters(), faulted.address);
        let peer = || self.core.local_addresses.peer(key, address);
        self.observer.serving(key);
        let mut tally = Tally { counters, peer, observer: &mut self.observer };
        let step = faulted.serve(ready, &mut self.core.buffer, &mut tally, counters);
        self.observer.served(key);
        let next = match step {
            Step::Wait => Next::Wait,
            Step::Again => Next::Again,
            Step::Rearm => Next::Act(Act::Rearm),
            Step::End(reason) => {
                self.observer.ended(peer());
                Next::Act(Act::Close(reason))
            }
            Step::Reset => Next::Act(Act::Close(CloseReason::Fault)),
            Step::Failed(kind) => Next::Act(Act::Close(self.core.failure(kind, faulted.pending()))),
        };
        let deadline = faulted.next_deadline();
        self.core.timers.set(key, &mut faulted.timer, deadline);
        next
    }

    pub(super) fn rearm(&mut self, reactor: &mut EchoReactor<L>, key: usize) {
        let rearmed = reactor.reregister(key, INTEREST, |entry| match entry {
            Entry::Faulted(faulted) => Some(faulted.stream_mut()),
            _ => None,
        });
        if let Err(error) = rearmed {
            self.close(reactor, key, error.kind().into());
        }
    }

    /// Queues the connections with faults whose deadline has passed: at most as many as events in a turn.
    pub(super) fn serve_expired(&mut self, reactor: &mut EchoReactor<L>, now: Instant) {
        for _ in 0..self.core.config.events_per_turn {
            let Some(key) = self.core.timers.pop_expired(now) else { return };
            if let Some(Entry::Faulted(faulted)) = reactor.get_mut(key) {
                faulted.timer = None;
                reactor.resume(key);
            }
        }
    }
}

impl<S: Stream> Faulted<S> {
    pub(super) fn new(stream: S, address: SocketAddr, drawn: &Drawn) -> Self {
        let stream = FaultyStream::new(stream, &drawn.faults, drawn.seed, clock::now as fn() -> Instant);
        Self { connection: Connection::new(stream), address, timer: None, has_fin: false, is_resetting: false }
    }

    /// Serves it as [`Connection`] does, and counts what it has sent and what the faults have done.
    fn serve(&mut self, ready: Ready, buffer: &mut [u8], sink: &mut impl Sink, counters: &Counters) -> Step {
        let was_blocked = self.is_blocked();
        let next = self.advance(ready, buffer, sink);
        let stream = self.connection.get_mut();
        let sent = stream.take_sent();
        for (kind, count) in stream.take_hits() {
            counters.faults[kind as usize].add(count as usize);
        }
        if sent > 0 {
            sink.sent(sent);
        }
        // The time for which a fault kept output back is no time for which the peer did not take it.
        if sent > 0 || self.is_blocked() && !was_blocked {
            self.connection.reset_idle();
        }
        next
    }

    fn advance(&mut self, ready: Ready, buffer: &mut [u8], sink: &mut impl Sink) -> Step {
        if self.is_resetting {
            return self.finish_reset(ready);
        }
        let ready = if S::IS_TCP_SOCKET || ready.is_none() { ready } else { ready | ANYTHING };
        let stream = self.connection.get_mut();
        if let Err(error) = stream.advance(ready.is_writable()) {
            return Step::Failed(error.kind());
        }
        if stream.is_stalled()
            && let Some(error) = self.socket_error()
        {
            return Step::Failed(error.kind());
        }
        if self.connection.get_ref().can_resume() {
            self.connection.expect_input();
        }
        // The stream takes output whenever it has room in its queue.
        let outcome = self.connection.serve_socket(ready | Ready::WRITABLE, buffer, &mut Received(sink));
        let stream = self.connection.get_mut();
        match (stream.take_end(), outcome) {
            (_, Outcome::Failed(kind)) => Step::Failed(kind),
            (Some(End::Reset { after_bytes }), _) => self.reset(after_bytes),
            (Some(End::Fin), _) => {
                self.has_fin = true;
                self.send_fin();
                self.connection.expect_input();
                Step::Again
            }
            (None, Outcome::Ended) => Step::End(self.end_reason()),
            (None, Outcome::Wait) if !stream.can_resume() && !stream.can_send() => Step::Wait,
            (None, Outcome::Wait | Outcome::Again) => Step::Again,
        }
    }

    fn end_reason(&self) -> CloseReason {
        match (self.has_fin, self.connection.is_discarding()) {
            (true, _) => CloseReason::Fault,
            (false, true) => CloseReason::Drained,
            (false, false) => CloseReason::EndOfStream,
        }
    }

    /// Resets it: what the system has not sent would be lost.
    fn reset(&mut self, after_bytes: bool) -> Step {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if after_bytes && SockRef::from(self.stream()).set_tcp_notsent_lowat(1).is_ok() {
            self.is_resetting = true;
            return Step::Rearm;
        }
        let _ = after_bytes;
        reset_on_close(self.stream());
        Step::Reset
    }

    /// Resets it if the system has sent everything: then the socket is writable.
    fn finish_reset(&mut self, ready: Ready) -> Step {
        if let Some(error) = self.socket_error() {
            return Step::Failed(error.kind());
        }
        if !ready.is_writable() {
            return Step::Wait;
        }
        reset_on_close(self.stream());
        Step::Reset
    }

    /// Returns what has failed on a socket that is not read.
    fn socket_error(&self) -> Option<io::Error> {
        SockRef::from(self.stream()).take_error().ok().flatten()
    }

    /// Sends FIN. What is received from then on is discarded.
    pub(super) fn send_fin(&mut self) {
        // ENOTCONN: the connection has ended, and the read that follows returns how.
        let _ = drain::shutdown(self.stream_mut());
        self.connection.get_mut().discard();
        self.connection.discard();
    }

    pub(super) fn stream(&self) -> &S {
        self.connection.get_ref().get_ref()
    }

    pub(super) fn stream_mut(&mut self) -> &mut S {
        self.connection.get_mut().get_mut()
    }

    /// Returns how many bytes were received, and are kept because the system does not take them.
    fn pending(&self) -> usize {
        if self.is_blocked() { self.connection.pending().max(1) } else { 0 }
    }

    /// Returns when to serve it though no event was reported.
    fn next_deadline(&self) -> Option<Instant> {
        self.connection.get_ref().next_deadline().filter(|_| !self.is_resetting)
    }

    fn is_blocked(&self) -> bool {
        self.is_resetting || self.connection.get_ref().is_blocked()
    }
}

impl<S: Stream> Watched for Faulted<S> {
    fn is_pending(&self) -> bool {
        self.is_blocked()
    }

    fn is_drained(&self) -> bool {
        // With output before its queue it is not read.
        self.connection.is_drained() || self.connection.pending() > 0
    }

    fn is_discarding(&self) -> bool {
        self.connection.is_discarding()
    }

    fn tick_idle(&mut self) -> u8 {
        self.connection.tick_idle()
    }

    fn expect_input(&mut self) {
        self.connection.expect_input();
    }

    fn end_withholding(&mut self) -> bool {
        let stream = self.connection.get_mut();
        let is_withholding = stream.is_withholding() && !self.is_resetting;
        if is_withholding {
            stream.lift();
        }
        is_withholding
    }
}

/// Passes on what is received. What a connection sends goes into the queue of the faulty stream, which knows when it leaves.
struct Received<'a, S>(&'a mut S);

impl<S: Sink> Sink for Received<'_, S> {
    fn received(&mut self, data: &[u8]) {
        self.0.received(data);
    }

    fn discarded(&mut self, length: usize) {
        self.0.discarded(length);
    }

    fn sent(&mut self, _: usize) {}
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use mio::net::{TcpStream, UnixStream};
    use mio::{Events, Poll, Token};

    use super::*;
    use crate::Peer;
    use crate::server::connection::Served;
    use crate::transport::Socket;

    /// Longer than anything takes that a test waits for.
    const TIMEOUT: Duration = Duration::from_secs(20);

    fn faulted<S>(stream: S, rule: &str) -> Faulted<Socket<S>>
    where
        Socket<S>: Stream,
    {
        let drawn = Drawn { faults: vec![rule.parse().unwrap()], seed: 0 };
        Faulted::new(Socket::new(stream), Peer::NO_ADDRESS, &drawn)
    }

    fn serve(faulted: &mut Faulted<impl Stream>, ready: Ready) -> Step {
        let mut served = Served { received: 0, sent: 0, outcome: Outcome::Wait };
        faulted.serve(ready, &mut [0; 16], &mut served, &Counters::default())
    }

    /// Returns both ends of a TCP connection. The first does not block, and has received what the client sends.
    fn tcp_pair(sent: &[u8]) -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        client.write_all(sent).unwrap();
        if !sent.is_empty() {
            near.peek(&mut [0]).unwrap();
        }
        near.set_nonblocking(true).unwrap();
        (TcpStream::from_std(near), client)
    }

    /// Whether the socket takes the bytes at their time cannot be chosen from outside.
    #[test]
    fn the_time_of_a_delay_does_not_count_towards_the_stall_timeout() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut faulted = faulted(near, "delay=1ms");
        for length in [4096, 1] {
            while faulted.stream_mut().write(&vec![0; length]).is_ok() {}
        }
        far.write_all(b"a").unwrap();
        serve(&mut faulted, Ready::READABLE);
        assert_eq!([1, 2, 3], [(); 3].map(|()| faulted.tick_idle()));
        assert_eq!(faulted.pending(), 0, "the fault keeps it, not the peer");
        while !faulted.is_blocked() {
            serve(&mut faulted, Ready::NONE);
        }
        assert_eq!(faulted.tick_idle(), 1);
        assert!(faulted.pending() > 0);
        serve(&mut faulted, Ready::WRITABLE);
        assert_eq!(faulted.tick_idle(), 2);
        // Bytes that leave restart it.
        while far.read(&mut [0; 4096]).is_ok() {}
        serve(&mut faulted, Ready::WRITABLE);
        assert_eq!((faulted.tick_idle(), faulted.pending()), (1, 0));
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_reset_after_bytes_waits_until_a_tcp_socket_has_sent_them() {
        let (near, _client) = tcp_pair(b"hola");
        let mut after_bytes = faulted(near, "reset=1");
        assert_eq!(serve(&mut after_bytes, Ready::READABLE), Step::Rearm);
        assert_eq!(serve(&mut after_bytes, Ready::READABLE), Step::Wait);
        assert!(after_bytes.is_pending());
        assert_eq!(serve(&mut after_bytes, Ready::WRITABLE), Step::Reset);

        let (near, _client) = tcp_pair(b"");
        assert_eq!(serve(&mut faulted(near, "reset=0s"), Ready::NONE), Step::Reset);
        // Other sockets do not tell.
        let (near, mut client) = UnixStream::pair().unwrap();
        client.write_all(b"hola").unwrap();
        assert_eq!(serve(&mut faulted(near, "reset=1"), Ready::READABLE), Step::Reset);
    }

    /// All input has arrived before the server reads it, so nothing but the room in the socket can be an event when the client reads.
    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_client_that_reads_late_receives_all_bytes_before_its_reset() {
        use crate::server::tests::turn_until;
        use crate::{Config, Server};

        const LENGTH: usize = 60_000;

        let config = Config {
            faults: vec![format!("reset={LENGTH}").parse().unwrap()],
            buffer_size: LENGTH,
            send_buffer: Some(4 * LENGTH),
            ..Config::default()
        };
        let mut server = Server::bind("127.0.0.1:0", config).unwrap();
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        client.set_recv_buffer_size(LENGTH / 4).unwrap();
        client.connect(&server.local_addr().into()).unwrap();
        let mut client = std::net::TcpStream::from(client);
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.write_all(&vec![b'a'; LENGTH]).unwrap();
        let handle = server.handle();
        turn_until(&mut server, |_| handle.stats().bytes_out == LENGTH as u64);
        assert_eq!(handle.stats().open(), 1, "the system has not sent everything");
        client.read_exact(&mut vec![0; LENGTH]).unwrap();
        turn_until(&mut server, |_| handle.stats().open() == 0);
        assert_eq!(handle.stats().closed.fault, 1);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_clients_reset_ends_a_connection_that_a_stall_does_not_read() {
        let (near, client) = tcp_pair(b"");
        let mut faulted = faulted(near, "stall=0");
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        poll.registry().register(faulted.stream_mut(), Token(0), INTEREST).unwrap();
        assert_eq!(serve(&mut faulted, Ready::READABLE), Step::Wait);
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while !events.iter().any(mio::event::Event::is_read_closed) {
            poll.poll(&mut events, Some(TIMEOUT)).unwrap();
            assert!(!events.is_empty(), "no event");
        }
        assert_eq!(serve(&mut faulted, Ready::READABLE), Step::Failed(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn the_hand_of_a_drain_ends_what_a_delay_withholds_and_a_fin_ends_the_connection() {
        let (near, mut client) = UnixStream::pair().unwrap();
        let mut faulted = faulted(near, "delay=1h");
        faulted.expect_input();
        assert!(!faulted.is_drained());
        serve(&mut faulted, Ready::NONE);
        assert!(faulted.is_drained());
        assert!(!faulted.end_withholding(), "nothing is withheld");

        client.write_all(b"a").unwrap();
        serve(&mut faulted, Ready::READABLE);
        assert!(faulted.end_withholding());
        serve(&mut faulted, Ready::NONE);
        assert!(!faulted.end_withholding());
        assert!(!faulted.is_discarding());
        faulted.send_fin();
        assert!(faulted.is_discarding());
        let mut echo = Vec::new();
        client.read_to_end(&mut echo).unwrap();
        assert_eq!(echo, b"a");
    }
}
