//! How a connection of a run ends: by a timeout, a failure, FIN, or bytes that are wrong.

use std::io;
use std::ops::ControlFlow;

use super::{Driver, Removal};
use crate::load::client::{Client, Received};
use crate::load::error::{ErrorName, Phase, classify};
use crate::load::report::{Excerpt, Finding};
use crate::load::stage::Stage;
use crate::load::totals::{AbandonReason, Abandoned};
use crate::load::verify::{Corruption, End};

impl Driver {
    /// Returns the phase whose timeout has expired. The generator's own pauses do not count towards a timeout.
    pub(in crate::load) fn expired(&self, client: &Client) -> Option<Phase> {
        let (phase, since, timeout) = match client.stage {
            Stage::Connecting => (Phase::Connect, client.since, self.connect_timeout),
            Stage::Closing => (Phase::Close, client.since, self.timeout),
            Stage::Opening | Stage::Steady => {
                (Phase::Receive, client.oldest(self.schedule.as_ref())?.due, self.timeout)
            }
            Stage::Finished => return None,
        };
        (since + timeout + self.pauses.since(since) <= self.clock.now()).then_some(phase)
    }

    /// Ends the connection if its timeout has expired.
    pub(in crate::load) fn expire(&mut self, client: &mut Client) -> ControlFlow<Removal> {
        match self.expired(client) {
            Some(phase) => {
                // Until its timeout a connect to a Unix socket has found a full backlog.
                let is_full = phase == Phase::Connect && self.connector.sources.is_unix(client.pair);
                ControlFlow::Break(self.fail(client, phase, ErrorName::Timeout, is_full.then_some(libc::EAGAIN)))
            }
            None => ControlFlow::Continue(()),
        }
    }

    /// Records that a call failed or a timeout expired, and ends the connection.
    pub(in crate::load) fn fail(
        &mut self,
        client: &mut Client,
        phase: Phase,
        error: ErrorName,
        errno: Option<i32>,
    ) -> Removal {
        if client.stage == Stage::Connecting
            && let Some(pair) = self.connector.sources.next_address(client.pair, error)
        {
            return Removal::NextAddress(pair);
        }
        if let ControlFlow::Break(removal) = self.conclude(client) {
            return removal;
        }
        self.abandon(client, AbandonReason::Unanswered);
        let phase = if client.stage.is_over() { Phase::Close } else { phase };
        self.record_error(client, phase, error, errno);
        self.record_outcome(client, error);
        self.connector.pause(self.clock.now());
        Removal::Ended
    }

    /// Ends the connection if wrong bytes have arrived whose kind was still undecided, because no more will come.
    pub(in crate::load) fn conclude(&mut self, client: &mut Client) -> ControlFlow<Removal> {
        let (sent, opened) = (client.sent_bytes(), self.connector.numbers_end());
        match client.verifier.conclude(&self.pattern, sent, opened, End::Cut) {
            Some(corruption) => ControlFlow::Break(self.record_corruption(client, &corruption)),
            None => ControlFlow::Continue(()),
        }
    }

    /// Ends a connection whose write has failed, once it has read what the server sent before: the kernel hands that out after a reset
    /// too. The reads come to an end, because more than was sent is wrong.
    #[cold]
    pub(super) fn end_after_failed_send(&mut self, client: &mut Client, error: &io::Error) -> Removal {
        client.read_until_would_block();
        loop {
            client.expect_input();
            match client.receive(&self.pattern, self.connector.numbers_end(), &mut self.buffer) {
                Received::Right | Received::Undecided => self.record_replies(client),
                Received::Wrong(corruption) => {
                    self.record_replies(client);
                    return self.record_corruption(client, &corruption);
                }
                // EPIPE: the server had closed the connection before, as a read would have told.
                Received::Ended if error.kind() == io::ErrorKind::BrokenPipe => {
                    return self.record_end_of_stream(client);
                }
                Received::Failed(error) => {
                    return self.fail(client, Phase::Receive, classify(&error), error.raw_os_error());
                }
                Received::Ended | Received::Blocked => {
                    return self.fail(client, Phase::Send, classify(error), error.raw_os_error());
                }
            }
        }
    }

    /// Records how a connection ended for a mode with outcomes. A failed connect has none, and an end after the measurement does not
    /// change one.
    fn record_outcome(&mut self, client: &Client, error: ErrorName) {
        if client.stage != Stage::Connecting && !client.stage.is_over() {
            self.workload.record_end(error, self.clock.now() - client.since);
        }
    }

    fn record_error(&mut self, client: &Client, phase: Phase, error: ErrorName, errno: Option<i32>) {
        let (_, target) = self.connector.sources.pair(client.pair);
        self.breakdown.record_error(client.pair);
        self.totals.record_error(phase, error, errno, target, self.clock.now());
    }

    /// Records the outstanding messages of a connection that ends.
    pub(in crate::load) fn abandon(&mut self, client: &mut Client, reason: AbandonReason) {
        if client.stage == Stage::Connecting && self.connector.arrivals.is_some() {
            self.record_unsent(client.connect_due(), 1);
        }
        let (now, end) = (self.clock.now(), self.measurement_end());
        if client.stage == Stage::Steady {
            let oldest = client.oldest(self.schedule.as_ref());
            self.reconnects.begin(client, oldest.map_or(now, |message| message.due.min(now)));
        }
        while let Some(message) = client.take_oldest(self.schedule.as_ref()) {
            self.totals.in_flight -= 1;
            if self.workload.is_reported(message, self.window) {
                let is_sent = client.has_begun(message.index, &self.sizes);
                let is_first = self.workload.is_first(message);
                let abandoned = Abandoned { reason, is_sent, is_first, due: message.due, pair: client.pair };
                self.totals.record_abandoned(abandoned, now, end, &mut self.breakdown);
            }
        }
    }

    /// Records the peer's FIN, which ends the connection.
    pub(super) fn record_end_of_stream(&mut self, client: &mut Client) -> Removal {
        let (sent, opened) = (client.sent_bytes(), self.connector.numbers_end());
        let verified = client.verifier.verified();
        let is_between_messages =
            self.sizes.is_boundary(client.verifier.connection(), verified) && !client.verifier.is_suspicious();
        let is_over = client.stage.is_over();
        if is_over && verified == sent {
            return Removal::Ended;
        }
        let corruption = client.verifier.conclude(&self.pattern, sent, opened, End::Fin);
        // Every byte of a message that was sent in part may have come back.
        if !is_over && (is_between_messages || corruption.is_none()) {
            self.abandon(client, AbandonReason::Failed);
            self.record_error(client, Phase::Receive, ErrorName::ClosedEarly, None);
            self.record_outcome(client, ErrorName::ClosedEarly);
            self.connector.pause(self.clock.now());
            return Removal::Ended;
        }
        corruption.map_or(Removal::Ended, |corruption| self.record_corruption(client, &corruption))
    }

    /// Records a finding, and ends the connection.
    pub(super) fn record_corruption(&mut self, client: &mut Client, corruption: &Corruption) -> Removal {
        let (expected, received) = client.verifier.excerpts(&self.pattern, client.sent_bytes());
        self.totals.record_finding(
            corruption,
            self.clock.now(),
            Finding {
                kind: corruption.kind,
                connection: client.verifier.connection(),
                local: client.stream.0.local_addr().ok(),
                peer: self.connector.sources.pair(client.pair).1.clone(),
                offset: corruption.offset,
                // Set when the report is built, whose start it depends on.
                at_s: 0.0,
                expected: Excerpt::new(&expected),
                received: Excerpt::new(&received),
            },
        );
        self.record_error(client, Phase::Verify, ErrorName::BadBytes, None);
        self.record_outcome(client, ErrorName::BadBytes);
        self.abandon(client, AbandonReason::Failed);
        self.connector.pause(self.clock.now());
        Removal::Ended
    }
}
