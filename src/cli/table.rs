//! The report as a table for people, without escape sequences.

use std::fmt::Write as _;

use ecoloop::load::report::{Ended, ErrorCount, Finding, Loop, Summary, ThresholdResult, Verdict};
use ecoloop::load::{Mode, Report};
use indicatif::HumanBytes;

use super::format::{NO_DATA, abbreviate, count, mean_time, number, plural, round_time, strip_control, time, wrap};

/// Errors and findings that are printed; the JSON has them all.
const LINES_MAX: usize = 8;
const LINE_WIDTH: usize = 80;

/// Returns the report as a table for one screen.
pub(super) fn table(report: &Report) -> String {
    let mut table = Table(String::new());
    let lines = wrap(&settings(report), ", ", LINE_WIDTH);
    table.list("run", &lines);
    if report.ended != Ended::Complete {
        table.row("ended", "interrupted: the figures cover the time until then");
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
    table.list("result", &verdict(report));
    table.0
}

/// Returns the settings of the run, and how long the measured window was.
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
        plural(count(report.connections.requested), "connection", "connections"),
        format!("{} a message", HumanBytes(config.size)),
        config
            .pipeline
            .map_or("any number in flight".to_owned(), |pipeline| format!("{} in flight", count(pipeline.into()))),
    ];
    // Without an answer the window ended as soon as it began.
    if report.connections.verified > 0 && report.phases_s.measure > 0.0 {
        words.push(round_time(report.phases_s.measure * 1e6));
    }
    if !config.targets.is_empty() {
        words.push(format!("to {}", abbreviate(&config.targets)));
    }
    if !config.sources.is_empty() {
        words.push(format!("from {}", abbreviate(&config.sources)));
    }
    words.extend(config.seed.map(|seed| format!("seed {seed}")));
    words.extend(config.labels.iter().map(|(key, value)| strip_control(&format!("{key}={value}"))));
    words
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
        &format!("{requested} requested, {established} established, {verified} verified, {held} held{opened}"),
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
        let each_way = HumanBytes((rate * report.config.size as f64) as u64);
        format!("{}/s, {each_way}/s each way", plural(number(rate), "message", "messages"))
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
        Some(false) => {
            "NOT KEPT: the generator sent messages late or not at all, so the figures are not the server's alone"
        }
        None if report.r#loop == Loop::Open => "- (nothing was sent)",
        None => "- (closed loop)",
    };
    table.row("schedule", schedule);
    let Summary { censored, clipped, .. } = report.latency_us;
    if censored > 0 {
        let latencies = plural(count(censored), "latency is", "latencies are");
        table.row("censored", &format!("{latencies} the age of a message without an answer"));
    }
    if clipped > 0 {
        table.row("clipped", &format!("{} over the maximum of 1 h", plural(count(clipped), "latency", "latencies")));
    }
}

fn costs(table: &mut Table, report: &Report) {
    let data = |value: Option<String>| value.unwrap_or(NO_DATA.to_owned());
    let generator = &report.generator;
    let saturated =
        if generator.saturated == Some(true) { "; SATURATED: the figures may be its own limit" } else { "" };
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
            data(server.rss_bytes_per_connection.map(|bytes| HumanBytes(bytes).to_string())),
            server.pid,
        )
    });
    table.row("server", &data(server));
    let kernel = report.sockstat.as_ref().map(|kernel| {
        let sockets = plural(count(kernel.tcp_inuse), "TCP socket", "TCP sockets");
        let pages = plural(count(kernel.tcp_mem_pages), "page", "pages");
        format!(
            "{sockets} in this network {}, both ends counted; {pages} of TCP buffers in the whole system",
            strip_control(&kernel.scope)
        )
    });
    table.row("kernel", &data(kernel));
}

pub(super) fn error(ErrorCount { phase, error, errno, count: n, .. }: &ErrorCount) -> String {
    let errno = errno.as_ref().map(|errno| format!(" ({})", strip_control(errno))).unwrap_or_default();
    format!("{} {}{errno}: {}", phase.name(), error.name(), count(*n))
}

pub(super) fn finding(Finding { kind, connection, local, peer, offset, .. }: &Finding) -> String {
    let local = local.map_or(NO_DATA.to_owned(), |local| local.to_string());
    format!("{} at byte {} of connection {connection}, {local} to {peer}", kind.name(), count(*offset))
}

fn verdict(report: &Report) -> Vec<String> {
    match report.verdict {
        Verdict::Pass => {
            vec![format!("PASS ({})", plural(report.thresholds.len(), "threshold", "thresholds"))]
        }
        Verdict::Fail => {
            let failed = report.thresholds.iter().filter(|threshold| threshold.failed).map(threshold);
            let mut lines = wrap(&failed.collect::<Vec<_>>(), ", ", LINE_WIDTH);
            if let Some(first) = lines.first_mut() {
                first.insert_str(0, "FAIL: ");
            }
            lines
        }
        Verdict::Interrupted => vec!["INTERRUPTED".to_owned()],
    }
}

/// Formats a threshold and the value that it was compared to: `errors>0 (3)`.
fn threshold(threshold: &ThresholdResult) -> String {
    let is_time = !["rate", "connections", "errors", "unanswered", "findings", "verified"]
        .iter()
        .any(|name| threshold.expr.starts_with(name));
    let value = match threshold.value {
        Some(value) if is_time => mean_time(value),
        Some(value) => number(value),
        None => "no data".to_owned(),
    };
    format!("{} ({value})", strip_control(&threshold.expr))
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

    /// Adds a row for each item, up to `LINES_MAX`.
    fn list(&mut self, label: &str, items: &[String]) {
        if items.is_empty() {
            self.row(label, "none");
        }
        for (index, item) in items.iter().take(LINES_MAX).enumerate() {
            self.row(if index == 0 { label } else { "" }, item);
        }
        if items.len() > LINES_MAX {
            self.row("", &format!("and {} more (see --json)", count((items.len() - LINES_MAX) as u64)));
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests;
