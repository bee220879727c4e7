//! The server's turns against a modelled kernel that reports an edge once, and the size of a slab entry.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use proptest::collection::vec;
use proptest::prelude::*;

use super::config::TRIM_THRESHOLD;
use super::echo::Tally;
use super::idle::{Visit, visit_draining};
use super::{Config, Connection, Handle, Outcome, Peer, Server};
use crate::{Handler, INTEREST, Next, Reactor, Ready};

/// Longer than anything takes that a test waits for.
const TIMEOUT: Duration = Duration::from_secs(20);
const BUFFER_SIZE: usize = 4;
const READS_PER_TURN: usize = 2;
/// Fewer than there may be connections.
const EVENTS_PER_TURN: usize = 3;
/// Bytes that the kernel takes before a write blocks: not a multiple of the buffer, so that writes are short.
const SEND_BUFFER: usize = 6;

/// Something that a peer does.
#[derive(Clone, Copy, Debug)]
enum Action {
    Send(usize),
    /// Sends a byte out of band: the stream stops there, and goes on behind it.
    SendUrgent,
    /// Reads this many bytes of its echo.
    Receive(usize),
    HalfClose,
    Reset,
    Rest,
}

/// The earliest moment of a peer's next action. At the beginning of a turn each peer takes one action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Turn,
    /// Between the poll and the first call that follows it.
    AfterPoll,
    /// At the end of a call.
    WithinCall,
    /// Together with the action before.
    AtOnce,
}

#[derive(Clone, Debug)]
struct Script {
    /// The turn in which it is accepted.
    opens: usize,
    actions: Vec<(Moment, Action)>,
}

/// A socket as an edge-triggered epoll(7) sees it, and the peer at its other end.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Socket {
    id: usize,
    actions: VecDeque<(Moment, Action)>,
    /// What the peer has sent, urgent bytes apart, and what of it was not read; `None` is the place of an urgent byte.
    sent: Vec<u8>,
    incoming: VecDeque<Option<u8>>,
    ended: bool,
    reset: bool,
    /// What was written, and how much of it the peer has not read.
    echoed: Vec<u8>,
    unread: usize,
    /// A write has blocked: only then is room an event.
    blocked: bool,
    /// Something happened that was not reported.
    edge: bool,
    reads: usize,
}

impl Socket {
    fn new(id: usize, actions: Vec<(Moment, Action)>) -> Self {
        Self {
            id,
            actions: actions.into(),
            sent: Vec::new(),
            incoming: VecDeque::new(),
            ended: false,
            reset: false,
            echoed: Vec::new(),
            unread: 0,
            blocked: false,
            // Registering reports the present state.
            edge: true,
            reads: 0,
        }
    }

    /// Takes the peer's next action. After the last one the peer closes its direction and reads everything.
    fn act(&mut self) {
        let Some((_, action)) = self.actions.pop_front() else {
            self.receive(usize::MAX);
            return self.half_close();
        };
        self.perform(action);
        self.act_at(Moment::AtOnce);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Send(n) if !self.ended && !self.reset => {
                for _ in 0..n {
                    let byte = u8::try_from(self.sent.len() % 251).unwrap();
                    self.sent.push(byte);
                    self.incoming.push_back(Some(byte));
                }
                self.edge = true;
            }
            // A second urgent byte would make the first an ordinary one.
            Action::SendUrgent if !self.ended && !self.reset && !self.has_urgent() => {
                self.incoming.push_back(None);
                self.edge = true;
            }
            Action::Receive(n) => self.receive(n),
            Action::HalfClose => self.half_close(),
            Action::Reset if !self.reset => {
                self.reset = true;
                self.edge = true;
            }
            Action::Send(_) | Action::SendUrgent | Action::Reset | Action::Rest => {}
        }
    }

    fn act_at(&mut self, moment: Moment) {
        if self.actions.front().is_some_and(|&(at, _)| at == moment) {
            self.act();
        }
    }

    fn receive(&mut self, n: usize) {
        self.unread -= self.unread.min(n);
        if self.blocked && self.is_writable() {
            self.blocked = false;
            self.edge = true;
        }
    }

    fn half_close(&mut self) {
        if !self.ended {
            self.ended = true;
            self.edge = true;
        }
    }

    fn has_urgent(&self) -> bool {
        self.incoming.contains(&None)
    }

    fn is_readable(&self) -> bool {
        self.ended || self.reset || self.incoming.iter().any(Option::is_some)
    }

    /// Linux calls a socket writable when a third of its buffer is free.
    fn is_writable(&self) -> bool {
        self.reset || self.unread * 3 <= SEND_BUFFER * 2
    }

    /// Returns the readiness, if anything has happened since the last report.
    fn report(&mut self) -> Option<Ready> {
        let flags = [
            (Ready::READABLE, self.is_readable()),
            (Ready::WRITABLE, self.is_writable()),
            (Ready::READ_CLOSED, self.ended || self.reset),
            (Ready::PRIORITY, self.has_urgent()),
        ];
        let ready = flags.into_iter().filter(|&(_, set)| set).fold(Ready::NONE, |ready, (flag, _)| ready | flag);
        (std::mem::take(&mut self.edge) && !ready.is_none()).then_some(ready)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.reads += 1;
        let mut n = 0;
        while n < buffer.len() {
            match self.incoming.front() {
                Some(&Some(byte)) => {
                    buffer[n] = byte;
                    n += 1;
                }
                Some(None) if n == 0 => {}
                Some(None) | None => break,
            }
            self.incoming.pop_front();
        }
        match n {
            0 if self.reset => Err(ErrorKind::ConnectionReset.into()),
            0 if !self.ended => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let n = data.len().min(SEND_BUFFER - self.unread);
        if n == 0 {
            self.blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.unread += n;
        self.echoed.extend(&data[..n]);
        Ok(n)
    }
}

/// The server's end of a [`Socket`].
#[derive(Debug)]
struct Stream(Rc<RefCell<Socket>>);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.0.borrow_mut();
        let result = socket.read(buffer);
        socket.act_at(Moment::WithinCall);
        result
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut socket = self.0.borrow_mut();
        let result = socket.write(data);
        socket.act_at(Moment::WithinCall);
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The poll does not know it: the test reports its edges.
impl Source for Stream {
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

/// A server without listeners: the test opens its connections.
struct Model {
    reactor: Reactor<Connection<Stream>>,
    world: World,
    /// Rounds of the hand since a drain began.
    drain_rounds: u64,
}

/// What serves the model's connections, as `Echo` serves the server's.
struct World {
    buffer: [u8; BUFFER_SIZE],
    handle: Handle,
    /// Open connections, by key.
    open: BTreeMap<usize, Rc<RefCell<Socket>>>,
    closed: Vec<(Rc<RefCell<Socket>>, Outcome)>,
    /// Connections that the last turn left to the next.
    unfinished: BTreeSet<usize>,
    /// Connections to be served in the first pass of this turn.
    due: BTreeSet<usize>,
    /// Connections to be accepted while this turn's are served.
    newcomers: Vec<Socket>,
    /// Bytes that each peer had sent when a drain began.
    sent_before_drain: Option<BTreeMap<usize, usize>>,
}

impl Model {
    fn new() -> Self {
        let reactor = Reactor::new(16).unwrap();
        let world = World {
            buffer: [0; BUFFER_SIZE],
            handle: Handle::new(reactor.waker().unwrap()),
            open: BTreeMap::new(),
            closed: Vec::new(),
            unfinished: BTreeSet::new(),
            due: BTreeSet::new(),
            newcomers: Vec::new(),
            sent_before_drain: None,
        };
        Self { reactor, world, drain_rounds: 0 }
    }

    /// Visits every connection, as a drain's hand does in a round. A silent one gets FIN.
    fn drain(&mut self) {
        let sent = |(_, socket): (_, &Rc<RefCell<Socket>>)| (socket.borrow().id, socket.borrow().sent.len());
        let sent_before =
            self.world.sent_before_drain.get_or_insert_with(|| self.world.open.iter().map(sent).collect());
        self.drain_rounds += 1;
        for (&key, socket) in &self.world.open {
            let connection = self.reactor.get_mut(key).unwrap();
            match visit_draining(connection, self.drain_rounds) {
                Visit::Wait => {}
                Visit::Read => {
                    self.reactor.resume(key);
                    self.world.unfinished.insert(socket.borrow().id);
                }
                Visit::End(_) => {
                    let socket = socket.borrow();
                    let received = socket.sent.len() - socket.incoming.iter().flatten().count();
                    let sent_before = sent_before.get(&socket.id).copied().unwrap_or(0);
                    assert!(received >= sent_before, "FIN before the echo of what the kernel had: {socket:?}");
                    assert_eq!(socket.echoed.len(), received, "FIN before the echo of what was received");
                    connection.discard();
                }
            }
        }
    }

    /// Takes one turn, during which `newcomers` are accepted.
    fn turn(&mut self, newcomers: Vec<Socket>) {
        let world = &mut self.world;
        self.reactor.wait(Some(Duration::ZERO)).unwrap();
        world.due = world.unfinished.clone();
        world.newcomers = newcomers;
        let mut reports = Vec::new();
        for (&key, socket) in &world.open {
            let mut socket = socket.borrow_mut();
            socket.reads = 0;
            socket.act();
            // A batch holds no more: the edge is reported by a later poll.
            if reports.len() < EVENTS_PER_TURN
                && let Some(ready) = socket.report()
            {
                reports.push((key, ready));
                world.due.insert(socket.id);
            }
        }
        for socket in world.open.values() {
            socket.borrow_mut().act_at(Moment::AfterPoll);
        }
        self.reactor.serve_reports(&reports, READS_PER_TURN, world);
        assert!(world.due.is_empty(), "not served in its turn: {:?}", world.due);
        for newcomer in std::mem::take(&mut world.newcomers) {
            world.open(&mut self.reactor, newcomer);
        }
        self.assert_none_is_forgotten();
    }
}

impl Handler<Connection<Stream>> for World {
    type Act = Outcome;

    fn ready(&mut self, key: usize, connection: &mut Connection<Stream>, ready: Ready) -> Next<Outcome> {
        let socket = &self.open[&key];
        let id = socket.borrow().id;
        assert!(self.due.is_empty() || self.due.remove(&id), "served before its turn, or twice in a pass");
        let peer = || Peer::new(key, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let mut tally = Tally { counters: self.handle.counters(), peer, observer: &mut () };
        let outcome = connection.serve_socket(ready, &mut self.buffer, &mut tally);
        assert!(socket.borrow().reads <= READS_PER_TURN);
        if outcome == Outcome::Again {
            self.unfinished.insert(id);
        } else {
            self.unfinished.remove(&id);
        }
        Next::Act(outcome)
    }

    fn act(&mut self, reactor: &mut Reactor<Connection<Stream>>, key: usize, outcome: Outcome) -> Next<Infallible> {
        if matches!(outcome, Outcome::Ended | Outcome::Failed(_)) {
            reactor.remove(key);
            self.closed.extend(self.open.remove(&key).map(|socket| (socket, outcome)));
        }
        // A newcomer must not get a key for which something is left in this batch.
        if let Some(newcomer) = self.newcomers.pop() {
            self.open(reactor, newcomer);
        }
        match outcome {
            Outcome::Again => Next::Again,
            Outcome::Wait | Outcome::Ended | Outcome::Failed(_) => Next::Wait,
        }
    }
}

impl World {
    fn open(&mut self, reactor: &mut Reactor<Connection<Stream>>, socket: Socket) {
        let socket = Rc::new(RefCell::new(socket));
        let key = reactor.insert(Stream(Rc::clone(&socket)), INTEREST, Connection::new).unwrap();
        assert!(self.open.insert(key, socket).is_none(), "a key was given twice");
    }
}

impl Model {
    /// Checks that each connection that can go on has an edge yet to be reported, or is in the run queue.
    fn assert_none_is_forgotten(&mut self) {
        for (&key, socket) in &self.world.open {
            let socket = socket.borrow();
            let pending = self.reactor.get_mut(key).unwrap().pending();
            let can_go_on = if pending > 0 { socket.is_writable() } else { socket.is_readable() };
            let is_due = socket.edge || self.world.unfinished.contains(&socket.id);
            assert!(is_due || !can_go_on, "forgotten with {pending} bytes pending: {socket:?}");
        }
    }

    /// Checks that each connection has closed for its reason, and that everything was echoed and counted.
    fn assert_all_is_echoed(&self) {
        let (mut received, mut echoed) = (0, 0);
        for (socket, outcome) in &self.world.closed {
            let socket = socket.borrow();
            match outcome {
                Outcome::Ended if self.drain_rounds == 0 => assert_eq!(socket.echoed, socket.sent),
                Outcome::Ended => assert!(socket.sent.starts_with(&socket.echoed)),
                Outcome::Failed(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    assert!(socket.reset && socket.sent.starts_with(&socket.echoed));
                }
                outcome => panic!("{outcome:?}: {socket:?}"),
            }
            received += socket.sent.len() - socket.incoming.iter().flatten().count();
            echoed += socket.echoed.len();
        }
        let stats = self.world.handle.stats();
        assert_eq!((stats.bytes_in, stats.bytes_out), (received as u64, echoed as u64));
        assert!(stats.discarded == 0 || self.drain_rounds > 0);
    }
}

/// Plays the scripts to their end, and drains from turn `drain_at` on.
fn play(scripts: &[Script], drain_at: usize) {
    let mut model = Model::new();
    // A peer that reads everything lets at least one byte through each turn.
    let turns_max = scripts.iter().map(|script| script.opens + script.turns_max()).max().unwrap_or(0);
    for turn in 0..=turns_max {
        let opening = scripts.iter().enumerate().filter(|(_, script)| script.opens == turn);
        if turn >= drain_at {
            model.drain();
        }
        model.turn(opening.map(|(id, script)| Socket::new(id, script.actions.clone())).collect());
    }
    assert_eq!(model.world.closed.len(), scripts.len(), "not closed: {:?}", model.world.open);
    model.assert_all_is_echoed();
    assert!(!model.reactor.has_pending());
}

impl Script {
    fn turns_max(&self) -> usize {
        let bytes = |&(_, action): &(Moment, Action)| if let Action::Send(n) = action { n } else { 0 };
        self.actions.len() + self.actions.iter().map(bytes).sum::<usize>() + 2
    }
}

fn actions() -> impl Strategy<Value = (Moment, Action)> {
    let moment = prop::sample::select(&[Moment::Turn, Moment::AfterPoll, Moment::WithinCall, Moment::AtOnce]);
    let action = prop_oneof![
        8 => (1..=30_usize).prop_map(Action::Send),
        4 => (1..=20_usize).prop_map(Action::Receive),
        4 => Just(Action::Rest),
        2 => Just(Action::SendUrgent),
        2 => Just(Action::HalfClose),
        1 => Just(Action::Reset),
    ];
    (moment, action)
}

fn scripts() -> impl Strategy<Value = Script> {
    (0..8_usize, vec(actions(), 0..12)).prop_map(|(opens, actions)| Script { opens, actions })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_echoed_and_every_end_is_seen_with_one_report_of_each_edge(scripts in vec(scripts(), 1..8)) {
        play(&scripts, usize::MAX);
    }

    #[test]
    fn a_drain_sends_fin_after_the_echo_of_what_the_kernel_had(scripts in vec(scripts(), 1..8), drain_at in 0..20_usize) {
        play(&scripts, drain_at);
    }
}

#[test]
fn the_memory_of_a_peak_is_returned_when_its_last_connections_are_idle() {
    let config = Config { idle_timeout: Some(Duration::from_secs(1)), ..Config::default() };
    let mut server = Server::bind("127.0.0.1:0", config).unwrap();
    let clients: Vec<_> = (0..TRIM_THRESHOLD).map(|_| TcpStream::connect(server.local_addr()).unwrap()).collect();
    while server.handle().stats().accepted < clients.len() as u64 {
        let _ = server.turn(Some(TIMEOUT)).unwrap();
    }
    let handle = server.handle();
    let event_loop = server.event_loop_mut();
    let before = event_loop.reactor.capacity();
    while handle.stats().open() > 0 {
        let timeout = event_loop.run_timers(Some(TIMEOUT));
        if handle.stats().open() > 0 {
            event_loop.reactor.wait(timeout).unwrap();
            event_loop.reactor.serve(1, &mut event_loop.echo);
        }
    }
    // The wait that follows has no deadline.
    assert!(event_loop.reactor.capacity() < before);
}

/// An idle connection costs its entry. In debug builds mio's sockets are larger.
#[test]
#[cfg(all(not(debug_assertions), target_pointer_width = "64"))]
fn an_entry_of_the_slab_takes_at_most_56_bytes() {
    let bytes = Reactor::<super::echo::Entry<crate::transport::Socket>>::entry_size();
    assert!(bytes <= 56, "{bytes} bytes");
}
