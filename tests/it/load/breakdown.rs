//! The figures of each target and of each source.

use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{Figures, TargetFigures};
use ecoloop::load::{Mode, Report, merge};
use ecoloop::transport::AnyAddress;

use super::faulty_server::{echo, echo_messages, end_with_reset, faulty_server, read_message, slow_server};
use super::{config, run, run_on_server};
use crate::support::serve;

/// Longer than an echo takes on a loaded machine, as a median.
const SLOW: Duration = Duration::from_millis(50);

/// Runs against eight servers with two connections each: the third is slow, and the sixth closes its connections.
fn run_on_eight_servers() -> Report {
    let good: Vec<_> = (0..6).map(|_| serve(ServerConfig::default())).collect();
    let mut targets: Vec<_> = good.iter().map(|server| vec![AnyAddress::from(server.local_addr())]).collect();
    targets.insert(2, vec![slow_server(SLOW).into()]);
    targets.insert(5, vec![faulty_server(|_, stream| echo_messages(stream, 3)).into()]);
    let mut config = config(targets[0][0].clone());
    (config.targets, config.connections, config.messages_per_connection) = (targets, 16, Some(10));
    run(config)
}

#[test]
fn bad_servers_among_eight_are_seen() {
    let report = run_on_eight_servers();
    let targets: Vec<_> = report.targets.iter().map(|of| of.target.clone()).collect();
    assert_eq!(targets, report.config.targets);
    let counts: Vec<_> = report.targets.iter().map(|of| (of.figures.connections, of.figures.errors)).collect();
    assert_eq!(counts, [(2, 0), (2, 0), (2, 0), (2, 0), (2, 0), (2, 2), (2, 0), (2, 0)]);
    let messages: Vec<_> = report.targets.iter().map(|of| of.figures.messages).collect();
    // The first message of each connection is not in the report.
    assert_eq!(messages, [20, 20, 20, 20, 20, 4, 20, 20]);
    let slow = SLOW.as_micros().try_into().unwrap();
    let slow: Vec<_> = report.targets.iter().map(|of| of.figures.p50.unwrap() >= slow).collect();
    assert_eq!(slow, [false, false, true, false, false, false, false, false]);
    let is_whole =
        |of: &TargetFigures| of.figures.latency_us.count == of.figures.messages + of.figures.latency_us.censored;
    assert!(report.targets.iter().all(is_whole));
    assert_eq!(report.targets.iter().map(|of| of.figures.latency_us.count).sum::<u64>(), report.latency_us.count);
    // A message that was lost has the same age in both.
    assert_eq!(report.targets.iter().map(|of| of.figures.latency_us.max).max().unwrap(), report.latency_us.max);
}

/// When the messages are lost, it is not known yet when the measurement ends.
#[test]
fn a_lost_message_has_the_same_age_in_the_figures_of_its_target() {
    for mode in [Mode::Hold, Mode::Echo] {
        let good = serve(ServerConfig::default());
        let resets = faulty_server(|_, stream| {
            echo_messages(stream, 1)?;
            read_message(stream)?;
            end_with_reset(stream)
        });
        let mut config = config(good.local_addr());
        config.targets.push(vec![resets.into()]);
        (config.mode, config.connections, config.duration) = (mode, 20, Duration::from_millis(100));
        if mode == Mode::Echo {
            config.messages_per_connection = Some(3);
        }
        let report = run(config);
        let [good, bad] = &report.targets[..] else { panic!("{:?}", report.targets) };
        let sums = |of: &TargetFigures| (of.figures.latency_us.count, of.figures.latency_us.censored);
        let expected = if mode == Mode::Hold { 10 } else { 30 };
        assert_eq!((sums(good), sums(bad)), ((expected, 0), (10, 10)), "{mode:?}");
        assert_eq!(report.latency_us.censored, 10, "{mode:?}");
        let max = good.figures.latency_us.max.max(bad.figures.latency_us.max);
        assert_eq!(max, report.latency_us.max, "{mode:?}: {:?}", bad.figures);
    }
}

#[test]
fn merged_figures_are_those_of_all_messages() {
    let one = run_on_eight_servers();
    let mut other = one.clone();
    other.run_id = "other".to_owned();
    let merged = merge(&[("one".to_owned(), one.clone()), ("other".to_owned(), other.clone())], &[]).unwrap();
    let doubled =
        |of: &TargetFigures| (of.target.clone(), of.figures.connections * 2, of.figures.messages * 2, of.figures.p50);
    let sums = |of: &TargetFigures| (of.target.clone(), of.figures.connections, of.figures.messages, of.figures.p50);
    let expected: Vec<_> = one.targets.iter().map(doubled).collect();
    assert_eq!(merged.targets.iter().map(sums).collect::<Vec<_>>(), expected);
    // One part of the whole would be missing.
    other.targets.clear();
    assert_eq!(merge(&[("one".to_owned(), one), ("other".to_owned(), other)], &[]).unwrap().targets, []);
}

#[test]
fn each_of_several_sources_has_figures() {
    let (report, _) = run_on_server(|config| {
        config.sources = ["127.0.0.1", "127.0.0.2"].map(|source| source.parse().unwrap()).to_vec();
        (config.connections, config.messages_per_connection) = (5, Some(10));
    });
    let sums = |figures: &Figures| (figures.connections, figures.messages);
    let sources: Vec<_> = report.sources.iter().map(|of| (of.source.to_string(), sums(&of.figures))).collect();
    assert_eq!(sources, [("127.0.0.1".to_owned(), (3, 30)), ("127.0.0.2".to_owned(), (2, 20))]);
    assert_eq!(report.targets, []);
}

#[test]
fn without_several_there_are_no_figures() {
    let server = faulty_server(|_, stream| echo(stream));
    let mut config = config(server);
    config.messages_per_connection = Some(1);
    let report = run(config);
    assert_eq!((report.targets, report.sources), (vec![], vec![]));
}
