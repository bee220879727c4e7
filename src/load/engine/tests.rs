//! An engine that connects nothing: what it waits for, what it records, and what it publishes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::net::TcpListener;

use super::*;
use crate::load::Mode;
use crate::load::rank::Rank;
use crate::load::schedule::{Arrivals, Events, Pace, SendSchedule, Window};
use crate::load::stage::Stage;
use crate::socket_address::AnyAddress;

const HOUR: Duration = Duration::from_secs(3600);

/// Returns an engine before its window, and its progress.
fn engine(change: impl FnOnce(&mut Config)) -> (Engine, ProgressCell) {
    let mut config = Config::new(["127.0.0.1:9".parse::<AnyAddress>().unwrap()]);
    config.unresolved = 1;
    change(&mut config);
    let progress = ProgressCell::default();
    let mut engine = Engine::new(config, &Interrupt::default(), progress.clone()).unwrap();
    engine.driver.step = Step::Ready;
    (engine, progress)
}

/// Returns one event a nanosecond.
fn events() -> Events {
    Events::even(Pace::new(0, 1e9, Rank::ALONE))
}

#[test]
fn the_loop_waits_for_what_is_due_first() {
    let (mut engine, _) = engine(|_| {});
    engine.next_beat = u64::MAX;
    assert_eq!(engine.next_event(), engine.hand.next_due());
    let window = Window { start: 1000, end: 2000 };
    engine.driver.window = window;
    assert_eq!(engine.next_event(), engine.hand.next_due());
    engine.driver.step = Step::Warmup;
    assert_eq!(engine.next_event(), window.start);
    engine.driver.step = Step::Measure;
    assert_eq!(engine.next_event(), window.end);
    let events = Events::even(Pace::new(700, 1.0, Rank::ALONE));
    engine.driver.schedule = Some(SendSchedule::new(events, vec![Some(7)], None, window));
    assert_eq!(engine.next_event(), 700);
}

#[test]
fn timeouts_are_looked_at_ten_times_in_the_shorter_one_but_neither_always_nor_rarely() {
    let address: AnyAddress = "127.0.0.1:9".parse().unwrap();
    let period = |connect_timeout, timeout| {
        let config = Config { connect_timeout, timeout, ..Config::new([address.clone()]) };
        Duration::from_nanos(hand_period(&config))
    };
    let [short, second, long] = [Duration::from_millis(2), Duration::from_secs(1), HOUR];
    for (connect_timeout, timeout, expected) in [
        (second, long, Duration::from_millis(100)),
        (long, second, Duration::from_millis(100)),
        (second, short, Duration::from_millis(1)),
        (long, long, Duration::from_millis(500)),
    ] {
        assert_eq!(period(connect_timeout, timeout), expected, "{connect_timeout:?} {timeout:?}");
    }
}

#[test]
fn a_window_begins_after_its_warm_up() {
    let (mut engine, _) = engine(|_| {});
    engine.driver.step = Step::Warmup;
    engine.driver.window = Window { start: SECOND, end: 2 * SECOND };
    engine.change_step();
    assert_eq!(engine.driver.step, Step::Warmup);
    engine.driver.window.start = 0;
    engine.change_step();
    assert_eq!(engine.driver.step, Step::Measure);
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a few milliseconds")]
fn the_turns_of_a_window_take_no_longer_than_the_window() {
    const TURNS: u64 = 100;
    let (mut engine, _) = engine(|_| {});
    engine.turn(0).unwrap();
    assert_eq!(engine.turn.count(), 0);
    engine.driver.step = Step::Measure;
    engine.turn_start = 0;
    for _ in 0..TURNS {
        engine.turn(0).unwrap();
    }
    assert_eq!(engine.turn.count(), TURNS);
    // Each is rounded up to a microsecond, and kept to three digits.
    let sum = engine.turn.mean().unwrap() * TURNS as f64;
    let elapsed = engine.driver.clock.read() as f64 / 1000.0;
    assert!(sum <= elapsed * 1.01 + TURNS as f64, "{sum} of {elapsed} us");
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "a few milliseconds")]
fn the_turn_that_ends_the_window_is_one_of_its_turns() {
    let (mut engine, _) = engine(|_| {});
    (engine.driver.step, engine.driver.window) = (Step::Measure, Window { start: 0, end: 1 });
    while engine.driver.clock.read() < SECOND / 10 {}
    engine.run_until(Step::Drain, u64::MAX).unwrap();
    assert_eq!((engine.driver.step, engine.turn.count()), (Step::Drain, 1));
    // It began in this call.
    let most = (engine.driver.clock.read() - SECOND / 10) / 1000 + 1;
    assert!(engine.turn.mean().unwrap() <= most as f64, "{:?} of {most} us", engine.turn.mean());
}

#[test]
fn progress_has_the_time_that_is_left_of_a_window_with_an_end() {
    let (mut engine, progress) = engine(|_| {});
    let mut left = |step, end| {
        engine.driver.step = step;
        engine.driver.window = Window { start: 0, end };
        engine.publish(None);
        progress.latest().and_then(|progress| progress.left)
    };
    let end = nanoseconds(HOUR);
    assert_eq!((left(Step::Warmup, end), left(Step::Measure, end)), (Some(HOUR), Some(HOUR)));
    assert_eq!((left(Step::Measure, u64::MAX), left(Step::Ready, end)), (None, None));
}

#[test]
fn progress_counts_no_connection_with_a_fault() {
    // A Unix socket is only opened.
    let (mut engine, progress) = engine(|config| {
        (config.unresolved, config.targets) = (0, vec![vec!["unix:/nonexistent".parse().unwrap()]]);
        (config.connections, config.faults) = (5, vec!["stall,first=2".parse().unwrap()]);
    });
    engine.driver.step = Step::Connect;
    for opened in [0, 0, 1, 2, 3, 3] {
        engine.open_connection();
        engine.publish(None);
        let progress = progress.latest().unwrap();
        assert_eq!((progress.requested, progress.opened, progress.open), (3, opened, 0));
    }
}

#[test]
fn the_end_that_comes_with_the_handshake_of_a_connection_with_a_fault_is_seen() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut engine, _) = engine(|config| {
        (config.unresolved, config.targets) = (0, vec![vec![listener.local_addr().unwrap().into()]]);
        config.faults = vec!["stall".parse().unwrap()];
    });
    engine.driver.step = Step::Connect;
    engine.open_connection();
    drop(listener.accept().unwrap());
    // The first turn has both events, and the next one the end again.
    for _ in 0..2 {
        engine.turn(0).unwrap();
    }
    assert_eq!(engine.driver.faults.figures()[0].closed, 1);
}

#[test]
fn connections_that_are_due_wait_only_while_none_may_begin() {
    let (mut engine, _) = engine(|config| (config.mode, config.rate) = (Mode::Churn, Some(1e9)));
    let Engine { driver, .. } = &mut engine;
    (driver.step, driver.window) = (Step::Measure, Window { start: 0, end: u64::MAX });
    driver.connector.arrivals = Some(Arrivals::new(events(), Window { start: 0, end: 3 }));
    while driver.clock.read() < 3 {}
    engine.defer_arrivals();
    assert_eq!((engine.driver.totals.messages.deferred, engine.driver.totals.lateness.count()), (0, 0));
    // The only place is taken.
    engine.driver.connector.counts.change(None, Some(Stage::Connecting));
    engine.defer_arrivals();
    assert_eq!((engine.driver.totals.messages.deferred, engine.driver.totals.lateness.count()), (3, 3));
    engine.end_arrivals(1, usize::MAX);
    assert_eq!((engine.driver.totals.messages.due, engine.driver.totals.messages.unsent), (2, 2));
}

#[test]
fn connections_that_are_found_after_the_window_are_late_and_have_not_waited_for_a_place() {
    let (mut engine, _) = engine(|config| (config.mode, config.rate) = (Mode::Churn, Some(1e9)));
    let window = Window { start: 0, end: 3000 };
    (engine.driver.step, engine.driver.window) = (Step::Measure, window);
    engine.driver.connector.arrivals = Some(Arrivals::new(events(), window));
    while engine.driver.clock.read() < window.end {}
    engine.defer_arrivals();
    engine.end_arrivals(window.end, usize::MAX);
    let totals = &engine.driver.totals;
    assert_eq!((totals.messages.unsent, totals.messages.deferred, totals.lateness.count()), (3000, 0, 3000));
}

#[test]
fn connections_of_a_run_that_connects_nothing_are_unsent_and_not_late() {
    let (mut engine, _) = engine(|config| (config.mode, config.rate) = (Mode::Churn, Some(1e9)));
    let window = Window { start: 0, end: 3000 };
    (engine.driver.step, engine.driver.window, engine.driver.has_no_connection) = (Step::Measure, window, true);
    engine.driver.connector.arrivals = Some(Arrivals::new(events(), window));
    engine.defer_arrivals();
    let totals = &engine.driver.totals;
    assert_eq!((totals.messages.unsent, totals.messages.deferred, totals.lateness.count()), (3000, 0, 0));
}

#[test]
fn messages_that_are_due_when_every_connection_has_ended_are_unsent() {
    let (mut engine, _) = engine(|config| config.rate = Some(1e9));
    let window = Window { start: 0, end: 10 };
    engine.driver.window = window;
    let mut schedule = SendSchedule::new(events(), vec![Some(7)], None, window);
    schedule.vacate(0, 7);
    engine.driver.schedule = Some(schedule);
    engine.end_schedule(5);
    assert_eq!((engine.driver.totals.messages.due, engine.driver.totals.messages.unsent), (6, 6));
}
