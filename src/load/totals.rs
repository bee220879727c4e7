//! What became of every message: due, unsent, verified, unanswered, failed.

use std::collections::BTreeMap;

use super::client::Client;
use super::config::{Config, Mode};
use super::histogram::Histogram;
use super::report::{ErrorName, Finding, Messages, Phase, Verify};

/// Findings that are told one by one; the others are counted.
const FINDINGS_MOST: usize = 1000;
/// In `hold`, an answer older than this is late.
const LATE: u64 = 1_000_000_000;

/// How a connection's end stands to the messages that it still owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AbandonReason {
    /// A reset, a timeout or Ctrl-C: nobody knows what would have come.
    Unanswered,
    /// A finding, or FIN before the answer: it will not come.
    Failed,
}

#[derive(Debug)]
pub(super) struct Totals {
    pub(super) size: u64,
    /// Messages in flight on a connection, at most.
    pub(super) pipeline: u64,
    mode: Mode,
    /// When each message in flight of a closed loop was due: `ring_size` places a key. With a schedule only the first
    /// message has one.
    due_times: Vec<u64>,
    ring_size: usize,
    pub(super) schedule: Option<Schedule>,
    pub(super) window: Window,
    /// Messages due and neither answered nor given up, over all connections.
    pub(super) in_flight: u64,
    pub(super) messages: Messages,
    pub(super) verified_in_window: u64,
    /// The last second's latencies, and those before it.
    pub(super) second: Histogram,
    pub(super) latency: Histogram,
    pub(super) connect: Histogram,
    pub(super) lateness: Histogram,
    errors: BTreeMap<(Phase, ErrorName, Option<i32>), u64>,
    pub(super) verify: Verify,
}

/// The measured window, in nanoseconds of the run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The open loop's: message `n` over all lanes is due at `start + n * interval`, on lane `n` modulo their number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    pub(super) start: u64,
    pub(super) interval: f64,
    pub(super) lanes: u64,
    pub(super) next: u64,
    pub(super) total: u64,
}

impl Schedule {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^53 nanoseconds, which is a hundred days"
    )]
    pub(super) fn due(&self, message: u64) -> u64 {
        self.start.saturating_add((message as f64 * self.interval) as u64)
    }

    /// The first message that is due at `time` or later.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 2^53 nanoseconds, which is a hundred days"
    )]
    pub(super) fn first_from(&self, time: u64) -> u64 {
        let about = ((time - self.start) as f64 / self.interval) as u64;
        // What `due` rounds decides, so that every message is on one side of `time`.
        (about.saturating_sub(1)..u64::MAX).find(|&message| self.due(message) >= time).unwrap_or(u64::MAX)
    }

    /// When the next message is due, if there is one.
    pub(super) fn next_due(&self) -> Option<u64> {
        (self.next < self.total).then(|| self.due(self.next))
    }
}

impl Totals {
    pub(super) fn new(config: &Config) -> Self {
        let is_open_loop = config.is_open_loop();
        Self {
            size: config.size as u64,
            pipeline: config.pipeline.map_or(if is_open_loop { u64::MAX } else { 1 }, u64::from),
            mode: config.mode,
            due_times: Vec::new(),
            ring_size: if is_open_loop { 1 } else { config.pipeline.map_or(1, |pipeline| pipeline as usize) },
            schedule: None,
            window: Window { start: 0, end: u64::MAX },
            in_flight: 0,
            messages: Messages::default(),
            verified_in_window: 0,
            second: Histogram::new(),
            latency: Histogram::new(),
            connect: Histogram::new(),
            lateness: Histogram::new(),
            errors: BTreeMap::new(),
            verify: Verify::default(),
        }
    }

    /// Counts anew. When messages were due, and how long the connects took, is of the connections, and stays.
    pub(super) fn forget(&mut self) {
        self.schedule = None;
        self.messages = Messages::default();
        self.verified_in_window = 0;
        self.latency.clear();
        self.lateness.clear();
        self.errors.clear();
        self.verify = Verify::default();
    }

    /// A message of this connection is due.
    pub(super) fn release(&mut self, key: usize, client: &mut Client, due: u64) {
        if self.schedule.is_none() || client.released == 0 {
            let place = self.place(key, client.released);
            if place >= self.due_times.len() {
                self.due_times.resize(place + 1, 0);
            }
            self.due_times[place] = due;
        }
        if self.counts(client.released, due) {
            self.messages.due += 1;
            client.reported += 1;
        }
        client.released += 1;
        self.in_flight += 1;
    }

    /// A message is due on a connection that has ended: it stays unsent, and never moves to another.
    pub(super) fn record_unsent(&mut self, due: u64) {
        if self.counts(1, due) {
            self.messages.due += 1;
            self.messages.unsent += 1;
        }
    }

    /// So many messages had to wait for their turn to be sent.
    pub(super) fn defer(&mut self, key: usize, client: &Client, messages: u64) {
        if messages > 0 && self.counts(client.released - 1, self.due(key, client, client.released - 1)) {
            self.messages.deferred += messages;
        }
    }

    /// Bytes have come back right: notes each message that is whole by now.
    pub(super) fn answered(&mut self, key: usize, client: &mut Client, now: u64) {
        while client.done < client.released && client.verifier.verified() >= (client.done + 1) * self.size {
            let due = self.due(key, client, client.done);
            if self.counts(client.done, due) {
                let latency = now.saturating_sub(due);
                self.messages.verified += 1;
                self.verified_in_window += u64::from(now < self.window.end);
                client.is_late |= client.done > 0 && latency > LATE;
                self.second.record(latency);
            }
            client.done += 1;
            self.in_flight -= 1;
        }
    }

    /// When the oldest message of this connection that is not answered was due.
    pub(super) fn oldest_due(&self, key: usize, client: &Client) -> Option<u64> {
        (client.outstanding() > 0).then(|| self.due(key, client, client.done))
    }

    /// The connection ends, and owes what it owes.
    pub(super) fn abandon(&mut self, key: usize, client: &Client, now: u64, ending: AbandonReason) {
        for message in client.done..client.released {
            let due = self.due(key, client, message);
            if !self.counts(message, due) {
                continue;
            }
            if !client.has_begun(message, self.size) {
                self.messages.unsent += 1;
            } else if ending == AbandonReason::Failed {
                self.messages.failed += 1;
            } else {
                self.messages.unanswered += 1;
                self.second.record_censored(now.saturating_sub(due));
            }
        }
        self.in_flight -= client.outstanding();
    }

    pub(super) fn error(&mut self, phase: Phase, error: ErrorName, errno: Option<i32>) {
        *self.errors.entry((phase, error, errno)).or_default() += 1;
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = ((Phase, ErrorName, Option<i32>), u64)> {
        self.errors.iter().map(|(&what, &count)| (what, count))
    }

    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    pub(super) fn find(&mut self, finding: Finding) {
        self.verify.connections_failed += 1;
        if self.verify.findings.len() < FINDINGS_MOST {
            self.verify.findings.push(finding);
        }
    }

    /// Whether a message belongs to what is reported: none of the warm-up does, nor in an echo the first of a connection.
    fn counts(&self, message: u64, due: u64) -> bool {
        match self.mode {
            Mode::Echo => message > 0 && due >= self.window.start,
            Mode::Hold => true,
            Mode::Churn => due >= self.window.start,
        }
    }

    fn due(&self, key: usize, client: &Client, message: u64) -> u64 {
        match self.schedule {
            // The first of a connection is due at the handshake's end, before there is a schedule.
            Some(schedule) if message >= client.first_in_lane => {
                schedule.due((message - client.first_in_lane) * schedule.lanes + u64::from(client.lane))
            }
            _ => self.due_times[self.place(key, message)],
        }
    }

    fn place(&self, key: usize, message: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "below the number of ring_size")]
        let place = (message % self.ring_size as u64) as usize;
        key * self.ring_size + place
    }
}
