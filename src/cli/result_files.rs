//! The files of a result, which are opened before the run and put in place at its end, and standard output.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use ecoloop::load::{Histogram, Report};
use tempfile::{Builder, NamedTempFile};

use super::plot::plot;
use super::table::table;

/// Steps in each halving of the distance to 100 %, as in wrk2.
const HGRM_TICKS: u32 = 5;
/// The text format is in milliseconds, as wrk2's.
const MICROSECONDS_A_MILLISECOND: f64 = 1000.0;

/// The heading of report options in the help.
pub(super) const REPORT: &str = "Report";

// The subcommands that flatten these arguments have a group of this name already.
#[derive(Args)]
#[group(skip)]
#[command(next_help_heading = REPORT)]
pub(super) struct Arguments {
    /// Write the report to FILE as JSON; - is standard output, without the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    #[arg(
        long,
        value_name = "FILE",
        help = "Write latency percentiles to FILE in HdrHistogram's text format, in milliseconds"
    )]
    hgrm: Option<PathBuf>,

    /// Draw latency percentiles and the timeline to FILE.svg
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Print neither progress nor table
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// The open outputs of a run.
pub(super) struct Outputs {
    json: Option<Output>,
    hgrm: Option<Output>,
    plot: Option<Output>,
    table: bool,
}

impl Arguments {
    /// Returns whether JSON on standard output is the only output.
    pub(super) fn is_json_on_stdout_alone(&self) -> bool {
        self.json_is_stdout() && self.hgrm.is_none() && self.plot.is_none()
    }

    fn json_is_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }

    /// Opens every output, so that a run is not lost for a file that cannot be created.
    pub(super) fn open(&self) -> Result<Outputs, String> {
        let is_stdout = self.json_is_stdout();
        let open = |path: &PathBuf| Output::open(path);
        let json = if is_stdout { Some(Output::Stdout) } else { self.json.as_ref().map(open).transpose()? };
        let hgrm = self.hgrm.as_ref().map(open).transpose()?;
        let plot = self.plot.as_ref().map(open).transpose()?;
        let mut targets = HashSet::new();
        for output in [&json, &hgrm, &plot].into_iter().flatten() {
            if let Output::File { target, .. } = output
                && !targets.insert(target)
            {
                return Err(format!("cannot create {}: two outputs have this name", target.display()));
            }
        }
        Ok(Outputs { json, hgrm, plot, table: !is_stdout && !self.quiet })
    }
}

/// Writes a report as JSON on standard output, and flushes it.
pub(super) fn print_document(report: &Report) -> Result<(), String> {
    Output::Stdout.write(&document(report)?)
}

impl Outputs {
    /// Writes every output and prints the table, even if one of them fails.
    pub(super) fn write(self, report: &Report) -> Result<(), String> {
        let Self { json, hgrm, plot: svg, table: is_wanted } = self;
        let results = [
            json.map(|output| output.write(&document(report)?)),
            hgrm.map(|output| output.write(&hgrm_text(&latencies(report)?))),
            svg.map(|output| output.write(&plot(report)?)),
        ];
        if is_wanted {
            match io::stdout().lock().write_all(table(report).as_bytes()) {
                // A reader of the first lines only, such as head(1), has them.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    return Err(format!("cannot write to standard output: {error}"));
                }
                _ => {}
            }
        }
        results.into_iter().flatten().collect()
    }
}

fn document(report: &Report) -> Result<String, String> {
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

/// The destination of one document.
enum Output {
    Stdout,
    /// A pipe, a terminal, `/dev/null`: it cannot be replaced by a file.
    Device(PathBuf, File),
    /// A temporary file, which is renamed to `target` once it is written.
    File {
        target: PathBuf,
        temporary: NamedTempFile,
    },
}

impl Output {
    fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot create {}: {error}", path.display());
        if path == Path::new("-") {
            return Err("cannot create -: only --json writes to standard output; ./- is a file of that name".to_owned());
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                Ok(Self::Device(path.to_owned(), file))
            }
            // Replaces the file behind a symbolic link, and keeps the link.
            Ok(_) => Self::open_file(&fs::canonicalize(path).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::open_file(path),
            Err(error) => Err(failed(error)),
        }
    }

    fn open_file(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot create {}: {error}", path.display());
        let Some(name) = path.file_name() else {
            return Err(format!("cannot create {:?}: not the name of a file", path.display()));
        };
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directory = fs::canonicalize(directory).map_err(failed)?;
        // In the target's directory, because a rename does not cross file systems; with the mode of a new file (umask(2)).
        let temporary = Builder::new()
            .prefix(".ecoloop-")
            .suffix(".tmp")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&directory)
            .map_err(failed)?;
        Ok(Self::File { target: directory.join(name), temporary })
    }

    fn write(self, text: &str) -> Result<(), String> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
                written.map_err(|error| format!("cannot write to standard output: {error}"))
            }
            Self::Device(path, mut file) => {
                file.write_all(text.as_bytes()).map_err(|error| format!("cannot write to {}: {error}", path.display()))
            }
            Self::File { target, mut temporary } => {
                let written = temporary.write_all(text.as_bytes());
                let replaced = written.and_then(|()| temporary.persist(&target).map_err(|error| error.error));
                replaced.map(drop).map_err(|error| format!("cannot write {}: {error}", target.display()))
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::super::table::tests::example;
    use super::*;

    fn names(directory: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_keeps_its_old_content_until_the_new_is_complete() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("report.json");
        fs::write(&path, "old").unwrap();
        let output = Output::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(&directory), ["report.json"]);
    }

    #[test]
    fn a_new_file_has_the_mode_of_any_new_file() {
        let directory = TempDir::new().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| directory.path().join(name));
        Output::open(&ours).unwrap().write("new").unwrap();
        File::create(&other).unwrap();
        let [ours, other] = [ours, other].map(|path| fs::metadata(path).unwrap().permissions().mode());
        assert_eq!(ours, other, "{ours:o} {other:o}");
    }

    #[test]
    fn a_failed_run_leaves_nothing_behind() {
        let directory = TempDir::new().unwrap();
        drop(Output::open(&directory.path().join("report.json")).unwrap());
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn a_symbolic_link_is_kept_and_a_device_is_not_replaced() {
        let directory = TempDir::new().unwrap();
        let [file, link, device] = ["file", "link", "null"].map(|name| directory.path().join(name));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        symlink("/dev/null", &device).unwrap();
        Output::open(&link).unwrap().write("new").unwrap();
        Output::open(&device).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::read_link(&link).unwrap(), file);
        assert_eq!(fs::read_link(&device).unwrap(), Path::new("/dev/null"));
    }

    #[test]
    fn an_output_that_cannot_be_created_is_refused_before_the_run() {
        let directory = TempDir::new().unwrap();
        let refusal = |path: &Path| Output::open(path).err().unwrap();
        let missing = directory.path().join("missing/report.json");
        let expected = format!("cannot create {}: No such file or directory (os error 2)", missing.display());
        assert_eq!(refusal(&missing), expected);
        assert_eq!(refusal(directory.path()), format!("cannot create {}: is a directory", directory.path().display()));
        assert_eq!(refusal(Path::new("")), "cannot create \"\": not the name of a file");
        assert!(refusal(Path::new("-")).starts_with("cannot create -: only --json writes to standard output"));
    }

    #[test]
    fn two_outputs_with_one_name_are_refused() {
        let directory = TempDir::new().unwrap();
        let [plain, dotted] = ["twice", "./twice"].map(|name| Some(directory.path().join(name)));
        let files = Arguments { json: plain, hgrm: dotted, plot: None, quiet: true };
        let error = files.open().err().unwrap();
        assert!(error.ends_with("/twice: two outputs have this name"), "{error}");
        assert!(names(&directory).is_empty());
    }

    #[test]
    fn every_output_is_written() {
        let directory = TempDir::new().unwrap();
        let [json, hgrm, plot] = ["a.json", "a.hgrm", "a.svg"].map(|name| directory.path().join(name));
        let files =
            Arguments { json: Some(json.clone()), hgrm: Some(hgrm.clone()), plot: Some(plot.clone()), quiet: true };
        let report = example();
        files.open().unwrap().write(&report).unwrap();
        assert_eq!(Report::from_json(&fs::read_to_string(json).unwrap()).unwrap(), report);
        assert!(fs::read_to_string(hgrm).unwrap().contains("TotalCount"));
        assert!(fs::read_to_string(plot).unwrap().starts_with("<svg "));
        assert_eq!(names(&directory), ["a.hgrm", "a.json", "a.svg"]);
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
