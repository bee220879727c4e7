//! Where results go: files that are opened before anything starts and put in their place at the end, and standard output.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;
use ecoloop::load::{Histogram, Report};

use super::plot::plot;
use super::table::table;

/// Steps each time the distance to 100 % halves, as wrk2 prints them.
const HGRM_TICKS: u32 = 5;
/// The text format has milliseconds, as that of wrk2.
const MICROSECONDS_A_MILLISECOND: f64 = 1000.0;

// The commands that take these have a group of this name already.
#[derive(Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Write the report as JSON; - for standard output, without the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Write the latencies by percentile, in milliseconds, as `HdrHistogram` prints them
    #[arg(long, value_name = "FILE")]
    hgrm: Option<PathBuf>,

    /// Draw latency by percentile, and the run over time
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,

    /// Print neither progress nor table
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// The outputs of a run, open.
pub(super) struct Outputs {
    json: Option<Output>,
    hgrm: Option<Output>,
    plot: Option<Output>,
    table: bool,
}

impl Arguments {
    /// Whether JSON on standard output is all that is written.
    pub(super) fn is_json_on_stdout_alone(&self) -> bool {
        self.json_is_stdout() && self.hgrm.is_none() && self.plot.is_none()
    }

    fn json_is_stdout(&self) -> bool {
        self.json.as_deref() == Some(Path::new("-"))
    }

    /// Opens them all, so that a run does not end with nowhere to go.
    pub(super) fn open(&self) -> Result<Outputs, String> {
        let is_stdout = self.json_is_stdout();
        let open = |path: &PathBuf| Output::open(path);
        Ok(Outputs {
            json: if is_stdout { Some(Output::Stdout) } else { self.json.as_ref().map(open).transpose()? },
            hgrm: self.hgrm.as_ref().map(open).transpose()?,
            plot: self.plot.as_ref().map(open).transpose()?,
            table: !is_stdout && !self.quiet,
        })
    }
}

/// Writes a report as a line of JSON on standard output, for whoever waits for it.
pub(super) fn print_document(report: &Report) -> Result<(), String> {
    Output::Stdout.write(&document(report)?)
}

impl Outputs {
    /// Writes each, puts the files in their place, and prints the table even where a file fails.
    pub(super) fn write(self, report: &Report) -> Result<(), String> {
        let Self { json, hgrm, plot: svg, table: is_wanted } = self;
        let results = [
            json.map(|output| output.write(&document(report)?)),
            hgrm.map(|output| output.write(&hgrm_text(&latencies(report)?))),
            svg.map(|output| output.write(&plot(report)?)),
        ];
        if is_wanted {
            match io::stdout().lock().write_all(table(report).as_bytes()) {
                // Who reads the first lines only, as `head` does, has what was asked for.
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

/// The text that the `HdrHistogram` libraries print and their plotters read, with values in milliseconds.
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

/// Where one document goes.
enum Output {
    Stdout,
    /// What cannot be replaced: a pipe, a terminal, `/dev/null`.
    Device(PathBuf, File),
    File(Replacement),
}

impl Output {
    fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("cannot create {}: {error}", path.display());
        if path == Path::new("-") {
            return Err("cannot create -: only --json goes to standard output; ./- is a file of that name".to_owned());
        }
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            // Renaming over it would take it from everybody else.
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                Ok(Self::Device(path.to_owned(), file))
            }
            // Behind a symbolic link, so that the link stays.
            Ok(_) => Replacement::new(&fs::canonicalize(path).map_err(failed)?).map(Self::File),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Replacement::new(path).map(Self::File),
            Err(error) => Err(failed(error)),
        }
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
            Self::File(replacement) => replacement.write(text),
        }
    }
}

/// A file that appears under its name when all of it is written, and not before.
struct Replacement {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Replacement {
    fn new(target: &Path) -> Result<Self, String> {
        let name =
            target.file_name().ok_or_else(|| format!("cannot create {:?}: it names no file", target.display()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        // Beside the target: a rename does not cross file systems.
        let temporary = target.with_file_name(hidden);
        match File::create_new(&temporary) {
            Ok(file) => Ok(Self { target: target.to_owned(), temporary, file }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(format!(
                "cannot create {}: another output goes there, or a run that was killed left {} behind",
                target.display(),
                temporary.display()
            )),
            Err(error) => Err(format!("cannot create {}: {error}", target.display())),
        }
    }

    fn write(mut self, text: &str) -> Result<(), String> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| fs::rename(&self.temporary, &self.target));
        written.map_err(|error| format!("cannot write {}: {error}", self.target.display()))
    }
}

impl Drop for Replacement {
    /// Leaves nothing behind where the run failed; after the rename there is nothing.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::table::tests::example;
    use super::*;

    /// A directory of one test's own.
    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("ecoloop-output-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_file_has_its_old_content_until_the_new_is_whole() {
        let directory = Directory::new();
        let path = directory.join("report.json");
        fs::write(&path, "old").unwrap();
        let output = Output::open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        output.write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(directory.names(), ["report.json"]);
    }

    #[test]
    fn a_run_that_fails_leaves_nothing_behind() {
        let directory = Directory::new();
        drop(Output::open(&directory.join("report.json")).unwrap());
        assert!(directory.names().is_empty());
    }

    #[test]
    fn a_link_stays_and_a_device_is_not_replaced() {
        let directory = Directory::new();
        let (file, link, device) = (directory.join("file"), directory.join("link"), directory.join("null"));
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
    fn what_cannot_be_written_is_refused_at_once() {
        let directory = Directory::new();
        let refusal = |path: &Path| Output::open(path).err().unwrap();
        let missing = directory.join("missing/report.json");
        let expected = format!("cannot create {}: No such file or directory (os error 2)", missing.display());
        assert_eq!(refusal(&missing), expected);
        assert_eq!(refusal(&directory.0), format!("cannot create {}: is a directory", directory.0.display()));
        assert_eq!(refusal(Path::new("")), "cannot create \"\": it names no file");
        assert!(refusal(Path::new("-")).starts_with("cannot create -: only --json goes to standard output"));
        let twice = directory.join("twice");
        let _first = Output::open(&twice).unwrap();
        let error = refusal(&twice);
        assert!(error.starts_with(&format!("cannot create {}: another output goes there", twice.display())), "{error}");
    }

    #[test]
    fn all_that_was_asked_for_is_written() {
        let directory = Directory::new();
        let [json, hgrm, plot] = ["a.json", "a.hgrm", "a.svg"].map(|name| directory.join(name));
        let files =
            Arguments { json: Some(json.clone()), hgrm: Some(hgrm.clone()), plot: Some(plot.clone()), quiet: true };
        let report = example();
        files.open().unwrap().write(&report).unwrap();
        assert_eq!(Report::from_json(&fs::read_to_string(json).unwrap()).unwrap(), report);
        assert!(fs::read_to_string(hgrm).unwrap().contains("TotalCount"));
        assert!(fs::read_to_string(plot).unwrap().starts_with("<svg "));
        assert_eq!(directory.names(), ["a.hgrm", "a.json", "a.svg"]);
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
