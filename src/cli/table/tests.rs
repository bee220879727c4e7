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
            "count": 1000, "mean": 234.5, "p50": 80, "p90": 96, "p99": 100, "p99_9": 19007, "p99_99": 20015, "max": 20015,
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
run          echo, open loop at 100/s, 50 connections, 64 B a message, any number in flight
             10 s, to 127.0.0.1:5000, seed 1, k=v
connections  50 requested, 50 established, 50 verified, 50 held
messages     1,000 due: 1,000 verified, 0 unanswered, 0 unsent, 0 failed; 0 deferred
throughput   100 messages/s, 6.25 KiB/s each way

                    p50       p90       p99     p99.9    p99.99       max      mean     count
latency           80 µs     96 µs    100 µs   19.0 ms   20.0 ms   20.0 ms    234 µs     1,000
connect               -         -         -         -         -         -         -         0
lateness              -         -         -         -         -         -         -         0
schedule     kept

errors       none
findings     none
generator    5.10 µs CPU a message, 31 % of a core, 80 µs a turn at p99
server       5.00 µs CPU a message, 1.25 KiB memory a connection (process 4711)
kernel       100 TCP sockets in this network namespace, both ends counted; 3 pages of TCP buffers in the whole system
result       PASS (1 threshold)
";
    let table = table(&example());
    assert!(table == expected, "{table}");
}

#[test]
fn failures_are_listed_with_their_place_and_value() {
    let finding = json!({"kind": "flipped", "connection": 7, "local": "127.0.0.1:40312", "peer": "127.0.0.1:5000", "offset": 5000});
    let report = example_with(|json| {
        json["verdict"] = "fail".into();
        json["verify"]["findings"] = json!([finding]);
        json["errors"] = json!([
            {"phase": "connect", "error": "no_ports", "errno": null, "count": 3},
            {"phase": "receive", "error": "reset", "errno": "ECONNRESET", "count": 12_000},
        ]);
        json["thresholds"] = json!([
            {"expr": "errors>0", "default": true, "value": 12_003, "failed": true},
            {"expr": "p99>5ms", "default": false, "value": 6203.4, "failed": true},
            {"expr": "lateness_p99>5ms", "default": false, "value": null, "failed": true},
            {"expr": "unanswered>0", "default": true, "value": 0, "failed": false},
        ]);
    });
    let lines = [
        "errors       connect no_ports: 3",
        "             receive reset (ECONNRESET): 12,000",
        "findings     flipped at byte 5,000 of connection 7, 127.0.0.1:40312 to 127.0.0.1:5000",
        "result       FAIL: errors>0 (12,003), p99>5ms (6.20 ms), lateness_p99>5ms (no data)",
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
        "schedule     NOT KEPT: the generator sent messages late or not at all, so the figures are not the server's alone",
        "censored     5 latencies are the age of a message without an answer",
        "clipped      1 latency over the maximum of 1 h",
        "generator    5.10 µs CPU a message, 31 % of a core, 80 µs a turn at p99; SATURATED: the figures may be its own limit",
    ];
    assert_has(&table(&report), &lines);
}

#[test]
fn a_quantity_without_data_is_a_dash() {
    let report = example_with(|json| {
        json["generator"] = json!({"cpu_us_per_message": null, "cpu_percent": null, "turn_us_p99": null, "longest_gap_us": null, "saturated": null});
        json["server"] = json!({"pid": 4711, "cpu_us_per_message": null, "rss_bytes_per_connection": null});
        (json["rate_per_s"], json["sockstat"]) = (Value::Null, Value::Null);
        json["loop"] = "closed".into();
        json["schedule"]["kept"] = Value::Null;
        json["hold"] = json!({"alive": 48, "late": 1, "reset": 1, "closed": 0, "silent": 0});
    });
    let lines = [
        "hold         48 alive, 1 late, 1 reset, 0 closed, 0 silent",
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
    let finding = json!({"kind": "lost", "connection": 1, "local": null, "peer": "[::1]:5000", "offset": 0});
    let report = example_with(|json| {
        json["verify"]["findings"] = json!(vec![finding; 20]);
        json["config"]["labels"] = json!({"k": "\u{1b}[2J"});
        json["sockstat"]["scope"] = "\r\n\u{9b}1m".into();
    });
    let table = table(&report);
    assert_has(&table, &["             and 12 more (see --json)"]);
    assert!(table.lines().count() < 40);
    assert!(!table.contains(|letter: char| letter.is_control() && letter != '\n'), "{table:?}");
}

#[test]
fn one_takes_the_singular() {
    let report = example_with(|json| {
        (json["rate_per_s"], json["connections"]["requested"]) = (1.into(), 1.into());
        json["config"]["size"] = 1.into();
        (json["sockstat"]["tcp_inuse"], json["sockstat"]["tcp_mem_pages"]) = (1.into(), 1.into());
    });
    let lines = [
        "run          echo, open loop at 100/s, 1 connection, 1 B a message, any number in flight",
        "throughput   1 message/s, 1 B/s each way",
        "kernel       1 TCP socket in this network namespace, both ends counted; 1 page of TCP buffers in the whole system",
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
    let json = serde_json::to_value(example()).unwrap();
    each_leaf(&json, &mut |changed| {
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
