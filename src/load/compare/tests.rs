use super::super::report::example_report;
use super::*;
use crate::load::ArrivalProcess;
use crate::load::report::{ErrorCount, ErrorName, Messages, Phase, StageFigures, Summary};

/// Returns windows whose latency is `median` microseconds and scatters by `spread`, a share.
fn windows(random: &mut fastrand::Rng, count: usize, median: f64, spread: f64) -> Vec<(String, Report)> {
    let example = example_report();
    let window = |_| {
        // The sum of twelve is nearly normal, with a standard deviation of 1.
        let deviation = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
        let latency = median * (1.0 + spread * deviation);
        let mut report = example.clone();
        report.server = None;
        report.r#loop = Loop::Closed;
        report.config.rate = None;
        report.rate_per_s = Some(1e6 / latency);
        report.latency_us.mean = Some(latency);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred")]
        {
            report.latency_us.p50 = Some(latency as u64);
            // Of its own scatter, and over one in eight windows something else ran.
            let disturbance = if random.u8(..8) == 0 { 3.0 } else { 1.0 + spread * random.f64() };
            report.latency_us.p99 = Some((latency * 4.0 * disturbance) as u64);
        }
        ("file".to_owned(), report)
    };
    (0..count).map(window).collect()
}

fn metric(comparison: Comparison, name: &str) -> MetricRatio {
    comparison.metrics.into_iter().find(|metric| metric.metric == name).unwrap()
}

/// Returns windows in which each median of latency occurs once.
fn exact(medians: impl IntoIterator<Item = u64>) -> Vec<(String, Report)> {
    let window = |median| {
        let mut report = example_report();
        report.latency_us.p50 = Some(median);
        ("file".to_owned(), report)
    };
    medians.into_iter().map(window).collect()
}

#[test]
fn a_server_does_not_differ_from_itself_in_95_of_100_comparisons() {
    for (count, spread) in [(6, 0.01), (12, 0.05)] {
        let mut random = fastrand::Rng::with_seed(7);
        let mut differs = 0;
        for _ in 0..100 {
            let [old, new] = [(), ()].map(|()| windows(&mut random, count, 500.0, spread));
            let comparison = compare(&old, &new, &[]).unwrap();
            let is = |verdict| comparison.metrics.iter().filter(move |metric| metric.verdict == verdict).count();
            differs += usize::from(is(Difference::Faster) + is(Difference::Slower) > 0);
        }
        assert!(differs <= 5, "{differs} of 100 with {count} windows");
    }
}

#[test]
fn a_server_that_is_5_percent_slower_is_found_with_the_windows_that_are_needed() {
    let mut random = fastrand::Rng::with_seed(8);
    let mut compare_windows = |count| {
        // The mean alone, for the time that a test takes.
        let [old, new] = [500.0, 525.0].map(|median| with_mean_alone(windows(&mut random, count, median, 0.03)));
        let comparison = compare(&old, &new, &[]).unwrap();
        metric(comparison, "mean")
    };
    let (mut found, mut untold) = (0, 0);
    while untold < 12 {
        let few = compare_windows(10);
        assert_ne!(few.verdict, Difference::NoDifference, "{few:?}");
        if few.verdict == Difference::CannotTell {
            untold += 1;
            let needed = usize::try_from(few.windows_needed.unwrap()).unwrap();
            assert!(needed > 10);
            found += usize::from(compare_windows(needed).verdict == Difference::Slower);
        }
    }
    assert!(found >= 11, "{found} of {untold}");
}

/// Returns windows that have no metric of a comparison but the mean.
fn with_mean_alone(mut windows: Vec<(String, Report)>) -> Vec<(String, Report)> {
    for (_, run) in &mut windows {
        (run.rate_per_s, run.latency_us.p50, run.latency_us.p99, run.server) = (None, None, None, None);
    }
    windows
}

#[test]
fn an_interval_of_the_windows_that_are_needed_has_the_resolution() {
    let mut random = fastrand::Rng::with_seed(9);
    for (count, spread) in [(6, 0.1), (10, 0.3), (25, 0.2)] {
        let [old, new] = [(), ()].map(|()| with_mean_alone(windows(&mut random, count, 500.0, spread)));
        let mean = metric(compare(&old, &new, &[]).unwrap(), "mean");
        assert_eq!(mean.verdict, Difference::CannotTell);
        let ([low, high], needed) = (mean.interval.unwrap(), mean.windows_needed.unwrap());
        // Twice as wide an interval needs four times as many windows.
        #[expect(clippy::cast_precision_loss, reason = "a few thousand windows")]
        let factor_to_either_side = |needed: u64| (high / low).powf((count as f64 / needed as f64).sqrt() / 2.0);
        let resolution = 0.015_f64.exp();
        assert!(factor_to_either_side(needed) <= resolution, "{mean:?}");
        assert!(factor_to_either_side(needed - 1) > resolution, "{mean:?}");
    }
}

#[test]
fn the_intervals_of_more_metrics_are_wider() {
    let mut random = fastrand::Rng::with_seed(10);
    let [old, new] = [(), ()].map(|()| with_mean_alone(windows(&mut random, 20, 500.0, 0.1)));
    let [old_means, new_means] =
        [&old, &new].map(|side| side.iter().filter_map(|(_, run)| run.latency_us.mean).collect::<Vec<_>>());
    let interval = |confidence| Ratio::of_medians(&old_means, &new_means, confidence).unwrap().interval.unwrap();
    let (of_one, of_two) = (interval(0.95), interval(0.975));
    assert!(of_two[0] < of_one[0] && of_one[1] < of_two[1], "{of_one:?}, {of_two:?}");
    for (thresholds, expected) in [(&[][..], of_one), (&["max>+10%".parse().unwrap()], of_two)] {
        let comparison = compare(&old, &new, thresholds).unwrap();
        assert_eq!(comparison.metrics.len(), 1 + thresholds.len());
        assert_eq!(metric(comparison, "mean").interval, Some(expected));
    }
}

#[test]
fn a_metric_is_listed_if_a_side_has_a_value_or_a_threshold_is_on_it() {
    let names = |mode: Mode, r#loop: Loop, thresholds: &[RelativeThreshold]| -> Vec<_> {
        let mut old = exact(1000..1006);
        for (_, run) in &mut old {
            (run.mode, run.r#loop, run.rate_per_s, run.server) = (mode, r#loop, Some(1000.0), None);
            (run.latency_us.mean, run.latency_us.p99, run.latency_us.p99_9) = (Some(1000.0), None, None);
        }
        let mut new = old.clone();
        for (_, run) in &mut new {
            run.latency_us.p99 = Some(2000);
        }
        let comparison = compare(&old, &new, thresholds).unwrap();
        comparison.metrics.into_iter().map(|metric| metric.metric).collect()
    };
    assert_eq!(names(Mode::Echo, Loop::Open, &[]), ["mean", "p50", "p99"]);
    assert_eq!(names(Mode::Echo, Loop::Open, &["p99.9>+10%".parse().unwrap()]), ["mean", "p50", "p99", "p99.9"]);
    // A schedule decides the rate of an open loop, and nothing is sent in the window of hold.
    assert_eq!(names(Mode::Echo, Loop::Closed, &[]), ["rate", "mean", "p50", "p99"]);
    assert_eq!(names(Mode::Hold, Loop::Closed, &[]), ["mean", "p50", "p99"]);
}

#[test]
fn the_direction_of_a_metric_decides_what_is_faster() {
    let (slow, fast) = (exact(1100..1110), exact(1000..1010));
    assert_eq!(metric(compare(&slow, &fast, &[]).unwrap(), "p50").verdict, Difference::Faster);
    assert_eq!(metric(compare(&fast, &slow, &[]).unwrap(), "p50").verdict, Difference::Slower);
    let with_rate = |mut windows: Vec<(String, Report)>| {
        for (_, window) in &mut windows {
            window.r#loop = Loop::Closed;
            window.rate_per_s = window.latency_us.p50.map(|p50| f64::from(u32::try_from(p50).unwrap()));
        }
        windows
    };
    let higher = metric(compare(&with_rate(fast), &with_rate(slow), &[]).unwrap(), "rate");
    assert_eq!(higher.verdict, Difference::Faster);
    assert!((higher.ratio.unwrap() - 1.1).abs() < 0.01, "{higher:?}");
}

#[test]
fn a_threshold_fails_only_if_the_whole_interval_is_beyond() {
    let near = |median: u64| (median..median + 10).collect::<Vec<_>>();
    let cases = [
        ("p50>+10%", near(1000), near(1200), Some(true)),
        ("p50>+10%", near(1200), near(1000), Some(false)),
        ("p50<-10%", near(1200), near(1000), Some(true)),
        // About 10 %, and no doubt that it is slower.
        ("p50>+10%", near(1000), (1090..1120).step_by(3).collect(), Some(false)),
        ("p50>+10%", near(1000), (900..1300).step_by(40).collect(), None),
        ("p99.9>+10%", near(1000), near(1000), None),
        ("p50>+10%", vec![1000; 5], vec![2000; 5], None),
        // The interval is too wide for a difference of 5 %, and all of it is within the bound.
        ("p50>+50%", near(1000), (900..1300).step_by(40).collect(), Some(false)),
        // A change of the bound itself is not beyond.
        ("p50>+100%", vec![1000; 6], vec![2000; 6], Some(false)),
        ("p50<-50%", vec![1000; 6], vec![500; 6], Some(false)),
    ];
    for (expr, old, new, failed) in cases {
        let comparison = compare(&exact(old), &exact(new), &[expr.parse().unwrap()]).unwrap();
        assert_eq!(comparison.thresholds[0].failed, failed, "{expr}: {comparison:?}");
        let verdict = match failed {
            Some(true) => Verdict::Fail,
            Some(false) => Verdict::Pass,
            None => Verdict::Inconclusive,
        };
        assert_eq!(comparison.verdict, verdict);
    }
}

#[test]
fn one_window_on_each_side_tells_nothing() {
    let comparison = compare(&exact([1000]), &exact([2000]), &[]).unwrap();
    let p50 = metric(comparison, "p50");
    assert_eq!((p50.verdict, p50.windows_needed), (Difference::CannotTell, Some(6)));
    assert_eq!((p50.ratio, p50.interval), (Some(2.0), None));
}

#[test]
fn the_connect_times_of_a_session_are_one_sample() {
    let sessions = |connects: &[u64]| -> Vec<_> {
        let of_session = |&connect: &u64| {
            exact([1000; 10]).into_iter().map(move |(name, mut run)| {
                (run.phases_s.connect, run.connect_us.p99) = (0.0, Some(connect));
                (name, run)
            })
        };
        connects.iter().flat_map(of_session).collect()
    };
    let thresholds = ["connect_p99>+10%".parse().unwrap()];
    let comparison = compare(&sessions(&[100]), &sessions(&[200]), &thresholds).unwrap();
    assert_eq!((comparison.verdict, comparison.thresholds[0].failed), (Verdict::Inconclusive, None));
    assert_eq!((comparison.old.windows, metric(comparison, "connect_p99").ratio), (10, Some(2.0)));
    // Several sessions are several samples, and so are runs of one window that happen to have the same times.
    let (old, new) = ([100, 101, 102, 103, 104, 105], [200, 201, 202, 203, 204, 205]);
    let comparison = compare(&sessions(&old), &sessions(&new), &thresholds).unwrap();
    assert_eq!(comparison.thresholds[0].failed, Some(true));
    let [old, new] = [100, 200].map(|connect| {
        let mut runs = sessions(&[connect]);
        for (_, run) in &mut runs {
            run.phases_s.connect = 0.1;
        }
        runs
    });
    assert_eq!(compare(&old, &new, &thresholds).unwrap().thresholds[0].failed, Some(true));
}

#[test]
fn windows_in_which_nothing_came_back_have_no_infinite_ratio() {
    let with_rates = |rates: [f64; 20]| {
        rates.map(|rate| {
            let mut report = example_report();
            (report.r#loop, report.rate_per_s) = (Loop::Closed, Some(rate));
            ("file".to_owned(), report)
        })
    };
    let often = std::array::from_fn(|window| if window < 9 { 0.0 } else { 1000.0 });
    for (old, new) in [(often, [1000.0; 20]), ([1000.0; 20], often)] {
        let rate = metric(compare(&with_rates(old), &with_rates(new), &[]).unwrap(), "rate");
        assert_eq!(
            (rate.verdict, rate.ratio, rate.windows_needed),
            (Difference::CannotTell, Some(1.0), Some(21)),
            "{rate:?}"
        );
        assert!(rate.interval.is_none_or(|ends| ends.iter().all(|end| end.is_finite())), "{rate:?}");
    }
    // A server that hangs is slower.
    let rate = metric(compare(&with_rates([1000.0; 20]), &with_rates([0.0; 20]), &[]).unwrap(), "rate");
    assert_eq!((rate.verdict, rate.interval), (Difference::Slower, Some([0.0, 0.0])));
}

#[test]
fn a_finding_is_one_error_of_its_side() {
    let mut window = example_report();
    window.errors = vec![ErrorCount {
        phase: Phase::Verify,
        error: ErrorName::BadBytes,
        errno: None,
        count: 1,
        first_s: 0.5,
        targets: Vec::new(),
    }];
    window.verify.connections_failed = 1;
    let windows = [("file".to_owned(), window)];
    let comparison = compare(&windows, &windows, &[]).unwrap();
    assert_eq!((comparison.old.errors, comparison.new.errors), (1, 1));
}

#[test]
fn percentiles_of_a_few_microseconds_differ_by_more_than_a_step() {
    let p50 = metric(compare(&exact([5; 20]), &exact([6; 20]), &[]).unwrap(), "p50");
    assert_eq!((p50.verdict, p50.interval), (Difference::NoDifference, Some([1.2, 1.2])));
    assert_eq!(metric(compare(&exact([5; 20]), &exact([7; 20]), &[]).unwrap(), "p50").verdict, Difference::Slower);
    // A mean has a fraction.
    let with_mean = |mean| {
        let mut windows = exact([5; 20]);
        for (_, run) in &mut windows {
            run.latency_us.mean = Some(mean);
        }
        windows
    };
    let mean = metric(compare(&with_mean(5.0), &with_mean(6.0), &[]).unwrap(), "mean");
    assert_eq!(mean.verdict, Difference::Slower);
}

fn stage(from: f64) -> StageFigures {
    StageFigures {
        from,
        to: 1000.0,
        seconds: 10.0,
        messages: Messages::default(),
        rate_per_s: None,
        errors: 0,
        latency_us: Summary::default(),
        lateness_us: Summary::default(),
    }
}

#[test]
fn the_same_stage_of_both_sides_is_compared() {
    let side = |latency: u64| -> Vec<_> {
        let add = |(name, mut run): (String, Report)| {
            run.stages = vec![stage(0.0), stage(1000.0)];
            run.stages[1].latency_us.p99 = Some(latency);
            (name, run)
        };
        exact([1000; 10]).into_iter().map(add).collect()
    };
    let thresholds = ["p99[2]>+50%".parse().unwrap()];
    let comparison = compare(&side(100), &side(200), &thresholds).unwrap();
    assert_eq!((comparison.verdict, comparison.thresholds[0].failed), (Verdict::Fail, Some(true)));
    assert_eq!(metric(comparison, "p99[2]").ratio, Some(2.0));
    let error = compare(&side(1), &side(1), &["p99[3]>+50%".parse().unwrap()]).unwrap_err().to_string();
    assert_eq!(error, "p99[3]>+50% is on stage 3, and the rate has only 2");
}

#[test]
fn runs_of_other_settings_are_refused_by_name() {
    let refusal = |change: fn(&mut Report)| {
        let mut other = exact([1000]);
        other[0].0 = "new".to_owned();
        change(&mut other[0].1);
        compare(&exact([1000]), &other, &[]).unwrap_err().to_string()
    };
    assert_eq!(refusal(|run| run.mode = Mode::Churn), r#"new: mode is "churn", and "echo" in file"#);
    assert_eq!(refusal(|run| run.config.size = 65), "new: size is 65, and 64 in file");
    assert_eq!(refusal(|run| run.config.rate = Some(1.0)), "new: rate is 1.0, and 2000.0 in file");
    assert_eq!(refusal(|run| run.connections.requested = 1), "new: connections is 1, and 50 in file");
    let poisson = |run: &mut Report| run.config.arrivals = Some(ArrivalProcess::Poisson);
    assert_eq!(refusal(poisson), r#"new: arrivals is "poisson", and "even" in file"#);
    let in_stages = |run: &mut Report| run.stages.push(stage(0.0));
    assert_eq!(refusal(in_stages), r#"new: stages is "0..1000@10s", and null in file"#);
    let nagle = |run: &mut Report| run.origin.as_mut().unwrap().options.nagle = true;
    assert_eq!(refusal(nagle), "new: nagle is true, and false in file");
    // A merged report has no origin.
    let merged = |messages| {
        let mut windows = exact([1000]);
        (windows[0].1.origin, windows[0].1.config.messages_per_connection) = (None, messages);
        windows
    };
    for messages in [Some(10), None] {
        let error = compare(&merged(Some(1)), &merged(messages), &[]).unwrap_err().to_string();
        let messages = messages.map_or("null".to_owned(), |messages| messages.to_string());
        assert_eq!(error, format!("file: messages_per_connection is {messages}, and 1 in file"));
    }
    assert!(compare(&merged(Some(1)), &merged(Some(1)), &[]).is_ok());
    assert_eq!(compare(&[], &exact([1]), &[]).unwrap_err().to_string(), "there is no report");

    let mut other = exact(1000..1010);
    for (_, run) in &mut other {
        run.config.targets = vec!["10.0.0.1:7".parse().unwrap()];
        run.config.seed = Some(2);
    }
    assert_eq!(compare(&exact(1000..1010), &other, &[]).unwrap().new.targets, other[0].1.config.targets);
}

#[test]
fn windows_that_say_nothing_about_the_server_are_left_out() {
    let mut new = exact(1000..1010);
    new[0].1.ended = Ended::Interrupted;
    new[1].1.schedule.kept = Some(false);
    new[2].1.generator.saturated = Some(true);
    let comparison = compare(&exact(1000..1010), &new, &[]).unwrap();
    assert_eq!((comparison.new.windows, comparison.new.left_out), (7, 3));
    for (_, run) in &mut new {
        run.r#loop = Loop::Closed;
    }
    assert_eq!(compare(&new, &new, &[]).unwrap().new.left_out, 1);
}

#[test]
fn a_threshold_has_a_metric_and_a_signed_percentage() {
    for text in ["p99>+10%", " server_cpu > +2.5% ", "rate<-5%", "connect_p99.9>+1%"] {
        assert!(text.parse::<RelativeThreshold>().is_ok(), "{text}");
    }
    for text in ["p99", "p99>10%", "p99>+10", "p99>=+10%", "errors>+10%", "p>+1%", "p99>+x%", "p99>+inf%"] {
        assert!(text.parse::<RelativeThreshold>().is_err(), "{text}");
    }
}
