//! `echo`: the same connections exchange messages for the whole window.

use super::workload::{Reaction, Status, Traffic, Workload};
use crate::load::client::{Message, MessageCounts};
use crate::load::config::Config;
use crate::load::progress::Step;
use crate::load::schedule::Window;

#[derive(Debug)]
pub(super) struct EchoMode {
    /// Messages a second over all connections; `None` in a closed loop.
    rate: Option<f64>,
    /// Messages on each connection. If set, the window has no fixed duration.
    messages: Option<u64>,
    pipeline: u64,
}

impl EchoMode {
    pub(super) fn new(config: &Config) -> Self {
        Self { rate: config.mean_rate(), messages: config.messages_per_connection, pipeline: config.in_flight_max() }
    }
}

impl Workload for EchoMode {
    fn traffic(&self) -> Traffic {
        match self.rate {
            Some(rate) => Traffic::Scheduled { rate, messages: self.messages },
            None => Traffic::OnReply,
        }
    }

    fn reaction(&self, messages: MessageCounts, status: &Status<'_>) -> Reaction {
        let is_window = matches!(status.step, Step::Warmup | Step::Measure) && status.now < status.window.end;
        if self.rate.is_some() || !is_window {
            return Reaction::Wait;
        }
        let left = self.messages.map_or(u64::MAX, |messages_max| messages_max.saturating_sub(messages.reported));
        Reaction::Send(left.min(self.pipeline - messages.outstanding()))
    }

    fn is_reported(&self, message: Message, window: Window) -> bool {
        !self.only_verifies(message) && message.due >= window.start
    }

    fn only_verifies(&self, message: Message) -> bool {
        message.index == 0
    }

    fn is_timed(&self) -> bool {
        self.messages.is_none()
    }

    fn is_over(&self, status: &Status<'_>) -> bool {
        if self.is_timed() { status.is_at_end() } else { status.is_idle() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::stage::{Counts, Stage};
    use crate::socket_address::AnyAddress;

    fn echo(change: impl FnOnce(&mut Config)) -> EchoMode {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        change(&mut config);
        EchoMode::new(&config)
    }

    const fn sent(enqueued: u64, done: u64) -> MessageCounts {
        MessageCounts { enqueued, reported: enqueued - 1, done }
    }

    #[test]
    fn a_reply_makes_the_next_message_due_in_a_closed_loop_only() {
        let counts = Counts::new(1);
        let status = Status::measuring(&counts);
        assert_eq!(echo(|_| {}).reaction(sent(1, 1), &status), Reaction::Send(1));
        assert_eq!(echo(|_| {}).reaction(sent(2, 1), &status), Reaction::Send(0));
        assert_eq!(echo(|config| config.pipeline = Some(3)).reaction(sent(2, 1), &status), Reaction::Send(2));
        assert_eq!(echo(|config| config.rate = Some(1.0)).reaction(sent(1, 1), &status), Reaction::Wait);
    }

    #[test]
    fn nothing_is_sent_outside_the_window() {
        let counts = Counts::new(1);
        for (step, now) in [(Step::Connect, 0), (Step::Ready, 90), (Step::Measure, 200), (Step::Drain, 200)] {
            let status = Status { step, now, ..Status::measuring(&counts) };
            assert_eq!(echo(|_| {}).reaction(sent(1, 1), &status), Reaction::Wait, "{step:?}");
        }
    }

    #[test]
    fn a_number_of_messages_ends_the_window_instead_of_its_duration() {
        let counts = Counts::new(1);
        let echo = echo(|config| config.messages_per_connection = Some(3));
        let status = Status::measuring(&counts);
        assert_eq!(echo.reaction(sent(3, 3), &status), Reaction::Send(1));
        assert_eq!(echo.reaction(sent(4, 4), &status), Reaction::Send(0));
        assert!(!echo.is_over(&Status { in_flight: 1, now: 999, ..status }));
        assert!(!echo.is_over(&Status { has_due: true, now: 999, ..status }));
        assert!(echo.is_over(&status));
    }

    #[test]
    fn a_timed_window_ends_early_only_without_connections_and_messages() {
        let mut counts = Counts::new(1);
        let echo = echo(|_| {});
        assert!(echo.is_over(&Status::measuring(&counts)));
        assert!(!echo.is_over(&Status { has_due: true, ..Status::measuring(&counts) }));
        counts.change(None, Some(Stage::Steady));
        assert!(!echo.is_over(&Status::measuring(&counts)));
        assert!(echo.is_over(&Status { now: 200, ..Status::measuring(&counts) }));
    }

    #[test]
    fn neither_the_first_message_nor_the_warm_up_is_reported() {
        let window = Window { start: 100, end: 200 };
        let is_reported = |index, due| echo(|_| {}).is_reported(Message { index, due }, window);
        assert!(!is_reported(0, 150));
        assert!(!is_reported(1, 99));
        assert!(is_reported(1, 100));
    }
}
