#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::super::document::tests::example;
use super::super::document::{ErrorCount, Hold, Messages};
use super::super::histogram::Histogram;
use super::super::outages::Outages;
use super::super::stages::StageFigures;
use super::super::summary::Summary;
use super::metric::{HoldOutcome, METRICS};
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

fn quantile(distribution: Distribution, quantile: f64) -> Metric {
    Metric::Duration(distribution, Statistic::Quantile(quantile))
}

#[test]
fn a_threshold_on_outages_replaces_those_on_what_begins_an_outage() {
    let mut report = example();
    report.messages.unanswered = 2;
    report.errors.push(ErrorCount {
        phase: Phase::Receive,
        error: ErrorName::Reset,
        errno: None,
        count: 2,
        first_s: 0.0,
        targets: Vec::new(),
    });
    let both = ["errors>0", "unanswered>0"];
    assert_eq!(failed(report.clone(), &[]), both);
    // Without --reconnect there are no outages.
    assert_eq!(failed(report.clone(), &["outages>9"]), [both[0], both[1], "outages>9"]);
    let recovery_us = Summary::default();
    report.outages = Some(Outages { count: 2, recovered: 2, attempts: 3, longest_us: 1_500_000, recovery_us });
    assert_eq!(failed(report.clone(), &["p99<0us"]), [both[0], both[1], "p99<0us"]);
    assert!(failed(report.clone(), &["outages>2"]).is_empty());
    assert!(failed(report.clone(), &["longest_outage>1500ms"]).is_empty());
    assert_eq!(failed(report.clone(), &["longest_outage>=1500ms", "outages>2"]), ["longest_outage>=1500ms"]);
    assert_eq!(failed(report, &["outages>=4%"]), ["outages>=4%"]);
}

#[test]
fn the_verdict_of_a_search_is_on_its_rate_and_not_on_its_last_window() {
    let verdict = |found_rate, limited_by, requested: &[&str]| {
        let mut report = example();
        (report.connections.held, report.schedule.kept) = (0, Some(false));
        let mut search = SearchReport::new(vec!["p99<5ms".to_owned(), "connections>=0".to_owned()]);
        (search.found_rate, search.limited_by) = (found_rate, Some(limited_by));
        report.search = Some(search);
        evaluated(report, requested).0
    };
    let found = Some(100.0);
    assert_eq!(verdict(found, LimitedBy::Server, &[]), Verdict::Pass);
    assert_eq!(verdict(found, LimitedBy::Server, &["connections<1"]), Verdict::Fail);
    assert_eq!(verdict(None, LimitedBy::Server, &[]), Verdict::Fail);
    assert_eq!(verdict(found, LimitedBy::Generator, &[]), Verdict::Inconclusive);
    assert_eq!(verdict(found, LimitedBy::Generator, &["found_rate<99"]), Verdict::Pass);
    assert_eq!(verdict(found, LimitedBy::Generator, &["found_rate<101"]), Verdict::Fail);
}

#[test]
fn every_metric_takes_its_unit() {
    for (text, metric, bound) in [
        ("p50>300us", quantile(Distribution::Latency, 0.5), 300.0),
        ("p9 >= 5ms", quantile(Distribution::Latency, 0.09), 5000.0),
        ("p99>1.5s", quantile(Distribution::Latency, 0.99), 1.5e6),
        ("p99.9<2m", quantile(Distribution::Latency, 0.999), 120e6),
        ("p99.99999<=1h", quantile(Distribution::Latency, 0.999_999_9), 3600e6),
        ("max>0us", Metric::Duration(Distribution::Latency, Statistic::Max), 0.0),
        ("max>1500ms", Metric::Duration(Distribution::Latency, Statistic::Max), 1.5e6),
        (" mean>1ms ", Metric::Duration(Distribution::Latency, Statistic::Mean), 1000.0),
        ("connect_p99>1ms", quantile(Distribution::Connect, 0.99), 1000.0),
        ("connect_max>1ms", Metric::Duration(Distribution::Connect, Statistic::Max), 1000.0),
        ("lateness_p50>1ms", quantile(Distribution::Lateness, 0.5), 1000.0),
        ("lateness_mean>1ms", Metric::Duration(Distribution::Lateness, Statistic::Mean), 1000.0),
        ("rate<2k/s", Metric::Rate, 2000.0),
        ("rate<1.5M", Metric::Rate, 1.5e6),
        ("connections<9.5k", Metric::Connections, 9500.0),
        ("errors>10", Metric::Errors, 10.0),
        ("unanswered>=1", Metric::Unanswered, 1.0),
        ("unsent>1k", Metric::Unsent, 1000.0),
        ("deferred>10", Metric::Deferred, 10.0),
        ("server_cpu>5us", Metric::ServerCpu, 5.0),
        ("outages>3", Metric::Outages, 3.0),
        ("longest_outage>2s", Metric::LongestOutage, 2e6),
        ("hold_reset>0", Metric::Hold(HoldOutcome::Reset), 0.0),
        ("hold_unasked>0", Metric::Hold(HoldOutcome::Unasked), 0.0),
    ] {
        let threshold = threshold(text);
        let expected = (metric, Bound::Value(bound), text.trim());
        assert_eq!((threshold.quantity.metric, threshold.bound, &threshold.text[..]), expected, "{text}");
    }
    assert_eq!(threshold("rate<99.5%").bound, Bound::Percent(99.5));
    assert_eq!(threshold("errors > 0.1 %").bound, Bound::Percent(0.1));
}

#[test]
fn a_threshold_on_a_stage_does_not_replace_the_default_one() {
    let threshold = threshold("errors[2]>5");
    assert_eq!(threshold.quantity, Quantity { metric: Metric::Errors, stage: Some(2) });
    let mut report = example();
    evaluate(&mut report, &[threshold]);
    let rows: Vec<_> = report.thresholds.iter().map(|row| (&row.expr[..], row.value, row.failed)).collect();
    assert!(rows.contains(&("errors>0", Some(0.0), false)), "{rows:?}");
    // Without that stage it has no value.
    assert!(rows.contains(&("errors[2]>5", None, true)), "{rows:?}");
}

#[test]
fn an_invalid_threshold_is_rejected_with_the_reason() {
    const FORM: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
    const DURATION: &str = "p99 requires a duration such as 300us, 5ms or 1.5s";
    const COUNT: &str = "errors requires a count such as 0, 100 or 10k, or a percentage such as 0.1%";
    for (text, reason) in [
        ("", FORM),
        ("p99", FORM),
        ("p99=5ms", FORM),
        ("p99>5", DURATION),
        ("p99>", DURATION),
        ("p99>ms", DURATION),
        ("p99>-5ms", DURATION),
        ("p99>1.2.3ms", DURATION),
        ("p99=>5ms", &format!("unknown metric \"p99=\"; the metrics are {METRICS}")),
        ("findings>3", &format!("unknown metric \"findings\"; the metrics are {METRICS}")),
        ("p>5ms", &format!("unknown metric \"p\"; the metrics are {METRICS}")),
        ("p0>5ms", &format!("unknown metric \"p0\"; the metrics are {METRICS}")),
        ("p100>5ms", &format!("unknown metric \"p100\"; the metrics are {METRICS}")),
        ("p99.>5ms", &format!("unknown metric \"p99.\"; the metrics are {METRICS}")),
        ("p9e1>5ms", &format!("unknown metric \"p9e1\"; the metrics are {METRICS}")),
        ("hold_p99>5ms", &format!("unknown metric \"hold_p99\"; the metrics are {METRICS}")),
        ("errors>5ms", COUNT),
        ("errors>5/s", COUNT),
        ("errors>inf", COUNT),
        ("errors>-1%", COUNT),
        ("p99>5%", DURATION),
        ("p99>1s 500ms", DURATION),
        ("p99>5M", DURATION),
        ("p999>5ms", "unknown metric \"p999\": did you mean p99.9?"),
        ("lateness_p9999>5ms", "unknown metric \"lateness_p9999\": did you mean lateness_p99.99?"),
        ("schedule<1", "schedule takes no comparison: it fails if the schedule was not kept"),
        ("rate<5k/m", "rate requires a rate such as 2000, 10k or 10k/s, or a percentage such as 0.1%"),
    ] {
        assert_eq!(text.parse::<Threshold>().unwrap_err().to_string(), reason, "{text}");
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
        let error = ErrorCount {
            phase: Phase::Connect,
            error: ErrorName::Refused,
            errno: None,
            count: 2,
            first_s: 0.0,
            targets: Vec::new(),
        };
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

#[test]
fn any_percentile_is_read_from_the_histogram() {
    let mut histogram = Histogram::new();
    for value in 1..=1000 {
        histogram.record(value * 1000);
    }
    let mut report = example();
    report.latency_us = histogram.summary();
    report.connect_us = histogram.summary();
    for (text, value) in [("p97.5>1h", 975.0), ("p99.9>1h", 999.0), ("p95>1h", 950.0), ("connect_p1>1h", 10.0)] {
        evaluate(&mut report, &[threshold(text)]);
        assert_eq!(report.thresholds.last().unwrap().value, Some(value), "{text}");
    }
}

#[test]
fn a_percentage_is_of_what_was_asked_opened_or_due() {
    let mut report = example();
    report.rate_per_s = Some(470.0);
    report.messages.deferred = 50;
    report.connections.held = 49;
    report.connections.opened_total = 200;
    report.errors = vec![ErrorCount {
        phase: Phase::Connect,
        error: ErrorName::Refused,
        errno: None,
        count: 1,
        first_s: 0.0,
        targets: Vec::new(),
    }];
    report.hold = Some(Hold { reset: 1, ..Hold::default() });
    for (text, value, has_failed) in [
        ("rate<99%", 23.5, true),
        ("deferred>0.25%", 0.25, false),
        ("deferred>=0.25%", 0.25, true),
        ("connections<98%", 98.0, false),
        ("errors>0.5%", 0.5, false),
        ("hold_reset>1%", 2.0, true),
    ] {
        evaluate(&mut report, &[threshold(text)]);
        let row = report.thresholds.last().unwrap();
        assert_eq!((row.value, row.failed), (Some(value), has_failed), "{text}");
    }
    // A closed loop has no rate that was asked of it.
    report.config.rate = None;
    evaluate(&mut report, &[threshold("rate<99%")]);
    assert_eq!(report.thresholds.last().unwrap().value, None);
}

#[test]
fn in_churn_a_percentage_of_the_rate_is_of_the_messages_of_the_connections_due() {
    let mut report = example();
    report.config.messages_per_connection = Some(4);
    report.rate_per_s = Some(4000.0);
    report.stages = vec![StageFigures {
        from: 150.0,
        to: 250.0,
        seconds: 1.0,
        messages: Messages::default(),
        rate_per_s: Some(400.0),
        errors: 0,
        latency_us: Summary::default(),
        lateness_us: Summary::default(),
    }];
    let percent = |report: &Report| ["rate>0%", "rate[1]>0%"].map(|text| threshold(text).quantity.percent(report));
    // Of 2000 messages a second, and of 200 in the stage.
    assert_eq!(percent(&report), [Some(200.0); 2]);
    report.mode = Mode::Churn;
    assert_eq!(percent(&report), [Some(50.0); 2]);
}

#[test]
fn a_schedule_that_is_not_kept_fails_its_threshold() {
    for (kept, has_failed) in [(Some(true), false), (Some(false), true), (None, true)] {
        let mut report = example();
        report.schedule.kept = kept;
        assert_eq!(failed(report, &["schedule"]).contains(&"schedule".to_owned()), has_failed, "{kept:?}");
    }
}

#[test]
fn a_failed_threshold_has_the_unit_of_its_metric() {
    let mut report = example();
    report.latency_us.mean = Some(71.2);
    let requested = ["server_cpu>0us", "mean > 1us", "rate>0", "rate>0%"];
    evaluate(&mut report, &requested.iter().map(|text| threshold(text)).collect::<Vec<_>>());
    let results = &report.thresholds[report.thresholds.len() - 4..];
    assert_eq!(results.iter().map(ThresholdResult::is_time).collect::<Vec<_>>(), [true, true, false, false]);
    // A default threshold whose metric has no name.
    assert!(report.thresholds.iter().all(|result| result.expr != "verified<1" || !result.is_time()));
    let text = report.to_string();
    for line in ["server_cpu>0us (5 µs)", "mean > 1us (71.2 µs)", "rate>0 (2000)", "rate>0% (100 %)"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

fn value(report: &Report, name: &str) -> Option<f64> {
    threshold(&format!("{name}>0")).quantity.value(report)
}

#[test]
fn each_outcome_of_hold_has_its_own_metric() {
    let mut report = example();
    assert_eq!(value(&report, "hold_alive"), None);
    report.hold = Some(Hold { alive: 11, late: 12, reset: 13, closed: 14, silent: 15, unasked: 16, ..Hold::default() });
    let names = ["hold_alive", "hold_late", "hold_reset", "hold_closed", "hold_silent", "hold_unasked"];
    assert_eq!(names.map(|name| value(&report, name)), [11.0, 12.0, 13.0, 14.0, 15.0, 16.0].map(Some));
}

#[test]
fn each_figure_of_a_stage_has_its_own_metric_and_whole() {
    let summary = |max| Summary { count: 1, max: Some(max), mean: Some(0.5), ..Summary::default() };
    let stage = |rate: f64| StageFigures {
        from: rate,
        to: rate + 100.0,
        seconds: 1.0,
        messages: Messages { due: 200, unsent: 21, verified: 22, unanswered: 23, failed: 24, deferred: 25 },
        rate_per_s: Some(rate + 26.0),
        errors: 27,
        latency_us: summary(28),
        lateness_us: summary(29),
    };
    let mut report = example();
    report.connections.opened_total = 270;
    report.stages = vec![stage(0.0), stage(150.0)];
    for (name, expected) in [
        ("rate", Some(176.0)),
        ("errors", Some(27.0)),
        ("unanswered", Some(23.0)),
        ("unsent", Some(21.0)),
        ("deferred", Some(25.0)),
        ("max", None),
        ("lateness_max", None),
    ] {
        let bound = if expected.is_some() { "0" } else { "0us" };
        let quantity = threshold(&format!("{name}[2]>{bound}")).quantity;
        let whole_run = Quantity { stage: None, ..quantity };
        match name {
            "max" => assert_eq!(quantity.value(&report), Some(28.0)),
            "lateness_max" => assert_eq!(quantity.value(&report), Some(29.0)),
            _ => assert_eq!(quantity.value(&report), expected, "{name}"),
        }
        assert_ne!(quantity.value(&report), whole_run.value(&report), "{name}");
    }
    let percent = |name: &str| threshold(&format!("{name}[2]>0%")).quantity.percent(&report);
    // Of the mean of 150 and 250 a second, of 270 connections, and of 200 messages that were due.
    assert_eq!(percent("rate"), Some(88.0));
    assert_eq!(percent("errors"), Some(10.0));
    assert_eq!(percent("unanswered"), Some(11.5));
    assert_eq!(threshold("rate[3]>0%").quantity.percent(&report), None);
    assert_eq!(threshold("rate[1]>0%").quantity.percent(&report), Some(52.0));
    report.stages[1].messages.due = 0;
    assert_eq!(threshold("unsent[2]>0%").quantity.percent(&report), None);
}

#[test]
fn a_stage_beyond_the_last_is_refused() {
    for (text, stages, is_allowed) in [
        ("p99[1]<1ms", 1, true),
        ("p99[2]<1ms", 1, false),
        ("p99[1]<1ms", 0, false),
        ("p99[2]<1ms", 2, true),
        ("p99<1ms", 0, true),
    ] {
        let threshold = threshold(text);
        assert_eq!(threshold.quantity.check_stage(text, stages).is_ok(), is_allowed, "{text} of {stages}");
    }
    assert!("connect_p99[1]<1ms".parse::<Threshold>().is_err());
    assert!("rate[0]<1".parse::<Threshold>().is_err());
}

#[test]
fn a_goal_of_a_search_is_on_what_a_window_measures() {
    for (text, is_goal) in [
        ("p99<1ms", true),
        ("errors<1", true),
        ("rate>90%", true),
        ("p99[1]<1ms", false),
        ("schedule", false),
        ("found_rate>1k", false),
        ("outages<1", false),
        ("longest_outage<1s", false),
        ("hold_reset<1", false),
        ("lateness_p99<1ms", true),
        // The same at every rate.
        ("connect_p99<1ms", false),
    ] {
        assert_eq!(threshold(text).is_goal(), is_goal, "{text}");
        assert_eq!(threshold(text).is_on_found_rate(), text.starts_with("found_rate"), "{text}");
        assert_eq!(threshold(text).is_on_errors(), text.starts_with("errors"), "{text}");
    }
}

#[test]
fn only_an_upper_bound_of_the_latency_limits_the_share_of_slow_messages() {
    assert_eq!(threshold("p75<2ms").latency_limit(), Some((0.25, 2_000_000)));
    assert_eq!(threshold("max<=3us").latency_limit(), Some((0.0, 3000)));
    for text in ["p99>1ms", "mean<1ms", "connect_p99<1ms", "lateness_max<1ms", "errors<1", "errors<1%"] {
        assert_eq!(threshold(text).latency_limit(), None, "{text}");
    }
}
