//! The tables of the page, in Markdown.

use std::fmt::Write;

use super::comparison::{Verdict, range};
use super::{Contestant, Described, Document, Machine, Measured};
use crate::peers::{CONTROL, FLOOR, Kind, LeftOut};
use crate::statistics::{Estimate, median};
use crate::workloads::{Comparison, Figure};

/// The two load generators agree.
const AGREEMENT: f64 = 0.05;

/// The parts of the page that are made of a document, by the names of their places.
pub(crate) fn parts(document: &Document) -> [(&'static str, String); 4] {
    [
        ("run", run(document)),
        ("not-first", not_first(document)),
        ("overview", overview(document)),
        ("tables", document.workloads.iter().map(Measured::table).collect::<Vec<_>>().join("\n")),
    ]
}

fn run(document: &Document) -> String {
    let Machine { cpu, cores, kernel } = &document.machine;
    let mut text = format!(
        "Begun {}, on {cpu}, {cores} cores, Linux {kernel}; slices of {} ms.\n\n",
        document.start, document.slice_ms
    );
    text.push_str("| server | version | kind |\n|---|---|---|\n");
    for Described { name, kind, version, .. } in &document.peers {
        let kind = match kind {
            Kind::Readiness => "readiness",
            Kind::Completion => "completion (io_uring)",
            Kind::Blocking => "blocking",
        };
        let _ = writeln!(text, "| {name} | {version} | {kind} |");
    }
    for LeftOut { name, why } in &document.left_out {
        let _ = write!(text, "\nLeft out: {name}: {why}.\n");
    }
    text
}

/// Where others are ahead of ecoloop, and where nobody can say. The floor and its copy are no servers to choose.
pub(super) fn not_first(document: &Document) -> String {
    let mut lines = Vec::new();
    for workload in document.workloads.iter().filter(|workload| workload.control.is_some()) {
        for figure in &workload.figures {
            let of = |verdict| {
                let others = workload.contestants.iter();
                let others = others.filter(|other| other.name != FLOOR && other.name != CONTROL);
                let others = others.filter(|other| workload.verdict(figure, other) == Some(verdict));
                others.map(|other| other.name.as_str()).collect::<Vec<_>>()
            };
            let (better, unresolved) = (of(Verdict::Better), of(Verdict::Unresolved));
            if !better.is_empty() {
                lines.push(format!("- {}, {}: behind {}.", workload.name, figure.title, better.join(", ")));
            } else if !unresolved.is_empty() {
                lines.push(format!("- {}, {}: unresolved.", workload.name, figure.title));
            }
        }
    }
    if lines.is_empty() {
        lines.push("- Nowhere in what was measured, but for the floor.".to_owned());
    }
    lines.join("\n") + "\n"
}

/// The CPU of the server beside the floor's: a row a server, a column a workload.
pub(super) fn overview(document: &Document) -> String {
    let workloads: Vec<_> = with_cpu(document).collect();
    let mut text = String::from("| |");
    for (workload, figure) in &workloads {
        let mark = if workload.is_resolved(figure) { "" } else { " †" };
        let _ = write!(text, " {}{mark} |", workload.name);
    }
    let _ = writeln!(text, "\n|---|{}", "--:|".repeat(workloads.len()));
    for peer in &document.peers {
        let _ = write!(text, "| {} |", peer.name);
        for (workload, figure) in &workloads {
            let contestant = workload.contestant(&peer.name);
            let ratio = contestant.and_then(|contestant| workload.to_baseline(figure, contestant));
            let _ = write!(text, " {} |", ratio.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.median)));
        }
        text.push('\n');
    }
    text + "\n† unresolved: the two copies of the floor differ, or might, by more than 2 %.\n"
}

/// The workloads whose first figure is the server's CPU.
pub(crate) fn with_cpu(document: &Document) -> impl Iterator<Item = (&Measured, &Figure)> {
    let workloads = document.workloads.iter().filter(|workload| workload.control.is_some());
    let figures = workloads.filter_map(|workload| Some((workload, workload.figures.first()?)));
    figures.filter(|(_, figure)| figure.name.starts_with("cpu_"))
}

/// Fills the places `<!-- begin: NAME -->` to `<!-- end: NAME -->` of a page.
pub(crate) fn fill(page: &str, parts: &[(&str, String)]) -> Result<String, String> {
    let mut page = page.to_owned();
    for (name, content) in parts {
        let (begin, end) = (format!("<!-- begin: {name} -->\n"), format!("<!-- end: {name} -->"));
        let place = page.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) = place.ok_or_else(|| format!("there is no place for {name}"))?;
        page = format!("{before}{begin}{content}{end}{after}");
    }
    Ok(page)
}

impl Measured {
    /// The best in the first figure come first; those without it last.
    fn ranking(&self) -> Vec<&Contestant> {
        let Some(figure) = self.figures.first() else { return Vec::new() };
        let sign = if figure.less_is_better { 1.0 } else { -1.0 };
        let key = |contestant: &&Contestant| median(&contestant.values(figure)).map_or(f64::INFINITY, |key| key * sign);
        let mut ranking: Vec<_> = self.contestants.iter().collect();
        ranking.sort_by(|one, other| key(one).total_cmp(&key(other)));
        ranking
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!("### {}: {}\n\n", self.name, self.title);
        let rate = self.rate_per_s.map(|rate| format!(" -r {rate}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "`ecoloop load {}{rate}`; the server's buffer: {} bytes; rounds: {}, sittings: {}.",
            self.load, self.buffer_bytes, self.rounds, self.sittings
        );
        for figure in
            self.figures.iter().filter(|figure| figure.comparison == Comparison::Ratio && self.control.is_some())
        {
            let interval = self.control_interval(figure).map_or("unknown".to_owned(), interval);
            let word = if self.is_resolved(figure) { "resolved" } else { "**unresolved**" };
            let _ = writeln!(text, "Control, {}: {interval}, {word}.", figure.title);
        }
        if let Some(agreement) = self.agreement() {
            let _ = writeln!(text, "{agreement}");
        }
        let mut head = String::from("\n| |");
        for figure in &self.figures {
            let _ = match (figure.comparison, &self.control) {
                (Comparison::Ratio, Some(_)) => write!(head, " {} | to the floor | beside ecoloop |", figure.title),
                (Comparison::Ratio, None) => write!(head, " {} | ratio |", figure.title),
                (Comparison::Range, _) => write!(head, " {} | beside ecoloop |", figure.title),
                (Comparison::None, _) => write!(head, " {} |", figure.title),
            };
        }
        let columns = head.matches('|').count() - 2;
        let _ = writeln!(text, "{head}\n|---|{}", "--:|".repeat(columns));
        for contestant in self.ranking() {
            let _ = write!(text, "| {} |", contestant.name);
            for figure in &self.figures {
                let _ = write!(text, " {} |", value(figure, contestant));
                if figure.comparison == Comparison::Ratio {
                    let ratio = self.to_baseline(figure, contestant);
                    let _ = write!(text, " {} |", ratio.map_or("-".to_owned(), ratio_words));
                }
                if self.control.is_some() && figure.comparison != Comparison::None {
                    let _ = write!(text, " {} |", verdict_words(self.verdict(figure, contestant)));
                }
            }
            text.push('\n');
        }
        for LeftOut { name, why } in &self.left_out {
            let _ = write!(text, "\n- {name}: {why}.");
        }
        let late = self.contestants.iter().filter(|contestant| contestant.late > 0);
        let late: Vec<_> = late.map(|contestant| format!("{} {}", contestant.name, contestant.late)).collect();
        if !late.is_empty() {
            let _ = write!(text, "\n- Slices not counted, for the load generator was late: {}.", late.join(", "));
        }
        text.trim_end().to_owned() + "\n"
    }

    /// Of the cross-check.
    fn agreement(&self) -> Option<String> {
        if self.control.is_some() {
            return None;
        }
        let figure = self.figures.first()?;
        let other = self.contestants.iter().find(|contestant| contestant.name != self.baseline)?;
        let estimate = self.to_baseline(figure, other)?;
        let is_within = |value: f64| (value - 1.0).abs() <= AGREEMENT;
        let word = match estimate.interval {
            Some([low, high]) if is_within(low) && is_within(high) => "they agree within 5 %",
            Some([low, high]) if high < 1.0 - AGREEMENT || low > 1.0 + AGREEMENT => "they do **not** agree within 5 %",
            _ => "whether they agree within 5 % is **unresolved**",
        };
        Some(format!("{} by one to that by the other: {}; {word}.", figure.title, ratio_words(estimate)))
    }
}

/// The median, and the range where nothing else says how sure it is.
fn value(figure: &Figure, contestant: &Contestant) -> String {
    let Some(middle) = median(&contestant.values(figure)) else { return "-".to_owned() };
    match range(contestant, figure) {
        Some([low, high]) if figure.comparison != Comparison::Ratio && low < high => {
            format!("{} ({} to {})", number(middle), number(low), number(high))
        }
        _ => number(middle),
    }
}

/// Three digits, or a whole number.
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
