//! What was measured, as a JSON file; what follows from it, as tables.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::peers::{CONTROL, FLOOR, Kind, LeftOut, OURS};
use crate::statistics::{Estimate, median, ratios};
use crate::workloads::{self, Comparison, Figure};

const SCHEMA: &str = "ecoloop.versus/1";
/// A control that is less sure than this says nothing of anybody.
const RESOLVED_WIDTH: f64 = 0.02;
/// By so much two sittings of the same servers differ, of which an interval knows little.
const RATIO_MARGIN: f64 = 0.01;
/// Ranges that are closer are called equal.
const RANGE_MARGIN: f64 = 0.02;
/// The two load generators agree.
const AGREEMENT: f64 = 0.05;

#[derive(Serialize, Deserialize)]
pub(crate) struct Document {
    schema: String,
    /// RFC 3339.
    pub(crate) start: String,
    pub(crate) slice_ms: u64,
    pub(crate) machine: Machine,
    pub(crate) peers: Vec<Described>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) workloads: Vec<Measured>,
    /// Computed from the above, each time anew.
    #[serde(skip_deserializing)]
    summary: Vec<Summary>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) version: String,
    pub(crate) run: String,
}

/// A workload with every slice of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) title: String,
    /// The arguments of `ecoloop load`.
    pub(crate) load: String,
    pub(crate) buffer_bytes: u32,
    /// That of all, in an open loop.
    pub(crate) rate_per_s: Option<f64>,
    /// Whom ratios are to.
    pub(crate) baseline: String,
    /// Its second copy.
    pub(crate) control: Option<String>,
    /// In which servers and connections were new. One in files of old.
    #[serde(default = "one")]
    pub(crate) sittings: usize,
    /// Of all sittings, one sitting's after the other's.
    pub(crate) rounds: usize,
    pub(crate) figures: Vec<Figure>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) contestants: Vec<Contestant>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Contestant {
    pub(crate) name: String,
    /// Slices that are not counted, for the load generator was late in them.
    pub(crate) late: u32,
    /// By figure, round for round; null where there is none.
    pub(crate) samples: BTreeMap<String, Vec<Option<f64>>>,
}

impl Contestant {
    pub(crate) fn new(name: &str, figures: &[Figure]) -> Self {
        let samples = figures.iter().map(|figure| (figure.name.clone(), Vec::new())).collect();
        Self { name: name.to_owned(), late: 0, samples }
    }

    /// Takes from a slice's document what is looked at.
    pub(crate) fn push(&mut self, figures: &[Figure], slice: &Value) {
        for figure in figures {
            let value = slice.pointer(figure.pointer).and_then(Value::as_f64);
            let value = value.map(|value| round(value * figure.scale));
            self.samples.entry(figure.name.clone()).or_default().push(value);
        }
    }

    /// Whether a slice has brought anything.
    pub(crate) fn has_any(&self) -> bool {
        self.samples.values().flatten().any(Option::is_some)
    }

    fn of(&self, figure: &Figure) -> &[Option<f64>] {
        self.samples.get(&figure.name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn values(&self, figure: &Figure) -> Vec<f64> {
        self.of(figure).iter().flatten().copied().collect()
    }
}

fn one() -> usize {
    1
}

/// To five digits: no slice knows more.
fn round(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Better,
    Worse,
    NoDifference,
    /// The control is too wide, or there are too few rounds.
    Unresolved,
}

/// What is said of one peer in one figure of one workload.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) workload: String,
    pub(crate) figure: String,
    pub(crate) name: String,
    pub(crate) value: Option<Estimate>,
    pub(crate) to_baseline: Option<Estimate>,
    /// The ratio to ecoloop.
    pub(crate) to_ours: Option<Estimate>,
    /// Beside ecoloop.
    pub(crate) verdict: Option<Verdict>,
}

impl Document {
    pub(crate) fn new(start: String, slice_ms: u64, machine: Machine) -> Self {
        let (peers, left_out, workloads, summary) = Default::default();
        Self { schema: SCHEMA.to_owned(), start, slice_ms, machine, peers, left_out, workloads, summary }
    }

    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        let document: Self = serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?;
        if document.schema == SCHEMA { Ok(document) } else { Err(format!("{name}: its schema is not {SCHEMA}")) }
    }

    /// Takes over what was measured before, under the same conditions.
    pub(crate) fn keep(&mut self, earlier: Self) -> Result<(), String> {
        if (earlier.slice_ms, &earlier.machine) != (self.slice_ms, &self.machine) {
            return Err("what is there was measured with other slices, or on another machine".to_owned());
        }
        self.start = earlier.start;
        (self.peers, self.workloads) = (earlier.peers, earlier.workloads);
        Ok(())
    }

    /// In place of an earlier one of that name.
    pub(crate) fn describe(&mut self, peer: Described) {
        match self.peers.iter_mut().find(|earlier| earlier.name == peer.name) {
            Some(earlier) => *earlier = peer,
            None => self.peers.push(peer),
        }
    }

    /// In place of an earlier one of that name, in the order of the list.
    pub(crate) fn add(&mut self, measured: Measured) {
        self.workloads.retain(|earlier| earlier.name != measured.name);
        self.workloads.push(measured);
        let all = workloads::all();
        self.workloads.sort_by_key(|measured| all.iter().position(|workload| workload.name == measured.name));
    }

    /// A file that is there stays whole until this one is.
    pub(crate) fn write(&mut self, path: &Path) -> Result<(), String> {
        self.summary = self.workloads.iter().flat_map(Measured::summary).collect();
        let text = serde_json::to_string(self).map_err(|error| format!("cannot write JSON: {error}"))?;
        // A line for each workload and each summary, so that changes can be seen.
        let text = text.replace(r#"{"name":""#, "\n{\"name\":\"").replace(r#"{"workload":""#, "\n{\"workload\":\"");
        replace_file(path, &(text + "\n"))
    }
}

pub(crate) fn replace_file(path: &Path, text: &str) -> Result<(), String> {
    let part = path.with_extension("part");
    fs::write(&part, text)
        .and_then(|()| fs::rename(&part, path))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))
}

impl Measured {
    fn contestant(&self, name: &str) -> Option<&Contestant> {
        self.contestants.iter().find(|contestant| contestant.name == name)
    }

    fn ratio(&self, figure: &Figure, contestant: &Contestant, to: &str) -> Option<Estimate> {
        let to = self.contestant(to).filter(|_| figure.comparison == Comparison::Ratio)?;
        Estimate::of(&ratios(contestant.of(figure), to.of(figure)))
    }

    pub(crate) fn to_baseline(&self, figure: &Figure, contestant: &Contestant) -> Option<Estimate> {
        self.ratio(figure, contestant, &self.baseline)
    }

    /// Where the ratio of two copies of one server lies.
    pub(crate) fn control_interval(&self, figure: &Figure) -> Option<[f64; 2]> {
        let control = self.contestant(self.control.as_deref()?)?;
        self.to_baseline(figure, control)?.interval
    }

    pub(crate) fn is_resolved(&self, figure: &Figure) -> bool {
        self.control_interval(figure).is_some_and(|[low, high]| high - low <= RESOLVED_WIDTH)
    }

    /// How far the medians of two copies of one server are from each other, as a share.
    fn control_difference(&self, figure: &Figure) -> Option<f64> {
        let median_of = |name: &str| median(&self.contestant(name)?.values(figure));
        let (control, floor) = (median_of(self.control.as_deref()?)?, median_of(&self.baseline)?);
        Some((control / floor - 1.0).abs()).filter(|difference| difference.is_finite())
    }

    fn verdict(&self, figure: &Figure, contestant: &Contestant) -> Option<Verdict> {
        let ours = self.contestant(OURS).filter(|ours| ours.name != contestant.name)?;
        let (is_less, is_more) = match figure.comparison {
            Comparison::None => return None,
            Comparison::Ratio => {
                let interval = self.ratio(figure, contestant, OURS).and_then(|ratio| ratio.interval);
                let control = self.control_interval(figure).filter(|_| self.is_resolved(figure));
                let (Some([low, high]), Some([control_low, control_high])) = (interval, control) else {
                    return Some(Verdict::Unresolved);
                };
                (high < control_low.min(1.0 - RATIO_MARGIN), low > control_high.max(1.0 + RATIO_MARGIN))
            }
            Comparison::Range => {
                let ([low, high], [our_low, our_high]) = (range(contestant, figure)?, range(ours, figure)?);
                let margin = self.control_difference(figure).unwrap_or(0.0).max(RANGE_MARGIN);
                (high < our_low * (1.0 - margin), low > our_high * (1.0 + margin))
            }
        };
        Some(match (is_less, is_more) {
            (false, false) => Verdict::NoDifference,
            (is_less, _) if is_less == figure.less_is_better => Verdict::Better,
            _ => Verdict::Worse,
        })
    }

    fn summary(&self) -> impl Iterator<Item = Summary> {
        self.figures.iter().flat_map(move |figure| {
            self.contestants.iter().map(move |contestant| Summary {
                workload: self.name.clone(),
                figure: figure.name.clone(),
                name: contestant.name.clone(),
                value: Estimate::of(&contestant.values(figure)),
                to_baseline: self.to_baseline(figure, contestant),
                to_ours: self.ratio(figure, contestant, OURS),
                verdict: self.verdict(figure, contestant),
            })
        })
    }

    /// The best in the first figure come first; those without it last.
    fn ranking(&self) -> Vec<&Contestant> {
        let Some(figure) = self.figures.first() else { return Vec::new() };
        let sign = if figure.less_is_better { 1.0 } else { -1.0 };
        let key = |contestant: &&Contestant| median(&contestant.values(figure)).map_or(f64::INFINITY, |key| key * sign);
        let mut ranking: Vec<_> = self.contestants.iter().collect();
        ranking.sort_by(|one, other| key(one).total_cmp(&key(other)));
        ranking
    }

    fn table(&self) -> String {
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

fn range(contestant: &Contestant, figure: &Figure) -> Option<[f64; 2]> {
    let values = contestant.values(figure);
    let low = values.iter().copied().reduce(f64::min)?;
    Some([low, values.iter().copied().reduce(f64::max)?])
}

/// Three digits, or a whole number.
fn number(value: f64) -> String {
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
fn not_first(document: &Document) -> String {
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
fn overview(document: &Document) -> String {
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

#[cfg(test)]
pub(crate) mod tests;
