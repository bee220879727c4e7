use serde_json::{Value, json};

use super::*;

pub(in crate::cli) fn example() -> Report {
    example_with(|_| ())
}

/// The library's example, with a thousand latencies from 60 µs to 20 ms, and with something else in its JSON.
pub(in crate::cli) fn example_with(change: impl FnOnce(&mut Value)) -> Report {
    let mut json: Value = serde_json::from_str(include_str!("../../../tests/report.json")).unwrap();
    let merge = |into: &mut Value, from: Value| into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
    (json["config"]["rate"], json["rate_per_s"]) = (100.into(), 100.into());
    merge(&mut json["messages"], json!({"due": 1000, "verified": 1000}));
    merge(
        &mut json["latency_us"],
        json!({
            "count": 1000, "mean": 234.5, "p50": 80, "p90": 96, "p95": 98, "p99": 100, "p99_9": 19007, "p99_99": 20015, "max": 20015,
            "hdr_v2": "HISTFAAAAEZ4nI2IvQ1AERSFz71vhNeawgIKMZOI1gZW0FjIHBKFFqHR+XJ+kk+E+AMw2HznaU2JCapuYVm+IZrmTlcysWc3OwC6dBU6",
        }),
    );
    json["server"]["rss_bytes_per_connection"] = 1280.into();
    change(&mut json);
    Report::from_json(&json.to_string()).unwrap()
}

#[track_caller]
fn assert_has(table: &str, lines: &[&str]) {
    let missing: Vec<_> = lines.iter().filter(|line| !table.lines().any(|other| other == **line)).collect();
    assert!(missing.is_empty(), "{missing:#?} not in\n{table}");
}

#[test]
fn a_report_fits_on_one_screen() {
    let expected = "\
run          echo, open loop at 100/s, 50 connections, 64 B a message
             any number in flight, 10 s, to 127.0.0.1:5000, seed 1, k=v
connections  50 requested, 50 established, 50 verified, 50 held
messages     1,000 due: 1,000 verified, 0 unanswered, 0 unsent, 0 failed;
             0 deferred
throughput   asked 100/s, had 100/s, 6.25 KiB/s each way

                  p50     p90     p95     p99   p99.9  p99.99     max    mean
latency         80 µs   96 µs   98 µs  100 µs 19.0 ms 20.0 ms 20.0 ms  235 µs
connect             -       -       -       -       -       -       -       -
lateness            -       -       -       -       -       -       -       -
schedule     kept

errors       none
findings     none
generator    5.10 µs CPU a message, 31 % of a core, 80 µs a turn at p99
server       5.00 µs CPU a message, 1.25 KiB memory a connection (process 4711)
kernel       100 TCP sockets in this network namespace, both ends counted;
             3 pages of TCP buffers in the whole system
result       PASS (1 threshold)
";
    let table = table(&example());
    assert!(table == expected, "{table}");
}

#[test]
fn failures_are_listed_with_their_place_and_value() {
    let finding = json!({"kind": "flipped", "connection": 7, "local": "127.0.0.1:40312", "peer": "127.0.0.1:5000", "offset": 5000,
            "at_s": 1.5, "expected": {"hex": "68", "text": "h"}, "received": {"hex": "78", "text": "x"},
        "at_s": 1.5, "expected": {"hex": "6162", "text": "ab"}, "received": {"hex": "6100", "text": "a."}});
    let report = example_with(|json| {
        json["verdict"] = "fail".into();
        json["verify"]["findings"] = json!([finding]);
        json["errors"] = json!([
            {"phase": "connect", "error": "no_ports", "errno": null, "count": 3, "first_s": 0.012, "targets": []},
            {
                "phase": "receive", "error": "reset", "errno": "ECONNRESET", "count": 12_000, "first_s": 2.5,
                "targets": [{"target": "127.0.0.1:1", "count": 8000}, {"target": "127.0.0.1:2", "count": 4000}],
            },
        ]);
        json["thresholds"] = json!([
            {"expr": "errors>0", "default": true, "value": 12_003, "failed": true},
            {"expr": "p99>5ms", "default": false, "value": 6203.4, "failed": true},
            {"expr": "lateness_p99>5ms", "default": false, "value": null, "failed": true},
            {"expr": "rate<99%", "default": false, "value": 23.5, "failed": true},
            {"expr": "schedule", "default": false, "value": 0, "failed": true},
            {"expr": "unanswered>0", "default": true, "value": 0, "failed": false},
        ]);
    });
    let lines = [
        "errors       connect no_ports: 3, first after 12 ms",
        "             receive reset (ECONNRESET): 12,000,",
        "             to 127.0.0.1:1 (8,000) and 127.0.0.1:2 (4,000), first after 2.5 s",
        "findings     flipped at byte 5,000 of connection 7,",
        "             127.0.0.1:40312 to 127.0.0.1:5000, after 1.5 s, expected 6162 \"ab\",",
        "             received 6100 \"a.\"",
        "result       FAIL: errors>0 (12,003), p99>5ms (6.20 ms),",
        "             lateness_p99>5ms (no data), rate<99% (23.5 %), schedule (not kept)",
    ];
    assert_has(&table(&report), &lines);
    assert!(!table(&report).contains("unanswered>0"), "it holds");
}

#[test]
fn restrictions_of_the_figures_are_printed() {
    let report = example_with(|json| {
        json["ended"] = "interrupted".into();
        json["verdict"] = "interrupted".into();
        json["schedule"]["kept"] = false.into();
        json["generator"]["saturated"] = true.into();
        json["latency_us"]["censored"] = 5.into();
        json["latency_us"]["clipped"] = 1.into();
    });
    let lines = [
        "result       INTERRUPTED",
        "ended        interrupted: the figures cover the time until then",
        "schedule     NOT KEPT: the generator sent messages late",
        "censored     5 latencies are the age of a message without a reply",
        "clipped      1 latency over the maximum of 1 h",
        "generator    5.10 µs CPU a message, 31 % of a core, 80 µs a turn at p99;",
        "             SATURATED: the figures may be its own limit",
    ];
    assert_has(&table(&report), &lines);
}

#[test]
fn held_connections_that_failed_otherwise_are_an_outcome() {
    let table = table(&example_with(|json| {
        json["hold"] = json!({
            "alive": 7, "late": 1, "reset": 1, "closed": 0, "silent": 0, "unasked": 1, "failed": 2,
            "closed_after_s": null, "first_us": json["connect_us"],
        });
    }));
    assert_has(&table, &["hold         7 alive, 1 late, 1 reset, 0 closed, 0 silent, 1 unasked, 2 failed"]);
}

#[test]
fn the_last_messages_of_hold_are_on_a_schedule() {
    let table_at = |rate: Value| {
        table(&example_with(|json| {
            (json["mode"], json["loop"], json["config"]["rate"]) = ("hold".into(), "closed".into(), rate);
            json["schedule"]["kept"] = Value::Null;
        }))
    };
    let paced = table_at(10_000.into());
    assert_has(
        &paced,
        &["run          hold, last messages at 10,000/s, 50 connections, 64 B a message", "schedule     -"],
    );
    let older = table_at(Value::Null);
    assert_has(&older, &["run          hold, last messages on a schedule, 50 connections, 64 B a message"]);
}

#[test]
fn a_failed_threshold_has_the_unit_of_its_quantity() {
    let row = |expr: &str, value: f64| json!({"expr": expr, "default": false, "value": value, "failed": true});
    let table = table(&example_with(|json| {
        json["verdict"] = "fail".into();
        json["thresholds"] = json!([
            row("server_cpu>0us", 2.56),
            row("longest_outage>1s", 2e6),
            row("p99[2]>1us", 80.0),
            row("found_rate<40k", 39_000.0),
        ]);
    }));
    let lines = [
        "result       FAIL: server_cpu>0us (2.56 µs), longest_outage>1s (2.00 s),",
        "             p99[2]>1us (80.0 µs), found_rate<40k (39,000)",
    ];
    assert_has(&table, &lines);
}

#[test]
fn the_value_of_a_failed_threshold_is_one_that_fails() {
    let value = |expr: &str, value: f64| {
        let report = example_with(|json| {
            json["thresholds"] = json!([{"expr": expr, "default": false, "value": value, "failed": true}]);
        });
        threshold(&report.thresholds[0])
    };
    assert_eq!(value("rate<2000", 1999.9), "rate<2000 (1,999.9)");
    assert_eq!(value("rate<99%", 98.96), "rate<99% (98.96 %)");
    assert_eq!(value("p99>5ms", 5003.0), "p99>5ms (5,003 µs)");
    assert_eq!(value("p99>5ms", 5100.0), "p99>5ms (5.10 ms)");
    assert_eq!(value("p99>=5ms", 5003.0), "p99>=5ms (5.00 ms)");
}

#[test]
fn a_quantity_without_data_is_a_dash() {
    let report = example_with(|json| {
        json["generator"] = json!({"cpu_us_per_message": null, "cpu_percent": null, "turn_us_p99": null, "longest_gap_us": null, "saturated": null});
        json["server"] = json!({"pid": 4711, "cpu_us_per_message": null, "rss_bytes_per_connection": null});
        (json["rate_per_s"], json["sockstat"]) = (Value::Null, Value::Null);
        json["loop"] = "closed".into();
        json["schedule"]["kept"] = Value::Null;
        json["hold"] = json!({
            "alive": 47, "late": 1, "reset": 1, "closed": 0, "silent": 0, "unasked": 1,
            "closed_after_s": {"min": 60, "p50": 60, "max": 60.5}, "first_us": json["connect_us"],
        });
    });
    let lines = [
        "hold         47 alive, 1 late, 1 reset, 0 closed, 0 silent, 1 unasked",
        "             closed or reset after 60 s to 60.5 s of silence, median 60 s",
        "throughput   -",
        "schedule     - (closed loop)",
        "generator    - CPU a message, - of a core, - a turn at p99",
        "server       - CPU a message, - memory a connection (process 4711)",
        "kernel       -",
    ];
    assert_has(&table(&report), &lines);
}

#[test]
fn findings_are_limited_and_control_characters_replaced() {
    let finding = json!({"kind": "lost", "connection": 1, "local": null, "peer": "[::1]:5000", "offset": 1,
        "at_s": 0, "expected": {"hex": "", "text": ""}, "received": {"hex": "", "text": ""}});
    let report = example_with(|json| {
        json["verify"]["findings"] = json!(vec![finding; 20]);
        json["config"]["labels"] = json!({"k": "\u{1b}[2J"});
        json["sockstat"]["scope"] = "\r\n\u{9b}1m".into();
    });
    let table = table(&report);
    assert_has(&table, &["             and 17 more (see --json)"]);
    assert!(table.lines().count() < 40);
    assert!(!table.contains(|letter: char| letter.is_control() && letter != '\n'), "{table:?}");
}

#[test]
fn one_takes_the_singular() {
    let report = example_with(|json| {
        (json["rate_per_s"], json["connections"]["requested"]) = (1.into(), 1.into());
        json["loop"] = "closed".into();
        json["config"]["size"] = 1.into();
        (json["sockstat"]["tcp_inuse"], json["sockstat"]["tcp_mem_pages"]) = (1.into(), 1.into());
    });
    let lines = [
        "run          echo, closed loop, 1 connection, 1 B a message",
        "throughput   1 message/s, 1 B/s each way",
        "kernel       1 TCP socket in this network namespace, both ends counted;",
        "             1 page of TCP buffers in the whole system",
    ];
    assert_has(&table(&report), &lines);
}

#[test]
fn a_window_of_zero_length_is_not_printed() {
    let has_window = |change: fn(&mut Value), words: &str| settings(&example_with(change)).contains(&words.to_owned());
    assert!(has_window(|_| (), "10 s"));
    assert!(has_window(|json| json["phases_s"]["measure"] = 0.25.into(), "250 ms"));
    assert!(!has_window(|json| json["connections"]["verified"] = 0.into(), "10 s"));
    assert!(!has_window(|json| json["phases_s"]["measure"] = 0.into(), "0 µs"));
}

/// Calls `call` with the document for each of its values and each extreme, which takes the place of the value.
fn each_leaf(report: &Value, call: &mut dyn FnMut(&Value)) {
    fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(key, value)| paths(value, &format!("{path}/{key}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(index, item)| paths(item, &format!("{path}/{index}"), found));
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    paths(report, "", &mut found);
    for path in found {
        for extreme in
            [json!(u64::MAX), json!(0), json!(-1), json!(f64::MAX), json!(-f64::MAX), json!(5e-324), Value::Null]
        {
            let mut changed = report.clone();
            if let Some(leaf) = changed.pointer_mut(&path) {
                *leaf = extreme;
            }
            call(&changed);
        }
    }
}

#[test]
fn no_number_of_a_file_overflows() {
    let report = example_with(|json| {
        json["errors"] = json!([{
            "phase": "connect", "error": "refused", "errno": "ECONNREFUSED", "count": 1, "first_s": 0.5,
            "targets": [{"target": "127.0.0.1:5000", "count": 1}],
        }]);
        json["verify"]["findings"] = json!([{
            "kind": "flipped", "connection": 7, "local": "127.0.0.1:40312", "peer": "127.0.0.1:5000", "offset": 5000,
            "at_s": 1.5, "expected": {"hex": "68", "text": "h"}, "received": {"hex": "78", "text": "x"},
        }]);
        json["hold"] = json!({
            "alive": 1, "late": 1, "reset": 1, "closed": 1, "silent": 1, "unasked": 1, "failed": 1,
            "closed_after_s": {"min": 1.5, "p50": 2, "max": 3}, "first_us": json["latency_us"],
        });
        let second = |t| json!({"t": t, "rate": 2000, "open": 50, "errors": 0, "p50": 66, "p99": 140});
        json["timeline"] = json!([second(1), second(2)]);
    });
    each_leaf(&serde_json::to_value(report).unwrap(), &mut |changed| {
        let Ok(report) = Report::from_json(&changed.to_string()) else { return };
        let mut other = report.clone();
        other.run_id.push('2');
        if let Ok(merged) = ecoloop::load::merge(&[("a".to_owned(), report), ("b".to_owned(), other)], &[]) {
            let _ = table(&merged);
            let _ = crate::cli::plot::plot(&merged);
            let _ = merged.to_json();
        }
    });
}

#[test]
fn an_inconclusive_run_has_its_reasons() {
    let result = |kept: bool, saturated: bool| {
        let report = example_with(|json| {
            json["verdict"] = "inconclusive".into();
            (json["schedule"]["kept"], json["generator"]["saturated"]) = (kept.into(), saturated.into());
        });
        let table = table(&report);
        let lines = table.lines().skip_while(|line| !line.starts_with("result ")).map(str::trim_start);
        lines.collect::<Vec<_>>().join(" ").split_off("result".len()).trim_start().to_owned()
    };
    assert_eq!(
        result(false, false),
        "INCONCLUSIVE: the schedule was not kept, so the figures are not the server's alone"
    );
    assert_eq!(
        result(true, true),
        "INCONCLUSIVE: the generator was saturated, so the figures are not the server's alone"
    );
    let both = "INCONCLUSIVE: the schedule was not kept and the generator was saturated, so the figures are not the server's alone";
    assert_eq!(result(false, true), both);
}

#[test]
fn unsent_messages_are_attributed_to_the_connections_that_ended() {
    let report = example_with(|json| {
        json["messages"]["unsent"] = 1502.into();
        json["errors"] = json!([
            {"phase": "send", "error": "reset", "errno": "EPIPE", "count": 1, "first_s": 1, "targets": [{"target": "127.0.0.1:1", "count": 1}]},
            {"phase": "receive", "error": "reset", "errno": "ECONNRESET", "count": 2, "first_s": 1, "targets": [{"target": "127.0.0.1:1", "count": 1}]},
            {"phase": "receive", "error": "closed_early", "errno": null, "count": 50, "first_s": 1, "targets": [{"target": "127.0.0.1:1", "count": 1}]},
            {"phase": "close", "error": "timeout", "errno": null, "count": 9, "first_s": 1, "targets": [{"target": "127.0.0.1:1", "count": 1}]},
        ]);
    });
    let lines = ["             1,502 not sent: their connections had ended (reset 3,", "             closed_early 50)"];
    assert_has(&table(&report), &lines);
}

#[test]
fn unsent_messages_whose_connections_never_opened_are_not_attributed_to_their_end() {
    let line = |mode: &str, established: u64| {
        let table = table(&example_with(|json| {
            (json["mode"], json["connections"]["established"]) = (mode.into(), established.into());
            json["messages"]["unsent"] = 7.into();
            json["errors"] = json!([{
                "phase": "connect", "error": "refused", "errno": "ECONNREFUSED", "count": 7, "first_s": 1,
                "targets": [{"target": "127.0.0.1:1", "count": 7}],
            }]);
        }));
        table.lines().find_map(|line| line.trim_start().strip_prefix("7 not sent: ")).unwrap().to_owned()
    };
    assert_eq!(line("churn", 50), "their connections were not opened (refused 7)");
    assert_eq!(line("churn", 0), "no connection was established (refused 7)");
    assert_eq!(line("echo", 0), "no connection was established (refused 7)");
    assert_eq!(line("echo", 50), "their connections had ended (refused 7)");
}

#[test]
fn no_line_is_longer_than_80_characters() {
    let huge = 123_456_789_012_u64;
    let address = "[2001:db8:1111:2222:3333:4444:5555:6666]:40312";
    let finding = json!({"kind": "duplicated", "connection": huge, "local": address, "peer": address, "offset": huge,
        "at_s": 0, "expected": {"hex": "00".repeat(16), "text": ".".repeat(16)}, "received": {"hex": "00".repeat(16), "text": "\"".repeat(16)}});
    let table = table(&example_with(|json| {
        for counts in ["messages", "connections"] {
            json[counts].as_object_mut().unwrap().values_mut().for_each(|count| *count = huge.into());
        }
        for times in ["connect_us", "lateness_us"] {
            for field in ["p50", "p90", "p95", "p99", "p99_9", "p99_99", "max", "mean"] {
                json[times][field] = 3_600_000_000_u64.into();
            }
        }
        json["config"]["targets"] = json!([address, address]);
        json["config"]["seed"] = u64::MAX.into();
        (json["config"]["rate"], json["rate_per_s"]) = (1e9.into(), 1e9.into());
        json["verify"]["findings"] = json!([finding]);
        json["generator"]["saturated"] = true.into();
    }));
    for line in table.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let row = table.lines().find(|line| line.starts_with("connect  ")).unwrap();
    assert_eq!(row.split_ascii_whitespace().filter(|word| *word == "3,600").count(), 8, "{row}");
}

#[test]
fn long_cells_do_not_run_together() {
    let table = table(&example_with(|json| {
        json["stages"] = json!([{
            "from": 10_000, "to": 10_000, "seconds": 10_800, "messages": json["messages"], "rate_per_s": 10_000, "errors": 0,
            "latency_us": json["latency_us"], "lateness_us": json["lateness_us"],
        }]);
    }));
    assert!(table.contains("  10,000  10,000 10,800 s"), "{table}");
}

#[test]
fn an_overload_that_was_deferred_is_mentioned_with_the_verdict() {
    let words = "             99.8 % of the messages were deferred: the pipeline or the socket";
    let table_of = |deferred: u64| table(&example_with(|json| json["messages"]["deferred"] = deferred.into()));
    assert_has(&table_of(998), &["result       PASS (1 threshold)", words, "             was full"]);
    assert!(!table_of(10).contains("were deferred"));
}

#[test]
fn a_search_says_what_it_found_and_what_limits_it() {
    let table_of = |found: Option<f64>, limited_by: &str, verdict: &str| {
        table(&example_with(|json| {
            json["search"] = json!({"goal": ["p99<5ms"], "found_rate": found, "limited_by": limited_by, "reopened": 0, "probes": []});
            (json["verdict"], json["thresholds"]) = (verdict.into(), json!([]));
        }))
    };
    let found = "found        41,200/s, the highest rate with p99<5ms; limited by the server";
    assert_has(&table_of(Some(41_200.0), "server", "pass"), &[found, "result       PASS (0 thresholds)"]);
    let slow = "found        3.36/s, the highest rate with p99<5ms; limited by the server";
    assert_has(&table_of(Some(3.36), "server", "pass"), &[slow]);
    let none = "found        no rate with p99<5ms; limited by the server";
    assert_has(&table_of(None, "server", "fail"), &[none, "result       FAIL: no rate was found"]);
    let generator = [
        "             LIMITED BY THE GENERATOR: the server may take more",
        "result       INCONCLUSIVE: the generator was too slow for a higher rate",
    ];
    assert_has(&table_of(Some(41_200.0), "generator", "inconclusive"), &generator);
    let nothing = [
        "found        no rate, because no window counted;",
        "result       INCONCLUSIVE: no window counted;",
        "             the generator was too slow for the lowest rate",
    ];
    assert_has(&table_of(None, "generator", "inconclusive"), &nothing);
}

#[test]
fn the_worst_targets_come_first() {
    let target = |port: u16, errors: u64, p99: u64| {
        json!({"target": format!("127.0.0.1:{port}"), "connections": 2, "messages": 1000, "errors": errors, "p50": 66, "p99": p99,
            "latency_us": example().latency_us})
    };
    let mut json = serde_json::to_value(example()).unwrap();
    json["targets"] =
        (1..=10).map(|port| target(port, u64::from(port == 7), if port == 3 { 50_000 } else { 140 })).collect();
    let lines = table(&serde_json::from_value(json).unwrap());
    let lines: Vec<_> = lines.lines().skip_while(|line| !line.starts_with("targets")).collect();
    assert_eq!(lines[0], "targets      127.0.0.1:7: 2 connections, 1,000 messages, 1 error, p50 66 µs,");
    assert_eq!(lines[1], "             p99 140 µs");
    assert_eq!(lines[2], "             127.0.0.1:3: 2 connections, 1,000 messages, 0 errors, p50 66 µs,");
    assert!(lines.contains(&"             and 2 more (see --json)"), "{lines:#?}");
}
