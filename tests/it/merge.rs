//! `ecoloop merge` of files that this program did not write: memory, time and output.

use std::fs;
use std::process::{Command, Stdio};

use ecoloop::load::Report;
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

/// Merges what standard input has.
#[track_caller]
fn merge_stream(text: &str, arguments: &[&str]) -> Ended {
    let file = Scratch::new("stream");
    fs::write(file.path(), text).unwrap();
    let mut command = ecoloop(&[&["merge", "--json", "-"], arguments, &["-"]].concat());
    command.stdin(fs::File::open(file.path()).unwrap());
    Process::start(command).wait()
}

/// Returns the report of one rank on one line.
fn rank(index: u32, count: u32) -> String {
    let mut report: Value = serde_json::from_str(include_str!("../report.json")).unwrap();
    report["run_id"] = format!("run of rank {index}").into();
    report["rank"] = json!({"index": index, "count": count});
    // The order of the fields is then that of a report.
    Report::from_json(&report.to_string()).unwrap().to_json().unwrap()
}

/// Puts `prefix` before each line of a pretty report.
fn pretty(report: &str, prefix: &str) -> String {
    let text = serde_json::to_string_pretty(&Report::from_json(report).unwrap()).unwrap();
    let lines: Vec<_> = text.lines().map(|line| [prefix, line].concat()).collect();
    lines.join("\n") + "\n"
}

/// Sorts the fields of a report, as `jq -S` does.
fn sorted(report: &str) -> String {
    serde_json::from_str::<Value>(report).unwrap().to_string()
}

/// Returns how many messages were due in reports that pass.
#[track_caller]
fn merged_due(ended: &Ended) -> u64 {
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let [document] = &ended.stdout[..] else { panic!("not one document: {ended:?}") };
    serde_json::from_str::<Value>(document).unwrap()["messages"]["due"].as_u64().unwrap()
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
    // The errors fail a threshold.
    assert_eq!(ended.status.code(), Some(1), "{:?}", ended.stderr);
    let merged: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    assert_eq!(merged["errors"].as_array().unwrap().len(), 160_000);
}

#[test]
fn many_rules_of_faults_are_merged_in_time() {
    let rule = |number: u32| json!({"rule": format!("mute={number}"), "connections": 1, "open": 1, "closed": 0, "reset": 0, "own_end": 0});
    let file = file("rules", |report| report["faults"] = (0..160_000).map(rule).collect());
    let ended = merge(&["--json", "-", file.path()]);
    assert_eq!(ended.status.code(), Some(0), "{:?}", ended.stderr);
    let merged: Value = serde_json::from_str(&ended.stdout[0]).unwrap();
    assert_eq!(merged["faults"].as_array().unwrap().len(), 160_000);
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
    assert_eq!((alone.status.code(), &merged["latency_us"]["count"]), (Some(0), &json!(1_u64 << 62)), "{merged}");
    let ended = merge(&[one.path(), two.path()]);
    let reason =
        format!("ecoloop: cannot merge {}: latency_us: the counts of the files add up to over 2^63", two.path());
    assert_eq!((ended.status.code(), ended.stderr), (Some(1), vec![reason]));
}

#[test]
fn reports_are_found_in_a_stream_among_other_lines() {
    let due =
        serde_json::from_str::<Value>(include_str!("../report.json")).unwrap()["messages"]["due"].as_u64().unwrap();
    let [one, two, three] = [0, 1, 2].map(|index| rank(index, 3));
    let kubectl = ["a", "b", "c"].map(|pod| format!("[pod/load-{pod}/load] "));
    let mixed = [pretty(&one, &kubectl[0]), pretty(&two, &kubectl[1])]
        .map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let in_turn =
        mixed[0].iter().zip(&mixed[1]).flat_map(|(one, two)| [&one[..], two]).collect::<Vec<_>>().join("\n") + "\n";
    for (text, other_lines) in [
        (format!("{one}\n{two}\n{three}\n"), 0),
        (format!("{one}{two}\n\n{three}"), 0),
        (format!("{}\n- {}\n{}", sorted(&one), sorted(&two), sorted(&three)), 0),
        // kubectl logs --prefix, mpirun --tag-output, and lines of the launcher.
        (
            format!(
                "{}{one}\nstarting {{pod}}\n{}{two}\n{{\"level\":\"info\"}}\n{}{three}\n",
                kubectl[0], kubectl[1], kubectl[2]
            ),
            2,
        ),
        (
            format!(
                "[1,0]<stdout>:{one}\n[1,2]<stderr>:ecoloop: a warning\n[1,1]<stdout>:{two}\n[1,2]<stdout>:{three}\n"
            ),
            1,
        ),
        // Pretty, and with lines of another process between.
        (format!("{}{}{}", pretty(&one, ""), pretty(&two, "  "), pretty(&three, "\t")), 0),
        (format!("{in_turn}done {{\n{}\n}}\n", pretty(&three, "2: ")), 2),
        (format!("{{\n{one}\n{two}\n{three}\n"), 1),
    ] {
        let ended = merge_stream(&text, &[]);
        assert_eq!(merged_due(&ended), 3 * due, "{ended:?}");
        let expected = match other_lines {
            0 => vec![],
            1 => vec!["ecoloop: -: 1 line is of no report".to_owned()],
            _ => vec![format!("ecoloop: -: {other_lines} lines are of no report")],
        };
        assert_eq!(ended.stderr, expected, "{text}");
    }
}

#[test]
fn mixed_output_is_refused_as_such() {
    let [one, two] = [0, 1].map(|index| rank(index, 2));
    let (cut, rest) = one.split_at(1024);
    // srun writes at most 1,024 bytes at a time, mpirun 4,096.
    for text in [
        format!("{cut}{two}\n{rest}\n"),
        format!("{cut}\n{two}\n{rest}\n"),
        format!("[1,0]<stdout>:{}\n[1,1]<stdout>:{two}\n[1,0]<stdout>:{}\n", &one[..600], &one[600..]),
        format!("0: {cut}1: {two}\n0: {rest}\n"),
        format!("{two}\n{cut}"),
        format!("{two}\n{}", pretty(&one, "").replacen("\n  \"", "\na line\n  \"", 1)),
    ] {
        let ended = merge_stream(&text, &["--partial"]);
        let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
        assert!(line.contains("a report begins here and does not end: mixed output of several processes"), "{line}");
        assert!(line.starts_with("ecoloop: cannot merge -: line "), "{line}");
        assert_eq!((ended.status.code(), &ended.stdout[..]), (Some(1), &[][..]));
    }
}

#[test]
fn mixed_output_of_open_mpi_is_refused_although_it_is_json() {
    // What mpirun 4.1.4 printed with --tag-output -n 3: the third report has a tag in the name of a field.
    let log = include_str!("mixed_openmpi.log");
    assert!(log.contains("\"censored[1,2]<stdout>:\""));
    let ended = merge_stream(log, &[]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr[0].contains("line 3: a report begins here and does not end: mixed output"), "{ended:?}");
}

#[test]
fn mixed_output_of_srun_is_refused() {
    // What srun 22.05.8 printed with -n 3: the second line has parts of two reports.
    let ended = merge_stream(include_str!("mixed_srun.log"), &[]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr[0].contains("line 2: a report begins here and does not end: mixed output"), "{ended:?}");
}

#[test]
fn a_file_without_a_report_is_refused() {
    for (text, reason) in [
        ("", "ecoloop: cannot merge -: it has no report"),
        ("{\"kind\":\"Pod\"}\n{\n", "ecoloop: cannot merge -: it has no report"),
        (
            "{\"schema\":\"ecoloop.load/9\"}",
            "ecoloop: cannot merge -: line 1: schema is \"ecoloop.load/9\", expected \"ecoloop.load/1\"",
        ),
    ] {
        let ended = merge_stream(text, &[]);
        assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &[reason.to_owned()][..]));
    }
}

#[test]
fn text_after_text_without_a_report_is_read_in_time() {
    let requests = (0..1 << 17).map(|number| format!("{number:06} request {{")).collect::<Vec<_>>().join("\n");
    for text in ["{\"a\":0}".repeat(1 << 17), "{\n".repeat(1 << 17), "{ ".repeat(1 << 17), requests] {
        let ended = merge_stream(&format!("{text}\n{}", rank(0, 1)), &["-q"]);
        assert!(ended.status.success(), "{:?}", ended.stderr);
    }
}

#[test]
fn an_endless_stream_without_a_report_is_refused() {
    let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let mut command = ecoloop(&["merge", "-"]);
    command.stdin(yes.stdout.take().unwrap());
    let ended = Process::start(command).wait();
    yes.wait().unwrap();
    let reason = "ecoloop: cannot read -: it is larger than 64 MiB";
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(1), &[reason.to_owned()][..]));
}

#[test]
fn each_rank_must_be_there_once_unless_the_merge_is_partial() {
    let again = rank(0, 3).replace("run of rank 0", "another run");
    for (reports, gaps) in [
        (vec![rank(0, 3), rank(2, 3)], "rank 1 of 3 is missing"),
        (vec![rank(1, 3)], "ranks 0, 2 of 3 are missing"),
        (vec![rank(0, 3), rank(1, 3), again, rank(2, 3)], "rank 0 of 3 is there 2 times (-, line 1, -, line 3)"),
    ] {
        let refused = merge_stream(&reports.join("\n"), &[]);
        let reason = format!("ecoloop: cannot merge a part of a run: {gaps}; --partial merges what is there");
        assert_eq!((refused.status.code(), &refused.stderr[..]), (Some(1), &[reason][..]));
        let partial = merge_stream(&reports.join("\n"), &["--partial", "-q"]);
        assert!(merged_due(&partial) > 0);
        assert_eq!(partial.stderr, [format!("ecoloop: {gaps}")]);
    }
    let of_none = rank(0, 1).replace("{\"index\":0,\"count\":1}", "null").replace("run of rank 0", "another run");
    for (other, reason) in [
        (rank(1, 4), "-, line 2: it is of a run of 4 ranks, and 2 in -, line 1"),
        (rank(2, 2), "-, line 2: rank 2 of 2 is impossible"),
        (of_none, "-, line 2: it is of no rank, and -, line 1 is"),
    ] {
        let refused = merge_stream(&format!("{}\n{other}", rank(0, 2)), &["--partial"]);
        let reason = format!("ecoloop: cannot merge {reason}");
        assert_eq!((refused.status.code(), &refused.stderr[..]), (Some(1), &[reason][..]));
    }
}
