//! The report as one HTML page, which needs no other file and no network.

use std::fmt::Write as _;

use ecoloop::load::Report;
use ecoloop::load::report::{Options, Probe, SearchReport, Verdict};
use quick_xml::escape::escape;

use super::find_rate;
use super::format::{count, number, plural, round_time, shorten, strip_control};
use super::plot::{plot, start, title};
use super::table::{self, Row, rows};

/// The page, with [`TITLE`] and [`BODY`] where they go.
const PAGE: &str = include_str!("page.html");
const TITLE: &str = "@TITLE@";
const BODY: &str = "@BODY@";
/// Thresholds that are shown, and windows of a search; the JSON has them all.
const THRESHOLDS_MAX: usize = 20;
const PROBES_MAX: usize = 32;
/// Letters of the command line that are shown.
const COMMAND_LETTERS_MAX: usize = 1000;

const WORDS: [(&str, &str); 5] = [
    (
        "latency",
        "from when a message was due to its reply. With a rate, messages are due whatever the server does: a stall delays them all",
    ),
    (
        "connect",
        "from connect(2), or with a rate of connects from when the connect was due, until the connection is established",
    ),
    ("lateness", "from when a message was due to when the generator sent it: what the generator itself added"),
    ("censored", "counted with the age of a message that had no reply when the timeout or the run ended"),
    ("p99", "99 of 100 values are at most this"),
];
/// A word that the reports of `hold` alone have.
const FIRST: (&str, &str) =
    ("first", "latency of the first message of each connection; latency itself is that of the last messages");

/// Draws a report as a page.
pub(super) fn page(report: &Report) -> Result<String, String> {
    let title = title(report);
    let plot = plot(report)?;
    let mut body = format!("<h1>{}</h1>\n", text(&title));
    head(&mut body, report);
    results(&mut body, report);
    thresholds(&mut body, report);
    if let Some(search) = &report.search {
        probes(&mut body, search);
    }
    // The text in it is escaped.
    let _ = write!(body, "<section class=\"plot\">\n<h2>Plot</h2>\n{plot}</section>\n");
    settings(&mut body, report);
    words(&mut body, report);
    let page = PAGE.replacen(TITLE, &text(&title), 1);
    let (before, after) = page.rsplit_once(BODY).unwrap_or((&page, ""));
    Ok([before, &body, after].concat())
}

/// Escapes a text that may come from a file or a command line.
fn text(text: &str) -> String {
    escape(strip_control(text)).into_owned()
}

fn head(body: &mut String, report: &Report) {
    let class = match report.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "fail",
        Verdict::Inconclusive | Verdict::Interrupted | Verdict::Running => "other",
    };
    let _ = writeln!(body, "<p class=\"verdict {class}\">{}</p>", text(&table::verdict(report)));
    let host = report.origin.as_ref().and_then(|origin| origin.host.as_deref());
    let host = host.map(|host| format!(" on {host}")).unwrap_or_default();
    let line = format!("Measured by ecoloop {}{host}, from {}", report.version, start(report));
    let _ = writeln!(body, "<p>{}</p>", text(&line));
}

/// Adds the rows of the printed table.
fn results(body: &mut String, report: &Report) {
    body.push_str("<section>\n<h2>Results</h2>\n<table>\n");
    let mut rows = rows(report).into_iter().peekable();
    while let Some(row) = rows.next() {
        match row {
            Row::Blank => {}
            Row::Text { label, text: line } => {
                let mut lines = text(&line);
                while let Some(Row::Text { text: line, .. }) =
                    rows.next_if(|row| matches!(row, Row::Text { label, .. } if label.is_empty()))
                {
                    lines.push_str("<br>");
                    lines.push_str(&text(&line));
                }
                let _ = writeln!(body, "<tr class=\"first\"><th>{}</th><td>{lines}</td></tr>", text(&label));
            }
            Row::Cells { label, cells } => {
                body.push_str("<tr class=\"first\"><td colspan=\"2\"><table class=\"figures\">\n");
                figures(body, &label, &cells, "th");
                while let Some(Row::Cells { label, cells }) = rows.next_if(|row| matches!(row, Row::Cells { .. })) {
                    figures(body, &label, &cells, "td");
                }
                body.push_str("</table></td></tr>\n");
            }
        }
    }
    body.push_str("</table>\n</section>\n");
}

fn figures(body: &mut String, label: &str, cells: &[String], element: &str) {
    let _ = write!(body, "<tr><th>{}</th>", text(label));
    for cell in cells {
        let _ = write!(body, "<{element}>{}</{element}>", text(cell));
    }
    body.push_str("</tr>\n");
}

fn thresholds(body: &mut String, report: &Report) {
    body.push_str("<section>\n<h2>Thresholds: the run fails if one of them holds</h2>\n");
    if report.verdict == Verdict::Interrupted {
        body.push_str("<p>None was evaluated, because the run was interrupted.</p>\n</section>\n");
        return;
    }
    body.push_str("<table>\n");
    for (class, outcome, failed) in [("fail", "failed", true), ("pass", "passed", false)] {
        let results: Vec<_> = report.thresholds.iter().filter(|threshold| threshold.failed == failed).collect();
        if results.is_empty() {
            continue;
        }
        let mut words: Vec<_> = results.iter().take(THRESHOLDS_MAX).map(|result| table::threshold(result)).collect();
        if results.len() > THRESHOLDS_MAX {
            words.push(format!("and {} more (see --json)", count((results.len() - THRESHOLDS_MAX) as u64)));
        }
        let words = text(&words.join(", "));
        let _ = writeln!(body, "<tr class=\"first\"><th class=\"{class}\">{outcome}</th><td>{words}</td></tr>");
    }
    body.push_str("</table>\n</section>\n");
}

fn settings(body: &mut String, report: &Report) {
    body.push_str("<section>\n<h2>Settings and machine</h2>\n<table>\n");
    let mut row = |label: &str, content: &str| {
        let _ = writeln!(body, "<tr class=\"first\"><th>{label}</th><td>{content}</td></tr>");
    };
    match &report.origin {
        Some(origin) => {
            let unknown = || "unknown".to_owned();
            let host = origin.host.clone().unwrap_or_else(unknown);
            let kernel = origin.kernel.clone().unwrap_or_else(unknown);
            row("generator", &text(&format!("{host}, kernel {kernel}")));
            let command = shorten(&origin.command.join(" "), COMMAND_LETTERS_MAX);
            row("command", &format!("<code>{}</code>", text(&command)));
            row("options", &text(&options(&origin.options, report.config.messages_per_connection)));
        }
        None => row("generator", "several, whose reports are merged"),
    }
    if let Some(rank) = report.rank {
        row("rank", &text(&format!("{} of {}, from 0", rank.index, rank.count)));
    }
    let phases = report.phases_s;
    let phases = [
        ("connect", phases.connect),
        ("warm-up", phases.warmup),
        ("measured window", phases.measure),
        ("drain", phases.drain),
        ("close", phases.close),
    ];
    let phases = phases.iter().filter(|(_, seconds)| *seconds > 0.0);
    let phases: Vec<_> = phases.map(|(name, seconds)| format!("{name} {}", round_time(seconds * 1e6))).collect();
    row("phases", &text(&phases.join(" · ")));
    row("run", &text(&shorten(&report.run_id, COMMAND_LETTERS_MAX)));
    body.push_str("</table>\n</section>\n");
}

/// Returns the options that are not in the first row of the results. Each connection sends `messages`, if there is a limit.
fn options(options: &Options, messages: Option<u64>) -> String {
    let duration = |seconds: f64| round_time(seconds * 1e6);
    let mut words = vec![
        format!("timeout {}", duration(options.timeout)),
        format!("connect timeout {}", duration(options.connect_timeout)),
        format!("at most {} in progress", plural(count(options.max_connecting.into()), "connect", "connects")),
    ];
    words.extend(options.connect_rate.map(|rate| format!("{} connects/s", number(rate))));
    words.extend(messages.map(|messages| format!("{} a connection", plural(count(messages), "message", "messages"))));
    words.push(format!("closed with {}", options.close.to_uppercase()));
    words.extend(options.recv_buffer.map(|bytes| format!("receive buffer {} B", count(bytes))));
    words.extend(options.send_buffer.map(|bytes| format!("send buffer {} B", count(bytes))));
    if options.nagle {
        words.push("Nagle's algorithm on".to_owned());
    }
    words.join(" · ")
}

fn words(body: &mut String, report: &Report) {
    body.push_str("<section>\n<h2>What the words mean</h2>\n<table>\n");
    for (word, meaning) in WORDS.into_iter().chain(report.hold.as_ref().map(|_| FIRST)) {
        let _ = writeln!(body, "<tr><th>{word}</th><td>{meaning}</td></tr>");
    }
    body.push_str("</table>\n</section>\n");
}

/// Adds the windows of a search, of many the last ones.
fn probes(body: &mut String, search: &SearchReport) {
    body.push_str("<section>\n<h2>Windows of the search</h2>\n<table class=\"figures\">\n<tr>");
    for head in find_rate::HEADS {
        let _ = write!(body, "<th>{head}</th>");
    }
    body.push_str("<th></th></tr>\n");
    let left_out = search.probes.len().saturating_sub(PROBES_MAX);
    for probe in &search.probes[left_out..] {
        body.push_str("<tr class=\"first\">");
        for cell in find_rate::cells(probe) {
            let _ = write!(body, "<td>{}</td>", text(&cell));
        }
        let class = match probe {
            Probe { schedule_kept: false, .. } => "other",
            Probe { passed: true, .. } => "pass",
            Probe { .. } => "fail",
        };
        let _ =
            writeln!(body, "<td class=\"words {class}\">{}</td></tr>", text(&find_rate::outcome(probe, &search.goal)));
    }
    body.push_str("</table>\n");
    if left_out > 0 {
        let _ = writeln!(
            body,
            "<p>without the first {} (see --json)</p>",
            plural(count(left_out as u64), "window", "windows")
        );
    }
    body.push_str("</section>\n");
}
