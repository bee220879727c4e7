//! The results in Markdown, as sections that fill a page.

use std::collections::BTreeMap;
use std::fmt::Write;

use ecoloop::load::statistics::{Estimate, median};

use super::comparison::{Verdict, range};
use super::{Candidate, Document, Machine, PeerInfo, WorkloadResult};
use crate::peers::{CONTROL, FLOOR, IoModel, Skipped};
use crate::workloads::{Comparison, Metric};

/// The two load generators agree if their ratio differs from 1 by at most this.
const AGREEMENT: f64 = 0.05;

/// Returns the name and the content of each section.
pub(crate) fn sections(document: &Document) -> [(&'static str, String); 4] {
    [
        ("run", run(document)),
        ("not-first", not_first(document)),
        ("overview", overview(document)),
        ("tables", document.workloads.iter().map(WorkloadResult::table).collect::<Vec<_>>().join("\n")),
    ]
}

fn run(document: &Document) -> String {
    let Machine { cpu, cores, kernel } = &document.machine;
    let mut text = format!(
        "Started {}, on {cpu}, {cores} cores, Linux {kernel}; windows of {} ms.\n\n",
        document.start, document.window_ms
    );
    text.push_str("| server | version | kind |\n|---|---|---|\n");
    for PeerInfo { name, kind, version, .. } in &document.peers {
        let kind = match kind {
            IoModel::Readiness => "readiness",
            IoModel::Completion => "completion (io_uring)",
            IoModel::Blocking => "blocking",
        };
        let _ = writeln!(text, "| {name} | {version} | {kind} |");
    }
    for Skipped { name, reason } in &document.skipped {
        let _ = write!(text, "\nSkipped: {name}: {reason}.\n");
    }
    text
}

/// Lists the metrics in which another server is better than ecoloop, and those without a verdict. The floor and its control
/// are left out: they are not servers for use.
pub(super) fn not_first(document: &Document) -> String {
    let mut lines = Vec::new();
    let mut unresolved_in = BTreeMap::<&str, Vec<&str>>::new();
    for workload in document.workloads.iter().filter(|workload| workload.control.is_some()) {
        for metric in &workload.metrics {
            let servers_with = |verdict| {
                let others = workload.candidates.iter();
                let others = others.filter(|other| other.name != FLOOR && other.name != CONTROL);
                let others = others.filter(|other| workload.verdict(metric, other) == Some(verdict));
                others.map(|other| other.name.as_str()).collect::<Vec<_>>()
            };
            let (better, unresolved) = (servers_with(Verdict::Better), servers_with(Verdict::Unresolved));
            if !better.is_empty() {
                lines.push(format!("- {}, {}: behind {}.", workload.name, metric.title, better.join(", ")));
            } else if !unresolved.is_empty() {
                unresolved_in.entry(&metric.title).or_default().push(&workload.name);
            }
        }
    }
    lines.extend(unresolved_in.iter().map(|(title, names)| format!("- {title}: unresolved in {}.", names.join(", "))));
    if lines.is_empty() {
        lines.push("- In no measured workload, except for the floor.".to_owned());
    }
    lines.join("\n") + "\n"
}

/// Returns a table of the ratios of CPU time to the floor, with a row per server and a column per workload.
pub(super) fn overview(document: &Document) -> String {
    let workloads: Vec<_> = with_cpu(document).collect();
    let mut text = String::from("| |");
    for (workload, metric) in &workloads {
        let mark = if workload.is_resolved(metric) { "" } else { " †" };
        let _ = write!(text, " {}{mark} |", workload.name);
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(workloads.len()));
    for peer in &document.peers {
        let _ = write!(text, "| {} |", peer.name);
        for (workload, metric) in &workloads {
            let candidate = workload.candidate(&peer.name);
            let ratio = candidate.and_then(|candidate| workload.ratio_to_baseline(metric, candidate));
            let _ = write!(text, " {} |", ratio.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.median)));
        }
        text.push('\n');
    }
    text + "\n† unresolved: the control interval is wider than 2%.\n"
}

/// Returns the workloads whose first metric is the server's CPU time.
pub(crate) fn with_cpu(document: &Document) -> impl Iterator<Item = (&WorkloadResult, &Metric)> {
    let workloads = document.workloads.iter().filter(|workload| workload.control.is_some());
    let metrics = workloads.filter_map(|workload| Some((workload, workload.metrics.first()?)));
    metrics.filter(|(_, metric)| metric.name.starts_with("cpu_"))
}

/// Fills the sections that a page has, each between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.
pub(crate) fn fill(page: &str, sections: &[(&str, String)]) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = page;
    while let Some((before, begun)) = rest.split_once("<!-- begin: ") {
        let (name, body) = begun.split_once(" -->\n").ok_or("a begin mark has no end of line")?;
        let section = sections.iter().find(|(section, _)| *section == name);
        let (_, content) = section.ok_or_else(|| format!("unknown section {name:?}"))?;
        let end = format!("<!-- end: {name} -->");
        let (_, after) = body.split_once(&end).ok_or_else(|| format!("section {name:?} has no end mark"))?;
        let _ = write!(filled, "{before}<!-- begin: {name} -->\n{content}{end}");
        rest = after;
    }
    Ok(filled + rest)
}

impl WorkloadResult {
    /// Returns the candidates sorted by their first metric, the best one first, those without samples last.
    fn ranking(&self) -> Vec<&Candidate> {
        let Some(metric) = self.metrics.first() else { return Vec::new() };
        let sign = if metric.lower_is_better { 1.0 } else { -1.0 };
        let key = |candidate: &&Candidate| median(&candidate.values(metric)).map_or(f64::INFINITY, |key| key * sign);
        let mut ranking: Vec<_> = self.candidates.iter().collect();
        ranking.sort_by(|one, other| key(one).total_cmp(&key(other)));
        ranking
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("### {}: {}\n\n", self.name, self.title);
        let rate = self.rate_per_s.map(|rate| format!(" -r {rate}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "`ecoloop load {}{rate}`; server buffer: {} bytes; {} rounds in {} sessions.",
            self.load, self.buffer_bytes, self.rounds, self.sessions
        );
        for metric in
            self.metrics.iter().filter(|metric| metric.comparison == Comparison::Ratio && self.control.is_some())
        {
            let interval = self.control_interval(metric).map_or("unknown".to_owned(), interval);
            let word = if self.is_resolved(metric) { "resolved" } else { "**unresolved**" };
            let _ = writeln!(text, "A/A control, {}: {interval}, {word}.", metric.title);
        }
        if let Some(agreement) = self.agreement() {
            let _ = writeln!(text, "{agreement}");
        }
        let mut head = String::from("\n| |");
        for metric in &self.metrics {
            let _ = match (metric.comparison, &self.control) {
                (Comparison::Ratio, Some(_)) => write!(head, " {} | ratio to floor | vs. ecoloop |", metric.title),
                (Comparison::Ratio, None) => write!(head, " {} | ratio |", metric.title),
                (Comparison::Range, _) => write!(head, " {} | vs. ecoloop |", metric.title),
                (Comparison::None, _) => write!(head, " {} |", metric.title),
            };
        }
        let columns = head.matches('|').count() - 2;
        let _ = writeln!(text, "{head}\n|---|{}", "--:|".repeat(columns));
        for candidate in self.ranking() {
            let _ = write!(text, "| {} |", candidate.name);
            for metric in &self.metrics {
                let _ = write!(text, " {} |", value(metric, candidate));
                if metric.comparison == Comparison::Ratio {
                    let ratio = self.ratio_to_baseline(metric, candidate);
                    let _ = write!(text, " {} |", ratio.map_or("-".to_owned(), ratio_words));
                }
                if self.control.is_some() && metric.comparison != Comparison::None {
                    let _ = write!(text, " {} |", verdict_words(self.verdict(metric, candidate)));
                }
            }
            text.push('\n');
        }
        for Skipped { name, reason } in &self.skipped {
            let _ = write!(text, "\n- {name}: {reason}.");
        }
        let late = self.candidates.iter().filter(|candidate| candidate.late_windows > 0);
        let late: Vec<_> = late.map(|candidate| format!("{} {}", candidate.name, candidate.late_windows)).collect();
        if !late.is_empty() {
            let _ = write!(
                text,
                "\n- Windows not counted, because the load generator did not keep its schedule: {}.",
                late.join(", ")
            );
        }
        text.trim_end().to_owned() + "\n"
    }

    /// Returns a sentence on the agreement of the two load generators, in the cross-check.
    fn agreement(&self) -> Option<String> {
        if self.control.is_some() {
            return None;
        }
        let metric = self.metrics.first()?;
        let other = self.candidates.iter().find(|candidate| candidate.name != self.baseline)?;
        let estimate = self.ratio_to_baseline(metric, other)?;
        let is_within = |value: f64| (value - 1.0).abs() <= AGREEMENT;
        let word = match estimate.interval {
            Some([low, high]) if is_within(low) && is_within(high) => "they agree within 5%",
            Some([low, high]) if high < 1.0 - AGREEMENT || low > 1.0 + AGREEMENT => "they do **not** agree within 5%",
            _ => "whether they agree within 5% is **unresolved**",
        };
        Some(format!("{}, ratio of one generator to the other: {}; {word}.", metric.title, ratio_words(estimate)))
    }
}

/// Returns the median, with the range for a metric that has no ratio.
fn value(metric: &Metric, candidate: &Candidate) -> String {
    let Some(middle) = median(&candidate.values(metric)) else { return "-".to_owned() };
    match range(candidate, metric) {
        Some([low, high]) if metric.comparison != Comparison::Ratio && low < high => {
            format!("{} ({} to {})", number(middle), number(low), number(high))
        }
        _ => number(middle),
    }
}

/// Formats with three significant digits, or as a whole number with thousands separators.
pub(super) fn number(value: f64) -> String {
    let text = match value.abs() {
        999.5.. => format!("{value:.0}"),
        99.95.. | 0.0 => return format!("{value:.0}"),
        9.995.. => return format!("{value:.1}"),
        0.9995.. => return format!("{value:.2}"),
        _ => return format!("{value:.3}"),
    };
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{low:.3} to {high:.3}")
}

fn ratio_words(estimate: Estimate) -> String {
    match estimate.interval {
        Some(limits) => format!("{:.3} ({})", estimate.median, interval(limits)),
        None => format!("{:.3}", estimate.median),
    }
}

fn verdict_words(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Better) => "better",
        Some(Verdict::Worse) => "worse",
        Some(Verdict::NoDifference) => "no difference",
        Some(Verdict::Unresolved) => "unresolved",
        None => "-",
    }
}
