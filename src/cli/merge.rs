//! `ecoloop merge`: merges the results of several load generators.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ecoloop::load::{self, Report, Threshold};

use super::advice::print_failure;
use super::exit_status;
use super::input::Input;
use super::result_files::{self, REPORT};

/// Maximum size of a report. One of a week has about 40 MiB: 70 bytes for each second.
const REPORT_MIB_MAX: u64 = 64;

const HELP: &str = "\
EXPR  METRIC, one of > >= < <=, and a value, such as p99>5ms or rate<99%: see ecoloop load --help

Exit status:
  0    pass: no threshold failed
  1    fail: a threshold failed; or runtime error, such as reports that do not fit together
  2    usage error
  3    inconclusive: nothing failed, but a run did not keep its schedule or its generator was saturated
  130  one of the runs was interrupted: no threshold is evaluated

Examples:
  ecoloop merge one.json two.json
      the merged result as a table
  ecoloop merge --json - --fail-if 'p99>5ms' *.json
      the merged result as JSON, which fails if the 99th percentile exceeds 5 ms";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Reports written by ecoloop load --json; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Fail if a condition holds for the merged result (repeatable)
    #[arg(help_heading = REPORT, long = "fail-if", value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    #[command(flatten)]
    output: result_files::Arguments,
}

/// Reads, merges and writes reports, and returns the exit status of the merged run.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let outputs = arguments.output.open()?;
    let mut reports = Vec::new();
    for path in &arguments.files {
        let name = path.display().to_string();
        let text = read(path).map_err(|reason| format!("cannot read {name}: {reason}"))?;
        let report = Report::from_json(&text).map_err(|error| format!("cannot merge {name}: {error}"))?;
        reports.push((name, report));
    }
    let merged = load::merge(&reports, &arguments.thresholds).map_err(|error| format!("cannot merge {error}"))?;
    outputs.write(&merged)?;
    if arguments.output.quiet {
        print_failure(&merged);
    }
    Ok(exit_status(merged.verdict))
}

/// Reads a whole file, up to the maximum size of a report.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let max_bytes = REPORT_MIB_MAX << 20;
    let input: io::Result<Box<dyn Read>> =
        if path == Path::new("-") { Ok(Box::new(Input)) } else { File::open(path).map(|file| Box::new(file) as _) };
    let length =
        input.and_then(|input| input.take(max_bytes + 1).read_to_end(&mut bytes)).map_err(|error| error.to_string())?;
    if length as u64 > max_bytes {
        return Err(format!("it is larger than {REPORT_MIB_MAX} MiB"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}
