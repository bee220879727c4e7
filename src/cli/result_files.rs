//! The outputs of a result, which are opened before the run and written at its end.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use ecoloop::load::{Histogram, Rank, Report};

use super::output::{self, Output};
use super::page::page;
use super::plot::plot;
use super::table::table;
use super::usage_error;

/// Steps in each halving of the distance to 100 %, as in wrk2.
const HGRM_TICKS: u32 = 5;
/// The text format is in milliseconds, as wrk2's.
const MICROSECONDS_A_MILLISECOND: f64 = 1000.0;

/// The placeholder of the rank in the name of a file.
const RANK: &str = "{rank}";

/// The heading of report options in the help.
pub(super) const REPORT: &str = "Report";

// The subcommands that flatten these arguments have a group of this name already.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = REPORT)]
pub(super) struct Arguments {
    /// Write the report as JSON; here and below, - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    #[arg(long, value_name = "FILE", help = "Write latency percentiles in HdrHistogram's text format, in ms")]
    hgrm: Option<PathBuf>,

    /// Draw latency percentiles and the timeline
    #[arg(long, value_name = "FILE.svg", value_parser = svg)]
    plot: Option<PathBuf>,

    /// Write the report as one page for a browser, with the plot
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Print neither progress nor table
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// The open outputs of a run.
pub(super) struct Outputs {
    json: Option<Output>,
    hgrm: Option<Output>,
    plot: Option<Output>,
    html: Option<Output>,
    table: bool,
}

impl Arguments {
    /// Returns whether JSON on standard output is the only output.
    pub(super) fn is_json_on_stdout_alone(&self) -> bool {
        let has_other = [&self.hgrm, &self.plot, &self.html].into_iter().any(Option::is_some);
        self.json.as_deref().is_some_and(output::is_stdout) && !has_other
    }

    /// Returns whether the name of a file contains that of the rank.
    pub(super) fn has_rank(&self) -> bool {
        let paths = [&self.json, &self.hgrm, &self.plot, &self.html].into_iter().flatten();
        paths.filter_map(|path| path.to_str()).any(|path| path.contains(RANK))
    }

    /// Returns these arguments for the report of one rank of several, which `{rank}` or a suffix sets apart.
    pub(super) fn of_rank(&self, rank: Rank) -> Self {
        let suffix = |path: &PathBuf| {
            let is_apart = output::is_stdout(path) || path.to_str().is_some_and(|path| path.contains(RANK));
            if is_apart { path.clone() } else { format!("{}.rank{}", path.display(), rank.index).into() }
        };
        let [json, hgrm, plot, html] =
            [&self.json, &self.hgrm, &self.plot, &self.html].map(|path| path.as_ref().map(suffix));
        Self { json, hgrm, plot, html, quiet: self.quiet }
    }

    /// Opens the outputs of a subcommand. Two that are the same are a usage error.
    pub(super) fn open(&self, subcommand: &str, rank: Option<Rank>) -> Result<Outputs, String> {
        let outputs = self.open_each(rank)?;
        if let Some(conflict) = outputs.conflict() {
            usage_error(subcommand, conflict);
        }
        Ok(outputs)
    }

    /// Opens every output, so that a run is not lost for a file that cannot be created. The names of the files of a rank have its number.
    fn open_each(&self, rank: Option<Rank>) -> Result<Outputs, String> {
        let named = |path: &PathBuf| match (path.to_str(), rank) {
            (Some(path), Some(rank)) => path.replace(RANK, &rank.index.to_string()).into(),
            _ => path.clone(),
        };
        let open = |path: &Option<PathBuf>| path.as_ref().map(|path| Output::open(&named(path))).transpose();
        let outputs = Outputs {
            json: open(&self.json)?,
            hgrm: open(&self.hgrm)?,
            plot: open(&self.plot)?,
            html: open(&self.html)?,
            table: false,
        };
        let table = !self.quiet && !outputs.documents().any(|output| matches!(output, Output::Stdout));
        Ok(Outputs { table, ..outputs })
    }
}

impl Outputs {
    /// Returns a usage error of two options with one output.
    pub(super) fn conflict(&self) -> Option<String> {
        output::conflict(&[
            ("--json", self.json.as_ref()),
            ("--hgrm", self.hgrm.as_ref()),
            ("--plot", self.plot.as_ref()),
            ("--html", self.html.as_ref()),
        ])
    }

    fn documents(&self) -> impl Iterator<Item = &Output> {
        [&self.json, &self.hgrm, &self.plot, &self.html].into_iter().flatten()
    }

    /// Returns whether the JSON document goes to a file, which can be rewritten.
    pub(super) fn has_json_file(&self) -> bool {
        matches!(self.json, Some(Output::File(_)))
    }

    pub(super) fn prints_table(&self) -> bool {
        self.table
    }

    /// Writes the JSON document of a run that has not ended.
    pub(super) fn write_running(&self, report: &Report) -> Result<(), String> {
        self.json.as_ref().map_or(Ok(()), |output| output.replace(&document(report)?))
    }

    /// Writes every output and prints the table, even if some of them fail.
    pub(super) fn write(&self, report: &Report) -> Result<(), String> {
        let results = [
            self.json.as_ref().map(|output| output.write(&document(report)?)),
            self.hgrm.as_ref().map(|output| output.write(&hgrm_text(&latencies(report)?))),
            self.plot.as_ref().map(|output| output.write(&plot(report)?)),
            self.html.as_ref().map(|output| output.write(&page(report)?)),
            self.table.then(|| output::print(table(report).as_bytes())),
        ];
        let failures: Vec<_> = results.into_iter().flatten().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }
}

/// Parses the name of a plot. A device, such as a pipe of the shell, has any name.
fn svg(name: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(name);
    let is_svg = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg"));
    if is_svg || output::is_stdout(&path) || path.starts_with("/dev") || path.starts_with("/proc") {
        Ok(path)
    } else {
        Err("a plot is an SVG picture: the name must end in .svg")
    }
}

/// Returns a report as JSON.
pub(super) fn document(report: &Report) -> Result<String, String> {
    report.to_json().map(|json| json + "\n").map_err(|error| format!("no JSON: {error}"))
}

fn latencies(report: &Report) -> Result<Histogram, String> {
    Histogram::from_summary(&report.latency_us).map_err(|error| format!("latency_us: {error}"))
}

/// Returns the text that the `HdrHistogram` libraries print and their plotters read, with values in milliseconds.
fn hgrm_text(histogram: &Histogram) -> String {
    let milliseconds = |microseconds: f64| microseconds / MICROSECONDS_A_MILLISECOND;
    let mut text = format!("{:>12} {:>12} {:>12} {:>12}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for step in histogram.percentiles(HGRM_TICKS) {
        #[expect(clippy::cast_precision_loss, reason = "at most an hour")]
        let value = milliseconds(step.value_us as f64);
        let (quantile, count, inverse) = (step.quantile, step.count, 1.0 / (1.0 - step.quantile));
        let _ = writeln!(text, "{value:>12.3} {quantile:>12.6} {count:>12} {inverse:>12.2}");
    }
    let statistic = |value: Option<f64>| value.map_or(f64::NAN, milliseconds);
    #[expect(clippy::cast_precision_loss, reason = "at most an hour")]
    let max = statistic(histogram.max().map(|max| max as f64));
    let (mean, deviation) = (statistic(histogram.mean()), statistic(histogram.deviation()));
    let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
    let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {:>12}]", histogram.count());
    let _ = writeln!(text, "#[Buckets = {:>12}, SubBuckets     = {:>12}]", Histogram::BUCKETS, Histogram::SUB_BUCKETS);
    text
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::super::output::tests::names;
    use super::super::table::tests::example;
    use super::*;

    #[test]
    fn every_output_is_written() {
        let directory = TempDir::new().unwrap();
        let paths @ [json, hgrm, plot, html] =
            &["a.json", "a.hgrm", "a.svg", "a.html"].map(|name| directory.path().join(name));
        let [json_path, hgrm_path, plot_path, html_path] = paths.clone().map(Some);
        let files = Arguments { json: json_path, hgrm: hgrm_path, plot: plot_path, html: html_path, quiet: true };
        let report = example();
        files.open("load", None).unwrap().write(&report).unwrap();
        assert_eq!(Report::from_json(&fs::read_to_string(json).unwrap()).unwrap(), report);
        assert!(fs::read_to_string(hgrm).unwrap().contains("TotalCount"));
        let plot = fs::read_to_string(plot).unwrap();
        assert!(plot.starts_with("<svg "));
        assert!(fs::read_to_string(html).unwrap().contains(&plot), "the plot is in the page");
        assert_eq!(names(&directory), ["a.hgrm", "a.html", "a.json", "a.svg"]);
    }

    #[test]
    fn the_text_format_is_that_of_the_libraries() {
        let text = hgrm_text(&latencies(&example()).unwrap());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "       Value   Percentile   TotalCount 1/(1-Percentile)");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "       0.060     0.000000            1         1.00");
        let footer = &lines[lines.len() - 4..];
        assert_eq!(footer[0], "      20.015     1.000000         1000          inf");
        assert_eq!(footer[2], "#[Max     =       20.015, Total count    =         1000]");
        assert_eq!(footer[3], "#[Buckets =           22, SubBuckets     =         2048]");
    }
}
