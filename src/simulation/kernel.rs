//! A modelled kernel: what happens outside of the server, a poll that reports each edge once, and a clock.
//!
//! It also keeps the books: what the server must do follows from what the kernel has returned to it. See [`checks`](super::checks).

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use super::accepts::Backlog;
use super::client::{Client, Header, Verdict};
use super::poll::set_now;
use super::socket::Socket;
use crate::{Config, Ready};

/// How long the clock goes on when a turn that polls without waiting finds nothing.
const SPIN_STEP: Duration = Duration::from_micros(50);

/// Where clients come from: an address, its source in the sense of `max_per_source` with the prefixes 32 and 64, the same with 24 and
/// 48, and whether [`ALLOWED`] has it.
pub(super) const SOURCES: [(&str, usize, usize, bool); 8] = [
    ("10.0.0.1", 0, 0, true),
    ("::ffff:10.0.0.1", 0, 0, true),
    ("10.0.0.2", 1, 0, true),
    ("10.0.1.1", 2, 1, true),
    ("2001:db8::1", 3, 2, true),
    ("2001:db8::ffff:0:0:2", 3, 2, true),
    ("2001:db8:0:1::1", 4, 2, true),
    ("192.0.2.1", 5, 3, false),
];
pub(super) const ALLOWED: [&str; 2] = ["10.0.0.0/8", "2001:db8::/32"];
const GROUPS: usize = 6;

/// Something that happens outside of the server. Clients are numbered among the living.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    Connect {
        listener: usize,
        source: usize,
        header: Header,
    },
    Send {
        client: usize,
        length: u64,
    },
    SendUrgent {
        client: usize,
    },
    Receive {
        client: usize,
        length: u64,
    },
    HalfClose {
        client: usize,
    },
    Reset {
        client: usize,
    },
    /// The next call on the socket fails.
    Fail {
        client: usize,
        errno: i32,
    },
    /// Calls on the socket are interrupted.
    Interrupt {
        client: usize,
        calls: usize,
    },
    ShortWrites {
        client: usize,
        most: usize,
    },
    /// The poll reports what a socket is ready for though nothing has happened.
    Report {
        client: usize,
    },
    /// The next calls of accept(2) fail.
    FailAccepts {
        errno: i32,
        calls: usize,
    },
    FailRegistrations {
        calls: usize,
    },
    InterruptPolls {
        calls: usize,
    },
    /// The process does not run.
    Pass(Duration),
}

/// What the server's own counters must be.
#[derive(Debug, Default)]
pub(super) struct Books {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) by_reason: [u64; 9],
    pub(super) full: u64,
    pub(super) per_source: u64,
    pub(super) not_allowed: u64,
    pub(super) connect_faults: u64,
    pub(super) accept_errors: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) discarded: u64,
    /// Bytes that the observer was told of.
    pub(super) observed_in: u64,
    pub(super) observed_out: u64,
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Kernel {
    pub(super) config: Config,
    pub(super) started_at: Instant,
    pub(super) now: Instant,
    /// Time that has passed otherwise than in waits: the process did not run, or was slow.
    pub(super) excess: Duration,
    /// Every client, the living ones, and the ones whose socket the server has.
    pub(super) clients: Vec<Client>,
    pub(super) live: Vec<usize>,
    pub(super) held: Vec<usize>,
    pub(super) backlogs: Vec<Backlog>,
    /// Keys that were freed since the last wait.
    freed: Vec<usize>,
    /// Open connections of each source.
    pub(super) groups: [u32; GROUPS],
    pub(super) books: Books,
    /// Actions, and the number of calls of the server after which each happens.
    deferred: Vec<(usize, Action)>,
    pub(super) accept_failures: (i32, usize),
    /// The last accept failed for want of something, or was the last one of a burst in which all failed.
    pub(super) has_accept_failed: bool,
    /// Until when accepting must pause, if no connection closes before.
    pub(super) backs_off_until: Option<Instant>,
    registration_failures: usize,
    poll_interrupts: usize,
    /// The next wait does not block: the server's handle was used.
    pub(super) is_woken: bool,
    /// How long a wait lasts until something else happens, and how long each call takes.
    pub(super) patience: Duration,
    pub(super) call_time: Duration,
    /// One event reports one flag, as kqueue(2) does.
    pub(super) splits_events: bool,
    /// Every client receives its echo and ends its stream; nothing fails.
    pub(super) is_calm: bool,
    /// The server waits without a deadline, and nothing will happen.
    pub(super) is_asleep: bool,
    pub(super) is_interrupted: bool,
    /// Calls of the server in this turn; and turns in a row that did not wait and did nothing.
    pub(super) calls: usize,
    pub(super) idle_turns: usize,
    pub(super) has_polled_in_vain: bool,
    /// The caller of the turn allows a wait.
    pub(super) may_wait: bool,
    pub(super) drain_began_at: Option<Instant>,
    /// The handle has asked for a drain: the server looks at it after its next poll.
    pub(super) is_asked_to_drain: bool,
    pub(super) excess_before_drain: Duration,
    pub(super) is_stopping: bool,
    /// Clients accepted beyond what `accept_rate` allows in the time since.
    pub(super) accept_level: f64,
    pub(super) accepted_at: Option<Instant>,
    /// When the clock was read for the accepts that go on now, and for those before.
    pub(super) burst_began_at: Instant,
    pub(super) burst_before: Option<Instant>,
    pub(super) failure: Option<String>,
}

impl Kernel {
    pub(super) fn new(config: Config, listeners: usize) -> Self {
        let start = Instant::now();
        set_now(start);
        Self {
            config,
            started_at: start,
            now: start,
            excess: Duration::ZERO,
            clients: Vec::new(),
            live: Vec::new(),
            held: Vec::new(),
            backlogs: (0..listeners).map(|_| Backlog::default()).collect(),
            freed: Vec::new(),
            groups: [0; GROUPS],
            books: Books::default(),
            deferred: Vec::new(),
            accept_failures: (0, 0),
            has_accept_failed: false,
            backs_off_until: None,
            registration_failures: 0,
            poll_interrupts: 0,
            is_woken: false,
            patience: Duration::ZERO,
            call_time: Duration::ZERO,
            splits_events: false,
            is_calm: false,
            is_asleep: false,
            is_interrupted: false,
            calls: 0,
            idle_turns: 0,
            has_polled_in_vain: false,
            may_wait: true,
            drain_began_at: None,
            is_asked_to_drain: false,
            excess_before_drain: Duration::ZERO,
            is_stopping: false,
            accept_level: 0.0,
            accepted_at: None,
            burst_began_at: start,
            burst_before: None,
            failure: None,
        }
    }

    /// Notes that a promise does not hold. The first failure counts.
    pub(super) fn check(&mut self, holds: bool, message: impl FnOnce(&Self) -> String) {
        if !holds && self.failure.is_none() {
            self.failure = Some(message(self));
        }
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        set_now(self.now);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.advance(time);
        self.excess += time;
    }

    /// The server has made a call. What was to happen after it happens.
    pub(super) fn end_call(&mut self) {
        self.calls += 1;
        if !self.call_time.is_zero() {
            self.pass(self.call_time);
        }
        let mut index = 0;
        while index < self.deferred.len() {
            match &mut self.deferred[index] {
                (0, action) => {
                    let action = *action;
                    self.deferred.remove(index);
                    self.perform(action);
                }
                (calls, _) => {
                    *calls -= 1;
                    index += 1;
                }
            }
        }
    }

    pub(super) fn defer(&mut self, calls: usize, action: Action) {
        self.deferred.push((calls, action));
    }

    fn nth_live(&self, number: usize) -> Option<usize> {
        (!self.live.is_empty()).then(|| self.live[number % self.live.len()])
    }

    pub(super) fn perform(&mut self, action: Action) {
        match action {
            Action::Connect { listener, source, header } => return self.connect(listener, source, header),
            Action::FailAccepts { errno, calls } => self.accept_failures = (errno, calls),
            Action::FailRegistrations { calls } => self.registration_failures = calls,
            Action::InterruptPolls { calls } => self.poll_interrupts = calls,
            Action::Pass(time) => self.pass(time),
            _ => {}
        }
        let (Action::Send { client, .. }
        | Action::SendUrgent { client }
        | Action::Receive { client, .. }
        | Action::HalfClose { client }
        | Action::Reset { client }
        | Action::Fail { client, .. }
        | Action::Interrupt { client, .. }
        | Action::ShortWrites { client, .. }
        | Action::Report { client }) = action
        else {
            return;
        };
        let Some(id) = self.nth_live(client) else { return };
        let now = self.now;
        let client = &mut self.clients[id];
        let socket = &mut client.socket;
        match action {
            Action::Send { length, .. } => {
                socket.send(length);
                if socket.sent > socket.read {
                    client.unread_since.get_or_insert(now);
                }
            }
            // What is urgent does not come back: a header has none.
            Action::SendUrgent { .. } if socket.header.is_empty() => socket.send_urgent(),
            Action::Receive { length, .. } => socket.receive(length),
            Action::HalfClose { .. } => socket.half_close(),
            Action::Reset { .. } => socket.reset(),
            Action::Fail { errno, .. } if client.verdict.is_some() => socket.fail(errno),
            Action::Interrupt { calls, .. } => socket.interrupts = calls,
            Action::ShortWrites { most, .. } => socket.write_max = most.max(1),
            Action::Report { .. } => socket.has_edge = true,
            _ => {}
        }
    }

    fn connect(&mut self, listener: usize, source: usize, header: Header) {
        let listener = listener % self.backlogs.len();
        let id = self.clients.len();
        // An address of its own.
        if self.backlogs[listener].is_closed || id >= 60_000 {
            return;
        }
        let mut socket = Socket::new(id);
        if self.config.proxy_protocol {
            socket.header = super::transport::header_bytes(header, id);
        }
        self.clients.push(Client::new(socket, source, header, self.now, self.excess));
        self.live.push(id);
        self.backlogs[listener].waiting.push_back(id);
        self.backlogs[listener].has_edge = true;
    }

    /// See [`Poll::poll`](super::poll::Poll::poll).
    pub(super) fn poll(
        &mut self,
        timeout: Option<Duration>,
        capacity: usize,
        reports: &mut Vec<(usize, Ready)>,
    ) -> io::Result<()> {
        self.freed.clear();
        if self.is_asked_to_drain {
            self.begin_drain();
        }
        (self.is_interrupted, self.has_polled_in_vain) = (self.poll_interrupts > 0, false);
        if self.is_interrupted {
            self.poll_interrupts -= 1;
            return Err(ErrorKind::Interrupted.into());
        }
        if self.is_calm {
            self.calm();
        }
        self.collect(capacity, reports);
        let waits = timeout != Some(Duration::ZERO);
        if reports.is_empty() && waits {
            self.wait(timeout);
            self.collect(capacity, reports);
            self.is_interrupted = reports.is_empty();
        } else if reports.is_empty() && !self.config.spin.is_zero() {
            self.advance(SPIN_STEP);
        }
        self.has_polled_in_vain = !waits && reports.is_empty();
        self.end_call();
        self.calls = 0;
        if self.is_interrupted { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    /// Nothing is ready: time passes, up to a millisecond beyond the timeout, or until something happens.
    fn wait(&mut self, timeout: Option<Duration>) {
        let Some(timeout) = timeout else {
            self.is_asleep = self.is_calm;
            return self.advance(self.patience);
        };
        let rounded = Duration::from_millis(u64::try_from(timeout.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX));
        let patience = if self.is_calm { Duration::MAX } else { self.patience };
        let waited = rounded.min(patience);
        self.advance(waited);
        self.excess += waited.saturating_sub(timeout);
    }

    /// Every client receives everything, sends a whole header if it has begun one, and ends its stream.
    fn calm(&mut self) {
        for index in 0..self.live.len() {
            let client = &mut self.clients[self.live[index]];
            client.socket.receive(u64::MAX);
            client.socket.half_close();
        }
    }

    fn collect(&mut self, capacity: usize, reports: &mut Vec<(usize, Ready)>) {
        if std::mem::take(&mut self.is_woken) {
            reports.push((usize::MAX, Ready::READABLE));
        }
        for backlog in &mut self.backlogs {
            if let Some(token) = backlog.token
                && reports.len() < capacity
                && std::mem::take(&mut backlog.has_edge)
                && !backlog.waiting.is_empty()
            {
                reports.push((token, Ready::READABLE));
            }
        }
        // What is left is reported by a later poll: what was reported comes last then.
        let mut reported = 0;
        for index in 0..self.held.len() {
            let client = &mut self.clients[self.held[index]];
            let Some(token) = client.token else { continue };
            if reports.len() >= capacity {
                break;
            }
            reported = index + 1;
            let ready = client.socket.report();
            if ready.is_none() {
                continue;
            }
            let rest = [Ready::READABLE, Ready::WRITABLE].into_iter().all(|flag| (ready | flag) == ready);
            if self.splits_events && rest && reports.len() + 1 < capacity {
                reports.push((token, Ready::WRITABLE));
            }
            reports.push((token, ready));
        }
        let held = self.held.len().max(1);
        self.held.rotate_left(reported % held);
    }

    fn begin_drain(&mut self) {
        if self.drain_began_at.is_none() {
            (self.drain_began_at, self.excess_before_drain) = (Some(self.now), self.excess);
            for &id in &self.held {
                let client = &mut self.clients[id];
                client.sent_before_drain = client.socket.sent;
            }
        }
    }

    /// Ends what fails and what was to happen.
    pub(super) fn begin_calm(&mut self) {
        self.is_calm = true;
        self.deferred.clear();
        self.accept_failures.1 = 0;
        (self.registration_failures, self.poll_interrupts) = (0, 0);
        self.patience = Duration::from_secs(3600);
    }

    /// Returns whether nothing is left to do but to end the server: in order, or at any time.
    pub(super) fn is_over(&mut self, in_order: bool) -> bool {
        // Stalled connections may be all that may be open.
        let is_waiting = !self.is_full() && self.backlogs.iter().any(|backlog| !backlog.waiting.is_empty());
        let has_ended = |&id: &usize| !self.clients[id].is_plain() && !self.clients[id].is_delayed_at_most();
        let is_empty = !is_waiting && self.held.iter().all(has_ended);
        if self.is_asleep && in_order {
            self.check(is_empty, |kernel| format!("it sleeps for good, and has something to do: {kernel:?}"));
        }
        is_empty || self.is_asleep || !in_order
    }

    pub(super) fn register(&mut self, id: usize, token: usize) -> io::Result<()> {
        if self.registration_failures > 0 {
            self.registration_failures -= 1;
            self.clients[id].verdict = Some(Verdict::Dropped);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let is_taken = self.held.iter().any(|&other| other != id && self.clients[other].token == Some(token))
            || self.backlogs.iter().any(|backlog| backlog.token == Some(token));
        self.check(!is_taken, |_| format!("key {token} was given twice"));
        let is_freed = self.freed.contains(&token);
        self.check(!is_freed, |_| format!("key {token} was given again in the turn that freed it"));
        let client = &mut self.clients[id];
        client.token = Some(token);
        client.socket.has_edge = true;
        Ok(())
    }

    /// The server has closed a socket.
    pub(super) fn close(&mut self, id: usize) {
        self.freed.extend(self.clients[id].token.take());
        self.held.retain(|&held| held != id);
        self.live.retain(|&live| live != id);
        self.backs_off_until = None;
    }

    /// Returns the client that is registered under `key`.
    pub(super) fn client_at(&mut self, key: usize) -> Option<&mut Client> {
        let id = self.held.iter().copied().find(|&id| self.clients[id].token == Some(key))?;
        self.clients.get_mut(id)
    }
}
