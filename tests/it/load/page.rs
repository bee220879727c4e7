//! The report as a page.

use std::fs;
use std::path::Path;

use ecoloop::Config as ServerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{document, run_command};
use crate::support::{Process, chromium, ecoloop, join, serve};

/// A label that would be markup and script, if it were not escaped.
const LABEL: &str = "team=</td><script>alert('1')</script>&\"<img src=x>";

/// Returns the text of each cell of the row of a page whose label this is.
#[track_caller]
fn row(page: &str, label: &str) -> Vec<String> {
    let (_, rest) = page.split_once(&format!("<tr><th>{label}</th>")).expect("no such row");
    let (cells, _) = rest.split_once("</tr>").unwrap();
    cells.split("<td>").skip(1).map(|cell| cell.strip_suffix("</td>").unwrap().to_owned()).collect()
}

/// Returns a time in microseconds, as it is printed: `66 µs`, `1.23 ms`.
#[track_caller]
fn microseconds(text: &str) -> f64 {
    let (value, unit) = text.split_once(' ').unwrap();
    let scale = [("µs", 1.0), ("ms", 1e3), ("s", 1e6)].into_iter().find(|(name, _)| *name == unit).unwrap().1;
    value.parse::<f64>().unwrap() * scale
}

/// Asserts that a page loads nothing, and that the one script or image which a label would bring is not in it.
#[track_caller]
fn assert_self_contained(page: &str) {
    let lower = page.to_lowercase();
    for word in
        ["src=", "href", "url(", "@import", "<script", "<link", "<img", "<iframe", "<object", "http-equiv=\"refresh"]
    {
        let words: Vec<_> = lower.match_indices(word).map(|(at, _)| &lower[at.saturating_sub(40)..at]).collect();
        // A label shows the text, behind an escaped bracket.
        assert!(words.iter().all(|before| before.contains("&lt;")), "{word}: {words:?}");
    }
    // A name, from which nothing is loaded.
    let addresses = page.matches("://").count();
    assert_eq!(addresses, page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline'\""));
}

#[test]
fn a_page_has_the_figures_of_the_report_and_the_plot_and_loads_nothing() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let directory = TempDir::new().unwrap();
    let [html, svg] = ["page.html", "page.svg"].map(|name| directory.path().join(name).to_str().unwrap().to_owned());
    let ended = run_command(&[
        "-c",
        "3",
        "-r",
        "500",
        "-d",
        "1100ms",
        "--label",
        LABEL,
        "--fail-if",
        "p99>1h",
        "--json",
        "-",
        "--html",
        &html,
        "--plot",
        &svg,
        &address,
    ]);
    let (json, report) = document(&ended);
    let page = fs::read_to_string(&html).unwrap();
    assert_self_contained(&page);
    for (label, field) in [("latency", "latency_us"), ("connect", "connect_us"), ("lateness", "lateness_us")] {
        let names = ["p50", "p90", "p95", "p99", "p99_9", "p99_99", "max", "mean"];
        let cells = row(&page, label);
        assert_eq!(cells.len(), names.len(), "{cells:?}");
        for (name, cell) in names.iter().zip(&cells) {
            let expected = json[field][name].as_f64().unwrap();
            let shown = microseconds(cell);
            // Three digits, or a hundredth.
            assert!((shown - expected).abs() <= (expected * 0.005).max(0.01), "{label} {name}: {cell}, {expected}");
        }
    }
    let count = |field: &str| json["messages"][field].as_u64().unwrap();
    assert_eq!(count("due"), 550);
    assert!(page.contains(&format!("550 due: {} verified, {} unanswered", count("verified"), count("unanswered"))));
    assert!(page.contains(&format!("3 requested, 3 established, 3 verified, {} held", report.connections.held)));
    assert!(page.contains(&format!("to {address}, seed 1")) && page.contains("p99&gt;1h"));
    assert!(
        page.contains("team=&lt;/td&gt;&lt;script&gt;alert(&apos;1&apos;)&lt;/script&gt;&amp;&quot;&lt;img src=x&gt;")
    );
    let origin = &json["origin"];
    assert!(page.contains(&format!(
        "{}, kernel {}",
        origin["host"].as_str().unwrap(),
        origin["kernel"].as_str().unwrap()
    )));
    assert!(page.contains(report.run_id.as_str()) && page.contains("--fail-if p99&gt;1h"));
    assert!(page.contains(&fs::read_to_string(&svg).unwrap()), "the plot is not that of --plot");
    let merged = directory.path().join("merged.html");
    let file = directory.path().join("report.json");
    fs::write(&file, json.to_string()).unwrap();
    let ended =
        Process::start(ecoloop(&["merge", "--html", merged.to_str().unwrap(), "-q", file.to_str().unwrap()])).wait();
    assert_eq!(ended.status.code(), Some(super::status(report.verdict)), "{ended:?}");
    let merged = fs::read_to_string(merged).unwrap();
    assert_eq!(row(&merged, "latency"), row(&page, "latency"));
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_the_first_connect() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let ended = run_command(&["--html", "/proc/page.html", &address]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr[0].contains("cannot create /proc/page.html: "), "{ended:?}");
    server.handle().drain();
    assert_eq!(join(server).stats.accepted, 0);
}

#[test]
fn the_page_of_a_search_has_its_windows() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let directory = TempDir::new().unwrap();
    let [html, svg] = ["page.html", "page.svg"].map(|name| directory.path().join(name).to_str().unwrap().to_owned());
    let ended = run_command(&[
        "-r",
        "50..100",
        "--find-rate",
        "max<1h",
        "--window",
        "100ms",
        "--json",
        "-",
        "--html",
        &html,
        "--plot",
        &svg,
        &address,
    ]);
    let (json, _) = document(&ended);
    let page = fs::read_to_string(&html).unwrap();
    assert_self_contained(&page);
    let (_, windows) = page.split_once("Windows of the search").unwrap();
    let (windows, _) = windows.split_once("</section>").unwrap();
    let rows: Vec<_> = windows.split("<tr class=\"first\">").skip(1).collect();
    let probes = json["search"]["probes"].as_array().unwrap();
    assert!(!probes.is_empty() && rows.len() == probes.len(), "{rows:?}");
    for (row, probe) in rows.iter().zip(probes) {
        let cells: Vec<_> = row.split("<td>").skip(1).map(|cell| cell.split_once("</td>").unwrap().0).collect();
        assert_eq!(cells[0], format!("{:.0}/s", probe["rate"].as_f64().unwrap()), "{probe}");
        let p99 = probe["p99_us"].as_f64().unwrap();
        assert!((microseconds(cells[3]) - p99).abs() <= p99 * 0.005, "{row}, {probe}");
        let is_kept = probe["schedule_kept"].as_bool().unwrap();
        assert_eq!(row.contains("does not count: the generator was too slow"), !is_kept, "{row}, {probe}");
    }
    assert!(page.contains(&fs::read_to_string(&svg).unwrap()), "the plot is not that of --plot");
}

/// Returns the page of a report with something else in its JSON.
#[track_caller]
fn page_with(change: impl FnOnce(&mut Value)) -> String {
    let mut report: Value = serde_json::from_str(include_str!("../../report.json")).unwrap();
    change(&mut report);
    let directory = TempDir::new().unwrap();
    let [file, html] =
        ["report.json", "page.html"].map(|name| directory.path().join(name).to_str().unwrap().to_owned());
    fs::write(&file, report.to_string()).unwrap();
    let ended = Process::start(ecoloop(&["merge", "-q", "--html", &html, &file])).wait();
    fs::read_to_string(html).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[test]
fn the_page_of_an_interrupted_run_says_that_no_threshold_was_evaluated() {
    let words = "<p>None was evaluated, because the run was interrupted.</p>";
    let interrupted = page_with(|report| report["ended"] = "interrupted".into());
    assert!(interrupted.contains(words) && interrupted.contains(">INTERRUPTED</p>"), "{interrupted}");
    let complete = page_with(|_| ());
    assert!(!complete.contains(words) && complete.contains("errors&gt;0 (0)"), "{complete}");
}

#[test]
fn the_page_of_hold_explains_its_first_latencies() {
    let words = "<tr><th>first</th><td>latency of the first message of each connection; ";
    let hold = page_with(|report| {
        let first = report["connect_us"].clone();
        (report["mode"], report["loop"]) = ("hold".into(), "closed".into());
        report["hold"] = json!({
            "alive": 50, "late": 0, "reset": 0, "closed": 0, "silent": 0, "unasked": 0, "failed": 0, "closed_after_s": null, "first_us": first,
        });
    });
    assert!(hold.contains(words) && !page_with(|_| ()).contains(words), "{hold}");
}

/// Returns a report with more of everything than a page shows, on IPv4.
fn full(report: &Value) -> Value {
    let mut full = report.clone();
    let address = |index: usize| format!("192.168.100.{index}:50000");
    let finding = |index: usize| {
        json!({"kind": "flipped", "connection": index, "local": address(index), "peer": address(index), "offset": 4_000_000_000_u64, "at_s": 1.5,
            "expected": {"hex": "00".repeat(16), "text": "x".repeat(16)}, "received": {"hex": "ff".repeat(16), "text": "y".repeat(16)}})
    };
    let errors = [
        "refused",
        "reset",
        "timeout",
        "unreachable",
        "not_local",
        "no_ports",
        "no_descriptors",
        "no_memory",
        "closed_early",
        "other",
    ];
    let error = |name: &&str| {
        json!({"phase": "connect", "error": name, "errno": "ECONNREFUSED", "count": 1_000_000, "first_s": 1.25,
            "targets": [{"target": address(1), "count": 3}, {"target": address(2), "count": 4}]})
    };
    let figures = |name: &str, index: usize, value: String| {
        let mut figures = json!({"connections": 1_000_000, "messages": 1_000_000_000, "errors": index, "p50": 1, "p99": 1_000_000,
            "latency_us": report["lateness_us"]});
        figures[name] = value.into();
        figures
    };
    full["errors"] = errors.iter().map(error).collect();
    full["verify"]["findings"] = (0..10).map(finding).collect();
    full["targets"] = (0..20).map(|index| figures("target", index, address(index))).collect();
    full["sources"] = (0..20).map(|index| figures("source", index, format!("192.168.100.{index}"))).collect();
    full["config"]["labels"] = (0..20)
        .map(|index| (format!("label-{index}"), "value".repeat(3).into()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let sample = |t: u64| json!({"t": t, "rate": t, "open": 3, "errors": 1, "p50": 10, "p99": 100 + t});
    full["timeline"] = (1..300).map(sample).collect();
    full
}

#[test]
#[ignore = "needs chromium"]
fn a_browser_shows_a_page_and_prints_it_on_two_sheets() {
    let server = serve(ServerConfig::default());
    let address = server.local_addr().to_string();
    let directory = TempDir::new().unwrap();
    let ended = run_command(&["-c", "3", "-r", "500", "-d", "1s", "--label", LABEL, "--json", "-", &address]);
    let (report, _) = document(&ended);
    let mut search = report.clone();
    let probe = |index: u64| {
        json!({"rate": 100 + index, "passed": index.is_multiple_of(2), "confirming": false, "schedule_kept": true, "seconds": 5, "rate_per_s": 100,
            "p50_us": 100, "p99_us": 200, "errors": 0, "failed": ["p99<5ms"]})
    };
    search["search"] = json!({"goal": ["p99<5ms"], "found_rate": 110, "limited_by": "server", "reopened": 0,
        "probes": (0..60).map(probe).collect::<Vec<_>>()});
    for (name, report) in [("plain", &report), ("full", &full(&report)), ("search", &search)] {
        let [file, html] = ["json", "html"].map(|end| directory.path().join(format!("{name}.{end}")));
        fs::write(&file, report.to_string()).unwrap();
        let thresholds: Vec<_> = (1..=20).flat_map(|hours| ["--fail-if".to_owned(), format!("p99>{hours}h")]).collect();
        let mut merge = ecoloop(&["merge", "-q", "--html", html.to_str().unwrap(), file.to_str().unwrap()]);
        if name != "plain" {
            merge.args(&thresholds);
        }
        merge.output().unwrap();
        let pages = printed_pages(&html, directory.path());
        assert!((1..=2).contains(&pages), "{name}: {pages} pages");
        let url = format!("file://{}", html.display());
        let output = chromium(directory.path(), &["--dump-dom", &url]).output().unwrap();
        let dom = String::from_utf8(output.stdout).unwrap();
        assert!(dom.contains("<h1>ecoloop load: echo, 3 connections") && dom.contains("</svg>"), "{dom}");
        assert!(!dom.contains("<script") && !dom.contains("<img"), "{dom}");
    }
}

/// Returns on how many pages a browser prints a document: the count of the root of the page tree (ISO 32000-1, 7.7.3.2).
fn printed_pages(page: &Path, directory: &Path) -> usize {
    let pdf = directory.join("page.pdf");
    let print = [format!("--print-to-pdf={}", pdf.display()), format!("file://{}", page.display())];
    let print: Vec<_> = ["--no-pdf-header-footer"].into_iter().chain(print.iter().map(String::as_str)).collect();
    chromium(directory, &print).output().unwrap();
    let pdf = fs::read(pdf).unwrap();
    let pdf = String::from_utf8_lossy(&pdf);
    let counts = pdf
        .split("/Count ")
        .skip(1)
        .map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<usize>().unwrap());
    counts.max().expect("no page tree")
}
