#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::super::document::ErrorCount;
use super::super::document::tests::example;
use super::*;
use crate::load::error::{ErrorName, Phase};

fn threshold(text: &str) -> Threshold {
    text.parse().unwrap()
}

/// Evaluates the default thresholds and those `requested`. Returns the verdict, and whether each threshold failed.
fn evaluated(mut report: Report, requested: &[&str]) -> (Verdict, Vec<(String, bool)>) {
    let requested: Vec<_> = requested.iter().map(|text| threshold(text)).collect();
    evaluate(&mut report, &requested);
    (report.verdict, report.thresholds.into_iter().map(|threshold| (threshold.expr, threshold.failed)).collect())
}

fn failed(report: Report, requested: &[&str]) -> Vec<String> {
    let (verdict, thresholds) = evaluated(report, requested);
    let failed: Vec<_> = thresholds.into_iter().filter(|(_, has_failed)| *has_failed).map(|(text, _)| text).collect();
    assert_eq!(verdict == Verdict::Pass, failed.is_empty());
    failed
}

#[test]
fn every_metric_takes_its_unit() {
    for (text, metric, bound) in [
        ("p50>300us", Metric::P50, 300.0),
        ("p90 >= 5ms", Metric::P90, 5000.0),
        ("p99>1.5s", Metric::P99, 1.5e6),
        ("p99.9<2m", Metric::P99_9, 120e6),
        ("p99.99<=1h", Metric::P99_99, 3600e6),
        ("max>0us", Metric::Max, 0.0),
        ("max>1s 500ms", Metric::Max, 1.5e6),
        (" mean>1ms ", Metric::Mean, 1000.0),
        ("connect_p99>1ms", Metric::ConnectP99, 1000.0),
        ("lateness_p99>1ms", Metric::LatenessP99, 1000.0),
        ("rate<2k/s", Metric::Rate, 2000.0),
        ("rate<1.5M", Metric::Rate, 1.5e6),
        ("connections<9.5k", Metric::Connections, 9500.0),
        ("errors>10", Metric::Errors, 10.0),
        ("unanswered>=1", Metric::Unanswered, 1.0),
    ] {
        let threshold = threshold(text);
        assert_eq!((threshold.metric, threshold.bound, &threshold.text[..]), (metric, bound, text.trim()), "{text}");
    }
}

#[test]
fn an_invalid_threshold_is_rejected_with_the_reason() {
    const FORM: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
    const DURATION: &str = "p99 requires a duration such as 300us, 5ms or 1.5s";
    for (text, reason) in [
        ("", FORM),
        ("p99", FORM),
        ("p99=5ms", FORM),
        ("p99>5", DURATION),
        ("p99>", DURATION),
        ("p99>ms", DURATION),
        ("p99>-5ms", DURATION),
        ("p99>1.2.3ms", DURATION),
        (
            "p99=>5ms",
            "unknown metric \"p99=\"; the metrics are p50 p90 p99 p99.9 p99.99 max mean connect_p99 lateness_p99 rate connections errors unanswered",
        ),
        (
            "findings>3",
            "unknown metric \"findings\"; the metrics are p50 p90 p99 p99.9 p99.99 max mean connect_p99 lateness_p99 rate connections errors unanswered",
        ),
        ("errors>5ms", "errors requires a count such as 0, 100 or 10k"),
        ("errors>5/s", "errors requires a count such as 0, 100 or 10k"),
        ("errors>inf", "errors requires a count such as 0, 100 or 10k"),
        ("rate<5k/m", "rate requires a rate such as 2000, 10k or 10k/s"),
    ] {
        assert_eq!(text.parse::<Threshold>().unwrap_err(), reason, "{text}");
    }
}

#[test]
fn a_good_run_passes_the_default_thresholds() {
    let (verdict, thresholds) = evaluated(example(), &[]);
    let thresholds: Vec<_> = thresholds.iter().map(|(text, failed)| (&text[..], *failed)).collect();
    let expected = ["connections<50", "errors>0", "unanswered>0", "findings>0", "verified<1"];
    assert_eq!((verdict, thresholds), (Verdict::Pass, expected.map(|text| (text, false)).to_vec()));
}

#[test]
fn each_default_threshold_fails_by_its_own_quantity() {
    let failed_by = |change: fn(&mut Report)| {
        let mut report = example();
        change(&mut report);
        failed(report, &[])
    };
    assert_eq!(failed_by(|report| report.connections.held = 49), ["connections<50"]);
    assert_eq!(failed_by(|report| report.messages.unanswered = 1), ["unanswered>0"]);
    assert_eq!(failed_by(|report| report.messages.verified = 0), ["verified<1"]);
    assert_eq!(failed_by(|report| report.verify.connections_failed = 1), ["findings>0"]);
    let error = |report: &mut Report| {
        let error = ErrorCount { phase: Phase::Connect, error: ErrorName::Refused, errno: None, count: 2 };
        report.errors = vec![error];
    };
    assert_eq!(failed_by(error), ["errors>0"]);
}

#[test]
fn a_requested_threshold_replaces_the_default_one_but_never_the_findings() {
    let mut report = example();
    report.connections.held = 40;
    report.messages.unanswered = 3;
    report.verify.connections_failed = 1;
    assert_eq!(
        failed(report.clone(), &["connections<40", "unanswered>2"]),
        ["findings>0", "unanswered>2"],
        "40 connections are allowed, 3 unanswered are not"
    );
    let (_, thresholds) = evaluated(report, &["unanswered>5"]);
    assert!(!thresholds.iter().any(|(text, _)| text == "unanswered>0"), "{thresholds:?}");
}

#[test]
fn a_bound_is_compared_by_its_sign() {
    let mut report = example();
    report.latency_us.p99 = Some(5000);
    let requested = ["p99>5ms", "p99>=5ms", "p99<5ms", "p99<=5ms", "p99>4999us", "rate<2k", "rate<=2k/s"];
    assert_eq!(failed(report, &requested), ["p99>=5ms", "p99<=5ms", "p99>4999us", "rate<=2k/s"]);
}

#[test]
fn a_threshold_without_a_value_fails() {
    let mut report = example();
    report.rate_per_s = None;
    evaluate(&mut report, &[threshold("lateness_p99>1h"), threshold("mean>1h"), threshold("rate<0")]);
    let requested: Vec<_> = report.thresholds.iter().filter(|threshold| !threshold.default).collect();
    assert_eq!(requested.len(), 3);
    assert!(requested.iter().all(|threshold| threshold.failed && threshold.value.is_none()), "{requested:?}");
    assert_eq!(report.verdict, Verdict::Fail);
}

#[test]
fn a_run_is_inconclusive_only_if_nothing_failed() {
    let verdict = |kept, saturated, unanswered, ended| {
        let mut report = example();
        (report.schedule.kept, report.generator.saturated) = (kept, saturated);
        (report.messages.unanswered, report.ended) = (unanswered, ended);
        evaluated(report, &[])
    };
    let complete = Ended::Complete;
    assert_eq!(verdict(Some(true), Some(false), 0, complete).0, Verdict::Pass);
    assert_eq!(verdict(None, None, 0, complete).0, Verdict::Pass);
    assert_eq!(verdict(Some(false), Some(false), 0, complete).0, Verdict::Inconclusive);
    assert_eq!(verdict(None, Some(true), 0, complete).0, Verdict::Inconclusive);
    assert_eq!(verdict(Some(false), Some(true), 1, complete).0, Verdict::Fail);
    assert_eq!(verdict(Some(false), Some(true), 1, Ended::Interrupted), (Verdict::Interrupted, Vec::new()));
}
