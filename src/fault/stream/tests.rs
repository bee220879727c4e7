//! A faulty stream under an echo, over a scripted stream and a clock that the test sets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a peer's end of a stream does at one moment.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// It sends this many bytes.
    Send(usize),
    /// It makes room for this many bytes of output.
    Receive(usize),
    /// This many microseconds pass.
    Pass(u64),
    /// The next call of the stream is interrupted.
    Interrupt,
}

/// A stream that takes what there is room for, at most so much in one call.
#[derive(Debug, Default)]
struct Scripted {
    /// Bytes that the peer has sent and nobody has read; all that it has sent; whether it has closed its direction.
    incoming: VecDeque<u8>,
    input: Vec<u8>,
    has_ended: bool,
    room: usize,
    write_max: usize,
    interrupts: usize,
    /// How the next flushes fail, and how many there were.
    flush_errors: VecDeque<ErrorKind>,
    flushes: usize,
    /// Every write, and when it was.
    writes: Vec<(Duration, Vec<u8>)>,
    now: Rc<Cell<Duration>>,
}

impl Scripted {
    fn send(&mut self, length: usize) {
        for _ in 0..length {
            // No two neighbors are equal, nor are those of a flipped bit.
            let byte = u8::try_from(self.input.len() * 4 % 251).unwrap();
            self.input.push(byte);
            self.incoming.push_back(byte);
        }
    }

    fn interrupt(&mut self) -> io::Result<()> {
        if self.interrupts == 0 {
            return Ok(());
        }
        self.interrupts -= 1;
        Err(ErrorKind::Interrupted.into())
    }
}

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupt()?;
        if self.incoming.is_empty() {
            return if self.has_ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        self.incoming.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.interrupt()?;
        let length = data.len().min(self.room).min(self.write_max);
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.room -= length;
        self.writes.push((self.now.get(), data[..length].to_vec()));
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        self.flush_errors.pop_front().map_or(Ok(()), |kind| Err(kind.into()))
    }
}

/// An echo over a faulty stream: what the server does, without a server.
struct Play {
    stream: FaultyStream<Scripted, Box<dyn Fn() -> Instant>>,
    start: Instant,
    now: Rc<Cell<Duration>>,
    buffer_size: usize,
    pending: Vec<u8>,
    received: usize,
    has_ended: bool,
    end: Option<(Duration, End)>,
    hits: BTreeMap<&'static str, u32>,
}

impl Play {
    fn new(rules: &[&str], buffer_size: usize) -> Self {
        let faults: Vec<Fault> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Fault::check_all(&faults).unwrap();
        let (start, now) = (Instant::now(), Rc::new(Cell::new(Duration::ZERO)));
        let clock = Rc::clone(&now);
        let clock: Box<dyn Fn() -> Instant> = Box::new(move || start + clock.get());
        let scripted = Scripted { write_max: usize::MAX, now: Rc::clone(&now), ..Scripted::default() };
        let stream = FaultyStream::new(scripted, &faults, 1, clock);
        let mut play = Self {
            stream,
            start,
            now,
            buffer_size,
            pending: Vec::new(),
            received: 0,
            has_ended: false,
            end: None,
            hits: BTreeMap::new(),
        };
        play.serve(true); // a new socket can be written
        play
    }

    fn act(&mut self, action: Action) {
        let scripted = self.stream.get_mut();
        match action {
            Action::Send(length) => scripted.send(length),
            Action::Receive(length) => scripted.room += length,
            Action::Pass(micros) => return self.pass(Duration::from_micros(micros)),
            Action::Interrupt => scripted.interrupts += 1,
        }
        self.serve(matches!(action, Action::Receive(_)));
    }

    /// Lets time pass, and serves the stream at each of its deadlines: exactly then.
    fn pass(&mut self, time: Duration) {
        let end = self.now.get() + time;
        while let Some(at) = self.deadline().filter(|&at| at <= end) {
            assert!(at > self.now.get(), "a deadline that has passed does not move");
            self.now.set(at);
            self.serve(false);
        }
        self.now.set(end);
    }

    fn deadline(&self) -> Option<Duration> {
        self.stream.next_deadline().filter(|_| self.end.is_none()).map(|at| at - self.start)
    }

    fn serve(&mut self, is_writable: bool) {
        self.serve_once(is_writable);
        while self.stream.can_send() && self.end.is_none() {
            self.serve_once(false);
        }
    }

    fn serve_once(&mut self, is_writable: bool) {
        if self.end.is_some() || self.has_ended {
            return;
        }
        self.stream.advance(is_writable).unwrap();
        loop {
            while !self.pending.is_empty() {
                match self.stream.write(&self.pending) {
                    Ok(written) => drop(self.pending.drain(..written)),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::WouldBlock);
                        break;
                    }
                }
            }
            self.end = self.stream.take_end().map(|end| (self.now.get(), end));
            if self.end.is_some() || !self.pending.is_empty() && !self.stream.can_resume() {
                break;
            }
            let mut buffer = vec![0; self.buffer_size];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.has_ended = true;
                    break;
                }
                Ok(received) => {
                    self.received += received;
                    self.pending.extend(&buffer[..received]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    if !self.stream.can_resume() {
                        break;
                    }
                }
            }
        }
        for (kind, count) in self.stream.take_hits() {
            *self.hits.entry(kind.name()).or_default() += count;
        }
    }

    /// Sends FIN, and reads everything that comes within a day.
    fn finish(&mut self) {
        self.stream.get_mut().has_ended = true;
        self.act(Action::Receive(usize::MAX / 2));
        self.act(Action::Pass(24 * 3_600_000_000));
    }

    fn output(&self) -> Vec<u8> {
        self.stream.get_ref().writes.iter().flat_map(|(_, bytes)| bytes).copied().collect()
    }

    fn input(&self) -> &[u8] {
        &self.stream.get_ref().input
    }

    /// Returns when each byte of the output was written, in microseconds.
    fn times(&self) -> Vec<u128> {
        let writes = self.stream.get_ref().writes.iter();
        writes.flat_map(|(at, bytes)| std::iter::repeat_n(at.as_micros(), bytes.len())).collect()
    }
}

/// Plays actions, then FIN. The peer reads at once all that comes.
fn play(rules: &[&str], actions: &[Action]) -> Play {
    let mut play = Play::new(rules, 1024);
    play.act(Action::Receive(usize::MAX / 2));
    for &action in actions {
        play.act(action);
    }
    play
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        (1..40_usize).prop_map(Action::Send),
        (1..40_usize).prop_map(Action::Receive),
        (1..5000_u64).prop_map(Action::Pass),
        Just(Action::Interrupt),
    ];
    vec(action, 0..40)
}

/// Rules of time, which change no byte.
fn timing() -> impl Strategy<Value = Vec<&'static str>> {
    let delay = prop_oneof![Just(""), Just("delay=1ms"), Just("delay=0us..3ms,hold=20"), Just("delay=2ms,hold=1")];
    let rate = prop_oneof![Just(""), Just("rate=50"), Just("rate=20000")];
    let chunk = prop_oneof![Just(""), Just("chunk=3"), Just("chunk=7,gap=500us")];
    let stall = prop_oneof![Just(""), Just("stall,for=3ms"), Just("stall=30,for=2ms")];
    (delay, rate, chunk, stall).prop_map(|(delay, rate, chunk, stall)| {
        [delay, rate, chunk, stall].into_iter().filter(|rule| !rule.is_empty()).collect()
    })
}

/// Returns what comes of `input` if every so many bytes are changed, and how many are.
fn changed(kind: &str, every: usize, input: &[u8]) -> (Vec<u8>, u32) {
    let mut output = Vec::new();
    let (mut hits, mut bytes) = (0, (1..).zip(input).peekable());
    while let Some((place, &byte)) = bytes.next() {
        if place % every > 0 {
            output.push(byte);
            continue;
        }
        hits += 1;
        match kind {
            "flip" => output.push(byte ^ 1),
            "lose" => {}
            "duplicate" => output.extend([byte, byte]),
            _ => {
                let next = bytes.next().map(|(_, &next)| next);
                hits -= u32::from(next.is_none());
                output.extend(next.into_iter().chain([byte]));
            }
        }
    }
    (output, hits)
}

proptest! {
    #[test]
    fn rules_of_time_change_no_byte(
        rules in timing(), actions in actions(), buffer_size in 1..16_usize, write_max in 1..16_usize,
    ) {
        let mut play = Play::new(&rules, buffer_size);
        play.stream.get_mut().write_max = write_max;
        for action in actions {
            play.act(action);
            prop_assert!(play.output() == play.input()[..play.output().len()]);
        }
        play.finish();
        prop_assert_eq!(play.output(), play.input());
        prop_assert!(play.has_ended, "the end of the stream did not come through");
    }

    #[test]
    fn each_byte_rule_hits_every_nth_place_and_no_other(
        timing in timing(), actions in actions(), buffer_size in 1..16_usize, every in 1..50_usize, kind in 0..4_usize,
    ) {
        let kind = ["flip", "lose", "duplicate", "swap"][kind];
        let rule = format!("{kind}={every}");
        let mut play = Play::new(&[&timing[..], &[&rule]].concat(), buffer_size);
        for action in actions {
            play.act(action);
        }
        play.finish();
        let (output, hits) = changed(kind, every, play.input());
        prop_assert_eq!(play.output(), output);
        prop_assert_eq!(play.hits.get(kind).copied().unwrap_or(0), hits);
    }

    #[test]
    fn exactly_so_many_bytes_come_back_before_an_end(
        timing in timing(), actions in actions(), bytes in 0..200_usize, kind in 0..4_usize,
    ) {
        let kind = ["reset", "fin", "mute", "stall"][kind];
        let rule = format!("{kind}={bytes}");
        let rules: Vec<_> = timing.into_iter().filter(|rule| bytes >= 30 && !rule.starts_with("stall")).chain([&rule[..]]).collect();
        let mut play = Play::new(&rules, 8);
        for action in actions {
            play.act(action);
            let sent = play.output().len();
            prop_assert_eq!(play.end.is_some(), kind != "mute" && kind != "stall" && sent == bytes, "{:?}", play.end);
        }
        play.finish();
        let length = play.input().len();
        prop_assert_eq!(play.output(), &play.input()[..length.min(bytes)]);
        let has_come = if kind == "mute" { length > bytes } else { length >= bytes };
        prop_assert_eq!(play.hits.get(kind), has_come.then_some(&1));
    }
}

#[test]
fn a_delay_is_never_early_and_exact_with_an_exact_clock() {
    let actions = [Action::Send(10), Action::Pass(300), Action::Send(1), Action::Pass(50_000)];
    let play = play(&["delay=5ms"], &actions);
    assert_eq!(play.times(), [[5000; 10].as_slice(), &[5300]].concat());
    assert_eq!(play.hits, BTreeMap::from([("delay", 1)]));
}

#[test]
fn a_range_of_delays_is_uniform_and_keeps_the_order() {
    let mut delays = Vec::new();
    let mut play = play(&["delay=5ms..20ms"], &[]);
    for _ in 0..1000 {
        play.act(Action::Send(1));
        let sent_at = play.now.get().as_micros();
        play.act(Action::Pass(30_000));
        delays.push(play.times().last().unwrap() - sent_at);
    }
    assert!(delays.iter().all(|delay| (5000..=20_000).contains(delay)));
    let below = delays.iter().filter(|&&delay| delay < 12_500).count();
    assert!((430..570).contains(&below), "{below} of 1000 in the lower half");
    let (first, second) = (play.output().len(), Action::Send(100));
    for _ in 0..100 {
        play.act(second);
        play.act(Action::Pass(100));
    }
    play.act(Action::Pass(30_000));
    assert_eq!(play.output()[first..], play.input()[first..]);
}

#[test]
fn both_ends_of_a_range_of_delays_are_drawn() {
    let mut play = play(&["delay=0s..0.001us"], &[]);
    for _ in 0..100 {
        play.act(Action::Send(1));
        play.act(Action::Pass(100));
    }
    // A nanosecond is rounded up to a microsecond.
    let delays: BTreeSet<_> = play.times().iter().map(|at| at % 100).collect();
    assert_eq!(delays, BTreeSet::from([0, 1]));
}

#[test]
fn reading_goes_on_until_hold_bytes_are_delayed() {
    for size in [1, 7, 1024] {
        let mut play = play(&["delay=10ms,hold=100"], &[]);
        for _ in 0..=300 / size {
            play.act(Action::Send(size));
        }
        assert_eq!(play.received, 100, "{size} bytes at a time");
        play.act(Action::Pass(9_000));
        assert_eq!((play.received, play.output().len()), (100, 0));
        play.act(Action::Pass(1_000));
        assert_eq!((play.received, play.output().len()), (200, 100));
    }
}

#[test]
fn a_rate_is_at_most_that_and_smooth() {
    let mut play = play(&["rate=1000"], &[Action::Send(5000), Action::Pass(3_500_000), Action::Pass(3_000_000)]);
    let times = play.times();
    assert_eq!(times.len(), 5000);
    assert_eq!(play.hits, BTreeMap::from([("rate", 1)]));
    for (index, at) in (1..).zip(&times) {
        assert!(*at >= index * 1000, "byte {index} after {at} us");
        assert!(*at <= index * 1000 + 10_000, "byte {index} after {at} us");
    }
    // What was not sent while there was nothing to send is not sent later.
    play.act(Action::Send(100));
    play.act(Action::Pass(50_000));
    assert_eq!(play.output().len(), 5050);
}

#[test]
fn a_rate_is_kept_though_the_server_is_late_and_its_buffer_small() {
    let mut play = Play::new(&["rate=100000"], 1000);
    play.act(Action::Receive(usize::MAX / 2));
    play.act(Action::Send(400_000));
    for step in 1..=400 {
        play.now.set(Duration::from_millis(7 * step));
        play.serve(false);
        let most = 700 * usize::try_from(step).unwrap();
        assert!(
            (most.saturating_sub(2000)..=most).contains(&play.output().len()),
            "{} in step {step}",
            play.output().len()
        );
    }
}

#[test]
fn a_rate_is_kept_though_a_gap_delays_its_chunks() {
    let mut play = Play::new(&["rate=1000", "chunk=10,gap=5ms"], 10);
    play.act(Action::Receive(usize::MAX / 2));
    play.act(Action::Send(100));
    play.act(Action::Pass(1_000_000));
    let expected: Vec<_> = (1..=10).flat_map(|chunk| [10_000 * chunk; 10]).collect();
    assert_eq!(play.times(), expected);
}

#[test]
fn a_rate_below_a_byte_in_a_tenth_of_a_second_sends_each_in_time() {
    let play = play(&["rate=2"], &[Action::Send(3), Action::Pass(10_000_000)]);
    assert_eq!(play.times(), [500_000, 1_000_000, 1_500_000]);
}

#[test]
fn chunks_are_of_their_size_and_their_gap_apart() {
    let gapped = play(&["chunk=7,gap=1ms"], &[Action::Send(20), Action::Pass(10_000)]);
    let writes: Vec<_> =
        gapped.stream.get_ref().writes.iter().map(|(at, bytes)| (at.as_micros(), bytes.len())).collect();
    assert_eq!(writes, [(0, 7), (1000, 7), (2000, 6)]);
    let whole = play(&["chunk=7"], &[Action::Send(5)]);
    assert_eq!((whole.output().len(), whole.hits.get("chunk")), (5, None), "nothing was split");
    let split = play(&["chunk=7"], &[Action::Send(15)]);
    let lengths: Vec<_> = split.stream.get_ref().writes.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!((lengths, split.hits.get("chunk")), (vec![7, 7, 1], Some(&1)));
}

#[test]
fn a_call_makes_few_writes_and_says_that_more_can_be_sent() {
    let mut play = Play::new(&["chunk=1", "delay=1ms"], 8192);
    play.act(Action::Receive(usize::MAX / 2));
    play.act(Action::Send(5000));
    play.now.set(Duration::from_millis(1));
    play.serve_once(false);
    assert_eq!((play.output().len(), play.stream.can_send()), (WRITES_MAX, true));
    assert_eq!(play.stream.write(b"more").unwrap(), 4);
    assert_eq!((play.output().len(), play.stream.can_send()), (WRITES_MAX, true));
    play.serve(false);
    assert_eq!((play.output().len(), play.stream.can_send()), (5000, false));
}

#[test]
fn a_stall_of_no_bytes_counts_from_the_accept_and_later_ones_from_the_last_byte() {
    let mut now = play(&["stall,for=2ms"], &[Action::Pass(1500), Action::Send(10)]);
    assert_eq!((now.received, now.output().len()), (0, 0));
    now.act(Action::Pass(500));
    assert_eq!((now.times(), now.hits.get("stall")), (vec![2000; 10], Some(&1)));
    let later = play(&["stall=4,for=2ms"], &[Action::Pass(1500), Action::Send(10), Action::Pass(5000)]);
    assert_eq!(later.times(), [[1500; 4].as_slice(), &[3500; 6]].concat());
    let unreached = play(&["stall=11,for=2ms"], &[Action::Send(10), Action::Pass(5000)]);
    assert_eq!((unreached.times(), unreached.hits.len()), (vec![0; 10], 0));
}

#[test]
fn an_end_by_time_comes_at_its_time_whatever_is_held() {
    for rule in ["reset=3ms", "fin=3ms"] {
        let play = play(&[rule, "delay=10ms"], &[Action::Send(10), Action::Pass(20_000)]);
        let expected = if rule.starts_with("fin") { End::Fin } else { End::Reset { after_bytes: false } };
        assert_eq!((play.end, play.output().len()), (Some((Duration::from_millis(3), expected)), 0));
    }
    assert_eq!(play(&["reset=0"], &[]).end, Some((Duration::ZERO, End::Reset { after_bytes: false })));
    let both = play(&["stall", "reset=3ms"], &[Action::Pass(20_000)]);
    assert_eq!(both.end.unwrap().0, Duration::from_millis(3));
}

#[test]
fn lifting_sends_what_is_delayed_and_throws_away_what_a_stall_withholds() {
    let mut delayed = play(&["delay=1m", "swap=10", "rate=1"], &[Action::Send(10)]);
    assert!(delayed.stream.is_withholding());
    delayed.stream.lift();
    delayed.serve(false);
    assert_eq!(delayed.output(), delayed.input());
    assert!(!delayed.stream.is_withholding());
    let mut stalled = play(&["stall=4"], &[Action::Send(10), Action::Send(10)]);
    stalled.stream.lift();
    stalled.serve(false);
    assert_eq!((stalled.output().len(), stalled.received, stalled.stream.is_withholding()), (4, 20, false));
}

#[test]
fn a_flush_is_repeated_after_an_interrupt_and_when_the_stream_is_writable_again() {
    let mut play = play(&["chunk=64"], &[]);
    let flushes_of = |play: &mut Play, is_writable, errors: &[ErrorKind]| {
        let scripted = play.stream.get_mut();
        (scripted.flushes, scripted.flush_errors) = (0, errors.iter().copied().collect());
        let result = play.stream.advance(is_writable).map_err(|error| error.kind());
        (result, play.stream.get_ref().flushes)
    };
    assert_eq!(flushes_of(&mut play, false, &[ErrorKind::Interrupted]), (Ok(()), 2));
    assert_eq!(flushes_of(&mut play, false, &[ErrorKind::WouldBlock]), (Ok(()), 1));
    assert_eq!(flushes_of(&mut play, false, &[]), (Ok(()), 0));
    assert_eq!(flushes_of(&mut play, true, &[]), (Ok(()), 1));
    assert_eq!(flushes_of(&mut play, false, &[ErrorKind::BrokenPipe]), (Err(ErrorKind::BrokenPipe), 1));
}

#[test]
fn what_a_flush_has_not_sent_is_pending_output_and_comes_before_the_end_of_the_stream() {
    let mut play = play(&["chunk=64"], &[]);
    play.stream.get_mut().flush_errors.push_back(ErrorKind::WouldBlock);
    play.act(Action::Send(5));
    assert!(play.stream.is_blocked());
    play.stream.get_mut().has_ended = true;
    play.serve(false);
    assert!(!play.has_ended);
    play.act(Action::Receive(1));
    assert!(play.has_ended && !play.stream.is_blocked());
}

#[test]
fn a_read_that_the_queue_cuts_short_can_be_resumed_and_no_other() {
    let mut play = play(&["delay=1ms,hold=4"], &[]);
    for (sent, buffer_size, can_resume) in [(3, 8, false), (6, 4, false), (6, 8, true)] {
        let scripted = play.stream.get_mut();
        scripted.incoming.clear();
        scripted.send(sent);
        assert_eq!(play.stream.read(&mut vec![0; buffer_size]).unwrap(), sent.min(4));
        assert_eq!(play.stream.can_resume(), can_resume);
    }
    // There is room for two more.
    play.stream.write_all(b"ab").unwrap();
    assert!(play.stream.can_resume() && play.stream.is_withholding() && !play.stream.is_blocked());
}

#[test]
fn a_muted_stream_is_read_though_its_queue_is_full() {
    assert_eq!(play(&["mute=4", "delay=1s,hold=4"], &[Action::Send(10), Action::Send(10)]).received, 20);
    // Until it is muted, it is not.
    assert_eq!(play(&["mute=100", "delay=1s,hold=4"], &[Action::Send(20)]).received, 4);
}

#[test]
fn without_a_delay_a_blocked_stream_holds_one_buffer() {
    let mut play = Play::new(&["chunk=64"], 10);
    play.act(Action::Send(100));
    assert_eq!(play.received, 10);
}

#[test]
fn a_byte_that_waits_for_the_next_is_thrown_away_with_the_rest() {
    let mut play = play(&["swap=2", "fin=1ms"], &[Action::Send(2), Action::Pass(1000)]);
    assert_eq!(play.end, Some((Duration::from_millis(1), End::Fin)));
    play.stream.get_mut().has_ended = true;
    assert_eq!(play.stream.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(play.output(), &play.input()[..1]);
}

#[test]
fn what_is_lost_is_not_delayed() {
    let hits = play(&["lose=1", "delay=1ms"], &[Action::Send(3)]).hits;
    assert_eq!(hits, BTreeMap::from([("lose", 3)]));
}
