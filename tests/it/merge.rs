//! `ecoloop merge` of files that this program did not write: memory, time and output.

use std::fs;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::support::{Ended, Process, Scratch, ecoloop, limited};

/// Address space of a merge of a few megabytes, in KiB.
const MEMORY_KIB: u64 = 300 << 10;

/// A histogram of 1 µs to 1 h that announces 4 GiB of counts, and one with a range of 96 MiB.
const HISTOGRAM_LENGTH: &str = "HISTFAAAACB4nJNpmSz8HwgYIIAZSjOCiGuTlzDYf4AIMAEA4tUIhQ==";
const HISTOGRAM_RANGE: &str = "HISTFAAAAB14nJNpmSzMwMDAyAABrFCa0QHKsP8AoZkAQSsCvw==";
/// A histogram of 2^62 values of 100 µs.
const HISTOGRAM_2_62: &str = "HISTFAAAACV4nJNpmSzMwMDAzQABzFCaEURcm7yEwf4DROA4YwMMAACjogna";

/// Writes the example of a report, with another identity and `change`.
#[track_caller]
fn file(name: &str, change: impl FnOnce(&mut Value)) -> Scratch {
    let mut report: Value = serde_json::from_str(include_str!("../report.json")).unwrap();
    report["run_id"] = name.into();
    change(&mut report);
    let file = Scratch::new(name);
    fs::write(file.path(), report.to_string()).unwrap();
    file
}

#[track_caller]
fn merge(arguments: &[&str]) -> Ended {
    Process::start(limited(MEMORY_KIB, &ecoloop(&[&["merge"], arguments].concat()))).wait()
}

/// Returns the one line of standard error of a merge that must fail.
#[track_caller]
fn refusal(file: &Scratch) -> String {
    let ended = merge(&[file.path()]);
    assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(1), &[][..]), "{ended:?}");
    let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
    line.clone()
}

#[test]
fn a_histogram_of_4_gib_is_announced_in_vain() {
    // A V2 header with the right range, and a length of 4 GiB - 1; then with a range that needs as much.
    for (encoded, reason) in [
        (HISTOGRAM_LENGTH, "is not a histogram: its length is not the one that it announces"),
        (HISTOGRAM_RANGE, "has another range or precision"),
    ] {
        let file = file("announced", |report| report["latency_us"]["hdr_v2"] = encoded.into());
        let expected = format!("announced.json: latency_us: hdr_v2 {reason}").replace("announced.json", file.path());
        assert_eq!(refusal(&file), format!("ecoloop: cannot merge {expected}"));
    }
}

#[test]
fn fields_that_are_unknown_cost_no_memory() {
    let file = file("unknown", |_| ());
    let report = fs::read_to_string(file.path()).unwrap();
    let unknown = vec![r#"{"a":0}"#; 1 << 20].join(",");
    fs::write(file.path(), report.replacen('{', &format!("{{\"unknown\":[{unknown}],"), 1)).unwrap();
    let ended = merge(&["-q", file.path()]);
    assert_eq!((ended.status.code(), ended.stderr), (Some(0), vec![]));
}

#[test]
fn many_kinds_of_errors_are_merged_in_time() {
    let errno = |number: u32| {
        json!({
            "phase": "connect", "error": "other", "errno": format!("errno {number}"), "count": 1, "first_s": 0.5, "targets": [],
        })
    };
    let file = file("errnos", |report| report["errors"] = (0..160_000).map(errno).collect());
    let ended = merge(&["--json", "-", file.path()]);
    let merged: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    assert_eq!(merged["errors"].as_array().unwrap().len(), 160_000);
}

#[test]
fn text_of_a_file_cannot_write_to_the_terminal() {
    let escape = "\u{1b}[31mred\u{9b}2J\u{202e}";
    let directory = tempdir().unwrap();
    let path = directory.path().join(format!("{escape}.json"));
    let name = path.to_str().unwrap();
    let unknown = file("variant", |report| report["mode"] = escape.into());
    let schema = file("schema", |report| report["schema"] = escape.into());
    let labels = file("labels", |report| {
        report["config"]["labels"] = json!({escape: escape});
        report["sockstat"]["scope"] = escape.into();
        report["errors"] = json!([{"phase": "bind", "error": "other", "errno": escape, "count": 1}]);
    });
    for path in [unknown.path(), schema.path(), labels.path(), name] {
        let ended = merge(&[path]);
        let lines: Vec<_> = ended.stdout.iter().chain(&ended.stderr).collect();
        assert!(!lines.is_empty(), "{ended:?}");
        assert!(!lines.iter().any(|line| line.contains(['\u{1b}', '\u{9b}', '\u{202e}'])), "{lines:?}");
    }
}

#[test]
fn counts_that_add_up_to_over_2_63_are_refused() {
    let large = |name| {
        file(name, |report| {
            report["latency_us"]["hdr_v2"] = HISTOGRAM_2_62.into();
            report["latency_us"]["count"] = (1_u64 << 62).into();
            report["messages"]["due"] = u64::MAX.into();
        })
    };
    let (one, two) = (large("one"), large("two"));
    let alone = merge(&["--json", "-", one.path()]);
    let merged: Value = serde_json::from_str(&alone.stdout[0]).unwrap();
    assert_eq!(merged["latency_us"]["count"], 1_u64 << 62, "{merged}");
    let ended = merge(&[one.path(), two.path()]);
    let reason =
        format!("ecoloop: cannot merge {}: latency_us: the counts of the files add up to over 2^63", two.path());
    assert_eq!((ended.status.code(), ended.stderr), (Some(1), vec![reason]));
}
