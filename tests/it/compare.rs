//! `ecoloop compare`, of files and of live servers.

use std::fs;
use std::time::Duration;

use ecoloop::Config;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::load::faulty_server::slow_server;
use crate::support::{Ended, Process, Scratch, ecoloop, eventually, reserve_port, serve, with_descriptors};

/// Writes `count` windows, one a line, whose median latency is near `p50` microseconds.
#[track_caller]
fn windows(name: &str, count: u64, p50: u64, change: impl Fn(&mut Value)) -> Scratch {
    let window = |number: u64| {
        let mut report: Value = serde_json::from_str(include_str!("../report.json")).unwrap();
        report["run_id"] = format!("{name}-{number}").into();
        report["latency_us"]["p50"] = (p50 + number).into();
        change(&mut report);
        report.to_string() + "\n"
    };
    let file = Scratch::new(name);
    fs::write(file.path(), (0..count).map(window).collect::<String>()).unwrap();
    file
}

#[track_caller]
fn compare(arguments: &[&str]) -> Ended {
    Process::start(ecoloop(&[&["compare"], arguments].concat())).wait()
}

fn row<'a>(ended: &'a Ended, metric: &str) -> &'a str {
    ended.stdout.iter().find(|line| line.starts_with(metric)).unwrap()
}

#[test]
fn a_slower_server_is_named_and_fails_the_condition() {
    let (old, new) = (windows("old", 10, 1000, |_| ()), windows("new", 12, 1200, |_| ()));
    let ended = compare(&[old.path(), new.path(), "--fail-if", "p50>+10%"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(
        ended.stdout[..2],
        ["old          10 windows, to 127.0.0.1:5000", "new          12 windows, to 127.0.0.1:5000"]
    );
    let p50 = row(&ended, "p50");
    assert!(p50.starts_with("p50          1.00 ms  1.21 ms  1.200  1.19") && p50.ends_with(" slower"), "{p50}");
    assert_eq!(row(&ended, "result"), "result       FAIL: p50>+10% (+20.0 %)");
    let quiet = compare(&[old.path(), new.path(), "--fail-if", "p50>+10%", "-q"]);
    let failure = ["ecoloop: FAIL: p50>+10% (+20.0 %)".to_owned()];
    assert_eq!((&quiet.stdout[..], &quiet.stderr[..]), (&[][..], &failure[..]), "{quiet:?}");
    let reversed = compare(&[new.path(), old.path(), "--fail-if", "p50>+10%"]);
    assert!(row(&reversed, "p50").ends_with(" faster"), "{reversed:?}");
    assert_eq!((reversed.status.code(), row(&reversed, "result")), (Some(0), "result       PASS (1 threshold)"));
    let same = compare(&[old.path(), old.path()]);
    assert!(row(&same, "p50").ends_with(" no difference seen"), "{same:?}");
}

#[test]
fn the_change_of_a_failed_condition_is_shown_beyond_its_bound() {
    let side = |name: &str, p50: u64| windows(name, 6, 0, |report| report["latency_us"]["p50"] = p50.into());
    let old = side("old", 100_000);
    for (p50, condition, result) in [
        (110_040, "p50>+10%", "FAIL: p50>+10% (+10.04 %)"),
        (110_002, "p50>+10%", "FAIL: p50>+10% (+10.002 %)"),
        (110_100, "p50>+10%", "FAIL: p50>+10% (+10.1 %)"),
        (79_960, "p50<-20%", "FAIL: p50<-20% (-20.04 %)"),
        (110_040, "p50>+20%", "PASS (1 threshold)"),
    ] {
        let ended = compare(&[old.path(), side("new", p50).path(), "--fail-if", condition]);
        assert_eq!(row(&ended, "result"), format!("result       {result}"), "{ended:?}");
    }
}

#[test]
fn long_cells_do_not_run_together() {
    let side = |name: &str, p50: u64| {
        windows(name, 6, 0, |report| {
            (report["loop"], report["rate_per_s"]) = ("closed".into(), 167_353.into());
            report["latency_us"]["p50"] = p50.into();
            report["lateness_us"]["p99_9"] = 500.into();
        })
    };
    let (old, new) = (side("old", 1000), side("new", 800_000));
    let ended = compare(&[old.path(), new.path(), "--fail-if", "lateness_p99.9>+10%"]);
    let expected = [
        "                      old        new    ratio  interval",
        "rate            167,353/s  167,353/s    1.000  1.000-1.000      no difference seen",
        "p50               1.00 ms     800 ms  800.000  800.000-800.000  slower",
        "server_cpu        5.00 µs    5.00 µs    1.000  1.000-1.000      no difference seen",
        "lateness_p99.9     500 µs     500 µs    1.000  1.000-1.000      no difference seen",
    ];
    assert_eq!(ended.stdout[3..8], expected, "{ended:?}");
}

#[test]
fn one_report_on_each_side_cannot_tell() {
    let (old, new) = (windows("old", 1, 1000, |_| ()), windows("new", 1, 2000, |_| ()));
    let ended = compare(&[old.path(), new.path(), "--fail-if", "p50>+10%"]);
    assert!(row(&ended, "p50").ends_with("cannot tell (6 windows needed)"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(3));
    let quiet = compare(&[old.path(), new.path(), "--fail-if", "p50>+10%", "-q"]);
    let [line] = &quiet.stderr[..] else { panic!("not one line: {quiet:?}") };
    assert!(quiet.stdout.is_empty() && line.starts_with("ecoloop: INCONCLUSIVE: cannot tell p50>+10% ("), "{quiet:?}");
    assert_eq!(compare(&[old.path(), new.path()]).status.code(), Some(0));
    let quiet = compare(&[old.path(), new.path(), "-q"]);
    assert_eq!((quiet.status.code(), &quiet.stdout[..], &quiet.stderr[..]), (Some(0), &[][..], &[][..]));
}

/// Asserts that nothing is compared, for `reason`, in words and in JSON.
#[track_caller]
fn assert_nothing_compared(arguments: &[&str], reason: &str) {
    let ended = compare(arguments);
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    let expected = format!("result       INCONCLUSIVE: no window could be compared ({reason})");
    assert_eq!(ended.stdout.last().unwrap(), &expected, "{ended:?}");
    let ended = compare(&[arguments, &["--json", "-"]].concat());
    let document: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    assert_eq!((ended.status.code(), &document["verdict"]), (Some(3), &json!("inconclusive")), "{document}");
}

#[test]
fn without_a_window_to_compare_the_result_is_inconclusive() {
    let late = |report: &mut Value| report["schedule"]["kept"] = false.into();
    let no_latency = |report: &mut Value| {
        report["server"] = Value::Null;
        report["latency_us"]["p50"] = Value::Null;
    };
    let (old, new) = (windows("old", 7, 1000, |_| ()), windows("new", 6, 1000, |_| ()));
    let (late_old, late_new) = (windows("late-old", 7, 1000, late), windows("late-new", 6, 1000, late));
    let left_out = "left out: interrupted or not on schedule";
    assert_nothing_compared(&[late_old.path(), late_new.path()], &format!("0 old, 0 new, and 13 {left_out}"));
    assert_nothing_compared(&[old.path(), late_new.path()], &format!("7 old, 0 new, and 6 {left_out}"));
    let empty = windows("empty", 6, 0, no_latency);
    assert_nothing_compared(&[old.path(), empty.path()], "no metric has data on both sides");
    assert_eq!(compare(&[old.path(), new.path()]).status.code(), Some(0));
}

#[test]
fn a_process_holds_the_connections_to_both_live_servers() {
    let servers = [(), ()].map(|()| serve(Config::default()));
    let addresses = servers.each_ref().map(|server| server.local_addr().to_string());
    let live = ["compare", "--live", "-c", "60", "-d", "50ms", "--windows", "1", &addresses[0], &addresses[1]];
    let ended = Process::start(with_descriptors(100, &ecoloop(&live))).wait();
    let forecast = |line: &String| line.contains("ulimit -Hn (100) allows ") && line.contains(" of 120 connections: ");
    assert!(ended.stderr.iter().any(forecast), "{ended:?}");
}

/// More messages a second than any generator sends.
#[test]
fn live_windows_that_are_all_left_out_are_inconclusive() {
    let [old, new] = [(), ()].map(|()| serve(Config::default()));
    let addresses = [&old, &new].map(|server| server.local_addr().to_string());
    let live = ["--live", "-s", "1", "-r", "50M", "-d", "50ms", "--windows", "2"];
    let ended = compare(&[&live[..], &[&addresses[0], &addresses[1]]].concat());
    let expected = "result       INCONCLUSIVE: no window could be compared (0 old, 0 new, and 4 left out: interrupted or not on schedule)";
    assert_eq!((ended.status.code(), &ended.stdout.last().unwrap()[..]), (Some(3), expected), "{ended:?}");
}

#[test]
fn the_comparison_is_written_as_json() {
    let (old, new) = (windows("old", 10, 1000, |_| ()), windows("new", 10, 1200, |_| ()));
    let ended = compare(&[old.path(), new.path(), "--json", "-", "--fail-if", "p50>+30%"]);
    let [line] = &ended.stdout[..] else { panic!("not one line: {ended:?}") };
    let document: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&document["schema"], &document["verdict"]), (&json!("ecoloop.compare/1"), &json!("pass")));
    assert_eq!(document["new"], json!({"targets": ["127.0.0.1:5000"], "windows": 10, "left_out": 0, "errors": 0}));
    assert_eq!(document["metrics"][0]["metric"], "p50");
    assert_eq!(document["metrics"][0]["verdict"], "slower");
    assert_eq!(document["thresholds"][0]["failed"], false);
}

#[test]
fn a_comparison_that_cannot_be_written_is_an_error_after_the_table() {
    let (old, new) = (windows("old", 10, 1000, |_| ()), windows("new", 10, 1200, |_| ()));
    let ended = compare(&[old.path(), new.path(), "--json", "/dev/full"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(row(&ended, "p50").ends_with(" slower"), "{ended:?}");
    let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
    assert!(line.starts_with("ecoloop: cannot write /dev/full: No space left on device"), "{line}");
}

#[test]
fn reports_that_cannot_be_compared_are_refused_by_name() {
    let old = windows("old", 2, 1000, |_| ());
    let other_size = windows("size", 2, 1000, |report| report["config"]["size"] = 65.into());
    let broken = Scratch::new("broken");
    fs::write(broken.path(), fs::read_to_string(old.path()).unwrap() + "{\"schema\"").unwrap();
    let empty = windows("empty", 0, 0, |_| ());
    for (new, reason) in [
        (other_size.path(), format!("{}, report 1: size is 65, and 64 in {}, report 1", other_size.path(), old.path())),
        (broken.path(), format!("{}: line 3: a report begins here and does not end", broken.path())),
        (empty.path(), format!("{}: it has no report", empty.path())),
    ] {
        let ended = compare(&[old.path(), new]);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.len() == 1 && ended.stderr[0].contains(&reason), "{ended:?}: {reason}");
    }
}

#[test]
fn two_servers_are_measured_in_turn_over_connections_that_last() {
    // The delay is longer than an echo takes on a loaded machine, and a window has several of them.
    let (old, new) = (serve(Config::default()), slow_server(Duration::from_millis(100)));
    let (address, pid) = (old.local_addr().to_string(), std::process::id().to_string());
    let live = ["--live", "-c", "2", "-d", "400ms", "--windows", "6", "--server-pids", &pid, &pid];
    let ended = compare(&[&live[..], &["--json", "-", &address, &new.to_string()]].concat());
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(0), &[][..]), "{ended:?}");
    let document: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    assert_eq!(document["old"], json!({"targets": [address], "windows": 6, "left_out": 0, "errors": 0}));
    assert_eq!((&document["new"]["windows"], &document["new"]["targets"][0]), (&json!(6), &json!(new.to_string())));
    let metrics = document["metrics"].as_array().unwrap();
    let names: Vec<_> = metrics.iter().map(|metric| metric["metric"].as_str().unwrap()).collect();
    assert_eq!(names, ["rate", "mean", "p50", "p99", "server_cpu"]);
    // Not its verdict: a single window in which the old server had no CPU widens the interval.
    let medians = |metric: &Value| ["old", "new"].map(|side| metric[side].as_f64().unwrap());
    let [old_rate, new_rate] = medians(&metrics[0]);
    let [old_p50, new_p50] = medians(&metrics[2]);
    assert!(new_rate <= 20.0 && new_rate < old_rate, "{document}");
    assert!(new_p50 >= 100_000.0 && old_p50 < 100_000.0, "{document}");
    assert_eq!(old.handle().stats().accepted, 2);
}

#[test]
fn an_interrupted_comparison_evaluates_no_condition() {
    let [old, new] = [(), ()].map(|()| serve(Config::default()));
    let addresses = [&old, &new].map(|server| server.local_addr().to_string());
    let arguments = ["compare", "--live", "-d", "10ms", "--windows", "1M", "--fail-if", "rate>-100%"];
    let process = Process::start(ecoloop(&[&arguments[..], &[&addresses[0], &addresses[1]]].concat()));
    eventually("a window of the new server", || new.handle().stats().bytes_in > 1000);
    let before = old.handle().stats().bytes_in;
    eventually("a second window of the old server", || old.handle().stats().bytes_in > before + 1000);
    process.signal(Signal::INT);
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(130), "{ended:?}");
    assert_eq!(ended.stdout.last().unwrap(), "result       INTERRUPTED");
}

#[test]
fn a_condition_that_live_windows_cannot_tell_is_a_usage_error() {
    for (condition, reason) in [
        ("server_cpu>+10%", "needs --server-pids"),
        ("connect_p99>+10%", "needs reports of several runs: --live connects once"),
    ] {
        let ended = compare(&["--live", "--fail-if", condition, ":9", ":9"]);
        let expected = format!("error: --fail-if {condition} {reason}");
        assert_eq!((ended.status.code(), &ended.stderr[0]), (Some(2), &expected), "{ended:?}");
    }
}

#[test]
fn the_help_names_what_live_does_not_take() {
    let help = compare(&["--help"]).stdout.join(" ");
    for (words, options) in [
        ("--reconnect", &["--reconnect"][..]),
        ("--fault", &["--fault", "rate=1KiB"]),
        ("--repeat", &["--repeat"]),
        ("--start-at", &["--start-at", "2100-01-01T00:00:00Z"]),
        ("--mode hold or churn", &["--mode", "hold"]),
        ("--mode hold or churn", &["--mode", "churn"]),
        ("a range of -r", &["-r", "1..2"]),
    ] {
        let ended = compare(&[&["--live"], options, &[":9", ":9"]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(help.contains(words), "{words} is not in {help}");
    }
}

#[test]
fn options_of_a_load_need_live() {
    let ended = compare(&["-c", "5", "old.json", "new.json"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.iter().any(|line| line.trim() == "--live"), "{ended:?}");
    let (_reserved, refused) = reserve_port();
    let refused = refused.to_string();
    let ended = compare(&[&refused, &refused]);
    let reason = format!("cannot read {refused}: No such file or directory (os error 2); --live compares servers");
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &[format!("ecoloop: {reason}")][..]));
    let ended = compare(&["--live", &refused, "new.json"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr[0].contains("--live cannot measure 'new.json': the port is missing"), "{ended:?}");
    let ended = compare(&["--live", &refused, &refused]);
    let reason = format!("no connection to {refused} is left: connect refused (ECONNREFUSED): 1, to {refused}");
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.iter().any(|line| line.contains(&reason)), "{ended:?}");
}
