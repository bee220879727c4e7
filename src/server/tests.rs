//! The server's turns against a kernel that reports an edge once and never again, and the size of what it keeps.

#![expect(clippy::unwrap_used, clippy::panic, reason = "in a test a panic is the answer")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use mio::event::Source;
use mio::{Interest, Registry, Token};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Connection, Handle, Peer, Progress, echo};
use crate::{INTEREST, Reactor, Readiness};

const BUFFER_SIZE: usize = 4;
const READS_PER_TURN: usize = 2;
/// Bytes that the kernel takes before a write blocks: not a multiple of the buffer, so that writes are short.
const SEND_BUFFER: usize = 6;

/// Something that a peer does.
#[derive(Clone, Copy, Debug)]
enum Action {
    Send(usize),
    /// Sends a byte out of band: the stream stops there, and goes on behind it.
    SendUrgent,
    /// Reads so much of its echo.
    Receive(usize),
    HalfClose,
    Reset,
    Rest,
}

/// When a peer does what it does next, at the earliest. At the beginning of a turn each peer does one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Turn,
    /// Between the poll and the first call that follows it.
    AfterPoll,
    /// At the end of a call.
    WithinCall,
    /// Together with what it did before.
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
    /// What the peer has sent in all, urgent bytes apart, and what waits of it; `None` is the place of an urgent byte.
    sent: Vec<u8>,
    incoming: VecDeque<Option<u8>>,
    ended: bool,
    reset: bool,
    /// What was written in all, and how much of it the peer has not read.
    echoed: Vec<u8>,
    unread: usize,
    /// A write blocked: room is an event. Without that it is none.
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
            // Registering reports what is so already.
            edge: true,
            reads: 0,
        }
    }

    /// The peer does its next thing. Once it has nothing more to do it ends its direction and reads on.
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

    /// What is so now, if anything has happened since the last report.
    fn report(&mut self) -> Option<Readiness> {
        let readiness = Readiness {
            readable: self.is_readable(),
            writable: self.is_writable(),
            read_closed: self.ended || self.reset,
            priority: self.has_urgent(),
        };
        (std::mem::take(&mut self.edge) && readiness != Readiness::default()).then_some(readiness)
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

/// No poll knows of it: the test reports its edges.
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
    buffer: [u8; BUFFER_SIZE],
    handle: Handle,
    /// Those that are open, by key.
    open: BTreeMap<usize, Rc<RefCell<Socket>>>,
    closed: Vec<(Rc<RefCell<Socket>>, Progress)>,
    /// Those that were left over by the last turn.
    unfinished: BTreeSet<usize>,
}

impl Model {
    fn new() -> Self {
        let reactor = Reactor::new(16).unwrap();
        Self {
            handle: Handle::new(reactor.waker().unwrap()),
            reactor,
            buffer: [0; BUFFER_SIZE],
            open: BTreeMap::new(),
            closed: Vec::new(),
            unfinished: BTreeSet::new(),
        }
    }

    fn open(&mut self, socket: Socket) {
        let socket = Rc::new(RefCell::new(socket));
        let key = self.reactor.insert(Stream(Rc::clone(&socket)), INTEREST, Connection::new).unwrap();
        assert!(self.open.insert(key, socket).is_none(), "a key was given twice");
    }

    /// One turn, in the midst of which `newcomers` are accepted. Whoever has something to do is served, in rounds.
    fn turn(&mut self, mut newcomers: Vec<Socket>) {
        let mut due: BTreeSet<usize> = self.unfinished.clone();
        let mut reported = Vec::new();
        for (&key, socket) in &self.open {
            let mut socket = socket.borrow_mut();
            socket.reads = 0;
            socket.act();
            if let Some(readiness) = socket.report() {
                reported.push((key, readiness));
                due.insert(socket.id);
            }
        }
        let batch = self.reactor.poll(Some(Duration::ZERO)).unwrap();
        self.reactor.give_back(batch);
        for socket in self.open.values() {
            socket.borrow_mut().act_at(Moment::AfterPoll);
        }
        for (key, readiness) in reported {
            assert!(due.remove(&self.open[&key].borrow().id), "served out of turn, or twice");
            self.serve(key, readiness);
            // A newcomer must not come by a key for which there is something in this batch.
            if let Some(newcomer) = newcomers.pop() {
                self.open(newcomer);
            }
        }
        for newcomer in newcomers {
            self.open(newcomer);
        }
        while let Some(key) = self.reactor.next_listed() {
            assert!(due.remove(&self.open[&key].borrow().id), "served out of turn, or twice");
            self.serve(key, Readiness::default());
        }
        assert!(due.is_empty(), "passed over");
        for _ in 1..READS_PER_TURN {
            self.reactor.next_round();
            while let Some(key) = self.reactor.next_listed() {
                self.serve(key, Readiness::default());
            }
        }
        self.assert_nobody_is_forgotten();
    }

    /// What `Server::serve` does for a connection.
    fn serve(&mut self, key: usize, readiness: Readiness) {
        let connection = self.reactor.visit(key).unwrap();
        let socket = &self.open[&key];
        let peer = || Peer::new(key, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        let progress = echo(connection, peer, &readiness, &mut self.buffer, &self.handle, &mut ());
        assert!(socket.borrow().reads <= READS_PER_TURN);
        self.unfinished.remove(&socket.borrow().id);
        match progress {
            Progress::Waiting => {}
            Progress::Unfinished => {
                self.reactor.resume(key);
                self.unfinished.insert(socket.borrow().id);
            }
            Progress::Discarded(_) => panic!("nobody called `discard`"),
            Progress::Ended | Progress::Failed(_) => {
                self.reactor.remove(key);
                self.closed.extend(self.open.remove(&key).map(|socket| (socket, progress)));
            }
        }
    }

    /// Whoever can go on has an edge that is still to be reported, or is on the list for the next turn.
    fn assert_nobody_is_forgotten(&mut self) {
        for (&key, socket) in &self.open {
            let socket = socket.borrow();
            let pending = self.reactor.get_mut(key).unwrap().pending();
            let can_go_on = if pending > 0 { socket.is_writable() } else { socket.is_readable() };
            let is_due = socket.edge || self.unfinished.contains(&socket.id);
            assert!(is_due || !can_go_on, "forgotten with {pending} bytes pending: {socket:?}");
        }
    }

    /// Each connection has closed for its own reason, and all that it was to echo is echoed and counted.
    fn assert_all_is_echoed(&self) {
        let (mut received, mut echoed) = (0, 0);
        for (socket, progress) in &self.closed {
            let socket = socket.borrow();
            match progress {
                Progress::Ended => assert_eq!(socket.echoed, socket.sent),
                Progress::Failed(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    assert!(socket.reset && socket.sent.starts_with(&socket.echoed));
                }
                progress => panic!("{progress:?}: {socket:?}"),
            }
            received += socket.sent.len() - socket.incoming.iter().flatten().count();
            echoed += socket.echoed.len();
        }
        let stats = self.handle.stats();
        assert_eq!((stats.bytes_in, stats.bytes_out, stats.discarded), (received as u64, echoed as u64, 0));
    }
}

/// Plays the scripts to their end.
fn play(scripts: &[Script]) {
    let mut model = Model::new();
    // A peer that reads all there is lets a byte through each turn, at least.
    let turns_max = scripts.iter().map(|script| script.opens + script.turns_max()).max().unwrap_or(0);
    for turn in 0..=turns_max {
        let opening = scripts.iter().enumerate().filter(|(_, script)| script.opens == turn);
        model.turn(opening.map(|(id, script)| Socket::new(id, script.actions.clone())).collect());
    }
    assert_eq!(model.closed.len(), scripts.len(), "somebody waits yet: {:?}", model.open);
    model.assert_all_is_echoed();
    assert!(!model.reactor.has_work());
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
    fn every_byte_is_echoed_and_every_end_seen_though_an_edge_is_reported_once(scripts in vec(scripts(), 1..8)) {
        play(&scripts);
    }
}

/// What an idle connection costs is what its entry takes. Debug builds of mio keep more in a socket.
#[test]
#[cfg(all(not(debug_assertions), target_pointer_width = "64"))]
fn an_entry_of_the_slab_takes_at_most_56_bytes() {
    let bytes = Reactor::<super::Entry>::entry_size();
    assert!(bytes <= 56, "{bytes} bytes");
}
