//! The report: JSON document, thresholds, table, and merging.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use ecoloop::Config as ServerConfig;
use ecoloop::load::Report;
use ecoloop::load::report::Verdict;
use serde_json::Value;

use super::faulty_server::{discard, echo, echo_messages, faulty_server, read_message};
use super::{FAULTY_CONNECTION, assert_clean, document, run_command};
use crate::support::{Process, Scratch, TIMEOUT, ecoloop, half_close, reserve_port, serve};

#[test]
fn json_on_standard_output_is_one_document_with_the_documented_fields() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let pid = std::process::id().to_string();
    let ended = run_command(&[
        "-c",
        "3",
        "-r",
        "200",
        "-d",
        "1100ms",
        "--label",
        "a=b",
        "--seed",
        "7",
        "--server-pid",
        &pid,
        "--json",
        "-",
        &address,
    ]);
    let (json, report) = document(&ended);
    assert_clean(&report);
    assert!(!ended.stderr.iter().any(|line| line.contains('\x1b')), "{ended:?}");
    let expected = "schema version run_id start ended verdict mode loop config rank origin phases_s connections hold outages faults messages rate_per_s \
                    latency_us connect_us lateness_us schedule stages targets sources errors verify generator server sockstat search timeline thresholds";
    assert_eq!(keys(&json), expected.split_ascii_whitespace().collect());
    let summary = "count censored clipped mean p50 p90 p95 p99 p99_9 p99_99 max hdr_v2";
    let of = [
        (
            "config",
            "targets sources size size_max pipeline rate arrivals messages_per_connection proxy_protocol seed labels",
        ),
        ("origin", "host kernel command options"),
        ("phases_s", "connect warmup measure drain close"),
        ("connections", "requested established verified held opened_total"),
        ("messages", "due unsent verified unanswered failed deferred"),
        ("latency_us", summary),
        ("connect_us", summary),
        ("lateness_us", summary),
        ("schedule", "kept"),
        ("verify", "wrong_bytes lost_bytes extra_bytes connections_failed findings"),
        ("generator", "cpu_us_per_message cpu_percent turn_us_p99 longest_gap_us saturated"),
        ("server", "pid cpu_us_per_message rss_bytes_per_connection"),
        ("sockstat", "scope tcp_inuse tcp_mem_pages"),
    ];
    for (name, expected) in of {
        assert_eq!(keys(&json[name]), expected.split_ascii_whitespace().collect(), "{name}");
    }
    assert_eq!(keys(&json["timeline"][0]), ["t", "rate", "open", "errors", "p50", "p99"].into());
    assert_eq!(keys(&json["thresholds"][0]), ["expr", "default", "value", "failed"].into());
    assert_eq!(
        (&json["schema"], &json["ended"], &json["loop"]),
        (&"ecoloop.load/1".into(), &"complete".into(), &"open".into())
    );
    assert_eq!(
        (&json["hold"], &json["config"]["pipeline"], &json["config"]["labels"]["a"]),
        (&Value::Null, &Value::Null, &"b".into())
    );
    assert_eq!((&json["config"]["rate"], &json["config"]["seed"]), (&200.into(), &7.into()));
    let command: Vec<_> =
        json["origin"]["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!((command[1], command[2..4].join(" "), command.last()), ("load", "-c 3".to_owned(), Some(&&address[..])));
    let options = &json["origin"]["options"];
    let fields = (&options["duration"], &options["timeout"], &options["close"], &options["nagle"]);
    assert_eq!(fields, (&1.1.into(), &10.0.into(), &"fin".into(), &false.into()));
    assert!(json["origin"]["kernel"].is_string() && json["origin"]["host"].is_string(), "{}", json["origin"]);
    // Memory per connection is null below 1,000 connections.
    assert_eq!(json["server"]["rss_bytes_per_connection"], Value::Null);
    assert_eq!(json["sockstat"]["scope"], "namespace");
}

#[test]
fn findings_and_errors_are_in_the_document_by_name() {
    let address = faulty_server(|number, stream| {
        let mut message = read_message(stream)?;
        if number == 0 {
            message[9] ^= 1;
            stream.write_all(&message)?;
            return echo(stream);
        }
        half_close(stream);
        discard(stream)
    });
    let ended = run_command(&["-c", "2", "--max-connecting", "1", "-m", "1", "--json", "-", &address.to_string()]);
    let (mut json, report) = document(&ended);
    assert_eq!(report.verdict, Verdict::Fail);
    let finding = &json["verify"]["findings"][0];
    assert_eq!(keys(finding), ["kind", "connection", "local", "peer", "offset", "at_s", "expected", "received"].into());
    let fields = (&finding["kind"], &finding["connection"], &finding["offset"], &finding["peer"]);
    assert_eq!(fields, (&"flipped".into(), &0.into(), &9.into(), &address.to_string().into()));
    for error in json["errors"].as_array_mut().unwrap() {
        // The clock of a run begins a moment after the time of its start.
        let first = error.as_object_mut().unwrap().remove("first_s").unwrap().as_f64().unwrap();
        assert!(first > 0.0 && first < TIMEOUT.as_secs_f64(), "{first}");
    }
    let targets = [serde_json::json!({"target": address.to_string(), "count": 1})];
    let errors = serde_json::json!([
        {"phase": "receive", "error": "closed_early", "errno": null, "count": 1, "targets": targets},
        {"phase": "verify", "error": "bad_bytes", "errno": null, "count": 1, "targets": targets},
    ]);
    assert_eq!(json["errors"], errors);
    // A quantity without data is null, and not 0.
    assert_eq!((&json["latency_us"]["p50"], &json["latency_us"]["mean"]), (&Value::Null, &Value::Null));
}

#[test]
fn only_a_failed_threshold_fails_the_run() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let run_with = |threshold: &str| {
        let ended = run_command(&["-m", "10", "--fail-if", threshold, "--json", "-", &address]);
        let (_, report) = document(&ended);
        let thresholds: Vec<_> = report.thresholds.iter().filter(|row| !row.default).collect();
        let [row] = thresholds[..] else { panic!("{thresholds:?}") };
        assert_eq!(row.expr, threshold);
        assert_eq!(report.verdict == Verdict::Fail, row.failed, "{:?}", report.thresholds);
        (report.verdict, row.value)
    };
    for threshold in ["p99<1h", "max>0us", "connections<2", "rate<1M", "errors>=0", "mean<1h", "connect_p99<1h"] {
        assert!(matches!(run_with(threshold), (Verdict::Fail, Some(_))), "{threshold}");
    }
    for threshold in ["p99>1h", "max<0us", "connections<1", "rate>100M/s", "unanswered>0", "p99.99>=1h"] {
        // A loaded machine can keep the generator from its core.
        assert!(matches!(run_with(threshold), (Verdict::Pass | Verdict::Inconclusive, Some(_))), "{threshold}");
    }
    // A closed loop has no lateness, and a threshold without a value fails.
    assert_eq!(run_with("lateness_p99>1h"), (Verdict::Fail, None));
    // Where nothing was due there is no latency either.
    let (_port, refused) = reserve_port();
    let (_, report) = document(&run_command(&["-m", "1", "--fail-if", "p99>1h", "--json", "-", &refused.to_string()]));
    let row = report.thresholds.iter().find(|row| !row.default).unwrap();
    assert_eq!((&row.expr[..], row.value, row.failed), ("p99>1h", None, true));
}

#[test]
fn a_threshold_replaces_the_default_on_its_metric_but_never_the_findings() {
    let closing = || {
        faulty_server(|number, stream| {
            if number != FAULTY_CONNECTION {
                return echo(stream);
            }
            echo_messages(stream, 3)?;
            half_close(stream);
            discard(stream)
        })
    };
    let flipping = faulty_server(|number, stream| {
        echo_messages(stream, 3)?;
        let mut message = read_message(stream)?;
        message[0] ^= u8::from(number == FAULTY_CONNECTION);
        stream.write_all(&message)?;
        echo(stream)
    });
    let verdict = |address: SocketAddr, thresholds: &[&str]| {
        let address = address.to_string();
        let mut arguments = vec!["-c", "3", "-m", "10", "--json", "-", &address];
        arguments.extend(thresholds.iter().flat_map(|threshold| ["--fail-if", threshold]));
        document(&run_command(&arguments)).1.verdict
    };
    // A faulty server numbers its connections over all runs, so that each run needs a new server.
    assert_eq!(verdict(closing(), &[]), Verdict::Fail);
    assert_eq!(verdict(closing(), &["errors>1"]), Verdict::Fail);
    assert_ne!(verdict(closing(), &["errors>1", "connections<2"]), Verdict::Fail);
    assert_eq!(verdict(flipping, &["errors>1", "connections<1", "unanswered>9"]), Verdict::Fail);
}

#[test]
fn json_to_a_file_still_prints_the_table() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let file = Scratch::new("load-json");
    let ended = run_command(&["-m", "5", "--json", file.path(), &address]);
    ended.assert_measured();
    assert_eq!(file.json()["messages"]["verified"], 5);
    assert!(!ended.stdout.is_empty());
    assert!(!ended.stdout.iter().chain(&ended.stderr).any(|line| line.contains('\x1b')), "{ended:?}");
    let ended = run_command(&["-m", "5", "--quiet", &address]);
    assert!(ended.has_measured() && ended.stdout.is_empty(), "{ended:?}");
    let ended = run_command(&["-m", "5", "--quiet", "--fail-if", "connections<200%", &address]);
    let failure = "ecoloop: FAIL: connections<200% (100 %)";
    assert_eq!((ended.status.code(), ended.stderr.last().unwrap().as_str()), (Some(1), failure), "{ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
}

#[test]
fn a_run_without_a_window_reports_no_duration_and_no_cpu_share() {
    let (_port, address) = reserve_port();
    let ended = run_command(&["-d", "7s", &address.to_string()]);
    let settings = [
        "run          echo, closed loop, 1 connection, 64 B a message, 1 in flight".to_owned(),
        format!("             to {address}, seed 1"),
    ];
    assert_eq!(ended.stdout[..2], settings);
    let generator = ended.stdout.iter().find(|line| line.starts_with("generator ")).unwrap();
    assert!(generator.starts_with("generator    - CPU a message, - of a core, "), "{generator}");
    let hint = "ecoloop: connect refused 1 time: no server listens there, or a firewall rejects the connection";
    assert_eq!(ended.stderr, [hint]);
}

#[test]
fn merge_combines_runs_with_the_same_start_at() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let start = SystemTime::now() + Duration::from_secs(1);
    let start_at = humantime::format_rfc3339_millis(start).to_string();
    let files = [Scratch::new("merge-one"), Scratch::new("merge-two")];
    let runs = files.each_ref().map(|file| {
        let options = ["-q", "-c", "2", "-r", "100", "-d", "2s", "--start-at", &start_at, "--json", file.path()];
        Process::start(ecoloop(&[&["load"], &options[..], &[&address]].concat()))
    });
    for run in runs {
        let ended = run.wait();
        // A loaded machine can keep a generator from its schedule, which is inconclusive.
        assert!(ended.has_measured() && ended.stdout.is_empty(), "{ended:?}");
    }
    let reports = files.each_ref().map(|file| Report::from_json(&file.json().to_string()).unwrap());
    for report in &reports {
        // `--start-at` is in milliseconds.
        let late = report.start.duration_since(start - Duration::from_millis(1)).unwrap();
        assert!(late < TIMEOUT, "{late:?}");
    }

    let merge = |arguments: &[&str]| Process::start(ecoloop(&[&["merge"], arguments].concat())).wait();
    let [one, two] = files.each_ref().map(Scratch::path);
    let ended = merge(&["--json", "-", "--fail-if", "p99>1h", one, two]);
    let (_, merged) = document(&ended);
    assert_eq!(
        (merged.messages.due, merged.connections.held, merged.verdict == Verdict::Fail),
        (400, 4, false),
        "{:?}",
        merged.thresholds
    );
    assert_eq!(merged.run_id, format!("{}+{}", reports[0].run_id, reports[1].run_id));
    let failed = merge(&["-q", "--fail-if", "connections<5", one, two]);
    let expected = vec!["ecoloop: FAIL: connections<5 (4)".to_owned()];
    assert_eq!((failed.status.code(), failed.stdout, failed.stderr), (Some(1), vec![], expected));
    let refused = merge(&[one, one]);
    let expected = format!("ecoloop: cannot merge {one}: run {:?} is also in {one}", reports[0].run_id);
    assert_eq!((refused.status.code(), refused.stderr), (Some(1), vec![expected]));
}

#[test]
fn merge_limits_the_size_of_a_report() {
    let ended = Process::start(ecoloop(&["merge", "/dev/zero"])).wait();
    let expected = "ecoloop: cannot read /dev/zero: it is larger than 64 MiB";
    assert_eq!((ended.status.code(), ended.stderr), (Some(1), vec![expected.to_owned()]));
}

#[track_caller]
fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}
