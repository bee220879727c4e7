//! Sessions that connect nothing, because a target has no address: their windows, their reports, and what they refuse.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use super::*;
use crate::load::arrivals::ArrivalProcess;
use crate::load::error::{ErrorName, Phase};
use crate::load::rank::Rank;
use crate::load::schedule::Window;
use crate::load::stage_totals::StageTotals;
use crate::socket_address::AnyAddress;

const HOUR: Duration = Duration::from_secs(3600);

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::new(["127.0.0.1:9".parse::<AnyAddress>().unwrap()]);
    config.unresolved = 1;
    change(&mut config);
    config
}

fn session(change: impl FnOnce(&mut Config)) -> Session {
    let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
    Session::open(config(change), &interrupt, &progress, &mut RunningReports::none()).unwrap()
}

#[test]
fn a_session_refuses_what_applies_to_one_window() {
    let refused = |change: fn(&mut Config)| {
        Session::connect(config(change), &Interrupt::default(), &ProgressCell::default()).unwrap_err()
    };
    for error in [
        refused(|config| config.reconnect = true),
        refused(|config| config.faults = vec!["stall,first=1".parse().unwrap()]),
    ] {
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(error.to_string(), "reconnect and faults apply to a run of one window");
    }
}

#[test]
fn a_new_rate_and_a_new_size_replace_those_before_and_are_checked() {
    let change = |config: &mut Config| {
        (config.rate, config.size, config.size_max, config.duration) = (Some(1.0), 10, Some(100), HOUR);
    };
    let mut session = session(change);
    assert_eq!(session.set_rate(0.0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(session.set_size(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    // Above the largest size before.
    session.set_size(1000).unwrap();
    session.set_rate(0.01).unwrap();
    let Report { config, messages, .. } = session.measure().unwrap();
    assert_eq!((config.rate, config.size, config.size_max, messages.due), (Some(0.01), 1000, None, 36));
}

#[test]
fn a_rank_with_fewer_connections_than_there_are_ranks_takes_a_new_rate_and_a_new_size() {
    let mut session = session(|config| {
        (config.rank, config.connections, config.rate) = (Some(Rank { index: 1, count: 3 }), 3, Some(3.0));
    });
    session.set_rate(0.3).unwrap();
    session.set_size(1000).unwrap();
    let settings = session.running_report().config;
    assert_eq!((settings.rate.map(|rate| (rate * 1e6).round()), settings.size), (Some(1e5), 1000));
}

/// The window of an hour ends at once.
#[test]
fn messages_planned_without_a_connection_have_their_age_at_the_end_of_the_window() {
    for mode in [Mode::Echo, Mode::Churn] {
        let mut session = session(|config| {
            (config.mode, config.rate, config.duration, config.timeout) = (mode, Some(0.001), HOUR, 2 * HOUR);
        });
        session.run_window(None, &mut RunningReports::none()).unwrap();
        let report = session.report();
        assert_eq!((report.messages.due, report.messages.unsent), (4, 4), "{mode:?}");
        // 3600, 2600, 1600 and 600 seconds.
        let (count, mean) = (report.latency_us.count, report.latency_us.mean.unwrap());
        assert_eq!((count, (mean / 1e6).round()), (4, 2100.0), "{mode:?}");
        let errors: Vec<_> = report.errors.iter().map(|of| (of.phase, of.count)).collect();
        assert_eq!(errors, [(Phase::Resolve, 1)], "{mode:?}");
    }
}

#[test]
fn a_session_that_connects_nothing_opens_nothing_anew() {
    let mut session = session(|config| config.rate = Some(1.0));
    assert_eq!(session.reopen().unwrap(), 0);
    let errors: Vec<_> = session.close().unwrap().errors.iter().map(|of| (of.phase, of.count)).collect();
    assert_eq!(errors, [(Phase::Resolve, 1)]);
}

#[test]
fn each_window_of_a_poisson_process_has_other_arrivals() {
    let mut session = session(|config| {
        (config.rate, config.arrivals, config.duration) = (Some(1.0), ArrivalProcess::Poisson, HOUR);
    });
    let due: Vec<_> = (0..3).map(|_| session.measure().unwrap().messages.due).collect();
    assert!(due[0] != due[1] && due[1] != due[2], "{due:?}");
}

#[test]
fn a_run_that_connects_nothing_has_no_phase_of_closing() {
    let session = session(|_| {});
    assert_eq!(session.end(&mut RunningReports::none()).unwrap().phases_s.close.to_bits(), 0);
}

#[test]
fn the_wait_for_the_start_counts_as_connecting() {
    let mut session = session(|config| config.rate = Some(1.0));
    assert_eq!(session.running_report().phases_s.connect.to_bits(), 0);
    session.end_wait().unwrap();
    assert!(session.running_report().phases_s.connect > 0.0);
}

#[test]
fn a_running_report_counts_the_messages_whose_outcome_is_known() {
    let mut session = session(|config| config.rate = Some(1.0));
    let messages = &mut session.engine.driver.totals.messages;
    (messages.due, messages.unsent, messages.verified) = (1000, 2, 3);
    (messages.unanswered, messages.failed) = (5, 7);
    let report = session.running_report();
    assert_eq!((report.messages.due, report.verdict), (2 + 3 + 5 + 7, Verdict::Running));
}

#[test]
fn the_connections_of_a_running_report_are_those_open_until_they_are_closed() {
    let mut session = session(|config| config.rate = Some(1.0));
    session.engine.driver.connector.counts.change(None, Some(Stage::Steady));
    session.engine.driver.connector.counts.held = 4;
    assert_eq!(session.running_report().connections.held, 1);
    session.engine.driver.step = Step::Close;
    session.engine.driver.connector.counts.held = 4;
    assert_eq!(session.running_report().connections.held, 4);
}

#[test]
fn no_connection_of_a_running_hold_is_alive_before_it_was_asked() {
    let mut session = session(|config| (config.mode, config.connections) = (Mode::Hold, 5));
    let counts = &mut session.engine.driver.connector.counts;
    (0..5).for_each(|_| counts.change(None, Some(Stage::Steady)));
    for step in [Step::Connect, Step::Ready, Step::Measure] {
        session.engine.driver.step = step;
        let hold = session.running_report().hold.unwrap();
        assert_eq!((hold.alive, hold.late, hold.unasked), (0, 0, 5), "{step:?}");
    }
}

#[test]
fn a_report_has_the_settings_of_a_run_and_its_defaults() {
    for (mode, messages) in [(Mode::Echo, None), (Mode::Churn, Some(1))] {
        let mut session = session(|config| config.mode = mode);
        let settings = session.running_report().config;
        assert_eq!(settings.targets, session.engine.config.targets.concat());
        assert_eq!(settings.messages_per_connection, messages, "{mode:?}");
    }
}

#[test]
fn connections_with_faults_are_not_among_those_opened() {
    let mut session = session(|config| {
        (config.connections, config.faults) = (5, vec!["stall,first=2".parse().unwrap()]);
    });
    let counts = &mut session.engine.driver.connector.counts;
    (counts.opened, counts.opened_faulted) = (5, 2);
    assert_eq!(session.running_report().connections.opened_total, 3);
}

#[test]
fn a_stage_that_has_not_begun_has_no_rate() {
    let stage = RateStage { from: 1.0, to: 1.0, duration: HOUR };
    let mut session = session(|config| config.stages = vec![stage, stage]);
    let driver = &mut session.engine.driver;
    driver.totals.stages = StageTotals::new(&[stage, stage]);
    driver.totals.stages.begin(0);
    driver.window = Window { start: 0, end: 2 * nanoseconds(HOUR) };
    while driver.clock.read() == 0 {}
    let rates: Vec<_> = session.running_report().stages.iter().map(|stage| stage.rate_per_s).collect();
    assert_eq!(rates, [Some(0.0), None]);
}

#[test]
fn lost_messages_have_their_age_in_a_running_report_and_are_still_lost_after_it() {
    let stage = RateStage { from: 1.0, to: 1.0, duration: HOUR };
    let mut session = session(|config| config.stages = vec![stage]);
    let driver = &mut session.engine.driver;
    driver.totals.stages = StageTotals::new(&[stage]);
    driver.totals.stages.begin(0);
    driver.window = Window { start: 0, end: nanoseconds(HOUR) };
    driver.totals.record_unsent(0, 3);
    // What is in flight is due in no running report, nor in one of its stages.
    driver.totals.record_due(0, true);
    for _ in 0..2 {
        let age = session.engine.driver.clock.read();
        let report = session.running_report();
        assert_eq!((report.messages.due, report.stages[0].messages.due), (3, 3));
        for latency in [&report.latency_us, &report.stages[0].latency_us] {
            assert_eq!((latency.count, latency.censored), (3, 3));
            assert!(latency.max.unwrap() >= age / 1000, "{latency:?} after {age} ns");
        }
    }
    assert!(session.engine.driver.totals.has_lost());
}

#[test]
fn errors_have_the_time_since_the_start_of_the_report() {
    let mut session = session(|config| config.rate = Some(1.0));
    session.engine.begun[Step::Connect as usize] = 1_000_000;
    session.engine.driver.totals.record_errors(Phase::Receive, ErrorName::Timeout, None, 1, 2_501_001_999);
    let report = session.running_report();
    let times: Vec<_> = report.errors.iter().filter(|of| of.phase == Phase::Receive).map(|of| of.first_s).collect();
    assert_eq!(times, [2.500_001]);
}
