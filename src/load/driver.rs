//! Serves the connections of a run: completes their handshakes, sends, receives, and records each message and error.

mod ending;
mod faulted;
mod handshake;

use std::convert::Infallible;
use std::io;
use std::net::Shutdown;
use std::ops::{ControlFlow, Range};
use std::time::Duration;

use socket2::SockRef;

use super::backlogs::{Backlogs, Waiting};
use super::breakdown::Breakdown;
use super::client::{BUFFER_BYTES, Client, Message, Received};
use super::config::{Close, Config};
use super::connector::Connector;
use super::error::{Phase, classify};
use super::faulted::{FaultedClient, Faults};
use super::mode::{Reaction, Status, Traffic, Workload, new_workload};
use super::pattern::Pattern;
use super::pauses::Pauses;
use super::progress::Step;
use super::proxy_protocol::ProxyVersion;
use super::reconnects::Reconnects;
use super::schedule::{Due, SendSchedule, Window};
use super::sizes::Sizes;
use super::sources::{ConnectFailure, Connecting};
use super::stage::Stage;
use super::timer::{Clock, SECOND, nanoseconds};
use super::totals::Totals;
use crate::reactor::{Handler, INTEREST, Next, Reactor};
use crate::ready::Ready;

/// Maximum number of reads of one connection in a turn.
const READS_PER_TURN: usize = 16;
/// In `hold`, a reply that takes longer is late.
const LATE: u64 = SECOND;

/// The value under a key of the reactor.
#[derive(Debug)]
pub(super) enum Registered {
    Timer,
    Client(Client),
    Faulted(Box<FaultedClient>),
}

/// Why a connection leaves the reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It has ended.
    Ended,
    /// Its port was taken: a connect from another port replaces it.
    PortTaken,
    /// The address has not accepted: a connect to the target's next one, in this pair, replaces it.
    NextAddress(u32),
}

/// What becomes of a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Remove(Removal),
    /// A rule of a fault chose it: it is not measured, and stays registered.
    BeginFault,
}

/// The state that all connections share.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) clock: Clock,
    pub(super) step: Step,
    pub(super) window: Window,
    pub(super) schedule: Option<SendSchedule>,
    /// No connection was there when the window began: all of its messages are unsent, and it ends at once.
    pub(super) has_no_connection: bool,
    /// The keys of the connections that are still to send their first messages of a closed loop.
    pub(super) starting: Range<usize>,
    pub(super) pauses: Pauses,
    pub(super) workload: Box<dyn Workload>,
    pub(super) connector: Connector,
    pub(super) backlogs: Backlogs,
    pub(super) reconnects: Reconnects,
    pub(super) faults: Faults,
    pub(super) totals: Totals,
    pub(super) breakdown: Breakdown,
    /// When a connection was last closed, and not given up.
    pub(super) last_closed: u64,
    pub(super) sizes: Sizes,
    /// Maximum number of messages in flight on a connection.
    pipeline: u64,
    /// Number of due times that a connection keeps, or as many as it has messages in flight.
    ring_size: Option<usize>,
    connect_timeout: u64,
    timeout: u64,
    close: Close,
    proxy_protocol: Option<ProxyVersion>,
    pattern: Pattern,
    buffer: Box<[u8]>,
    scratch: Box<[u8]>,
}

impl Driver {
    /// # Errors
    ///
    /// - The errors of [`Connector::new`].
    pub(super) fn new(config: &Config) -> io::Result<Self> {
        let workload = new_workload(config);
        let (mut connector, faults) = (Connector::new(config, workload.retry_pause())?, Faults::new(config));
        connector.counts.exclude(faults.count_chosen(config));
        let pipeline = config.in_flight_max();
        Ok(Self {
            clock: Clock::start(),
            step: Step::Connect,
            window: Window { start: 0, end: u64::MAX },
            schedule: None,
            has_no_connection: false,
            starting: 0..0,
            pauses: Pauses::new(nanoseconds(config.connect_timeout.max(config.timeout))),
            workload,
            breakdown: Breakdown::new(&connector.sources),
            connector,
            backlogs: Backlogs::default(),
            reconnects: Reconnects::new(config),
            faults,
            totals: Totals::new(nanoseconds(config.timeout)),
            last_closed: 0,
            sizes: config.sizes(),
            pipeline,
            ring_size: config.due_times_max(),
            connect_timeout: nanoseconds(config.connect_timeout),
            timeout: nanoseconds(config.timeout),
            close: config.close,
            proxy_protocol: config.proxy_protocol,
            pattern: Pattern::new(config.seed),
            buffer: vec![0; BUFFER_BYTES].into(),
            scratch: vec![0; BUFFER_BYTES].into(),
        })
    }

    pub(super) fn status(&self) -> Status<'_> {
        Status {
            step: self.step,
            now: self.clock.now(),
            window: self.window,
            counts: &self.connector.counts,
            in_flight: self.totals.in_flight,
            has_due: !self.starting.is_empty()
                || self.schedule.as_ref().is_some_and(SendSchedule::has_next)
                || self.reconnects.has_open(),
        }
    }

    /// Returns whether connections of a run that connects nothing are still to be recorded.
    pub(super) fn has_arrivals_without_connection(&self) -> bool {
        self.has_no_connection && self.connector.arrivals.as_ref().is_some_and(|arrivals| arrivals.next_due().is_some())
    }

    /// Returns whether the window is over.
    pub(super) fn is_over(&self) -> bool {
        let status = self.status();
        let is_recorded = !status.has_due && !self.has_arrivals_without_connection();
        self.workload.is_over(&status) || self.has_no_connection && is_recorded
    }

    /// Returns when a window ends that is over: now, or without a connection with its last message.
    pub(super) fn end_of_traffic(&self) -> u64 {
        if self.has_no_connection {
            self.schedule.as_ref().map_or(u64::MAX, SendSchedule::end)
        } else {
            self.clock.now()
        }
    }

    /// Returns when the next message of the schedule is due. Without a connection, none waits for its time.
    pub(super) fn next_due(&self) -> Option<u64> {
        let due = self.schedule.as_ref()?.next_due()?;
        Some(if self.has_no_connection { 0 } else { due })
    }

    /// Takes the next message of the schedule if it is due.
    pub(super) fn take_due(&mut self) -> Option<Due> {
        let now = if self.has_no_connection { u64::MAX } else { self.clock.now() };
        self.schedule.as_mut()?.take_due(now)
    }

    /// Registers a connect that was due at `due` and has begun, or records why it could not begin.
    pub(super) fn begin(
        &mut self,
        reactor: &mut Reactor<Registered>,
        number: u64,
        due: u64,
        result: Result<Connecting, ConnectFailure>,
    ) {
        let (now, ring_size) = (self.clock.now(), self.ring_size);
        let failure = match result {
            Ok(Connecting { stream, pair, port }) => {
                let wrap = |stream| Registered::Client(Client::new(stream, number, pair, port, ring_size, due, now));
                match reactor.insert(stream, INTEREST, wrap) {
                    Ok(key) => {
                        self.reconnects.set_key(number, key);
                        if self.connector.sources.is_unix(pair) {
                            self.backlogs.push(Waiting { pair, key, connection: number });
                        }
                        return self.connector.counts.change(None, Some(Stage::Connecting));
                    }
                    Err(error) => {
                        self.connector.sources.release(pair, port);
                        let errno = error.raw_os_error();
                        ConnectFailure { phase: Phase::Connect, error: classify(&error), errno }
                    }
                }
            }
            Err(failure) => failure,
        };
        let not_begun = if failure.is_lasting() { self.connector.give_up() } else { 0 };
        self.record_connect_failure(failure, 1 + not_begun, due);
        self.reconnects.retry(number, now);
    }

    /// Begins to open a connection anew, if one is down.
    pub(super) fn reopen(&mut self, reactor: &mut Reactor<Registered>) {
        let now = self.clock.read();
        let Some(outage) = self.reconnects.take_next(now) else { return };
        let (number, result) = self.connector.connect_anew(outage.pair);
        self.reconnects.attempt(number, outage);
        self.begin_again(reactor, number, now, result);
    }

    /// Registers a connect that replaces another and was due at `due`, or records why it could not begin: other pairs may still have a
    /// port.
    fn begin_again(
        &mut self,
        reactor: &mut Reactor<Registered>,
        number: u64,
        due: u64,
        result: Result<Connecting, ConnectFailure>,
    ) {
        match result {
            Ok(connecting) => self.begin(reactor, number, due, Ok(connecting)),
            Err(failure) => {
                self.record_connect_failure(failure, 1, due);
                self.reconnects.retry(number, self.clock.now());
            }
        }
    }

    /// Records connects that failed, of which the first was due at `due`.
    fn record_connect_failure(&mut self, failure: ConnectFailure, count: u64, due: u64) {
        let now = self.clock.now();
        self.totals.record_errors(failure.phase, failure.error, failure.errno, count, now);
        self.connector.pause(now);
        if self.connector.arrivals.is_some() {
            self.record_unsent(due, 1);
        }
    }

    /// Makes the next message of a connection due at `due`.
    pub(super) fn enqueue(&mut self, client: &mut Client, due: u64) {
        let message = client.enqueue(due);
        let is_reported = self.workload.is_reported(message, self.window);
        client.messages.reported += u64::from(is_reported);
        self.totals.record_due(due, is_reported);
    }

    /// Records `count` messages that are due from `due` on, within a tick, on connections that have ended or could not connect.
    pub(super) fn record_unsent(&mut self, due: u64, count: u64) {
        if self.has_no_connection {
            // All messages of a window come in one turn, in order: one whose age is known now needs no memory.
            self.totals.expire_lost(due, &mut self.breakdown);
        }
        // The first message of a connection is never on a schedule.
        if self.workload.is_reported(Message { index: 1, due }, self.window) {
            self.totals.record_unsent(due, count);
        }
    }

    /// Records how late `count` connections of an open loop are now, which are due from `due` on, within a tick.
    pub(super) fn record_connect_lateness(&mut self, due: u64, count: u64) {
        if due >= self.window.start {
            self.totals.record_lateness(due, self.clock.now(), count);
        }
    }

    /// Records a connection of an open loop that waits because the maximum is open or connecting.
    pub(super) fn record_connect_deferred(&mut self, due: u64) {
        if due >= self.window.start {
            self.totals.record_deferred(due);
        }
    }

    /// Asks the mode what a steady connection does next, and enqueues messages or closes it.
    pub(super) fn send_next(&mut self, client: &mut Client) -> ControlFlow<Removal> {
        if client.stage != Stage::Steady {
            return ControlFlow::Continue(());
        }
        match self.workload.reaction(client.messages, &self.status()) {
            Reaction::Send(count) => {
                for _ in 0..count {
                    self.enqueue(client, self.clock.now());
                }
                ControlFlow::Continue(())
            }
            Reaction::Close => self.close(client),
            Reaction::Wait => ControlFlow::Continue(()),
        }
    }

    /// Sends FIN, after which the connection waits for the peer's, or closes with RST.
    pub(super) fn close(&mut self, client: &mut Client) -> ControlFlow<Removal> {
        match self.close {
            Close::Fin => {
                client.enter(Stage::Closing, &mut self.connector.counts, self.clock.now());
                // It fails only if the peer has reset the connection; the next read returns that.
                let _ = client.stream.0.shutdown(Shutdown::Write);
                ControlFlow::Continue(())
            }
            Close::Rst => {
                // If it fails, FIN is sent instead.
                let _ = SockRef::from(&client.stream.0).set_linger(Some(Duration::ZERO));
                self.last_closed = self.clock.now();
                ControlFlow::Break(Removal::Ended)
            }
        }
    }

    /// Records the latency of the lost messages, because the measurement has ended.
    pub(super) fn end_measurement(&mut self) {
        let end = self.measurement_end();
        // The messages of a window without a connection have the ages that they would have at its end.
        let end = if self.has_no_connection { end } else { end.min(self.clock.now()) };
        self.totals.end_measurement(end, &mut self.breakdown);
    }

    /// Returns when the measurement ends: with the window, or after the last messages that follow it, which is not known before.
    fn measurement_end(&self) -> u64 {
        if self.workload.last_traffic() == Traffic::Nothing { self.window.end } else { u64::MAX }
    }

    /// Removes a connection from the reactor, and replaces it if its port was taken.
    pub(super) fn remove(&mut self, reactor: &mut Reactor<Registered>, key: usize, removal: Removal) {
        let client = match reactor.remove(key) {
            Some(Registered::Client(client)) => client,
            Some(Registered::Faulted(client)) => return self.connector.sources.release(client.pair, client.port),
            _ => return,
        };
        self.connector.counts.change(Some(client.stage), None);
        if let Some(schedule) = &mut self.schedule {
            schedule.vacate(client.slot, key);
        }
        match removal {
            Removal::Ended => {
                self.connector.sources.release(client.pair, client.port);
                self.reconnects.retry(client.verifier.connection(), self.clock.now());
            }
            Removal::PortTaken => {
                self.clock.read();
                let result = self.connector.reconnect(client.pair, client.port);
                self.begin_again(reactor, client.verifier.connection(), client.connect_due(), result);
            }
            Removal::NextAddress(pair) => {
                self.connector.sources.release(client.pair, client.port);
                self.clock.read();
                let result = self.connector.connect_from(pair);
                self.begin_again(reactor, client.verifier.connection(), client.connect_due(), result);
            }
        }
    }

    /// Sends and receives until the socket blocks, at most [`READS_PER_TURN`] times.
    fn drive(&mut self, client: &mut Client) -> ControlFlow<Removal, Next<Action>> {
        if client.stage == Stage::Connecting {
            if !self.establish(client)? {
                return ControlFlow::Continue(Next::Wait);
            }
            if self.faults.chooses(client.verifier.connection()) {
                return ControlFlow::Continue(Next::Act(Action::BeginFault));
            }
            self.begin_messages(client);
        }
        for _ in 0..READS_PER_TURN {
            if let Err(error) = self.send(client) {
                return ControlFlow::Break(self.end_after_failed_send(client, &error));
            }
            match client.receive(&self.pattern, self.connector.numbers_end(), &mut self.buffer) {
                Received::Right => {
                    self.record_replies(client);
                    self.send_next(client)?;
                }
                // Whole messages may precede the wrong byte.
                Received::Undecided => self.record_replies(client),
                Received::Blocked => return ControlFlow::Continue(Next::Wait),
                Received::Wrong(corruption) => {
                    self.record_replies(client);
                    return ControlFlow::Break(self.record_corruption(client, &corruption));
                }
                Received::Ended => return ControlFlow::Break(self.record_end_of_stream(client)),
                Received::Failed(error) => {
                    let removal = self.fail(client, Phase::Receive, classify(&error), error.raw_os_error());
                    return ControlFlow::Break(removal);
                }
            }
        }
        ControlFlow::Continue(Next::Again)
    }

    /// Sends what is due, as far as the pipeline and the socket allow.
    fn send(&mut self, client: &mut Client) -> io::Result<()> {
        while client.send(&self.pattern, &self.sizes, self.pipeline, &mut self.scratch)? {
            if self.schedule.is_some() {
                // The clock is read after each write(2): before it, the generator's own delay would be the server's.
                self.clock.read();
                let begun = client.take_begun(&self.sizes);
                self.record_lateness(client, begun);
            }
        }
        let deferred = client.take_deferred(&self.sizes);
        if !deferred.is_empty() {
            self.record_deferred(client, deferred);
        }
        Ok(())
    }

    /// Records how late scheduled messages are now.
    fn record_lateness(&mut self, client: &Client, messages: Range<u64>) {
        let now = self.clock.now();
        for index in messages {
            let due = client.message(index, self.schedule.as_ref()).due;
            if due >= self.window.start {
                self.totals.record_lateness(due, now, 1);
            }
        }
    }

    /// Records messages that wait because the pipeline or the socket is full. That is the server's doing: their lateness ends here.
    #[cold]
    fn record_deferred(&mut self, client: &Client, messages: Range<u64>) {
        for index in messages.clone() {
            let message = client.message(index, self.schedule.as_ref());
            if self.workload.is_reported(message, self.window) {
                self.totals.record_deferred(message.due);
            }
        }
        if self.schedule.is_some() {
            self.record_lateness(client, messages);
        }
    }

    /// Ends the outage that a verified connection was opened for, and gives it the place in the schedule of the one that it replaces.
    fn continue_schedule(&mut self, client: &mut Client, now: u64) {
        if let Some(outage) = self.reconnects.recover(client.verifier.connection(), now)
            && let Some(schedule) = &mut self.schedule
        {
            client.assign_slot(outage.slot, schedule.occupy(outage.slot, outage.key));
        }
    }

    /// Records the messages that were received completely.
    fn record_replies(&mut self, client: &mut Client) {
        // The clock is read after each read(2), because a turn of a thousand events lasts milliseconds.
        let now = self.clock.read();
        let is_measuring = matches!(self.step, Step::Warmup | Step::Measure);
        let is_in_window = is_measuring && (self.window.start..self.window.end).contains(&now);
        while let Some(message) = client.take_reply(&self.sizes, self.schedule.as_ref()) {
            self.totals.in_flight -= 1;
            let is_reported = self.workload.is_reported(message, self.window);
            // The rate has the replies to messages of the warm-up too, which are not reported.
            if is_in_window && (is_reported || !self.workload.only_verifies(message)) {
                self.totals.record_arrival(now);
            }
            if is_reported {
                let latency = now.saturating_sub(message.due);
                client.is_late |= message.index > 0 && latency > LATE;
                let is_first = self.workload.is_first(message);
                self.totals.record_reply(message.due, latency, is_first);
                self.breakdown.record_reply(client.pair, latency, is_first);
            }
        }
        if client.stage == Stage::Opening && client.messages.done > 0 {
            client.enter(Stage::Steady, &mut self.connector.counts, now);
            self.backlogs.hasten(client.pair);
            self.breakdown.record_verified(client.pair);
            self.continue_schedule(client, now);
        } else if !is_measuring && client.stage == Stage::Steady {
            client.since = now;
        }
    }
}

impl Handler<Registered> for Driver {
    type Act = Action;

    fn ready(&mut self, key: usize, registered: &mut Registered, ready: Ready) -> Next<Action> {
        let client = match registered {
            Registered::Client(client) => client,
            Registered::Faulted(client) => return self.drive_faulted(key, client, ready),
            // The timer ended the wait, which is all that it is for.
            Registered::Timer => return Next::Wait,
        };
        client.notice(ready);
        match self.drive(client) {
            ControlFlow::Continue(next) => next,
            ControlFlow::Break(removal) => Next::Act(Action::Remove(removal)),
        }
    }

    fn act(&mut self, reactor: &mut Reactor<Registered>, key: usize, action: Action) -> Next<Infallible> {
        match action {
            Action::Remove(removal) => {
                self.last_closed = self.clock.now();
                self.remove(reactor, key, removal);
            }
            Action::BeginFault => self.begin_fault(reactor, key),
        }
        Next::Wait
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;
    use crate::socket_address::AnyAddress;

    /// Together with its key in the schedule, in the lists of the reactor and of the connector, and its port, a held connection takes less
    /// than 256 bytes.
    #[test]
    fn a_connection_takes_at_most_192_bytes_of_the_slab() {
        assert!(size_of::<Registered>() <= 192, "{} bytes", size_of::<Registered>());
    }

    /// Returns a driver with one client, whose Unix socket is open and not connected.
    fn with_client(change: impl FnOnce(&mut Config)) -> (Driver, Client) {
        let mut config = Config::new(["unix:/nonexistent".parse::<AnyAddress>().unwrap()]);
        change(&mut config);
        let mut driver = Driver::new(&config).unwrap();
        let (number, connecting) = driver.connector.connect(0).unwrap();
        let Connecting { stream, pair, port } = connecting.unwrap();
        driver.connector.counts.change(None, Some(Stage::Connecting));
        let client = Client::new(stream, number, pair, port, driver.ring_size, 0, 0);
        (driver, client)
    }

    #[test]
    fn pauses_of_the_generator_lengthen_a_timeout() {
        let (mut driver, client) = with_client(|config| config.connect_timeout = Duration::from_nanos(1));
        assert_eq!(driver.expired(&client), None);
        while driver.clock.read() == 0 {}
        assert_eq!(driver.expired(&client), Some(Phase::Connect));
        driver.pauses.record(0, 3600 * SECOND);
        assert_eq!(driver.expired(&client), None);
    }

    #[test]
    fn a_place_in_a_backlog_is_that_of_one_connection_while_it_connects() {
        let (mut driver, mut client) = with_client(|_| {});
        let waiting = Waiting { pair: client.pair, key: 0, connection: client.verifier.connection() };
        let another = Waiting { connection: waiting.connection + 1, ..waiting };
        assert_eq!(driver.connect_unix(&mut client, another), ControlFlow::Continue(false));
        client.enter(Stage::Opening, &mut driver.connector.counts, 0);
        assert_eq!(driver.connect_unix(&mut client, waiting), ControlFlow::Continue(false));
        assert_eq!(driver.totals.error_count(), 0);
    }
}
