//! `ecoloop merge`: puts the results of several load generators together.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ecoloop::load::{self, Report, Threshold};

use super::exit_status;
use super::output;

/// What is read of a file at most. A report of a week has some 40 MiB: each of its seconds takes about 70 bytes.
const REPORT_MIB_MOST: u64 = 64;

#[derive(Args)]
pub(super) struct Arguments {
    /// What `ecoloop load --json` wrote
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Fail if this holds of the whole, as in `load`
    #[arg(long = "fail-if", value_name = "EXPR")]
    thresholds: Vec<Threshold>,

    #[command(flatten)]
    output: output::Arguments,
}

/// Reads, merges, writes; the exit status is that of the merged run.
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
    Ok(exit_status(merged.verdict))
}

/// A whole file, which need not have an end.
fn read(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let most = REPORT_MIB_MOST << 20;
    let length = File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if length as u64 > most {
        return Err(format!("it is longer than a report may be, {REPORT_MIB_MOST} MiB"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}
