//! `churn`: each connection sends its messages, closes, and is replaced, for the whole window.

use super::workload::{Reaction, Status, Traffic, Workload};
use crate::load::client::{Message, MessageCounts};
use crate::load::config::Config;
use crate::load::progress::Step;
use crate::load::schedule::Window;

/// Nanoseconds between a failed connect and the next one, so that a dead server is not flooded.
const RETRY_PAUSE: u64 = 10_000_000;

#[derive(Debug)]
pub(super) struct ChurnMode {
    /// Messages on each connection.
    messages: u64,
    pipeline: u64,
    /// Connections a second; `None` in a closed loop.
    rate: Option<f64>,
}

impl ChurnMode {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            messages: config.messages_per_connection.unwrap_or(1),
            pipeline: config.in_flight_max(),
            rate: config.mean_rate(),
        }
    }
}

impl Workload for ChurnMode {
    fn may_connect(&self, status: &Status<'_>) -> bool {
        status.counts.open() < status.counts.requested
            && matches!(status.step, Step::Warmup | Step::Measure)
            && status.now < status.window.end
    }

    /// In an open loop, the rate limits the failed connects too.
    fn retry_pause(&self) -> u64 {
        if self.rate.is_some() { 0 } else { RETRY_PAUSE }
    }

    fn is_connected(&self, _: &Status<'_>) -> bool {
        true
    }

    /// The window opens the connections, and each sends its first message after its handshake.
    fn traffic(&self) -> Traffic {
        self.rate.map_or(Traffic::Nothing, |rate| Traffic::Connections { rate })
    }

    fn reaction(&self, messages: MessageCounts, status: &Status<'_>) -> Reaction {
        let is_window = status.now < status.window.end;
        let left = if is_window { self.messages.saturating_sub(messages.enqueued) } else { 0 };
        match (left, messages.outstanding()) {
            (0, 0) => Reaction::Close,
            (left, outstanding) => Reaction::Send(left.min(self.pipeline - outstanding)),
        }
    }

    fn is_reported(&self, message: Message, window: Window) -> bool {
        message.due >= window.start
    }

    fn is_over(&self, status: &Status<'_>) -> bool {
        status.now >= status.window.end
    }

    fn is_drained(&self, status: &Status<'_>) -> bool {
        status.counts.open() == 0
    }

    fn closes_from(&self) -> Step {
        Step::Drain
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::stage::{Counts, Stage};
    use crate::socket_address::AnyAddress;

    fn churn(messages: Option<u64>, pipeline: Option<u32>) -> ChurnMode {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        config.mode = crate::load::Mode::Churn;
        (config.messages_per_connection, config.pipeline) = (messages, pipeline);
        ChurnMode::new(&config)
    }

    const fn sent(enqueued: u64, done: u64) -> MessageCounts {
        MessageCounts { enqueued, reported: enqueued, done }
    }

    #[test]
    fn a_connection_is_closed_after_its_messages_and_at_the_end_of_the_window() {
        let counts = Counts::new(1);
        let status = Status::measuring(&counts);
        assert_eq!(churn(None, None).reaction(sent(1, 1), &status), Reaction::Close);
        let churn = churn(Some(4), Some(2));
        assert_eq!(churn.reaction(sent(1, 1), &status), Reaction::Send(2));
        assert_eq!(churn.reaction(sent(3, 1), &status), Reaction::Send(0));
        assert_eq!(churn.reaction(sent(4, 4), &status), Reaction::Close);
        let status = Status { now: 200, ..status };
        assert_eq!(churn.reaction(sent(2, 1), &status), Reaction::Send(0));
        assert_eq!(churn.reaction(sent(2, 2), &status), Reaction::Close);
    }

    #[test]
    fn connections_are_replaced_in_the_window_only() {
        let mut counts = Counts::new(1);
        counts.opened = 100;
        let churn = churn(None, None);
        assert!(churn.may_connect(&Status::measuring(&counts)));
        assert!(!churn.may_connect(&Status { now: 200, ..Status::measuring(&counts) }));
        assert!(!churn.may_connect(&Status { step: Step::Ready, ..Status::measuring(&counts) }));
        counts.change(None, Some(Stage::Connecting));
        assert!(!churn.may_connect(&Status::measuring(&counts)));
    }

    #[test]
    fn the_run_waits_for_the_close_of_each_connection() {
        let mut counts = Counts::new(1);
        let churn = churn(None, None);
        counts.change(None, Some(Stage::Closing));
        assert!(!churn.is_drained(&Status::measuring(&counts)));
        counts.change(Some(Stage::Closing), None);
        assert!(churn.is_drained(&Status::measuring(&counts)));
    }

    #[test]
    fn a_window_without_a_connection_lasts_to_its_end() {
        let counts = Counts::new(1);
        let churn = churn(None, None);
        assert!(!churn.is_over(&Status::measuring(&counts)));
        assert!(churn.is_over(&Status { now: 200, ..Status::measuring(&counts) }));
    }

    #[test]
    fn only_a_closed_loop_waits_after_a_failed_connect() {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        assert_eq!(ChurnMode::new(&config).retry_pause(), crate::load::timer::SECOND / 100);
        config.rate = Some(1000.0);
        assert_eq!(ChurnMode::new(&config).retry_pause(), 0);
    }
}
