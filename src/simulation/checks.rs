//! What the server promises, checked at each of its calls, at each event of its observer, and after each turn.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::client::{Header, Last, Verdict};
use super::kernel::Kernel;
use crate::fault::{Connect, Effect, Kind};
use crate::{CloseReason, Peer, Stats, Turn};

/// How long a PROXY header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting backs off.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a connection is silent in a drain before it gets FIN.
const DRAIN_SILENCE: Duration = Duration::from_millis(100);
/// How late a timer may be apart from what made the process late.
const LATENESS: Duration = Duration::from_millis(5);
/// Turns in a row without a wait and without a call. More are a busy loop: the hand alone may take a few.
const IDLE_TURNS_MAX: usize = 8;
const BAD_HEADER: CloseReason = CloseReason::Failed(ErrorKind::InvalidData);

impl Kernel {
    pub(super) fn read(&mut self, id: usize, buffer: &mut [u8]) -> io::Result<usize> {
        self.count_header(id);
        let client = &mut self.clients[id];
        let result = client.socket.read(buffer);
        client.is_served = true;
        match &result {
            Ok(0) => client.last = Last::EndOfStream,
            Ok(_) if client.socket.sent == client.socket.read => client.unread_since = None,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => client.unread_since = None,
            Err(error) => client.last = Last::Failed(error.kind()),
        }
        client.reads += usize::from(!matches!(&result, Err(error) if error.kind() == ErrorKind::Interrupted));
        if let Ok(length @ 1..) = result {
            (client.moved_at, client.excess) = (self.now, self.excess);
            self.books.bytes_in += length as u64;
            if client.has_fin {
                self.books.discarded += length as u64;
            }
        }
        // Two events of one source are two reasons to read.
        let (reads, most) = (client.reads, self.config.reads_per_turn + usize::from(self.splits_events));
        let is_plain = client.is_plain();
        self.check(!is_plain || reads <= most, |_| format!("{reads} reads of client {id} in a turn"));
        self.end_call();
        result
    }

    pub(super) fn write(&mut self, id: usize, data: &[u8]) -> io::Result<usize> {
        let client = &mut self.clients[id];
        let result = client.socket.write(data);
        client.is_served = true;
        match &result {
            Ok(length) => {
                self.books.bytes_out += *length as u64;
                (client.moved_at, client.excess) = (self.now, self.excess);
                client.is_kept = client.is_kept && client.pending() > 0;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                client.is_kept = client.is_plain() && client.pending() > 0;
            }
            Err(error) => client.last = Last::Failed(error.kind()),
        }
        let is_right = client.changes_bytes() || client.socket.is_faithful;
        self.check(is_right, |kernel| format!("client {id} gets a wrong byte: {:?}", kernel.clients[id]));
        self.end_call();
        result
    }

    pub(super) fn peek(&mut self, id: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let client = &mut self.clients[id];
        let result = client.socket.peek(buffer);
        client.is_served = true;
        match &result {
            Ok(0) => client.last = Last::EndOfStream,
            Err(error) if !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                client.last = Last::Failed(error.kind());
            }
            _ => {}
        }
        self.end_call();
        result
    }

    /// Counts what the server has read from the descriptor itself: a PROXY header, and nothing that follows.
    fn count_header(&mut self, id: usize) {
        let client = &mut self.clients[id];
        let (Some(descriptor), 1..) = (&client.descriptor, client.peeked) else { return };
        let length = std::mem::take(&mut client.peeked) - super::transport::drain(descriptor);
        if length > 0 {
            client.has_header = true;
            client.socket.read += length as u64;
        }
        let header = client.socket.header.len();
        let is_right = length == 0 || length == header && client.header != Header::Bad;
        self.check(is_right, |_| format!("{length} bytes of a header of {header} were taken"));
    }

    /// The server sends FIN.
    pub(super) fn shutdown(&mut self, id: usize) {
        let client = &self.clients[id];
        let is_closing = client.last != Last::Nothing || client.closed.is_some();
        let is_fault = client.rules.iter().any(|rule| matches!(rule.effect, Effect::Fin(_)));
        if let Some(began_at) = self.drain_began_at
            && !is_closing
            && !is_fault
        {
            let silent = self.now - client.moved_at.max(began_at);
            let pending = if client.is_plain() { client.pending() } else { 0 };
            let missed = client.sent_before_drain.saturating_sub(client.socket.read);
            let is_served = client.has_header || !self.config.proxy_protocol;
            let waits = client.unread_since.map(|at| self.now - at).filter(|_| is_served);
            self.check(silent >= DRAIN_SILENCE, |_| format!("FIN to client {id} after a silence of {silent:?}"));
            self.check(pending == 0, |_| format!("FIN to client {id} with {pending} bytes pending"));
            self.check(missed == 0 || !is_served, |_| format!("FIN to client {id} before {missed} bytes were read"));
            let is_late =
                waits.is_some_and(|waits| waits > DRAIN_SILENCE + self.excess.saturating_sub(self.clients[id].excess));
            self.check(!is_late, |_| format!("FIN to client {id}, whose input waits for {waits:?}"));
        }
        // A stream that is not a TCP socket is shut down before each close too.
        self.clients[id].has_fin = self.drain_began_at.is_some() || is_fault;
        self.end_call();
    }

    /// The server has dropped a stream.
    pub(super) fn drop_stream(&mut self, id: usize, is_reset: bool) {
        self.count_header(id);
        let (is_proxied, source) = (self.config.proxy_protocol, self.announced_source(id));
        let client = &self.clients[id];
        let mut verdict = client.verdict.unwrap_or(Verdict::Served);
        if is_proxied && !client.is_opened && client.has_header {
            verdict = self.admission(source);
        }
        let (is_opened, closed) = (client.is_opened, client.closed);
        match verdict {
            Verdict::Served => {}
            Verdict::Dropped => self.books.accept_errors += 1,
            Verdict::NotAllowed => self.books.not_allowed += 1,
            Verdict::PerSource => self.books.per_source += 1,
            Verdict::Full => self.books.full += 1,
            Verdict::Fault => self.books.connect_faults += 1,
        }
        let describe = |kernel: &Self| format!("{verdict:?}, reset {is_reset}: {:?}", kernel.clients[id]);
        self.check(is_opened == (verdict == Verdict::Served), describe);
        self.check(is_opened == closed.is_some(), describe);
        let must_reset = match (verdict, closed) {
            (Verdict::Dropped, _) | (_, Some(CloseReason::EndOfStream | CloseReason::Idle | CloseReason::Drained)) => {
                Some(false)
            }
            (Verdict::Served, Some(CloseReason::Stalled)) if self.clients[id].last == Last::Nothing => Some(true),
            (Verdict::Served, Some(reason)) if reason == BAD_HEADER => Some(true),
            (Verdict::Served, _) => None,
            _ => Some(true),
        };
        self.check(must_reset.is_none_or(|must| must == is_reset), describe);
        self.close(id);
        self.end_call();
    }

    /// Returns where a client comes from, after its PROXY header.
    fn announced_source(&self, id: usize) -> usize {
        let client = &self.clients[id];
        match client.header {
            Header::V1(source) | Header::V2(source) if client.has_header => source,
            _ => client.source,
        }
    }

    /// The observer was told that a connection is open.
    pub(super) fn open(&mut self, peer: Peer) {
        let id = usize::from(peer.address.port()) - 1;
        self.count_header(id);
        let source = self.announced_source(id);
        let verdict = match self.clients[id].verdict {
            Some(Verdict::Served) if self.clients[id].has_header => self.admission(source),
            verdict => verdict.unwrap_or(Verdict::Dropped),
        };
        let (now, excess, open) = (self.now, self.excess, self.held.len());
        let client = &mut self.clients[id];
        let is_first = !std::mem::replace(&mut client.is_opened, true);
        let is_right = is_first && verdict == Verdict::Served && client.token == Some(peer.key);
        if client.has_header || !self.config.proxy_protocol {
            (client.moved_at, client.excess) = (now, excess);
        }
        let is_address = peer.address == super::transport::address(source, id);
        self.check(is_right && is_address, |_| format!("{peer:?} is opened, but is {verdict:?}"));
        self.check(open <= self.config.max_connections, |_| format!("{open} connections are open"));
        self.books.opened += 1;
        let group = self.group(source);
        self.groups[group] += 1;
    }

    /// The observer was told that a connection is closed, and why.
    pub(super) fn told_closed(&mut self, peer: Peer, reason: CloseReason) {
        let id = usize::from(peer.address.port()) - 1;
        let group = self.group(self.announced_source(id));
        let client = &mut self.clients[id];
        let is_right = client.is_opened && client.token == Some(peer.key) && client.closed.is_none();
        client.closed = Some(reason);
        self.check(is_right, |kernel| format!("{peer:?} is closed: {:?}", kernel.clients[id]));
        let is_true = self.is_true(id, reason);
        self.check(is_true, |kernel| {
            let silent = kernel.now - kernel.clients[id].moved_at;
            format!(
                "it is not true that client {id} is closed because of {reason:?}; silent {silent:?}: {:?}",
                kernel.clients[id]
            )
        });
        self.books.closed += 1;
        self.books.by_reason[place(reason)] += 1;
        if is_right {
            self.groups[group] -= 1;
        }
    }

    /// Returns whether the reason is what has happened.
    fn is_true(&self, id: usize, reason: CloseReason) -> bool {
        let (client, config) = (&self.clients[id], &self.config);
        let is_awaiting = config.proxy_protocol && !client.has_header && !client.has_fin;
        let since = if is_awaiting { client.accepted_at } else { client.moved_at };
        let has_been_silent = |limit: Option<Duration>| limit.is_some_and(|limit| self.now - since >= limit);
        let is_draining = self.drain_began_at.is_some();
        let is_whole = client.socket.written + client.socket.header.len() as u64 == client.socket.sent;
        match reason {
            CloseReason::EndOfStream => {
                let is_exact = client.is_plain() || client.is_delayed_at_most() && !is_draining;
                client.last == Last::EndOfStream && client.has_ended && (!is_exact || is_whole)
            }
            CloseReason::Reset => {
                matches!(client.last, Last::Failed(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
            }
            BAD_HEADER => {
                let is_over = client.last == Last::EndOfStream || client.socket.has_ended || client.socket.is_reset;
                let is_late = has_been_silent(Some(HEADER_TIMEOUT));
                is_awaiting && (client.header == Header::Bad || is_late || is_over && !client.has_whole_header())
            }
            CloseReason::Failed(kind) => {
                let can_stall = config.stall_timeout.is_some() && client.is_plain() && !is_awaiting;
                let is_stalled = can_stall && (config.keepalive.is_none() || client.is_kept);
                client.last == Last::Failed(kind) && !(is_stalled && kind == ErrorKind::TimedOut)
            }
            CloseReason::Idle => {
                // Input that was not read is at most as old as the time between two visits.
                let unread = client.unread_since.filter(|_| client.is_plain() && client.pending() == 0 && !is_awaiting);
                let unread = unread.map(|at| self.now - at);
                let most =
                    config.idle_timeout.unwrap_or_default() / 8 + LATENESS + self.excess.saturating_sub(client.excess);
                !is_draining && has_been_silent(config.idle_timeout) && unread.is_none_or(|unread| unread <= most)
            }
            CloseReason::Stalled => {
                let is_pending = !client.is_plain() || client.pending() > 0;
                // At the error of keep-alive a peer that stalls has output to receive.
                let has_timed_out =
                    client.last == Last::Failed(ErrorKind::TimedOut) && (is_pending || config.keepalive.is_none());
                let by_hand = is_pending && !is_draining && has_been_silent(config.stall_timeout);
                config.stall_timeout.is_some() && (has_timed_out || by_hand)
            }
            CloseReason::Drained => is_draining && client.has_fin && client.last == Last::EndOfStream,
            CloseReason::Cut => self.drain_began_at.is_some_and(|began_at| self.now - began_at >= config.drain_timeout),
            CloseReason::Stopped => self.is_stopping,
            CloseReason::Fault => {
                client.rules.iter().any(|rule| matches!(rule.effect, Effect::Reset(_) | Effect::Fin(_)))
            }
        }
    }

    /// Forgets what belongs to a turn.
    pub(super) fn begin_turn(&mut self, may_wait: bool) {
        self.may_wait = may_wait;
        self.calls = 0;
        for backlog in &mut self.backlogs {
            (backlog.accepts, backlog.failures, backlog.is_emptied) = (0, 0, false);
        }
        for &id in &self.held {
            let client = &mut self.clients[id];
            (client.reads, client.is_served) = (0, false);
        }
    }

    /// Checks what must hold after a turn.
    pub(super) fn end_turn(&mut self, turn: Turn, next_deadline: Option<Instant>, stats: &Stats) {
        self.check_counters(stats);
        if turn == Turn::Finished {
            let (held, waiting) = (self.held.len(), self.backlogs.iter().any(|backlog| !backlog.is_closed));
            return self.check(held == 0 && !waiting, |_| format!("finished with {held} sockets"));
        }
        let is_idle = self.has_polled_in_vain && self.calls == 0 && self.may_wait && self.config.spin.is_zero();
        self.idle_turns = if is_idle { self.idle_turns + 1 } else { 0 };
        self.check(self.idle_turns <= IDLE_TURNS_MAX, |_| "it spins: it neither waits nor does anything".to_owned());
        let is_due = next_deadline.is_some_and(|at| at <= self.now);
        self.check_clients(is_due);
        self.check_deadlines(next_deadline);
        if !is_due {
            self.check_backlogs(next_deadline);
        }
    }

    fn check_counters(&mut self, stats: &Stats) {
        let books = &self.books;
        let closed = stats.closed.by_reason().map(|(_, count)| count);
        let refused = &stats.refused;
        let connect = stats.faults.get(Kind::Connect);
        // `connect=TIME` counts the clients that were held back.
        let has_others =
            self.config.faults.iter().any(|rule| matches!(rule.effect, Effect::Connect(Connect::Every(_))));
        let are_right = stats.accepted == books.opened
            && closed.eq(books.by_reason)
            && (refused.max_connections, refused.per_source, refused.not_allowed)
                == (books.full, books.per_source, books.not_allowed)
            && (stats.bytes_in, stats.bytes_out, stats.discarded) == (books.bytes_in, books.bytes_out, books.discarded)
            && (books.observed_in + books.discarded, books.observed_out) == (books.bytes_in, books.bytes_out)
            && stats.accept_errors.total() == books.accept_errors
            && (has_others || connect == books.connect_faults);
        self.check(are_right, |kernel| format!("{stats:?} is not {:?}", kernel.books));
    }

    fn check_clients(&mut self, is_due: bool) {
        let turns = 4 * (self.held.len() + self.backlogs.len()) + 16;
        let is_draining = self.drain_began_at.is_some();
        let buffer_size = self.config.buffer_size as u64;
        let mut failure = None;
        for &id in &self.held {
            let client = &mut self.clients[id];
            if !client.is_opened || !client.is_plain() {
                continue;
            }
            let (pending, socket) = (client.pending(), &client.socket);
            let can_go_on = if pending > 0 { socket.is_writable() } else { socket.is_readable() };
            let is_hungry = can_go_on && !client.is_served && !self.is_interrupted;
            // The others that wait may be closed before it is served.
            (client.hungry_turns, client.hungry_turns_max) =
                if is_hungry { (client.hungry_turns + 1, client.hungry_turns_max.max(turns)) } else { (0, 0) };
            let problem = if pending > buffer_size {
                "more than a buffer is pending"
            } else if can_go_on && !client.socket.has_edge && !is_due {
                "it is forgotten"
            } else if client.hungry_turns > client.hungry_turns_max {
                "it starves"
            } else {
                continue;
            };
            failure.get_or_insert_with(|| format!("{problem}: client {id}, {client:?}"));
        }
        if !is_draining && failure.is_none() {
            failure = self.overdue();
        }
        self.check(failure.is_none(), |_| failure.unwrap_or_default());
    }

    /// Looks for a connection that its timeout should have closed.
    fn overdue(&self) -> Option<String> {
        let config = &self.config;
        let silence = |id: usize| {
            let client = &self.clients[id];
            let is_awaiting = config.proxy_protocol && !client.has_header;
            let limits = [
                config.idle_timeout,
                config.stall_timeout.filter(|_| client.is_plain() && client.pending() > 0 && !is_awaiting),
                is_awaiting.then_some(HEADER_TIMEOUT),
            ];
            let limit = limits.into_iter().flatten().min()?;
            let most = limit + limit / 8 + LATENESS + self.excess.saturating_sub(client.excess);
            let silent = self.now - client.moved_at;
            (silent > most).then(|| format!("silent for {silent:?}, more than {most:?}: client {id}, {client:?}"))
        };
        self.held.iter().copied().find_map(silence)
    }

    /// Checks that the next turn does not begin later than something is due.
    fn check_deadlines(&mut self, next_deadline: Option<Instant>) {
        let excess = LATENESS + self.excess.saturating_sub(self.excess_before_drain);
        let drain_end = self.drain_began_at.map(|at| at + self.config.drain_timeout + excess);
        let timeouts = [self.config.idle_timeout, self.config.proxy_protocol.then_some(HEADER_TIMEOUT)];
        let has_timeout = timeouts.iter().any(Option::is_some) && !self.held.is_empty();
        // The hand comes at least once in a timeout.
        let timeout = timeouts.into_iter().flatten().max().filter(|_| has_timeout).map(|timeout| self.now + timeout);
        let due = [drain_end, timeout].into_iter().flatten().min();
        let is_late = due.is_some_and(|due| next_deadline.is_none_or(|at| at > due));
        let now = self.now;
        self.check(!is_late, |_| {
            let [due, next] = [due, next_deadline].map(|at| at.map(|at| at.saturating_duration_since(now)));
            format!("something is due in {due:?}, and the next deadline is in {next:?}")
        });
    }

    /// Checks that clients which wait will be accepted, unless all that may be open are.
    fn check_backlogs(&mut self, next_deadline: Option<Instant>) {
        let is_waiting =
            |kernel: &Self| kernel.backlogs.iter().any(|backlog| !backlog.waiting.is_empty() && !backlog.has_edge);
        if self.is_full() || !is_waiting(self) {
            return;
        }
        let limits = [
            self.has_accept_failed.then_some(ACCEPT_RETRY),
            self.config.accept_rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            if let Some(Connect::Every(interval)) = self.connect_fault() { Some(interval) } else { None },
        ];
        let longest = limits.into_iter().flatten().max();
        let will_accept =
            longest.is_some_and(|longest| next_deadline.is_some_and(|at| at <= self.now + longest + LATENESS));
        self.check(will_accept, |_| "a client waits in the backlog, and nothing will accept it".to_owned());
    }
}

/// The place of a reason in [`ClosedStats::by_reason`](crate::ClosedStats::by_reason).
fn place(reason: CloseReason) -> usize {
    match reason {
        CloseReason::EndOfStream => 0,
        CloseReason::Reset => 1,
        CloseReason::Failed(_) => 2,
        CloseReason::Idle => 3,
        CloseReason::Stalled => 4,
        CloseReason::Drained => 5,
        CloseReason::Cut => 6,
        CloseReason::Stopped => 7,
        CloseReason::Fault => 8,
    }
}
