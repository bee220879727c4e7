//! The search for the highest rate.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::Config as ServerConfig;
use ecoloop::load::report::{ErrorName, LimitedBy, Phase, Probe, Verdict};
use ecoloop::load::{Interrupt, ProgressCell, Report, Search, find_rate, merge};

use super::faulty_server::{echo, echo_messages, faulty_server, read_message};
use super::{assert_sums, config, document, run_command};
use crate::support::{CpuQuota, Process, TIMEOUT, ecoloop, join, reserve_port, reset, serve};

/// Ten times the lateness of a generator on a loaded machine, so that its schedule is kept.
const DELAY: Duration = Duration::from_millis(300);
/// The limit of a server that resets, on each connection: messages in this time.
const LIMIT: (usize, Duration) = (60, Duration::from_millis(200));

/// Echoes each message after [`DELAY`], however many are in flight. With `limit`, resets a connection on which more arrive.
fn delaying_server(limit: Option<(usize, Duration)>) -> SocketAddr {
    faulty_server(move |_, stream| {
        let mut writer = stream.try_clone()?;
        let (replies, due) = mpsc::channel::<(Instant, Vec<u8>)>();
        thread::spawn(move || {
            for (due, message) in due {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                if writer.write_all(&message).is_err() {
                    return;
                }
            }
        });
        let mut arrived = VecDeque::new();
        while let Ok(message) = read_message(stream) {
            let now = Instant::now();
            if let Some((count, time)) = limit {
                arrived.push_back(now);
                while arrived.front().is_some_and(|&first| first + time < now) {
                    arrived.pop_front();
                }
                if arrived.len() > count {
                    reset(stream.try_clone()?);
                    return Ok(());
                }
            }
            replies.send((now + DELAY, message)).unwrap();
        }
        Ok(())
    })
}

fn search(address: SocketAddr, goal: &str, low: f64, high: f64) -> (Report, Vec<Probe>) {
    let mut search = Search::new(vec![goal.parse().unwrap()], low, high);
    (search.window, search.tolerance) = (Duration::from_millis(200), 0.5);
    let mut probes = Vec::new();
    let take = |probe: &Probe| probes.push(probe.clone());
    let report = find_rate(config(address), &search, &Interrupt::default(), &ProgressCell::default(), take).unwrap();
    assert_sums(&report);
    assert_eq!(report.search.as_ref().unwrap().probes, probes);
    (report, probes)
}

#[test]
fn a_server_without_a_limit_reaches_the_end_of_the_range() {
    let (report, probes) = search(delaying_server(None), "p50<5s", 50.0, 100.0);
    let search = report.search.as_ref().unwrap();
    assert_eq!((search.found_rate, search.limited_by, search.reopened), (Some(100.0), Some(LimitedBy::Range), 0));
    let counted: Vec<_> = probes.iter().filter(|probe| probe.schedule_kept).map(|probe| probe.rate).collect();
    assert_eq!(counted, [50.0, 100.0, 100.0, 100.0, 100.0]);
    // A confirmation takes twice as long, and nothing of the window before it is in flight.
    assert_eq!((report.messages.due, report.messages.verified), (40, 40));
    assert_eq!((report.config.rate, report.verdict), (Some(100.0), Verdict::Pass));
}

#[test]
fn a_server_that_resets_is_the_limit_and_its_connections_are_opened_anew() {
    let (report, probes) = search(delaying_server(Some(LIMIT)), "p50<5s", 50.0, 3200.0);
    let search = report.search.as_ref().unwrap();
    assert_eq!(search.limited_by, Some(LimitedBy::Server), "{search:?}");
    // The limit is 300 a second, and the tolerance is a half.
    assert!(search.found_rate.is_some_and(|rate| (50.0..=400.0).contains(&rate)), "{search:?}");
    let failed: Vec<_> = probes.iter().filter(|probe| !probe.passed && probe.schedule_kept).collect();
    assert!(
        failed.iter().all(|probe| probe.errors == 1 && probe.failed.contains(&"errors>0".to_owned())),
        "{failed:?}"
    );
    // Also in a window that did not count, because the machine was busy.
    let resets = probes.iter().filter(|probe| probe.errors > 0).count();
    assert_eq!(search.reopened, resets as u64, "each reset ended the only connection");
    // The last window that passed is that of the report.
    assert_eq!((report.errors.len(), report.config.rate), (0, search.found_rate));
}

#[test]
fn a_goal_on_errors_replaces_the_default_thresholds_in_the_verdict_too() {
    // Every connection ends after its fifth message, which is in every window.
    let address = delaying_server(Some((5, TIMEOUT)));
    let goal = ["max<1h", "errors<=100", "unanswered<=100", "connections>=0"];
    let mut search = Search::new(goal.map(|expr| expr.parse().unwrap()).to_vec(), 50.0, 50.0);
    search.window = Duration::from_millis(200);
    let report = find_rate(config(address), &search, &Interrupt::default(), &ProgressCell::default(), |_| ()).unwrap();
    assert_sums(&report);
    assert_eq!((report.connections.held, report.errors.len()), (0, 1), "{:?}", report.errors);
    let found_rate = report.search.as_ref().unwrap().found_rate;
    assert_eq!((found_rate, report.verdict), (Some(50.0), Verdict::Pass), "{:?}", report.thresholds);
    let thresholds: Vec<_> = report.thresholds.iter().map(|threshold| &threshold.expr[..]).collect();
    assert_eq!(thresholds, ["findings>0", "verified<1"]);
    // Nor does `ecoloop merge` of the one file judge it differently.
    let merged = merge(&[("search".to_owned(), report.clone())], &[]).unwrap();
    assert_eq!((merged.verdict, merged.thresholds), (report.verdict, report.thresholds));
}

#[test]
fn bytes_after_the_last_window_fail_the_search() {
    let address = faulty_server(|_, stream| {
        echo(stream)?;
        stream.write_all(b"x")
    });
    let mut search = Search::new(vec!["p50<5s".parse().unwrap()], 50.0, 50.0);
    search.window = Duration::from_millis(200);
    let mut config = config(address);
    config.thresholds = vec!["errors>100".parse().unwrap()];
    let report = find_rate(config, &search, &Interrupt::default(), &ProgressCell::default(), |_| ()).unwrap();
    assert_eq!((report.verify.extra_bytes, report.verify.findings.len()), (1, 1), "{:?}", report.verify);
    assert_eq!((report.errors.len(), report.verdict), (1, Verdict::Fail), "{:?}", report.errors);
    // Both count from the start of the last window, which takes 0.2 s at least, and not of the close.
    let (error, finding) = (report.errors[0].first_s, report.verify.findings[0].at_s);
    assert!(finding > 0.2 && (error - finding).abs() < 2e-6, "{error} {finding}");
}

#[test]
fn connections_opened_anew_are_paced_from_when_they_are() {
    const CONNECTIONS: usize = 5;
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let accepts = Arc::clone(&accepted);
    // The first five end in the first window.
    let address = faulty_server(move |number, stream| {
        accepts.lock().unwrap().push(Instant::now());
        if number < CONNECTIONS { echo_messages(stream, 5) } else { echo(stream) }
    });
    let goal = ["max<1h", "errors<=100", "unanswered<=100", "connections>=0"];
    let mut search = Search::new(goal.map(|expr| expr.parse().unwrap()).to_vec(), 100.0, 100.0);
    search.window = Duration::from_millis(600);
    let mut config = config(address);
    (config.connections, config.connect_rate) = (5, Some(10.0));
    let mut ended = None;
    let take = |_: &Probe| _ = ended.get_or_insert_with(Instant::now);
    let report = find_rate(config, &search, &Interrupt::default(), &ProgressCell::default(), take).unwrap();
    assert_eq!(report.search.unwrap().reopened, CONNECTIONS as u64);
    // The last is due 0.4 s after the first, which is due after the window.
    let last = accepted.lock().unwrap()[2 * CONNECTIONS - 1];
    let after = last.saturating_duration_since(ended.unwrap());
    assert!(after >= Duration::from_millis(400), "{after:?}");
}

#[test]
fn a_rate_that_nothing_reaches_ends_its_window_early() {
    let (report, probes) = search(delaying_server(None), "max<100ms", 1000.0, 2000.0);
    let search = report.search.as_ref().unwrap();
    assert_eq!((search.found_rate, search.limited_by), (None, Some(LimitedBy::Server)));
    // Two windows at the one rate, apart from those that did not count because the machine was busy.
    let counted: Vec<_> = probes.iter().filter(|probe| probe.schedule_kept).collect();
    assert_eq!((counted.len(), &counted[0].failed[..]), (2, &["max<100ms".to_owned()][..]));
    assert_eq!(report.verdict, Verdict::Fail);
    // The report is that of the last window, as none passed.
    assert!(report.messages.due > 0, "{:?}", report.messages);
    let long = Search::new(vec!["max<100ms".parse().unwrap()], 1000.0, 1000.0);
    let start = Instant::now();
    let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
    let report = find_rate(config(delaying_server(None)), &long, &interrupt, &progress, |_| ()).unwrap();
    // The window is 5 s, and a reply takes 0.3 s.
    assert!(report.phases_s.measure < 4.0 && start.elapsed() < TIMEOUT, "{:?}", report.phases_s);
}

#[test]
fn the_report_is_of_the_last_window_that_passed_although_later_ones_fail() {
    // A connection has its first message, the ten of a window at the lowest rate, and one more. Every other window has more.
    let (report, probes) = search(delaying_server(Some((12, TIMEOUT))), "p50<5s", 50.0, 100.0);
    assert!(probes.iter().any(|probe| probe.errors > 0), "{probes:?}");
    // On a busy machine, the window that passed may not count.
    let has_passed = probes.iter().any(|probe| probe.passed && probe.schedule_kept);
    assert!(report.errors.is_empty() || !has_passed, "{:?} after {probes:?}", report.errors);
}

#[test]
fn a_window_that_misses_the_goal_says_so_apart_from_the_thresholds_that_failed() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let search = ["-r", "10..10", "--find-rate", "p50<1us", "--find-rate", "errors<=1", "--window", "200ms", &address];
    let ended = run_command(&search);
    let counted: Vec<_> = ended
        .stdout
        .iter()
        .filter(|line| line.starts_with("  ") && line.contains("/s") && !line.contains("does not count"))
        .collect();
    assert!(ended.status.code() == Some(3) || !counted.is_empty(), "{ended:?}");
    assert!(counted.iter().all(|line| line.ends_with("  missed p50<1us")), "{ended:?}");
    // A connection that ends fails a default threshold.
    let one_message = faulty_server(|_, stream| {
        let message = read_message(stream)?;
        stream.write_all(&message)?;
        read_message(stream).map(drop)
    });
    let address = one_message.to_string();
    let ended = run_command(&["-r", "10..10", "--find-rate", "p50<1us", "--window", "200ms", &address]);
    assert!(
        ended.stdout.iter().any(|line| line.contains("  missed p50<1us; failed: connections<1, errors>0")),
        "{ended:?}"
    );
}

#[test]
fn a_generator_that_is_too_slow_is_the_limit() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let arguments = ["-s", "1", "-r", "5M..10M", "--find-rate", "p50<1h", "--window", "100ms", &address];
    let ended = run_command(&arguments);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let spoiled = ended.stdout.iter().filter(|line| line.ends_with("does not count: the generator was too slow"));
    assert_eq!(spoiled.count(), 3, "{ended:?}");
    let result: Vec<_> = ended.stdout.iter().skip_while(|line| !line.starts_with("result ")).collect();
    assert!(result[0].contains("INCONCLUSIVE: no window counted;"), "{ended:?}");
    assert!(result[1].ends_with("the generator was too slow for the lowest rate"), "{ended:?}");
}

#[test]
#[ignore = "needs root and the control group's cpu controller at /sys/fs/cgroup"]
fn a_generator_with_a_fifth_of_a_core_is_the_limit() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let fifth = CpuQuota::fifth_of_a_core();
    // No latency fails.
    let goal = ["-r", "50..1M", "--find-rate", "p50<1h", "--window", "200ms"];
    let load = ecoloop(&[&["load", "-c", "10", "--json", "-", &address], &goal[..]].concat());
    let (json, report) = document(&Process::start(fifth.limited(&load)).wait());
    let search = report.search.unwrap();
    assert_eq!((search.limited_by, report.verdict), (Some(LimitedBy::Generator), Verdict::Inconclusive), "{json}");
    // The last windows, at a rate above a fifth of a core, did not count.
    let last = search.probes.last().unwrap();
    assert!(!last.schedule_kept && search.found_rate.is_none_or(|rate| rate < last.rate), "{json}");
}

#[test]
fn a_quiet_search_without_a_rate_prints_why() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let ended = run_command(&["-q", "-r", "10..20", "--find-rate", "p50<1us", "--window", "200ms", &address]);
    let reason = match ended.status.code() {
        Some(1) => "ecoloop: FAIL: no rate was found",
        // On a machine that is too slow for 10 messages a second.
        Some(3) => "ecoloop: INCONCLUSIVE: ",
        _ => panic!("{ended:?}"),
    };
    assert!(ended.stderr.last().unwrap().starts_with(reason), "{ended:?}");
}

#[test]
fn options_of_a_search_need_each_other() {
    for (arguments, reason) in [
        (&["-r", "1..2", ":9"][..], "--rate LOW..HIGH needs --find-rate"),
        (&["--find-rate", "p99<5ms", ":9"], "--find-rate needs --rate LOW..HIGH"),
        (&["-r", "5", "--find-rate", "p99<5ms", ":9"], "--find-rate needs --rate LOW..HIGH"),
        (&["-r", "2..1", "--find-rate", "p99<5ms", ":9"], "the first rate must be at most the second"),
        (&["-r", "1..2", "--find-rate", "p99<5ms", "-d", "1s", ":9"], "--find-rate and --duration"),
        (&["-r", "1..2", "--find-rate", "p99<5ms", "--mode", "hold", ":9"], "--find-rate and --mode"),
        (
            &["-r", "1..2", "--find-rate", "p99<5ms", "--repeat", "--json", "-", ":9"],
            "cannot be combined with --repeat",
        ),
        (&["-r", "1..2", "--find-rate", "schedule", ":9"], "a search needs a goal"),
        (&["-r", "1..2", "--find-rate", "connect_max<1s", ":9"], "a search needs a goal"),
        (&["--window", "1s", ":9"], "--find-rate <EXPR>"),
    ] {
        let ended = run_command(arguments);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.iter().any(|line| line.contains(reason)), "{reason}: {ended:?}");
    }
}

#[test]
fn a_goal_in_the_sense_of_fail_if_is_refused_with_the_one_that_was_meant() {
    for (goal, meant) in [
        ("p99>50ms", "p99<=50ms"),
        ("p99.9 >= 50ms", "p99.9<50ms"),
        ("lateness_max>1s", "lateness_max<=1s"),
        ("errors>0", "errors<=0"),
        ("errors>=1", "errors<1"),
        ("unanswered>0.1%", "unanswered<=0.1%"),
        ("unsent>10k", "unsent<=10k"),
        ("rate<99%", "rate>=99%"),
        ("connections<=50", "connections>50"),
    ] {
        let ended = run_command(&["-r", "1..2", "--find-rate", "p50<1h", "--find-rate", goal, ":9"]);
        let expected = format!("error: a goal states what must hold: did you mean {meant}?");
        assert_eq!((ended.status.code(), &ended.stderr[0]), (Some(2), &expected), "{goal}: {ended:?}");
    }
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let goal = ["--find-rate", "rate>1%", "--find-rate", "connections>=1"];
    let ended = run_command(&[&["-r", "10..10", "--window", "100ms", &address], &goal[..]].concat());
    ended.assert_measured();
}

/// Nothing else would end the search soon: no rate passes, and each step down fails.
#[test]
fn a_server_that_is_gone_ends_the_search_without_a_rate() {
    let server = serve(ServerConfig::default());
    let (handle, address) = (server.handle(), server.local_addr());
    let mut server = Some(server);
    let mut search = Search::new(vec!["p50<5s".parse().unwrap()], 50.0, 1e6);
    search.window = Duration::from_millis(200);
    let take = |probe: &Probe| {
        // After the first window that passed.
        if probe.passed
            && let Some(server) = server.take()
        {
            handle.stop();
            join(server);
        }
    };
    let report = find_rate(config(address), &search, &Interrupt::default(), &ProgressCell::default(), take).unwrap();
    let search = report.search.as_ref().unwrap();
    assert_eq!((search.found_rate, search.limited_by, search.server_gone), (None, Some(LimitedBy::Server), true));
    // The attempt that found the server gone opened none.
    assert_eq!(search.reopened, 0);
    assert!(search.probes.last().is_some_and(|probe| probe.passed), "{search:?}");
    assert_eq!(report.verdict, Verdict::Fail);
    let names: Vec<_> = report.errors.iter().map(|row| (row.phase, row.error, row.count)).collect();
    let expected = [(Phase::Receive, ErrorName::ClosedEarly, 1), (Phase::Connect, ErrorName::Refused, 1)];
    assert!(expected.iter().all(|row| names.contains(row)) && names.len() == 2, "{names:?}");
}

#[test]
fn a_search_without_a_server_measures_nothing_and_says_so() {
    let (_port, address) = reserve_port();
    let ended = run_command(&["-r", "10..20", "--find-rate", "p50<1s", &address.to_string()]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for words in ["THE SERVER IS GONE: no connection could be opened", "connect refused (ECONNREFUSED): 2,"] {
        assert!(ended.stdout.iter().any(|line| line.contains(words)), "{words}: {ended:?}");
    }
}
