//! `ecoloop merge`: puts the results of several load generators together.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use ecoloop::load::{self, Gate, Report};

use super::output;

#[derive(Args)]
pub(super) struct Arguments {
    /// What `ecoloop load --json` wrote
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// Fail if this holds of the whole, as in `load`
    #[arg(long = "fail-if", value_name = "EXPR")]
    gates: Vec<Gate>,

    #[command(flatten)]
    output: output::Arguments,
}

/// Reads, merges, writes; the exit status is that of the merged run.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let outputs = arguments.output.open()?;
    let mut reports = Vec::new();
    for path in &arguments.files {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
        let report = Report::from_json(&text).map_err(|error| format!("cannot merge {name}: {error}"))?;
        reports.push((name, report));
    }
    let merged = load::merge(&reports, &arguments.gates).map_err(|error| format!("cannot merge {error}"))?;
    outputs.write(&merged)?;
    Ok(ExitCode::from(merged.exit))
}
