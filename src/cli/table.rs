//! The report as a table for people, without escape sequences.

mod row;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use ecoloop::load::report::{
    Ended, ErrorCount, Excerpt, FaultFigures, Figures, Finding, LimitedBy, Loop, Outages, Phase, Settings, Summary,
    ThresholdResult, Verdict,
};
use ecoloop::load::{ArrivalProcess, Mode, Report};
use indicatif::HumanBytes;

pub(super) use self::row::Row;
use self::row::Table;
use super::find_rate;
use super::format::{
    NO_DATA, abbreviate, count, mean_time, number, plural, precise, round_time, rounded, rounded_time, size,
    strip_control, time, wrap,
};

/// Errors that are printed; the JSON has them all.
const ERRORS_MAX: usize = 8;
/// Stages that are printed; the JSON has them all.
const STAGES_MAX: usize = 16;
/// Targets, and sources, that are printed; the JSON has up to a hundred.
const PARTS_MAX: usize = 8;
/// Rules of faults that are printed; the JSON has them all.
const FAULTS_MAX: usize = 8;
/// Findings that are printed, on up to four lines each.
const FINDINGS_MAX: usize = 3;
/// Characters of a line after its label: 80 in all.
const LINE_WIDTH: usize = 80 - LABEL_WIDTH;
const LABEL_WIDTH: usize = 13;
/// From this share of the messages on, deferred ones are mentioned with the verdict.
const DEFERRED_SHARE: f64 = 0.01;

/// Returns the report as a table for one screen.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    for row in rows(report) {
        row.print(&mut text);
    }
    text
}

/// Returns the rows of the table.
pub(super) fn rows(report: &Report) -> Vec<Row> {
    let mut table = Table(Vec::new());
    table.list("run", &wrap(&settings(report), ", ", LINE_WIDTH), usize::MAX);
    if report.ended != Ended::Complete {
        table.row("ended", "interrupted: the figures cover the time until then");
    }
    work(&mut table, report);
    table.0.push(Row::Blank);
    distributions(&mut table, report);
    table.0.push(Row::Blank);
    stages(&mut table, report);
    parts(&mut table, report);
    let errors: Vec<_> = report.errors.iter().map(error).collect();
    table.list("errors", &errors, ERRORS_MAX);
    let findings: Vec<_> = report.verify.findings.iter().map(finding).collect();
    table.list("findings", &findings, FINDINGS_MAX);
    costs(&mut table, report);
    if let Some(search) = &report.search {
        table.row("found", &find_rate::result(search));
    }
    table.row("result", &verdict(report));
    if let Some(caution) = deferred(report) {
        table.row("", &caution);
    }
    table.0
}

/// Returns the settings of the run, and how long the measured window was.
pub(super) fn settings(report: &Report) -> Vec<String> {
    let config = &report.config;
    let pace = match (report.r#loop, config.rate) {
        _ if report.mode == Mode::Hold => pace_of_last_messages(report),
        (Loop::Closed, _) => "closed loop".to_owned(),
        _ if !report.stages.is_empty() => format!("open loop in {}", stages_in_words(report)),
        (Loop::Open, Some(rate)) => format!("open loop at {}/s", number(rate)),
        (Loop::Open, None) => "open loop".to_owned(),
    };
    let mut words = vec![
        report.mode.name().to_owned(),
        pace,
        plural(count(report.connections.requested), "connection", "connections"),
        sizes(config),
        config
            .pipeline
            .map_or("any number in flight".to_owned(), |pipeline| format!("{} in flight", count(pipeline.into()))),
    ];
    words.extend((config.arrivals == Some(ArrivalProcess::Poisson)).then(|| "Poisson arrivals".to_owned()));
    words.extend(config.proxy_protocol.map(|version| format!("PROXY header {}", version.name())));
    // Without a reply the window ended as soon as it began.
    if report.connections.verified > 0 && report.phases_s.measure > 0.0 {
        words.push(round_time(report.phases_s.measure * 1e6));
    }
    if !config.targets.is_empty() {
        words.push(strip_control(&format!("to {}", abbreviate(&config.targets))));
    }
    if !config.sources.is_empty() {
        words.push(format!("from {}", abbreviate(&config.sources)));
    }
    words.extend(config.seed.map(|seed| format!("seed {seed}")));
    words.extend(config.labels.iter().map(|(key, value)| strip_control(&format!("{key}={value}"))));
    words
}

/// Returns when the last messages of a run of `hold` are due.
pub(super) fn pace_of_last_messages(report: &Report) -> String {
    // A report of an older version has no rate that was not asked for.
    let rate = report.config.rate.map(|rate| format!("last messages at {}/s", number(rate)));
    rate.unwrap_or_else(|| "last messages on a schedule".to_owned())
}

/// Returns how many stages a run has, and their highest rate.
pub(super) fn stages_in_words(report: &Report) -> String {
    let highest = report.stages.iter().flat_map(|stage| [stage.from, stage.to]).fold(0.0, f64::max);
    format!("{} up to {}/s", plural(report.stages.len(), "stage", "stages"), number(highest))
}

fn sizes(config: &Settings) -> String {
    match config.size_max {
        None => format!("{} a message", size(config.size)),
        Some(most) => format!("{} to {} a message", size(config.size), size(most)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53 bytes")]
fn mean_size(config: &Settings) -> f64 {
    f64::midpoint(config.size as f64, config.size_max.unwrap_or(config.size) as f64)
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
    if let Some(hold) = &report.hold {
        let [alive, late, reset, closed, silent, unasked, failed] =
            [hold.alive, hold.late, hold.reset, hold.closed, hold.silent, hold.unasked, hold.failed].map(count);
        let failed = if hold.failed > 0 { format!(", {failed} failed") } else { String::new() };
        let outcomes = format!(
            "{alive} alive, {late} late, {reset} reset, {closed} closed, {silent} silent, {unasked} unasked{failed}"
        );
        table.row("hold", &outcomes);
        if let Some(after) = hold.closed_after_s {
            let [min, max] = [after.min, after.max].map(|seconds| round_time(seconds * 1e6));
            let median = after.p50.map(|p50| format!(", median {}", round_time(p50 * 1e6))).unwrap_or_default();
            let silence =
                if min == max { format!("{min} of silence") } else { format!("{min} to {max} of silence{median}") };
            table.row("", &format!("closed or reset after {silence}"));
        }
    }
    if let Some(outages) = &report.outages {
        table.row("outages", &outages_row(outages));
    }
    if !report.faults.is_empty() {
        table.list("faults", &report.faults.iter().map(fault).collect::<Vec<_>>(), FAULTS_MAX);
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
    if messages.unsent > 0 && report.ended == Ended::Complete {
        let reason = if connections.established == 0 {
            "no connection was established"
        } else if report.mode == Mode::Churn {
            "their connections were not opened"
        } else {
            "their connections had ended"
        };
        table.row("", &format!("{unsent} not sent: {reason}{}", causes(&report.errors)));
    }
    let throughput = report.rate_per_s.map_or(NO_DATA.to_owned(), |rate| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "to three digits")]
        let each_way = HumanBytes((rate * mean_size(&report.config)) as u64);
        let asked = report.config.rate.filter(|_| report.r#loop == Loop::Open);
        match asked.map(|asked| asked * report.messages_per_arrival()) {
            Some(asked) if !report.stages.is_empty() => {
                let [asked, had] = [asked, rate].map(number);
                format!("asked {asked}/s on average, had {had}/s, {each_way}/s each way")
            }
            Some(asked) => format!("asked {}/s, had {}/s, {each_way}/s each way", number(asked), number(rate)),
            None => format!("{}/s, {each_way}/s each way", plural(number(rate), "message", "messages")),
        }
    });
    table.row("throughput", &throughput);
}

/// Returns how many connections a rule of `--fault` chose, and how they ended.
fn fault(figures: &FaultFigures) -> String {
    let outcomes = [
        (figures.open, "open"),
        (figures.closed, "closed by the server"),
        (figures.reset, "reset by the server"),
        (figures.own_end, "ended by the rule"),
    ];
    let outcomes = outcomes.into_iter().filter(|(n, _)| *n > 0).map(|(n, outcome)| format!(", {} {outcome}", count(n)));
    let connections = plural(count(figures.connections), "connection", "connections");
    format!("{}: {connections}{}", strip_control(&figures.rule), outcomes.collect::<String>())
}

fn outages_row(outages: &Outages) -> String {
    if outages.count == 0 {
        return "none".to_owned();
    }
    let value = |value: Option<u64>| value.map_or(NO_DATA.to_owned(), time);
    let [p50, p99] = [outages.recovery_us.p50, outages.recovery_us.p99].map(value);
    format!(
        "{}, {} recovered; p50 {p50}, p99 {p99}, longest {}; {}",
        count(outages.count),
        count(outages.recovered),
        time(outages.longest_us),
        plural(count(outages.attempts), "attempt", "attempts"),
    )
}

/// Returns why connections have ended or were not opened, in parentheses: ` (closed_early 50)`.
fn causes(errors: &[ErrorCount]) -> String {
    let of_connections = errors.iter().filter(|error| !matches!(error.phase, Phase::Resolve | Phase::Close));
    let mut counts = BTreeMap::new();
    for error in of_connections {
        let sum: &mut u64 = counts.entry(error.error).or_default();
        *sum = sum.saturating_add(error.count);
    }
    let causes: Vec<_> = counts.iter().map(|(error, &sum)| format!("{} {}", error.name(), count(sum))).collect();
    if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) }
}

fn distributions(table: &mut Table, report: &Report) {
    let heads = report.latency_us.percentiles().map(|(_, name, _)| name.to_owned());
    table.cells("", heads.into_iter().chain(["max", "mean"].map(str::to_owned)));
    let first = report.hold.as_ref().map(|hold| ("first", &hold.first_us));
    for (name, summary) in
        [("latency", &report.latency_us), ("connect", &report.connect_us), ("lateness", &report.lateness_us)]
            .into_iter()
            .chain(first)
    {
        let value = |value: Option<u64>| value.map_or(NO_DATA.to_owned(), time);
        let percentiles = summary.percentiles().map(|(.., percentile)| value(percentile));
        let mean = summary.mean.map_or(NO_DATA.to_owned(), mean_time);
        table.cells(name, percentiles.into_iter().chain([value(summary.max), mean]));
    }
    let schedule = match report.schedule.kept {
        Some(true) => "kept",
        Some(false) => "NOT KEPT: the generator sent messages late",
        None if report.r#loop == Loop::Open || report.mode == Mode::Hold => NO_DATA,
        None => "- (closed loop)",
    };
    table.row("schedule", schedule);
    let Summary { censored, clipped, .. } = report.latency_us;
    if censored > 0 {
        let latencies = plural(count(censored), "latency is", "latencies are");
        table.row("censored", &format!("{latencies} the age of a message without a reply"));
    }
    if clipped > 0 {
        table.row("clipped", &format!("{} over the maximum of 1 h", plural(count(clipped), "latency", "latencies")));
    }
}

/// Adds the figures of each stage, in their order.
fn stages(table: &mut Table, report: &Report) {
    if report.stages.is_empty() {
        return;
    }
    let heads = ["from/s", "to/s", "length", "due", "replies", "errors", "p50", "p99"];
    table.cells("", heads.map(str::to_owned).into_iter());
    for (stage, place) in report.stages.iter().zip(1..).take(STAGES_MAX) {
        let [from, to] = [stage.from, stage.to].map(short);
        #[expect(clippy::cast_precision_loss, reason = "to three digits")]
        let counts = [stage.messages.due, stage.messages.verified, stage.errors].map(|count| short(count as f64));
        let latency = &stage.latency_us;
        let percentiles = [latency.p50, latency.p99].map(|value| value.map_or(NO_DATA.to_owned(), time));
        let cells = [from, to, round_time(stage.seconds * 1e6)].into_iter().chain(counts).chain(percentiles);
        table.cells(&format!("stage {place}"), cells);
    }
    if report.stages.len() > STAGES_MAX {
        table.row("", &format!("and {} more (see --json)", report.stages.len() - STAGES_MAX));
    }
    table.0.push(Row::Blank);
}

/// Formats a number in at most 7 characters: `999,999`, `1.20M`.
fn short(value: f64) -> String {
    if value < 1e6 { number(value) } else { format!("{:.2}M", value / 1e6) }
}

/// Adds the figures of each target and each source, the worst first.
fn parts(table: &mut Table, report: &Report) {
    let targets = report.targets.iter().map(|of| (strip_control(&of.target.to_string()), &of.figures)).collect();
    let sources = report.sources.iter().map(|of| (of.source.to_string(), &of.figures)).collect();
    for (label, mut parts) in [("targets", targets), ("sources", sources)] {
        let parts: &mut Vec<(String, &Figures)> = &mut parts;
        parts.sort_by_key(|(_, figures)| Reverse((figures.errors, figures.p99)));
        let value = |value: Option<u64>| value.map_or(NO_DATA.to_owned(), time);
        let row = |(address, figures): &(String, &Figures)| {
            let connections = plural(count(figures.connections), "connection", "connections");
            let errors = plural(count(figures.errors), "error", "errors");
            let messages = plural(count(figures.messages), "message", "messages");
            let [p50, p99] = [figures.p50, figures.p99].map(value);
            format!("{address}: {connections}, {messages}, {errors}, p50 {p50}, p99 {p99}")
        };
        if !parts.is_empty() {
            table.list(label, &parts.iter().map(row).collect::<Vec<_>>(), PARTS_MAX);
        }
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

pub(super) fn error(ErrorCount { phase, error, errno, count: n, first_s, targets, .. }: &ErrorCount) -> String {
    let errno = errno.as_ref().map(|errno| format!(" ({})", strip_control(errno))).unwrap_or_default();
    let targets = match &targets[..] {
        [] => String::new(),
        [one] => strip_control(&format!(", to {}", one.target)),
        several => {
            let counts = several.iter().map(|one| format!("{} ({})", one.target, count(one.count)));
            strip_control(&format!(", to {}", abbreviate(&counts.collect::<Vec<_>>())))
        }
    };
    // An error between two windows precedes the start of its report.
    let first = if *first_s > 0.0 { format!(", first after {}", round_time(first_s * 1e6)) } else { String::new() };
    format!("{} {}{errno}: {}{targets}{first}", phase.name(), error.name(), count(*n))
}

pub(super) fn finding(finding: &Finding) -> String {
    let local = finding.local.map_or(NO_DATA.to_owned(), |local| local.to_string());
    let excerpt = |name: &str, Excerpt { hex, text, .. }: &Excerpt| {
        if hex.is_empty() {
            String::new()
        } else {
            format!(", {name} {} {:?}", strip_control(hex), strip_control(text))
        }
    };
    let question = if finding.offset == 0 && !finding.received.hex.is_empty() {
        format!("; is this an echo server? it sent {:?}", strip_control(&finding.received.text))
    } else {
        String::new()
    };
    format!(
        "{} at byte {} of connection {}, {local} to {}, after {}{}{}{question}",
        finding.kind.name(),
        count(finding.offset),
        finding.connection,
        strip_control(&finding.peer.to_string()),
        round_time(finding.at_s * 1e6),
        excerpt("expected", &finding.expected),
        excerpt("received", &finding.received),
    )
}

/// Returns the verdict and its reasons.
pub(super) fn verdict(report: &Report) -> String {
    match report.verdict {
        Verdict::Pass => format!("PASS ({})", plural(report.thresholds.len(), "threshold", "thresholds")),
        Verdict::Fail if report.thresholds.iter().any(|threshold| threshold.failed) => {
            format!("FAIL: {}", failed_thresholds(report).join(", "))
        }
        Verdict::Fail => "FAIL: no rate was found".to_owned(),
        Verdict::Inconclusive if is_limited_by_generator(report) => {
            let reason = match &report.search {
                Some(search) if search.found_rate.is_some() => "the generator was too slow for a higher rate",
                Some(search) if find_rate::has_counted(search) => "the generator was too slow in too many windows",
                _ => "no window counted; the generator was too slow for the lowest rate",
            };
            format!("INCONCLUSIVE: {reason}")
        }
        Verdict::Inconclusive => {
            let reasons = [
                (report.schedule.kept == Some(false)).then_some("the schedule was not kept"),
                (report.generator.saturated == Some(true)).then_some("the generator was saturated"),
            ];
            let reasons = reasons.into_iter().flatten().collect::<Vec<_>>().join(" and ");
            format!("INCONCLUSIVE: {reasons}, so the figures are not the server's alone")
        }
        Verdict::Interrupted => "INTERRUPTED".to_owned(),
        Verdict::Running => "RUNNING".to_owned(),
    }
}

/// Returns whether a search has found no limit of the server, because the generator was slower.
pub(super) fn is_limited_by_generator(report: &Report) -> bool {
    report.search.as_ref().is_some_and(|search| search.limited_by == Some(LimitedBy::Generator))
}

/// Returns the share of the messages that were deferred, if it is over 1 %.
#[expect(clippy::cast_precision_loss, reason = "to three digits")]
pub(super) fn deferred(report: &Report) -> Option<String> {
    let share = report.messages.deferred as f64 / report.messages.due.max(1) as f64;
    (share > DEFERRED_SHARE).then(|| {
        let percent = number(share * 100.0);
        let reason = if report.mode == Mode::Churn {
            "the maximum of connections was open"
        } else {
            "the pipeline or the socket was full"
        };
        format!("{percent} % of the messages were deferred: {reason}")
    })
}

/// Returns the thresholds that failed, each with its value: `errors>0 (3)`.
pub(super) fn failed_thresholds(report: &Report) -> Vec<String> {
    report.thresholds.iter().filter(|threshold| threshold.failed).map(threshold).collect()
}

/// Returns a threshold with its measured value: `errors>0 (3)`.
pub(super) fn threshold(result: &ThresholdResult) -> String {
    let ThresholdResult { expr, value, .. } = result;
    let value = match value {
        None => "no data".to_owned(),
        Some(_) if expr == "schedule" => "not kept".to_owned(),
        Some(value) => measured(result, *value),
    };
    format!("{} ({value})", strip_control(expr))
}

/// Formats the value of a threshold. It has more digits if a failed threshold would not fail with the rounded value.
fn measured(result: &ThresholdResult, value: f64) -> String {
    let (shown, text, unit) = if result.expr.ends_with('%') {
        (rounded(value), format!("{} %", number(value)), " %")
    } else if result.is_time() {
        (rounded_time(value), mean_time(value), " µs")
    } else {
        (rounded(value), number(value), "")
    };
    if result.failed && !result.holds_for(shown) { format!("{}{unit}", precise(value)) } else { text }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests;
