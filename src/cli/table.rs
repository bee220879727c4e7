//! The result for people: a table on standard output, without escape sequences.

use std::fmt::Write as _;

use ecoloop::load::report::{ErrorCount, Finding, Loop, Summary, ThresholdResult};
use ecoloop::load::{Mode, Report};

/// Errors and findings that are printed; the JSON has them all.
const LINES_MAX: usize = 8;
const SETTINGS_WIDTH: usize = 80;
const NO_DATA: &str = "-";

/// All that a run has to say, on one screen.
pub(super) fn table(report: &Report) -> String {
    let mut table = Table(String::new());
    let lines = wrap(&settings(report), ", ", SETTINGS_WIDTH);
    table.list("run", &lines);
    if report.ended != ecoloop::load::report::Ended::Complete {
        table.row("ended", "interrupted: what follows is of the time until then");
    }
    work(&mut table, report);
    table.line("");
    distributions(&mut table, report);
    table.line("");
    let errors: Vec<_> = report.errors.iter().map(error).collect();
    table.list("errors", &errors);
    let findings: Vec<_> = report.verify.findings.iter().map(finding).collect();
    table.list("findings", &findings);
    costs(&mut table, report);
    let fallen: Vec<_> = report.thresholds.iter().filter(|threshold| threshold.failed).map(fallen).collect();
    if fallen.is_empty() {
        table.row("result", &format!("passed: none of {} thresholds failed", report.thresholds.len()));
    } else {
        table.list("FAILED", &fallen);
    }
    table.0
}

/// What was asked for, in words, and for how long it was measured.
pub(super) fn settings(report: &Report) -> Vec<String> {
    let config = &report.config;
    let pace = match (report.r#loop, config.rate) {
        (Loop::Closed, _) => "closed loop".to_owned(),
        (Loop::Open, Some(rate)) => format!("open loop at {}/s", number(rate)),
        (Loop::Open, None) => "open loop".to_owned(),
    };
    let mut words = vec![
        mode(report.mode).to_owned(),
        pace,
        plural(&count(report.connections.requested), "connection"),
        format!("{} a message", bytes(config.size)),
        config
            .pipeline
            .map_or("any number in flight".to_owned(), |pipeline| format!("{} in flight", count(pipeline.into()))),
    ];
    // Where nothing ever came back, the window was over as soon as it began.
    if report.connections.verified > 0 && report.phases_s.measure > 0.0 {
        words.push(round_time(report.phases_s.measure * 1e6));
    }
    if !config.targets.is_empty() {
        words.push(format!("to {}", several(&config.targets)));
    }
    if !config.sources.is_empty() {
        words.push(format!("from {}", several(&config.sources)));
    }
    words.extend(config.seed.map(|seed| format!("seed {seed}")));
    words.extend(config.labels.iter().map(|(key, value)| plain(&format!("{key}={value}"))));
    words
}

/// The words in lines that are no longer than `width` letters.
pub(super) fn wrap(words: &[String], separator: &str, width: usize) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if length(line) + length(separator) + length(word) <= width => {
                line.push_str(separator);
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}

pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Echo => "echo",
        Mode::Hold => "hold",
        Mode::Churn => "churn",
    }
}

fn work(table: &mut Table, report: &Report) {
    let connections = &report.connections;
    let opened = if connections.opened_total > connections.requested {
        format!(", {} opened in all", count(connections.opened_total))
    } else {
        String::new()
    };
    let [requested, established, verified, held] =
        [connections.requested, connections.established, connections.verified, connections.held].map(count);
    table.row(
        "connections",
        &format!("{requested} asked for, {established} established, {verified} verified, {held} held{opened}"),
    );
    if let Some(hold) = report.hold {
        let [alive, late, reset, closed, silent] =
            [hold.alive, hold.late, hold.reset, hold.closed, hold.silent].map(count);
        let outcomes = format!("{alive} alive, {late} late, {reset} reset, {closed} closed, {silent} silent");
        table.row("hold", &outcomes);
    }
    let messages = &report.messages;
    let [due, verified, unanswered, unsent, failed, deferred] =
        [messages.due, messages.verified, messages.unanswered, messages.unsent, messages.failed, messages.deferred]
            .map(count);
    table.row(
        "messages",
        &format!(
            "{due} due: {verified} verified, {unanswered} unanswered, {unsent} unsent, {failed} failed; {deferred} deferred"
        ),
    );
    let throughput = report.rate_per_s.map_or(NO_DATA.to_owned(), |rate| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "to three digits"
        )]
        let each_way = bytes((rate * report.config.size as f64) as u64);
        format!("{}/s, {each_way}/s each way", plural(&number(rate), "message"))
    });
    table.row("throughput", &throughput);
}

fn distributions(table: &mut Table, report: &Report) {
    let cells = |cells: [String; 8]| {
        cells.iter().fold(String::new(), |mut line, cell| {
            let _ = write!(line, "{cell:>10}");
            line
        })
    };
    let heads = ["p50", "p90", "p99", "p99.9", "p99.99", "max", "mean", "count"];
    table.row("", &cells(heads.map(str::to_owned)));
    for (name, Summary { mean, p50, p90, p99, p99_9, p99_99, max, count: n, .. }) in
        [("latency", &report.latency_us), ("connect", &report.connect_us), ("lateness", &report.lateness_us)]
    {
        let [p50, p90, p99, p99_9, p99_99, max] =
            [p50, p90, p99, p99_9, p99_99, max].map(|value| value.map_or(NO_DATA.to_owned(), time));
        let mean = mean.map_or(NO_DATA.to_owned(), mean_time);
        table.row(name, &cells([p50, p90, p99, p99_9, p99_99, max, mean, count(*n)]));
    }
    let schedule = match report.schedule.kept {
        Some(true) => "kept",
        Some(false) => "NOT KEPT: the generator was late or left messages unsent, and the figures are not the server's",
        None => "- (a closed loop has none)",
    };
    table.row("schedule", schedule);
    let Summary { censored, clipped, .. } = report.latency_us;
    if censored > 0 {
        table.row("censored", &format!("{} of the latencies: the age of a message never answered", count(censored)));
    }
    if clipped > 0 {
        table.row("clipped", &format!("{} of the latencies: over the hour that is shown", count(clipped)));
    }
}

fn costs(table: &mut Table, report: &Report) {
    let data = |value: Option<String>| value.unwrap_or(NO_DATA.to_owned());
    let generator = &report.generator;
    let saturated = if generator.saturated == Some(true) { "; SATURATED: it may be what was measured" } else { "" };
    table.row(
        "generator",
        &format!(
            "{} CPU a message, {} of a core, {} a turn at p99{saturated}",
            data(generator.cpu_us_per_message.map(mean_time)),
            data(generator.cpu_percent.map(|percent| format!("{} %", number(percent)))),
            data(generator.turn_us_p99.map(time)),
        ),
    );
    let server = report.server.map(|server| {
        format!(
            "{} CPU a message, {} memory a connection (process {})",
            data(server.cpu_us_per_message.map(mean_time)),
            data(server.rss_bytes_per_connection.map(bytes)),
            server.pid,
        )
    });
    table.row("server", &data(server));
    let kernel = report.sockstat.as_ref().map(|kernel| {
        let sockets = plural(&count(kernel.tcp_inuse), "TCP socket");
        let pages = plural(&count(kernel.tcp_mem_pages), "page");
        format!(
            "{sockets} of this network {}, both ends counted; {pages} of buffers in the whole system",
            plain(&kernel.scope)
        )
    });
    table.row("kernel", &data(kernel));
}

pub(super) fn error(ErrorCount { phase, error, errno, count: n, .. }: &ErrorCount) -> String {
    let errno = errno.as_ref().map(|errno| format!(" ({})", plain(errno))).unwrap_or_default();
    format!("{} {}{errno}: {}", phase.name(), error.name(), count(*n))
}

pub(super) fn finding(Finding { kind, connection, local, peer, offset, .. }: &Finding) -> String {
    let local = local.map_or(NO_DATA.to_owned(), |local| local.to_string());
    format!("{} at byte {} of connection {connection}, {local} to {peer}", kind.name(), count(*offset))
}

fn fallen(threshold: &ThresholdResult) -> String {
    let is_time = !["rate", "connections", "errors", "unanswered", "findings", "verified"]
        .iter()
        .any(|name| threshold.expr.starts_with(name));
    let value = match threshold.value {
        Some(value) if is_time => mean_time(value),
        Some(value) => number(value),
        None => "no data".to_owned(),
    };
    format!("{}: {value}", plain(&threshold.expr))
}

struct Table(String);

impl Table {
    fn line(&mut self, text: &str) {
        self.0.push_str(text.trim_end());
        self.0.push('\n');
    }

    fn row(&mut self, label: &str, text: &str) {
        self.line(&format!("{label:<13}{text}"));
    }

    /// A row for each, as far as the screen goes.
    fn list(&mut self, label: &str, items: &[String]) {
        if items.is_empty() {
            self.row(label, "none");
        }
        for (index, item) in items.iter().take(LINES_MAX).enumerate() {
            self.row(if index == 0 { label } else { "" }, item);
        }
        if items.len() > LINES_MAX {
            self.row("", &format!("and {} more, which --json has", count((items.len() - LINES_MAX) as u64)));
        }
    }
}

/// `66 µs`, `1.23 ms`, `2.50 s`.
pub(super) fn time(microseconds: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "to three digits")]
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        _ => mean_time(microseconds as f64),
    }
}

fn scaled_time(microseconds: f64) -> (f64, &'static str) {
    match microseconds {
        ..1e3 => (microseconds, "µs"),
        ..1e6 => (microseconds / 1e3, "ms"),
        _ => (microseconds / 1e6, "s"),
    }
}

/// `5 ms`, without zeros behind it.
pub(super) fn round_time(microseconds: f64) -> String {
    let (value, unit) = scaled_time(microseconds);
    format!("{} {unit}", number(value))
}

/// Three digits, also of what is not whole.
fn mean_time(microseconds: f64) -> String {
    let (value, unit) = scaled_time(microseconds);
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// With commas, and a fraction only where it says something.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    let whole = whole.parse().map_or(whole.to_owned(), count);
    if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") }
}

/// With commas: `20,000`.
pub(super) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 connection`, `20,000 connections`.
pub(super) fn plural(number: &str, noun: &str) -> String {
    format!("{number} {noun}{}", if number == "1" { "" } else { "s" })
}

fn bytes(value: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "to three digits")]
    let scaled = |shift: u32| number(value as f64 / f64::from(1 << shift));
    match value {
        0..0x400 => format!("{value} B"),
        0x400..0x10_0000 => format!("{} KiB", scaled(10)),
        0x10_0000..0x4000_0000 => format!("{} MiB", scaled(20)),
        _ => format!("{} GiB", scaled(30)),
    }
}

/// The first of them, and how many more.
fn several(items: &[impl ToString]) -> String {
    match items {
        [] => NO_DATA.to_owned(),
        [one] => one.to_string(),
        [one, other] => format!("{} and {}", one.to_string(), other.to_string()),
        [one, rest @ ..] => format!("{} and {} more", one.to_string(), count(rest.len() as u64)),
    }
}

/// Words that come out of a file or a command line, without what could move a cursor.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(in crate::cli) fn example() -> Report {
        example_with(|_| ())
    }

    /// The library's example, with a thousand latencies from 60 µs to 20 ms, and with something else in its JSON.
    pub(in crate::cli) fn example_with(change: impl FnOnce(&mut Value)) -> Report {
        let mut json: Value = serde_json::from_str(include_str!("../../tests/report.json")).unwrap();
        let merge =
            |into: &mut Value, from: Value| into.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
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
    fn a_run_is_told_on_one_screen() {
        let expected = "\
run          echo, open loop at 100/s, 50 connections, 64 B a message, any number in flight
             10 s, to 127.0.0.1:5000, seed 1, k=v
connections  50 asked for, 50 established, 50 verified, 50 held
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
kernel       100 TCP sockets of this network namespace, both ends counted; 3 pages of buffers in the whole system
result       passed: none of 1 thresholds failed
";
        let table = table(&example());
        assert!(table == expected, "{table}");
    }

    #[test]
    fn what_went_wrong_stands_with_its_place_and_its_figure() {
        let finding = json!({"kind": "flipped", "connection": 7, "local": "127.0.0.1:40312", "peer": "127.0.0.1:5000", "offset": 5000});
        let report = example_with(|json| {
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
            "FAILED       errors>0: 12,003",
            "             p99>5ms: 6.20 ms",
            "             lateness_p99>5ms: no data",
        ];
        assert_has(&table(&report), &lines);
        assert!(!table(&report).contains("unanswered>0"), "it holds");
    }

    #[test]
    fn what_the_figures_do_not_mean_is_said() {
        let report = example_with(|json| {
            json["ended"] = "interrupted".into();
            json["schedule"]["kept"] = false.into();
            json["generator"]["saturated"] = true.into();
            json["latency_us"]["censored"] = 5.into();
            json["latency_us"]["clipped"] = 1.into();
        });
        let lines = [
            "ended        interrupted: what follows is of the time until then",
            "schedule     NOT KEPT: the generator was late or left messages unsent, and the figures are not the server's",
            "censored     5 of the latencies: the age of a message never answered",
            "clipped      1 of the latencies: over the hour that is shown",
            "generator    5.10 µs CPU a message, 31 % of a core, 80 µs a turn at p99; SATURATED: it may be what was measured",
        ];
        assert_has(&table(&report), &lines);
    }

    #[test]
    fn what_has_no_data_is_a_dash() {
        let report = example_with(|json| {
            json["generator"] =
                json!({"cpu_us_per_message": null, "cpu_percent": null, "turn_us_p99": null, "saturated": null});
            json["server"] = json!({"pid": 4711, "cpu_us_per_message": null, "rss_bytes_per_connection": null});
            (json["rate_per_s"], json["sockstat"]) = (Value::Null, Value::Null);
            json["loop"] = "closed".into();
            json["schedule"]["kept"] = Value::Null;
            json["hold"] = json!({"alive": 48, "late": 1, "reset": 1, "closed": 0, "silent": 0});
        });
        let lines = [
            "hold         48 alive, 1 late, 1 reset, 0 closed, 0 silent",
            "throughput   -",
            "schedule     - (a closed loop has none)",
            "generator    - CPU a message, - of a core, - a turn at p99",
            "server       - CPU a message, - memory a connection (process 4711)",
            "kernel       -",
        ];
        assert_has(&table(&report), &lines);
    }

    #[test]
    fn many_findings_do_not_fill_the_screen_and_no_words_move_the_cursor() {
        let finding = json!({"kind": "lost", "connection": 1, "local": null, "peer": "[::1]:5000", "offset": 0});
        let report = example_with(|json| {
            json["verify"]["findings"] = json!(vec![finding; 20]);
            json["config"]["labels"] = json!({"k": "\u{1b}[2J"});
            json["sockstat"]["scope"] = "\r\n\u{9b}1m".into();
        });
        let table = table(&report);
        assert_has(&table, &["             and 12 more, which --json has"]);
        assert!(table.lines().count() < 40);
        assert!(!table.contains(|letter: char| letter.is_control() && letter != '\n'), "{table:?}");
    }

    #[test]
    fn what_there_is_one_of_is_no_plural() {
        let report = example_with(|json| {
            (json["rate_per_s"], json["connections"]["requested"]) = (1.into(), 1.into());
            json["config"]["size"] = 1.into();
            (json["sockstat"]["tcp_inuse"], json["sockstat"]["tcp_mem_pages"]) = (1.into(), 1.into());
        });
        let lines = [
            "run          echo, open loop at 100/s, 1 connection, 1 B a message, any number in flight",
            "throughput   1 message/s, 1 B/s each way",
            "kernel       1 TCP socket of this network namespace, both ends counted; 1 page of buffers in the whole system",
        ];
        assert_has(&table(&report), &lines);
    }

    #[test]
    fn a_window_that_never_was_is_not_told() {
        let has_window =
            |change: fn(&mut Value), words: &str| settings(&example_with(change)).contains(&words.to_owned());
        assert!(has_window(|_| (), "10 s"));
        assert!(has_window(|json| json["phases_s"]["measure"] = 0.25.into(), "250 ms"));
        assert!(!has_window(|json| json["connections"]["verified"] = 0.into(), "10 s"));
        assert!(!has_window(|json| json["phases_s"]["measure"] = 0.into(), "0 µs"));
    }

    #[test]
    fn figures_have_three_digits_and_commas() {
        for (microseconds, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1000, "1.00 ms"),
            (20_047, "20.0 ms"),
            (900_000, "900 ms"),
            (3_600_000_000, "3600 s"),
        ] {
            assert_eq!(time(microseconds), text);
        }
        for (value, text) in
            [(0.0, "0"), (1.5, "1.5"), (0.254, "0.25"), (31.25, "31.2"), (2000.0, "2,000"), (1_234_567.8, "1,234,568")]
        {
            assert_eq!(number(value), text);
        }
        for (value, text) in [(1, "1 B"), (1536, "1.5 KiB"), (3 << 20, "3 MiB"), (5 << 30, "5 GiB")] {
            assert_eq!(bytes(value), text);
        }
    }
}
