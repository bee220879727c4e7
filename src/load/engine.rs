//! The run itself: connects, keeps the schedule, and leads each readiness to its connection.

use std::convert::Infallible;
use std::io;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Waker};
use socket2::SockRef;

use super::Interrupt;
use super::client::{BUFFER_BYTES, Client, Message, Received};
use super::config::{Close, Config};
use super::connector::Connector;
use super::histogram::Histogram;
use super::mode::{Reaction, Status, Traffic, Workload, workload};
use super::pattern::Pattern;
use super::progress::{Progress, ProgressCell, Step};
use super::report::{ErrorName, Finding, Phase, Sample};
use super::schedule::{SendSchedule, Window};
use super::sources::{ConnectFailure, Connecting, classify, is_port_taken};
use super::stage::Stage;
use super::timer::Timer;
use super::totals::{AbandonReason, Totals};
use super::verify::{End, Fault};
use crate::reactor::{Handler, INTEREST, Next, Reactor};
use crate::ready::Ready;

/// Reads of one connection in a turn.
const READS_PER_TURN: usize = 16;
/// Connects begun in a turn: those established shall not wait for a storm of new ones.
const CONNECTS_PER_TURN: u32 = 64;
/// Connections closed in a turn, likewise.
const CLOSES_PER_TURN: u32 = 64;
const EVENTS_PER_TURN: usize = 1024;
const SECOND: u64 = 1_000_000_000;
/// In `hold`, a reply that takes longer is late.
const LATE: u64 = SECOND;

/// What stands under a key.
#[derive(Debug)]
enum Entry {
    Timer,
    Client(Client),
}

#[derive(Debug)]
pub(super) struct Engine {
    pub(super) config: Config,
    pub(super) totals: Totals,
    pub(super) step: Step,
    /// When each step began, in nanoseconds of the run, and the end behind the last.
    pub(super) steps: [u64; Step::COUNT],
    pub(super) connector: Connector,
    pub(super) workload: Box<dyn Workload>,
    pub(super) timeline: Vec<Sample>,
    pub(super) turn: Histogram,
    pub(super) interrupted: bool,
    reactor: Reactor<Entry>,
    ready: ReadyKeys,
    timer: Timer,
    pattern: Pattern,
    buffer: Box<[u8]>,
    scratch: Box<[u8]>,
    epoch: Instant,
    /// Nanoseconds since the epoch, when the clock was last read.
    now: u64,
    interrupt: Interrupt,
    /// As long as the poll lives, so does its waker.
    _waker: Arc<Waker>,
    slot: ProgressCell,
    window: Window,
    schedule: Option<SendSchedule>,
    /// Bytes of a message.
    size: u64,
    /// Messages of a connection whose due times are kept.
    ring_size: usize,
    /// Messages in flight on a connection, at most.
    pipeline: u64,
    next_sweep: u64,
    /// When the next point of the timeline is due, and the counts at the last one.
    next_second: u64,
    verified_at_second: u64,
    errors_at_second: u64,
}

/// The keys to be served in a turn.
#[derive(Debug, Default)]
struct ReadyKeys(Vec<(usize, Ready)>);

impl Handler<Entry> for ReadyKeys {
    type Act = Infallible;

    fn ready(&mut self, key: usize, _: &mut Entry, ready: Ready) -> Next<Infallible> {
        self.0.push((key, ready));
        Next::Wait
    }

    fn act(&mut self, _: &mut Reactor<Entry>, _: usize, never: Infallible) -> Next<Infallible> {
        match never {}
    }
}

impl Engine {
    pub(super) fn new(config: Config, interrupt: &Interrupt, slot: ProgressCell) -> io::Result<Self> {
        let mut reactor = Reactor::new(EVENTS_PER_TURN)?;
        let timer = Timer::new()?;
        reactor.insert(SourceFd(&timer.descriptor()), Interest::READABLE, |_| Entry::Timer)?;
        let waker = Arc::new(reactor.waker()?);
        interrupt.wakes(&waker);
        reactor.reserve(config.connections as usize);
        // Without all of its targets it is not the run that was asked for.
        let step = if config.unresolved > 0 { Step::Done } else { Step::Connect };
        let workload = workload(&config);
        let connector = Connector::new(&config, workload.retry_pause())?;
        let mut totals = Totals::new();
        for _ in 0..config.unresolved {
            totals.record_error(Phase::Resolve, ErrorName::Other, None);
        }
        Ok(Self {
            totals,
            step,
            steps: [0; Step::COUNT],
            connector,
            workload,
            timeline: Vec::new(),
            turn: Histogram::new(),
            interrupted: false,
            pattern: Pattern::new(config.seed),
            buffer: vec![0; BUFFER_BYTES].into(),
            scratch: vec![0; BUFFER_BYTES].into(),
            epoch: Instant::now(),
            now: 0,
            interrupt: interrupt.clone(),
            _waker: waker,
            slot,
            window: Window { start: 0, end: u64::MAX },
            schedule: None,
            size: config.size as u64,
            ring_size: if config.is_open_loop() { 1 } else { config.pipeline.map_or(1, |pipeline| pipeline as usize) },
            pipeline: config.in_flight_max(),
            next_sweep: 0,
            next_second: u64::MAX,
            verified_at_second: 0,
            errors_at_second: 0,
            config,
            reactor,
            ready: ReadyKeys::default(),
            timer,
        })
    }

    /// Runs until `until` is reached or passed.
    pub(super) fn run_until(&mut self, until: Step) -> io::Result<()> {
        while self.step < until && !self.interrupted {
            let timeout = self.advance()?;
            if self.step >= until {
                // What is measured at this point comes before the next step's work.
                break;
            }
            self.turn(timeout)?;
        }
        // What the last second, the drain and the end have brought.
        self.totals.end_second();
        Ok(())
    }

    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.reactor.wait(timeout)?;
        self.read_clock();
        let start = self.now;
        let mut ready = std::mem::take(&mut self.ready);
        self.reactor.serve(1, &mut ready);
        for (key, ready) in ready.0.drain(..) {
            self.serve(key, ready);
        }
        self.ready = ready;
        self.turn.record(self.now - start);
        if self.interrupt.is_set() {
            self.interrupted = true;
            self.end_all();
        }
        Ok(())
    }

    /// Takes note of what has come while nobody looked: connections that have ended. The time of a report begins here.
    pub(super) fn wake_up(&mut self) -> io::Result<()> {
        while !self.interrupted {
            self.turn(Some(Duration::ZERO))?;
            if !self.reactor.has_pending() {
                break;
            }
        }
        if self.step == Step::Idle {
            self.step = Step::Ready;
        }
        self.steps = [self.now; Step::COUNT];
        Ok(())
    }

    /// Counts anew: what was counted is reported. Connections stay what they are.
    pub(super) fn reset(&mut self) {
        self.totals.reset();
        self.schedule = None;
        self.timeline.clear();
        self.turn.clear();
        (self.verified_at_second, self.errors_at_second) = (0, 0);
    }

    /// Between `Ready` and the window: lets the first messages be due.
    pub(super) fn begin_window(&mut self) {
        if self.step != Step::Ready || self.interrupted {
            return;
        }
        self.window.start = self.now + nanoseconds(self.config.warmup);
        self.window.end =
            if self.workload.is_timed() { self.window.start + nanoseconds(self.config.duration) } else { u64::MAX };
        self.enter(Step::Warmup);
        for (_, entry) in self.reactor.iter_mut() {
            if let Entry::Client(client) = entry {
                client.messages.reported = 0;
            }
        }
        self.start_traffic(self.workload.traffic());
        // Without a warm-up it is measured from here on.
        self.change_step();
    }

    /// Behind the window.
    pub(super) fn begin_close(&mut self) {
        if !matches!(self.step, Step::Ready | Step::Idle) || self.interrupted {
            return;
        }
        self.enter(Step::Close);
        let keys = self.keys();
        self.connector.close_all(keys);
        for (_, entry) in self.reactor.iter_mut() {
            if let Entry::Client(client) = entry {
                client.enter(Stage::Finished, &mut self.connector.counts, self.now);
            }
        }
    }

    fn read_clock(&mut self) {
        self.now = nanoseconds(self.epoch.elapsed());
    }

    /// Does what its time has come for, and answers how long the turn may wait: not at all, or until the timer.
    fn advance(&mut self) -> io::Result<Option<Duration>> {
        self.read_clock();
        if self.now >= self.next_sweep {
            self.sweep();
        }
        if self.now >= self.next_second {
            self.end_second();
        }
        self.open_connections();
        self.close_connections();
        self.enqueue_due();
        self.change_step();
        let next = self.next_event();
        if next <= self.now {
            return Ok(Some(Duration::ZERO));
        }
        self.timer.arm(next, self.epoch)?;
        Ok(None)
    }

    fn enter(&mut self, step: Step) {
        self.step = step;
        self.steps[step as usize] = self.now;
        self.post_progress(None);
    }

    fn change_step(&mut self) {
        let step = self.step;
        match step {
            Step::Connect if self.workload.is_connected(&self.status()) => self.enter(Step::Ready),
            Step::Warmup if self.now >= self.window.start => {
                self.enter(Step::Measure);
                self.next_second = self.now + SECOND;
            }
            Step::Measure if self.workload.is_over(&self.status()) => self.end_window(),
            Step::Drain if self.workload.is_drained(&self.status()) => {
                if self.workload.closes_from() > Step::Drain {
                    self.count_held();
                }
                self.enter(Step::Idle);
            }
            Step::Close if self.connector.counts.open() == 0 => self.enter(Step::Done),
            _ => {}
        }
        // What follows may be due at once, but for the points at which a run is measured.
        if self.step != step && !matches!(self.step, Step::Measure | Step::Drain) {
            self.change_step();
        }
    }

    fn status(&self) -> Status<'_> {
        Status {
            step: self.step,
            now: self.now,
            window: self.window,
            counts: &self.connector.counts,
            in_flight: self.totals.in_flight,
            has_due: self.next_due().is_some(),
        }
    }

    fn start_traffic(&mut self, traffic: Traffic) {
        match traffic {
            Traffic::Nothing => {}
            Traffic::OnReply => {
                for key in self.keys() {
                    self.send_next(key);
                    self.reactor.resume(key);
                }
            }
            Traffic::Scheduled { rate, messages } => self.start_schedule(rate, messages),
        }
    }

    /// From now on, a message is due every so often, on one connection after the other.
    fn start_schedule(&mut self, rate: f64, messages: Option<u64>) {
        let mut keys = Vec::new();
        for (key, entry) in self.reactor.iter_mut() {
            if let Entry::Client(client) = entry
                && client.stage == Stage::Steady
            {
                client.assign_slot(u32::try_from(keys.len()).unwrap_or(u32::MAX));
                keys.push(key);
            }
        }
        self.schedule = Some(SendSchedule::new(self.now, rate, keys, messages, self.window));
    }

    fn next_due(&self) -> Option<u64> {
        self.schedule.as_ref()?.next_due()
    }

    fn end_window(&mut self) {
        self.window.end = self.window.end.min(self.now);
        self.end_second();
        self.next_second = u64::MAX;
        self.enter(Step::Drain);
        self.start_traffic(self.workload.last_traffic());
        if self.workload.closes_from() == Step::Drain {
            self.count_held();
        }
        // Nothing was opened at all: the ports are not this run's own, and waiting for them was in vain.
        if let Some(failure) = self.connector.no_ports.filter(|_| self.connector.counts.opened == 0) {
            self.totals.record_error(failure.phase, failure.error, failure.errno);
        }
    }

    fn count_held(&mut self) {
        let counts = &mut self.connector.counts;
        (counts.held, counts.late) = (0, 0);
        for (_, entry) in self.reactor.iter_mut() {
            if let Entry::Client(client) = entry
                && client.stage == Stage::Steady
            {
                counts.held += 1;
                counts.late += u64::from(client.is_late);
            }
        }
    }

    /// Closes as many as may be awaited at once: a million FINs overrun the queues of the kernel.
    fn close_connections(&mut self) {
        for _ in 0..CLOSES_PER_TURN {
            let Some(key) = self.connector.next_close() else { return };
            self.close(key);
        }
    }

    /// Ends everything at once: what is in flight stays unanswered.
    fn end_all(&mut self) {
        self.read_clock();
        if self.step < self.workload.closes_from() {
            self.count_held();
        }
        self.end_second();
        for key in self.keys() {
            self.abandon(key, AbandonReason::Unanswered);
            self.remove(key);
        }
        for step in self.step as usize + 1..self.steps.len() {
            self.steps[step] = self.now;
        }
        self.window.end = self.window.end.min(self.now);
    }

    fn keys(&mut self) -> Vec<usize> {
        let clients = self.reactor.iter_mut().filter(|(_, entry)| matches!(entry, Entry::Client(_)));
        clients.map(|(key, _)| key).collect()
    }

    /// Begins as many connects as are due and allowed.
    fn open_connections(&mut self) {
        for _ in 0..CONNECTS_PER_TURN {
            if self.next_connect().is_none_or(|at| at > self.now) {
                return;
            }
            let Some((number, result)) = self.connector.connect(self.now) else { return };
            self.begin(number, result);
        }
    }

    /// A connect is on its way, or could not even be begun.
    fn begin(&mut self, number: u64, begun: Result<Connecting, ConnectFailure>) {
        let Connecting { stream, pair, port } = match begun {
            Ok(connecting) => connecting,
            Err(failure) => {
                self.totals.record_error(failure.phase, failure.error, failure.errno);
                return self.connector.pause(self.now);
            }
        };
        let (now, ring_size) = (self.now, self.ring_size);
        let wrap = |stream| Entry::Client(Client::new(stream, number, pair, port, ring_size, now));
        match self.reactor.insert(stream, INTEREST, wrap) {
            Ok(_) => self.connector.counts.change(None, Some(Stage::Connecting)),
            Err(error) => {
                self.connector.sources.release(pair, port);
                self.totals.record_error(Phase::Connect, classify(&error), error.raw_os_error());
                self.connector.pause(self.now);
            }
        }
    }

    /// When the next connect is due, in nanoseconds of the run.
    fn next_connect(&self) -> Option<u64> {
        if self.workload.may_connect(&self.status()) { self.connector.next_connect() } else { None }
    }

    /// Lets every message be due whose time has come. Being noticed late is this generator's fault, and is noted.
    fn enqueue_due(&mut self) {
        while let Some((due, key)) = self.schedule.as_mut().and_then(|schedule| schedule.take_due(self.now)) {
            if due >= self.window.start {
                self.totals.lateness.record(self.now - due);
            }
            match key {
                Some(key) => {
                    self.enqueue(key, due);
                    // It is sent when the connection is next served, which is in this turn.
                    self.reactor.resume(key);
                }
                // The first message of a connection was never this one.
                None if self.workload.is_reported(Message { index: 1, due }, self.window) => {
                    self.totals.record_unsent();
                }
                None => {}
            }
        }
    }

    fn enqueue(&mut self, key: usize, due: u64) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        let message = client.enqueue(due);
        let is_reported = self.workload.is_reported(message, self.window);
        client.messages.reported += u64::from(is_reported);
        self.totals.record_due(is_reported);
    }

    /// The time of whatever comes next.
    fn next_event(&self) -> u64 {
        let step = match self.step {
            Step::Warmup => self.window.start,
            Step::Measure => self.window.end,
            Step::Connect | Step::Ready | Step::Drain | Step::Idle | Step::Close | Step::Done => u64::MAX,
        };
        let due = self.next_due();
        let close = self.connector.may_close().then_some(self.now);
        let times = [self.next_connect(), close, due, Some(step), Some(self.next_second), Some(self.next_sweep)];
        times.into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    fn serve(&mut self, key: usize, ready: Ready) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        client.notice(ready);
        if client.stage != Stage::Connecting || self.establish(key) {
            self.drive(key);
        }
    }

    /// Looks whether the handshake is done: it is once the socket knows its peer (connect(2), `EINPROGRESS`).
    fn establish(&mut self, key: usize) -> bool {
        self.read_clock();
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return false };
        let (peer, local) = match client.stream.0.take_error() {
            Ok(None) => (client.stream.0.peer_addr(), client.stream.0.local_addr()),
            Ok(Some(error)) | Err(error) => (Err(error), client.stream.0.local_addr()),
        };
        match (peer, local) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotConnected => return false,
            (Err(error), _) if is_port_taken(&error) => {
                self.try_other_port(key);
                return false;
            }
            (Err(error), _) | (_, Err(error)) => {
                self.fail(key, Phase::Connect, classify(&error), error.raw_os_error());
                return false;
            }
            // A socket that connects to a free port of its own machine may be given that very port, and echo perfectly.
            (Ok(peer), Ok(local)) if peer == local => {
                self.fail(key, Phase::Connect, ErrorName::SelfConnect, None);
                return false;
            }
            (Ok(_), Ok(_)) => {}
        }
        self.totals.connect.record(self.now - client.since);
        client.enter(Stage::Opening, &mut self.connector.counts, self.now);
        self.enqueue(key, self.now);
        true
    }

    /// Somebody else has the port that this connection was given: another, on a new socket.
    fn try_other_port(&mut self, key: usize) {
        if let Some(Entry::Client(client)) = self.reactor.remove(key) {
            self.connector.counts.change(Some(client.stage), None);
            let begun = self.connector.reconnect(client.pair, client.port);
            self.begin(client.verifier.connection(), begun);
        }
    }

    /// Sends and receives what can be, within the reads of a turn.
    fn drive(&mut self, key: usize) {
        for _ in 0..READS_PER_TURN {
            let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
            match client.send(&self.pattern, self.size, self.pipeline, &mut self.scratch) {
                Ok(0) => {}
                Ok(deferred) => {
                    let newest = client.newest(self.schedule.as_ref());
                    if newest.is_some_and(|newest| self.workload.is_reported(newest, self.window)) {
                        self.totals.messages.deferred += deferred;
                    }
                }
                Err(error) => return self.fail(key, Phase::Send, classify(&error), error.raw_os_error()),
            }
            match client.receive(&self.pattern, self.connector.counts.opened, &mut self.buffer) {
                Received::Right => {
                    self.record_replies(key);
                    self.send_next(key);
                }
                // Whole messages may have come right before the wrong byte.
                Received::Undecided => self.record_replies(key),
                Received::Blocked => return,
                Received::Wrong(fault) => {
                    self.record_replies(key);
                    return self.record_corruption(key, &fault);
                }
                Received::Ended => return self.ended(key),
                Received::Failed(error) => {
                    return self.fail(key, Phase::Receive, classify(&error), error.raw_os_error());
                }
            }
        }
        self.reactor.resume(key);
    }

    /// Notes the messages that are whole by now.
    fn record_replies(&mut self, key: usize) {
        // A stamp after each read: a turn of a thousand events lasts milliseconds.
        self.read_clock();
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        while let Some(message) = client.take_reply(self.size, self.schedule.as_ref()) {
            self.totals.in_flight -= 1;
            if self.workload.is_reported(message, self.window) {
                let latency = self.now.saturating_sub(message.due);
                client.is_late |= message.index > 0 && latency > LATE;
                self.totals.record_reply(latency, self.now < self.window.end);
            }
        }
        if client.stage == Stage::Opening && client.messages.done > 0 {
            client.enter(Stage::Steady, &mut self.connector.counts, self.now);
        }
    }

    /// In a closed loop, an answer makes the next message due, if there is one.
    fn send_next(&mut self, key: usize) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        if client.stage != Stage::Steady {
            return;
        }
        loop {
            let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
            let messages = client.messages;
            match self.workload.reaction(messages, &self.status()) {
                Reaction::Send => self.enqueue(key, self.now),
                Reaction::Close => return self.close(key),
                Reaction::Wait => return,
            }
        }
    }

    /// The other end has sent FIN.
    fn ended(&mut self, key: usize) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        let verified = client.verifier.verified();
        let between_messages = verified.is_multiple_of(self.size) && !client.verifier.is_suspicious();
        let is_over = client.stage.is_over();
        if is_over && verified == client.sent_bytes() {
            return self.remove(key);
        }
        let fault =
            client.verifier.conclude(&self.pattern, client.sent_bytes(), self.connector.counts.opened, End::Fin);
        if between_messages && !is_over {
            self.abandon(key, AbandonReason::Failed);
            self.totals.record_error(Phase::Receive, ErrorName::ClosedEarly, None);
            self.workload.record_end(ErrorName::ClosedEarly);
            self.connector.pause(self.now);
            return self.remove(key);
        }
        match fault {
            Some(fault) => self.record_corruption(key, &fault),
            None => self.remove(key),
        }
    }

    /// A call failed, or time ran out.
    fn fail(&mut self, key: usize, phase: Phase, error: ErrorName, errno: Option<i32>) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        if let Some(fault) =
            client.verifier.conclude(&self.pattern, client.sent_bytes(), self.connector.counts.opened, End::Cut)
        {
            return self.record_corruption(key, &fault);
        }
        let stage = client.stage;
        self.abandon(key, AbandonReason::Unanswered);
        self.totals.record_error(if stage.is_over() { Phase::Close } else { phase }, error, errno);
        // A connect that failed has no outcome, and what a connection ends with after the measurement takes nothing back.
        if stage != Stage::Connecting && !stage.is_over() {
            self.workload.record_end(error);
        }
        self.connector.pause(self.now);
        self.remove(key);
    }

    /// The bytes are not those that were sent.
    fn record_corruption(&mut self, key: usize, fault: &Fault) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        let finding = Finding {
            kind: fault.kind,
            connection: client.verifier.connection(),
            local: client.stream.0.local_addr().ok(),
            peer: self.connector.sources.pair(client.pair).1,
            offset: fault.offset,
        };
        self.totals.verify.wrong_bytes += fault.wrong_bytes;
        self.totals.verify.lost_bytes += fault.lost_bytes;
        self.totals.verify.extra_bytes += fault.extra_bytes;
        self.totals.record_finding(finding);
        self.totals.record_error(Phase::Verify, ErrorName::BadBytes, None);
        self.abandon(key, AbandonReason::Failed);
        self.connector.pause(self.now);
        self.remove(key);
    }

    /// Takes the outstanding messages of a connection that is to end off the books.
    fn abandon(&mut self, key: usize, reason: AbandonReason) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        while let Some(message) = client.take_oldest(self.schedule.as_ref()) {
            self.totals.in_flight -= 1;
            if self.workload.is_reported(message, self.window) {
                let is_sent = client.has_begun(message.index, self.size);
                self.totals.record_abandoned(reason, is_sent, self.now.saturating_sub(message.due));
            }
        }
    }

    /// Ends this direction, or both.
    fn close(&mut self, key: usize) {
        let Some(Entry::Client(client)) = self.reactor.get_mut(key) else { return };
        match self.config.close {
            Close::Fin => {
                client.enter(Stage::Closing, &mut self.connector.counts, self.now);
                // Where it fails the peer has reset, and the read that follows says so.
                let _ = client.stream.0.shutdown(Shutdown::Write);
                self.reactor.resume(key);
            }
            Close::Rst => {
                // Where it fails, FIN goes instead; the peer is gone then anyhow.
                let _ = SockRef::from(&client.stream.0).set_linger(Some(Duration::ZERO));
                self.remove(key);
            }
        }
    }

    fn remove(&mut self, key: usize) {
        if let Some(Entry::Client(client)) = self.reactor.remove(key) {
            self.connector.counts.change(Some(client.stage), None);
            if let Some(schedule) = &mut self.schedule {
                schedule.vacate(client.slot, key);
            }
            self.connector.sources.release(client.pair, client.port);
        }
    }

    /// Ends every connection whose time has run out.
    fn sweep(&mut self) {
        let (connect, answer) = (nanoseconds(self.config.connect_timeout), nanoseconds(self.config.timeout));
        let mut expired = Vec::new();
        for (key, entry) in self.reactor.iter_mut() {
            let Entry::Client(client) = entry else { continue };
            let (phase, deadline) = match client.stage {
                Stage::Connecting => (Phase::Connect, client.since + connect),
                Stage::Finished => continue,
                Stage::Closing => (Phase::Close, client.since + answer),
                Stage::Opening | Stage::Steady => match client.oldest(self.schedule.as_ref()) {
                    Some(message) => (Phase::Receive, message.due + answer),
                    None => continue,
                },
            };
            if deadline <= self.now {
                expired.push((key, phase));
            }
        }
        for (key, phase) in expired {
            self.fail(key, phase, ErrorName::Timeout, None);
        }
        self.next_sweep = self.now + (connect.min(answer) / 20).clamp(SECOND / 1000, SECOND / 4);
        // Connects, last messages and closes may take minutes, and only the seconds of the window tell of themselves.
        if self.step != Step::Measure {
            self.post_progress(None);
        }
    }

    /// Adds a point to the timeline, and begins a new second.
    fn end_second(&mut self) {
        if self.step != Step::Measure {
            return;
        }
        let start = self.window.start;
        let (verified, errors) = (self.totals.messages.verified, self.totals.error_count());
        // A second that is over ends where it is noticed, a little late; one that the window cuts short is its own.
        let is_over = self.now >= self.next_second;
        let t = if is_over {
            (self.now - start) / SECOND
        } else {
            (self.now.min(self.window.end) - start).div_ceil(SECOND)
        };
        if self.timeline.last().is_some_and(|point| point.t >= t) {
            return;
        }
        let point = Sample {
            t,
            rate: verified - self.verified_at_second,
            open: self.connector.counts.open(),
            errors: errors - self.errors_at_second,
            p50: self.totals.second_quantile(0.5),
            p99: self.totals.second_quantile(0.99),
        };
        self.post_progress(Some(&point));
        self.timeline.push(point);
        self.totals.end_second();
        (self.verified_at_second, self.errors_at_second) = (verified, errors);
        self.next_second = start + (t + 1) * SECOND;
    }

    fn post_progress(&mut self, point: Option<&Sample>) {
        let left = match self.step {
            Step::Warmup | Step::Measure if self.window.end < u64::MAX => {
                Some(Duration::from_nanos(self.window.end.saturating_sub(self.now)))
            }
            _ => None,
        };
        self.slot.publish(Progress {
            step: self.step,
            open: self.connector.counts.open(),
            requested: u64::from(self.config.connections),
            rate: point.map(|point| point.rate),
            p50: point.and_then(|point| point.p50),
            p99: point.and_then(|point| point.p99),
            errors: self.totals.error_count(),
            left,
        });
    }
}

/// At most a quarter of what fits, which is 146 years: sums of a few do not overflow.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
