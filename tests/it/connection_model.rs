//! `Connection` against a scripted stream: whatever the stream answers, and in whatever order, the rules of the echo hold.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use ecoloop::{Connection, Progress, Readiness};
use proptest::collection::vec;
use proptest::prelude::*;

const BUFFER_SIZE: usize = 8;
const READABLE: Readiness = Readiness { readable: true, writable: false, read_closed: false, priority: false };
const WRITABLE: Readiness = Readiness { readable: false, writable: true, read_closed: false, priority: false };
const BOTH: Readiness = Readiness { readable: true, writable: true, read_closed: false, priority: false };
/// Whether this system's short read stands for `WouldBlock`.
const SHORT_READ_DRAINS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// What a call of the stream is scripted to answer. Reading, `Moved(0)` is the end of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// At most so many bytes.
    Moved(usize),
    Blocked,
    Interrupted,
    Failed(ErrorKind),
}

use Answer::{Blocked, Failed, Interrupted, Moved as Bytes};

/// What happened, in its order: the calls of the stream, and what the connection told of them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Read { room: usize, answer: Answer },
    Write { offered: usize, answer: Answer },
    Received(Vec<u8>),
    Sent(usize),
    Discarded(usize),
}

/// A stream that answers by the script, and then blocks.
#[derive(Debug)]
struct Scripted {
    reads: VecDeque<Answer>,
    writes: VecDeque<Answer>,
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
        Ok(())
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

/// A connection over a scripted stream, and what happened to it.
struct Play {
    connection: Connection<Scripted>,
    steps: Rc<RefCell<Vec<Step>>>,
}

impl Play {
    fn new(reads: &[Answer], writes: &[Answer]) -> Self {
        let steps = Rc::new(RefCell::new(Vec::new()));
        let stream = Scripted {
            reads: reads.iter().copied().collect(),
            writes: writes.iter().copied().collect(),
            steps: Rc::clone(&steps),
            received: Vec::new(),
            sent: Vec::new(),
        };
        Self { connection: Connection::new(stream), steps }
    }

    /// Serves it until it has read so often or cannot go on, and answers what came of it with what happened meanwhile.
    fn serve(&mut self, readiness: Readiness, reads_max: usize) -> (Progress, Vec<Step>) {
        let mut progress = self.serve_once(readiness);
        for _ in 1..reads_max {
            if progress != Progress::Unfinished {
                break;
            }
            progress = self.serve_once(Readiness::default());
        }
        (progress, self.steps.take())
    }

    fn serve_once(&mut self, readiness: Readiness) -> Progress {
        let steps = &self.steps;
        let received = |data: &[u8]| steps.borrow_mut().push(Step::Received(data.to_vec()));
        let sent = |length| steps.borrow_mut().push(Step::Sent(length));
        match self.connection.serve(&readiness, &mut [0; BUFFER_SIZE], received, sent) {
            Progress::Discarded(length) => {
                steps.borrow_mut().push(Step::Discarded(length));
                Progress::Unfinished
            }
            progress => progress,
        }
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

/// How many of these steps are reads.
fn reads(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Read { .. })).count()
}

// ---- the rules, played at random ----

/// What one call of `serve` is given.
#[derive(Clone, Copy, Debug)]
struct Turn {
    readiness: Readiness,
    reads_max: usize,
    /// `discard` is called first.
    discard: bool,
}

/// What is known of a connection from outside, from which what it may do follows.
#[derive(Debug, Default)]
struct Expected {
    /// A readable edge is not spent.
    readable: bool,
    /// Until the next `WouldBlock` a short read does not spend it.
    short_read_means_nothing: bool,
    /// Received and not sent.
    pending: usize,
    /// How much had come in when `discard` was called.
    discarded_after: Option<usize>,
}

impl Expected {
    fn begin(&mut self, turn: Turn, received: usize) {
        if turn.discard {
            self.discarded_after.get_or_insert(received);
        }
        self.readable |= turn.readiness.readable || turn.readiness.read_closed || turn.readiness.priority;
        self.short_read_means_nothing |= turn.readiness.read_closed || turn.readiness.priority;
    }

    /// Each step must be allowed where it stands, and what comes in be told of at once.
    fn follow(&mut self, steps: &[Step]) {
        for (index, step) in steps.iter().enumerate() {
            let next = steps[index + 1..].iter().find(|step| !matches!(step, Step::Sent(_)));
            match *step {
                Step::Read { room, answer } => {
                    assert!(self.readable, "a read without an edge");
                    assert_eq!(self.pending, 0, "a read while output is pending");
                    self.read(room, answer, next);
                }
                Step::Write { offered, answer } => {
                    assert_eq!(offered, self.pending, "a write of something else than what is pending");
                    self.write(answer, next);
                }
                Step::Received(_) | Step::Sent(_) | Step::Discarded(_) => {}
            }
            assert!(self.pending <= BUFFER_SIZE);
        }
    }

    fn read(&mut self, room: usize, answer: Answer, next: Option<&Step>) {
        match answer {
            Bytes(n @ 1..) => {
                if self.discarded_after.is_some() {
                    assert_eq!(next, Some(&Step::Discarded(n)));
                    return;
                }
                assert!(matches!(next, Some(Step::Received(data)) if data.len() == n));
                self.pending += n;
                if SHORT_READ_DRAINS && n < room && !self.short_read_means_nothing {
                    self.readable = false;
                }
            }
            Blocked => {
                self.readable = false;
                self.short_read_means_nothing = false;
            }
            Interrupted => assert!(matches!(next, Some(Step::Read { .. })), "not tried again"),
            Bytes(0) | Failed(_) => assert!(next.is_none(), "went on after the end"),
        }
    }

    fn write(&mut self, answer: Answer, next: Option<&Step>) {
        match answer {
            Bytes(n @ 1..) => self.pending -= n,
            Interrupted => assert!(matches!(next, Some(Step::Write { .. })), "not tried again"),
            Bytes(0) | Blocked | Failed(_) => assert!(next.is_none(), "went on where nothing more goes out"),
        }
    }

    /// What is said of the turn must follow from its steps, and its work must have been bounded.
    fn end(&self, turn: Turn, steps: &[Step], progress: Progress) {
        let last_call = steps.iter().rfind(|step| matches!(step, Step::Read { .. } | Step::Write { .. }));
        match progress {
            Progress::Waiting if self.pending > 0 => {
                let blocked = matches!(last_call, Some(Step::Write { answer: Blocked, .. }));
                assert!(blocked || !turn.readiness.writable && last_call.is_none(), "stopped writing too soon");
            }
            Progress::Waiting => assert!(!self.readable, "stopped reading too soon"),
            Progress::Unfinished => assert!(self.readable && self.pending == 0),
            Progress::Ended => assert!(matches!(last_call, Some(Step::Read { answer: Bytes(0), .. }))),
            Progress::Failed(kind) => match last_call {
                Some(Step::Write { answer: Bytes(0), .. }) => assert_eq!(kind, ErrorKind::WriteZero),
                Some(Step::Read { answer, .. } | Step::Write { answer, .. }) => {
                    assert_eq!(Failed(kind), *answer);
                }
                _ => panic!("failed without a call"),
            },
            Progress::Discarded(_) => panic!("`serve` goes on after it"),
        }
        let (mut reads, mut writes, mut written, mut sent) = (0, 0, 0, 0);
        for step in steps {
            match step {
                Step::Read { answer, .. } if *answer != Interrupted => reads += 1,
                Step::Write { answer, .. } if *answer != Interrupted => {
                    writes += 1;
                    written += if let Bytes(n) = answer { *n } else { 0 };
                }
                Step::Sent(n) => sent += n,
                _ => {}
            }
        }
        assert!(reads <= turn.reads_max);
        assert!(reads == turn.reads_max || progress != Progress::Unfinished);
        assert_eq!(sent, written, "what went out was not told of");
        assert!(writes <= sent + turn.reads_max, "{writes} writes moved {sent} bytes");
    }
}

/// Plays the turns until one of them is the last, holding each to the rules.
fn play(reads: &[Answer], writes: &[Answer], turns: &[Turn]) {
    let mut play = Play::new(reads, writes);
    let mut expected = Expected::default();
    let mut told = Vec::new();
    for &turn in turns {
        expected.begin(turn, play.received().len());
        if turn.discard {
            play.connection.discard();
        }
        let (progress, steps) = play.serve(turn.readiness, turn.reads_max);
        expected.follow(&steps);
        expected.end(turn, &steps, progress);
        for step in &steps {
            if let Step::Received(data) = step {
                told.extend(data);
            }
        }

        let echoed = expected.discarded_after.unwrap_or(play.received().len());
        assert_eq!(&told, &play.received()[..echoed]);
        assert!(told.starts_with(play.sent()), "what went out is no prefix of what came in");
        match progress {
            Progress::Ended => {
                assert_eq!(play.sent().len(), echoed);
                return;
            }
            Progress::Failed(_) => return,
            Progress::Waiting | Progress::Unfinished | Progress::Discarded(_) => {
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

/// Answers that only delay.
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
    (any::<[bool; 4]>(), 1..=4_usize, prop::bool::weighted(0.02)).prop_map(
        |([readable, writable, read_closed, priority], reads_max, discard)| Turn {
            readiness: Readiness { readable, writable, read_closed, priority },
            reads_max,
            discard,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_stream_answers_the_rules_hold(
        reads in vec(answers(), 0..40),
        writes in vec(answers(), 0..40),
        turns in vec(turns(), 1..40),
    ) {
        play(&reads, &writes, &turns);
    }

    #[test]
    fn a_stream_that_only_delays_gets_all_of_it_back(
        reads in vec(delays(), 0..40),
        writes in vec(delays(), 0..200),
        reads_max in 1..=4_usize,
    ) {
        // Once the script is over, all is taken and the stream has ended.
        let turns_max = reads.len() + writes.len() + 1;
        let mut play = Play::new(&[&reads[..], &[Bytes(0)]].concat(), &[&writes[..], &[Bytes(BUFFER_SIZE); 40]].concat());
        let ended = (0..turns_max).any(|_| play.serve(BOTH, reads_max).0 == Progress::Ended);
        assert!(ended);
        assert_eq!(play.sent(), play.received());
    }
}

// ---- the rules, one by one ----

#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn a_short_read_is_taken_for_the_last() {
    let mut play = Play::new(&[Bytes(3)], &[Bytes(3)]);
    let (progress, steps) = play.serve(BOTH, 16);
    assert_eq!(progress, Progress::Waiting);
    assert_eq!(
        steps,
        [read(Bytes(3)), Step::Received(vec![0, 1, 2]), Step::Write { offered: 3, answer: Bytes(3) }, Step::Sent(3)]
    );

    // The edge is spent: without another nothing is read.
    assert_eq!(play.serve(WRITABLE, 16), (Progress::Waiting, vec![]));
}

#[test]
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn a_short_read_is_followed_by_another() {
    let mut play = Play::new(&[Bytes(3)], &[Bytes(3)]);
    let (progress, steps) = play.serve(BOTH, 16);
    assert_eq!(progress, Progress::Waiting);
    assert_eq!(steps.last(), Some(&read(Blocked)));
}

#[test]
fn a_read_that_fills_the_buffer_is_followed_by_another() {
    let mut play = Play::new(&[Bytes(BUFFER_SIZE)], &[Bytes(BUFFER_SIZE)]);
    let (progress, steps) = play.serve(BOTH, 16);
    assert_eq!(progress, Progress::Waiting);
    assert_eq!(reads(&steps), 2);
    assert_eq!(steps.last(), Some(&read(Blocked)));
}

#[test]
fn behind_data_that_came_with_a_fin_the_end_is_read_in_the_same_turn() {
    let mut play = Play::new(&[Bytes(3), Bytes(0)], &[Bytes(3)]);
    let (progress, _) = play.serve(Readiness { read_closed: true, ..BOTH }, 16);
    assert_eq!(progress, Progress::Ended);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn a_fin_reported_while_output_is_pending_is_remembered() {
    let mut play = Play::new(&[Bytes(3), Bytes(2), Bytes(0)], &[Blocked, Bytes(3), Bytes(2)]);
    assert_eq!(play.serve(BOTH, 16).0, Progress::Waiting);
    assert_eq!(play.serve(Readiness { read_closed: true, ..READABLE }, 16), (Progress::Waiting, vec![]));
    assert_eq!(play.serve(WRITABLE, 16).0, Progress::Ended);
    assert_eq!(play.sent(), play.received());
}

#[test]
fn urgent_data_has_short_reads_followed_until_one_blocks() {
    let mut play = Play::new(&[Bytes(3), Bytes(2), Blocked, Bytes(1)], &[Bytes(3), Bytes(2), Bytes(1)]);
    let (progress, steps) = play.serve(Readiness { priority: true, ..BOTH }, 16);
    assert_eq!(progress, Progress::Waiting);
    assert_eq!(reads(&steps), 3);
    assert_eq!(play.sent().len(), 5);

    // From there on a short read is again what it is on this system.
    let (_, steps) = play.serve(BOTH, 16);
    assert_eq!(reads(&steps), if SHORT_READ_DRAINS { 1 } else { 2 });
}

#[test]
fn urgent_data_is_remembered_beyond_the_reads_of_a_turn() {
    let mut play = Play::new(&[Bytes(BUFFER_SIZE), Bytes(3), Bytes(2)], &[Bytes(BUFFER_SIZE); 3]);
    assert_eq!(play.serve(Readiness { priority: true, ..BOTH }, 1).0, Progress::Unfinished);
    assert_eq!(play.serve(Readiness::default(), 1).0, Progress::Unfinished);
    assert_eq!(play.serve(Readiness::default(), 2).0, Progress::Waiting);
    assert_eq!(play.sent().len(), BUFFER_SIZE + 5);
}

#[test]
fn no_more_is_read_in_a_turn_than_allowed_and_the_next_goes_on_without_an_event() {
    let mut play = Play::new(&[Bytes(BUFFER_SIZE); 5], &[Bytes(BUFFER_SIZE); 5]);
    let (progress, steps) = play.serve(BOTH, 2);
    assert_eq!((progress, reads(&steps)), (Progress::Unfinished, 2));
    let (progress, steps) = play.serve(Readiness::default(), 2);
    assert_eq!((progress, reads(&steps)), (Progress::Unfinished, 2));
    let (progress, steps) = play.serve(Readiness::default(), 2);
    assert_eq!((progress, reads(&steps)), (Progress::Waiting, 2));
    assert_eq!(play.sent().len(), 5 * BUFFER_SIZE);
}

#[test]
fn a_short_write_is_followed_by_another_until_it_blocks() {
    let mut play = Play::new(&[Bytes(5)], &[Bytes(2), Bytes(1), Blocked]);
    let (progress, steps) = play.serve(BOTH, 16);
    assert_eq!(progress, Progress::Waiting);
    assert_eq!(steps[4..], [Step::Write { offered: 2, answer: Blocked }, Step::Sent(3)]);
    assert_eq!(play.connection.pending(), 2);
}

#[test]
fn once_what_was_pending_is_out_reading_goes_on_without_another_event() {
    let mut play = Play::new(
        &[Bytes(BUFFER_SIZE), Bytes(BUFFER_SIZE), Bytes(3)],
        &[Blocked, Bytes(BUFFER_SIZE), Bytes(BUFFER_SIZE), Bytes(3)],
    );
    assert_eq!(play.serve(BOTH, 16).0, Progress::Waiting);
    assert_eq!(play.connection.pending(), BUFFER_SIZE);

    assert_eq!(play.serve(WRITABLE, 16).0, Progress::Waiting);
    assert_eq!(play.connection.pending(), 0);
    assert_eq!(play.sent().len(), 2 * BUFFER_SIZE + 3);
    assert_eq!(play.sent(), play.received());
}

#[test]
fn an_interrupted_call_is_tried_again() {
    let mut play = Play::new(&[Interrupted, Interrupted, Bytes(3)], &[Interrupted, Bytes(3)]);
    // It does not count towards the reads of the turn.
    let (_, steps) = play.serve(BOTH, 1);
    assert_eq!(reads(&steps), 3);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn a_write_of_nothing_is_a_failure() {
    let mut play = Play::new(&[Bytes(3)], &[Bytes(0)]);
    assert_eq!(play.serve(BOTH, 16).0, Progress::Failed(ErrorKind::WriteZero));

    let mut play = Play::new(&[Bytes(3)], &[Blocked, Bytes(0)]);
    assert_eq!(play.serve(BOTH, 16).0, Progress::Waiting);
    assert_eq!(play.serve(WRITABLE, 16).0, Progress::Failed(ErrorKind::WriteZero));
}

#[test]
fn a_failure_keeps_its_kind() {
    for kind in [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::TimedOut] {
        let mut reading = Play::new(&[Failed(kind)], &[]);
        assert_eq!(reading.serve(READABLE, 16).0, Progress::Failed(kind));

        let mut writing = Play::new(&[Bytes(3)], &[Failed(kind)]);
        assert_eq!(writing.serve(BOTH, 16).0, Progress::Failed(kind));

        let mut pending = Play::new(&[Bytes(3)], &[Blocked, Failed(kind)]);
        assert_eq!(pending.serve(BOTH, 16).0, Progress::Waiting);
        assert_eq!(pending.serve(WRITABLE, 16).0, Progress::Failed(kind));
    }
}

#[test]
fn after_discard_what_comes_in_is_counted_and_thrown_away() {
    let mut play = Play::new(&[Bytes(3), Bytes(BUFFER_SIZE), Bytes(2), Bytes(0)], &[Bytes(3)]);
    play.serve(BOTH, 1);
    assert!(!play.connection.is_discarding());

    play.connection.discard();
    assert!(play.connection.is_discarding());
    let (progress, steps) = play.serve(Readiness { read_closed: true, ..BOTH }, 16);
    assert_eq!(progress, Progress::Ended);
    let told: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Discarded(_))).collect();
    assert_eq!(told, [&Step::Discarded(BUFFER_SIZE), &Step::Discarded(2)]);
    assert_eq!(play.sent(), [0, 1, 2]);
}

#[test]
fn only_a_byte_that_moves_ends_the_quiet() {
    let mut play = Play::new(&[Bytes(3), Blocked], &[Blocked, Bytes(1), Blocked, Bytes(2)]);
    assert_eq!((play.connection.grow_quiet(), play.connection.grow_quiet()), (1, 2));
    // One in.
    play.serve(READABLE, 16);
    assert_eq!(play.connection.grow_quiet(), 1);
    // One out.
    play.serve(WRITABLE, 16);
    assert_eq!(play.connection.grow_quiet(), 1);
    play.serve(WRITABLE, 16);
    assert_eq!(play.connection.grow_quiet(), 1);
    // Events without bytes.
    play.serve(BOTH, 16);
    play.serve(WRITABLE, 16);
    assert_eq!(play.connection.grow_quiet(), 2);

    play.connection.reset_quiet();
    let counts: Vec<_> = (0..300).map(|_| play.connection.grow_quiet()).collect();
    assert_eq!(counts[0], 1);
    assert_eq!(counts[299], u8::MAX, "it stays at the most");
}
