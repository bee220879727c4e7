//! `ecoloop compare`: compares the windows of two servers.

mod live;

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ecoloop::load::compare::{Comparison, Difference, MetricRatio, RelativeResult, RelativeThreshold, Side};
use ecoloop::load::report::Verdict;
use ecoloop::load::{self, Report};

use super::format::{NO_DATA, abbreviate, count, mean_time, number, plural, strip_control};
use super::load_options::{CONNECTIONS, MESSAGES, TIME};
use super::output::{self, Output};
use super::report_stream::{print_other_lines, read_reports};
use super::result_files::REPORT;
use super::values::{Endpoint, SOCKETS};
use super::{exit_status, print_error};

const HELP: &str = "\
EXPR  METRIC, < or >, and a change in percent with its sign: p99>+10%, rate<-5%
      METRIC is any percentile, mean or max, each also with connect_ or lateness_ before it, or rate
      or server_cpu; p99[2]: of stage 2

With --live, measures windows of --duration, by default 1s, of both servers in turn, over
connections that last. It also takes the options of ecoloop load for connections, messages, time and
sockets, but not --reconnect, --fault, --repeat, --start-at, --mode hold or churn, or a range of -r.

For each metric: the ratio of the medians, NEW to OLD, and an interval. The intervals of all metrics
hold together with 95 % confidence. A verdict needs 6 windows on each side, and usually more:
  faster, slower      the interval is on one side of 1, and more than 1 % away from it
  no difference seen  the interval is within 5 % of 1
  cannot tell         neither; N windows on each side find a difference of 5 %

A condition fails only if the whole interval is beyond it.

Exit status:
  0    pass: no condition failed
  1    fail: a condition failed; or runtime error, such as reports of different settings
  2    usage error
  3    inconclusive: nothing failed, but a condition cannot be told, or no window could be compared
  130  interrupted: no condition is evaluated

Examples:
  ecoloop compare old.json new.json --fail-if 'p99>+10%'
      fails if the 99th percentile is certainly more than 10 % above the old one
  ecoloop compare --live -c 50 --windows 40 127.0.0.1:5000 127.0.0.1:5001
      80 windows of one second, each server in turn: which is faster with 50 connections?";

/// Digits of the fraction of a percentage.
const DIGITS_MAX: usize = 6;
/// Width of each column but the last, as usual values need it: one layout for most tables.
const WIDTHS_MIN: [usize; 5] = [10, 8, 7, 5, 11];

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Reports of ecoloop load --json; - is standard input; with --live, an address
    #[arg(value_name = "OLD")]
    old: String,

    /// Reports to compare with them, or an address
    #[arg(value_name = "NEW")]
    new: String,

    #[command(flatten)]
    live: live::Arguments,

    /// Fail if a metric changes by more than this, such as p99>+10% (repeatable)
    #[arg(help_heading = REPORT, long = "fail-if", value_name = "EXPR")]
    thresholds: Vec<RelativeThreshold>,

    /// Write the comparison as JSON; - is standard output, without the table
    #[arg(help_heading = REPORT, long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Print neither progress nor table
    #[arg(help_heading = REPORT, short, long)]
    quiet: bool,
}

/// Hides the options of a load, whose help is that of `ecoloop load`, and ties them to --live.
pub(super) fn hide_load_options(command: clap::Command) -> clap::Command {
    let headings = [CONNECTIONS, MESSAGES, TIME, SOCKETS];
    command.mut_args(|argument| {
        if argument.get_help_heading().is_some_and(|heading| headings.contains(&heading)) {
            argument.hide(true).requires(live::LIVE)
        } else {
            argument
        }
    })
}

impl Arguments {
    pub(super) fn is_live(&self) -> bool {
        self.live.is_live()
    }
}

/// Compares, writes the results, and returns the exit status.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let json = arguments.json.as_deref().map(Output::open).transpose()?;
    let names = [&arguments.old, &arguments.new];
    let live::Windows { sides: [old, new], is_interrupted } = if arguments.is_live() {
        arguments.live.measure(names, &arguments.thresholds, arguments.quiet)?
    } else {
        live::Windows {
            sides: [reports(Path::new(names[0]), arguments.quiet)?, reports(Path::new(names[1]), arguments.quiet)?],
            is_interrupted: false,
        }
    };
    if is_interrupted && new.is_empty() {
        print_error("interrupted before there was a window of each server");
        return Ok(exit_status(Verdict::Interrupted));
    }
    let thresholds = if is_interrupted { &[] } else { &arguments.thresholds[..] };
    let mut comparison = load::compare(&old, &new, thresholds).map_err(|error| format!("cannot compare: {error}"))?;
    if is_interrupted {
        comparison.verdict = Verdict::Interrupted;
    }
    let document = serde_json::to_string(&comparison)? + "\n";
    let written = json.as_ref().map_or(Ok(()), |output| output.write(&document));
    let has_table = !arguments.quiet && !matches!(json, Some(Output::Stdout));
    let printed = if has_table { output::print(table(&comparison).as_bytes()) } else { Ok(()) };
    if arguments.quiet {
        print_failure(&comparison);
    }
    written?;
    printed?;
    Ok(exit_status(comparison.verdict))
}

/// Reads the reports of a file, each with a name for messages.
fn reports(path: &Path, quiet: bool) -> Result<Vec<(String, Report)>, String> {
    let file = path.display().to_string();
    let found = read_reports(path, "compare").map_err(|error| {
        let is_server = !path.exists() && file.parse::<Endpoint>().is_ok();
        if is_server { format!("{error}; --live compares servers") } else { error }
    })?;
    if !quiet {
        print_other_lines(&file, &found);
    }
    let named =
        found.reports.into_iter().zip(1..).map(|((_, report), number)| (format!("{file}, report {number}"), report));
    Ok(named.collect())
}

/// Returns the comparison as a table.
fn table(comparison: &Comparison) -> String {
    let mut text = String::new();
    for (name, side) in [("old", &comparison.old), ("new", &comparison.new)] {
        let _ = writeln!(text, "{name:<13}{}", words(side));
    }
    text.push('\n');
    print_metrics(&mut text, &comparison.metrics);
    if let Some(result) = result(comparison) {
        let _ = writeln!(text, "\n{:<13}{result}", "result");
    }
    text
}

/// Adds a row for each metric, in columns that are as wide as their longest cell.
fn print_metrics(text: &mut String, metrics: &[MetricRatio]) {
    let mut rows = vec![["", "old", "new", "ratio", "interval", ""].map(str::to_owned)];
    rows.extend(metrics.iter().map(cells));
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.fold(WIDTHS_MIN[column], usize::max)
    };
    let [metric, old, new, ratio, interval] = [0, 1, 2, 3, 4].map(width);
    for [name, before, after, change, range, verdict] in &rows {
        let row =
            format!("{name:<metric$}  {before:>old$}  {after:>new$}  {change:>ratio$}  {range:<interval$}  {verdict}");
        let _ = writeln!(text, "{}", row.trim_end());
    }
}

/// Returns a metric, its medians, their ratio with its interval, and the verdict.
fn cells(metric: &MetricRatio) -> [String; 6] {
    let value = |value: Option<f64>| value.map_or(NO_DATA.to_owned(), |value| figure(&metric.metric, value));
    let ratio = metric.ratio.map_or(NO_DATA.to_owned(), |ratio| format!("{ratio:.3}"));
    let interval = metric.interval.map_or(NO_DATA.to_owned(), |[low, high]| format!("{low:.3}-{high:.3}"));
    [metric.metric.clone(), value(metric.old), value(metric.new), ratio, interval, verdict(metric)]
}

fn words(side: &Side) -> String {
    let mut words = vec![plural(count(side.windows as u64), "window", "windows")];
    if side.left_out > 0 {
        words.push(format!("{} left out: interrupted or not on schedule", count(side.left_out as u64)));
    }
    if side.errors > 0 {
        words.push(plural(count(side.errors), "error", "errors"));
    }
    if !side.targets.is_empty() {
        words.push(strip_control(&format!("to {}", abbreviate(&side.targets))));
    }
    words.join(", ")
}

fn figure(metric: &str, value: f64) -> String {
    if metric.starts_with("rate") { format!("{}/s", number(value)) } else { mean_time(value) }
}

fn verdict(metric: &MetricRatio) -> String {
    match metric.verdict {
        Difference::Faster => "faster".to_owned(),
        Difference::Slower => "slower".to_owned(),
        Difference::NoDifference => "no difference seen".to_owned(),
        Difference::CannotTell => {
            let needed = metric.windows_needed.map(|needed| format!(" ({} windows needed)", count(needed)));
            format!("cannot tell{}", needed.unwrap_or_default())
        }
    }
}

/// Prints why the comparison failed or is inconclusive, without a table.
fn print_failure(comparison: &Comparison) {
    if matches!(comparison.verdict, Verdict::Fail | Verdict::Inconclusive)
        && let Some(result) = result(comparison)
    {
        print_error(&result);
    }
}

/// Returns the result of the conditions, if there are any.
fn result(comparison: &Comparison) -> Option<String> {
    let list = |failed: Option<bool>| {
        let matching = comparison.thresholds.iter().filter(|threshold| threshold.failed == failed);
        matching.map(threshold).collect::<Vec<_>>().join(", ")
    };
    match comparison.verdict {
        Verdict::Pass if comparison.thresholds.is_empty() => None,
        Verdict::Pass => Some(format!("PASS ({})", plural(comparison.thresholds.len(), "threshold", "thresholds"))),
        Verdict::Fail => Some(format!("FAIL: {}", list(Some(true)))),
        Verdict::Inconclusive => Some(format!(
            "INCONCLUSIVE: {}",
            nothing_compared(comparison).unwrap_or_else(|| format!("cannot tell {}", list(None)))
        )),
        Verdict::Interrupted | Verdict::Running => Some("INTERRUPTED".to_owned()),
    }
}

/// Returns why no metric has a ratio, if none has.
fn nothing_compared(comparison: &Comparison) -> Option<String> {
    let Comparison { old, new, metrics, .. } = comparison;
    if metrics.iter().any(|metric| metric.ratio.is_some()) {
        return None;
    }
    let reason = if old.windows > 0 && new.windows > 0 {
        "no metric has data on both sides".to_owned()
    } else {
        let left_out = count((old.left_out + new.left_out) as u64);
        format!("{} old, {} new, and {left_out} left out: interrupted or not on schedule", old.windows, new.windows)
    };
    Some(format!("no window could be compared ({reason})"))
}

fn threshold(threshold: &RelativeResult) -> String {
    let value = threshold.value.map_or("no data".to_owned(), |percent| format!("{} %", change(threshold, percent)));
    format!("{} ({value})", threshold.expr)
}

/// Formats a change in percent. It has more digits if a condition that failed would not fail with the rounded value.
fn change(threshold: &RelativeResult, percent: f64) -> String {
    let rounded = |digits: usize| format!("{percent:+.digits$}");
    let fails = |shown: &String| shown.parse::<f64>().is_ok_and(|shown| threshold.holds_for(shown));
    let shown = (1..=DIGITS_MAX).map(rounded).find(fails).filter(|_| threshold.failed == Some(true));
    shown.unwrap_or_else(|| rounded(1))
}
