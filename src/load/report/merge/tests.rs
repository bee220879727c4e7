#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::document::tests::example;
use super::super::document::{Loop, Mode, Verdict};
use super::super::findings::{Excerpt, FindingKind};
use super::*;
use crate::load::ProxyVersion;
use crate::load::error::{ErrorName, Phase};
use crate::load::report::StageFigures;

fn histogram(microseconds: impl Iterator<Item = u64>) -> Histogram {
    let mut histogram = Histogram::new();
    for value in microseconds {
        histogram.record(value * 1000);
    }
    histogram
}

/// Returns the file name and the report of a run: the example with another identity and `change`.
fn run(name: &str, change: impl FnOnce(&mut Report)) -> (String, Report) {
    let mut report = example();
    name.clone_into(&mut report.run_id);
    change(&mut report);
    (format!("{name}.json"), report)
}

#[track_caller]
fn merge_error(runs: &[(String, Report)]) -> String {
    merge(runs, &[]).unwrap_err().to_string()
}

#[test]
fn ranks_with_phases_of_any_length_are_merged() {
    let endless = run("a", |run| (run.phases_s.connect, run.phases_s.warmup) = (1e19, 1e19));
    assert_eq!(merge_ranks(vec![endless], &[]).unwrap().run_id, "a");
}

#[test]
fn the_windows_of_ranks_begin_together_whatever_their_clocks_say() {
    let sample = Sample { t: 1, rate: 10, open: 50, errors: 0, p50: None, p99: None };
    let first = run("a", |run| run.timeline = vec![sample]);
    let other = run("b", |run| {
        run.start += Duration::from_secs(3600);
        (run.phases_s.connect, run.phases_s.warmup) = (2.5, 3.0);
        run.timeline = vec![sample];
    });
    let merged = merge_ranks(vec![first, other], &[]).unwrap();
    // 0.5 s and 1 s before the window, and 2.5 s and 3 s.
    assert_eq!(merged.start, example().start - Duration::from_secs(4));
    assert_eq!(merged.phases_s, Phases { connect: 4.5, ..example().phases_s });
    assert_eq!(merged.timeline, [Sample { rate: 20, open: 100, ..sample }]);
}

#[test]
fn percentiles_are_of_all_values_and_not_averaged() {
    let a = run("a", |run| run.latency_us = histogram(1..=99).summary());
    let b = run("b", |run| run.latency_us = histogram(std::iter::once(1_000_000)).summary());
    let merged = merge(&[a, b], &[]).unwrap();
    assert_eq!(merged.latency_us, histogram((1..=99).chain([1_000_000])).summary());
    assert_eq!((merged.latency_us.p50, merged.latency_us.p99), (Some(50), Some(99)));
    assert_eq!(merged.connect_us, Summary::default());
}

#[test]
fn counts_and_rates_are_summed() {
    let a = run("a", |run| run.messages.deferred = 5);
    let b = run("b", |run| run.messages.deferred = 6);
    let merged = merge(&[a, b], &[]).unwrap();
    let expected = Messages { due: 40000, verified: 40000, deferred: 11, ..Messages::default() };
    assert_eq!(merged.messages, expected);
    let all = Connections { requested: 100, established: 100, verified: 100, held: 100, opened_total: 100 };
    assert_eq!(merged.connections, all);
    assert_eq!((merged.rate_per_s, merged.config.rate), (Some(4000.0), Some(4000.0)));
    assert_eq!((merged.verdict, merged.run_id.as_str()), (Verdict::Pass, "a+b"));
    assert_eq!(merged.thresholds[0].expr, "connections<100");
}

#[test]
fn outages_are_summed_and_the_longest_is_that_of_all() {
    let with_outages = |count: u64, longest_us, times: Histogram| {
        move |run: &mut Report| {
            let recovery_us = times.summary();
            run.outages = Some(Outages { count, recovered: count - 1, attempts: 2 * count, longest_us, recovery_us });
        }
    };
    let a = run("a", with_outages(5, 70, histogram(1..=5)));
    let b = run("b", with_outages(3, 90, histogram(6..=8)));
    let merged = merge(&[a, b], &[]).unwrap().outages.unwrap();
    assert_eq!([merged.count, merged.recovered, merged.attempts, merged.longest_us], [8, 6, 16, 90]);
    assert_eq!(merged.recovery_us, histogram(1..=8).summary());
    assert_eq!(merge(&[run("a", |_| {}), run("b", |_| {})], &[]).unwrap().outages, None);
}

#[test]
fn equal_errors_are_summed_and_all_findings_kept() {
    let error = |error, count| ErrorCount {
        phase: Phase::Connect,
        error,
        errno: None,
        count,
        first_s: 0.5,
        targets: vec![TargetCount { target: "127.0.0.1:5000".parse().unwrap(), count }],
    };
    let finding = |at_s| Finding {
        kind: FindingKind::Lost,
        connection: 1,
        local: None,
        peer: "127.0.0.1:5000".parse().unwrap(),
        offset: 0,
        at_s,
        expected: Excerpt::default(),
        received: Excerpt::default(),
    };
    let a = run("a", |run| {
        run.errors = vec![error(ErrorName::Timeout, 1), error(ErrorName::Refused, 2)];
        run.verify.findings = vec![finding(0.5)];
    });
    let b = run("b", |run| {
        run.start += Duration::from_millis(100);
        run.errors = vec![error(ErrorName::Refused, 3), error(ErrorName::Reset, 4)];
        run.verify.findings = vec![finding(0.5)];
    });
    let merged = merge(&[a, b], &[]).unwrap();
    // Times count from the start of the first run.
    let later = ErrorCount { first_s: 0.6, ..error(ErrorName::Reset, 4) };
    assert_eq!(merged.errors, [error(ErrorName::Refused, 5), later, error(ErrorName::Timeout, 1)]);
    assert_eq!(merged.verify.findings, [finding(0.5), finding(0.6)]);
    assert_eq!(merged.verdict, Verdict::Fail);

    let exact = run("a", |run| run.errors = vec![ErrorCount { first_s: 0.123_456_789, ..error(ErrorName::Reset, 1) }]);
    assert_eq!(merge(std::slice::from_ref(&exact), &[]).unwrap().errors, exact.1.errors);
}

#[test]
fn the_figures_of_each_target_and_source_are_added_up() {
    let figures = |values: &RangeInclusive<u64>| {
        let latency_us = histogram(values.clone()).summary();
        let count = latency_us.count;
        let (connections, messages, errors) = (count, 2 * count, 3 * count);
        Figures { connections, messages, errors, p50: latency_us.p50, p99: latency_us.p99, latency_us }
    };
    let targets = |parts: &[(u8, RangeInclusive<u64>)]| -> Vec<_> {
        let target = |last| format!("10.0.0.{last}:5000").parse().unwrap();
        parts.iter().map(|(last, values)| TargetFigures { target: target(last), figures: figures(values) }).collect()
    };
    let sources = |parts: &[(u8, RangeInclusive<u64>)]| -> Vec<_> {
        let source = |last| format!("10.0.1.{last}").parse().unwrap();
        parts.iter().map(|(last, values)| SourceFigures { source: source(last), figures: figures(values) }).collect()
    };
    let with_figures = |name, parts: [(u8, RangeInclusive<u64>); 2]| {
        run(name, |run| (run.targets, run.sources) = (targets(&parts), sources(&parts)))
    };
    let a = with_figures("a", [(1, 1..=50), (2, 1..=10)]);
    let merged = merge(&[a.clone(), with_figures("b", [(3, 7..=7), (2, 11..=30)])], &[]).unwrap();
    let all = [(1, 1..=50), (2, 1..=30), (3, 7..=7)];
    assert_eq!((merged.targets, merged.sources), (targets(&all), sources(&all)));
    // A run with one target does not tell its figures.
    let merged = merge(&[a, run("b", |_| ())], &[]).unwrap();
    assert_eq!((merged.targets, merged.sources), (vec![], vec![]));
}

#[test]
fn settings_are_merged_and_differing_ones_dropped() {
    let a = run("a", |run| run.config.pipeline = Some(4));
    let b = run("b", |run| {
        run.config.targets = vec!["127.0.0.1:5001".parse().unwrap(), "127.0.0.1:5000".parse().unwrap()];
        run.config.sources = vec!["10.0.0.1".parse().unwrap()];
        run.config.seed = Some(2);
        run.config.proxy_protocol = Some(ProxyVersion::V1);
        run.config.pipeline = Some(9);
        run.config.labels.insert("k".to_owned(), "other".to_owned());
    });
    let config = merge(&[a, b], &[]).unwrap().config;
    assert_eq!(
        config.targets,
        ["127.0.0.1:5000", "127.0.0.1:5001"].map(|target| target.parse::<SocketAddr>().unwrap())
    );
    assert_eq!(config.sources, ["10.0.0.1".parse().unwrap()]);
    assert_eq!((config.seed, config.pipeline), (None, Some(9)));
    assert!(config.labels.is_empty() && config.proxy_protocol.is_none());
    let same = ["a", "b"].map(|id| run(id, |run| run.config.proxy_protocol = Some(ProxyVersion::V2)));
    assert_eq!(merge(&same, &[]).unwrap().config.proxy_protocol, Some(ProxyVersion::V2));
    let messages = |first, second| {
        let runs = [("a", first), ("b", second)]
            .map(|(id, messages)| run(id, |run| run.config.messages_per_connection = messages));
        merge(&runs, &[]).unwrap().config.messages_per_connection
    };
    assert_eq!(
        (messages(Some(5), Some(5)), messages(Some(5), Some(6)), messages(Some(5), None)),
        (Some(5), None, None)
    );
}

#[test]
fn values_that_cannot_be_merged_are_none() {
    let merged = merge(&[run("a", |_| ()), run("b", |_| ())], &[]).unwrap();
    assert_eq!((merged.sockstat, merged.origin), (None, None));
    let generator = Generator {
        cpu_us_per_message: Some(5.1),
        cpu_percent: Some(62.0),
        turn_us_p99: None,
        longest_gap_us: Some(900),
        saturated: Some(false),
    };
    assert_eq!(merged.generator, generator);
    // Both read the same process, which worked for both.
    let server = ServerSide { pid: 4711, cpu_us_per_message: Some(2.5), rss_bytes_per_connection: None };
    assert_eq!(merged.server, Some(server));
    let other = run("b", |run| run.server.as_mut().unwrap().pid = 1);
    assert_eq!(merge(&[run("a", |_| ()), other], &[]).unwrap().server, None);
}

#[test]
fn samples_are_added_by_time() {
    let point = |t, rate, p50| Sample { t, rate, open: 50, errors: 1, p50, p99: p50 };
    let a = run("a", |run| run.timeline = vec![point(1, 10, Some(1)), point(2, 20, Some(1))]);
    let b = run("b", |run| {
        run.start += Duration::from_secs(1);
        run.timeline = vec![point(1, 300, Some(2)), point(2, 400, Some(2))];
    });
    let merged = merge(&[a, b], &[]).unwrap();
    let both = Sample { t: 2, rate: 320, open: 100, errors: 2, p50: None, p99: None };
    assert_eq!(merged.timeline, [point(1, 10, Some(1)), both, point(3, 400, Some(2))]);
}

#[test]
fn the_schedule_is_kept_if_every_run_kept_it() {
    let kept = |schedules: [Option<bool>; 2]| {
        let runs: Vec<_> = ["a", "b"]
            .into_iter()
            .zip(schedules)
            .map(|(name, kept)| run(name, |run| run.schedule.kept = kept))
            .collect();
        merge(&runs, &[]).unwrap().schedule.kept
    };
    assert_eq!(kept([Some(true), Some(true)]), Some(true));
    assert_eq!(kept([Some(true), Some(false)]), Some(false));
    assert_eq!(kept([None, None]), None);
}

fn stage(seconds: f64, messages: Messages) -> StageFigures {
    StageFigures {
        from: 0.1,
        to: 1000.0,
        seconds,
        messages,
        rate_per_s: Some(500.0),
        errors: 2,
        latency_us: histogram(1..=99).summary(),
        lateness_us: Summary::default(),
    }
}

#[test]
fn the_figures_of_each_stage_are_added_up() {
    let messages = Messages { due: 50, verified: 49, unanswered: 1, ..Messages::default() };
    let in_stages = |name| run(name, |run| run.stages = vec![stage(10.0, messages), stage(5.0, messages)]);
    let thresholds = ["errors[2]>3", "p99[1]>98us"].map(|text| text.parse().unwrap());
    let merged = merge(&[in_stages("a"), in_stages("b"), in_stages("c")], &thresholds).unwrap();
    let expected = Messages { due: 150, verified: 147, unanswered: 3, ..Messages::default() };
    for (stage, seconds) in merged.stages.iter().zip([10.0, 5.0]) {
        assert_eq!((stage.from, stage.to, stage.seconds), (0.3, 3000.0, seconds));
        assert_eq!((stage.messages, stage.rate_per_s, stage.errors), (expected, Some(1500.0), 6));
        assert_eq!((stage.latency_us.count, stage.latency_us.p99), (297, Some(99)));
    }
    let failed: Vec<_> = merged.thresholds.iter().filter(|row| row.failed).map(|row| &row.expr[..]).collect();
    assert_eq!(failed, ["errors[2]>3", "p99[1]>98us"]);
    let other = run("b", |run| run.stages = vec![stage(10.0, messages), stage(6.0, messages)]);
    assert_eq!(
        merge_error(&[in_stages("a"), other]),
        "b.json: length of the stages is [10.0,6.0], and [10.0,5.0] in a.json"
    );
    let error = merge(&[in_stages("a")], &["p99[3]>1s".parse().unwrap()]).unwrap_err().to_string();
    assert_eq!(error, "p99[3]>1s is on stage 3, and the rate has only 2");
}

#[test]
fn runs_with_other_settings_are_rejected() {
    let a = run("a", |_| ());
    let error = |change: fn(&mut Report)| merge_error(&[a.clone(), run("b", change)]);
    assert_eq!(error(|run| run.mode = Mode::Hold), "b.json: mode is \"hold\", and \"echo\" in a.json");
    assert_eq!(error(|run| run.r#loop = Loop::Closed), "b.json: loop is \"closed\", and \"open\" in a.json");
    assert_eq!(error(|run| run.config.size = 65), "b.json: size is 65, and 64 in a.json");
    assert_eq!(error(|run| run.latency_us.count = 1), "b.json: latency_us: count is 1, and 0 in hdr_v2");
    assert_eq!(merge(&[], &[]).unwrap_err().to_string(), "there is no report to merge");
}

#[test]
fn a_run_that_occurs_twice_is_rejected_even_in_a_merged_report() {
    let (a, b) = (run("a", |_| ()), run("b", |_| ()));
    assert_eq!(merge_error(&[a.clone(), a.clone()]), "a.json: run \"a\" is also in a.json");
    let ab = ("ab.json".to_owned(), merge(&[a, b.clone()], &[]).unwrap());
    assert_eq!(merge_error(&[ab.clone(), b]), "b.json: run \"b\" is also in ab.json");
    let c = run("c", |_| ());
    assert_eq!(merge(&[ab, c], &[]).unwrap().messages.due, 60000);
}

#[test]
fn a_merged_window_shorter_than_a_millisecond_is_not_empty() {
    let short = run("a", |run| run.phases_s.measure = 0.000_3);
    let merged = ("merged.json".to_owned(), merge(&[short], &[]).unwrap());
    assert!((merged.1.phases_s.measure - 0.000_3).abs() < 1e-9, "{:?}", merged.1.phases_s);
    assert!(merge(&[merged], &[]).is_ok());
}

#[test]
fn windows_must_have_nine_tenths_in_common() {
    let later = |milliseconds| {
        run("b", move |run| {
            // The window begins after the connect phase.
            run.start += Duration::from_millis(milliseconds);
            run.phases_s.connect += 0.5;
        })
    };
    let merged = merge(&[run("a", |_| ()), later(400)], &[]).unwrap();
    let a = example();
    assert_eq!(merged.start, a.start);
    let phases = Phases { measure: 10.9, ..a.phases_s };
    assert_eq!(merged.phases_s, phases);
    let error = merge_error(&[run("a", |_| ()), later(600)]);
    assert_eq!(error, "b.json: the measured window overlaps the files before by 89 %, under 90 %");
    let short = run("b", |run| run.phases_s.measure = 5.0);
    let error = merge_error(&[run("a", |_| ()), short]);
    assert_eq!(error, "b.json: the measured window overlaps the files before by 50 %, under 90 %");
    let empty = run("a", |run| run.phases_s.measure = 0.0);
    assert_eq!(merge_error(&[empty]), "a.json: the measured window is empty");
}

#[test]
fn thresholds_are_evaluated_on_the_whole() {
    let slow = |name| run(name, |run| run.latency_us = histogram(1..=100).summary());
    let requested = ["p99>98us".parse().unwrap(), "rate<4k".parse().unwrap()];
    let merged = merge(&[slow("a"), slow("b")], &requested).unwrap();
    let failed: Vec<_> =
        merged.thresholds.iter().filter(|threshold| threshold.failed).map(|threshold| &threshold.expr[..]).collect();
    assert_eq!(failed, ["p99>98us"]);
    assert_eq!(merged.verdict, Verdict::Fail);
}

#[test]
fn one_interrupted_run_interrupts_the_whole() {
    let interrupted = run("b", |run| (run.ended, run.verdict) = (Ended::Interrupted, Verdict::Interrupted));
    let merged = merge(&[run("a", |_| ()), interrupted], &[]).unwrap();
    assert_eq!((merged.ended, merged.verdict, merged.thresholds), (Ended::Interrupted, Verdict::Interrupted, vec![]));
}

#[test]
fn one_late_run_makes_the_whole_inconclusive() {
    let late = run("b", |run| run.schedule.kept = Some(false));
    assert_eq!(merge(&[run("a", |_| ()), late], &[]).unwrap().verdict, Verdict::Inconclusive);
}

#[test]
fn cpu_time_is_divided_by_the_replies_that_arrived_in_the_windows() {
    let busy = run("a", |run| (run.rate_per_s, run.messages.verified) = (Some(6000.0), 1));
    let short = run("b", |run| {
        (run.rate_per_s, run.phases_s.measure) = (Some(4000.0), 9.0);
        run.generator.cpu_us_per_message = Some(1.1);
    });
    let merged = merge(&[busy, short], &[]).unwrap();
    // (60,000 of 5.1 us and 36,000 of 1.1 us) / 96,000.
    assert_eq!(merged.generator.cpu_us_per_message, Some(3.6));
    let silent = ["a", "b"].map(|name| run(name, |run| run.rate_per_s = Some(0.0)));
    let merged = merge(&silent, &[]).unwrap();
    assert_eq!((merged.generator.cpu_us_per_message, merged.server.unwrap().cpu_us_per_message), (None, None));
}

#[test]
fn the_outcomes_of_hold_are_merged() {
    let hold = |min, max| {
        move |run: &mut Report| {
            run.mode = Mode::Hold;
            let closed_after_s = Some(ClosedAfter { min, p50: Some(min), max });
            run.hold = Some(Hold { closed: 2, unasked: 1, failed: 3, closed_after_s, ..Hold::default() });
        }
    };
    let merged = merge(&[run("a", hold(60.0, 61.0)), run("b", hold(59.0, 60.5))], &[]).unwrap().hold.unwrap();
    assert_eq!((merged.closed, merged.unasked, merged.failed), (4, 2, 6));
    assert_eq!(merged.closed_after_s, Some(ClosedAfter { min: 59.0, p50: None, max: 61.0 }));
}

#[test]
fn the_faulted_connections_of_each_rule_are_summed() {
    let with_faults = |rules: &[(&str, u64)]| {
        let figures = |&(rule, open): &(&str, u64)| FaultFigures {
            connections: open + 1,
            open,
            own_end: 1,
            ..FaultFigures::new(rule.to_owned())
        };
        let figures: Vec<_> = rules.iter().map(figures).collect();
        move |run: &mut Report| run.faults.clone_from(&figures)
    };
    let a = run("a", with_faults(&[("stall", 2), ("rate=1", 3)]));
    let b = run("b", with_faults(&[("rate=1", 5)]));
    let merged = merge(&[a, b], &[]).unwrap().faults;
    let figures: Vec<_> = merged.iter().map(|of| (&of.rule[..], of.connections, of.open, of.own_end)).collect();
    assert_eq!(figures, [("stall", 3, 2, 1), ("rate=1", 10, 8, 2)]);
}
