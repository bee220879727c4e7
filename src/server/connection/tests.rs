//! `Connection` against a scripted stream: the rules of the echo hold for any results of its calls, in any order.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Connection, Outcome, Served};
use crate::ready::{Ready, SHORT_READ_DRAINS};

const BUFFER_SIZE: usize = 8;
const READABLE: Ready = Ready::READABLE;
const WRITABLE: Ready = Ready::WRITABLE;

fn both() -> Ready {
    READABLE | WRITABLE
}

/// Which of the two entry points of a connection is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `serve_socket`, for a TCP socket.
    Socket,
    /// `serve`, for any stream.
    Any,
}

use Kind::{Any, Socket};

/// A scripted result of a call. For a read, `Moved(0)` is the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// At most this many bytes.
    Moved(usize),
    Blocked,
    Interrupted,
    Failed(ErrorKind),
}

use Answer::{Blocked, Failed, Interrupted, Moved as Bytes};

/// A call of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Read { room: usize, answer: Answer },
    Write { offered: usize, answer: Answer },
    Flush(Answer),
}

/// A stream whose calls return what is scripted, and then block. A flush succeeds unless something else is scripted.
#[derive(Debug)]
struct Scripted {
    reads: VecDeque<Answer>,
    writes: VecDeque<Answer>,
    flushes: VecDeque<Answer>,
    steps: Rc<RefCell<Vec<Step>>>,
    /// All that was read, and all that was written.
    received: Vec<u8>,
    sent: Vec<u8>,
}

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len();
        let answer = at_most(room, self.reads.pop_front());
        self.steps.borrow_mut().push(Step::Read { room, answer });
        let n = answer.result()?;
        for byte in &mut buffer[..n] {
            // 251 is prime to the buffer's size: no two buffers are the same.
            *byte = u8::try_from(self.received.len() % 251).unwrap();
            self.received.push(*byte);
        }
        Ok(n)
    }
}

impl Write for Scripted {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let answer = at_most(data.len(), self.writes.pop_front());
        self.steps.borrow_mut().push(Step::Write { offered: data.len(), answer });
        let n = answer.result()?;
        self.sent.extend(&data[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        let answer = self.flushes.pop_front().unwrap_or(Bytes(0));
        self.steps.borrow_mut().push(Step::Flush(answer));
        answer.result().map(|_| ())
    }
}

fn at_most(room: usize, answer: Option<Answer>) -> Answer {
    match answer {
        Some(Bytes(n)) => Bytes(n.min(room)),
        Some(answer) => answer,
        None => Blocked,
    }
}

impl Answer {
    fn result(self) -> io::Result<usize> {
        match self {
            Bytes(n) => Ok(n),
            Blocked => Err(ErrorKind::WouldBlock.into()),
            Interrupted => Err(ErrorKind::Interrupted.into()),
            Failed(kind) => Err(kind.into()),
        }
    }
}

/// A connection over a scripted stream.
struct Play {
    kind: Kind,
    connection: Connection<Scripted>,
    steps: Rc<RefCell<Vec<Step>>>,
    /// The bytes that `serve` has returned as received, those discarded apart.
    reported: Vec<u8>,
}

impl Play {
    fn new(kind: Kind, reads: &[Answer], writes: &[Answer]) -> Self {
        Self::with_flushes(kind, reads, writes, &[])
    }

    fn with_flushes(kind: Kind, reads: &[Answer], writes: &[Answer], flushes: &[Answer]) -> Self {
        let steps = Rc::new(RefCell::new(Vec::new()));
        let stream = Scripted {
            reads: reads.iter().copied().collect(),
            writes: writes.iter().copied().collect(),
            flushes: flushes.iter().copied().collect(),
            steps: Rc::clone(&steps),
            received: Vec::new(),
            sent: Vec::new(),
        };
        Self { kind, connection: Connection::new(stream), steps, reported: Vec::new() }
    }

    /// Serves the connection until it has read `reads_max` times or cannot go on. Returns the last outcome and the calls.
    fn serve(&mut self, ready: Ready, reads_max: usize) -> (Outcome, Vec<Step>) {
        let mut outcome = self.serve_once(ready);
        for _ in 1..reads_max {
            if outcome != Outcome::Again {
                break;
            }
            outcome = self.serve_once(Ready::NONE);
        }
        (outcome, self.steps.take())
    }

    fn serve_once(&mut self, ready: Ready) -> Outcome {
        let (received_before, sent_before) = (self.received().len(), self.sent().len());
        let mut buffer = [0; BUFFER_SIZE];
        let Served { received, sent, outcome } = match self.kind {
            Socket => {
                let mut served = Served { received: 0, sent: 0, outcome: Outcome::Wait };
                served.outcome = self.connection.serve_socket(ready, &mut buffer, &mut served);
                served
            }
            Any => self.connection.serve(ready, &mut buffer),
        };
        assert_eq!(self.received()[received_before..], buffer[..received]);
        assert_eq!(self.sent().len(), sent_before + sent);
        if !self.connection.is_discarding() {
            self.reported.extend(&buffer[..received]);
        }
        outcome
    }

    fn received(&self) -> &[u8] {
        &self.connection.get_ref().received
    }

    fn sent(&self) -> &[u8] {
        &self.connection.get_ref().sent
    }
}

fn read(answer: Answer) -> Step {
    Step::Read { room: BUFFER_SIZE, answer }
}

/// Counts the reads.
fn reads(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Read { .. })).count()
}

// ---- the rules, played at random ----

/// The arguments of one call of `Play::serve`.
#[derive(Clone, Copy, Debug)]
struct Turn {
    ready: Ready,
    reads_max: usize,
    /// `discard` is called first.
    discard: bool,
}

/// What follows for a connection from the calls of its stream.
#[derive(Debug)]
struct Expected {
    kind: Kind,
    /// A readable edge is not drained.
    readable: bool,
    /// Only `WouldBlock` drains it.
    until_would_block: bool,
    /// Bytes received and not sent.
    pending: usize,
    /// A flush has blocked.
    unflushed: bool,
    /// Bytes that were received when `discard` was called.
    discarded_after: Option<usize>,
}

impl Expected {
    fn new(kind: Kind) -> Self {
        Self { kind, readable: false, until_would_block: false, pending: 0, unflushed: false, discarded_after: None }
    }

    fn begin(&mut self, turn: Turn, received: usize) {
        if turn.discard {
            self.discarded_after.get_or_insert(received);
        }
        let until_would_block = match self.kind {
            Socket => turn.ready.is_read_closed() || turn.ready.is_priority(),
            Any => !turn.ready.is_none(),
        };
        self.readable |= turn.ready.is_readable() || until_would_block;
        self.until_would_block |= until_would_block;
    }

    /// Checks that each call is allowed where it is.
    fn follow(&mut self, steps: &[Step]) {
        for (index, step) in steps.iter().enumerate() {
            let next = steps.get(index + 1);
            match *step {
                Step::Read { room, answer } => {
                    assert!(self.readable, "a read without an edge");
                    assert!(self.pending == 0 && !self.unflushed, "a read while output is pending");
                    self.read(room, answer, next);
                }
                Step::Write { offered, answer } => {
                    assert_eq!(offered, self.pending, "a write of something else than the pending output");
                    self.write(answer, next);
                }
                Step::Flush(answer) => {
                    assert_eq!((self.kind, self.pending), (Any, 0));
                    self.unflushed = answer == Blocked || answer == Interrupted && self.unflushed;
                }
            }
            assert!(self.pending <= BUFFER_SIZE);
        }
    }

    fn read(&mut self, room: usize, answer: Answer, next: Option<&Step>) {
        match answer {
            Bytes(n @ 1..) => {
                if self.discarded_after.is_some() {
                    assert!(!matches!(next, Some(Step::Write { .. })), "discarded input was echoed");
                    return;
                }
                assert!(matches!(next, Some(Step::Write { .. })), "not echoed");
                self.pending += n;
                if SHORT_READ_DRAINS && n < room && !self.until_would_block {
                    self.readable = false;
                }
            }
            Blocked => {
                self.readable = false;
                self.until_would_block = false;
            }
            Interrupted => assert!(matches!(next, Some(Step::Read { .. })), "not retried"),
            Bytes(0) | Failed(_) => assert!(next.is_none(), "went on after the end"),
        }
    }

    fn write(&mut self, answer: Answer, next: Option<&Step>) {
        match answer {
            Bytes(n @ 1..) => {
                self.pending -= n;
                let is_flushed = matches!(next, Some(Step::Flush(_)));
                assert_eq!(is_flushed, self.kind == Any && self.pending == 0);
            }
            Interrupted => assert!(matches!(next, Some(Step::Write { .. })), "not retried"),
            Bytes(0) | Blocked | Failed(_) => assert!(next.is_none(), "went on after a write that sent nothing"),
        }
    }

    /// Checks that the outcome follows from the calls, and that their number is bounded.
    fn end(&self, turn: Turn, steps: &[Step], outcome: Outcome) {
        let writable = match self.kind {
            Socket => turn.ready.is_writable(),
            Any => !turn.ready.is_none(),
        };
        let last = steps.last();
        match outcome {
            Outcome::Wait if self.pending > 0 => {
                let blocked = matches!(last, Some(Step::Write { answer: Blocked, .. }));
                assert!(blocked || !writable && last.is_none(), "stopped writing too soon");
            }
            Outcome::Wait if self.unflushed => {
                assert!(
                    matches!(last, Some(Step::Flush(Blocked))) || !writable && last.is_none(),
                    "stopped flushing too soon"
                );
            }
            Outcome::Wait => assert!(!self.readable, "stopped reading too soon"),
            Outcome::Again => assert!(self.readable && self.pending == 0),
            Outcome::Ended => assert!(matches!(last, Some(Step::Read { answer: Bytes(0), .. }))),
            Outcome::Failed(kind) => match last {
                Some(Step::Write { answer: Bytes(0), .. }) => assert_eq!(kind, ErrorKind::WriteZero),
                Some(Step::Read { answer, .. } | Step::Write { answer, .. } | Step::Flush(answer)) => {
                    assert_eq!(Failed(kind), *answer);
                }
                None => panic!("failed without a call"),
            },
        }
        let (mut reads, mut writes, mut written) = (0, 0, 0);
        for step in steps {
            match step {
                Step::Read { answer, .. } if *answer != Interrupted => reads += 1,
                Step::Write { answer, .. } if *answer != Interrupted => {
                    writes += 1;
                    written += if let Bytes(n) = answer { *n } else { 0 };
                }
                _ => {}
            }
        }
        assert!(reads <= turn.reads_max);
        assert!(reads == turn.reads_max || outcome != Outcome::Again);
        assert!(writes <= written + turn.reads_max, "{writes} writes sent {written} bytes");
    }
}

/// Plays the turns until the connection has ended, and checks the rules after each.
fn play(mut play: Play, turns: &[Turn]) {
    let mut expected = Expected::new(play.kind);
    for &turn in turns {
        expected.begin(turn, play.received().len());
        if turn.discard {
            play.connection.discard();
        }
        let (outcome, steps) = play.serve(turn.ready, turn.reads_max);
        expected.follow(&steps);
        expected.end(turn, &steps, outcome);

        let echoed = expected.discarded_after.unwrap_or(play.received().len());
        assert_eq!(play.reported, play.received()[..echoed]);
        assert!(play.reported.starts_with(play.sent()), "what was sent is no prefix of what was received");
        match outcome {
            Outcome::Ended => {
                assert_eq!(play.sent().len(), echoed);
                return;
            }
            Outcome::Failed(_) => return,
            Outcome::Wait | Outcome::Again => {
                assert_eq!(play.connection.pending(), expected.pending);
                assert_eq!(play.sent().len() + expected.pending, echoed);
            }
        }
    }
}

fn failures() -> impl Strategy<Value = Answer> {
    use ErrorKind::{BrokenPipe, ConnectionReset, HostUnreachable, TimedOut};
    prop::sample::select(&[BrokenPipe, ConnectionReset, HostUnreachable, TimedOut]).prop_map(Failed)
}

/// Results that only delay.
fn delays() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => (1..=BUFFER_SIZE).prop_map(Bytes),
        3 => Just(Bytes(BUFFER_SIZE)),
        2 => Just(Blocked),
        1 => Just(Interrupted),
    ]
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        30 => delays(),
        1 => Just(Bytes(0)),
        1 => failures(),
    ]
}

fn turns() -> impl Strategy<Value = Turn> {
    let flags = [READABLE, WRITABLE, Ready::READ_CLOSED, Ready::PRIORITY];
    let ready = any::<[bool; 4]>().prop_map(move |set| {
        flags.iter().zip(set).filter(|(_, set)| *set).fold(Ready::NONE, |ready, (flag, _)| ready | *flag)
    });
    (ready, 1..=4_usize, prop::bool::weighted(0.02)).prop_map(|(ready, reads_max, discard)| Turn {
        ready,
        reads_max,
        discard,
    })
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(&[Socket, Any])
}

/// Results of a flush.
fn flushes() -> impl Strategy<Value = Vec<Answer>> {
    let answer = prop_oneof![6 => Just(Bytes(0)), 3 => Just(Blocked), 1 => Just(Interrupted), 1 => failures()];
    vec(answer, 0..20)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_for_any_results_of_the_calls(
        kind in kinds(),
        reads in vec(answers(), 0..40),
        writes in vec(answers(), 0..40),
        flushes in flushes(),
        turns in vec(turns(), 1..40),
    ) {
        play(Play::with_flushes(kind, &reads, &writes, &flushes), &turns);
    }

    #[test]
    fn every_byte_is_echoed_if_the_stream_only_delays(
        kind in kinds(),
        reads in vec(delays(), 0..40),
        writes in vec(delays(), 0..200),
        reads_max in 1..=4_usize,
    ) {
        // Behind the script every byte is taken, and the stream has ended.
        let turns_max = reads.len() + writes.len() + 1;
        let (reads, writes) = ([&reads[..], &[Bytes(0)]].concat(), [&writes[..], &[Bytes(BUFFER_SIZE); 40]].concat());
        let mut play = Play::new(kind, &reads, &writes);
        let ended = (0..turns_max).any(|_| play.serve(both(), reads_max).0 == Outcome::Ended);
        assert!(ended);
        assert_eq!(play.sent(), play.received());
    }
}

// ---- the rules, one by one ----

#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn a_short_read_drains_the_edge() {
    let mut play = Play::new(Socket, &[Bytes(3)], &[Bytes(3)]);
    let (outcome, steps) = play.serve(both(), 16);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(steps, [read(Bytes(3)), Step::Write { offered: 3, answer: Bytes(3) }]);

    // The edge is spent: without another nothing is read.
    assert_eq!(play.serve(WRITABLE, 16), (Outcome::Wait, vec![]));
}

#[test]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn a_short_read_is_followed_by_another() {
    let mut play = Play::new(Socket, &[Bytes(3)], &[Bytes(3)]);
    let (outcome, steps) = play.serve(both(), 16);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(steps.last(), Some(&read(Blocked)));
}

#[test]
fn a_read_that_fills_the_buffer_is_followed_by_another() {
    let mut play = Play::new(Socket, &[Bytes(BUFFER_SIZE)], &[Bytes(BUFFER_SIZE)]);
    let (outcome, steps) = play.serve(both(), 16);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(reads(&steps), 2);
    assert_eq!(steps.last(), Some(&read(Blocked)));
}

#[test]
fn the_end_of_stream_is_read_after_data_that_came_with_a_fin() {
    let mut play = Play::new(Socket, &[Bytes(3), Bytes(0)], &[Bytes(3)]);
    let (outcome, _) = play.serve(both() | Ready::READ_CLOSED, 16);
    assert_eq!(outcome, Outcome::Ended);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn a_fin_reported_while_output_is_pending_is_remembered() {
    let mut play = Play::new(Socket, &[Bytes(3), Bytes(2), Bytes(0)], &[Blocked, Bytes(3), Bytes(2)]);
    assert_eq!(play.serve(both(), 16).0, Outcome::Wait);
    assert_eq!(play.serve(READABLE | Ready::READ_CLOSED, 16), (Outcome::Wait, vec![]));
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Ended);
    assert_eq!(play.sent(), play.received());
}

#[test]
fn reads_continue_until_would_block_after_urgent_data() {
    let mut play = Play::new(Socket, &[Bytes(3), Bytes(2), Blocked, Bytes(1)], &[Bytes(3), Bytes(2), Bytes(1)]);
    let (outcome, steps) = play.serve(both() | Ready::PRIORITY, 16);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(reads(&steps), 3);
    assert_eq!(play.sent().len(), 5);

    // From there on a short read is again what it is on this system.
    let (_, steps) = play.serve(both(), 16);
    assert_eq!(reads(&steps), if SHORT_READ_DRAINS { 1 } else { 2 });
}

#[test]
fn urgent_data_is_remembered_in_the_next_turn() {
    let mut play = Play::new(Socket, &[Bytes(BUFFER_SIZE), Bytes(3), Bytes(2)], &[Bytes(BUFFER_SIZE); 3]);
    assert_eq!(play.serve(both() | Ready::PRIORITY, 1).0, Outcome::Again);
    assert_eq!(play.serve(Ready::NONE, 1).0, Outcome::Again);
    assert_eq!(play.serve(Ready::NONE, 2).0, Outcome::Wait);
    assert_eq!(play.sent().len(), BUFFER_SIZE + 5);
}

#[test]
fn a_turn_that_reads_its_share_is_continued_without_an_event() {
    let mut play = Play::new(Socket, &[Bytes(BUFFER_SIZE); 5], &[Bytes(BUFFER_SIZE); 5]);
    let (outcome, steps) = play.serve(both(), 2);
    assert_eq!((outcome, reads(&steps)), (Outcome::Again, 2));
    let (outcome, steps) = play.serve(Ready::NONE, 2);
    assert_eq!((outcome, reads(&steps)), (Outcome::Again, 2));
    let (outcome, steps) = play.serve(Ready::NONE, 2);
    assert_eq!((outcome, reads(&steps)), (Outcome::Wait, 2));
    assert_eq!(play.sent().len(), 5 * BUFFER_SIZE);
}

#[test]
fn a_short_write_is_followed_by_another_until_it_blocks() {
    let mut play = Play::new(Socket, &[Bytes(5)], &[Bytes(2), Bytes(1), Blocked]);
    let (outcome, steps) = play.serve(both(), 16);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(steps.last(), Some(&Step::Write { offered: 2, answer: Blocked }));
    assert_eq!(play.connection.pending(), 2);
}

#[test]
fn reading_continues_without_an_event_once_pending_output_is_sent() {
    let mut play = Play::new(
        Socket,
        &[Bytes(BUFFER_SIZE), Bytes(BUFFER_SIZE), Bytes(3)],
        &[Blocked, Bytes(BUFFER_SIZE), Bytes(BUFFER_SIZE), Bytes(3)],
    );
    assert_eq!(play.serve(both(), 16).0, Outcome::Wait);
    assert_eq!(play.connection.pending(), BUFFER_SIZE);

    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.pending(), 0);
    assert_eq!(play.sent().len(), 2 * BUFFER_SIZE + 3);
    assert_eq!(play.sent(), play.received());
}

#[test]
fn an_interrupted_call_is_retried() {
    let mut play = Play::new(Socket, &[Interrupted, Interrupted, Bytes(3)], &[Interrupted, Bytes(3)]);
    // It does not count towards the reads of the turn.
    let (_, steps) = play.serve(both(), 1);
    assert_eq!(reads(&steps), 3);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn a_write_of_zero_bytes_fails() {
    let mut play = Play::new(Socket, &[Bytes(3)], &[Bytes(0)]);
    assert_eq!(play.serve(both(), 16).0, Outcome::Failed(ErrorKind::WriteZero));

    let mut play = Play::new(Socket, &[Bytes(3)], &[Blocked, Bytes(0)]);
    assert_eq!(play.serve(both(), 16).0, Outcome::Wait);
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Failed(ErrorKind::WriteZero));
}

#[test]
fn a_failure_keeps_its_kind() {
    for kind in [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::TimedOut] {
        let mut reading = Play::new(Socket, &[Failed(kind)], &[]);
        assert_eq!(reading.serve(READABLE, 16).0, Outcome::Failed(kind));

        let mut writing = Play::new(Socket, &[Bytes(3)], &[Failed(kind)]);
        assert_eq!(writing.serve(both(), 16).0, Outcome::Failed(kind));

        let mut pending = Play::new(Socket, &[Bytes(3)], &[Blocked, Failed(kind)]);
        assert_eq!(pending.serve(both(), 16).0, Outcome::Wait);
        assert_eq!(pending.serve(WRITABLE, 16).0, Outcome::Failed(kind));
    }
}

#[test]
fn input_after_discard_is_read_and_not_echoed() {
    let mut play = Play::new(Socket, &[Bytes(3), Bytes(BUFFER_SIZE), Bytes(2), Bytes(0)], &[Bytes(3)]);
    assert_eq!(play.serve(both(), 1).0, Outcome::Wait);
    assert!(!play.connection.is_discarding());

    play.connection.discard();
    assert!(play.connection.is_discarding());
    let (outcome, steps) = play.serve(both() | Ready::READ_CLOSED, 16);
    assert_eq!(outcome, Outcome::Ended);
    assert_eq!(steps, [read(Bytes(BUFFER_SIZE)), read(Bytes(2)), read(Bytes(0))]);
    assert_eq!(play.reported, [0, 1, 2]);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn only_a_byte_that_moves_resets_the_idle_counter() {
    let mut play = Play::new(Socket, &[Bytes(3), Blocked], &[Blocked, Bytes(1), Blocked, Bytes(2)]);
    assert_eq!((play.connection.tick_idle(), play.connection.tick_idle()), (1, 2));
    // One in.
    assert_eq!(play.serve(READABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.tick_idle(), 1);
    // One out.
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.tick_idle(), 1);
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.tick_idle(), 1);
    // Events without bytes.
    assert_eq!(play.serve(both(), 16).0, Outcome::Wait);
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.tick_idle(), 2);

    let counts: Vec<_> = (0..300).map(|_| play.connection.tick_idle()).collect();
    assert_eq!((counts[0], counts[299]), (3, u8::MAX));
}

#[test]
fn a_stream_that_is_no_socket_is_read_until_would_block() {
    let mut play = Play::new(Any, &[Bytes(3), Bytes(2)], &[Bytes(3), Bytes(2)]);
    let (outcome, steps) = play.serve(READABLE, 16);
    assert_eq!((outcome, reads(&steps)), (Outcome::Wait, 3));
    assert_eq!(steps.last(), Some(&read(Blocked)));
    assert_eq!(play.sent(), play.received());
}

#[test]
fn an_event_for_one_direction_tries_both_if_the_stream_is_no_socket() {
    let mut play = Play::new(Any, &[Blocked, Bytes(3)], &[Blocked, Bytes(3)]);
    assert_eq!(play.serve(READABLE, 16).0, Outcome::Wait);
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.pending(), 3);
    assert_eq!(play.serve(READABLE, 16).0, Outcome::Wait);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn nothing_is_read_until_a_flush_that_blocked_succeeds() {
    let mut play = Play::with_flushes(Any, &[Bytes(3), Bytes(2)], &[Bytes(3), Bytes(2)], &[Blocked, Blocked]);
    let (outcome, steps) = play.serve(READABLE, 16);
    assert_eq!((outcome, steps.last()), (Outcome::Wait, Some(&Step::Flush(Blocked))));
    assert_eq!(play.serve(WRITABLE, 16), (Outcome::Wait, vec![Step::Flush(Blocked)]));
    assert_eq!(play.serve(WRITABLE, 16).0, Outcome::Wait);
    assert_eq!(play.sent().len(), 5);
}

#[test]
fn a_flush_that_fails_fails_the_connection_and_one_that_blocks_waits() {
    for (flush, outcome) in [
        (Failed(ErrorKind::ConnectionReset), Outcome::Failed(ErrorKind::ConnectionReset)),
        (Blocked, Outcome::Wait),
        (Bytes(0), Outcome::Again),
    ] {
        let mut play = Play::with_flushes(Any, &[Bytes(3)], &[Bytes(3)], &[flush]);
        assert_eq!(play.serve(READABLE, 1).0, outcome);
    }
}

#[test]
fn room_for_what_a_flush_has_left_resets_the_idle_counter() {
    let mut play = Play::with_flushes(Any, &[Bytes(3)], &[Bytes(3)], &[Blocked, Blocked, Blocked]);
    assert_eq!(play.serve(READABLE, 16).0, Outcome::Wait);
    assert_eq!(play.connection.tick_idle(), 1);
    for (ready, idle) in [(READABLE, 2), (WRITABLE, 1), (WRITABLE, 1), (WRITABLE, 2)] {
        assert_eq!(play.serve(ready, 16).0, Outcome::Wait);
        assert_eq!(play.connection.tick_idle(), idle);
    }
}

#[test]
fn a_connection_is_drained_from_a_read_that_blocks_to_the_next_event() {
    let mut play = Play::new(Any, &[Bytes(3)], &[Bytes(3)]);
    assert!(play.connection.is_drained());
    assert_eq!(play.serve(READABLE, 1).0, Outcome::Again);
    assert!(!play.connection.is_drained());
    assert_eq!(play.serve(Ready::NONE, 1).0, Outcome::Wait);
    assert!(play.connection.is_drained());
    // Or until input is expected without one.
    play.connection.expect_input();
    assert!(!play.connection.is_drained());
}
